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

-- name: list_claims
-- The claims, from one on, under which a lease holds tasks, and whose they are; one row. Index: tasks_leased.
SELECT CAST(coalesce(jsonb_agg(DISTINCT jsonb_build_array(claim_id, assigned_to)), '[]') AS text) AS claims
FROM blackboard.tasks
WHERE lease_id = CAST(:lease_id AS uuid) AND claim_id >= CAST(:since AS uuid);

-- name: return_claims
-- Hands back what a lease holds by these claims, on some of which somebody may have begun to work; how many tasks. Locks: the rows. Index: tasks_leased.
WITH held AS MATERIALIZED (
    SELECT session_id, assigned_to, array_agg(id ORDER BY id) AS ids, array_agg(claim_id ORDER BY id) AS claim_ids,
           array_agg(attempt ORDER BY id) AS attempts,
           array_agg(claim_id <> ALL (CAST(:begun AS uuid[])) ORDER BY id) AS unstarted
    FROM blackboard.tasks
    WHERE lease_id = CAST(:lease_id AS uuid) AND claim_id = ANY (CAST(:claim_ids AS uuid[]))
    GROUP BY session_id, assigned_to
    ORDER BY session_id)
SELECT count(*) AS returned
FROM held h
CROSS JOIN LATERAL blackboard.release_tasks(h.session_id, h.ids, h.claim_ids, h.attempts, CAST('{}' AS interval[]),
                                            CAST('{}' AS jsonb[]), h.assigned_to, h.unstarted) r;

-- name: return_reservation
-- Frees what was reserved, if it was and is neither settled nor released; of how many units.
-- Locks: the entries, then their budgets by id. Index: spend_unit_once.
SELECT count(*) AS returned
FROM (SELECT DISTINCT session_id, reservation_id
      FROM blackboard.spend
      WHERE session_id = CAST(:session_id AS uuid) AND reservation_id = CAST(:id AS uuid) AND status = 'reserved') s
CROSS JOIN LATERAL blackboard.release_budget(s.session_id, s.reservation_id, CAST(:actor AS text)) r;
