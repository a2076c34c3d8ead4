-- Renewals: a device asks in its session, its gateway puts the request here, and an issuer signs, wherever that runs.

-- Until when an operator wants a certificate renewed: the gateway asks its device from now on.
ALTER TABLE certificates ADD COLUMN rotate_by timestamptz CHECK (rotate_by BETWEEN '0001-01-01Z' AND '9999-12-31Z');

CREATE TABLE requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device text COLLATE "C" NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    -- That of the session that has asked.
    certificate text COLLATE "C" NOT NULL REFERENCES certificates (fingerprint) ON DELETE CASCADE,
    -- SHA-256 of the key's point: who asks again with the same key is answered with the same certificate.
    public_key text COLLATE "C" NOT NULL CHECK (public_key ~ '^[0-9a-f]{64}$'),
    csr bytea NOT NULL CHECK (length(csr) BETWEEN 1 AND 16384),
    gateway text NOT NULL CHECK (length(gateway) BETWEEN 1 AND 64),
    asked timestamptz NOT NULL DEFAULT now() CHECK (asked BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    expires timestamptz NOT NULL CHECK (expires BETWEEN '0001-01-01Z' AND '9999-12-31Z'),
    -- How often it was asked anew, after a refusal or its end.
    tries integer NOT NULL DEFAULT 1 CHECK (tries > 0),
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'issued', 'refused')),
    reason text,
    -- Refused for its key, which will never do.
    spent boolean NOT NULL DEFAULT false CHECK (NOT spent OR state = 'refused'),
    issued text COLLATE "C" REFERENCES certificates (fingerprint) ON DELETE CASCADE,
    -- What stands above the certificate in its chain, PEM.
    chain text,
    CHECK ((state = 'issued') = (issued IS NOT NULL)),
    CHECK ((state = 'issued') = (chain IS NOT NULL)),
    UNIQUE (device, public_key)
);
CREATE UNIQUE INDEX requests_one_waiting ON requests (device) WHERE state = 'waiting';
CREATE INDEX requests_waiting ON requests (id) WHERE state = 'waiting';
CREATE INDEX requests_asked ON requests (asked);
CREATE INDEX requests_certificate ON requests (certificate);
CREATE INDEX requests_issued ON requests (issued) WHERE issued IS NOT NULL;

-- What an issuer has decided. That a device has asked is none of a person's acts.
CREATE FUNCTION stage_request() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO audit_staged (devices, acts)
        VALUES (ARRAY[NEW.device], ARRAY[act_json(
            CASE NEW.state WHEN 'issued' THEN 'renewal.issue' ELSE 'renewal.refuse' END, NEW.device, NEW.device, NEW.reason, NULL,
            '{"certificate":"' || NEW.certificate || '","public_key":"' || NEW.public_key || '","gateway":' || json_text(NEW.gateway)
                || ',"asked":' || json_time(NEW.asked) || ',"issued":' || json_text(NEW.issued) || '}')]);
    RETURN NULL;
END $$;
CREATE TRIGGER stage_decision AFTER UPDATE ON requests FOR EACH ROW
    WHEN (OLD.state = 'waiting' AND NEW.state <> 'waiting') EXECUTE FUNCTION stage_request();

-- A gateway asks for a device: what has become of the request, and its id where there is one. `limited`: too often today.
CREATE FUNCTION request_renewal(
    certificate text, public_key text, csr bytea, gateway text, valid interval,
    OUT id bigint, OUT state text, OUT reason text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    held certificates;
    was requests;
BEGIN
    -- The device first, as everybody who adds to it does.
    PERFORM FROM devices d JOIN certificates c ON c.device = d.id
        WHERE c.fingerprint = request_renewal.certificate AND d.status = 'active' FOR UPDATE OF d;
    SELECT * INTO held FROM certificates c
        WHERE FOUND AND c.fingerprint = request_renewal.certificate
            AND (c.status = 'active' OR c.status = 'superseded' AND c.valid_until > now());
    IF held.fingerprint IS NULL THEN
        state := 'refused';
        reason := 'the certificate of this session does not hold any more';
        RETURN;
    END IF;
    SELECT * INTO was FROM requests r WHERE r.device = held.device AND r.public_key = request_renewal.public_key;
    id := was.id;
    IF was.state = 'issued' THEN
        IF EXISTS (SELECT FROM certificates c WHERE c.fingerprint = was.issued AND c.status = 'active' AND c.not_after > now()) THEN
            state := 'issued';
        ELSE
            state := 'spent';
            reason := 'the certificate of this key does not hold any more; make a new key';
        END IF;
        RETURN;
    ELSIF was.spent THEN
        state := 'spent';
        reason := was.reason;
        RETURN;
    ELSIF was.state = 'waiting' AND was.expires > now() THEN
        state := 'waiting';
        RETURN;
    END IF;
    -- Ten that an issuer has signed or has still to judge; a hundred in all, for a refusal may be somebody else's doing.
    IF (
        SELECT count(*) FILTER (WHERE r.state <> 'refused') >= 10 OR coalesce(sum(r.tries), 0) >= 100
        FROM requests r WHERE r.device = held.device AND r.asked > now() - interval '1 day'
    ) THEN
        state := 'limited';
        RETURN;
    END IF;
    UPDATE requests r SET state = 'refused', reason = 'the device has asked again with another key'
        WHERE r.device = held.device AND r.state = 'waiting' AND r.public_key <> request_renewal.public_key;
    INSERT INTO requests AS r (device, certificate, public_key, csr, gateway, expires)
        VALUES (held.device, held.fingerprint, request_renewal.public_key, request_renewal.csr, request_renewal.gateway,
            now() + greatest(least(valid, interval '7 days'), interval '1 minute'))
        ON CONFLICT ON CONSTRAINT requests_device_public_key_key DO UPDATE SET
            certificate = excluded.certificate, csr = excluded.csr, gateway = excluded.gateway, asked = now(),
            expires = excluded.expires, tries = r.tries + 1, state = 'waiting', reason = NULL, spent = false
        RETURNING r.id INTO id;
    state := 'waiting';
END $$;

-- An issuer's answer: the certificate, successor to that of the session that has asked. Why not, where it cannot be recorded.
CREATE FUNCTION issue_renewal(
    request bigint, fingerprint text, serial text, issuer text, der bytea,
    not_before timestamptz, not_after timestamptz, grace_seconds bigint, chain text
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    asked requests;
    held certificates;
BEGIN
    IF fingerprint IS DISTINCT FROM encode(sha256(der), 'hex') THEN
        RETURN 'the fingerprint is not that of the certificate';
    END IF;
    PERFORM FROM devices d JOIN requests r ON r.device = d.id WHERE r.id = request AND d.status = 'active' FOR UPDATE OF d;
    IF NOT FOUND THEN
        RETURN 'the device is not active';
    END IF;
    SELECT * INTO asked FROM requests r WHERE r.id = request AND r.state = 'waiting' AND r.expires > now() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'the request waits no longer';
    END IF;
    -- One that has ended may be renewed where a gateway lets its device in for that; a year is the longest it may.
    SELECT * INTO held FROM certificates c
        WHERE c.fingerprint = asked.certificate AND c.device = asked.device AND c.not_after > now() - interval '366 days'
            AND (c.status = 'active' OR c.status = 'superseded' AND c.valid_until > now());
    IF held.fingerprint IS NULL THEN
        RETURN 'the certificate that it renews does not hold any more';
    END IF;
    -- An earlier one that the device has been given and never shown, or it would have superseded this one: lost.
    UPDATE certificates c SET status = 'superseded', valid_until = now() + issue_renewal.grace_seconds * interval '1 second'
        WHERE c.renewed_from = held.fingerprint AND held.status = 'active' AND c.status = 'active'
            AND EXISTS (SELECT FROM requests r WHERE r.issued = c.fingerprint);
    INSERT INTO certificates (fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after, grace_seconds)
        VALUES (fingerprint, serial, issuer, der, asked.device, held.fingerprint, not_before, not_after, grace_seconds);
    UPDATE requests r SET state = 'issued', issued = issue_renewal.fingerprint, chain = issue_renewal.chain WHERE r.id = request;
    RETURN NULL;
END $$;

-- The gateway that has asked hears of it by the feed.
CREATE FUNCTION refuse_renewal(request bigint, why text, spent boolean) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    owner text;
BEGIN
    UPDATE requests r SET state = 'refused', reason = left(why, 256), spent = refuse_renewal.spent WHERE r.id = request AND r.state = 'waiting' RETURNING r.device INTO owner;
    IF owner IS NULL THEN
        RETURN false;
    END IF;
    INSERT INTO changes (kind, subject) VALUES ('device', owner);
    RETURN true;
END $$;

-- As in 0004; requests too, once they are of no more use.
CREATE OR REPLACE FUNCTION prune_history(before timestamptz, most bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    deleted_changes bigint;
    deleted_events bigint;
    deleted_requests bigint;
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
    DELETE FROM requests WHERE id IN (
        SELECT r.id FROM requests r WHERE r.asked < old_enough(before, interval '7 days') AND r.expires < now()
            -- As long as it may bring the same chain again.
            AND NOT EXISTS (SELECT FROM certificates c WHERE c.fingerprint = r.issued AND c.status = 'active' AND c.not_after > now())
            ORDER BY r.asked LIMIT most - deleted_changes - deleted_events FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS deleted_requests = ROW_COUNT;
    RETURN deleted_changes + deleted_events + deleted_requests;
END $$;

-- What many devices have shown: each a key version or a certificate. What is wrong with one keeps no other from being confirmed.
CREATE FUNCTION confirm_credentials(devices text[], versions integer[], certificates text[])
    RETURNS TABLE (done boolean, why text) LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    FOR i IN 1 .. coalesce(cardinality(devices), 0) LOOP
        BEGIN
            why := NULL;
            IF certificates[i] IS NULL THEN
                done := confirm_key(devices[i], versions[i]);
            ELSE
                done := confirm_certificate(certificates[i]);
            END IF;
        EXCEPTION WHEN SQLSTATE 'DW001' THEN
            done := NULL;
            why := SQLERRM;
        END;
        RETURN NEXT;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION stage_request, confirm_credentials, request_renewal, issue_renewal, refuse_renewal FROM PUBLIC;
GRANT SELECT ON requests TO doorward_gateway, doorward_issuer, doorward_operator;
GRANT EXECUTE ON FUNCTION request_renewal, confirm_credentials TO doorward_gateway;
GRANT EXECUTE ON FUNCTION issue_renewal, refuse_renewal TO doorward_issuer;

---- How late a device may come, for its fleet

-- As in 0006. None at all is a value here: it keeps a fleet from what its gateways allow.
CREATE OR REPLACE FUNCTION limits_hold(limits text) RETURNS boolean LANGUAGE sql IMMUTABLE SET search_path = doorward, pg_temp AS $$
    SELECT json_typeof(limits::json) = 'object' AND count(*) = count(DISTINCT name) AND coalesce(bool_and(
        json_typeof(value) = 'number' AND value::text ~ '^(0|[1-9][0-9]{0,7})$' AND CASE name
            WHEN 'rate_per_second' THEN value::text::integer BETWEEN 1 AND 1000000
            WHEN 'rate_burst' THEN value::text::integer BETWEEN 1 AND 1000000
            WHEN 'message_bytes' THEN value::text::integer BETWEEN 1024 AND 16777216
            WHEN 'renew_after_expiry' THEN value::text::integer <= 31536000
            ELSE false
        END), true)
    FROM json_each(CASE WHEN json_typeof(limits::json) = 'object' THEN limits::json ELSE '{}' END) AS members (name, value)
$$;
