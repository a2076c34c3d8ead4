-- Rotations of a whole fleet: which devices were asked to take a new credential, and which have proven it.

CREATE TABLE rotations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    what TEXT NOT NULL CHECK (what IN ('key', 'certificate')),
    fleet TEXT NOT NULL REFERENCES fleets (id),
    state TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'stopped', 'done', 'undone')),
    -- Why it was stopped.
    reason TEXT CHECK (state <> 'stopped' OR reason IS NOT NULL),
    -- As they were asked for: a number of devices, or so many of a hundred.
    canary TEXT NOT NULL CHECK (length(canary) BETWEEN 1 AND 13 AND NOT canary GLOB '*[^0-9.%]*'),
    wave TEXT NOT NULL CHECK (length(wave) BETWEEN 1 AND 13 AND NOT wave GLOB '*[^0-9.%]*'),
    max_failures INTEGER NOT NULL CHECK (max_failures BETWEEN 0 AND 4294967295),
    patience_ms INTEGER NOT NULL CHECK (patience_ms BETWEEN 0 AND 31622400000),
    grace_seconds INTEGER NOT NULL CHECK (grace_seconds BETWEEN 0 AND 31622400),
    started TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (started IS strftime('%Y-%m-%dT%H:%M:%fZ', started)),
    started_by TEXT NOT NULL,
    ended TEXT CHECK (ended IS strftime('%Y-%m-%dT%H:%M:%fZ', ended)),
    -- Who drives it, and when he last said so: two at once would ask a fleet faster than it answers.
    driver TEXT,
    heartbeat TEXT CHECK (heartbeat IS strftime('%Y-%m-%dT%H:%M:%fZ', heartbeat))
) STRICT;
-- One that was stopped stands in the way until a person has decided what becomes of it.
CREATE UNIQUE INDEX rotations_one_open ON rotations (what, fleet) WHERE state IN ('running', 'stopped');

CREATE TABLE rotation_devices (
    rotation INTEGER NOT NULL REFERENCES rotations (id) ON DELETE CASCADE,
    device TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    -- 0: a canary.
    wave INTEGER NOT NULL CHECK (wave >= 0),
    state TEXT NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'asked', 'proven', 'failed', 'left_out', 'withdrawn')),
    reason TEXT,
    -- What it is to prove: the pending key version, or that the certificate with this fingerprint is superseded.
    version INTEGER,
    fingerprint TEXT,
    -- How many proven sessions it had had when it was asked, and whether one of them, or a bundle, may have brought
    -- the key already: what neither can have brought may be taken back.
    epoch INTEGER NOT NULL DEFAULT 0,
    brought INTEGER NOT NULL DEFAULT 1 CHECK (brought IN (0, 1)),
    -- When it was first known to be connected since it was asked, or because it was then: it has its time from here on, and
    -- is not forgotten when it goes away.
    came TEXT CHECK (came IS strftime('%Y-%m-%dT%H:%M:%fZ', came)),
    asked TEXT CHECK (asked IS strftime('%Y-%m-%dT%H:%M:%fZ', asked)),
    ended TEXT CHECK (ended IS strftime('%Y-%m-%dT%H:%M:%fZ', ended)),
    PRIMARY KEY (rotation, device),
    CHECK (state NOT IN ('asked', 'proven', 'failed', 'withdrawn') OR asked IS NOT NULL AND coalesce(version, fingerprint) IS NOT NULL)
) STRICT, WITHOUT ROWID;
CREATE INDEX rotation_devices_state ON rotation_devices (rotation, state, wave, device);
CREATE INDEX rotation_devices_asked ON rotation_devices (device) WHERE state IN ('asked', 'failed');

-- REPLACE would delete the rotation that is in the way, and fires no delete trigger.
CREATE TRIGGER rotations_insert_once BEFORE INSERT ON rotations
WHEN EXISTS (SELECT 1 FROM rotations WHERE id = NEW.id
    OR (what = NEW.what AND fleet = NEW.fleet AND state IN ('running', 'stopped') AND NEW.state IN ('running', 'stopped')))
BEGIN SELECT RAISE(ABORT, 'a rotation of this fleet is open already'); END;

CREATE TRIGGER rotations_need_fleet BEFORE INSERT ON rotations WHEN NOT EXISTS (SELECT 1 FROM fleets WHERE id = NEW.fleet)
BEGIN SELECT RAISE(ABORT, 'there is no such fleet'); END;

CREATE TRIGGER rotations_keep BEFORE UPDATE ON rotations
WHEN (NEW.id, NEW.what, NEW.fleet, NEW.started, NEW.started_by, NEW.grace_seconds)
    IS NOT (OLD.id, OLD.what, OLD.fleet, OLD.started, OLD.started_by, OLD.grace_seconds)
BEGIN SELECT RAISE(ABORT, 'what a rotation is and of which fleet never change'); END;

CREATE TRIGGER rotations_keep_ended BEFORE UPDATE ON rotations
WHEN NEW.state <> OLD.state AND (OLD.state = 'undone' OR (OLD.state = 'done' AND NEW.state <> 'undone'))
BEGIN SELECT RAISE(ABORT, 'the rotation has ended: begin a new one'); END;

---- Proof
-- Nothing else makes a device proven: what confirms its new credential, a message that it has signed, does it here too,
-- in the same transaction, whether or not anybody drives the rotation. One that was late is proven all the same.

CREATE TRIGGER hmac_keys_prove AFTER UPDATE OF state ON hmac_keys WHEN OLD.state = 'pending' AND NEW.state = 'active'
BEGIN
    UPDATE rotation_devices SET state = 'proven', reason = NULL, ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE device = NEW.device AND state IN ('asked', 'failed') AND version = NEW.version;
END;

-- Superseded without any grace it was replaced by hand: that proves nothing.
CREATE TRIGGER certificates_prove AFTER UPDATE OF status ON certificates
WHEN OLD.status = 'active' AND NEW.status = 'superseded' AND NEW.valid_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
BEGIN
    UPDATE rotation_devices SET state = 'proven', reason = NULL, ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE device = NEW.device AND state IN ('asked', 'failed') AND fingerprint = NEW.fingerprint;
END;

---- Audit

CREATE TRIGGER rotations_audit_insert AFTER INSERT ON rotations
BEGIN
    INSERT INTO acts VALUES ('rotation.start', CAST(NEW.id AS TEXT), NULL, NULL,
        json_object('what', NEW.what, 'fleet', NEW.fleet, 'state', NEW.state, 'canary', NEW.canary, 'wave', NEW.wave,
            'max_failures', NEW.max_failures, 'grace_seconds', NEW.grace_seconds), NEW.reason);
END;
CREATE TRIGGER rotations_audit_update AFTER UPDATE ON rotations
WHEN NEW.state <> OLD.state OR NEW.max_failures <> OLD.max_failures
BEGIN
    INSERT INTO acts VALUES (
        CASE NEW.state
            WHEN 'running' THEN 'rotation.resume'
            WHEN 'stopped' THEN 'rotation.stop'
            WHEN 'undone' THEN 'rotation.undo'
            ELSE 'rotation.finish'
        END, CAST(NEW.id AS TEXT), NULL, json_object('state', OLD.state),
        json_object('what', NEW.what, 'fleet', NEW.fleet, 'state', NEW.state, 'canary', NEW.canary, 'wave', NEW.wave,
            'max_failures', NEW.max_failures, 'grace_seconds', NEW.grace_seconds), NEW.reason);
END;
