-- Keys and certificates that are rotated: how long the old one holds is the operator's to say, with the new one.

ALTER TABLE hmac_keys ADD COLUMN grace_seconds bigint NOT NULL DEFAULT 604800 CHECK (grace_seconds BETWEEN 0 AND 31622400);

-- As in 0004, with the grace that was asked for.
CREATE OR REPLACE FUNCTION confirm_key(device text, version integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    was hmac_keys;
BEGIN
    PERFORM FROM devices d WHERE d.id = confirm_key.device AND d.status = 'active' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no active device ''%''', device USING ERRCODE = 'DW001';
    END IF;
    SELECT * INTO was FROM hmac_keys k WHERE k.device = confirm_key.device AND k.version = confirm_key.version;
    IF was.state = 'active' THEN
        RETURN false;
    ELSIF was.state IS DISTINCT FROM 'pending' THEN
        RAISE EXCEPTION 'key % of device ''%'' is not pending but %', version, device, coalesce(was.state, 'unknown')
            USING ERRCODE = 'DW001';
    END IF;
    UPDATE hmac_keys k SET state = 'grace', grace_until = now() + was.grace_seconds * interval '1 second'
        WHERE k.device = confirm_key.device AND k.state = 'active';
    UPDATE hmac_keys k SET state = 'active' WHERE k.device = confirm_key.device AND k.version = confirm_key.version;
    RETURN true;
END $$;

-- How long the one that it was renewed from holds once a session by this one has been proven.
ALTER TABLE certificates ADD COLUMN grace_seconds bigint NOT NULL DEFAULT 604800 CHECK (grace_seconds BETWEEN 0 AND 31622400);

-- A session by this certificate has been proven: those that it was renewed from are superseded, and their grace begins.
CREATE FUNCTION confirm_certificate(fingerprint text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = doorward, pg_temp AS $$
DECLARE
    proven certificates;
BEGIN
    PERFORM FROM devices d JOIN certificates c ON c.device = d.id
        WHERE c.fingerprint = confirm_certificate.fingerprint AND d.status = 'active' FOR UPDATE OF d;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no certificate % of an active device', fingerprint USING ERRCODE = 'DW001';
    END IF;
    SELECT * INTO proven FROM certificates c WHERE c.fingerprint = confirm_certificate.fingerprint;
    IF proven.status <> 'active' THEN
        RAISE EXCEPTION 'certificate % is not active but %', proven.serial, proven.status USING ERRCODE = 'DW001';
    END IF;
    WITH RECURSIVE line AS (
        SELECT proven.renewed_from AS fingerprint
        UNION SELECT c.renewed_from FROM certificates c JOIN line l ON c.fingerprint = l.fingerprint
    )
    UPDATE certificates c SET status = 'superseded', valid_until = now() + proven.grace_seconds * interval '1 second'
        FROM line l WHERE c.fingerprint = l.fingerprint AND c.device = proven.device AND c.status = 'active';
    RETURN FOUND;
END $$;
REVOKE ALL ON FUNCTION confirm_certificate FROM PUBLIC;
GRANT EXECUTE ON FUNCTION confirm_certificate TO doorward_gateway;
