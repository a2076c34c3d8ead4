-- Who serves, and what each has applied of the feed; and the wake-up that spares them the waiting.

-- A gateway's row is its promise: what is visible in `applied` has taken effect there, and whatever is not may be served
-- until `heartbeat` + `may_serve`, whatever becomes of the gateway.
CREATE TABLE gateways (
    name text COLLATE "C" PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 64),
    -- One run of one process: two gateways under one name would confirm for each other.
    instance text NOT NULL,
    version text NOT NULL,
    address text NOT NULL,
    since timestamptz NOT NULL DEFAULT now() CHECK (since BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    heartbeat timestamptz NOT NULL DEFAULT now() CHECK (heartbeat BETWEEN '0001-01-01Z' AND '9000-01-01Z'),
    may_serve interval NOT NULL CHECK (may_serve BETWEEN interval '0' AND interval '1000 days'),
    applied pg_snapshot,
    signed_off timestamptz CHECK (signed_off BETWEEN '0001-01-01Z' AND '9999-12-31Z')
) WITH (fillfactor = 50);

-- One notification a transaction: Postgres folds those that are alike. It says nothing but that there is something to read.
CREATE FUNCTION wake_gateways() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM touched) THEN
        PERFORM pg_notify('doorward', '');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER wake AFTER INSERT ON changes REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION wake_gateways();

-- A device that is proven at one gateway ends its session at another. That is rare: the trigger's condition is all that the
-- hot path pays for it. The subject names the session that has lost its place, so that no younger one is meant.
CREATE FUNCTION note_takeover() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO changes (kind, subject) VALUES ('takeover', OLD.device || '/' || OLD.session);
    RETURN NULL;
END $$;
CREATE TRIGGER note_takeover AFTER UPDATE ON presence FOR EACH ROW
    WHEN (OLD.session IS NOT NULL AND NEW.session IS NOT NULL AND NEW.gateway <> OLD.gateway) EXECUTE FUNCTION note_takeover();
