-- The audit: every act of a person, by command or at the sqlite3 shell, one row in the act's own transaction.
--
-- hash = SHA-256(hash of the row before, 32 zero bytes for the first || body in UTF-8). A body is the exact JSON text; it
-- names keys by version and certificates by serial and fingerprint, and never holds a sealed key or a certificate.
-- Rows without a hash are always the last ones: none is looked for before the head.
--
-- SQLite knows no SHA-256 and no user. Triggers write the row; the actor is whom a command has named in `acting`, else
-- `sql`. A command seals, before it commits, all rows that have no hash yet: its own and those of hands before it.

CREATE TABLE audit (
    -- 1, 2, 3: the place in the chain. AUTOINCREMENT: no id comes twice.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL
        CHECK (at GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    body TEXT NOT NULL,
    hash BLOB CHECK (length(hash) = 32)
) STRICT;

CREATE TABLE audit_head (
    one INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    count INTEGER NOT NULL DEFAULT 0,
    hash BLOB NOT NULL DEFAULT (zeroblob(32)) CHECK (length(hash) = 32)
) STRICT;
INSERT INTO audit_head DEFAULT VALUES;

-- Who acts in this transaction. Never set in a committed state.
CREATE TABLE acting (
    one INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    actor TEXT
) STRICT;
INSERT INTO acting DEFAULT VALUES;

-- Devices that are being added with their certificates and keys (`feed.adding`): one row each, when they are whole.
CREATE TABLE added (
    device TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- What a trigger notes, on the way into a row: the time and the actor are put in here, once.
CREATE VIEW acts (action, subject, device, before, after, reason) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL WHERE false;
CREATE TRIGGER acts_note INSTEAD OF INSERT ON acts
BEGIN
    -- The row's time and its body's are one: the body's is taken from it.
    INSERT INTO audit (at, body)
    SELECT at, json_object('at', at, 'actor', coalesce((SELECT actor FROM acting), 'sql'), 'role', NULL,
        'action', NEW.action, 'subject', NEW.subject, 'device', NEW.device, 'reason', NEW.reason,
        'before', json(NEW.before), 'after', json(NEW.after))
    FROM (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS at);
END;

---- What was done

CREATE TRIGGER devices_audit_adding AFTER INSERT ON devices WHEN (SELECT adding FROM feed) = 1
BEGIN INSERT INTO added (device) VALUES (NEW.id); END;
CREATE TRIGGER devices_audit_insert AFTER INSERT ON devices WHEN (SELECT adding FROM feed) = 0
BEGIN
    INSERT INTO acts VALUES ('device.add', NEW.id, NEW.id, NULL,
        json_object('fleet', NEW.fleet, 'status', NEW.status, 'reason', NEW.reason, 'attributes', json(NEW.attributes)),
        NEW.reason);
END;
CREATE TRIGGER feed_audit_added AFTER UPDATE OF adding ON feed WHEN OLD.adding = 1 AND NEW.adding = 0
BEGIN
    INSERT INTO acts SELECT 'device.add', d.id, d.id, NULL,
        json_object('fleet', d.fleet, 'status', d.status, 'reason', d.reason, 'attributes', json(d.attributes),
            'certificates', (
                SELECT json_group_array(json_object('serial', serial, 'fingerprint', fingerprint, 'not_after', not_after,
            'status', status, 'valid_until', valid_until, 'reason', reason))
                FROM certificates WHERE device = d.id),
            'keys', (
                SELECT json_group_array(json_object('version', version, 'state', state, 'grace_until', grace_until))
                FROM hmac_keys WHERE device = d.id)),
        d.reason
    FROM added CROSS JOIN devices AS d ON d.id = added.device ORDER BY d.id;
    DELETE FROM added;
END;
CREATE TRIGGER devices_audit_update AFTER UPDATE ON devices
WHEN (NEW.fleet, NEW.status, NEW.attributes) <> (OLD.fleet, OLD.status, OLD.attributes) OR NEW.reason IS NOT OLD.reason
BEGIN
    INSERT INTO acts VALUES (
        CASE
            WHEN NEW.status <> OLD.status THEN
                CASE NEW.status WHEN 'active' THEN 'device.resume' WHEN 'suspended' THEN 'device.suspend' ELSE 'device.revoke' END
            WHEN NEW.fleet <> OLD.fleet THEN 'device.move'
            ELSE 'device.update'
        END, NEW.id, NEW.id,
        json_object('fleet', OLD.fleet, 'status', OLD.status, 'reason', OLD.reason, 'attributes', json(OLD.attributes)),
        json_object('fleet', NEW.fleet, 'status', NEW.status, 'reason', NEW.reason, 'attributes', json(NEW.attributes)),
        NEW.reason);
END;
CREATE TRIGGER devices_audit_delete AFTER DELETE ON devices
BEGIN
    INSERT INTO acts VALUES ('device.delete', OLD.id, OLD.id,
        json_object('fleet', OLD.fleet, 'status', OLD.status, 'reason', OLD.reason, 'attributes', json(OLD.attributes)), NULL, NULL);
END;

CREATE TRIGGER certificates_audit_insert AFTER INSERT ON certificates
WHEN NOT EXISTS (SELECT 1 FROM added WHERE device = NEW.device)
BEGIN
    INSERT INTO acts VALUES ('certificate.add', NEW.serial, NEW.device, NULL,
        json_object('serial', NEW.serial, 'fingerprint', NEW.fingerprint, 'not_after', NEW.not_after,
            'status', NEW.status, 'valid_until', NEW.valid_until, 'reason', NEW.reason),
        NEW.reason);
END;
CREATE TRIGGER certificates_audit_update AFTER UPDATE ON certificates
WHEN NEW.status <> OLD.status OR NEW.valid_until IS NOT OLD.valid_until OR NEW.reason IS NOT OLD.reason
BEGIN
    INSERT INTO acts VALUES (
        CASE
            WHEN NEW.status <> OLD.status AND NEW.status = 'revoked' THEN 'certificate.revoke'
            WHEN NEW.status <> OLD.status AND NEW.status = 'superseded' THEN 'certificate.supersede'
            ELSE 'certificate.update'
        END, NEW.serial, NEW.device,
        json_object('serial', OLD.serial, 'fingerprint', OLD.fingerprint, 'not_after', OLD.not_after,
            'status', OLD.status, 'valid_until', OLD.valid_until, 'reason', OLD.reason),
        json_object('serial', NEW.serial, 'fingerprint', NEW.fingerprint, 'not_after', NEW.not_after,
            'status', NEW.status, 'valid_until', NEW.valid_until, 'reason', NEW.reason),
        NEW.reason);
END;
CREATE TRIGGER certificates_audit_delete AFTER DELETE ON certificates
BEGIN
    INSERT INTO acts VALUES ('certificate.delete', OLD.serial, OLD.device,
        json_object('serial', OLD.serial, 'fingerprint', OLD.fingerprint, 'not_after', OLD.not_after,
            'status', OLD.status, 'valid_until', OLD.valid_until, 'reason', OLD.reason), NULL, NULL);
END;

CREATE TRIGGER hmac_keys_audit_insert AFTER INSERT ON hmac_keys
WHEN NOT EXISTS (SELECT 1 FROM added WHERE device = NEW.device)
BEGIN
    INSERT INTO acts VALUES ('key.add', CAST(NEW.version AS TEXT), NEW.device, NULL,
        json_object('version', NEW.version, 'state', NEW.state, 'grace_until', NEW.grace_until), NULL);
END;
CREATE TRIGGER hmac_keys_audit_update AFTER UPDATE ON hmac_keys
WHEN NEW.state <> OLD.state OR NEW.sealed <> OLD.sealed OR NEW.grace_until IS NOT OLD.grace_until
BEGIN
    INSERT INTO acts VALUES (
        CASE
            WHEN NEW.sealed <> OLD.sealed THEN 'key.reseal'
            WHEN NEW.state = OLD.state THEN 'key.update'
            WHEN NEW.state = 'active' THEN 'key.confirm'
            WHEN NEW.state = 'grace' THEN 'key.supersede'
            WHEN NEW.state = 'retired' THEN 'key.retire'
            ELSE 'key.update'
        END, CAST(NEW.version AS TEXT), NEW.device,
        json_object('version', OLD.version, 'state', OLD.state, 'grace_until', OLD.grace_until),
        json_object('version', NEW.version, 'state', NEW.state, 'grace_until', NEW.grace_until), NULL);
END;
CREATE TRIGGER hmac_keys_audit_delete AFTER DELETE ON hmac_keys
BEGIN
    INSERT INTO acts VALUES ('key.delete', CAST(OLD.version AS TEXT), OLD.device,
        json_object('version', OLD.version, 'state', OLD.state, 'grace_until', OLD.grace_until), NULL, NULL);
END;

CREATE TRIGGER fleets_audit_insert AFTER INSERT ON fleets
BEGIN
    INSERT INTO acts VALUES ('fleet.add', NEW.id, NULL, NULL,
        json_object('policy', json(NEW.policy), 'limits', json(NEW.limits)), NULL);
END;
CREATE TRIGGER fleets_audit_update AFTER UPDATE ON fleets
WHEN (NEW.policy, NEW.limits, NEW.created) <> (OLD.policy, OLD.limits, OLD.created)
BEGIN
    INSERT INTO acts VALUES (
        CASE
            WHEN NEW.policy <> OLD.policy THEN 'fleet.policy'
            WHEN NEW.limits <> OLD.limits THEN 'fleet.limits'
            ELSE 'fleet.update'
        END, NEW.id, NULL,
        json_object('policy', json(OLD.policy), 'limits', json(OLD.limits)),
        json_object('policy', json(NEW.policy), 'limits', json(NEW.limits)), NULL);
END;
CREATE TRIGGER fleets_audit_delete AFTER DELETE ON fleets
BEGIN
    INSERT INTO acts VALUES ('fleet.delete', OLD.id, NULL,
        json_object('policy', json(OLD.policy), 'limits', json(OLD.limits)), NULL, NULL);
END;

CREATE TRIGGER changes_audit_kick AFTER INSERT ON changes WHEN NEW.kind = 'kick'
BEGIN INSERT INTO acts VALUES ('device.kick', NEW.subject, NEW.subject, NULL, NULL, NULL); END;

-- Its own row a gateway writes itself; that it counts no more, a person says.
CREATE TRIGGER gateways_audit_delete AFTER DELETE ON gateways
BEGIN
    INSERT INTO acts VALUES ('gateway.remove', OLD.name, NULL,
        json_object('version', OLD.version, 'address', OLD.address, 'heartbeat', OLD.heartbeat, 'signed_off', OLD.signed_off), NULL, NULL);
END;

---- What never changes

CREATE TRIGGER audit_insert_once BEFORE INSERT ON audit
WHEN NEW.hash IS NOT NULL OR EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'the audit is written by acts alone and never changes'); END;

CREATE TRIGGER audit_no_hole AFTER INSERT ON audit
WHEN NEW.id > 1 AND NOT EXISTS (SELECT 1 FROM audit WHERE id = NEW.id - 1)
BEGIN SELECT RAISE(ABORT, 'the audit is written by acts alone and never changes'); END;

-- Only a hash is put where none was.
CREATE TRIGGER audit_keep BEFORE UPDATE ON audit
WHEN OLD.hash IS NOT NULL OR NEW.hash IS NULL OR (NEW.id, NEW.at, NEW.body) <> (OLD.id, OLD.at, OLD.body)
BEGIN SELECT RAISE(ABORT, 'the audit is written by acts alone and never changes'); END;

CREATE TRIGGER audit_keep_row BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is written by acts alone and never changes'); END;

CREATE TRIGGER audit_head_insert_once BEFORE INSERT ON audit_head
BEGIN SELECT RAISE(ABORT, 'the head of the audit only goes forward'); END;
CREATE TRIGGER audit_head_keep BEFORE UPDATE ON audit_head
WHEN NEW.count <= OLD.count OR NEW.hash IS NOT (SELECT hash FROM audit WHERE id = NEW.count)
BEGIN SELECT RAISE(ABORT, 'the head of the audit only goes forward'); END;
CREATE TRIGGER audit_head_keep_row BEFORE DELETE ON audit_head
BEGIN SELECT RAISE(ABORT, 'the head of the audit only goes forward'); END;

CREATE TRIGGER acting_insert_once BEFORE INSERT ON acting
BEGIN SELECT RAISE(ABORT, 'one acts at a time'); END;
CREATE TRIGGER acting_keep_row BEFORE DELETE ON acting
BEGIN SELECT RAISE(ABORT, 'one acts at a time'); END;
