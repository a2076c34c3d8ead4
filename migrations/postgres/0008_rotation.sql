-- Keys that are rotated: how long the old one holds is the operator's to say, with the new one.

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
