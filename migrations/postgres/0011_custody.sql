-- Custody of the devices' keys: which master keys each gateway holds, and how one takes another's place.
-- A sealed key names its master key in bytes 2 to 9. That id tells master keys apart, and nothing else about them.

-- What the run of a gateway that `master_keys_of` names has said: ids in hex with a blank between.
ALTER TABLE gateways ADD COLUMN master_keys text;
ALTER TABLE gateways ADD COLUMN master_keys_of text;

CREATE TABLE master_keys (
    id text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[0-9a-f]{16}$'),
    -- `next`: all keys are being sealed by it. `retired`: it seals nothing any more.
    state text NOT NULL CHECK (state IN ('next', 'retired'))
);
CREATE UNIQUE INDEX master_keys_one_next ON master_keys (state) WHERE state = 'next';

CREATE FUNCTION keep_master_key() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.state = 'next' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'a master key is retired for good, and one at a time is the next' USING ERRCODE = 'DW001';
END $$;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON master_keys FOR EACH ROW EXECUTE FUNCTION keep_master_key();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON master_keys FOR EACH STATEMENT EXECUTE FUNCTION refuse();

CREATE FUNCTION stage_master_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO audit_staged (devices, acts)
        VALUES ('{NULL}', ARRAY[act_json(
            CASE NEW.state WHEN 'next' THEN 'master_key.next' ELSE 'master_key.retire' END, NEW.id, NULL, NULL, NULL,
            '{"id":"' || NEW.id || '","state":"' || NEW.state || '"}')]);
    RETURN NULL;
END $$;
CREATE TRIGGER stage AFTER INSERT ON master_keys FOR EACH ROW EXECUTE FUNCTION stage_master_key();

-- Whoever still has the old master key alone would otherwise give devices keys that no gateway opens.
CREATE FUNCTION refuse_retired_master_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    sealed_by text[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(DISTINCT encode(substring(t.sealed FROM 2 FOR 8), 'hex')) INTO sealed_by FROM touched t;
    ELSE
        -- A key that was left as it is may still be retired.
        SELECT array_agg(DISTINCT encode(substring(t.sealed FROM 2 FOR 8), 'hex')) INTO sealed_by
            FROM touched t JOIN before b ON b.device = t.device AND b.version = t.version WHERE b.sealed <> t.sealed;
    END IF;
    IF EXISTS (SELECT FROM master_keys m WHERE m.id = ANY (sealed_by) AND m.state = 'retired') THEN
        RAISE EXCEPTION 'this key is sealed by a master key that ''doorward pki rewrap'' has replaced; take pki/master.key from a home that has the new one'
            USING ERRCODE = 'DW001';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER by_retired_insert AFTER INSERT ON hmac_keys REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION refuse_retired_master_key();
CREATE TRIGGER by_retired_update AFTER UPDATE ON hmac_keys REFERENCING OLD TABLE AS before NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION refuse_retired_master_key();

-- From now on keys are sealed again by another master key: by one at a time. One that was begun with and has sealed nothing
-- gives way; else its id, and nothing is changed.
CREATE FUNCTION begin_rewrap(id text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    other text;
BEGIN
    LOCK TABLE master_keys IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM master_keys m WHERE m.id = begin_rewrap.id AND m.state = 'retired') THEN
        RAISE EXCEPTION 'master key % has been replaced already, and is not taken again', id USING ERRCODE = 'DW001';
    END IF;
    SELECT m.id INTO other FROM master_keys m WHERE m.state = 'next';
    IF other = begin_rewrap.id THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM hmac_keys k WHERE encode(substring(k.sealed FROM 2 FOR 8), 'hex') = other) THEN
        RETURN other;
    END IF;
    DELETE FROM master_keys m WHERE m.state = 'next';
    INSERT INTO master_keys VALUES (begin_rewrap.id, 'next');
    RETURN NULL;
END $$;

-- The old one seals nothing any more, if at most `most` keys are left that it has sealed. How many are left.
CREATE FUNCTION finish_rewrap(old text, next text, most bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    left_over bigint;
BEGIN
    -- Who writes a key now comes before the count or after the retirement.
    LOCK TABLE hmac_keys IN SHARE MODE;
    SELECT count(*) INTO left_over FROM hmac_keys k WHERE encode(substring(k.sealed FROM 2 FOR 8), 'hex') = old;
    IF left_over <= most THEN
        DELETE FROM master_keys m WHERE m.id = finish_rewrap.next AND m.state = 'next';
        INSERT INTO master_keys VALUES (old, 'retired') ON CONFLICT DO NOTHING;
    END IF;
    RETURN left_over;
END $$;

REVOKE ALL ON FUNCTION keep_master_key, stage_master_key, refuse_retired_master_key, begin_rewrap, finish_rewrap FROM PUBLIC;
GRANT SELECT ON master_keys TO doorward_operator, doorward_auditor;
GRANT EXECUTE ON FUNCTION begin_rewrap, finish_rewrap TO doorward_operator;
