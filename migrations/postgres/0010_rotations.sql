-- Rotations of a whole fleet: which devices were asked to take a new credential, and which have proven it.

CREATE TABLE rotations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    what text NOT NULL CHECK (what IN ('key', 'certificate')),
    fleet text COLLATE "C" NOT NULL REFERENCES fleets (id),
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'stopped', 'done', 'undone')),
    -- Why it was stopped.
    reason text CHECK (state <> 'stopped' OR reason IS NOT NULL),
    -- As they were asked for: a number of devices, or so many of a hundred.
    canary text NOT NULL CHECK (canary ~ '^[0-9]{1,9}([.][0-9]{1,2})?%?$'),
    wave text NOT NULL CHECK (wave ~ '^[0-9]{1,9}([.][0-9]{1,2})?%?$'),
    max_failures bigint NOT NULL CHECK (max_failures BETWEEN 0 AND 4294967295),
    patience_ms bigint NOT NULL CHECK (patience_ms BETWEEN 0 AND 31622400000),
    grace_seconds bigint NOT NULL CHECK (grace_seconds BETWEEN 0 AND 31622400),
    started timestamptz NOT NULL DEFAULT now() CHECK (started BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    started_by text NOT NULL,
    ended timestamptz CHECK (ended BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    -- Who drives it, and when he last said so: two at once would ask a fleet faster than it answers.
    driver text,
    heartbeat timestamptz CHECK (heartbeat BETWEEN '0001-01-01Z' AND '9999-12-31Z')
);
-- One that was stopped stands in the way until a person has decided what becomes of it.
CREATE UNIQUE INDEX rotations_one_open ON rotations (what, fleet) WHERE state IN ('running', 'stopped');

CREATE TABLE rotation_devices (
    rotation bigint NOT NULL REFERENCES rotations (id) ON DELETE CASCADE,
    device text COLLATE "C" NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    -- 0: a canary.
    wave integer NOT NULL CHECK (wave >= 0),
    state text NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'asked', 'proven', 'failed', 'left_out', 'withdrawn')),
    reason text,
    -- What it is to prove: the pending key version, or that the certificate with this fingerprint is superseded.
    version integer,
    fingerprint text COLLATE "C",
    -- How many proven sessions it had had when it was asked, and whether one of them, or a bundle, may have brought
    -- the key already: what neither can have brought may be taken back.
    epoch bigint NOT NULL DEFAULT 0,
    brought boolean NOT NULL DEFAULT true,
    -- When it was first known to be connected since it was asked, or because it was then: it has its time from here on, and
    -- is not forgotten when it goes away.
    came timestamptz CHECK (came BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    asked timestamptz CHECK (asked BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    ended timestamptz CHECK (ended BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    PRIMARY KEY (rotation, device),
    CHECK (state NOT IN ('asked', 'proven', 'failed', 'withdrawn') OR asked IS NOT NULL AND coalesce(version::text, fingerprint) IS NOT NULL)
);
CREATE INDEX rotation_devices_state ON rotation_devices (rotation, state, wave, device);
CREATE INDEX rotation_devices_asked ON rotation_devices (device) WHERE state IN ('asked', 'failed');

CREATE FUNCTION keep_rotation() RETURNS trigger LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF (NEW.id, NEW.what, NEW.fleet, NEW.started, NEW.started_by, NEW.grace_seconds)
        IS DISTINCT FROM (OLD.id, OLD.what, OLD.fleet, OLD.started, OLD.started_by, OLD.grace_seconds) THEN
        RAISE EXCEPTION 'what rotation % is and of which fleet never change', OLD.id USING ERRCODE = 'DW001';
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state = 'undone' OR OLD.state = 'done' AND NEW.state <> 'undone') THEN
        RAISE EXCEPTION 'rotation % is %, and does not become % again', OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'DW001', HINT = 'Begin a new one.';
    END IF;
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION keep_rotation FROM PUBLIC;
CREATE TRIGGER keep BEFORE UPDATE ON rotations FOR EACH ROW EXECUTE FUNCTION keep_rotation();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON rotations FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON rotation_devices FOR EACH STATEMENT EXECUTE FUNCTION refuse();

---- Proof
-- Nothing else makes a device proven: what confirms its new credential, a message that it has signed, does it here too,
-- in the same transaction, whether or not anybody drives the rotation. One that was late is proven all the same.

CREATE FUNCTION prove_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    UPDATE rotation_devices r SET state = 'proven', reason = NULL, ended = now()
        WHERE r.device = NEW.device AND r.state IN ('asked', 'failed') AND r.version = NEW.version;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION prove_key FROM PUBLIC;
CREATE TRIGGER prove AFTER UPDATE OF state ON hmac_keys FOR EACH ROW
    WHEN (OLD.state = 'pending' AND NEW.state = 'active') EXECUTE FUNCTION prove_key();

-- Superseded without any grace it was replaced by hand: that proves nothing.
CREATE FUNCTION prove_certificate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    UPDATE rotation_devices r SET state = 'proven', reason = NULL, ended = now()
        WHERE r.device = NEW.device AND r.state IN ('asked', 'failed') AND r.fingerprint = NEW.fingerprint;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION prove_certificate FROM PUBLIC;
CREATE TRIGGER prove AFTER UPDATE OF status ON certificates FOR EACH ROW
    WHEN (OLD.status = 'active' AND NEW.status = 'superseded' AND NEW.valid_until > now()) EXECUTE FUNCTION prove_certificate();

---- Audit

CREATE FUNCTION stage_rotation() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO audit_staged (devices, acts)
        VALUES ('{NULL}', ARRAY[act_json(
            CASE
                WHEN TG_OP = 'INSERT' THEN 'rotation.start'
                WHEN NEW.state = 'running' THEN 'rotation.resume'
                WHEN NEW.state = 'stopped' THEN 'rotation.stop'
                WHEN NEW.state = 'undone' THEN 'rotation.undo'
                ELSE 'rotation.finish'
            END, NEW.id::text, NULL, NEW.reason,
            CASE WHEN TG_OP = 'UPDATE' THEN '{"state":"' || OLD.state || '"}' END,
            '{"what":"' || NEW.what || '","fleet":"' || NEW.fleet || '","state":"' || NEW.state || '","canary":"' || NEW.canary
                || '","wave":"' || NEW.wave || '","max_failures":' || NEW.max_failures || ',"grace_seconds":' || NEW.grace_seconds || '}')]);
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION stage_rotation FROM PUBLIC;
CREATE TRIGGER stage_insert AFTER INSERT ON rotations FOR EACH ROW EXECUTE FUNCTION stage_rotation();
CREATE TRIGGER stage_update AFTER UPDATE ON rotations FOR EACH ROW
    WHEN (OLD.state <> NEW.state OR OLD.max_failures <> NEW.max_failures) EXECUTE FUNCTION stage_rotation();

---- Grants

GRANT SELECT, INSERT, UPDATE ON rotations, rotation_devices TO doorward_operator;
GRANT SELECT ON rotations, rotation_devices TO doorward_auditor;
