-- What use has taught about the first four.

---- Bulk issuing

-- As in 0003, but without the way by `acts`, which reads the JSON that was made here a second time.
DROP TRIGGER feed_audit_added;
CREATE TRIGGER feed_audit_added AFTER UPDATE OF adding ON feed WHEN OLD.adding = 1 AND NEW.adding = 0
BEGIN
    INSERT INTO audit (at, body) SELECT now.at, json_object('at', now.at, 'actor', now.actor, 'role', NULL,
        'action', 'device.add', 'subject', d.id, 'device', d.id, 'reason', d.reason, 'before', NULL,
        'after', json_object('fleet', d.fleet, 'status', d.status, 'reason', d.reason, 'attributes', json(d.attributes),
            'certificates', (
                SELECT json_group_array(json_object('serial', serial, 'fingerprint', fingerprint, 'not_after', not_after,
                    'status', status, 'valid_until', valid_until, 'reason', reason))
                FROM certificates WHERE device = d.id),
            'keys', (
                SELECT json_group_array(json_object('version', version, 'state', state, 'grace_until', grace_until))
                FROM hmac_keys WHERE device = d.id)))
    FROM (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS at, coalesce((SELECT actor FROM acting), 'sql') AS actor) AS now
        CROSS JOIN added CROSS JOIN devices AS d ON d.id = added.device ORDER BY d.id;
    DELETE FROM added;
END;

---- Takeovers

-- As in 0002; the subject names also where the newer session comes from, for the gateway that loses the older one.
DROP TRIGGER presence_note_takeover;
CREATE TRIGGER presence_note_takeover AFTER UPDATE ON presence
WHEN OLD.session IS NOT NULL AND NEW.session IS NOT NULL AND NEW.gateway <> OLD.gateway
BEGIN INSERT INTO changes (kind, subject) VALUES ('takeover', OLD.device || '/' || OLD.session || '/' || NEW.peer); END;
