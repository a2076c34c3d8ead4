-- The registry: fleets, devices, their certificates and keys; where they are; what changed; what they sent.
--
-- Whoever writes a row, a command or a person at psql, is bound by what stands here. A refusal of a trigger has the
-- SQLSTATE DW001, so that the program can tell it from a failure. Ids collate "C": their order is that of their bytes.
-- Times have years that every program can hold: 'infinity' is none of them.

CREATE TABLE fleets (
    id text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$'),
    policy text NOT NULL CHECK (jsonb_typeof(policy::jsonb) = 'object'),
    limits text NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(limits::jsonb) = 'object'),
    created timestamptz NOT NULL DEFAULT now() CHECK (created BETWEEN '0001-01-01Z' AND '9999-12-31Z')
);
-- Ids that differ only in case are one id: a file system or a reader may fold them.
CREATE UNIQUE INDEX fleets_one_case ON fleets (lower(id));

CREATE TABLE devices (
    id text COLLATE "C" PRIMARY KEY
        CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$')
        -- `gateway` names the gateway itself in `iss` and `aud` (protocol section 2).
        CHECK (lower(id) <> 'gateway'),
    fleet text COLLATE "C" NOT NULL REFERENCES fleets (id),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'revoked')),
    reason text,
    attributes jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    created timestamptz NOT NULL DEFAULT now() CHECK (created BETWEEN '0001-01-01Z' AND '9999-12-31Z')
);
CREATE UNIQUE INDEX devices_one_case ON devices (lower(id));
CREATE INDEX devices_fleet ON devices (fleet, id);

CREATE TABLE certificates (
    fingerprint text COLLATE "C" PRIMARY KEY CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
    serial text COLLATE "C" NOT NULL CHECK (serial ~ '^[0-9a-f]{32}$'),
    issuer text COLLATE "C" NOT NULL CHECK (issuer ~ '^[0-9a-f]{2,128}$'),
    der bytea NOT NULL CHECK (length(der) > 0),
    device text COLLATE "C" NOT NULL REFERENCES devices (id),
    renewed_from text COLLATE "C" REFERENCES certificates (fingerprint),
    not_before timestamptz NOT NULL CHECK (not_before BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    not_after timestamptz NOT NULL CHECK (not_before < not_after) CHECK (not_after BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'superseded', 'revoked')),
    -- The end of its grace. Without one a superseded certificate would hold until it expires.
    valid_until timestamptz CHECK (status <> 'superseded' OR valid_until IS NOT NULL) CHECK (valid_until BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    reason text,
    UNIQUE (issuer, serial)
);
CREATE INDEX certificates_device ON certificates (device);
CREATE INDEX certificates_serial ON certificates (serial);
CREATE INDEX certificates_renewed_from ON certificates (renewed_from) WHERE renewed_from IS NOT NULL;

CREATE TABLE hmac_keys (
    device text COLLATE "C" NOT NULL REFERENCES devices (id),
    version integer NOT NULL CHECK (version BETWEEN 1 AND 999999999),
    -- Sealed by the master key with device and version as associated data: a row moved to another device opens nothing.
    sealed bytea NOT NULL CHECK (length(sealed) > 0),
    state text NOT NULL CHECK (state IN ('pending', 'active', 'grace', 'retired')),
    grace_until timestamptz CHECK (state <> 'grace' OR grace_until IS NOT NULL) CHECK (grace_until BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    PRIMARY KEY (device, version)
);
CREATE UNIQUE INDEX hmac_keys_one_pending ON hmac_keys (device) WHERE state = 'pending';
CREATE UNIQUE INDEX hmac_keys_one_active ON hmac_keys (device) WHERE state = 'active';

-- Written in batches on the hot path: no trigger, no change row, nobody is woken.
CREATE TABLE presence (
    device text COLLATE "C" PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    gateway text NOT NULL,
    session text,
    epoch bigint NOT NULL CHECK (epoch > 0),
    since timestamptz NOT NULL CHECK (since BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    last_seen timestamptz NOT NULL CHECK (last_seen BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    peer text NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX presence_gateway ON presence (gateway) WHERE session IS NOT NULL;

-- No foreign key to devices: the INSERT itself takes messages of active devices alone, and what was sent outlives its sender.
CREATE TABLE messages (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    channel text NOT NULL,
    data text NOT NULL,
    at timestamptz CHECK (at BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    received_at timestamptz NOT NULL CHECK (received_at BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    UNIQUE (device, id)
);
CREATE INDEX messages_received_at ON messages (received_at);

CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL CHECK (at BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    gateway text NOT NULL,
    device text COLLATE "C",
    kind text NOT NULL,
    peer text NOT NULL,
    detail text NOT NULL
);
CREATE INDEX events_at ON events (at);
CREATE INDEX events_device ON events (device, at) WHERE device IS NOT NULL;

-- The feed. A reader goes by `xid`, not by `id`: a transaction that commits late has drawn its id early, but all of
-- its rows are at or above the xmin of every snapshot that did not see them.
CREATE TABLE changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    kind text NOT NULL CHECK (kind IN ('device', 'fleet', 'kick', 'takeover')),
    subject text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL DEFAULT now() CHECK (at BETWEEN '0001-01-01Z' AND '9999-12-31Z')
);
CREATE INDEX changes_xid ON changes (xid, id);
CREATE INDEX changes_at ON changes (at);

-- How far the feed has been pruned: whoever stands at or below `xid` may have missed something.
CREATE TABLE feed (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    pruned xid8 NOT NULL DEFAULT '0'
);
INSERT INTO feed DEFAULT VALUES;

---- What is final, and what never changes

CREATE FUNCTION keep_device() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.status = 'revoked' THEN
            RAISE EXCEPTION 'device % is revoked, and that is final: its row stays', OLD.id USING ERRCODE = 'DW001';
        END IF;
        RETURN OLD;
    END IF;
    IF NEW.id <> OLD.id OR NEW.created <> OLD.created THEN
        RAISE EXCEPTION 'the id and the creation of device % never change', OLD.id USING ERRCODE = 'DW001';
    END IF;
    IF OLD.status = 'revoked' AND NEW.status <> 'revoked' THEN
        RAISE EXCEPTION 'device % is revoked, and that is final', OLD.id
            USING ERRCODE = 'DW001', HINT = 'Register the hardware anew under another id.';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON devices FOR EACH ROW EXECUTE FUNCTION keep_device();

CREATE FUNCTION keep_certificate() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.status = 'revoked' THEN
            RAISE EXCEPTION 'certificate % is revoked, and that is final: its row stays', OLD.serial USING ERRCODE = 'DW001';
        END IF;
        RETURN OLD;
    END IF;
    IF (NEW.fingerprint, NEW.serial, NEW.issuer, NEW.der, NEW.device, NEW.not_before, NEW.not_after)
        <> (OLD.fingerprint, OLD.serial, OLD.issuer, OLD.der, OLD.device, OLD.not_before, OLD.not_after)
        OR NEW.renewed_from IS DISTINCT FROM OLD.renewed_from THEN
        RAISE EXCEPTION 'what certificate % says and whose it is never change', OLD.serial USING ERRCODE = 'DW001';
    END IF;
    IF OLD.status = 'revoked' AND NEW.status <> 'revoked' THEN
        RAISE EXCEPTION 'certificate % is revoked, and that is final', OLD.serial
            USING ERRCODE = 'DW001', HINT = 'Issue a new one.';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON certificates FOR EACH ROW EXECUTE FUNCTION keep_certificate();

CREATE FUNCTION keep_hmac_key() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF NEW.device <> OLD.device OR NEW.version <> OLD.version THEN
        RAISE EXCEPTION 'the device and version of a key never change' USING ERRCODE = 'DW001';
    END IF;
    IF OLD.state = 'retired' AND NEW.state <> 'retired' THEN
        RAISE EXCEPTION 'key % of device % is retired, and that is final', OLD.version, OLD.device
            USING ERRCODE = 'DW001', HINT = 'Rotate to a new key.';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep BEFORE UPDATE ON hmac_keys FOR EACH ROW EXECUTE FUNCTION keep_hmac_key();

CREATE FUNCTION keep_fleet() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF NEW.id <> OLD.id THEN
        RAISE EXCEPTION 'the id of fleet % never changes', OLD.id USING ERRCODE = 'DW001';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep BEFORE UPDATE ON fleets FOR EACH ROW EXECUTE FUNCTION keep_fleet();

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is refused on table %: no row trigger would see it', TG_OP, TG_TABLE_NAME USING ERRCODE = 'DW001';
END $$;
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON fleets FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON devices FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON certificates FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON hmac_keys FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON changes FOR EACH STATEMENT EXECUTE FUNCTION refuse();

CREATE FUNCTION keep_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a change that was recorded never changes' USING ERRCODE = 'DW001';
END $$;
CREATE TRIGGER keep BEFORE UPDATE ON changes FOR EACH ROW EXECUTE FUNCTION keep_change();

---- What gateways hear of
-- SECURITY DEFINER: whoever may write a device may thereby write its change row, and no other.

CREATE FUNCTION note_devices() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO changes (kind, subject) SELECT 'device', id FROM touched ORDER BY id;
    RETURN NULL;
END $$;
CREATE TRIGGER note_insert AFTER INSERT ON devices REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_devices();
CREATE TRIGGER note_update AFTER UPDATE ON devices REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_devices();
CREATE TRIGGER note_delete AFTER DELETE ON devices REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_devices();

-- For certificates and keys. Where this very transaction wrote the device's own row (its xmin says so) a change row is
-- there already: issuing in bulk writes one for each device, not three.
CREATE FUNCTION note_owners() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO changes (kind, subject)
        SELECT DISTINCT 'device', t.device FROM touched t
        WHERE NOT EXISTS (
            SELECT FROM devices d WHERE d.id = t.device AND d.xmin = pg_current_xact_id()::xid
        )
        ORDER BY t.device;
    RETURN NULL;
END $$;
CREATE TRIGGER note_insert AFTER INSERT ON certificates REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_owners();
CREATE TRIGGER note_update AFTER UPDATE ON certificates REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_owners();
CREATE TRIGGER note_delete AFTER DELETE ON certificates REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_owners();
CREATE TRIGGER note_insert AFTER INSERT ON hmac_keys REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_owners();
CREATE TRIGGER note_update AFTER UPDATE ON hmac_keys REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_owners();
CREATE TRIGGER note_delete AFTER DELETE ON hmac_keys REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_owners();

CREATE FUNCTION note_fleets() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO changes (kind, subject) SELECT 'fleet', id FROM touched ORDER BY id;
    RETURN NULL;
END $$;
CREATE TRIGGER note_insert AFTER INSERT ON fleets REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_fleets();
CREATE TRIGGER note_update AFTER UPDATE ON fleets REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_fleets();
CREATE TRIGGER note_delete AFTER DELETE ON fleets REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note_fleets();

-- Whoever deletes changes, the readers find out. Rows that were restored from another cluster may bear an xid that has
-- not come yet here; they say nothing about this cluster's readers.
CREATE FUNCTION note_pruning() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    UPDATE feed SET pruned = newest.xid
        FROM (
            SELECT xid FROM gone WHERE xid < pg_snapshot_xmax(pg_current_snapshot()) ORDER BY xid DESC LIMIT 1
        ) AS newest
        WHERE newest.xid > feed.pruned;
    RETURN NULL;
END $$;
CREATE TRIGGER note_pruning AFTER DELETE ON changes REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note_pruning();

INSERT INTO fleets (id, policy) VALUES (
    'default',
    '{"allow":[{"actions":["publish"],"channels":["devices/${device}/#"]},{"actions":["subscribe"],"channels":["devices/${device}/#","fleets/${fleet}/#"]}],"deny":[]}'
);
