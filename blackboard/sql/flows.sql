-- name: create_flow
-- Creates a flow with its stages, tasks and edges, or nothing; the same id with the same content returns it again.
-- Locks: nothing that exists.
SELECT id
FROM blackboard.create_flow(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:name AS text),
    (SELECT jsonb_agg(CAST(d.stage AS jsonb) ORDER BY d.n) FROM unnest(CAST(:stages AS text[])) WITH ORDINALITY d (stage, n)),
    CAST(CAST(:inputs AS text) AS jsonb), CAST(:actor AS text));

-- name: get_flow
-- One flow with its stages, of one moment. Indexes: flows_pkey, flow_stages_pkey, flow_edges_pkey, tasks_pkey.
SELECT f.session_id, f.id, f.name, f.status, f.version, CAST(f.inputs AS text) AS inputs, f.compensating,
       CAST(f.error AS text) AS error, f.created_by, f.created_at, f.finished_at,
       CAST(blackboard.flow_outputs(f.session_id, f.id) AS text) AS outputs, blackboard.now() AS as_of,
       CAST((
           SELECT coalesce(jsonb_agg(jsonb_build_object(
                      'name', s.name, 'state', s.state, 'task_id', s.task_id, 'type', s.template ->> 'type',
                      'task_status', t.status, 'attempt', t.attempt, 'after', e.edges, 'join', s.join_need,
                      'inputs', s.bindings, 'output', s.output, 'min_quality', s.min_quality,
                      'max_iterations', s.max_iterations, 'loop_to', s.loop_to, 'iteration', s.iteration,
                      'quality', s.quality, 'error', s.error, 'compensation_task_id', s.compensation_task_id,
                      'compensation_status', c.status, 'started_at', t.started_at, 'completed_at', t.completed_at)
                      ORDER BY s.ordinal), '[]')
           FROM blackboard.flow_stages s
           LEFT JOIN blackboard.tasks t ON t.session_id = s.session_id AND t.id = s.task_id
           LEFT JOIN blackboard.tasks c ON c.session_id = s.session_id AND c.id = s.compensation_task_id
           CROSS JOIN LATERAL (
               SELECT coalesce(jsonb_agg(jsonb_build_object('stage', g.depends_on, 'on_failure', g.on_failure)
                                         ORDER BY g.depends_on), '[]') AS edges
               FROM blackboard.flow_edges g
               WHERE g.session_id = s.session_id AND g.flow_id = s.flow_id AND g.stage = s.name) e
           WHERE s.session_id = f.session_id AND s.flow_id = f.id) AS text) AS stages
FROM blackboard.flows f
WHERE f.session_id = CAST(:session_id AS uuid) AND f.id = CAST(:id AS uuid);

-- name: get_flow_status
-- Whether a flow is over. Index: flows_pkey.
SELECT finished_at IS NOT NULL AS finished
FROM blackboard.flows
WHERE session_id = CAST(:session_id AS uuid) AND id = CAST(:id AS uuid);

-- name: list_flows
-- Newest first; a status that is NULL means any. Index: flows_newest.
SELECT session_id, id, name, status, version, CAST(inputs AS text) AS inputs, compensating, CAST(error AS text) AS error,
       created_by, created_at, finished_at
FROM blackboard.flows
WHERE session_id = CAST(:session_id AS uuid) AND (CAST(:status AS text) IS NULL OR status = CAST(:status AS text))
ORDER BY created_at DESC, id
LIMIT CAST(:limit AS integer);

-- name: pause_flow
-- Nothing of the flow is handed out any more; with stop, what runs is asked to stop.
-- Locks: with stop running tasks by id; the flow; its ready tasks by id.
SELECT id
FROM blackboard.pause_flow(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:stop AS boolean), CAST(:actor AS text));

-- name: resume_flow
-- What the pause held is ready again. Locks: the flow, held tasks by id.
SELECT id
FROM blackboard.resume_flow(CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:actor AS text));

-- name: cancel_flow
-- Ends a flow. Locks: running tasks by id, the flow, its other tasks by id.
SELECT id
FROM blackboard.cancel_flow(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:reason AS text), CAST(:actor AS text));

-- name: modify_flow
-- Changes stages that have not started. Locks: the flow, the tasks of those stages.
SELECT id
FROM blackboard.modify_flow(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:expected_version AS integer),
    CAST(CAST(:change AS text) AS jsonb), CAST(:actor AS text), CAST(:key AS text));

-- name: complete_stage
-- Completes a held task of a stage with its quality; returns the id if it was refused.
-- Locks: the task, the flow, then tasks that follow.
SELECT id
FROM blackboard.complete_stage(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:claim_id AS uuid), CAST(:attempt AS integer),
    CAST(CAST(:result AS text) AS jsonb), CAST(:quality AS double precision), CAST(:agent_id AS text)) AS refused (id);

-- name: get_task_inputs
-- The inputs of a stage's task by name. Indexes: flow_tasks_pkey, flow_tasks_stage.
SELECT CAST(blackboard.task_inputs(CAST(:session_id AS uuid), CAST(:id AS uuid)) AS text) AS inputs;

-- name: get_flow_reason
-- Why a flow keeps a task from being claimed; NULL where none does. Index: flow_tasks_pkey.
SELECT CAST(blackboard.flow_reason(CAST(:session_id AS uuid), CAST(:id AS uuid)) AS text) AS reason;
