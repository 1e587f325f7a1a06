-- Tasks, dependencies, claims, leases that lapse, late results.
--
-- Life cycle (one transition table: blackboard.task_event below; models/tasks.py has the same as an enum):
--   scheduled | blocked | awaiting_approval | held -> pending | assigned -> running -> completed | failed | dead
--   and cancelled from anywhere that is not final.
-- Lock order: a session's tasks by id; parents before children.

CREATE SEQUENCE blackboard.task_positions AS bigint CACHE 1;

CREATE TABLE blackboard.tasks (
    session_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    type text NOT NULL CONSTRAINT tasks_type_length CHECK (length(type) BETWEEN 1 AND 50),
    capability text NOT NULL DEFAULT '' CONSTRAINT tasks_capability_length CHECK (length(capability) <= 100),
    priority smallint NOT NULL DEFAULT 5 CONSTRAINT tasks_priority_range CHECK (priority BETWEEN 0 AND 10),
    status text NOT NULL DEFAULT 'pending' CONSTRAINT tasks_status_known CHECK (status IN (
        'scheduled', 'blocked', 'awaiting_approval', 'held', 'pending', 'assigned', 'running',
        'completed', 'failed', 'cancelled', 'dead')),
    -- Its place in the ready queue, handed out when it becomes ready, so that positions only grow.
    position bigint DEFAULT pg_catalog.nextval('blackboard.task_positions'),
    parameters jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT tasks_parameters_size CHECK (pg_column_size(parameters) <= 1048576),
    assigned_to text CONSTRAINT tasks_assigned_to_length CHECK (length(assigned_to) BETWEEN 1 AND 100),
    -- The upper bound keeps every deadline within what a timestamp can say: one that is not would fail its claimers.
    timeout interval
        CONSTRAINT tasks_timeout_range CHECK (timeout > interval '0' AND timeout <= interval '3650 days'),
    requires_approval boolean NOT NULL DEFAULT false,
    approved_by text,
    run_at timestamptz,
    attempt integer NOT NULL DEFAULT 0 CONSTRAINT tasks_attempt_range CHECK (attempt >= 0),
    released integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 5 CONSTRAINT tasks_max_attempts_range CHECK (max_attempts BETWEEN 1 AND 1000),
    retry_delay interval NOT NULL DEFAULT interval '1 second'
        CONSTRAINT tasks_retry_delay_range CHECK (retry_delay BETWEEN interval '0' AND interval '30 days'),
    -- The fence: every later write of the holder names both claim_id and attempt.
    claim_id uuid,
    lease_id uuid,
    started_at timestamptz,
    deadline_at timestamptz,
    cancel_requested boolean NOT NULL DEFAULT false,
    blockers integer NOT NULL DEFAULT 0 CONSTRAINT tasks_blockers_range CHECK (blockers >= 0),
    has_dependants boolean NOT NULL DEFAULT false,
    unique_key text CONSTRAINT tasks_unique_key_length CHECK (length(unique_key) BETWEEN 1 AND 200),
    limit_key text CONSTRAINT tasks_limit_key_length CHECK (length(limit_key) BETWEEN 1 AND 200),
    -- Not started by then, it is cancelled.
    expires_at timestamptz,
    -- How long an assigned task waits for its agent before anybody may have it; from fallback_at on they may.
    fallback interval
        CONSTRAINT tasks_fallback_range CHECK (fallback >= interval '0' AND fallback <= interval '3650 days'),
    fallback_at timestamptz,
    -- Up to when its waiting has been turned into priority.
    aged_at timestamptz,
    -- It may hold slots of limits: what leaves 'running' with it looks for them.
    limited boolean NOT NULL DEFAULT false,
    -- Why it is held (or was last): {code, ...}; 'limit' and 'paused' are the board's own.
    held jsonb CONSTRAINT tasks_held_size CHECK (pg_column_size(held) <= 8192),
    progress jsonb CONSTRAINT tasks_progress_size CHECK (pg_column_size(progress) <= 1048576),
    result jsonb CONSTRAINT tasks_result_size CHECK (pg_column_size(result) <= 1048576),
    error jsonb CONSTRAINT tasks_error_size CHECK (pg_column_size(error) <= 1048576),
    created_by text NOT NULL DEFAULT blackboard.current_actor(),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    completed_at timestamptz,
    CONSTRAINT tasks_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT tasks_position_iff_ready CHECK ((status IN ('pending', 'assigned')) = (position IS NOT NULL)),
    CONSTRAINT tasks_lease_iff_running CHECK ((status = 'running') = (lease_id IS NOT NULL)),
    CONSTRAINT tasks_claimed_when_running CHECK (status <> 'running' OR (claim_id IS NOT NULL AND attempt > 0
                                                 AND assigned_to IS NOT NULL AND started_at IS NOT NULL)),
    CONSTRAINT tasks_deadline_only_running CHECK (deadline_at IS NULL OR status = 'running'),
    CONSTRAINT tasks_run_at_when_scheduled CHECK (status <> 'scheduled' OR run_at IS NOT NULL),
    CONSTRAINT tasks_held_says_why CHECK (status <> 'held' OR coalesce(held ->> 'code', '') <> ''),
    CONSTRAINT tasks_assignee_when_assigned CHECK (status <> 'assigned' OR assigned_to IS NOT NULL),
    CONSTRAINT tasks_blockers_iff_blocked CHECK (status <> 'blocked' OR blockers > 0),
    CONSTRAINT tasks_ready_is_unblocked CHECK (blockers = 0 OR status NOT IN ('pending', 'assigned')),
    CONSTRAINT tasks_ready_is_approved CHECK (NOT requires_approval OR approved_by IS NOT NULL
                                              OR status NOT IN ('pending', 'assigned', 'running')),
    CONSTRAINT tasks_completed_at_iff_final CHECK (
        (status IN ('completed', 'failed', 'cancelled', 'dead')) = (completed_at IS NOT NULL))
);
CREATE INDEX tasks_ready ON blackboard.tasks (session_id, capability, priority DESC, position)
    WHERE status = 'pending';
CREATE INDEX tasks_assigned ON blackboard.tasks (session_id, assigned_to, priority DESC, position)
    WHERE status = 'assigned';
CREATE INDEX tasks_scheduled ON blackboard.tasks (session_id, run_at) WHERE status = 'scheduled';
-- Not "WHERE status = 'running'": a completion could be matched to that, and right after an ANALYZE would be.
CREATE INDEX tasks_leased ON blackboard.tasks (lease_id, claim_id) WHERE lease_id IS NOT NULL;
CREATE INDEX tasks_deadline ON blackboard.tasks (deadline_at) WHERE deadline_at IS NOT NULL;
-- Few indexes for what is rare: each one costs every claim and completion a little. This one is for both deadlines and
-- fallbacks; NULL is a fallback whose time has not begun.
CREATE INDEX tasks_timers ON blackboard.tasks ((least(expires_at, fallback_at)) NULLS FIRST)
    WHERE (expires_at IS NOT NULL OR fallback IS NOT NULL) AND completed_at IS NULL AND lease_id IS NULL;
-- What is held, for each capability in the order in which it comes back.
CREATE INDEX tasks_held ON blackboard.tasks (
    session_id, (held ->> 'code'), (coalesce(held ->> 'limit', held ->> 'type', '')), (coalesce(held ->> 'key', '')),
    capability, priority DESC, ((held ->> 'position')::bigint)) WHERE status = 'held';
ALTER TABLE blackboard.tasks SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,
                                  autovacuum_analyze_scale_factor = 0.05);

CREATE TABLE blackboard.task_dependencies (
    session_id uuid NOT NULL,
    task_id uuid NOT NULL,
    depends_on_id uuid NOT NULL,
    on_failure text NOT NULL DEFAULT 'fail'
        CONSTRAINT task_dependencies_on_failure_known CHECK (on_failure IN ('fail', 'continue')),
    state text NOT NULL DEFAULT 'waiting'
        CONSTRAINT task_dependencies_state_known CHECK (state IN ('waiting', 'satisfied', 'failed')),
    CONSTRAINT task_dependencies_pkey PRIMARY KEY (session_id, task_id, depends_on_id),
    CONSTRAINT task_dependencies_not_itself CHECK (task_id <> depends_on_id),
    CONSTRAINT task_dependencies_task_fkey FOREIGN KEY (session_id, task_id)
        REFERENCES blackboard.tasks (session_id, id) ON DELETE CASCADE,
    CONSTRAINT task_dependencies_depends_on_fkey FOREIGN KEY (session_id, depends_on_id)
        REFERENCES blackboard.tasks (session_id, id)
);
CREATE INDEX task_dependencies_depends_on ON blackboard.task_dependencies (session_id, depends_on_id);

-- What a late owner handed in: kept and visible, never applied.
CREATE TABLE blackboard.late_results (
    session_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    task_id uuid NOT NULL,
    claim_id uuid NOT NULL,
    attempt integer NOT NULL,
    agent_id text NOT NULL CONSTRAINT late_results_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    result jsonb CONSTRAINT late_results_result_size CHECK (pg_column_size(result) <= 1048576),
    error jsonb CONSTRAINT late_results_error_size CHECK (pg_column_size(error) <= 1048576),
    at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT late_results_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT late_results_once UNIQUE (session_id, task_id, claim_id, attempt)
);

-- ----------------------------------------------------------------------------------------------------- history

-- The transition table: the event that a change of status is, or NULL where the life cycle has no such step.
CREATE FUNCTION blackboard.task_event(p_old text, p_new text, p_error jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE p_new
        WHEN 'running' THEN CASE WHEN p_old IN ('pending', 'assigned') THEN 'task.assigned' END
        WHEN 'completed' THEN CASE WHEN p_old = 'running' THEN 'task.completed' END
        WHEN 'failed' THEN CASE WHEN p_old = 'running' THEN 'task.failed' END
        WHEN 'dead' THEN CASE WHEN p_old = 'running' THEN 'task.dead' END
        WHEN 'cancelled' THEN CASE WHEN p_old NOT IN ('completed', 'failed', 'cancelled') THEN 'task.cancelled' END
        WHEN 'held' THEN CASE WHEN p_old IN ('scheduled', 'blocked', 'awaiting_approval', 'pending', 'assigned')
                              THEN 'task.held' END
        ELSE CASE
            WHEN p_old = 'running' THEN
                CASE WHEN p_new NOT IN ('pending', 'assigned', 'scheduled', 'blocked') THEN NULL
                     WHEN p_error ->> 'code' = 'lease_lapsed' THEN 'task.lapsed'
                     WHEN p_error IS NOT NULL THEN 'task.retried'
                     ELSE 'task.released' END
            WHEN p_old IN ('failed', 'dead') THEN
                CASE WHEN p_new IN ('pending', 'assigned', 'scheduled', 'blocked') THEN 'task.redriven' END
            WHEN p_old IN ('completed', 'cancelled') THEN NULL
            WHEN p_new = 'pending' THEN 'task.ready'
            WHEN p_new = 'assigned' THEN 'task.reserved'
            ELSE 'task.' || p_new
        END
    END
$$;

CREATE FUNCTION blackboard.history_tasks_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_tx bigint := blackboard.current_tx();
    v_actor text := blackboard.current_actor();
    v_sessions uuid[] := array(SELECT DISTINCT n.session_id FROM new_rows n);
BEGIN
    PERFORM blackboard.check_sessions(v_sessions);
    IF EXISTS (SELECT FROM new_rows n
               WHERE n.status NOT IN ('pending', 'assigned', 'scheduled', 'awaiting_approval', 'held')
                  OR n.attempt <> 0 OR n.released <> 0 OR n.blockers <> 0) THEN
        PERFORM blackboard.raise('BB003', 'A task is not born running, blocked or finished: add it, then claim it.',
                                 '{"noun": "task", "field": "status"}');
    END IF;
    -- What is not named here has its column's default.
    INSERT INTO blackboard.events (session_id, tx, actor, type, subject_id, data)
    SELECT n.session_id, v_tx, v_actor, 'task.created', n.id,
           jsonb_build_object('type', n.type, 'capability', n.capability, 'priority', n.priority,
                              'status', n.status, 'assigned_to', n.assigned_to, 'run_at', n.run_at,
                              'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END)
           || CASE WHEN n.timeout IS NULL AND n.max_attempts = 5 AND n.retry_delay = interval '1 second'
                        AND NOT n.requires_approval THEN '{}'
                   ELSE jsonb_build_object('timeout', n.timeout, 'max_attempts', n.max_attempts,
                                           'retry_delay', n.retry_delay, 'requires_approval', n.requires_approval,
                                           'approved_by', n.approved_by) END
    FROM new_rows n ORDER BY n.position;
    PERFORM blackboard.hint(s, 'tasks') FROM unnest(v_sessions) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.tasks REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_tasks_insert();

-- Positions, claim ids and has_dependants are means, not history. Results over 8 kB are read from the row.
-- The join's method is fixed: a plan made for one changed row must not meet a thousand.
CREATE FUNCTION blackboard.history_tasks_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET enable_hashjoin = on
AS $$
DECLARE
    v_tx bigint := blackboard.current_tx();
    v_actor text := blackboard.current_actor();
BEGIN
    -- The two hot steps, whole statements of them, need no look at what each row was before.
    IF NOT EXISTS (SELECT FROM new_rows n WHERE n.status <> 'running')
       AND NOT EXISTS (SELECT FROM old_rows o WHERE o.status NOT IN ('pending', 'assigned')) THEN
        INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
        SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.started_at, v_actor, 'task.assigned', n.id,
               jsonb_build_object('status', 'running', 'assigned_to', n.assigned_to, 'attempt', n.attempt,
                                  'lease_id', n.lease_id)
        FROM new_rows n;
        PERFORM blackboard.hint(s.session_id, 'tasks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
        RETURN NULL;
    ELSIF NOT EXISTS (SELECT FROM new_rows n WHERE n.status <> 'completed' OR n.has_dependants OR n.limited)
       AND NOT EXISTS (SELECT FROM old_rows o WHERE o.status <> 'running') THEN
        INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
        SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.completed_at, v_actor, 'task.completed', n.id,
               CASE WHEN n.result IS NULL THEN '{"status": "completed", "lease_id": null}'::jsonb
                    ELSE jsonb_build_object('status', 'completed', 'lease_id', NULL, 'result',
                                            CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END) END
        FROM new_rows n;
        PERFORM blackboard.hint(s.session_id, 'tasks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
        RETURN NULL;
    END IF;
    INSERT INTO blackboard.events (session_id, tx, actor, type, subject_id, data)
    SELECT n.session_id, v_tx, v_actor,
           -- The fence only grows, and nobody takes over a claim by rewriting it.
           CASE WHEN n.attempt < o.attempt OR (n.status = 'running' AND (n.status = o.status) <> (n.attempt = o.attempt))
                     OR (n.status = o.status AND (n.claim_id, n.lease_id) IS DISTINCT FROM (o.claim_id, o.lease_id))
                THEN NULL
                WHEN n.status <> o.status THEN blackboard.task_event(o.status, n.status, n.error)
                WHEN n.cancel_requested AND NOT o.cancel_requested THEN 'task.cancel_requested'
                WHEN n.progress IS DISTINCT FROM o.progress THEN 'task.progressed'
                ELSE 'task.updated' END,
           n.id,
           CASE
               WHEN n.status = 'running' AND o.status <> 'running' THEN
                   jsonb_build_object('status', n.status, 'assigned_to', n.assigned_to, 'attempt', n.attempt,
                                      'lease_id', n.lease_id)
               WHEN n.status = 'completed' AND o.status <> 'completed' THEN
                   jsonb_build_object('status', n.status, 'lease_id', NULL,
                                      'result', CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END)
               WHEN n.status <> o.status THEN
                   jsonb_build_object('status', n.status, 'lease_id', n.lease_id, 'assigned_to', n.assigned_to,
                                      'run_at', n.run_at, 'error', n.error, 'approved_by', n.approved_by,
                                      'blockers', n.blockers, 'released', n.released,
                                      'cancel_requested', n.cancel_requested, 'held', n.held)
               ELSE
                   CASE WHEN n.progress IS DISTINCT FROM o.progress
                        THEN jsonb_build_object('progress', n.progress) ELSE '{}' END
                   || CASE WHEN n.cancel_requested <> o.cancel_requested
                           THEN jsonb_build_object('cancel_requested', n.cancel_requested) ELSE '{}' END
                   || CASE WHEN n.blockers <> o.blockers
                           THEN jsonb_build_object('blockers', n.blockers) ELSE '{}' END
                   || CASE WHEN (n.priority, n.assigned_to, n.run_at, n.max_attempts, n.parameters, n.result,
                                 n.timeout, n.approved_by, n.capability, n.retry_delay, n.error, n.held)
                                IS DISTINCT FROM
                                (o.priority, o.assigned_to, o.run_at, o.max_attempts, o.parameters, o.result,
                                 o.timeout, o.approved_by, o.capability, o.retry_delay, o.error, o.held)
                           THEN jsonb_build_object('priority', n.priority, 'assigned_to', n.assigned_to,
                                                   'run_at', n.run_at, 'max_attempts', n.max_attempts,
                                                   'parameters', n.parameters, 'result', n.result,
                                                   'timeout', n.timeout, 'approved_by', n.approved_by,
                                                   'capability', n.capability, 'retry_delay', n.retry_delay,
                                                   'error', n.error, 'held', n.held)
                           ELSE '{}' END
           END
    FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
    WHERE n.status <> o.status OR n.progress IS DISTINCT FROM o.progress
       OR n.cancel_requested <> o.cancel_requested OR n.blockers <> o.blockers
       OR (n.attempt, n.claim_id, n.lease_id) IS DISTINCT FROM (o.attempt, o.claim_id, o.lease_id)
       OR (n.priority, n.assigned_to, n.run_at, n.max_attempts, n.parameters, n.result, n.timeout, n.approved_by,
           n.capability, n.retry_delay, n.error, n.held)
          IS DISTINCT FROM
          (o.priority, o.assigned_to, o.run_at, o.max_attempts, o.parameters, o.result, o.timeout, o.approved_by,
           o.capability, o.retry_delay, o.error, o.held);

    IF EXISTS (SELECT FROM new_rows n WHERE n.has_dependants AND n.completed_at IS NOT NULL) THEN
        PERFORM blackboard.settle_dependants(f.session_id, f.ids, f.succeeded)
        FROM (SELECT n.session_id, n.status = 'completed' AS succeeded, array_agg(n.id ORDER BY n.id) AS ids
              FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
              WHERE n.has_dependants AND n.completed_at IS NOT NULL AND n.status <> o.status
              GROUP BY 1, 2) f;
    END IF;
    -- Last, because it locks the counters of limits: whoever has those never waits for a task.
    IF EXISTS (SELECT FROM old_rows o WHERE o.limited AND o.status = 'running') THEN
        PERFORM blackboard.free_slots(array_agg(o.session_id), array_agg(o.id))
        FROM old_rows o JOIN new_rows n ON n.id = o.id AND n.session_id = o.session_id
        WHERE o.limited AND o.status = 'running' AND n.status <> 'running' HAVING count(*) > 0;
    END IF;
    PERFORM blackboard.hint(s.session_id, 'tasks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'The life cycle of a task has no such step; see the diagram in the README.',
        (SELECT jsonb_build_object('noun', 'task', 'id', n.id, 'from', o.status, 'status', n.status)
         FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
         WHERE n.attempt < o.attempt OR (n.status = 'running' AND (n.status = o.status) <> (n.attempt = o.attempt))
            OR (n.status = o.status AND (n.claim_id, n.lease_id) IS DISTINCT FROM (o.claim_id, o.lease_id))
            OR (n.status <> o.status AND blackboard.task_event(o.status, n.status, n.error) IS NULL) LIMIT 1));
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.tasks
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_tasks_update();
CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, type, requires_approval, created_by, created_at, unique_key,
    limit_key, expires_at, fallback ON blackboard.tasks FOR EACH ROW
    WHEN ((OLD.session_id, OLD.id, OLD.type, OLD.requires_approval, OLD.created_by, OLD.created_at, OLD.unique_key,
           OLD.limit_key, OLD.expires_at, OLD.fallback) IS DISTINCT FROM
          (NEW.session_id, NEW.id, NEW.type, NEW.requires_approval, NEW.created_by, NEW.created_at, NEW.unique_key,
           NEW.limit_key, NEW.expires_at, NEW.fallback))
    EXECUTE FUNCTION blackboard.refuse_immutable(
        'session_id, id, type, requires_approval, created_by, created_at, unique_key, limit_key, expires_at and fallback');
-- A redrive by hand in a closed session, whose tasks nobody can claim any more.
CREATE FUNCTION blackboard.check_reopened_task() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.check_sessions(ARRAY[NEW.session_id]);
    RETURN NULL;
END
$$;
CREATE TRIGGER reopened AFTER UPDATE OF completed_at ON blackboard.tasks FOR EACH ROW
    WHEN (OLD.completed_at IS NOT NULL AND NEW.completed_at IS NULL)
    EXECUTE FUNCTION blackboard.check_reopened_task();
-- Pruning leaves one short event a task, not its last state: it is there to make the history smaller.
CREATE FUNCTION blackboard.record_pruned_tasks() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'task.pruned', o.id, jsonb_build_object('type', o.type, 'status', o.status) FROM old_rows o;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_prune AFTER DELETE ON blackboard.tasks REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS NOT DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.record_pruned_tasks();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.tasks REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.record_delete('task', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.tasks
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.history_late_results() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'task.result_refused', n.task_id,
           jsonb_build_object('agent_id', n.agent_id, 'late_attempt', n.attempt, 'late_result_id', n.id)
    FROM new_rows n;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.late_results REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_late_results();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.late_results
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.late_results REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.record_delete('late_result', 'task_id');

-- Tasks have no foreign key to their session, which would cost on every row added; a session that has some stays.
CREATE FUNCTION blackboard.keep_session_of_tasks() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(blackboard.session_lock(OLD.id));
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = OLD.id LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB012', 'A session that has tasks cannot be deleted; close it.',
                                 jsonb_build_object('noun', 'session', 'id', OLD.id));
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER keep_session_of_tasks AFTER DELETE ON blackboard.sessions
    FOR EACH ROW EXECUTE FUNCTION blackboard.keep_session_of_tasks();

-- ------------------------------------------------------------------------------------------------ dependencies

-- Where a task that nothing holds back any more goes next.
CREATE FUNCTION blackboard.next_status(p_task blackboard.tasks) RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN p_task.requires_approval AND p_task.approved_by IS NULL THEN 'awaiting_approval'
        WHEN p_task.blockers > 0 THEN 'blocked'
        WHEN p_task.run_at > blackboard.now() THEN 'scheduled'
        WHEN p_task.assigned_to IS NOT NULL AND p_task.attempt = 0 THEN 'assigned'
        ELSE 'pending'
    END
$$;

-- Parents have finished: their edges are settled, children that nothing blocks any more become ready. Children of a
-- failed parent (edge policy 'fail') are cancelled, and all that falls with them, in one step: a trigger that called
-- itself for every level would run out of stack in a long chain, and with it the sweep that needs it.
CREATE FUNCTION blackboard.settle_dependants(p_session_id uuid, p_parents uuid[], p_succeeded boolean) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_finished uuid[] := p_parents;
    v_doomed uuid[];
    v_children uuid[];
BEGIN
    IF NOT p_succeeded THEN
        WITH RECURSIVE doomed (id) AS (
            SELECT unnest(p_parents)
            UNION
            SELECT d.task_id FROM doomed x
            JOIN blackboard.task_dependencies d
              ON d.session_id = p_session_id AND d.depends_on_id = x.id AND d.state = 'waiting' AND d.on_failure = 'fail'
            JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = d.task_id
                                   AND t.status IN ('blocked', 'awaiting_approval', 'scheduled', 'held')
        ) SELECT array_agg(x.id) INTO v_doomed FROM doomed x;
        v_finished := v_doomed;
    END IF;
    SELECT array_agg(DISTINCT d.task_id) INTO v_children FROM blackboard.task_dependencies d
    WHERE d.session_id = p_session_id AND d.depends_on_id = ANY (v_finished) AND d.state = 'waiting';
    IF v_children IS NULL THEN
        RETURN;
    END IF;
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (v_children)
    ORDER BY t.id FOR UPDATE;
    WITH settled AS (
        UPDATE blackboard.task_dependencies d
        SET state = CASE WHEN p_succeeded OR d.on_failure = 'continue' THEN 'satisfied' ELSE 'failed' END
        WHERE d.session_id = p_session_id AND d.depends_on_id = ANY (v_finished) AND d.state = 'waiting'
        RETURNING d.task_id)
    SELECT array_agg(DISTINCT task_id ORDER BY task_id) INTO v_children FROM settled;
    IF v_children IS NOT NULL THEN
        PERFORM blackboard.refresh_blockers(p_session_id, v_children);
    END IF;
END
$$;

-- Locks the children in order of id, then counts afresh: two parents that finish at once are both seen.
CREATE FUNCTION blackboard.refresh_blockers(p_session_id uuid, p_children uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (p_children)
    ORDER BY t.id FOR UPDATE;
    WITH counted AS (
        SELECT t.id, count(*) FILTER (WHERE d.state = 'waiting')::integer AS waiting,
               array_agg(d.depends_on_id) FILTER (WHERE d.state = 'failed') AS failed
        FROM blackboard.tasks t
        LEFT JOIN blackboard.task_dependencies d ON d.session_id = t.session_id AND d.task_id = t.id
        WHERE t.session_id = p_session_id AND t.id = ANY (p_children)
        GROUP BY t.id
    ), moved AS (
        SELECT t.id, c.waiting, c.failed,
               -- Ready ones too: a task that is added after its parent failed must not run.
               CASE WHEN t.status NOT IN ('blocked', 'awaiting_approval', 'scheduled', 'held', 'pending', 'assigned')
                    THEN t.status
                    WHEN c.failed IS NOT NULL THEN 'cancelled'
                    WHEN t.status = 'blocked' AND c.waiting = 0 THEN
                        CASE WHEN t.run_at > blackboard.now() THEN 'scheduled'
                             WHEN t.assigned_to IS NOT NULL AND t.attempt = 0 THEN 'assigned' ELSE 'pending' END
                    ELSE t.status END AS status
        FROM counted c JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = c.id
    )
    UPDATE blackboard.tasks t
    SET blockers = m.waiting, status = m.status,
        position = CASE WHEN m.status IN ('pending', 'assigned')
                        THEN coalesce(t.position, nextval('blackboard.task_positions')) END,
        completed_at = CASE WHEN m.status = 'cancelled' THEN blackboard.now() ELSE t.completed_at END,
        error = CASE WHEN m.status = 'cancelled' AND t.status <> 'cancelled'
                     THEN jsonb_build_object('code', 'dependency_failed',
                                             'message', 'A task that this one depends on did not complete.',
                                             'depends_on', to_jsonb(m.failed))
                     ELSE t.error END
    FROM moved m
    WHERE t.session_id = p_session_id AND t.id = m.id AND (t.blockers, t.status) IS DISTINCT FROM (m.waiting, m.status);
END
$$;

-- A cycle that new edges of these tasks close, as a path that ends where it begins; NULL if there is none.
-- Takes away what depends on nothing, again and again (Kahn): linear in the edges, where following paths is not.
CREATE FUNCTION blackboard.dependency_cycle(p_session_id uuid, p_tasks uuid[]) RETURNS uuid[]
LANGUAGE plpgsql
AS $$
DECLARE
    v_nodes uuid[];
    v_dependants integer[];
    v_heads integer[];
    v_waiting integer[];
    v_queue integer[];
    v_size integer;
    v_done integer := 0;
    v_queued integer := 0;
    v_left uuid[] := '{}';
    v_path uuid[];
    v_next uuid;
    v_from integer;
BEGIN
    -- A task that nothing depends on closes no cycle: adding new tasks at the end of a flow ends here.
    WITH RECURSIVE reached (id) AS (
        SELECT p.id FROM unnest(p_tasks) p (id)
        WHERE EXISTS (SELECT FROM blackboard.task_dependencies d
                      WHERE d.session_id = p_session_id AND d.depends_on_id = p.id)
        UNION
        SELECT d.depends_on_id FROM reached r
        JOIN blackboard.task_dependencies d ON d.session_id = p_session_id AND d.task_id = r.id)
    SELECT array_agg(r.id ORDER BY r.id) INTO v_nodes FROM reached r;
    IF v_nodes IS NULL THEN
        RETURN NULL;
    END IF;
    v_size := cardinality(v_nodes);
    WITH nodes AS MATERIALIZED (
        SELECT u.id, u.n::integer AS n FROM unnest(v_nodes) WITH ORDINALITY u (id, n)
    ), edges AS MATERIALIZED (
        SELECT a.n AS task, b.n AS depends_on
        FROM nodes a
        JOIN blackboard.task_dependencies d ON d.session_id = p_session_id AND d.task_id = a.id
        JOIN nodes b ON b.id = d.depends_on_id)
    SELECT (SELECT array_agg(e.task ORDER BY e.depends_on) FROM edges e),
           (SELECT array_agg(h.count ORDER BY h.n) FROM (
                SELECT n.n, count(e.task)::integer AS count FROM nodes n LEFT JOIN edges e ON e.depends_on = n.n
                GROUP BY n.n) h),
           (SELECT array_agg(w.count ORDER BY w.n) FROM (
                SELECT n.n, count(e.depends_on)::integer AS count FROM nodes n LEFT JOIN edges e ON e.task = n.n
                GROUP BY n.n) w)
    INTO v_dependants, v_heads, v_waiting;
    v_queue := array_fill(0, ARRAY[v_size]);
    -- v_heads: from how many dependants of each to where its own begin.
    v_from := 1;
    FOR i IN 1 .. v_size LOOP
        v_from := v_from + v_heads[i];
        v_heads[i] := v_from - v_heads[i];
        IF v_waiting[i] = 0 THEN
            v_queued := v_queued + 1;
            v_queue[v_queued] := i;
        END IF;
    END LOOP;
    WHILE v_done < v_queued LOOP
        v_done := v_done + 1;
        v_from := v_queue[v_done];
        FOR i IN v_heads[v_from] .. coalesce(v_heads[v_from + 1] - 1, cardinality(v_dependants), 0) LOOP
            v_waiting[v_dependants[i]] := v_waiting[v_dependants[i]] - 1;
            IF v_waiting[v_dependants[i]] = 0 THEN
                v_queued := v_queued + 1;
                v_queue[v_queued] := v_dependants[i];
            END IF;
        END LOOP;
    END LOOP;
    IF v_done = v_size THEN
        RETURN NULL;
    END IF;
    FOR i IN 1 .. v_size LOOP
        IF v_waiting[i] > 0 THEN
            v_left := v_left || v_nodes[i];
        END IF;
    END LOOP;
    -- Everything that is left depends on something that is left: walk until the walk meets itself.
    v_next := v_left[1];
    WHILE v_path IS NULL OR NOT v_next = ANY (v_path) LOOP
        v_path := v_path || v_next;
        SELECT d.depends_on_id INTO STRICT v_next FROM blackboard.task_dependencies d
        WHERE d.session_id = p_session_id AND d.task_id = v_next AND d.depends_on_id = ANY (v_left) LIMIT 1;
    END LOOP;
    RETURN v_path[array_position(v_path, v_next) :] || v_next;
END
$$;

CREATE FUNCTION blackboard.check_dependencies() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_session uuid;
    v_path uuid[];
BEGIN
    FOR v_session IN SELECT DISTINCT n.session_id FROM new_rows n ORDER BY 1 LOOP
        PERFORM blackboard.check_sessions(ARRAY[v_session]);
        IF EXISTS (SELECT FROM new_rows n WHERE n.session_id = v_session AND n.state <> 'waiting') THEN
            PERFORM blackboard.raise('BB003', 'A new dependency waits; whether it is satisfied the board finds out.',
                                     '{"noun": "task", "field": "state"}');
        END IF;
        -- Edges of one session are added one transaction at a time: two halves of a cycle must see each other.
        PERFORM pg_advisory_xact_lock(hashtextextended('blackboard dependencies ' || v_session, 0));
        v_path := blackboard.dependency_cycle(
            v_session, array(SELECT DISTINCT n.task_id FROM new_rows n WHERE n.session_id = v_session));
        IF v_path IS NOT NULL THEN
            PERFORM blackboard.raise('BB008', 'The dependencies form a cycle: ' || array_to_string(v_path, ' -> ')
                                              || '. Leave one of these edges out.',
                                     jsonb_build_object('field', 'depends_on', 'path', to_jsonb(v_path)));
        END IF;
        PERFORM 1 FROM blackboard.tasks t
        WHERE t.session_id = v_session AND t.id IN (SELECT n.depends_on_id FROM new_rows n WHERE n.session_id = v_session)
        ORDER BY t.id FOR UPDATE;
        UPDATE blackboard.tasks t SET has_dependants = true
        WHERE t.session_id = v_session AND NOT t.has_dependants
          AND t.id IN (SELECT n.depends_on_id FROM new_rows n WHERE n.session_id = v_session);
        UPDATE blackboard.task_dependencies d
        SET state = CASE WHEN p.status = 'completed' OR d.on_failure = 'continue' THEN 'satisfied' ELSE 'failed' END
        FROM new_rows n JOIN blackboard.tasks p ON p.session_id = n.session_id AND p.id = n.depends_on_id
        WHERE n.session_id = v_session AND d.session_id = v_session AND d.task_id = n.task_id
          AND d.depends_on_id = n.depends_on_id AND p.completed_at IS NOT NULL;
        -- A task that was ready goes back to blocked, unless it runs already.
        UPDATE blackboard.tasks t
        SET status = 'blocked', blockers = w.waiting, position = NULL
        FROM (SELECT d.task_id, count(*)::integer AS waiting FROM blackboard.task_dependencies d
              WHERE d.session_id = v_session AND d.state = 'waiting'
                AND d.task_id IN (SELECT n.task_id FROM new_rows n WHERE n.session_id = v_session)
              GROUP BY d.task_id) w
        WHERE t.session_id = v_session AND t.id = w.task_id AND t.status IN ('pending', 'assigned', 'scheduled');
        PERFORM blackboard.refresh_blockers(
            v_session, array(SELECT DISTINCT n.task_id FROM new_rows n WHERE n.session_id = v_session));
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id, 'task.dependency_added', n.task_id,
               jsonb_build_object('depends_on', n.depends_on_id, 'on_failure', n.on_failure)
        FROM new_rows n WHERE n.session_id = v_session;
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.task_dependencies REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.check_dependencies();
-- The board's own changes come from triggers; by hand only the policy may be changed.
CREATE TRIGGER immutable AFTER UPDATE ON blackboard.task_dependencies FOR EACH ROW
    WHEN (pg_trigger_depth() < 1 AND (OLD.session_id, OLD.task_id, OLD.depends_on_id, OLD.state)
                                     IS DISTINCT FROM (NEW.session_id, NEW.task_id, NEW.depends_on_id, NEW.state))
    EXECUTE FUNCTION blackboard.refuse_immutable('Keys and state');

CREATE FUNCTION blackboard.history_task_dependencies() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_session uuid;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id, 'task.dependency_changed', n.task_id,
               jsonb_build_object('depends_on', n.depends_on_id, 'on_failure', n.on_failure)
        FROM new_rows n JOIN old_rows o USING (session_id, task_id, depends_on_id)
        WHERE n.on_failure <> o.on_failure;
        RETURN NULL;
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'task.dependency_removed', o.task_id, jsonb_build_object('depends_on', o.depends_on_id)
    FROM old_rows o;
    FOR v_session IN SELECT DISTINCT o.session_id FROM old_rows o LOOP
        PERFORM blackboard.refresh_blockers(
            v_session, array(SELECT DISTINCT o.task_id FROM old_rows o WHERE o.session_id = v_session));
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.task_dependencies
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION blackboard.history_task_dependencies();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.task_dependencies REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.history_task_dependencies();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.task_dependencies
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- --------------------------------------------------------------------------------------------------------- add

CREATE FUNCTION blackboard.dependency_options(p_options jsonb) RETURNS TABLE (id uuid, on_failure text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(e.edge ->> 'id', e.edge #>> '{}')::uuid, coalesce(e.edge ->> 'on_failure', 'fail')
    FROM jsonb_array_elements(p_options -> 'depends_on') e (edge)
$$;

-- Adds many tasks; arrays run in parallel, p_options holds what is rare (NULL for a plain task):
--   assigned_to, run_at, timeout, requires_approval, max_attempts, retry_delay, depends_on [ids or {id, on_failure}],
--   limit_key, expires_at, fallback, unique {key, window, states} (only its key is recorded here: add_task and
--   add_unique_tasks keep it unique)
-- Repeated ids with the same content are left alone. Visible after commit, in the order given.
CREATE FUNCTION blackboard.add_tasks(
    p_session_id uuid, p_ids uuid[], p_types text[], p_capabilities text[], p_priorities smallint[],
    p_parameters jsonb[], p_options jsonb[], p_actor text
) RETURNS integer
LANGUAGE plpgsql
SET xmlbinary = 'hex'
AS $$
DECLARE
    v_added integer;
    v_id uuid;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    INSERT INTO blackboard.tasks (
        session_id, id, type, capability, priority, parameters, assigned_to, run_at, timeout, requires_approval,
        max_attempts, retry_delay, unique_key, limit_key, expires_at, fallback, fallback_at, status, position,
        created_by)
    SELECT p_session_id, u.id, u.type, u.capability, u.priority, u.parameters, u.options ->> 'assigned_to',
           (u.options ->> 'run_at')::timestamptz, (u.options ->> 'timeout')::interval,
           coalesce((u.options ->> 'requires_approval')::boolean, false),
           coalesce((u.options ->> 'max_attempts')::integer, 5),
           coalesce((u.options ->> 'retry_delay')::interval, interval '1 second'),
           u.options #>> '{unique,key}', u.options ->> 'limit_key', (u.options ->> 'expires_at')::timestamptz,
           (u.options ->> 'fallback')::interval,
           CASE WHEN u.options ? 'fallback' AND NOT u.options ? 'depends_on' AND u.status IN ('assigned', 'scheduled')
                THEN greatest(blackboard.now(), (u.options ->> 'run_at')::timestamptz)
                     + (u.options ->> 'fallback')::interval END,
           u.status,
           CASE WHEN u.status IN ('pending', 'assigned') THEN nextval('blackboard.task_positions') END,
           blackboard.current_actor()
    FROM (SELECT x.id, x.type, x.capability, x.priority, x.parameters, x.options,
                 CASE WHEN x.options IS NULL THEN 'pending'
                      WHEN (x.options ->> 'requires_approval')::boolean THEN 'awaiting_approval'
                      WHEN (x.options ->> 'run_at')::timestamptz > blackboard.now() THEN 'scheduled'
                      WHEN x.options ->> 'assigned_to' IS NOT NULL THEN 'assigned'
                      ELSE 'pending' END AS status
          FROM unnest(p_ids, p_types, p_capabilities, p_priorities, p_parameters, p_options)
               WITH ORDINALITY AS x (id, type, capability, priority, parameters, options, n)
          ORDER BY x.n) u
    ON CONFLICT (session_id, id) DO NOTHING;
    GET DIAGNOSTICS v_added = ROW_COUNT;
    IF v_added < cardinality(p_ids) THEN
        SELECT t.id INTO v_id
        FROM unnest(p_ids, p_types, p_capabilities, p_parameters) x (id, type, capability, parameters)
        JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = x.id
        WHERE (t.type, t.capability, t.parameters) IS DISTINCT FROM (x.type, x.capability, x.parameters)
        LIMIT 1;
        IF FOUND THEN
            PERFORM blackboard.raise('BB004', format('The task id %s was used before with other content; use a new id.', v_id),
                                     jsonb_build_object('noun', 'task', 'id', v_id));
        END IF;
    END IF;
    IF EXISTS (SELECT FROM unnest(p_options) o WHERE o ? 'depends_on') THEN
        SELECT d.id INTO v_id
        FROM unnest(p_ids, p_options) x (id, options),
             LATERAL blackboard.dependency_options(x.options) d (id, on_failure)
        WHERE NOT EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = p_session_id AND t.id = d.id)
        LIMIT 1;
        IF FOUND THEN
            PERFORM blackboard.raise('BB001', format('There is no task %s in this session to depend on.', v_id),
                                     jsonb_build_object('noun', 'task', 'id', v_id, 'field', 'depends_on'));
        END IF;
        INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id, on_failure)
        SELECT p_session_id, x.id, d.id, d.on_failure
        FROM unnest(p_ids, p_options) x (id, options),
             LATERAL blackboard.dependency_options(x.options) d (id, on_failure)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN v_added;
END
$$;

CREATE FUNCTION blackboard.add_task(
    p_session_id uuid, p_id uuid, p_type text, p_capability text, p_priority smallint, p_parameters jsonb,
    p_options jsonb, p_actor text
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_id uuid := p_id;
BEGIN
    IF p_options ? 'unique' THEN
        PERFORM blackboard.act_as(p_actor);
        v_id := (blackboard.unique_tasks(p_session_id, ARRAY[p_id], ARRAY[p_options]))[1];
        IF v_id <> p_id THEN
            RETURN QUERY SELECT t.* FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_id;
            RETURN;
        END IF;
    END IF;
    PERFORM blackboard.add_tasks(p_session_id, ARRAY[p_id], ARRAY[p_type], ARRAY[p_capability], ARRAY[p_priority],
                                 ARRAY[p_parameters], ARRAY[p_options], p_actor);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = p_id;
END
$$;

-- ------------------------------------------------------------------------------------------------------ leases

-- At most once a second, by whoever comes by: lapses what expired and sweeps what lapsed, a bounded number at a time.
-- A lapse is one terminal step. Nothing lapses within one term of the server's start, or of the end of a gap in which
-- nobody looked (then perhaps nobody could renew either). Where looks are always that rare, a lease lapses one term
-- after it was first seen expired.
CREATE FUNCTION blackboard.tend_leases(p_limit integer DEFAULT 200) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_state blackboard.liveness;
    v_grace timestamptz;
    v_swept integer := 0;
BEGIN
    -- An older snapshot knows nothing of what was renewed since, and would only collide.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN 0;
    END IF;
    SELECT * INTO v_state FROM blackboard.liveness;
    IF v_state.checked_at > v_now - interval '1 second' AND v_state.checked_at <= v_now AND NOT v_state.unswept THEN
        RETURN 0;
    END IF;
    SELECT * INTO v_state FROM blackboard.liveness FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    v_grace := greatest(v_state.grace_from, pg_postmaster_start_time());
    IF v_now - v_state.checked_at > interval '10 seconds' THEN
        v_grace := v_now;
    END IF;
    IF v_state.checked_at > v_now THEN
        -- The clock went back: nobody is owed more than one term from now.
        v_grace := least(v_grace, v_now);
        UPDATE blackboard.leases SET expires_at = v_now + term, suspected_at = NULL
        WHERE lapsed_at IS NULL AND expires_at > v_now + term;
    END IF;
    UPDATE blackboard.liveness SET checked_at = v_now, grace_from = v_grace;
    BEGIN
        UPDATE blackboard.leases SET lapsed_at = v_now
        WHERE lapsed_at IS NULL AND expires_at < v_now AND pg_postmaster_start_time() + term < v_now
          AND (v_grace + term < v_now OR suspected_at + term < v_now);
        UPDATE blackboard.leases SET suspected_at = v_now
        WHERE lapsed_at IS NULL AND expires_at < v_now AND suspected_at IS NULL;
        IF v_state.repaired_at < v_now - interval '15 seconds' OR v_state.repaired_at > v_now THEN
            PERFORM blackboard.repair_leases();
            UPDATE blackboard.liveness SET repaired_at = v_now;
        END IF;
        v_swept := blackboard.sweep_leases(p_limit) + blackboard.sweep_waiting(p_limit);
    EXCEPTION WHEN OTHERS THEN
        -- Whoever came by wanted something else, and one row that cannot be swept must not stop the whole board.
        RAISE WARNING 'blackboard.tend_leases: % (%)', SQLERRM, SQLSTATE;
        v_swept := 0;
    END;
    UPDATE blackboard.liveness SET unswept = v_swept >= p_limit WHERE unswept <> (v_swept >= p_limit);
    RETURN v_swept;
END
$$;

-- No task stays with a lease that is gone: a claim may be committed after its lease was swept (by a caller whose
-- transaction took long), and a lease may be deleted by hand.
CREATE FUNCTION blackboard.repair_leases() RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
BEGIN
    INSERT INTO blackboard.leases (id, host, term, expires_at, lapsed_at)
    SELECT DISTINCT t.lease_id, 'unknown', interval '1 second', blackboard.now(), blackboard.now()
    FROM blackboard.tasks t
    WHERE t.lease_id IS NOT NULL AND NOT EXISTS (SELECT FROM blackboard.leases l WHERE l.id = t.lease_id)
    ON CONFLICT DO NOTHING;
    UPDATE blackboard.leases l SET swept_at = NULL
    WHERE l.swept_at IS NOT NULL AND l.id IN (SELECT t.lease_id FROM blackboard.tasks t WHERE t.lease_id IS NOT NULL);
END
$$;

-- Takes back what lapsed leases hold. An owner who renewed meanwhile is safe: only lapsed leases are looked at, and a
-- lapsed one cannot be renewed.
CREATE FUNCTION blackboard.sweep_leases(p_limit integer) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
DECLARE
    -- A variable: an index is not searched for what a volatile function returns.
    v_now timestamptz := blackboard.now();
    v_swept integer;
    v_late integer;
BEGIN
    WITH lapsed AS (
        SELECT t.session_id, t.id
        FROM blackboard.leases l
        JOIN blackboard.tasks t ON t.lease_id = l.id
        WHERE l.lapsed_at IS NOT NULL AND l.swept_at IS NULL
        ORDER BY t.session_id, t.id
        LIMIT p_limit FOR UPDATE OF t SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.cancel_requested THEN 'cancelled'
                      WHEN t.attempt - t.released >= t.max_attempts THEN 'dead'
                      WHEN t.blockers > 0 THEN 'blocked' ELSE 'pending' END,
        position = CASE WHEN NOT t.cancel_requested AND t.attempt - t.released < t.max_attempts AND t.blockers = 0
                        THEN nextval('blackboard.task_positions') END,
        completed_at = CASE WHEN t.cancel_requested OR t.attempt - t.released >= t.max_attempts
                            THEN blackboard.now() END,
        lease_id = NULL, deadline_at = NULL, started_at = NULL,
        error = jsonb_build_object('code', 'lease_lapsed', 'agent_id', t.assigned_to, 'attempt', t.attempt,
                                   'message', 'The process that ran it went silent.')
    FROM lapsed WHERE t.session_id = lapsed.session_id AND t.id = lapsed.id;
    GET DIAGNOSTICS v_swept = ROW_COUNT;
    -- Over its maximum run time: the attempt failed, whoever runs it.
    WITH late AS (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE t.deadline_at < v_now
        ORDER BY t.deadline_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.cancel_requested THEN 'cancelled'
                      WHEN t.attempt - t.released >= t.max_attempts THEN 'dead' ELSE 'scheduled' END,
        position = NULL, lease_id = NULL, deadline_at = NULL, started_at = NULL,
        completed_at = CASE WHEN t.cancel_requested OR t.attempt - t.released >= t.max_attempts
                            THEN blackboard.now() END,
        run_at = blackboard.now() + blackboard.backoff(t.retry_delay, t.attempt),
        error = jsonb_build_object('code', 'timeout', 'agent_id', t.assigned_to, 'attempt', t.attempt,
                                   'message', format('It ran longer than its timeout of %s.', t.timeout))
    FROM late WHERE t.session_id = late.session_id AND t.id = late.id;
    GET DIAGNOSTICS v_late = ROW_COUNT;
    -- Without waiting: two sweepers at once, one of which has a claim before it, must not wait for each other.
    UPDATE blackboard.leases l SET swept_at = blackboard.now()
    WHERE l.id IN (SELECT u.id FROM blackboard.leases u
                   WHERE u.lapsed_at IS NOT NULL AND u.swept_at IS NULL
                     AND NOT EXISTS (SELECT FROM blackboard.tasks t WHERE t.lease_id = u.id)
                   FOR UPDATE SKIP LOCKED);
    RETURN v_swept + v_late;
END
$$;

-- Tasks that were not started in time are cancelled; assigned ones whose agent did not come for them in time, or has
-- gone silent or left, are anybody's. A bounded number at a time.
CREATE FUNCTION blackboard.sweep_waiting(p_limit integer) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_expired integer := 0;
    v_freed integer := 0;
BEGIN
    PERFORM 1 FROM blackboard.tasks t
    WHERE (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    WITH due AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL
          AND least(t.expires_at, t.fallback_at) <= v_now AND t.expires_at <= v_now
        ORDER BY least(t.expires_at, t.fallback_at) NULLS FIRST LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = 'cancelled', position = NULL, completed_at = v_now,
        error = jsonb_build_object('code', 'deadline', 'message', format('It was not started by %s.', t.expires_at))
    FROM due d WHERE t.session_id = d.session_id AND t.id = d.id;
    GET DIAGNOSTICS v_expired = ROW_COUNT;
    PERFORM 1 FROM blackboard.tasks t WHERE t.status = 'assigned' AND t.fallback IS NOT NULL
      AND (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL LIMIT 1;
    IF NOT FOUND THEN
        RETURN v_expired;
    END IF;
    -- What became assigned after it had been blocked, held or unapproved: its agent's time starts now.
    UPDATE blackboard.tasks t SET fallback_at = v_now + t.fallback
    WHERE (t.session_id, t.id) IN (
        SELECT w.session_id, w.id FROM blackboard.tasks w
        WHERE (w.expires_at IS NOT NULL OR w.fallback IS NOT NULL) AND w.completed_at IS NULL AND w.lease_id IS NULL
          AND w.status = 'assigned' AND w.fallback IS NOT NULL AND w.fallback_at IS NULL
        LIMIT p_limit FOR UPDATE SKIP LOCKED);
    -- Whoever has left or gone silent, of those that something is assigned to.
    WITH RECURSIVE waited_for AS (
        (SELECT t.session_id, t.assigned_to FROM blackboard.tasks t
         WHERE t.status = 'assigned' ORDER BY t.session_id, t.assigned_to LIMIT 1)
        UNION ALL
        SELECT n.session_id, n.assigned_to
        FROM waited_for w,
             LATERAL (SELECT t.session_id, t.assigned_to FROM blackboard.tasks t
                      WHERE t.status = 'assigned' AND (t.session_id, t.assigned_to) > (w.session_id, w.assigned_to)
                      ORDER BY t.session_id, t.assigned_to LIMIT 1) n
    ), absent AS MATERIALIZED (
        SELECT w.session_id, w.assigned_to
        FROM waited_for w
        JOIN blackboard.memberships m ON m.session_id = w.session_id AND m.agent_id = w.assigned_to
        LEFT JOIN blackboard.leases l ON l.id = m.lease_id
        WHERE m.left_at IS NOT NULL OR (m.lease_id IS NOT NULL AND (l.id IS NULL OR l.lapsed_at IS NOT NULL))
    ), due AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE (t.session_id, t.id) IN (
            (SELECT d.session_id, d.id FROM blackboard.tasks d
             WHERE (d.expires_at IS NOT NULL OR d.fallback IS NOT NULL) AND d.completed_at IS NULL AND d.lease_id IS NULL
               AND least(d.expires_at, d.fallback_at) <= v_now AND d.status = 'assigned' AND d.fallback_at <= v_now
             ORDER BY least(d.expires_at, d.fallback_at) NULLS FIRST LIMIT p_limit)
            UNION
            (SELECT d.session_id, d.id FROM absent a JOIN blackboard.tasks d
               ON d.session_id = a.session_id AND d.assigned_to = a.assigned_to
                  AND d.status = 'assigned' AND d.fallback IS NOT NULL
             LIMIT p_limit))
          AND t.status = 'assigned'
        FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = 'pending', assigned_to = NULL, fallback_at = NULL, position = nextval('blackboard.task_positions')
    FROM due d WHERE t.session_id = d.session_id AND t.id = d.id;
    GET DIAGNOSTICS v_freed = ROW_COUNT;
    RETURN greatest(v_expired, v_freed);
END
$$;

-- Jitter around an exponential: half to one and a half times delay * 2^(attempt-1), which grows to an hour at most (a
-- longer delay stays as it is). In seconds: an interval of 30 days times 2^30 is out of range.
CREATE FUNCTION blackboard.backoff(p_delay interval, p_attempt integer) RETURNS interval
LANGUAGE sql VOLATILE
AS $$
    SELECT least(extract(epoch FROM p_delay)::double precision * power(2::double precision, least(greatest(p_attempt, 1) - 1, 30)),
                 greatest(extract(epoch FROM p_delay)::double precision, 3600)) * (0.5 + random()) * interval '1 second'
$$;

-- Keeps a lease for one more term; returns how many tasks it holds, or NULL when it lapsed (which is final).
CREATE FUNCTION blackboard.renew_lease(p_lease_id uuid) RETURNS integer
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE blackboard.leases SET expires_at = blackboard.now() + term, suspected_at = NULL
    WHERE id = p_lease_id AND lapsed_at IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.tend_leases();
    RETURN (SELECT count(*)::integer FROM blackboard.tasks t WHERE t.lease_id = p_lease_id);
END
$$;

-- Gives everything back at once: a process that ends cleanly does not make others wait for its lease to lapse.
CREATE FUNCTION blackboard.end_lease(p_lease_id uuid) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = p_lease_id AND lapsed_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM blackboard.sweep_leases(1000);
    RETURN true;
END
$$;

-- ------------------------------------------------------------------------------------------------------- claim

-- Claims up to p_limit ready tasks for the agent: first those assigned to it, then by priority, then by position.
-- Repeating the call with the same p_claim_id returns the same rows. Locks only what it returns.
-- Must use tasks_assigned, tasks_ready and, for the repetition, tasks_leased, whatever the statistics say.
CREATE FUNCTION blackboard.claim_tasks(
    p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_sort = off
AS $$
DECLARE
    v_left integer := coalesce(p_limit, 1);
    v_got integer;
    v_below smallint := 11;
    v_priority smallint;
    v_capabilities text[] := p_capabilities || ''::text;
    v_capability text;
    v_now timestamptz := blackboard.now();
    v_gated boolean;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.lease_id = p_lease_id AND t.session_id = p_session_id AND t.claim_id = p_claim_id
                 ORDER BY t.priority DESC, t.id;
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM blackboard.live_lease(p_lease_id);
    PERFORM blackboard.tend_leases();
    SELECT s.gated INTO v_gated FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status = 'active';
    IF NOT FOUND THEN
        PERFORM blackboard.open_session(p_session_id);
        RETURN;
    END IF;
    PERFORM blackboard.wake_scheduled(p_session_id, v_now, greatest(v_left, 100));
    IF v_gated THEN
        RETURN QUERY SELECT * FROM blackboard.claim_gated(p_session_id, p_agent_id, p_capabilities, p_lease_id,
                                                          p_claim_id, v_left, v_now);
        RETURN;
    END IF;

    -- An update of nothing would still start its triggers.
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.assigned_to = p_agent_id AND t.status = 'assigned' LIMIT 1;
    IF FOUND THEN
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT t.session_id, t.id FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.assigned_to = p_agent_id AND t.status = 'assigned'
              AND (t.expires_at IS NULL OR t.expires_at > v_now)
            ORDER BY t.priority DESC, t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
        UPDATE blackboard.tasks t
        SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
            lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now, deadline_at = v_now + t.timeout, progress = NULL
        FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
        RETURNING t.*;
        GET DIAGNOSTICS v_got = ROW_COUNT;
        v_left := v_left - v_got;
    END IF;

    WHILE v_left > 0 LOOP
        -- The highest priority below the last one at which any of the capabilities has something ready.
        SELECT max(h.priority) INTO v_priority
        FROM unnest(v_capabilities) c (capability),
             LATERAL (SELECT t.priority FROM blackboard.tasks t
                      WHERE t.session_id = p_session_id AND t.capability = c.capability AND t.status = 'pending'
                        AND t.priority < v_below
                      ORDER BY t.priority DESC LIMIT 1) h;
        EXIT WHEN v_priority IS NULL;
        FOREACH v_capability IN ARRAY v_capabilities LOOP
            RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT t.session_id, t.id FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.capability = v_capability AND t.priority = v_priority
                  AND t.status = 'pending' AND (t.expires_at IS NULL OR t.expires_at > v_now)
                ORDER BY t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
            UPDATE blackboard.tasks t
            SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
                lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now,
                deadline_at = v_now + t.timeout, progress = NULL
            FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
            RETURNING t.*;
            GET DIAGNOSTICS v_got = ROW_COUNT;
            v_left := v_left - v_got;
            EXIT WHEN v_left <= 0;
        END LOOP;
        v_below := v_priority;
    END LOOP;
END
$$;

-- Claims one task by id, if it is ready and either for anyone or for this agent; no row otherwise. Repeating the call
-- with the same p_claim_id returns the row again.
CREATE FUNCTION blackboard.claim_task(
    p_session_id uuid, p_id uuid, p_agent_id text, p_lease_id uuid, p_claim_id uuid
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_gated boolean;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.session_id = p_session_id AND t.id = p_id AND t.claim_id = p_claim_id AND t.status = 'running';
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM blackboard.live_lease(p_lease_id);
    PERFORM blackboard.tend_leases();
    SELECT s.gated INTO v_gated FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status = 'active';
    IF NOT FOUND THEN
        PERFORM blackboard.open_session(p_session_id);
        RETURN;
    END IF;
    PERFORM blackboard.wake_scheduled(p_session_id, v_now, 100);
    IF v_gated THEN
        IF NOT blackboard.admit_task(p_session_id, p_id, p_agent_id, v_now) THEN
            RETURN;
        END IF;
        v_now := blackboard.now();
    END IF;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id = p_id
          AND (t.status = 'pending' OR (t.status = 'assigned' AND t.assigned_to = p_agent_id))
          AND (t.expires_at IS NULL OR t.expires_at > v_now)
        FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
        lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now, deadline_at = v_now + t.timeout,
        progress = NULL, limited = v_gated
    FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
    RETURNING t.*;
END
$$;

-- Scheduled tasks whose time has come get ready, a bounded number at a time.
CREATE FUNCTION blackboard.wake_scheduled(p_session_id uuid, p_now timestamptz, p_limit integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.status = 'scheduled' AND t.run_at <= p_now LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    WITH due AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'scheduled' AND t.run_at <= p_now
        ORDER BY t.run_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.blockers > 0 THEN 'blocked'
                      WHEN t.assigned_to IS NOT NULL AND t.attempt = 0 THEN 'assigned' ELSE 'pending' END,
        position = CASE WHEN t.blockers = 0 THEN nextval('blackboard.task_positions') END, held = NULL
    FROM due d WHERE t.session_id = d.session_id AND t.id = d.id;
END
$$;

-- --------------------------------------------------------------------------------------- verbs on a held task

-- Completes many; returns only those that were refused because claim or attempt is not theirs any more, after keeping
-- their results aside. Repeating a completion is no refusal. Dependants get ready in the same transaction.
CREATE FUNCTION blackboard.complete_tasks(
    p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_results jsonb[], p_agent_id text
) RETURNS SETOF uuid
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_done integer;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    -- The session comes from the list and not from the parameter, and the status is asked for and not the lease: then
    -- no scan of the session's tasks, and none of tasks_leased, can be mistaken for cheap while they look empty.
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.result
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_results) u (id, claim_id, attempt, result))
    UPDATE blackboard.tasks t
    SET status = 'completed', result = x.result, lease_id = NULL, deadline_at = NULL, completed_at = blackboard.now(),
        error = NULL
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running';
    GET DIAGNOSTICS v_done = ROW_COUNT;
    IF v_done = cardinality(p_ids) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.result
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_results) u (id, claim_id, attempt, result)
    ), refused AS MATERIALIZED (
        SELECT x.id, x.claim_id, x.attempt, x.result, t.id IS NOT NULL AS known
        FROM x LEFT JOIN blackboard.tasks t ON t.session_id = x.session_id AND t.id = x.id
        WHERE (t.status, t.claim_id, t.attempt) IS DISTINCT FROM ('completed', x.claim_id, x.attempt)
    ), kept AS (
        INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id, result)
        SELECT p_session_id, r.id, r.claim_id, r.attempt, p_agent_id, r.result FROM refused r WHERE r.known
        ON CONFLICT DO NOTHING)
    SELECT r.id FROM refused r;
END
$$;

-- The held task, locked; raises LeaseLost when claim or attempt is not the present one.
CREATE FUNCTION blackboard.held_task(p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer)
RETURNS blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF v_task.status <> 'running' OR v_task.claim_id IS DISTINCT FROM p_claim_id OR v_task.attempt <> p_attempt THEN
        PERFORM blackboard.raise('BB006', format('Task %s is not yours any more (it is %s, attempt %s): drop this work.',
                                                 p_id, v_task.status, v_task.attempt),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status,
                                                    'attempt', v_task.attempt));
    END IF;
    RETURN v_task;
END
$$;

-- Ends an attempt that failed: back with backoff (or p_delay) while attempts are left, else dead; failed at once
-- without p_retry. Repeating it after the row moved on is answered with LeaseLost, whose caller may drop the work.
CREATE FUNCTION blackboard.fail_task(
    p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_error jsonb, p_retry boolean,
    p_delay interval, p_agent_id text
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_task blackboard.tasks;
    v_status text;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    SELECT * INTO v_task FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = p_id AND t.claim_id = p_claim_id AND t.attempt = p_attempt
      AND t.status IN ('scheduled', 'failed', 'dead') AND t.error -> 'attempt' = to_jsonb(p_attempt);
    IF FOUND THEN
        RETURN NEXT v_task;
        RETURN;
    END IF;
    v_task := blackboard.held_task(p_session_id, p_id, p_claim_id, p_attempt);
    v_status := CASE WHEN NOT p_retry THEN 'failed'
                     WHEN v_task.cancel_requested THEN 'cancelled'
                     WHEN v_task.attempt - v_task.released >= v_task.max_attempts THEN 'dead'
                     ELSE 'scheduled' END;
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET status = v_status, lease_id = NULL, deadline_at = NULL,
        error = CASE WHEN jsonb_typeof(p_error) = 'object' THEN p_error
                     ELSE jsonb_build_object('code', 'failed', 'message', coalesce(p_error #>> '{}', '')) END
                || jsonb_build_object('attempt', p_attempt, 'agent_id', p_agent_id),
        run_at = CASE WHEN v_status = 'scheduled'
                      THEN blackboard.now() + coalesce(p_delay, blackboard.backoff(t.retry_delay, t.attempt))
                      ELSE t.run_at END,
        completed_at = CASE WHEN v_status <> 'scheduled' THEN blackboard.now() END
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;

-- Hands a task back as if it had not been claimed: the attempt does not count.
CREATE FUNCTION blackboard.release_task(
    p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_agent_id text
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    v_task := blackboard.held_task(p_session_id, p_id, p_claim_id, p_attempt);
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.cancel_requested THEN 'cancelled' WHEN t.blockers > 0 THEN 'blocked' ELSE 'pending' END,
        position = CASE WHEN NOT t.cancel_requested AND t.blockers = 0 THEN nextval('blackboard.task_positions') END,
        completed_at = CASE WHEN t.cancel_requested THEN blackboard.now() END,
        lease_id = NULL, deadline_at = NULL, started_at = NULL, error = NULL, released = t.released + 1
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;

-- Reports how far a held task is; the row returned tells whether it is to be cancelled.
CREATE FUNCTION blackboard.progress_task(
    p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_progress jsonb, p_agent_id text
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM blackboard.held_task(p_session_id, p_id, p_claim_id, p_attempt);
    RETURN QUERY UPDATE blackboard.tasks t SET progress = p_progress
                 WHERE t.session_id = p_session_id AND t.id = p_id RETURNING t.*;
END
$$;

-- ------------------------------------------------------------------------------------- verbs on any open task

-- Cancels: at once where nobody runs it, else by request to its holder. A final task is left as it is.
CREATE FUNCTION blackboard.cancel_task(p_session_id uuid, p_id uuid, p_reason text, p_actor text)
RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF v_task.status = 'cancelled' OR v_task.cancel_requested THEN
        RETURN NEXT v_task;
    ELSIF v_task.completed_at IS NOT NULL AND v_task.status <> 'dead' THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s; it can no longer be cancelled.', p_id, v_task.status),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    ELSIF v_task.status = 'running' THEN
        RETURN QUERY UPDATE blackboard.tasks t SET cancel_requested = true
                     WHERE t.session_id = p_session_id AND t.id = p_id RETURNING t.*;
    ELSE
        RETURN QUERY
        UPDATE blackboard.tasks t
        SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
            error = jsonb_build_object('code', 'cancelled', 'message', p_reason)
        WHERE t.session_id = p_session_id AND t.id = p_id RETURNING t.*;
    END IF;
END
$$;

-- Decides a task that requires approval: it gets ready (or waits for the next thing that holds it), or is cancelled.
CREATE FUNCTION blackboard.decide_task(
    p_session_id uuid, p_id uuid, p_approved boolean, p_by text, p_reason text
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_by);
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF p_approved AND v_task.approved_by = blackboard.current_actor() THEN
        RETURN NEXT v_task;
        RETURN;
    END IF;
    IF v_task.status <> 'awaiting_approval' THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s and waits for no approval.', p_id, v_task.status),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    END IF;
    v_task.approved_by := CASE WHEN p_approved THEN blackboard.current_actor() END;
    v_task.status := CASE WHEN p_approved THEN blackboard.next_status(v_task) ELSE 'cancelled' END;
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET approved_by = v_task.approved_by, status = v_task.status,
        position = CASE WHEN v_task.status IN ('pending', 'assigned') THEN nextval('blackboard.task_positions') END,
        completed_at = CASE WHEN NOT p_approved THEN blackboard.now() END,
        error = CASE WHEN NOT p_approved THEN jsonb_build_object('code', 'rejected', 'message', p_reason) END
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;

-- Starts over what failed, is dead or was cancelled before it ran: attempts are counted anew.
CREATE FUNCTION blackboard.redrive_task(p_session_id uuid, p_id uuid, p_actor text) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF v_task.status NOT IN ('failed', 'dead') THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s; only failed and dead tasks can be redriven.',
                                                 p_id, v_task.status),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    END IF;
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.blockers > 0 THEN 'blocked' ELSE 'pending' END,
        position = CASE WHEN t.blockers = 0 THEN nextval('blackboard.task_positions') END,
        completed_at = NULL, error = NULL, cancel_requested = false, released = t.attempt
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;
