-- A fleet's limits are what every gateway can read: one value that is not would keep the whole fleet out.

-- As JSON, not as jsonb: a number stands as it was written, and a member may stand there twice.
CREATE FUNCTION limits_hold(limits text) RETURNS boolean LANGUAGE sql IMMUTABLE SET search_path = doorward, pg_temp AS $$
    SELECT json_typeof(limits::json) = 'object' AND count(*) = count(DISTINCT name) AND coalesce(bool_and(
        json_typeof(value) = 'number' AND value::text ~ '^[1-9][0-9]{0,7}$' AND CASE name
            WHEN 'rate_per_second' THEN value::text::integer <= 1000000
            WHEN 'rate_burst' THEN value::text::integer <= 1000000
            WHEN 'message_bytes' THEN value::text::integer BETWEEN 1024 AND 16777216
            ELSE false
        END), true)
    FROM json_each(CASE WHEN json_typeof(limits::json) = 'object' THEN limits::json ELSE '{}' END) AS members (name, value)
$$;
REVOKE ALL ON FUNCTION limits_hold FROM PUBLIC;
GRANT EXECUTE ON FUNCTION limits_hold TO doorward_operator;
-- What stands there already is not judged: it is mended by 'doorward fleet limits'.
ALTER TABLE fleets ADD CONSTRAINT limits_hold CHECK (limits_hold(limits)) NOT VALID;
