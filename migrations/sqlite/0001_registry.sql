-- The registry: fleets, devices, their certificates and keys; where they are; what changed; what they sent.
--
-- Whoever writes a row, a command or a person at the sqlite3 shell, is bound by what stands here (SQLite 3.38 or newer).
-- `REPLACE INTO` and `UPDATE OR REPLACE` delete the row in their way and fire no delete trigger: so BEFORE INSERT triggers
-- refuse an id that exists, ids never change, and the tables have no hidden rowid to collide on. Foreign keys are
-- declared, but a shell has them off by default: triggers hold what matters.
-- Times are text: RFC 3339 in UTC with milliseconds, so that their order is that of time.

CREATE TABLE fleets (
    id TEXT NOT NULL PRIMARY KEY
        CHECK (length(id) BETWEEN 1 AND 64 AND id GLOB '[A-Za-z0-9]*' AND NOT id GLOB '*[^A-Za-z0-9_-]*'),
    policy TEXT NOT NULL CHECK (json_valid(policy) AND json_type(policy) = 'object'),
    limits TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(limits) AND json_type(limits) = 'object'),
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (created IS strftime('%Y-%m-%dT%H:%M:%fZ', created))
) STRICT, WITHOUT ROWID;
-- Ids that differ only in case are one id: a file system or a reader may fold them.
CREATE UNIQUE INDEX fleets_one_case ON fleets (lower(id));

CREATE TABLE devices (
    id TEXT NOT NULL PRIMARY KEY
        CHECK (length(id) BETWEEN 1 AND 64 AND id GLOB '[A-Za-z0-9]*' AND NOT id GLOB '*[^A-Za-z0-9_-]*')
        -- `gateway` names the gateway itself in `iss` and `aud` (protocol section 2).
        CHECK (lower(id) <> 'gateway'),
    fleet TEXT NOT NULL REFERENCES fleets (id),
    status TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'revoked')),
    reason TEXT,
    attributes TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(attributes) AND json_type(attributes) = 'object'),
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (created IS strftime('%Y-%m-%dT%H:%M:%fZ', created))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX devices_one_case ON devices (lower(id));
CREATE INDEX devices_fleet ON devices (fleet, id);

CREATE TABLE certificates (
    fingerprint TEXT NOT NULL PRIMARY KEY CHECK (length(fingerprint) = 64 AND NOT fingerprint GLOB '*[^0-9a-f]*'),
    serial TEXT NOT NULL CHECK (length(serial) = 32 AND NOT serial GLOB '*[^0-9a-f]*'),
    issuer TEXT NOT NULL CHECK (length(issuer) BETWEEN 2 AND 128 AND NOT issuer GLOB '*[^0-9a-f]*'),
    der BLOB NOT NULL CHECK (length(der) > 0),
    device TEXT NOT NULL REFERENCES devices (id),
    renewed_from TEXT REFERENCES certificates (fingerprint),
    not_before TEXT NOT NULL
        CHECK (not_before IS strftime('%Y-%m-%dT%H:%M:%fZ', not_before)),
    not_after TEXT NOT NULL
        CHECK (not_after IS strftime('%Y-%m-%dT%H:%M:%fZ', not_after))
        CHECK (not_before < not_after),
    status TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'superseded', 'revoked')),
    -- The end of its grace. Without one a superseded certificate would hold until it expires.
    valid_until TEXT
        CHECK (valid_until IS strftime('%Y-%m-%dT%H:%M:%fZ', valid_until))
        CHECK (status <> 'superseded' OR valid_until IS NOT NULL),
    reason TEXT,
    UNIQUE (issuer, serial)
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_device ON certificates (device);
CREATE INDEX certificates_serial ON certificates (serial);
CREATE INDEX certificates_renewed_from ON certificates (renewed_from) WHERE renewed_from IS NOT NULL;

CREATE TABLE hmac_keys (
    device TEXT NOT NULL REFERENCES devices (id),
    version INTEGER NOT NULL CHECK (version BETWEEN 1 AND 999999999),
    -- Sealed by the master key with device and version as associated data: a row moved to another device opens nothing.
    sealed BLOB NOT NULL CHECK (length(sealed) > 0),
    state TEXT NOT NULL CHECK (state IN ('pending', 'active', 'grace', 'retired')),
    grace_until TEXT
        CHECK (grace_until IS strftime('%Y-%m-%dT%H:%M:%fZ', grace_until))
        CHECK (state <> 'grace' OR grace_until IS NOT NULL),
    PRIMARY KEY (device, version)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX hmac_keys_one_pending ON hmac_keys (device) WHERE state = 'pending';
CREATE UNIQUE INDEX hmac_keys_one_active ON hmac_keys (device) WHERE state = 'active';

-- Written in batches on the hot path: no trigger, no change row.
CREATE TABLE presence (
    device TEXT NOT NULL PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    gateway TEXT NOT NULL,
    session TEXT,
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    since TEXT NOT NULL
        CHECK (since GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    last_seen TEXT NOT NULL
        CHECK (last_seen GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    peer TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX presence_gateway ON presence (gateway) WHERE session IS NOT NULL;

-- No foreign key to devices: the INSERT itself takes messages of active devices alone, and what was sent outlives its sender.
CREATE TABLE messages (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    device TEXT NOT NULL,
    id TEXT NOT NULL,
    channel TEXT NOT NULL,
    -- Postgres refuses U+0000 in text by itself.
    data TEXT NOT NULL CHECK (instr(data, char(0)) = 0),
    at TEXT
        CHECK (at GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    received_at TEXT NOT NULL
        CHECK (received_at GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    UNIQUE (device, id)
) STRICT;
CREATE INDEX messages_received_at ON messages (received_at);

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL
        CHECK (at GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    gateway TEXT NOT NULL,
    device TEXT,
    kind TEXT NOT NULL,
    peer TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX events_at ON events (at);
CREATE INDEX events_device ON events (device, at) WHERE device IS NOT NULL;

-- The feed. One writer at a time: ids are drawn in the order of commits. AUTOINCREMENT: no id comes twice.
CREATE TABLE changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('device', 'fleet', 'kick', 'takeover')),
    subject TEXT NOT NULL,
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (at GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z')
) STRICT;
CREATE INDEX changes_at ON changes (at);

CREATE TABLE feed (
    one INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    -- How far the feed has been pruned: whoever stands below may have missed something.
    pruned INTEGER NOT NULL DEFAULT 0,
    -- 1 inside the transaction that adds devices with their certificates and keys, which writes one change row for
    -- each device and not three. Never 1 in a committed state.
    adding INTEGER NOT NULL DEFAULT 0 CHECK (adding IN (0, 1))
) STRICT;
INSERT INTO feed DEFAULT VALUES;

---- What is final, and what never changes

CREATE TRIGGER fleets_insert_once BEFORE INSERT ON fleets
WHEN EXISTS (SELECT 1 FROM fleets WHERE lower(id) = lower(NEW.id))
BEGIN SELECT RAISE(ABORT, 'a fleet with this id exists already'); END;

CREATE TRIGGER fleets_keep_id BEFORE UPDATE ON fleets WHEN NEW.id <> OLD.id
BEGIN SELECT RAISE(ABORT, 'the id of a fleet never changes'); END;

CREATE TRIGGER fleets_keep_used BEFORE DELETE ON fleets WHEN EXISTS (SELECT 1 FROM devices WHERE fleet = OLD.id)
BEGIN SELECT RAISE(ABORT, 'devices belong to this fleet'); END;

CREATE TRIGGER devices_insert_once BEFORE INSERT ON devices
WHEN EXISTS (SELECT 1 FROM devices WHERE lower(id) = lower(NEW.id))
BEGIN SELECT RAISE(ABORT, 'a device with this id exists already'); END;

CREATE TRIGGER devices_need_fleet BEFORE INSERT ON devices
WHEN NOT EXISTS (SELECT 1 FROM fleets WHERE id = NEW.fleet)
BEGIN SELECT RAISE(ABORT, 'there is no such fleet'); END;

CREATE TRIGGER devices_move_to_fleet BEFORE UPDATE ON devices
WHEN NOT EXISTS (SELECT 1 FROM fleets WHERE id = NEW.fleet)
BEGIN SELECT RAISE(ABORT, 'there is no such fleet'); END;

CREATE TRIGGER devices_keep_id BEFORE UPDATE ON devices WHEN NEW.id <> OLD.id OR NEW.created <> OLD.created
BEGIN SELECT RAISE(ABORT, 'the id and the creation of a device never change'); END;

CREATE TRIGGER devices_keep_revoked BEFORE UPDATE ON devices WHEN OLD.status = 'revoked' AND NEW.status <> 'revoked'
BEGIN SELECT RAISE(ABORT, 'the device is revoked, and that is final: register the hardware anew under another id'); END;

CREATE TRIGGER devices_keep_row BEFORE DELETE ON devices WHEN OLD.status = 'revoked'
BEGIN SELECT RAISE(ABORT, 'the device is revoked, and that is final: its row stays'); END;

CREATE TRIGGER devices_keep_owner BEFORE DELETE ON devices
WHEN EXISTS (SELECT 1 FROM certificates WHERE device = OLD.id) OR EXISTS (SELECT 1 FROM hmac_keys WHERE device = OLD.id)
BEGIN SELECT RAISE(ABORT, 'certificates or keys belong to this device'); END;

CREATE TRIGGER certificates_insert_once BEFORE INSERT ON certificates
WHEN EXISTS (SELECT 1 FROM certificates WHERE fingerprint = NEW.fingerprint)
    OR EXISTS (SELECT 1 FROM certificates WHERE issuer = NEW.issuer AND serial = NEW.serial)
BEGIN SELECT RAISE(ABORT, 'a certificate with this fingerprint or serial exists already'); END;

CREATE TRIGGER certificates_need_device BEFORE INSERT ON certificates
WHEN NOT EXISTS (SELECT 1 FROM devices WHERE id = NEW.device)
BEGIN SELECT RAISE(ABORT, 'there is no such device'); END;

CREATE TRIGGER certificates_keep_contents BEFORE UPDATE ON certificates
WHEN (NEW.fingerprint, NEW.serial, NEW.issuer, NEW.der, NEW.device, NEW.not_before, NEW.not_after)
    <> (OLD.fingerprint, OLD.serial, OLD.issuer, OLD.der, OLD.device, OLD.not_before, OLD.not_after)
    OR NEW.renewed_from IS NOT OLD.renewed_from
BEGIN SELECT RAISE(ABORT, 'what a certificate says and whose it is never change'); END;

CREATE TRIGGER certificates_keep_revoked BEFORE UPDATE ON certificates
WHEN OLD.status = 'revoked' AND NEW.status <> 'revoked'
BEGIN SELECT RAISE(ABORT, 'the certificate is revoked, and that is final: issue a new one'); END;

CREATE TRIGGER certificates_keep_row BEFORE DELETE ON certificates WHEN OLD.status = 'revoked'
BEGIN SELECT RAISE(ABORT, 'the certificate is revoked, and that is final: its row stays'); END;

CREATE TRIGGER hmac_keys_insert_once BEFORE INSERT ON hmac_keys
WHEN EXISTS (SELECT 1 FROM hmac_keys WHERE device = NEW.device AND version = NEW.version)
    OR (NEW.state IN ('pending', 'active')
        AND EXISTS (SELECT 1 FROM hmac_keys WHERE device = NEW.device AND state = NEW.state))
BEGIN SELECT RAISE(ABORT, 'the device has this key version, or a pending or active one, already'); END;

CREATE TRIGGER hmac_keys_need_device BEFORE INSERT ON hmac_keys
WHEN NOT EXISTS (SELECT 1 FROM devices WHERE id = NEW.device)
BEGIN SELECT RAISE(ABORT, 'there is no such device'); END;

CREATE TRIGGER hmac_keys_keep_id BEFORE UPDATE ON hmac_keys WHEN NEW.device <> OLD.device OR NEW.version <> OLD.version
BEGIN SELECT RAISE(ABORT, 'the device and version of a key never change'); END;

-- UPDATE OR REPLACE would delete the key that is in the way of the index.
CREATE TRIGGER hmac_keys_one_in_state BEFORE UPDATE ON hmac_keys
WHEN NEW.state IN ('pending', 'active') AND NEW.state <> OLD.state
    AND EXISTS (SELECT 1 FROM hmac_keys WHERE device = NEW.device AND state = NEW.state)
BEGIN SELECT RAISE(ABORT, 'the device has a key in this state already'); END;

CREATE TRIGGER hmac_keys_keep_retired BEFORE UPDATE ON hmac_keys WHEN OLD.state = 'retired' AND NEW.state <> 'retired'
BEGIN SELECT RAISE(ABORT, 'the key is retired, and that is final: rotate to a new one'); END;

CREATE TRIGGER changes_insert_once BEFORE INSERT ON changes WHEN EXISTS (SELECT 1 FROM changes WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'a change that was recorded never changes'); END;

CREATE TRIGGER changes_keep BEFORE UPDATE ON changes
BEGIN SELECT RAISE(ABORT, 'a change that was recorded never changes'); END;

---- What gateways hear of

CREATE TRIGGER devices_note_insert AFTER INSERT ON devices
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.id); END;
CREATE TRIGGER devices_note_update AFTER UPDATE ON devices
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.id); END;
CREATE TRIGGER devices_note_delete AFTER DELETE ON devices
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', OLD.id); END;

CREATE TRIGGER certificates_note_insert AFTER INSERT ON certificates WHEN (SELECT adding FROM feed) = 0
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.device); END;
CREATE TRIGGER certificates_note_update AFTER UPDATE ON certificates
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.device); END;
CREATE TRIGGER certificates_note_delete AFTER DELETE ON certificates
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', OLD.device); END;

CREATE TRIGGER hmac_keys_note_insert AFTER INSERT ON hmac_keys WHEN (SELECT adding FROM feed) = 0
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.device); END;
CREATE TRIGGER hmac_keys_note_update AFTER UPDATE ON hmac_keys
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.device); END;
CREATE TRIGGER hmac_keys_note_delete AFTER DELETE ON hmac_keys
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', OLD.device); END;

CREATE TRIGGER fleets_note_insert AFTER INSERT ON fleets
BEGIN INSERT INTO changes (kind, subject) VALUES ('fleet', NEW.id); END;
CREATE TRIGGER fleets_note_update AFTER UPDATE ON fleets
BEGIN INSERT INTO changes (kind, subject) VALUES ('fleet', NEW.id); END;
CREATE TRIGGER fleets_note_delete AFTER DELETE ON fleets
BEGIN INSERT INTO changes (kind, subject) VALUES ('fleet', OLD.id); END;

-- Whoever deletes changes, the readers find out.
CREATE TRIGGER changes_note_pruning AFTER DELETE ON changes
BEGIN UPDATE feed SET pruned = max(pruned, OLD.id); END;

INSERT INTO fleets (id, policy) VALUES (
    'default',
    '{"allow":[{"actions":["publish"],"channels":["devices/${device}/#"]},{"actions":["subscribe"],"channels":["devices/${device}/#","fleets/${fleet}/#"]}],"deny":[]}'
);
