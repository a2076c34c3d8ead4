-- Renewals: a device asks in its session, its gateway puts the request here, and an issuer signs.

-- Until when an operator wants a certificate renewed: the gateway asks its device from now on.
ALTER TABLE certificates ADD COLUMN rotate_by TEXT CHECK (rotate_by IS strftime('%Y-%m-%dT%H:%M:%fZ', rotate_by));
-- As in 0007; that too is news.
DROP TRIGGER certificates_note_update;
CREATE TRIGGER certificates_note_update
AFTER UPDATE OF fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after, status, valid_until, reason, rotate_by
ON certificates
BEGIN INSERT INTO changes (kind, subject) VALUES ('device', NEW.device); END;

CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    -- That of the session that has asked.
    certificate TEXT NOT NULL REFERENCES certificates (fingerprint) ON DELETE CASCADE,
    -- SHA-256 of the key's point: who asks again with the same key is answered with the same certificate.
    public_key TEXT NOT NULL CHECK (length(public_key) = 64 AND NOT public_key GLOB '*[^0-9a-f]*'),
    csr BLOB NOT NULL CHECK (length(csr) BETWEEN 1 AND 16384),
    gateway TEXT NOT NULL CHECK (length(gateway) BETWEEN 1 AND 64),
    asked TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
        CHECK (asked IS strftime('%Y-%m-%dT%H:%M:%fZ', asked)),
    expires TEXT NOT NULL CHECK (expires IS strftime('%Y-%m-%dT%H:%M:%fZ', expires)),
    -- How often it was asked anew, after a refusal or its end.
    tries INTEGER NOT NULL DEFAULT 1 CHECK (tries > 0),
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'issued', 'refused')),
    reason TEXT,
    -- Refused for its key, which will never do.
    spent INTEGER NOT NULL DEFAULT 0 CHECK (spent IN (0, 1) AND (spent = 0 OR state = 'refused')),
    issued TEXT REFERENCES certificates (fingerprint) ON DELETE CASCADE,
    -- What stands above the certificate in its chain, PEM.
    chain TEXT,
    CHECK ((state = 'issued') = (issued IS NOT NULL)),
    CHECK ((state = 'issued') = (chain IS NOT NULL)),
    UNIQUE (device, public_key)
) STRICT;
CREATE UNIQUE INDEX requests_one_waiting ON requests (device) WHERE state = 'waiting';
CREATE INDEX requests_waiting ON requests (id) WHERE state = 'waiting';
CREATE INDEX requests_asked ON requests (asked);
CREATE INDEX requests_certificate ON requests (certificate);
CREATE INDEX requests_issued ON requests (issued) WHERE issued IS NOT NULL;

-- What an issuer has decided. That a device has asked is none of a person's acts.
CREATE TRIGGER requests_audit_decision AFTER UPDATE OF state ON requests WHEN OLD.state = 'waiting' AND NEW.state <> 'waiting'
BEGIN
    INSERT INTO acts VALUES (CASE NEW.state WHEN 'issued' THEN 'renewal.issue' ELSE 'renewal.refuse' END, NEW.device, NEW.device, NULL,
        json_object('certificate', NEW.certificate, 'public_key', NEW.public_key, 'gateway', NEW.gateway, 'asked', NEW.asked,
            'issued', NEW.issued), NEW.reason);
END;

---- How late a device may come, for its fleet

-- As in 0006. None at all is a value here: it keeps a fleet from what its gateways allow.
DROP TRIGGER fleets_limits_insert;
DROP TRIGGER fleets_limits_update;
CREATE TRIGGER fleets_limits_insert BEFORE INSERT ON fleets
WHEN (SELECT count(*) <> count(DISTINCT key) FROM json_each(NEW.limits)) OR EXISTS (
    SELECT 1 FROM json_each(NEW.limits) AS m WHERE m.type <> 'integer' OR CASE m.key
        WHEN 'rate_per_second' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'rate_burst' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'message_bytes' THEN m.value NOT BETWEEN 1024 AND 16777216
        WHEN 'renew_after_expiry' THEN m.value NOT BETWEEN 0 AND 31536000
        ELSE 1
    END
)
BEGIN SELECT RAISE(ABORT, 'limits are rate_per_second and rate_burst (1 to 1000000), message_bytes (1024 to 16777216) and renew_after_expiry (0 to 31536000)'); END;
CREATE TRIGGER fleets_limits_update BEFORE UPDATE OF limits ON fleets
WHEN (SELECT count(*) <> count(DISTINCT key) FROM json_each(NEW.limits)) OR EXISTS (
    SELECT 1 FROM json_each(NEW.limits) AS m WHERE m.type <> 'integer' OR CASE m.key
        WHEN 'rate_per_second' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'rate_burst' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'message_bytes' THEN m.value NOT BETWEEN 1024 AND 16777216
        WHEN 'renew_after_expiry' THEN m.value NOT BETWEEN 0 AND 31536000
        ELSE 1
    END
)
BEGIN SELECT RAISE(ABORT, 'limits are rate_per_second and rate_burst (1 to 1000000), message_bytes (1024 to 16777216) and renew_after_expiry (0 to 31536000)'); END;
