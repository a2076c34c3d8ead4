-- A file has no roles: whoever may read and write it may do everything that its triggers let pass. The number is taken
-- so that both databases count the same versions.
SELECT 1;
