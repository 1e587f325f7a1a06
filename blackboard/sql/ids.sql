-- name: find_ids
-- At most two ids of a noun that begin or end with these digits. Locks nothing. Indexes: the primary keys.
SELECT id
FROM blackboard.find_ids(CAST(:session_id AS uuid), CAST(:noun AS text), CAST(:digits AS text)) AS found (id);
