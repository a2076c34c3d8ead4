-- Keys and certificates that are rotated: how long the old one holds is the operator's to say, with the new one.

ALTER TABLE hmac_keys ADD COLUMN grace_seconds INTEGER NOT NULL DEFAULT 604800 CHECK (grace_seconds BETWEEN 0 AND 31622400);

-- How long the one that it was renewed from holds once a session by this one has been proven.
ALTER TABLE certificates ADD COLUMN grace_seconds INTEGER NOT NULL DEFAULT 604800 CHECK (grace_seconds BETWEEN 0 AND 31622400);
