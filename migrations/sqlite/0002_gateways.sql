-- Who serves, and what each has applied of the feed. The wake-up is the file's own `data_version`.

-- A gateway's row is its promise: changes up to `applied` have taken effect there, and whatever is later may be served
-- until `heartbeat` + `may_serve_ms`, whatever becomes of the gateway.
CREATE TABLE gateways (
    name TEXT NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 64),
    -- One run of one process: two gateways under one name would confirm for each other.
    instance TEXT NOT NULL,
    version TEXT NOT NULL,
    address TEXT NOT NULL,
    since TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (since GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    heartbeat TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (heartbeat GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z'),
    may_serve_ms INTEGER NOT NULL CHECK (may_serve_ms >= 0),
    applied INTEGER,
    signed_off TEXT
        CHECK (signed_off GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z')
) STRICT, WITHOUT ROWID;

-- A device that is proven at one gateway ends its session at another. The subject names the session that has lost its
-- place, so that no younger one is meant.
CREATE TRIGGER presence_note_takeover AFTER UPDATE ON presence
WHEN OLD.session IS NOT NULL AND NEW.session IS NOT NULL AND NEW.gateway <> OLD.gateway
BEGIN INSERT INTO changes (kind, subject) VALUES ('takeover', OLD.device || '/' || OLD.session); END;
