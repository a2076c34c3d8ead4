-- What one device may cost, and what becomes of it when a gateway finds it out.

---- More limits that a fleet may have

-- As in 0009.
CREATE OR REPLACE FUNCTION limits_hold(limits text) RETURNS boolean LANGUAGE sql IMMUTABLE SET search_path = doorward, pg_temp AS $$
    SELECT json_typeof(limits::json) = 'object' AND count(*) = count(DISTINCT name) AND coalesce(bool_and(
        json_typeof(value) = 'number' AND value::text ~ '^(0|[1-9][0-9]{0,9})$' AND CASE
            WHEN name IN ('rate_per_second', 'rate_burst', 'connects_per_minute', 'connects_burst')
                THEN value::text::bigint BETWEEN 1 AND 1000000
            WHEN name IN ('bytes_per_second', 'bytes_burst') THEN value::text::bigint BETWEEN 1024 AND 1073741824
            WHEN name = 'message_bytes' THEN value::text::bigint BETWEEN 1024 AND 16777216
            WHEN name = 'outgoing_bytes' THEN value::text::bigint BETWEEN 4096 AND 67108864
            WHEN name = 'strikes' THEN value::text::bigint BETWEEN 1 AND 1000
            WHEN name = 'renew_after_expiry' THEN value::text::bigint <= 31536000
            ELSE false
        END), true)
    FROM json_each(CASE WHEN json_typeof(limits::json) = 'object' THEN limits::json ELSE '{}' END) AS members (name, value)
$$;

---- Quarantine

-- Devices that a gateway has suspended by itself, and until when; without an end until somebody resumes them. A row stands
-- for the suspension that made it: whoever says anything about the device's status afterwards, that counts.
CREATE TABLE quarantines (
    device text COLLATE "C" PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    gateway text NOT NULL CHECK (length(gateway) BETWEEN 1 AND 64),
    since timestamptz NOT NULL DEFAULT now() CHECK (since BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    until timestamptz CHECK (until BETWEEN '0001-01-01Z' AND '9999-12-31Z')
);
CREATE INDEX quarantines_until ON quarantines (until) WHERE until IS NOT NULL;

-- A statement that sets the status ends it, also one that sets the same.
CREATE FUNCTION end_quarantine() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    DELETE FROM quarantines q WHERE q.device = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER end_quarantine AFTER UPDATE OF status ON devices FOR EACH ROW EXECUTE FUNCTION end_quarantine();

-- A gateway suspends an active device, for so many seconds or until it is resumed, and can do nothing else by this. Whether
-- it did: one that is suspended already, or revoked, stays as it is.
CREATE FUNCTION quarantine(device text, gateway text, reason text, seconds bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    PERFORM check_reason(reason);
    IF seconds IS NOT NULL AND seconds NOT BETWEEN 1 AND 31622400 THEN
        RAISE EXCEPTION 'a quarantine is for 1 to 31622400 seconds, or until it is ended' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM set_config('doorward.actor', 'gateway', true);
    UPDATE devices d SET status = 'suspended', reason = quarantine.reason
        WHERE d.id = quarantine.device AND d.status = 'active';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO quarantines (device, gateway, until)
        VALUES (quarantine.device, quarantine.gateway, now() + quarantine.seconds * interval '1 second');
    RETURN true;
END $$;

-- Resumes the devices whose quarantine is over: any gateway may, for the one that began it may be gone. How many.
CREATE FUNCTION end_quarantines() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    due text[];
    resumed bigint;
BEGIN
    -- In the order of ids, as all who lock many devices. One that somebody holds just now waits for the next time.
    SELECT array_agg(locked.id) INTO due FROM (
        SELECT d.id FROM devices d JOIN quarantines q ON q.device = d.id
        WHERE q.until <= now() AND d.status = 'suspended' ORDER BY d.id LIMIT 1000 FOR UPDATE OF d, q SKIP LOCKED
    ) AS locked;
    IF due IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM set_config('doorward.actor', 'gateway', true);
    UPDATE devices d SET status = 'active', reason = NULL WHERE d.id = ANY (due);
    GET DIAGNOSTICS resumed = ROW_COUNT;
    RETURN resumed;
END $$;

-- As in 0004. To suspend a device that is in quarantine is to suspend it for good.
CREATE OR REPLACE FUNCTION set_device_status(device text, next text, why text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    was text;
BEGIN
    SELECT d.status INTO was FROM devices d WHERE d.id = device FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no device ''%''', device USING ERRCODE = 'no_data_found';
    END IF;
    IF was = next AND NOT EXISTS (SELECT FROM quarantines q WHERE q.device = set_device_status.device) THEN
        -- Said again: a gateway that missed it hears it now.
        INSERT INTO changes (kind, subject) VALUES ('device', device);
        RETURN false;
    END IF;
    IF was = 'revoked' AND next <> 'revoked' THEN
        RAISE EXCEPTION 'device ''%'' is revoked, and that is final; register the hardware anew under another id', device
            USING ERRCODE = 'DW001';
    END IF;
    UPDATE devices SET status = next, reason = why WHERE id = device;
    RETURN true;
END $$;

REVOKE ALL ON FUNCTION end_quarantine, quarantine, end_quarantines FROM PUBLIC;
GRANT SELECT ON quarantines TO doorward_gateway, doorward_operator;
GRANT EXECUTE ON FUNCTION quarantine, end_quarantines TO doorward_gateway;

---- Schemas

-- A JSON object: a channel filter, and the JSON Schema that what is published there must fit.
ALTER TABLE fleets ADD COLUMN schemas text NOT NULL DEFAULT '{}'
    CHECK (jsonb_typeof(schemas::jsonb) = 'object') CHECK (octet_length(schemas) <= 32768);

-- As in 0003; schemas, which are long, where they have changed.
CREATE OR REPLACE FUNCTION stage_fleet() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    before text := CASE WHEN TG_OP <> 'INSERT' THEN '{"policy":' || OLD.policy::jsonb::text || ',"limits":' || OLD.limits::jsonb::text END;
    after text := CASE WHEN TG_OP <> 'DELETE' THEN '{"policy":' || NEW.policy::jsonb::text || ',"limits":' || NEW.limits::jsonb::text END;
    action text := CASE
        WHEN TG_OP = 'INSERT' THEN 'fleet.add'
        WHEN TG_OP = 'DELETE' THEN 'fleet.delete'
        WHEN NEW.policy <> OLD.policy THEN 'fleet.policy'
        WHEN NEW.limits <> OLD.limits THEN 'fleet.limits'
        WHEN NEW.schemas <> OLD.schemas THEN 'fleet.schemas'
        ELSE 'fleet.update'
    END;
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.schemas IS DISTINCT FROM OLD.schemas THEN
        before := before || ',"schemas":' || OLD.schemas::jsonb::text;
        after := after || ',"schemas":' || NEW.schemas::jsonb::text;
    END IF;
    INSERT INTO audit_staged (devices, acts)
        VALUES ('{NULL}', ARRAY[act_json(action, CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END, NULL, NULL, before || '}', after || '}')]);
    RETURN NULL;
END $$;
-- A trigger's OLD.* are the columns that there were when it was made.
DROP TRIGGER stage_update ON fleets;
CREATE TRIGGER stage_update AFTER UPDATE ON fleets FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION stage_fleet();
