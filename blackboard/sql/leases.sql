-- name: start_lease
-- A lease of one process; the same id from the same process returns it again.
SELECT id, host, pid, term, started_at, expires_at, lapsed_at
FROM blackboard.start_lease(
    CAST(:id AS uuid), CAST(:host AS text), CAST(:pid AS integer), CAST(:term AS interval));

-- name: end_lease
-- Lapses the lease at once: what it holds goes back with the next claim.
SELECT blackboard.end_lease(CAST(:id AS uuid)) AS ended;

-- name: get_lease
-- One lease. Index: leases_pkey.
SELECT id, host, pid, term, started_at, expires_at, lapsed_at
FROM blackboard.leases
WHERE id = CAST(:id AS uuid);

-- name: move_presence
-- The agents that were present under a lapsed lease are so under its successor. Locks: their memberships.
UPDATE blackboard.memberships
SET lease_id = CAST(:new_id AS uuid)
WHERE lease_id = CAST(:old_id AS uuid) AND left_at IS NULL
RETURNING session_id, agent_id;
