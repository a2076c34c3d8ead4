-- A gateway writes what is alike as one row: how many they were, and from when to when.

-- Of a row from before, and of one that stands for a single event, it is `at`.
ALTER TABLE events ADD COLUMN since TEXT
    CHECK (since GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]Z');
ALTER TABLE events ADD COLUMN count INTEGER NOT NULL DEFAULT 1 CHECK (count > 0);
