-- The audit: every act of a person, by command or at psql, one row in the act's own transaction.
--
-- hash = SHA-256(hash of the row before, 32 zero bytes for the first || body in UTF-8). A body is the exact JSON text; it
-- names keys by version and certificates by serial and fingerprint, and never holds a sealed key or a certificate.
--
-- A statement only notes what it did (`audit_staged`). The chain grows once a transaction, at its very end: whoever holds
-- the head has all other locks already, so an act never waits for one that idles, and no two wait for each other.

CREATE TABLE audit (
    -- 1, 2, 3: the place in the chain.
    id bigint PRIMARY KEY CHECK (id > 0),
    at timestamptz NOT NULL,
    body text NOT NULL,
    hash bytea NOT NULL CHECK (length(hash) = 32)
);
CREATE INDEX audit_at ON audit USING brin (at);

CREATE TABLE audit_head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    count bigint NOT NULL DEFAULT 0,
    hash bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (length(hash) = 32)
);
INSERT INTO audit_head DEFAULT VALUES;

-- What a transaction has done so far, a row a statement; nothing of it is left when the transaction ends, so nothing of
-- it needs a log. The arrays have an element for each act. It is all text: bulk issuing waits for this.
CREATE UNLOGGED TABLE audit_staged (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    n bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp()),
    -- Who says that it is he: commands set it for their transaction.
    actor text NOT NULL DEFAULT coalesce(nullif(left(current_setting('doorward.actor', true), 256), ''), 'sql'),
    -- Who it is: no SET ROLE and no SECURITY DEFINER changes it.
    role text NOT NULL DEFAULT session_user,
    -- Where all of the statement's acts are of one kind that matters below.
    kind text CHECK (kind IN ('device.add', 'certificate.add', 'key.add')),
    devices text[] NOT NULL,
    -- The rest of a body: from its action on, up to its end, which is that of `after`.
    acts text[],
    -- Or, for what is issued: its name and what it is, of which an act is made unless it is part of a device's adding.
    subjects text[],
    pieces text[],
    PRIMARY KEY (xid, n)
);
ALTER TABLE audit_staged
    ALTER devices SET STORAGE EXTERNAL, ALTER acts SET STORAGE EXTERNAL,
    ALTER subjects SET STORAGE EXTERNAL, ALTER pieces SET STORAGE EXTERNAL;

---- What was done, as JSON. Ids, serials, fingerprints and states need no escaping: their columns have checks.

CREATE FUNCTION json_text(value text) RETURNS text LANGUAGE sql STABLE AS $$ SELECT coalesce(to_json(value)::text, 'null') $$;
CREATE FUNCTION json_time(value timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce(left(to_json(value AT TIME ZONE 'UTC')::text, -1) || 'Z"', 'null')
$$;
CREATE FUNCTION act_json(action text, subject text, device text, reason text, before text, after text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT '"action":"' || action || '","subject":"' || subject || '","device":' || coalesce('"' || device || '"', 'null')
        || ',"reason":' || json_text(reason) || ',"before":' || coalesce(before, 'null') || ',"after":' || coalesce(after, 'null') || '}'
$$;
CREATE FUNCTION device_json(fleet text, status text, reason text, attributes jsonb) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT '{"fleet":"' || fleet || '","status":"' || status || '","reason":' || json_text(reason) || ',"attributes":' || attributes::text || '}'
$$;
-- What never changes of a certificate is found by its fingerprint.
CREATE FUNCTION certificate_json(
    serial text, fingerprint text, not_after timestamptz, status text, valid_until timestamptz, reason text
) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT '{"serial":"' || serial || '","fingerprint":"' || fingerprint || '","not_after":' || json_time(not_after)
        || ',"status":"' || status || '","valid_until":' || json_time(valid_until) || ',"reason":' || json_text(reason) || '}'
$$;
CREATE FUNCTION key_json(version integer, state text, grace_until timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT '{"version":' || version || ',"state":"' || state || '","grace_until":' || json_time(grace_until) || '}'
$$;

CREATE FUNCTION stage_device() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit_staged (kind, devices, acts)
            SELECT 'device.add', array_agg(id), array_agg(act)
            FROM (
                SELECT id, act_json('device.add', id, id, reason, NULL, device_json(fleet, status, reason, attributes)) AS act
                FROM after ORDER BY id
            ) AS done
            HAVING count(*) > 0;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO audit_staged (devices, acts)
            SELECT array_agg(id), array_agg(act)
            FROM (
                SELECT id, act_json('device.delete', id, id, NULL, device_json(fleet, status, reason, attributes), NULL) AS act
                FROM before ORDER BY id
            ) AS done
            HAVING count(*) > 0;
    ELSE
        INSERT INTO audit_staged (devices, acts)
            SELECT array_agg(id), array_agg(act)
            FROM (
                SELECT a.id,
                       act_json(
                           CASE
                               WHEN a.status = b.status AND a.fleet = b.fleet THEN 'device.update'
                               WHEN a.status = b.status THEN 'device.move'
                               WHEN a.status = 'active' THEN 'device.resume'
                               WHEN a.status = 'suspended' THEN 'device.suspend'
                               ELSE 'device.revoke'
                           END, a.id, a.id, a.reason,
                           device_json(b.fleet, b.status, b.reason, b.attributes),
                           device_json(a.fleet, a.status, a.reason, a.attributes)) AS act
                FROM before b JOIN after a ON a.id = b.id
                WHERE (a.fleet, a.status, a.reason, a.attributes) IS DISTINCT FROM (b.fleet, b.status, b.reason, b.attributes)
                ORDER BY a.id
            ) AS done
            HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER stage_insert AFTER INSERT ON devices REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION stage_device();
CREATE TRIGGER stage_update AFTER UPDATE ON devices REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION stage_device();
CREATE TRIGGER stage_delete AFTER DELETE ON devices REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION stage_device();

CREATE FUNCTION stage_certificate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit_staged (kind, devices, subjects, pieces)
            SELECT 'certificate.add', array_agg(device), array_agg(serial), array_agg(piece)
            FROM (
                SELECT serial, device, certificate_json(serial, fingerprint, not_after, status, valid_until, reason) AS piece
                FROM after ORDER BY device, fingerprint
            ) AS done
            HAVING count(*) > 0;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO audit_staged (devices, acts)
            SELECT array_agg(device), array_agg(act)
            FROM (
                SELECT device,
                       act_json('certificate.delete', serial, device, NULL,
                           certificate_json(serial, fingerprint, not_after, status, valid_until, reason),
                           NULL) AS act
                FROM before ORDER BY device, fingerprint
            ) AS done
            HAVING count(*) > 0;
    ELSE
        INSERT INTO audit_staged (devices, acts)
            SELECT array_agg(device), array_agg(act)
            FROM (
                SELECT a.device,
                       act_json(
                           CASE
                               WHEN a.status = b.status OR a.status = 'active' THEN 'certificate.update'
                               WHEN a.status = 'revoked' THEN 'certificate.revoke'
                               ELSE 'certificate.supersede'
                           END, a.serial, a.device, a.reason,
                           certificate_json(b.serial, b.fingerprint, b.not_after, b.status, b.valid_until, b.reason),
                           certificate_json(a.serial, a.fingerprint, a.not_after, a.status, a.valid_until, a.reason)) AS act
                FROM before b JOIN after a ON a.fingerprint = b.fingerprint
                WHERE (a.status, a.valid_until, a.reason) IS DISTINCT FROM (b.status, b.valid_until, b.reason)
                ORDER BY a.device, a.fingerprint
            ) AS done
            HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER stage_insert AFTER INSERT ON certificates REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION stage_certificate();
CREATE TRIGGER stage_update AFTER UPDATE ON certificates REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION stage_certificate();
CREATE TRIGGER stage_delete AFTER DELETE ON certificates REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION stage_certificate();

CREATE FUNCTION stage_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit_staged (kind, devices, subjects, pieces)
            SELECT 'key.add', array_agg(device), array_agg(version::text), array_agg(piece)
            FROM (
                SELECT device, version, key_json(version, state, grace_until) AS piece FROM after ORDER BY device, version
            ) AS done
            HAVING count(*) > 0;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO audit_staged (devices, acts)
            SELECT array_agg(device), array_agg(act)
            FROM (
                SELECT device, act_json('key.delete', version::text, device, NULL, key_json(version, state, grace_until), NULL) AS act
                FROM before ORDER BY device, version
            ) AS done
            HAVING count(*) > 0;
    ELSE
        INSERT INTO audit_staged (devices, acts)
            SELECT array_agg(device), array_agg(act)
            FROM (
                SELECT a.device,
                       act_json(
                           CASE
                               WHEN a.sealed <> b.sealed THEN 'key.reseal'
                               WHEN a.state = b.state OR a.state = 'pending' THEN 'key.update'
                               WHEN a.state = 'active' THEN 'key.confirm'
                               WHEN a.state = 'grace' THEN 'key.supersede'
                               ELSE 'key.retire'
                           END, a.version::text, a.device, NULL,
                           key_json(b.version, b.state, b.grace_until), key_json(a.version, a.state, a.grace_until)) AS act
                FROM before b JOIN after a ON a.device = b.device AND a.version = b.version
                WHERE (a.state, a.grace_until, a.sealed) IS DISTINCT FROM (b.state, b.grace_until, b.sealed)
                ORDER BY a.device, a.version
            ) AS done
            HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER stage_insert AFTER INSERT ON hmac_keys REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION stage_key();
CREATE TRIGGER stage_update AFTER UPDATE ON hmac_keys REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION stage_key();
CREATE TRIGGER stage_delete AFTER DELETE ON hmac_keys REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION stage_key();

CREATE FUNCTION stage_fleet() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    before text := CASE WHEN TG_OP <> 'INSERT' THEN '{"policy":' || OLD.policy::jsonb::text || ',"limits":' || OLD.limits::jsonb::text || '}' END;
    after text := CASE WHEN TG_OP <> 'DELETE' THEN '{"policy":' || NEW.policy::jsonb::text || ',"limits":' || NEW.limits::jsonb::text || '}' END;
    action text := CASE
        WHEN TG_OP = 'INSERT' THEN 'fleet.add'
        WHEN TG_OP = 'DELETE' THEN 'fleet.delete'
        WHEN NEW.policy <> OLD.policy THEN 'fleet.policy'
        WHEN NEW.limits <> OLD.limits THEN 'fleet.limits'
        ELSE 'fleet.update'
    END;
BEGIN
    INSERT INTO audit_staged (devices, acts)
        VALUES ('{NULL}', ARRAY[act_json(action, CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END, NULL, NULL, before, after)]);
    RETURN NULL;
END $$;
CREATE TRIGGER stage AFTER INSERT OR DELETE ON fleets FOR EACH ROW EXECUTE FUNCTION stage_fleet();
CREATE TRIGGER stage_update AFTER UPDATE ON fleets FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION stage_fleet();

-- Whatever the subject is: nothing checks it.
CREATE FUNCTION stage_kick() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    subject text := substr(json_text(NEW.subject), 2, length(json_text(NEW.subject)) - 2);
BEGIN
    INSERT INTO audit_staged (devices, acts)
        VALUES (ARRAY[NEW.subject], ARRAY[act_json('device.kick', subject, subject, NULL, NULL, NULL)]);
    RETURN NULL;
END $$;
CREATE TRIGGER stage_kick AFTER INSERT ON changes FOR EACH ROW WHEN (NEW.kind = 'kick') EXECUTE FUNCTION stage_kick();

-- Its own row a gateway writes itself; that it counts no more, a person says.
CREATE FUNCTION stage_gateway() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    subject text := substr(json_text(OLD.name), 2, length(json_text(OLD.name)) - 2);
BEGIN
    INSERT INTO audit_staged (devices, acts)
        VALUES ('{NULL}', ARRAY[act_json('gateway.remove', subject, NULL, NULL,
            '{"version":' || json_text(OLD.version) || ',"address":' || json_text(OLD.address) || ',"heartbeat":' || json_time(OLD.heartbeat)
                || ',"signed_off":' || json_time(OLD.signed_off) || '}', NULL)]);
    RETURN NULL;
END $$;
CREATE TRIGGER stage_delete AFTER DELETE ON gateways FOR EACH ROW EXECUTE FUNCTION stage_gateway();

---- The chain

-- Nothing is known of how many acts there are: a nested loop would be quadratic in them, and compiling takes longer.
CREATE FUNCTION seal_audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = doorward, pg_temp SET enable_nestloop = off SET jit = off AS $$
DECLARE
    head audit_head;
    times timestamptz[];
    bodies text[];
    hashes bytea[] := '{}';
    body text;
    hash bytea;
BEGIN
    -- The first of a transaction's statements takes all of them.
    IF NOT EXISTS (SELECT FROM audit_staged WHERE xid = NEW.xid AND n = NEW.n) THEN
        RETURN NULL;
    END IF;
    -- A device's first certificate and key are part of its being added: one row, not three. One that was added twice in
    -- this transaction has a row for each.
    WITH staged AS MATERIALIZED (
        SELECT s.n, s.at, s.kind, s.devices, s.acts, s.subjects, s.pieces,
               '{"at":' || json_time(s.at) || ',"actor":' || json_text(s.actor) || ',"role":' || json_text(s.role) || ',' AS lead
        FROM audit_staged s WHERE s.xid = NEW.xid
    ), done AS MATERIALIZED (
        SELECT s.n, a.place, s.at, s.kind, s.lead, a.device, a.act, a.subject, a.piece
        FROM staged s, unnest(s.devices, s.acts, s.subjects, s.pieces) WITH ORDINALITY AS a (device, act, subject, piece, place)
    ), added AS (
        SELECT device, min(n) AS n FROM done WHERE kind = 'device.add' GROUP BY device HAVING count(*) = 1
    ), issued AS (
        SELECT i.device, string_agg(i.piece, ',') FILTER (WHERE i.kind = 'certificate.add') AS certificates,
               string_agg(i.piece, ',') FILTER (WHERE i.kind = 'key.add') AS keys
        FROM done i JOIN added USING (device)
        WHERE i.piece IS NOT NULL AND i.n > added.n
        GROUP BY i.device
    ), merged AS (
        SELECT done.at,
               CASE
                   WHEN done.kind = 'device.add' AND issued.device IS NOT NULL THEN
                       done.lead || left(done.act, -2) || coalesce(',"certificates":[' || issued.certificates || ']', '')
                           || coalesce(',"keys":[' || issued.keys || ']', '') || '}}'
                   ELSE done.lead || coalesce(done.act, act_json(done.kind, done.subject, done.device, NULL, NULL, done.piece))
               END AS body
        FROM done LEFT JOIN added USING (device) LEFT JOIN issued USING (device)
        WHERE done.piece IS NULL OR coalesce(added.n > done.n, true)
        ORDER BY done.n, done.place
    )
    SELECT array_agg(merged.at), array_agg(merged.body) INTO times, bodies FROM merged;
    DELETE FROM audit_staged WHERE xid = NEW.xid;

    SELECT * INTO STRICT head FROM audit_head FOR UPDATE;
    hash := head.hash;
    FOREACH body IN ARRAY bodies LOOP
        hash := sha256(hash || convert_to(body, 'UTF8'));
        hashes := array_append(hashes, hash);
    END LOOP;
    INSERT INTO audit (id, at, body, hash)
        SELECT head.count + r.place, r.at, r.body, r.hash
        FROM unnest(times, bodies, hashes) WITH ORDINALITY AS r (at, body, hash, place);
    UPDATE audit_head h SET count = h.count + cardinality(bodies), hash = hashes[cardinality(hashes)];
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER seal AFTER INSERT ON audit_staged DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION seal_audit();

---- What never changes, whoever asks

CREATE FUNCTION keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is refused on table %: the audit is written by acts alone and never changes', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'DW001';
END $$;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE OR TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION keep_audit();
-- At depth 0 somebody writes by hand; the triggers above write from within.
CREATE TRIGGER keep_insert BEFORE INSERT ON audit FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION keep_audit();
CREATE TRIGGER keep BEFORE INSERT OR DELETE OR TRUNCATE ON audit_head FOR EACH STATEMENT EXECUTE FUNCTION keep_audit();
CREATE TRIGGER keep_update BEFORE UPDATE ON audit_head FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION keep_audit();
CREATE TRIGGER keep BEFORE TRUNCATE ON audit_staged FOR EACH STATEMENT EXECUTE FUNCTION keep_audit();
CREATE TRIGGER keep_rows BEFORE INSERT OR UPDATE OR DELETE ON audit_staged FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION keep_audit();
