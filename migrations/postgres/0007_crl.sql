-- Revocation lists: since when what is revoked is so, and the number that each list bears.

---- Since when

-- When a status became what it is; none: since the row was added.
ALTER TABLE devices ADD COLUMN status_since timestamptz CHECK (status_since BETWEEN '0001-01-01Z' AND '9999-12-31Z');
ALTER TABLE certificates ADD COLUMN status_since timestamptz CHECK (status_since BETWEEN '0001-01-01Z' AND '9999-12-31Z');
-- Of those from before nobody noted it: they are revoked since now at the latest.
UPDATE devices SET status_since = date_trunc('milliseconds', now()) WHERE status <> 'active';
UPDATE certificates SET status_since = date_trunc('milliseconds', now()) WHERE status <> 'active';

CREATE FUNCTION stamp_status() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.status = OLD.status THEN
        RAISE EXCEPTION 'since when a status holds is noted when it changes, and never changes by itself' USING ERRCODE = 'DW001';
    END IF;
    NEW.status_since := date_trunc('milliseconds', clock_timestamp());
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION stamp_status FROM PUBLIC;
CREATE TRIGGER stamp_insert BEFORE INSERT ON devices FOR EACH ROW
    WHEN (NEW.status <> 'active' OR NEW.status_since IS NOT NULL) EXECUTE FUNCTION stamp_status();
CREATE TRIGGER stamp_insert BEFORE INSERT ON certificates FOR EACH ROW
    WHEN (NEW.status <> 'active' OR NEW.status_since IS NOT NULL) EXECUTE FUNCTION stamp_status();
CREATE TRIGGER stamp BEFORE UPDATE ON devices FOR EACH ROW
    WHEN (NEW.status <> OLD.status OR NEW.status_since IS DISTINCT FROM OLD.status_since) EXECUTE FUNCTION stamp_status();
CREATE TRIGGER stamp BEFORE UPDATE ON certificates FOR EACH ROW
    WHEN (NEW.status <> OLD.status OR NEW.status_since IS DISTINCT FROM OLD.status_since) EXECUTE FUNCTION stamp_status();

---- Which number

-- The newest list of each authority. A number is given once, whatever becomes of the list (RFC 5280 section 5.2.3).
CREATE TABLE crls (
    issuer text COLLATE "C" PRIMARY KEY CHECK (issuer ~ '^[0-9a-f]{2,128}$'),
    number bigint NOT NULL CHECK (number > 0),
    this_update timestamptz NOT NULL CHECK (this_update BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    next_update timestamptz NOT NULL CHECK (this_update < next_update) CHECK (next_update BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    -- Whether superseded certificates are in it too.
    superseded boolean NOT NULL
);

CREATE FUNCTION keep_crl() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.issuer = OLD.issuer AND NEW.number > OLD.number THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the number of a revocation list only goes up' USING ERRCODE = 'DW001';
END $$;
REVOKE ALL ON FUNCTION keep_crl FROM PUBLIC;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON crls FOR EACH ROW EXECUTE FUNCTION keep_crl();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON crls FOR EACH STATEMENT EXECUTE FUNCTION refuse();

CREATE FUNCTION stage_crl() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO audit_staged (devices, acts)
        VALUES ('{NULL}', ARRAY[act_json('crl.issue', NEW.number::text, NULL, NULL, NULL,
            '{"issuer":"' || NEW.issuer || '","number":' || NEW.number || ',"this_update":' || json_time(NEW.this_update)
                || ',"next_update":' || json_time(NEW.next_update) || ',"superseded":' || NEW.superseded::text || '}')]);
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION stage_crl FROM PUBLIC;
CREATE TRIGGER stage AFTER INSERT OR UPDATE ON crls FOR EACH ROW EXECUTE FUNCTION stage_crl();

-- The next number of an authority's lists, above one that is known from elsewhere. The row's lock makes of two at once one
-- after the other, and the time is taken under it: a list with a higher number is no older.
CREATE FUNCTION number_crl(issuer text, above bigint, valid_seconds bigint, superseded boolean) RETURNS crls
    LANGUAGE sql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
    INSERT INTO crls AS c (issuer, number, this_update, next_update, superseded)
        VALUES ($1, $2 + 1, date_trunc('second', clock_timestamp()),
            date_trunc('second', clock_timestamp()) + make_interval(secs => $3), $4)
    ON CONFLICT (issuer) DO UPDATE SET number = greatest(c.number, $2) + 1, this_update = date_trunc('second', clock_timestamp()),
        next_update = date_trunc('second', clock_timestamp()) + make_interval(secs => $3), superseded = $4
    RETURNING c.*
$$;
REVOKE ALL ON FUNCTION number_crl FROM PUBLIC;

GRANT SELECT ON crls TO doorward_operator, doorward_auditor;
GRANT EXECUTE ON FUNCTION number_crl TO doorward_operator;
