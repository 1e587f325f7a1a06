-- name: get_picture
-- The whole picture of a session in one snapshot: each part as JSON, at most limit items a kind, and counts of all.
-- Locks nothing. Indexes: findings_newest, hypotheses_strongest, tasks_pkey, proposals_newest, actions_newest.
SELECT
    CAST((SELECT to_jsonb(x) FROM (
        SELECT s.id, s.name, s.goal, s.context, s.status, s.outcome, s.allow_self_validation, s.created_by,
               s.created_at, s.closed_at
        FROM blackboard.sessions s WHERE s.id = CAST(:session_id AS uuid)) x) AS text) AS session,
    CAST((SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') FROM (
        SELECT m.id, m.session_id, m.capabilities, m.expertise, m.capacity, m.role, m.trust, m.vote_weight, m.lease_id,
               m.present, m.joined_at, m.left_at
        FROM blackboard.members m
        WHERE m.session_id = CAST(:session_id AS uuid)
        ORDER BY m.joined_at, m.id LIMIT CAST(:limit AS integer)) x) AS text) AS agents,
    CAST((SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') FROM (
        SELECT f.id, f.agent_id, f.category, f.type, f.content, f.confidence, f.trust, f.tags, f.corroborations,
               jsonb_array_length(f.evidence) AS evidence_items, f.created_at
        FROM blackboard.findings f
        WHERE f.session_id = CAST(:session_id AS uuid) AND f.status = 'active'
        ORDER BY f.created_at DESC, f.id LIMIT CAST(:limit AS integer)) x) AS text) AS findings,
    CAST((SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') FROM (
        SELECT h.id, h.agent_id, h.statement, h.status, h.confidence, h.revision, h.validated_by, h.created_at
        FROM blackboard.hypotheses h
        WHERE h.session_id = CAST(:session_id AS uuid) AND h.status <> 'withdrawn'
        ORDER BY h.confidence DESC, h.id LIMIT CAST(:limit AS integer)) x) AS text) AS hypotheses,
    CAST((SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') FROM (
        SELECT t.id, t.type, t.status, t.priority, t.capability, t.assigned_to, t.attempt, t.progress, t.created_at
        FROM blackboard.tasks t
        WHERE t.session_id = CAST(:session_id AS uuid) AND t.completed_at IS NULL
        ORDER BY t.priority DESC, t.id LIMIT CAST(:limit AS integer)) x) AS text) AS tasks,
    CAST((SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') FROM (
        SELECT p.id, p.agent_id, p.title, p.rule, p.status, p.deadline_at, p.created_at,
               to_jsonb(blackboard.tally(p.session_id, p.id)) AS tally
        FROM blackboard.proposals p
        WHERE p.session_id = CAST(:session_id AS uuid)
        ORDER BY p.created_at DESC, p.id LIMIT CAST(:limit AS integer)) x) AS text) AS proposals,
    CAST((SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') FROM (
        SELECT a.id, a.agent_id, a.type, a.target, a.parameters, a.status, a.approval, a.proposal_id, a.approved_by,
               a.executor, a.created_at
        FROM blackboard.actions a
        WHERE a.session_id = CAST(:session_id AS uuid)
        ORDER BY a.created_at DESC, a.id LIMIT CAST(:limit AS integer)) x) AS text) AS actions,
    CAST((SELECT jsonb_build_object(
        'findings', (SELECT count(*) FROM blackboard.findings f
                     WHERE f.session_id = CAST(:session_id AS uuid) AND f.status = 'active'),
        'hypotheses', (SELECT count(*) FROM blackboard.hypotheses h WHERE h.session_id = CAST(:session_id AS uuid)),
        'proposals', (SELECT count(*) FROM blackboard.proposals p WHERE p.session_id = CAST(:session_id AS uuid)),
        'actions', (SELECT count(*) FROM blackboard.actions a WHERE a.session_id = CAST(:session_id AS uuid)),
        'tasks', (SELECT coalesce(jsonb_object_agg(c.status, c.n), '{}')
                  FROM (SELECT t.status, count(*) AS n FROM blackboard.tasks t
                        WHERE t.session_id = CAST(:session_id AS uuid) GROUP BY t.status) c))) AS text) AS counts,
    blackboard.cursor_now(CAST(:session_id AS uuid)) AS cursor;
