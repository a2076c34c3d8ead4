-- What one device may cost, and what becomes of it when a gateway finds it out.

---- More limits that a fleet may have

DROP TRIGGER fleets_limits_insert;
CREATE TRIGGER fleets_limits_insert BEFORE INSERT ON fleets
WHEN (SELECT count(*) <> count(DISTINCT key) FROM json_each(NEW.limits)) OR EXISTS (
    SELECT 1 FROM json_each(NEW.limits) AS m WHERE m.type <> 'integer' OR CASE
        WHEN m.key IN ('rate_per_second', 'rate_burst', 'connects_per_minute', 'connects_burst') THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN m.key IN ('bytes_per_second', 'bytes_burst') THEN m.value NOT BETWEEN 1024 AND 1073741824
        WHEN m.key = 'message_bytes' THEN m.value NOT BETWEEN 1024 AND 16777216
        WHEN m.key = 'outgoing_bytes' THEN m.value NOT BETWEEN 4096 AND 67108864
        WHEN m.key = 'strikes' THEN m.value NOT BETWEEN 1 AND 1000
        WHEN m.key = 'renew_after_expiry' THEN m.value NOT BETWEEN 0 AND 31536000
        ELSE 1
    END
)
BEGIN SELECT RAISE(ABORT, 'limits are rate_per_second, rate_burst, connects_per_minute and connects_burst (1 to 1000000), bytes_per_second and bytes_burst (1024 to 1073741824), message_bytes (1024 to 16777216), outgoing_bytes (4096 to 67108864), strikes (1 to 1000) and renew_after_expiry (0 to 31536000)'); END;
DROP TRIGGER fleets_limits_update;
CREATE TRIGGER fleets_limits_update BEFORE UPDATE OF limits ON fleets
WHEN (SELECT count(*) <> count(DISTINCT key) FROM json_each(NEW.limits)) OR EXISTS (
    SELECT 1 FROM json_each(NEW.limits) AS m WHERE m.type <> 'integer' OR CASE
        WHEN m.key IN ('rate_per_second', 'rate_burst', 'connects_per_minute', 'connects_burst') THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN m.key IN ('bytes_per_second', 'bytes_burst') THEN m.value NOT BETWEEN 1024 AND 1073741824
        WHEN m.key = 'message_bytes' THEN m.value NOT BETWEEN 1024 AND 16777216
        WHEN m.key = 'outgoing_bytes' THEN m.value NOT BETWEEN 4096 AND 67108864
        WHEN m.key = 'strikes' THEN m.value NOT BETWEEN 1 AND 1000
        WHEN m.key = 'renew_after_expiry' THEN m.value NOT BETWEEN 0 AND 31536000
        ELSE 1
    END
)
BEGIN SELECT RAISE(ABORT, 'limits are rate_per_second, rate_burst, connects_per_minute and connects_burst (1 to 1000000), bytes_per_second and bytes_burst (1024 to 1073741824), message_bytes (1024 to 16777216), outgoing_bytes (4096 to 67108864), strikes (1 to 1000) and renew_after_expiry (0 to 31536000)'); END;

---- Quarantine

-- Devices that a gateway has suspended by itself, and until when; without an end until somebody resumes them. A row stands
-- for the suspension that made it: whoever says anything about the device's status afterwards, that counts.
CREATE TABLE quarantines (
    device TEXT NOT NULL PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    gateway TEXT NOT NULL CHECK (length(gateway) BETWEEN 1 AND 64),
    since TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (since IS strftime('%Y-%m-%dT%H:%M:%fZ', since)),
    until TEXT CHECK (until IS strftime('%Y-%m-%dT%H:%M:%fZ', until))
) STRICT, WITHOUT ROWID;
CREATE INDEX quarantines_until ON quarantines (until) WHERE until IS NOT NULL;

-- A statement that sets the status ends it, also one that sets the same.
CREATE TRIGGER devices_end_quarantine AFTER UPDATE OF status ON devices
BEGIN DELETE FROM quarantines WHERE device = NEW.id; END;
-- Foreign keys are off in a shell.
CREATE TRIGGER devices_delete_quarantine AFTER DELETE ON devices
BEGIN DELETE FROM quarantines WHERE device = OLD.id; END;

---- Schemas

-- A JSON object: a channel filter, and the JSON Schema that what is published there must fit.
ALTER TABLE fleets ADD COLUMN schemas TEXT NOT NULL DEFAULT '{}'
    CHECK (json_valid(schemas) AND json_type(schemas) = 'object' AND octet_length(schemas) <= 32768);

-- As in 0003; schemas, which are long, where they have changed.
DROP TRIGGER fleets_audit_update;
CREATE TRIGGER fleets_audit_update AFTER UPDATE ON fleets
WHEN (NEW.policy, NEW.limits, NEW.created, NEW.schemas) <> (OLD.policy, OLD.limits, OLD.created, OLD.schemas)
BEGIN
    INSERT INTO acts VALUES (
        CASE
            WHEN NEW.policy <> OLD.policy THEN 'fleet.policy'
            WHEN NEW.limits <> OLD.limits THEN 'fleet.limits'
            WHEN NEW.schemas <> OLD.schemas THEN 'fleet.schemas'
            ELSE 'fleet.update'
        END, NEW.id, NULL,
        CASE WHEN NEW.schemas = OLD.schemas THEN json_object('policy', json(OLD.policy), 'limits', json(OLD.limits))
            ELSE json_object('policy', json(OLD.policy), 'limits', json(OLD.limits), 'schemas', json(OLD.schemas)) END,
        CASE WHEN NEW.schemas = OLD.schemas THEN json_object('policy', json(NEW.policy), 'limits', json(NEW.limits))
            ELSE json_object('policy', json(NEW.policy), 'limits', json(NEW.limits), 'schemas', json(NEW.schemas)) END,
        NULL);
END;
