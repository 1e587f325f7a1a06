-- Undoes 0015.

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

DROP FUNCTION blackboard.add_plain_task(uuid, uuid, text, text, smallint, jsonb, text, boolean);
CREATE FUNCTION blackboard.add_plain_task(
    p_session_id uuid, p_id uuid, p_type text, p_capability text, p_priority smallint, p_parameters jsonb, p_actor text,
    p_hint boolean
) RETURNS TABLE (created_at timestamptz, created_by text)
LANGUAGE plpgsql
SET xmlbinary = 'hex'
AS $$
#variable_conflict use_column
BEGIN
    PERFORM blackboard.act_as(p_actor);
    RETURN QUERY
    INSERT INTO blackboard.tasks AS t (session_id, id, type, capability, priority, parameters)
    VALUES (p_session_id, p_id, p_type, p_capability, p_priority, p_parameters)
    ON CONFLICT (session_id, id) DO NOTHING
    RETURNING t.created_at, t.created_by;
    IF p_hint AND FOUND AND current_setting('blackboard.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('blackboard', p_session_id::text || ' tasks.ready');
    END IF;
END
$$;

DROP FUNCTION blackboard.is_odd_task(smallint, jsonb, interval, integer, interval, integer, jsonb, jsonb);
