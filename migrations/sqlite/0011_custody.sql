-- Custody of the devices' keys: which master keys each gateway holds, and how one takes another's place.
-- A sealed key names its master key in bytes 2 to 9. That id tells master keys apart, and nothing else about them.

-- What the run of a gateway that `master_keys_of` names has said: ids in hex with a blank between.
ALTER TABLE gateways ADD COLUMN master_keys TEXT;
ALTER TABLE gateways ADD COLUMN master_keys_of TEXT;

CREATE TABLE master_keys (
    id TEXT NOT NULL PRIMARY KEY CHECK (length(id) = 16 AND NOT id GLOB '*[^0-9a-f]*'),
    -- `next`: all keys are being sealed by it. `retired`: it seals nothing any more.
    state TEXT NOT NULL CHECK (state IN ('next', 'retired'))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX master_keys_one_next ON master_keys (state) WHERE state = 'next';

CREATE TRIGGER master_keys_insert_once BEFORE INSERT ON master_keys
WHEN EXISTS (SELECT 1 FROM master_keys WHERE id = NEW.id OR (NEW.state = 'next' AND state = 'next'))
BEGIN SELECT RAISE(ABORT, 'a master key is retired for good, and one at a time is the next'); END;
CREATE TRIGGER master_keys_keep BEFORE UPDATE ON master_keys
BEGIN SELECT RAISE(ABORT, 'a master key is retired for good, and one at a time is the next'); END;
CREATE TRIGGER master_keys_keep_row BEFORE DELETE ON master_keys WHEN OLD.state = 'retired'
BEGIN SELECT RAISE(ABORT, 'a master key is retired for good, and one at a time is the next'); END;

CREATE TRIGGER master_keys_audit AFTER INSERT ON master_keys
BEGIN
    INSERT INTO acts VALUES (CASE NEW.state WHEN 'next' THEN 'master_key.next' ELSE 'master_key.retire' END, NEW.id, NULL, NULL,
        json_object('id', NEW.id, 'state', NEW.state), NULL);
END;

-- Whoever still has the old master key alone would otherwise give devices keys that no gateway opens.
CREATE TRIGGER hmac_keys_insert_by_retired BEFORE INSERT ON hmac_keys
WHEN EXISTS (SELECT 1 FROM master_keys WHERE id = lower(hex(substr(NEW.sealed, 2, 8))) AND state = 'retired')
BEGIN SELECT RAISE(ABORT, 'this key is sealed by a master key that ''doorward pki rewrap'' has replaced; take pki/master.key from a home that has the new one'); END;
CREATE TRIGGER hmac_keys_update_by_retired BEFORE UPDATE OF sealed ON hmac_keys
WHEN NEW.sealed <> OLD.sealed
    AND EXISTS (SELECT 1 FROM master_keys WHERE id = lower(hex(substr(NEW.sealed, 2, 8))) AND state = 'retired')
BEGIN SELECT RAISE(ABORT, 'this key is sealed by a master key that ''doorward pki rewrap'' has replaced; take pki/master.key from a home that has the new one'); END;
