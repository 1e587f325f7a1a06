-- name: propose_action
-- Proposes an action, and with :vote opens the proposal that decides on it; the same id with the same content returns
-- it again. Locks: its own row; the proposal it names. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.propose_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:type AS text), CAST(:target AS text),
    CAST(CAST(:parameters AS text) AS jsonb), CAST(:requires_approval AS boolean), CAST(:approval AS text),
    CAST(:proposal_id AS uuid), CAST(:vote AS boolean), CAST(:vote_title AS text),
    CAST(CAST(:vote_body AS text) AS jsonb), CAST(:vote_rule AS text), CAST(:vote_threshold AS double precision),
    CAST(:vote_weighted AS boolean), CAST(:vote_min_turnout AS double precision), CAST(:vote_deadline AS interval),
    CAST(:vote_at_deadline AS text), CAST(:vote_electorate AS text[]));

-- name: approve_action
-- A named human approves. Locks: the action's row. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.approve_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:by AS text), CAST(:reason AS text), CAST(:actor AS text));

-- name: reject_action
-- A named human rejects. Locks: the action's row. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.reject_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:by AS text), CAST(:reason AS text));

-- name: start_action
-- The agent executes an approved action, or one whose executor's lease has lapsed; raises its token.
-- Locks: the action's row. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.start_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:lease_id AS uuid));

-- name: complete_action
-- Ends an execution under its token, with a result. Locks: the action's row. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.complete_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:token AS bigint),
    CAST(CAST(:result AS text) AS jsonb));

-- name: fail_action
-- Ends an execution under its token, with an error. Locks: the action's row. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.fail_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:token AS bigint),
    CAST(:error AS text));

-- name: keep_late_action
-- Keeps what an executor without a lease reported, as an event that changes nothing. Locks nothing.
SELECT blackboard.keep_late_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:token AS bigint),
    CAST(CAST(:result AS text) AS jsonb), CAST(:error AS text)) AS kept;

-- name: roll_back_action
-- Records that what the action did was undone. Locks: the action's row. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.roll_back_action(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:by AS text), CAST(:reason AS text));

-- name: get_action
-- One action; due deadlines are applied first. Locks: proposals whose deadline has passed. Index: actions_pkey.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.get_action(CAST(:session_id AS uuid), CAST(:id AS uuid));

-- name: list_actions
-- Newest first; awaiting_approval is the human inbox. Due deadlines are applied first.
-- Locks: proposals whose deadline has passed. Index: actions_newest, actions_status.
SELECT session_id, id, agent_id, type, target, CAST(parameters AS text) AS parameters, requires_approval, approval,
       proposal_id, status, vote_accepted, approved_by, rejected_by, approval_reason, executor, lease_id, token,
       CAST(result AS text) AS result, error, rolled_back_by, rollback_reason, created_at, decided_at, started_at,
       finished_at
FROM blackboard.list_actions(CAST(:session_id AS uuid), CAST(:status AS text), CAST(:limit AS integer))
ORDER BY created_at DESC, id DESC;
