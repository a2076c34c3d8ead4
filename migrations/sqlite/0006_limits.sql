-- A fleet's limits are what every gateway can read: one value that is not would keep the whole fleet out.

CREATE TRIGGER fleets_limits_insert BEFORE INSERT ON fleets
WHEN (SELECT count(*) <> count(DISTINCT key) FROM json_each(NEW.limits)) OR EXISTS (
    SELECT 1 FROM json_each(NEW.limits) AS m WHERE m.type <> 'integer' OR CASE m.key
        WHEN 'rate_per_second' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'rate_burst' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'message_bytes' THEN m.value NOT BETWEEN 1024 AND 16777216
        ELSE 1
    END
)
BEGIN SELECT RAISE(ABORT, 'limits are rate_per_second and rate_burst (1 to 1000000) and message_bytes (1024 to 16777216)'); END;
CREATE TRIGGER fleets_limits_update BEFORE UPDATE OF limits ON fleets
WHEN (SELECT count(*) <> count(DISTINCT key) FROM json_each(NEW.limits)) OR EXISTS (
    SELECT 1 FROM json_each(NEW.limits) AS m WHERE m.type <> 'integer' OR CASE m.key
        WHEN 'rate_per_second' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'rate_burst' THEN m.value NOT BETWEEN 1 AND 1000000
        WHEN 'message_bytes' THEN m.value NOT BETWEEN 1024 AND 16777216
        ELSE 1
    END
)
BEGIN SELECT RAISE(ABORT, 'limits are rate_per_second and rate_burst (1 to 1000000) and message_bytes (1024 to 16777216)'); END;
