-- Who may do what. Four roles without login: people and programs get login roles that are members of one of them.
--
-- doorward_gateway   lets devices in: reads what it judges by, writes presence, messages, events and its own row
-- doorward_issuer    records a renewed certificate, and nothing else
-- doorward_operator  manages fleets, devices, certificates and keys
-- doorward_auditor   reads the audit and the events
--
-- What is more than a table's right, a function does: SECURITY DEFINER, one thing each, its search path pinned.

-- begin roles
DO $$
DECLARE
    role text;
    missing text[] := '{}';
BEGIN
    -- Roles belong to the whole cluster: another database's migration may have made them, or be making them now.
    FOREACH role IN ARRAY ARRAY['doorward_gateway', 'doorward_issuer', 'doorward_operator', 'doorward_auditor'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = role);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN missing := array_append(missing, role);
        END;
    END LOOP;
    IF cardinality(missing) > 0 THEN
        RAISE EXCEPTION 'the roles % are missing, and % may not create roles; let a superuser do it (%) and repeat',
            array_to_string(missing, ', '), current_user,
            (SELECT string_agg(format('CREATE ROLE %I NOLOGIN', m), '; ') FROM unnest(missing) AS m)
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END $$;
-- end roles

---- What operators do, as functions

-- The words of a refusal, or none: as the commands judge a reason.
CREATE FUNCTION check_reason(reason text) RETURNS void LANGUAGE plpgsql SET search_path = doorward, pg_temp AS $$
BEGIN
    IF reason IS NULL OR octet_length(reason) NOT BETWEEN 1 AND 256 OR reason ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        RAISE EXCEPTION 'a reason is 1 to 256 bytes without control characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;

CREATE FUNCTION set_device_status(device text, next text, why text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    was text;
BEGIN
    SELECT d.status INTO was FROM devices d WHERE d.id = device FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no device ''%''', device USING ERRCODE = 'no_data_found';
    END IF;
    IF was = next THEN
        -- Said again: a gateway that missed it hears it now.
        INSERT INTO changes (kind, subject) VALUES ('device', device);
        RETURN false;
    END IF;
    IF was = 'revoked' THEN
        RAISE EXCEPTION 'device ''%'' is revoked, and that is final; register the hardware anew under another id', device
            USING ERRCODE = 'DW001';
    END IF;
    UPDATE devices SET status = next, reason = why WHERE id = device;
    RETURN true;
END $$;

-- Each says whether it changed anything; the state that already is stays as it was, with its reason.
CREATE FUNCTION revoke_device(id text, reason text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    PERFORM check_reason(reason);
    RETURN set_device_status(id, 'revoked', reason);
END $$;

CREATE FUNCTION suspend_device(id text, reason text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    PERFORM check_reason(reason);
    RETURN set_device_status(id, 'suspended', reason);
END $$;

CREATE FUNCTION resume_device(id text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    RETURN set_device_status(id, 'active', NULL);
END $$;

-- Also those that were renewed from it, unless `only`; how many it revoked.
CREATE FUNCTION revoke_certificate(serial text, reason text, only_this boolean DEFAULT false) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    found_in integer;
    owner text;
    revoked integer;
BEGIN
    PERFORM check_reason(reason);
    SELECT count(*), min(c.device) INTO found_in, owner FROM certificates c WHERE c.serial = lower(revoke_certificate.serial);
    IF found_in = 0 THEN
        RAISE EXCEPTION 'there is no certificate ''%''', serial USING ERRCODE = 'no_data_found';
    ELSIF found_in > 1 THEN
        RAISE EXCEPTION 'certificates of % issuers have the serial %; name one by its fingerprint in an UPDATE', found_in, serial
            USING ERRCODE = 'DW001';
    END IF;
    -- Renewals lock the device too: none slips in between.
    PERFORM FROM devices d WHERE d.id = owner FOR UPDATE;
    WITH RECURSIVE line AS (
        SELECT c.fingerprint FROM certificates c WHERE c.serial = lower(revoke_certificate.serial)
        UNION
        SELECT c.fingerprint FROM certificates c JOIN line ON c.renewed_from = line.fingerprint WHERE NOT only_this
    )
    UPDATE certificates c SET status = 'revoked', reason = revoke_certificate.reason
        FROM line WHERE c.fingerprint = line.fingerprint AND c.status <> 'revoked';
    GET DIAGNOSTICS revoked = ROW_COUNT;
    IF revoked = 0 THEN
        INSERT INTO changes (kind, subject) VALUES ('device', owner);
    END IF;
    RETURN revoked;
END $$;

---- What gateways and issuers may do beyond their tables

-- A device has signed with its pending key: it becomes the active one, and the one before it has a week of grace.
CREATE FUNCTION confirm_key(device text, version integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    was text;
BEGIN
    PERFORM FROM devices d WHERE d.id = confirm_key.device AND d.status = 'active' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no active device ''%''', device USING ERRCODE = 'DW001';
    END IF;
    SELECT k.state INTO was FROM hmac_keys k WHERE k.device = confirm_key.device AND k.version = confirm_key.version;
    IF was = 'active' THEN
        RETURN false;
    ELSIF was IS DISTINCT FROM 'pending' THEN
        RAISE EXCEPTION 'key % of device ''%'' is not pending but %', version, device, coalesce(was, 'unknown')
            USING ERRCODE = 'DW001';
    END IF;
    UPDATE hmac_keys k SET state = 'grace', grace_until = now() + interval '7 days'
        WHERE k.device = confirm_key.device AND k.state = 'active';
    UPDATE hmac_keys k SET state = 'active' WHERE k.device = confirm_key.device AND k.version = confirm_key.version;
    RETURN true;
END $$;

-- A gateway deletes what is old: messages after ten minutes at the earliest (the least that `messages.keep` can be),
-- changes and events after a week. Who has taken its password cannot wipe out what he has just done.
CREATE FUNCTION old_enough(before timestamptz, age interval) RETURNS timestamptz
    LANGUAGE sql STABLE SET search_path = doorward, pg_temp AS $$
    SELECT CASE WHEN pg_has_role(session_user, 'doorward_operator', 'MEMBER') THEN before
        ELSE least(before, now() - age) END
$$;

CREATE FUNCTION prune_messages(before timestamptz, most bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    deleted bigint;
BEGIN
    -- Another gateway may prune at the same time: what it holds is as good as gone.
    DELETE FROM messages WHERE position IN (
        SELECT m.position FROM messages m WHERE m.received_at < old_enough(before, interval '10 minutes') ORDER BY m.received_at LIMIT most
            FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END $$;

CREATE FUNCTION prune_history(before timestamptz, most bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    deleted_changes bigint;
    deleted_events bigint;
BEGIN
    -- Not what a follower still reads again, and what came from another cluster with xids that are still to come here.
    DELETE FROM changes WHERE id IN (
        SELECT c.id FROM changes c, pg_current_snapshot() AS s
        WHERE c.at < old_enough(before, interval '7 days') AND (c.xid < pg_snapshot_xmin(s) OR c.xid >= pg_snapshot_xmax(s))
        ORDER BY c.at LIMIT most FOR UPDATE OF c SKIP LOCKED
    );
    GET DIAGNOSTICS deleted_changes = ROW_COUNT;
    DELETE FROM events WHERE id IN (
        SELECT e.id FROM events e WHERE e.at < old_enough(before, interval '7 days') ORDER BY e.at LIMIT most - deleted_changes
            FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS deleted_events = ROW_COUNT;
    RETURN deleted_changes + deleted_events;
END $$;

-- A renewal: the successor of a certificate of the same device that still holds.
CREATE FUNCTION record_certificate(
    fingerprint text, serial text, issuer text, der bytea, device text, renewed_from text,
    not_before timestamptz, not_after timestamptz
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    IF fingerprint IS DISTINCT FROM encode(sha256(der), 'hex') THEN
        RAISE EXCEPTION 'the fingerprint is not that of the certificate' USING ERRCODE = 'DW001';
    END IF;
    PERFORM FROM devices d WHERE d.id = record_certificate.device AND d.status = 'active' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no active device ''%''', device USING ERRCODE = 'DW001';
    END IF;
    PERFORM FROM certificates c
        WHERE c.fingerprint = record_certificate.renewed_from AND c.device = record_certificate.device AND c.not_after > now()
            AND (c.status = 'active' OR c.status = 'superseded' AND c.valid_until > now());
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a certificate is recorded as successor to one of device ''%'' that still holds', device
            USING ERRCODE = 'DW001';
    END IF;
    INSERT INTO certificates (fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after)
        VALUES (fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after);
END $$;

---- What people look at

CREATE VIEW device_overview AS
    SELECT d.id, d.fleet, d.status, d.reason, d.created,
           (SELECT max(c.not_after) FROM certificates c WHERE c.device = d.id AND c.status = 'active') AS certificate_expires,
           (SELECT max(k.version) FROM hmac_keys k WHERE k.device = d.id AND k.state = 'active') AS key_version,
           p.session IS NOT NULL AS connected,
           CASE WHEN p.session IS NOT NULL THEN p.gateway END AS gateway,
           CASE WHEN p.session IS NOT NULL THEN p.peer END AS peer,
           CASE WHEN p.session IS NOT NULL THEN p.since END AS connected_since,
           p.last_seen
    FROM devices d LEFT JOIN presence p ON p.device = d.id;

-- Those that open the door now and will not in 30 days, the first to end first.
CREATE VIEW expiring_certificates AS
    SELECT c.device, d.fleet, c.serial, c.fingerprint, c.status, e.expires, e.expires - now() AS expires_in
    FROM certificates c
    JOIN devices d ON d.id = c.device AND d.status <> 'revoked'
    CROSS JOIN LATERAL (SELECT CASE WHEN c.status = 'superseded' THEN least(c.not_after, c.valid_until) ELSE c.not_after END) AS e (expires)
    WHERE c.status <> 'revoked' AND e.expires > now() AND e.expires < now() + interval '30 days'
    ORDER BY e.expires, c.device;

---- Grants

-- A function is everybody's until this is said.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA doorward FROM PUBLIC;
GRANT USAGE ON SCHEMA doorward TO doorward_gateway, doorward_issuer, doorward_operator, doorward_auditor;
GRANT SELECT ON _sqlx_migrations TO doorward_gateway, doorward_issuer, doorward_operator, doorward_auditor;

GRANT SELECT ON fleets, devices, certificates, hmac_keys, changes, changes_id_seq, feed, audit_head TO doorward_gateway;
GRANT SELECT, INSERT, UPDATE ON presence, gateways TO doorward_gateway;
-- What tells a duplicate; what devices have sent, it cannot read.
GRANT INSERT, SELECT (device, id) ON messages TO doorward_gateway;
GRANT INSERT ON events TO doorward_gateway;
GRANT EXECUTE ON FUNCTION confirm_key, prune_messages, prune_history TO doorward_gateway;

GRANT SELECT ON fleets, devices, certificates TO doorward_issuer;
GRANT EXECUTE ON FUNCTION record_certificate TO doorward_issuer;

GRANT SELECT, INSERT, UPDATE, DELETE ON fleets, devices, certificates, hmac_keys TO doorward_operator;
GRANT SELECT ON presence, gateways, messages, events, changes, changes_id_seq, feed, device_overview, expiring_certificates
    TO doorward_operator;
-- One that is gone for good.
GRANT DELETE ON gateways TO doorward_operator;
-- Kicks.
GRANT INSERT (kind, subject) ON changes TO doorward_operator;
GRANT EXECUTE ON FUNCTION revoke_device, suspend_device, resume_device, revoke_certificate TO doorward_operator;

GRANT SELECT ON audit, audit_head, events TO doorward_auditor;
