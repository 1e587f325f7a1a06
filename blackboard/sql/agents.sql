-- name: join_session
-- Registers the agent and makes it a member; NULL leaves what is declared already.
-- Locks: the agent's row, then the membership's.
SELECT id, session_id, capabilities, CAST(expertise AS text) AS expertise, capacity, role, trust, vote_weight, lease_id,
       present, joined_at, left_at
FROM blackboard.join_session(
    CAST(:session_id AS uuid), CAST(:agent_id AS text), CAST(:capabilities AS text[]),
    CAST(CAST(:expertise AS text) AS jsonb), CAST(:capacity AS integer), CAST(:role AS text),
    CAST(:vote_weight AS double precision), CAST(:lease_id AS uuid));

-- name: join_sessions
-- Registers the agent and makes it a member of all these sessions; NULL leaves what is declared already.
-- Locks: the agent's row, then the memberships by session.
SELECT id, session_id, capabilities, CAST(expertise AS text) AS expertise, capacity, role, trust, vote_weight, lease_id,
       present, joined_at, left_at
FROM blackboard.join_sessions(
    CAST(:session_ids AS uuid[]), CAST(:agent_id AS text), CAST(:capabilities AS text[]), CAST(:lease_id AS uuid));

-- name: leave_session
-- Ends the membership; what the agent holds stays under its process's lease.
SELECT session_id, agent_id, left_at
FROM blackboard.leave_session(CAST(:session_id AS uuid), CAST(:agent_id AS text));

-- name: get_agent
-- One member. Index: memberships_pkey.
SELECT id, session_id, capabilities, CAST(expertise AS text) AS expertise, capacity, role, trust, vote_weight, lease_id,
       present, joined_at, left_at
FROM blackboard.members
WHERE session_id = CAST(:session_id AS uuid) AND id = CAST(:agent_id AS text);

-- name: list_agents
-- The members in order of joining; optionally only those that offer a capability.
SELECT id, session_id, capabilities, CAST(expertise AS text) AS expertise, capacity, role, trust, vote_weight, lease_id,
       present, joined_at, left_at
FROM blackboard.members
WHERE session_id = CAST(:session_id AS uuid)
  AND (CAST(:capability AS text) IS NULL OR capabilities @> ARRAY[CAST(:capability AS text)])
ORDER BY joined_at, id;
