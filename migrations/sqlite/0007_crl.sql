-- Revocation lists: since when what is revoked is so, and the number that each list bears.

---- Since when

-- When a status became what it is; none: since the row was added.
ALTER TABLE devices ADD COLUMN status_since TEXT CHECK (status_since IS strftime('%Y-%m-%dT%H:%M:%fZ', status_since));
ALTER TABLE certificates ADD COLUMN status_since TEXT CHECK (status_since IS strftime('%Y-%m-%dT%H:%M:%fZ', status_since));

-- As in 0001, but the note of the time, which is an UPDATE too, is no news.
DROP TRIGGER devices_note_update;
CREATE TRIGGER devices_note_update AFTER UPDATE OF id, fleet, status, reason, attributes, created ON devices
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.id); END;
DROP TRIGGER certificates_note_update;
CREATE TRIGGER certificates_note_update
AFTER UPDATE OF fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after, status, valid_until, reason
ON certificates
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.device); END;

-- Of those from before nobody noted it: they are revoked since now at the latest.
UPDATE devices SET status_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE status <> 'active';
UPDATE certificates SET status_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE status <> 'active';

-- A trigger cannot change the row that it fires for. 'now' is one moment for a statement and all its triggers, so that what
-- these write is told from what a hand writes.
CREATE TRIGGER devices_keep_since BEFORE UPDATE OF status_since ON devices
WHEN NEW.status_since IS NOT OLD.status_since AND NEW.status_since IS NOT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
BEGIN SELECT RAISE(ABORT, 'since when a status holds is noted when it changes, and never changes by itself'); END;
CREATE TRIGGER devices_stamp_insert AFTER INSERT ON devices WHEN NEW.status <> 'active' OR NEW.status_since IS NOT NULL
BEGIN UPDATE devices SET status_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = NEW.id; END;
CREATE TRIGGER devices_stamp AFTER UPDATE ON devices WHEN NEW.status <> OLD.status
BEGIN UPDATE devices SET status_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = NEW.id; END;

CREATE TRIGGER certificates_keep_since BEFORE UPDATE OF status_since ON certificates
WHEN NEW.status_since IS NOT OLD.status_since AND NEW.status_since IS NOT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
BEGIN SELECT RAISE(ABORT, 'since when a status holds is noted when it changes, and never changes by itself'); END;
CREATE TRIGGER certificates_stamp_insert AFTER INSERT ON certificates WHEN NEW.status <> 'active' OR NEW.status_since IS NOT NULL
BEGIN UPDATE certificates SET status_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE fingerprint = NEW.fingerprint; END;
CREATE TRIGGER certificates_stamp AFTER UPDATE ON certificates WHEN NEW.status <> OLD.status
BEGIN UPDATE certificates SET status_since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE fingerprint = NEW.fingerprint; END;

---- Which number

-- The newest list of each authority. A number is given once, whatever becomes of the list (RFC 5280 section 5.2.3).
CREATE TABLE crls (
    issuer TEXT NOT NULL PRIMARY KEY CHECK (length(issuer) BETWEEN 2 AND 128 AND NOT issuer GLOB '*[^0-9a-f]*'),
    number INTEGER NOT NULL CHECK (number > 0),
    this_update TEXT NOT NULL CHECK (this_update IS strftime('%Y-%m-%dT%H:%M:%fZ', this_update)),
    next_update TEXT NOT NULL
        CHECK (next_update IS strftime('%Y-%m-%dT%H:%M:%fZ', next_update)) CHECK (this_update < next_update),
    -- Whether superseded certificates are in it too.
    superseded INTEGER NOT NULL CHECK (superseded IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE TRIGGER crls_insert_once BEFORE INSERT ON crls WHEN EXISTS (SELECT 1 FROM crls WHERE issuer = NEW.issuer)
BEGIN SELECT RAISE(ABORT, 'the number of a revocation list only goes up'); END;
CREATE TRIGGER crls_keep BEFORE UPDATE ON crls WHEN NEW.issuer <> OLD.issuer OR NEW.number <= OLD.number
BEGIN SELECT RAISE(ABORT, 'the number of a revocation list only goes up'); END;
CREATE TRIGGER crls_keep_row BEFORE DELETE ON crls
BEGIN SELECT RAISE(ABORT, 'the number of a revocation list only goes up'); END;

CREATE TRIGGER crls_audit_insert AFTER INSERT ON crls
BEGIN
    INSERT INTO acts VALUES ('crl.issue', CAST(NEW.number AS TEXT), NULL, NULL,
        json_object('issuer', NEW.issuer, 'number', NEW.number, 'this_update', NEW.this_update, 'next_update', NEW.next_update,
            'superseded', json(iif(NEW.superseded, 'true', 'false'))), NULL);
END;
CREATE TRIGGER crls_audit_update AFTER UPDATE ON crls
BEGIN
    INSERT INTO acts VALUES ('crl.issue', CAST(NEW.number AS TEXT), NULL, NULL,
        json_object('issuer', NEW.issuer, 'number', NEW.number, 'this_update', NEW.this_update, 'next_update', NEW.next_update,
            'superseded', json(iif(NEW.superseded, 'true', 'false'))), NULL);
END;
