-- A gateway writes what is alike as one row: how many they were, and from when to when.

-- Of a row from before, and of one that stands for a single event, it is `at`.
ALTER TABLE events ADD COLUMN since timestamptz CHECK (since BETWEEN '0001-01-01Z' AND '9999-12-31Z');
ALTER TABLE events ADD COLUMN count bigint NOT NULL DEFAULT 1 CHECK (count > 0);
