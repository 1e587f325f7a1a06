-- name: set_budget
-- Sets a budget and returns it. Locks: the session's budgets lock, the row.
SELECT b.session_id, b.id, b.scope, b.agent_id, b.task_id, b.unit, b.currency, b.ceiling, b.soft, b.period AS window,
       b.window_start, b.window_start + make_interval(secs => CAST(extract(epoch FROM b.period) AS float8)) AS resets_at,
       b.reserved, b.spent, b.opening,
       b.ceiling - b.spent - b.reserved AS remaining, b.created_by, b.created_at
FROM blackboard.set_budget(
    CAST(:session_id AS uuid), CAST(:unit AS text), CAST(:ceiling AS numeric), CAST(:soft AS numeric),
    CAST(:window AS interval), CAST(:currency AS text), CAST(:agent_id AS text), CAST(:task_id AS uuid),
    CAST(:actor AS text)) b;

-- name: remove_budget
-- Takes a budget away; the ledger stays. Locks: the row.
SELECT blackboard.remove_budget(
    CAST(:session_id AS uuid), CAST(:unit AS text), CAST(:agent_id AS text), CAST(:task_id AS uuid),
    CAST(:actor AS text)) AS removed;

-- name: list_budgets
-- The budgets of a session: its own first, then by agent, then by task. A window that is over counts as empty.
SELECT b.session_id, b.id, b.scope, b.agent_id, b.task_id, b.unit, b.currency, b.ceiling, b.soft, b.period AS window,
       CASE WHEN b.period IS NOT NULL
            THEN greatest(b.window_start, blackboard.budget_window(b.period, blackboard.now())) END AS window_start,
       CASE WHEN b.period IS NOT NULL
            THEN greatest(b.window_start, blackboard.budget_window(b.period, blackboard.now()))
                 + make_interval(secs => CAST(extract(epoch FROM b.period) AS float8))
       END AS resets_at,
       b.reserved, blackboard.budget_spent(b) AS spent,
       CASE WHEN blackboard.budget_spent(b) < b.spent THEN 0 ELSE b.opening END AS opening,
       b.ceiling - blackboard.budget_spent(b) - b.reserved AS remaining, b.created_by, b.created_at
FROM blackboard.budgets b
WHERE b.session_id = CAST(:session_id AS uuid)
ORDER BY array_position(ARRAY['session', 'agent', 'task'], b.scope), b.agent_id, b.task_id, b.unit;

-- name: reserve_budget
-- Reserves against every budget that applies, or raises BB014. Locks: those budgets by id.
SELECT session_id, id, reservation_id, agent_id, task_id, unit, currency, reserved, settled, status, budget_ids, model,
       note, at, settled_at, lease_id, expires_at
FROM blackboard.reserve_budget(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:task_id AS uuid),
    CAST(:units AS text[]), CAST(:amounts AS numeric[]), CAST(:currency AS text), CAST(:model AS text),
    CAST(:note AS text), CAST(:lease_id AS uuid));

-- name: settle_budget
-- Records what was really spent. Locks: the entries, then their budgets by id.
SELECT session_id, id, reservation_id, agent_id, task_id, unit, currency, reserved, settled, status, budget_ids, model,
       note, at, settled_at, lease_id, expires_at
FROM blackboard.settle_budget(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:units AS text[]), CAST(:amounts AS numeric[]),
    CAST(:currency AS text), CAST(:model AS text), CAST(:note AS text), CAST(:actor AS text));

-- name: release_budget
-- Frees what was reserved. Locks: the entries, then their budgets by id.
SELECT session_id, id, reservation_id, agent_id, task_id, unit, currency, reserved, settled, status, budget_ids, model,
       note, at, settled_at, lease_id, expires_at
FROM blackboard.release_budget(CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:actor AS text));

-- name: expire_reservations
-- Frees what silent processes hold, up to limit entries. Locks: those, then their budgets by id.
SELECT blackboard.expire_reservations(CAST(:session_id AS uuid), CAST(:limit AS integer)) AS expired;

-- name: refuse_budget
-- Writes budget.refused: the refusal itself took back everything of its transaction.
SELECT blackboard.refuse_budget(
    CAST(:session_id AS uuid), CAST(:agent_id AS text), CAST(CAST(:facts AS text) AS jsonb)) AS written;

-- name: get_reservation
-- The entries of one reservation. Index: spend_unit_once.
SELECT session_id, id, reservation_id, agent_id, task_id, unit, currency, reserved, settled, status, budget_ids, model,
       note, at, settled_at, lease_id, expires_at
FROM blackboard.spend
WHERE session_id = CAST(:session_id AS uuid) AND reservation_id = CAST(:id AS uuid)
ORDER BY unit;

-- name: list_ledger
-- The newest entries first; NULL means any. Index: spend_at.
SELECT session_id, id, reservation_id, agent_id, task_id, unit, currency, reserved, settled, status, budget_ids, model,
       note, at, settled_at, lease_id, expires_at
FROM blackboard.spend
WHERE session_id = CAST(:session_id AS uuid)
  AND (CAST(:agent_id AS text) IS NULL OR agent_id = CAST(:agent_id AS text))
  AND (CAST(:task_id AS uuid) IS NULL OR task_id = CAST(:task_id AS uuid))
  AND (CAST(:status AS text) IS NULL OR status = CAST(:status AS text))
ORDER BY at DESC, id
LIMIT CAST(:limit AS integer);

-- name: report_usage
-- The ledger summed over the session, its agents, tasks and models, in each unit.
SELECT CASE grouping(s.agent_id, s.task_id, s.model) WHEN 7 THEN 'totals' WHEN 3 THEN 'agents' WHEN 5 THEN 'tasks'
            ELSE 'models' END AS part,
       CASE grouping(s.agent_id, s.task_id, s.model) WHEN 3 THEN s.agent_id WHEN 5 THEN CAST(s.task_id AS text)
            WHEN 6 THEN s.model END AS key,
       s.unit, s.currency, coalesce(sum(s.reserved) FILTER (WHERE s.status = 'reserved'), 0) AS reserved,
       coalesce(sum(s.settled), 0) AS spent, count(*) AS reservations
FROM blackboard.spend s
WHERE s.session_id = CAST(:session_id AS uuid)
GROUP BY GROUPING SETS ((s.unit, s.currency), (s.agent_id, s.unit, s.currency), (s.task_id, s.unit, s.currency),
                        (s.model, s.unit, s.currency))
ORDER BY part, s.unit, s.currency, spent DESC, key;

-- name: over_budget
-- Whether the agent's work on the task has a budget that is used up.
SELECT blackboard.over_budget(CAST(:session_id AS uuid), CAST(:agent_id AS text), CAST(:task_id AS uuid)) AS over;

-- name: report_time
-- The server's time.
SELECT blackboard.now() AS at;
