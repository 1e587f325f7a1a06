-- name: join_session
-- Registers the agent and makes it a member; NULL leaves what is declared already.
-- Locks: the agent's row, then the membership's.
SELECT a.id, m.session_id, a.capabilities, CAST(a.expertise AS text) AS expertise, a.capacity, m.role, a.trust,
       m.vote_weight, m.lease_id, m.lease_id IS NOT NULL AS present, m.joined_at, m.left_at
FROM blackboard.join_session(
    CAST(:session_id AS uuid), CAST(:agent_id AS text), CAST(:capabilities AS text[]),
    CAST(CAST(:expertise AS text) AS jsonb), CAST(:capacity AS integer), CAST(:role AS text),
    CAST(:vote_weight AS double precision), CAST(:lease_id AS uuid)) m
CROSS JOIN LATERAL (
    SELECT id, capabilities, expertise, capacity, trust FROM blackboard.agents WHERE id = m.agent_id) a;

-- name: leave_session
-- Ends the membership; what the agent holds stays under its process's lease.
SELECT session_id, agent_id, left_at
FROM blackboard.leave_session(CAST(:session_id AS uuid), CAST(:agent_id AS text));

-- name: get_agent
-- One member. Index: memberships_pkey.
SELECT a.id, m.session_id, a.capabilities, CAST(a.expertise AS text) AS expertise, a.capacity, m.role, a.trust,
       m.vote_weight, m.lease_id,
       coalesce(l.lapsed_at IS NULL AND l.expires_at > blackboard.now(), false) AS present, m.joined_at, m.left_at
FROM blackboard.memberships m
JOIN blackboard.agents a ON a.id = m.agent_id
LEFT JOIN blackboard.leases l ON l.id = m.lease_id
WHERE m.session_id = CAST(:session_id AS uuid) AND m.agent_id = CAST(:agent_id AS text);

-- name: list_agents
-- The members in order of joining; optionally only those that offer a capability.
SELECT a.id, m.session_id, a.capabilities, CAST(a.expertise AS text) AS expertise, a.capacity, m.role, a.trust,
       m.vote_weight, m.lease_id,
       coalesce(l.lapsed_at IS NULL AND l.expires_at > blackboard.now(), false) AS present, m.joined_at, m.left_at
FROM blackboard.memberships m
JOIN blackboard.agents a ON a.id = m.agent_id
LEFT JOIN blackboard.leases l ON l.id = m.lease_id
WHERE m.session_id = CAST(:session_id AS uuid)
  AND (CAST(:capability AS text) IS NULL OR a.capabilities @> ARRAY[CAST(:capability AS text)])
ORDER BY m.joined_at, a.id;
