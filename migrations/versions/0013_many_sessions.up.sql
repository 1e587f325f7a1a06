-- Many sessions at once: a worker of a thousand of them joins, claims and completes in one call. And less for PostgreSQL to
-- read anew in each statement that writes a task: rules, and the conditions of triggers.

-- ------------------------------------------------------------------------------------------------------------ rules

-- The rules of a task's row: the name of one that it breaks, or NULL. As with CHECKs, what is not known breaks none.
--
-- PostgreSQL reads the expression of every CHECK anew in every statement that writes a row, which took a quarter of the
-- time of each call for one task; as a part of the history's triggers these are read once a connection. Two CHECKs are
-- left, on texts that are keys of indexes.
CREATE FUNCTION blackboard.broken_task_rule(
    p_type text, p_status text, p_position bigint, p_parameters jsonb, p_priority smallint, p_timeout interval,
    p_requires_approval boolean, p_approved_by text, p_run_at timestamptz, p_attempt integer, p_max_attempts integer,
    p_retry_delay interval, p_assigned_to text, p_claim_id uuid, p_lease_id uuid, p_started_at timestamptz,
    p_deadline_at timestamptz, p_completed_at timestamptz, p_blockers integer, p_unique_key text, p_limit_key text,
    p_fallback interval, p_held jsonb, p_progress jsonb, p_result jsonb, p_error jsonb
) RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN NOT (length(p_type) BETWEEN 1 AND 50) THEN 'tasks_type_length'
        WHEN NOT (p_status IN ('pending', 'running', 'completed', 'assigned', 'scheduled', 'blocked', 'awaiting_approval',
                              'held', 'failed', 'cancelled', 'dead'))
            THEN 'tasks_status_known'
        WHEN NOT (p_priority BETWEEN 0 AND 10) THEN 'tasks_priority_range'
        WHEN NOT (pg_column_size(p_parameters) <= 1048576) THEN 'tasks_parameters_size'
        WHEN NOT (pg_column_size(p_progress) <= 1048576) THEN 'tasks_progress_size'
        WHEN NOT (pg_column_size(p_result) <= 1048576) THEN 'tasks_result_size'
        WHEN NOT (pg_column_size(p_error) <= 1048576) THEN 'tasks_error_size'
        WHEN NOT (pg_column_size(p_held) <= 8192) THEN 'tasks_held_size'
        WHEN NOT (p_status <> 'held' OR coalesce(p_held ->> 'code', '') <> '') THEN 'tasks_held_says_why'
        WHEN NOT (p_timeout > interval '0' AND p_timeout <= interval '3650 days') THEN 'tasks_timeout_range'
        WHEN NOT (p_fallback BETWEEN interval '0' AND interval '3650 days') THEN 'tasks_fallback_range'
        WHEN NOT (p_retry_delay BETWEEN interval '0' AND interval '30 days') THEN 'tasks_retry_delay_range'
        WHEN NOT (p_attempt >= 0) THEN 'tasks_attempt_range'
        WHEN NOT (p_max_attempts BETWEEN 1 AND 1000) THEN 'tasks_max_attempts_range'
        WHEN NOT (p_blockers >= 0) THEN 'tasks_blockers_range'
        WHEN NOT (length(p_unique_key) BETWEEN 1 AND 200) THEN 'tasks_unique_key_length'
        WHEN NOT (length(p_limit_key) BETWEEN 1 AND 200) THEN 'tasks_limit_key_length'
        WHEN NOT ((p_status = 'running') = (p_lease_id IS NOT NULL)) THEN 'tasks_lease_iff_running'
        WHEN NOT (p_status <> 'running'
                  OR (p_claim_id IS NOT NULL AND p_attempt > 0 AND p_assigned_to IS NOT NULL AND p_started_at IS NOT NULL))
            THEN 'tasks_claimed_when_running'
        WHEN NOT (p_deadline_at IS NULL OR p_status = 'running') THEN 'tasks_deadline_only_running'
        WHEN NOT ((p_status IN ('pending', 'assigned')) = (p_position IS NOT NULL)) THEN 'tasks_position_iff_ready'
        WHEN NOT (p_blockers = 0 OR p_status NOT IN ('pending', 'assigned')) THEN 'tasks_ready_is_unblocked'
        WHEN NOT (NOT p_requires_approval OR p_approved_by IS NOT NULL
                  OR p_status NOT IN ('pending', 'assigned', 'running'))
            THEN 'tasks_ready_is_approved'
        WHEN NOT (p_status <> 'assigned' OR p_assigned_to IS NOT NULL) THEN 'tasks_assignee_when_assigned'
        WHEN NOT (p_status <> 'scheduled' OR p_run_at IS NOT NULL) THEN 'tasks_run_at_when_scheduled'
        WHEN NOT (p_status <> 'blocked' OR p_blockers > 0) THEN 'tasks_blockers_iff_blocked'
        WHEN NOT ((p_status IN ('completed', 'failed', 'cancelled', 'dead')) = (p_completed_at IS NOT NULL))
            THEN 'tasks_completed_at_iff_final'
    END
$$;

-- Refuses the statement for a row that breaks the rule of that name, as a CHECK of that name would.
CREATE FUNCTION blackboard.refuse_task(p_rule text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE check_violation USING
        MESSAGE = format('new row for relation "tasks" violates check constraint "%s"', p_rule),
        SCHEMA = 'blackboard', TABLE = 'tasks', CONSTRAINT = p_rule;
END
$$;

ALTER TABLE blackboard.tasks
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_type_length,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_status_known,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_priority_range,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_parameters_size,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_progress_size,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_result_size,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_error_size,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_held_size,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_held_says_why,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_timeout_range,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_fallback_range,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_retry_delay_range,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_attempt_range,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_max_attempts_range,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_blockers_range,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_unique_key_length,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_limit_key_length,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_lease_iff_running,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_claimed_when_running,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_deadline_only_running,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_position_iff_ready,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_ready_is_unblocked,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_ready_is_approved,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_assignee_when_assigned,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_run_at_when_scheduled,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_blockers_iff_blocked,
    -- squawk-ignore ban-drop-constraint
    DROP CONSTRAINT tasks_completed_at_iff_final;
COMMENT ON TABLE blackboard.tasks IS 'What is to be done, and by whom; its rules are those of blackboard.broken_task_rule().';

CREATE OR REPLACE FUNCTION blackboard.history_tasks_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_tx bigint;
    v_actor text;
    v_rule text;
    v_session_id uuid := (SELECT n.session_id FROM new_rows n LIMIT 1);
BEGIN
    IF v_session_id IS NULL THEN
        RETURN NULL;
    END IF;
    v_rule := (SELECT min(blackboard.broken_task_rule(
                           n.type, n.status, n.position, n.parameters, n.priority, n.timeout, n.requires_approval,
                           n.approved_by, n.run_at, n.attempt, n.max_attempts, n.retry_delay, n.assigned_to,
                           n.claim_id, n.lease_id, n.started_at, n.deadline_at, n.completed_at, n.blockers,
                           n.unique_key, n.limit_key, n.fallback, n.held, n.progress, n.result, n.error)) FROM new_rows n);
    IF v_rule IS NOT NULL THEN
        PERFORM blackboard.refuse_task(v_rule);
    END IF;
    -- One look for what is rare: several sessions in one statement, or rows that no task begins as.
    PERFORM 1 FROM new_rows n
    WHERE n.session_id <> v_session_id OR n.status NOT IN ('pending', 'assigned', 'scheduled', 'awaiting_approval', 'held')
       OR n.attempt <> 0 OR n.released <> 0 OR n.blockers <> 0 LIMIT 1;
    IF NOT FOUND THEN
        PERFORM blackboard.check_sessions(ARRAY[v_session_id]);
    ELSE
        PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
        PERFORM 1 FROM new_rows n
        WHERE n.status NOT IN ('pending', 'assigned', 'scheduled', 'awaiting_approval', 'held')
           OR n.attempt <> 0 OR n.released <> 0 OR n.blockers <> 0 LIMIT 1;
        IF FOUND THEN
            PERFORM blackboard.raise('BB003', 'A task is not born running, blocked or finished: add it, then claim it.',
                                     '{"noun": "task", "field": "status"}');
        END IF;
    END IF;
    v_tx := blackboard.current_tx();
    v_actor := blackboard.current_actor();
    -- What is not named here has its column's default.
    INSERT INTO blackboard.events (session_id, tx, actor, type, subject_id, data)
    SELECT n.session_id, v_tx, v_actor, 'task.created', n.id,
           CASE WHEN n.timeout IS NULL AND n.max_attempts = 5 AND n.retry_delay = interval '1 second'
                     AND NOT n.requires_approval
                THEN jsonb_build_object(
                         'type', n.type, 'capability', n.capability, 'priority', n.priority, 'status', n.status,
                         'assigned_to', n.assigned_to, 'run_at', n.run_at,
                         'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END)
                ELSE jsonb_build_object(
                         'type', n.type, 'capability', n.capability, 'priority', n.priority, 'status', n.status,
                         'assigned_to', n.assigned_to, 'run_at', n.run_at,
                         'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END,
                         'timeout', n.timeout, 'max_attempts', n.max_attempts, 'retry_delay', n.retry_delay,
                         'requires_approval', n.requires_approval, 'approved_by', n.approved_by) END
    FROM new_rows n ORDER BY n.position;
    IF current_setting('xmlbinary') <> 'hex' THEN
        PERFORM blackboard.hint(s.session_id, 'tasks.ready') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    END IF;
    RETURN NULL;
END
$$;

-- --------------------------------------------------------------------------------------------------------- triggers

-- The conditions of row triggers are read from the catalog by every statement that may fire them: this one is short, and
-- that of reopened tasks is a look of the history's.
DROP TRIGGER reopened ON blackboard.tasks;
-- squawk-ignore ban-drop-function
DROP FUNCTION blackboard.check_reopened_task();

-- A stage's task that got ready (again) while its flow is paused is held; in a cancelled flow it is cancelled. Deferred,
-- because a retry, a lapse or an approval must be history before what follows from it; nobody else sees the row before.
CREATE OR REPLACE FUNCTION blackboard.hold_returned_stage() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
AS $$
DECLARE
    v_flow blackboard.flows;
    v_stage text;
BEGIN
    -- What was blocked is released by the flow, which looks itself.
    IF NEW.status NOT IN ('pending', 'assigned', 'scheduled')
       OR OLD.status IN ('pending', 'assigned', 'scheduled', 'blocked') THEN
        RETURN NULL;
    END IF;
    SELECT t.stage INTO v_stage FROM blackboard.flow_tasks t
    WHERE t.session_id = NEW.session_id AND t.task_id = NEW.id AND t.kind = 'stage';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT f.* INTO v_flow FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    WHERE t.session_id = NEW.session_id AND t.task_id = NEW.id FOR UPDATE OF f;
    IF v_flow.status = 'cancelled' THEN
        UPDATE blackboard.tasks t
        SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
            error = jsonb_build_object('code', 'flow_cancelled', 'message', 'The flow was cancelled.')
        WHERE t.session_id = NEW.session_id AND t.id = NEW.id AND t.status IN ('pending', 'assigned', 'scheduled');
        RETURN NULL;
    ELSIF v_flow.finished_at IS NOT NULL THEN
        RETURN NULL;
    END IF;
    -- A redrive: what had failed is open again.
    UPDATE blackboard.flow_stages s SET state = 'ready', error = NULL
    FROM blackboard.tasks t
    WHERE s.session_id = NEW.session_id AND s.flow_id = v_flow.id AND s.name = v_stage AND s.task_id = NEW.id
      AND s.state = 'failed' AND t.session_id = s.session_id AND t.id = s.task_id AND t.completed_at IS NULL;
    IF v_flow.status = 'paused' THEN
        UPDATE blackboard.tasks t
        SET status = 'held', position = NULL, held = blackboard.held_by_flow(v_flow.id, v_flow.name, t.position)
        WHERE t.session_id = NEW.session_id AND t.id = NEW.id AND t.status IN ('pending', 'assigned', 'scheduled');
    END IF;
    RETURN NULL;
END
$$;
DROP TRIGGER hold_returned_stage ON blackboard.tasks;
CREATE CONSTRAINT TRIGGER hold_returned_stage AFTER UPDATE OF status ON blackboard.tasks
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.has_dependants)
    EXECUTE FUNCTION blackboard.hold_returned_stage();

-- Positions, claim ids and has_dependants are means, not history. Results over 8 kB are read from the row.
-- The join's method is fixed: a plan made for one changed row must not meet a thousand. Hints tell what is new to claim
-- (tasks.ready) from what only those want to know who wait for an outcome (tasks.changed).
CREATE OR REPLACE FUNCTION blackboard.history_tasks_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET enable_hashjoin = on
AS $$
DECLARE
    v_tx bigint;
    v_actor text;
    v_one record;
    v_same boolean;
    v_rule text;
BEGIN
    SELECT n.status, n.assigned_to, n.attempt, n.lease_id INTO v_one FROM new_rows n LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_rule := (SELECT min(blackboard.broken_task_rule(
                           n.type, n.status, n.position, n.parameters, n.priority, n.timeout, n.requires_approval,
                           n.approved_by, n.run_at, n.attempt, n.max_attempts, n.retry_delay, n.assigned_to,
                           n.claim_id, n.lease_id, n.started_at, n.deadline_at, n.completed_at, n.blockers,
                           n.unique_key, n.limit_key, n.fallback, n.held, n.progress, n.result, n.error)) FROM new_rows n);
    IF v_rule IS NOT NULL THEN
        PERFORM blackboard.refuse_task(v_rule);
    END IF;
    v_tx := blackboard.current_tx();
    v_actor := blackboard.current_actor();
    -- The two hot steps, whole statements of them, need no look at what each row was before, but for what they clear.
    IF v_one.status = 'running' THEN
        PERFORM 1 FROM old_rows o WHERE o.status NOT IN ('pending', 'assigned') OR o.progress IS NOT NULL LIMIT 1;
        IF NOT FOUND THEN
            PERFORM 1 FROM new_rows n
            WHERE n.status <> 'running' OR n.attempt <> v_one.attempt OR n.lease_id <> v_one.lease_id
               OR n.assigned_to <> v_one.assigned_to LIMIT 1;
            v_same := NOT FOUND;
            IF NOT v_same THEN
                PERFORM 1 FROM new_rows n WHERE n.status <> 'running' LIMIT 1;
            END IF;
            IF NOT FOUND THEN
                INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
                SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.started_at, v_actor, 'task.assigned', n.id,
                       CASE WHEN v_same THEN one.data
                            ELSE jsonb_build_object('status', 'running', 'assigned_to', n.assigned_to,
                                                    'attempt', n.attempt, 'lease_id', n.lease_id) END
                FROM (SELECT jsonb_build_object('status', 'running', 'assigned_to', v_one.assigned_to,
                                                'attempt', v_one.attempt, 'lease_id', v_one.lease_id) AS data
                      OFFSET 0) one, new_rows n;
                IF current_setting('xmlbinary') <> 'hex' THEN
                    PERFORM blackboard.hint(s.session_id, 'tasks.changed')
                    FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
                END IF;
                RETURN NULL;
            END IF;
        END IF;
    ELSIF v_one.status = 'completed' THEN
        PERFORM 1 FROM new_rows n WHERE n.status <> 'completed' OR n.has_dependants OR n.limited LIMIT 1;
        IF NOT FOUND THEN
            PERFORM 1 FROM old_rows o WHERE o.status <> 'running' OR o.error IS NOT NULL LIMIT 1;
        END IF;
        IF NOT FOUND THEN
            INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
            SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.completed_at, v_actor, 'task.completed', n.id,
                   CASE WHEN n.result IS NULL THEN '{"status": "completed", "lease_id": null}'::jsonb
                        ELSE jsonb_build_object('status', 'completed', 'lease_id', NULL, 'result',
                                                CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END) END
            FROM new_rows n;
            IF current_setting('xmlbinary') <> 'hex' THEN
                PERFORM blackboard.hint(s.session_id, 'tasks.changed')
                FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
            END IF;
            RETURN NULL;
        END IF;
    END IF;

    -- A block of its own: only this step has something to catch, and the others do without its subtransaction.
    BEGIN
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
                       || CASE WHEN o.progress IS DISTINCT FROM n.progress
                               THEN jsonb_build_object('progress', n.progress) ELSE '{}' END
                   WHEN n.status = 'completed' AND o.status <> 'completed' THEN
                       jsonb_build_object('status', n.status, 'lease_id', NULL,
                                          'result', CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END)
                       || CASE WHEN o.error IS DISTINCT FROM n.error
                               THEN jsonb_build_object('error', n.error) ELSE '{}' END
                   WHEN n.status <> o.status THEN
                       jsonb_build_object('status', n.status, 'lease_id', n.lease_id, 'assigned_to', n.assigned_to,
                                          'run_at', n.run_at, 'error', n.error, 'approved_by', n.approved_by,
                                          'blockers', n.blockers, 'released', n.released,
                                          'cancel_requested', n.cancel_requested, 'held', n.held)
                       || CASE WHEN n.max_attempts <> o.max_attempts
                               THEN jsonb_build_object('max_attempts', n.max_attempts) ELSE '{}' END
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
    EXCEPTION WHEN not_null_violation THEN
        PERFORM blackboard.raise('BB003', 'The life cycle of a task has no such step; see the diagram in the README.',
            (SELECT jsonb_build_object('noun', 'task', 'id', n.id, 'from', o.status, 'status', n.status)
             FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
             WHERE n.attempt < o.attempt OR (n.status = 'running' AND (n.status = o.status) <> (n.attempt = o.attempt))
                OR (n.status = o.status AND (n.claim_id, n.lease_id) IS DISTINCT FROM (o.claim_id, o.lease_id))
                OR (n.status <> o.status AND blackboard.task_event(o.status, n.status, n.error) IS NULL) LIMIT 1));
    END;

    -- A redrive by hand in a closed session, whose tasks nobody can claim any more.
    IF EXISTS (SELECT FROM old_rows o WHERE o.completed_at IS NOT NULL) THEN
        PERFORM blackboard.check_sessions(array_agg(DISTINCT n.session_id))
        FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
        WHERE o.completed_at IS NOT NULL AND n.completed_at IS NULL HAVING count(*) > 0;
    END IF;
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
    -- What this made ready is told with the commit, whoever did it: the client that completes a task, or sweeps a lease on
    -- its way to a claim, does not know of it.
    PERFORM pg_notify('blackboard', r.session_id::text || ' tasks.ready')
    FROM (SELECT DISTINCT n.session_id FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
          WHERE n.status IN ('pending', 'assigned', 'scheduled') AND n.status <> o.status) r
    WHERE current_setting('blackboard.notify', true) IS DISTINCT FROM 'off';
    IF NOT FOUND AND current_setting('xmlbinary') <> 'hex' THEN
        PERFORM blackboard.hint(s.session_id, CASE WHEN s.ready THEN 'tasks.ready' ELSE 'tasks.changed' END)
        FROM (SELECT n.session_id, bool_or(n.status IN ('pending', 'assigned', 'scheduled')) AS ready
              FROM new_rows n GROUP BY n.session_id) s;
    END IF;
    RETURN NULL;
END
$$;

-- ----------------------------------------------------------------------------------------------------------- leases

-- At most once a second, by whoever comes by: lapses what expired and sweeps what lapsed, a bounded number at a time.
-- A lapse is one terminal step. Nothing lapses within one term of the server's start, or of the end of a gap in which
-- nobody looked (then perhaps nobody could renew either). Where looks are always that rare, a lease lapses one term
-- after it was first seen expired.
CREATE OR REPLACE FUNCTION blackboard.tend_leases(p_limit integer DEFAULT 200) RETURNS integer
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
    -- Whoever has counters locked (it has just ended a task) waits for no lease, no task and no further counter.
    IF current_setting('blackboard.slots', true) = 'locked' THEN
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
    -- Somebody may have looked since; that is no clock that went back.
    v_now := blackboard.now();
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
        v_swept := blackboard.sweep_leases(p_limit);
        IF current_setting('blackboard.slots', true) IS DISTINCT FROM 'locked' THEN
            v_swept := v_swept + blackboard.sweep_waiting(p_limit);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        -- Whoever came by wanted something else, and one row that cannot be swept must not stop the whole board.
        RAISE WARNING 'blackboard.tend_leases: % (%)', SQLERRM, SQLSTATE;
        v_swept := 0;
    END;
    UPDATE blackboard.liveness SET unswept = v_swept >= p_limit WHERE unswept <> (v_swept >= p_limit);
    RETURN v_swept;
END
$$;

-- ----------------------------------------------------------------------------------------------------------- claims

-- Claims up to p_limit ready tasks for the agent: first those assigned to it, then by priority, then by position.
-- Repeating the call with the same p_claim_id returns the same rows. Locks only what it returns.
-- Must use tasks_assigned, tasks_ready and, for the repetition, tasks_leased, whatever the statistics say.
--
-- Floors: while somebody holds an old snapshot, the index entries of what was claimed stay, and every look from the left
-- walks over them. A connection that found such a look slow notes, for a few seconds (40 times what the look took, 15 at
-- most), up to which position it has claimed in each capability and priority, and looks from there on. So a task that
-- comes to lie below (its transaction was long, a claim of it was rolled back) is seen that much later, and the looks
-- from the left cost a tenth of the time at most. The note is a hint in a setting: whoever shares the connection may use
-- it, nobody must, and a rollback takes it back.
CREATE OR REPLACE FUNCTION blackboard.claim_tasks(
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
    v_floors jsonb;
    v_began timestamptz;
    v_took double precision;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.lease_id = p_lease_id AND t.session_id = p_session_id AND t.claim_id = p_claim_id
                 ORDER BY t.priority DESC, t.id;
    IF FOUND THEN
        RETURN;
    END IF;
    -- First, so that nothing is claimed under a lease that lapses with this very look.
    PERFORM blackboard.tend_leases();
    PERFORM blackboard.live_lease(p_lease_id);
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

    IF current_setting('blackboard.floors', true) <> '' THEN
        SELECT f.floors INTO v_floors FROM blackboard.floors(p_session_id) f;
        IF v_floors IS NOT NULL THEN
            RETURN QUERY SELECT * FROM blackboard.claim_above_floors(p_session_id, p_agent_id, v_capabilities, p_lease_id,
                                                                     p_claim_id, v_left, v_now, v_floors);
            RETURN;
        END IF;
    END IF;
    v_began := clock_timestamp();
    IF cardinality(v_capabilities) = 1 THEN
        -- One queue, in the index's own order: nothing is to be merged, and no head to be looked for.
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT t.session_id, t.id FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.capability = '' AND t.status = 'pending'
              AND (t.expires_at IS NULL OR t.expires_at > v_now)
            ORDER BY t.priority DESC, t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
        UPDATE blackboard.tasks t
        SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
            lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now,
            deadline_at = v_now + t.timeout, progress = NULL
        FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
        RETURNING t.*;
        GET DIAGNOSTICS v_got = ROW_COUNT;
        v_left := v_left - v_got;
    END IF;
    WHILE v_left > 0 AND cardinality(v_capabilities) > 1 LOOP
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
    v_took := extract(epoch FROM clock_timestamp() - v_began);
    IF v_took > 0.003 + 0.00003 * (p_limit - v_left) THEN
        -- Slow for so few tasks: from the next claim on, what lies below is left out for a while.
        PERFORM blackboard.note_floors(p_session_id, '{}', least(15, 40 * v_took));
    END IF;
END
$$;

-- Claims one task by id, if it is ready and either for anyone or for this agent; no row otherwise. Repeating the call
-- with the same p_claim_id returns the row again.
CREATE OR REPLACE FUNCTION blackboard.claim_task(
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
    -- First, so that nothing is claimed under a lease that lapses with this very look.
    PERFORM blackboard.tend_leases();
    PERFORM blackboard.live_lease(p_lease_id);
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

-- One look at many sessions: whether there is something that the agent could claim, and in how long the next
-- scheduled task is due or what lies below a floor is to be looked at (NULL: none). Must use tasks_ready, tasks_assigned,
-- tasks_scheduled and tasks_timers.
CREATE OR REPLACE FUNCTION blackboard.look_for_tasks(
    p_session_ids uuid[], p_agent_id text, p_capabilities text[]
) RETURNS TABLE(session_id uuid, status text, ready boolean, due_in interval)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_capabilities text[] := p_capabilities || ''::text;
    -- Read once, and not for each session: of hundreds of them it is long.
    v_notes jsonb := nullif(current_setting('blackboard.floors', true), '')::jsonb;
BEGIN
    -- Who only looks is often the only one who is there.
    PERFORM 1 FROM blackboard.tasks t
    WHERE (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL
      AND least(t.expires_at, t.fallback_at) <= v_now
    ORDER BY least(t.expires_at, t.fallback_at) NULLS FIRST LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.tend_leases();
    END IF;
    RETURN QUERY
    SELECT s.id, s.status,
           s.status = 'active' AND (
               CASE WHEN f.floors IS NULL OR s.gated THEN
                   EXISTS (SELECT FROM unnest(v_capabilities) c (capability),
                               LATERAL (SELECT FROM blackboard.tasks t
                                        WHERE t.session_id = s.id AND t.capability = c.capability
                                          AND t.status = 'pending' LIMIT 1) p
                           WHERE NOT s.gated OR NOT blackboard.capability_paused(s.id, c.capability))
               ELSE
                   EXISTS (SELECT FROM unnest(v_capabilities) c (capability), generate_series(0, 10) q (priority),
                               LATERAL (SELECT FROM blackboard.tasks t
                                        WHERE t.session_id = s.id AND t.capability = c.capability
                                          AND t.priority = q.priority::smallint AND t.status = 'pending'
                                          AND t.position > coalesce(
                                              (f.floors ->> (q.priority || ' ' || c.capability))::bigint, 0)
                                        ORDER BY t.position LIMIT 1) p)
               END
               OR EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.assigned_to = p_agent_id AND t.status = 'assigned')
               -- A slot is free, and tasks are held that it was not given to.
               OR (s.gated AND blackboard.slots_left(s.id))),
           CASE WHEN s.status = 'active' THEN least(
                    (SELECT greatest(t.run_at - v_now, interval '0') FROM blackboard.tasks t
                     WHERE t.session_id = s.id AND t.status = 'scheduled' ORDER BY t.run_at LIMIT 1),
                    -- What lies below a floor is looked at again when its time is over.
                    f.until - v_now) END
    FROM unnest(p_session_ids) w (id) JOIN blackboard.sessions s ON s.id = w.id
    LEFT JOIN LATERAL (
        SELECT n.note -> 'floors' AS floors, (n.note ->> 'until')::timestamptz AS until
        FROM (SELECT v_notes -> s.id::text OFFSET 0) n (note)
        WHERE (n.note ->> 'until')::timestamptz > v_now) f ON true;
END
$$;

-- As claim_tasks, from several sessions, p_share at most from each, in their order until p_limit is reached.
-- Sessions in which more is to be done than to take what is ready are left to claim_tasks: those with limits or pauses of
-- types and capabilities, with scheduled tasks that are due, with tasks assigned to this agent, under a held snapshot.
-- Those that are paused, over or unknown have nothing. Must use tasks_ready, tasks_scheduled, tasks_assigned.
CREATE FUNCTION blackboard.claim_tasks_across(
    p_session_ids uuid[], p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer,
    p_share integer
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_sort = off
AS $$
DECLARE
    v_left integer := coalesce(p_limit, 1);
    v_share integer;
    v_below smallint;
    v_priority smallint;
    v_capabilities text[] := p_capabilities || ''::text;
    v_capability text;
    v_now timestamptz := blackboard.now();
    v_session_id uuid;
    v_picked uuid[];
    v_session_ids uuid[] := '{}';
    v_ids uuid[] := '{}';
    v_began timestamptz;
    v_took double precision;
    -- Read once, and not for each session: of hundreds of them it is long.
    v_notes jsonb := nullif(current_setting('blackboard.floors', true), '')::jsonb;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.lease_id = p_lease_id AND t.claim_id = p_claim_id ORDER BY t.priority DESC, t.id;
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM blackboard.tend_leases();
    PERFORM blackboard.live_lease(p_lease_id);
    FOR v_session_id IN
        SELECT s.id
        FROM unnest(p_session_ids) w (id),
             -- Not to be joined in another order than the caller's.
             LATERAL (SELECT s.id, s.status, s.gated FROM blackboard.sessions s WHERE s.id = w.id OFFSET 0) s
        WHERE s.status = 'active' AND NOT s.gated
          AND NOT EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.status = 'scheduled' AND t.run_at <= v_now)
          AND NOT EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.assigned_to = p_agent_id AND t.status = 'assigned')
          AND (v_notes -> s.id::text ->> 'until')::timestamptz > v_now IS NOT TRUE
    LOOP
        EXIT WHEN v_left <= 0;
        v_share := least(p_share, v_left);
        v_left := v_left - v_share;
        v_below := 11;
        v_began := clock_timestamp();
        WHILE v_share > 0 LOOP
            v_priority := NULL;
            IF cardinality(v_capabilities) > 1 THEN
                SELECT max(h.priority) INTO v_priority
                FROM unnest(v_capabilities) c (capability),
                     LATERAL (SELECT t.priority FROM blackboard.tasks t
                              WHERE t.session_id = v_session_id AND t.capability = c.capability
                                AND t.status = 'pending' AND t.priority < v_below
                              ORDER BY t.priority DESC LIMIT 1) h;
                EXIT WHEN v_priority IS NULL;
                FOREACH v_capability IN ARRAY v_capabilities LOOP
                    SELECT array_agg(p.id) INTO v_picked FROM (
                        SELECT t.id FROM blackboard.tasks t
                        WHERE t.session_id = v_session_id AND t.capability = v_capability AND t.priority = v_priority
                          AND t.status = 'pending' AND (t.expires_at IS NULL OR t.expires_at > v_now)
                        ORDER BY t.position LIMIT v_share FOR UPDATE SKIP LOCKED) p;
                    IF v_picked IS NOT NULL THEN
                        v_ids := v_ids || v_picked;
                        v_session_ids := v_session_ids || array_fill(v_session_id, ARRAY[cardinality(v_picked)]);
                        v_share := v_share - cardinality(v_picked);
                        EXIT WHEN v_share <= 0;
                    END IF;
                END LOOP;
                v_below := v_priority;
            ELSE
                SELECT array_agg(p.id) INTO v_picked FROM (
                    SELECT t.id FROM blackboard.tasks t
                    WHERE t.session_id = v_session_id AND t.capability = '' AND t.status = 'pending'
                      AND (t.expires_at IS NULL OR t.expires_at > v_now)
                    ORDER BY t.priority DESC, t.position LIMIT v_share FOR UPDATE SKIP LOCKED) p;
                IF v_picked IS NOT NULL THEN
                    v_ids := v_ids || v_picked;
                    v_session_ids := v_session_ids || array_fill(v_session_id, ARRAY[cardinality(v_picked)]);
                    v_share := v_share - cardinality(v_picked);
                END IF;
                EXIT;
            END IF;
        END LOOP;
        v_left := v_left + v_share;
        v_took := extract(epoch FROM clock_timestamp() - v_began);
        IF v_took > 0.003 + 0.00003 * p_share THEN
            PERFORM blackboard.note_floors(v_session_id, '{}', least(15, 40 * v_took));
        END IF;
    END LOOP;
    IF v_ids = '{}' THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        -- The limit limits nothing: by it the planner expects one row, and looks each up by its key.
        SELECT p.session_id, p.id FROM unnest(v_session_ids, v_ids) p (session_id, id) LIMIT cardinality(v_ids))
    UPDATE blackboard.tasks t
    SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
        lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now,
        deadline_at = v_now + t.timeout, progress = NULL
    FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
    RETURNING t.*;
END
$$;

-- Completes held tasks of several sessions, those on which nothing else depends: no other task, no flow, no limit. The ids
-- of the others, which are for complete_tasks, session by session, so that rows of one session only are waited for while
-- others are locked; those of tasks that are not held any more are among them.
-- Locks: the rows by id. Must use tasks_pkey.
CREATE FUNCTION blackboard.complete_tasks_across(
    p_session_ids uuid[], p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_results jsonb[], p_agent_id text
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
    WITH x AS MATERIALIZED (
        SELECT u.* FROM unnest(p_session_ids, p_ids, p_claim_ids, p_attempts, p_results)
                            u (session_id, id, claim_id, attempt, result)
        ORDER BY u.id LIMIT cardinality(p_ids))
    UPDATE blackboard.tasks t
    SET status = 'completed', result = x.result, lease_id = NULL, deadline_at = NULL, completed_at = blackboard.now(),
        error = NULL
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running' AND NOT t.has_dependants AND NOT t.limited;
    GET DIAGNOSTICS v_done = ROW_COUNT;
    IF v_done = cardinality(p_ids) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH x AS MATERIALIZED (
        SELECT u.* FROM unnest(p_session_ids, p_ids, p_claim_ids, p_attempts) u (session_id, id, claim_id, attempt)
        LIMIT cardinality(p_ids))
    SELECT x.id FROM x LEFT JOIN blackboard.tasks t ON t.session_id = x.session_id AND t.id = x.id
    WHERE (t.status, t.claim_id, t.attempt) IS DISTINCT FROM ('completed', x.claim_id, x.attempt);
END
$$;

-- ------------------------------------------------------------------------------------------------------------- joining

-- As join_session, of several sessions and with what most agents declare; all of them or none.
-- Locks: the agent's row, then the memberships by session.
CREATE FUNCTION blackboard.join_sessions(p_session_ids uuid[], p_agent_id text, p_capabilities text[], p_lease_id uuid)
RETURNS SETOF blackboard.members
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.open_session(w.id) FROM unnest(p_session_ids) w (id)
    WHERE NOT EXISTS (SELECT FROM blackboard.sessions s WHERE s.id = w.id AND s.status IN ('active', 'paused'));
    PERFORM blackboard.register_agent(p_agent_id, p_capabilities, NULL, NULL, NULL);
    IF p_lease_id IS NOT NULL THEN
        PERFORM blackboard.live_lease(p_lease_id);
    END IF;
    INSERT INTO blackboard.memberships AS m (session_id, agent_id, role, vote_weight, lease_id)
    SELECT DISTINCT w.id, p_agent_id, 'member', 1, p_lease_id FROM unnest(p_session_ids) w (id) ORDER BY w.id
    ON CONFLICT (session_id, agent_id) DO UPDATE SET lease_id = coalesce(p_lease_id, m.lease_id), left_at = NULL;
    RETURN QUERY SELECT m.* FROM blackboard.members m WHERE m.session_id = ANY (p_session_ids) AND m.id = p_agent_id;
END
$$;
