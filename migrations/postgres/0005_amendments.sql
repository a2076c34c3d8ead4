-- What use has taught about the first four.

---- Bulk issuing

-- As in 0001, but each row looks its device up by the index: a plan that reads `devices` whole would make every batch
-- dearer than the one before. And where very many are issued to just the devices that one statement of this transaction
-- has added, which is what bulk issuing does, nothing is looked up at all: their change rows are there.
CREATE OR REPLACE FUNCTION note_owners() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = doorward, pg_temp SET enable_seqscan = off AS $$
BEGIN
    IF TG_OP = 'INSERT' AND (SELECT count(*) FROM touched) >= 100 AND EXISTS (
        SELECT FROM audit_staged s
        WHERE s.xid = pg_current_xact_id() AND s.kind = 'device.add'
            AND s.devices = (SELECT array_agg(t.device ORDER BY t.device) FROM touched t)
    ) THEN
        RETURN NULL;
    END IF;
    INSERT INTO changes (kind, subject)
        SELECT DISTINCT 'device', t.device FROM touched t
        WHERE (SELECT d.xmin = pg_current_xact_id()::xid FROM devices d WHERE d.id = t.device) IS NOT TRUE
        ORDER BY t.device;
    RETURN NULL;
END $$;

-- As in 0003, with a short way for what bulk issuing does.
-- Nothing is known of how many acts there are: a nested loop would be quadratic in them, and compiling takes longer.
CREATE OR REPLACE FUNCTION seal_audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = doorward, pg_temp SET enable_nestloop = off SET jit = off AS $$
DECLARE
    kinds text[];
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
    -- A device's first certificate and key are part of its being added: one row, not three.
    SELECT array_agg(s.kind ORDER BY s.n) INTO kinds FROM audit_staged s WHERE s.xid = NEW.xid;
    IF kinds = '{device.add,certificate.add,key.add}' THEN
        -- Three statements about the same devices, each with one row for each of them, in one order: nothing is looked for.
        SELECT array_fill(d.at, ARRAY[cardinality(d.devices)]), (
                   SELECT array_agg(d.lead || left(a.act, -2) || ',"certificates":[' || a.certificate || '],"keys":[' || a.key || ']}}')
                   FROM (SELECT unnest(d.acts) AS act, unnest(c.pieces) AS certificate, unnest(k.pieces) AS key) AS a
               )
            INTO times, bodies
            FROM (
                SELECT s.at, s.devices, s.acts,
                       '{"at":' || json_time(s.at) || ',"actor":' || json_text(s.actor) || ',"role":' || json_text(s.role) || ',' AS lead
                FROM audit_staged s WHERE s.xid = NEW.xid AND s.kind = 'device.add' OFFSET 0
            ) AS d, audit_staged c, audit_staged k
            WHERE c.xid = NEW.xid AND c.kind = 'certificate.add' AND c.devices = d.devices
                AND k.xid = NEW.xid AND k.kind = 'key.add' AND k.devices = d.devices;
    END IF;
    IF bodies IS NULL THEN
        -- One that was added twice in this transaction has a row for each.
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
    END IF;
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

---- Whose row a gateway's row is

-- The login role that wrote it last; none for a row from before, which the first gateway to report in it then has.
ALTER TABLE gateways ADD COLUMN owner text;
ALTER TABLE gateways ALTER COLUMN owner SET DEFAULT session_user;

-- A gateway cannot say another owner. Whom row security does not bind (the tables' owner, a superuser) may mend a row by
-- hand, and it stays whose it was.
CREATE FUNCTION own_gateway() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF row_security_active('doorward.gateways') THEN
        NEW.owner := session_user;
    END IF;
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION own_gateway FROM PUBLIC;
CREATE TRIGGER own BEFORE INSERT OR UPDATE ON gateways FOR EACH ROW EXECUTE FUNCTION own_gateway();

-- A promise is its maker's: nobody else confirms for him, prolongs it or signs him off. When its time is over the name is
-- free. Everybody who may read the table reads all of it.
ALTER TABLE gateways ENABLE ROW LEVEL SECURITY;
CREATE POLICY read ON gateways FOR SELECT USING (true);
CREATE POLICY enrol ON gateways FOR INSERT TO doorward_gateway WITH CHECK (owner = session_user);
CREATE POLICY own ON gateways FOR UPDATE TO doorward_gateway
    USING (owner IS NULL OR owner = session_user OR signed_off IS NOT NULL OR heartbeat + may_serve < now())
    WITH CHECK (owner = session_user);
CREATE POLICY remove ON gateways FOR DELETE TO doorward_operator USING (true);

---- Takeovers

-- As in 0002; the subject names also where the newer session comes from, for the gateway that loses the older one.
CREATE OR REPLACE FUNCTION note_takeover() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
BEGIN
    INSERT INTO changes (kind, subject) VALUES ('takeover', OLD.device || '/' || OLD.session || '/' || NEW.peer);
    RETURN NULL;
END $$;
