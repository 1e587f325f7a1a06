-- Tasks that are plain, and the two hot steps, are known by one look to keep all rules; the rules themselves are asked
-- where something is rare. A step taken by hand records every column that it changes.

-- What a task may be and seldom is, or must not be. One that is not odd keeps the rules of broken_task_rule() about these
-- columns, whatever its status.
CREATE FUNCTION blackboard.is_odd_task(
    p_priority smallint, p_parameters jsonb, p_timeout interval, p_max_attempts integer, p_retry_delay interval,
    p_blockers integer, p_held jsonb, p_progress jsonb) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT p_held IS NOT NULL OR p_progress IS NOT NULL OR p_blockers <> 0
        OR p_priority < 0 OR p_priority > 10 OR p_max_attempts < 1 OR p_max_attempts > 1000
        OR pg_column_size(p_parameters) > 1048576
        OR p_timeout <= interval '0' OR p_timeout > interval '3650 days'
        OR p_retry_delay < interval '0' OR p_retry_delay > interval '30 days'
$$;

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
    -- One look for what is rare: tasks of several sessions, or one that is more than a plain one.
    PERFORM 1 FROM new_rows n
    WHERE n.session_id <> v_session_id OR n.status <> 'pending' OR n.position IS NULL
       OR n.attempt <> 0 OR n.released <> 0 OR n.requires_approval OR n.lease_id IS NOT NULL OR n.deadline_at IS NOT NULL
       OR n.completed_at IS NOT NULL OR n.fallback IS NOT NULL OR n.unique_key IS NOT NULL OR n.limit_key IS NOT NULL
       OR n.result IS NOT NULL OR n.error IS NOT NULL OR n.type = '' OR length(n.type) > 50
       OR blackboard.is_odd_task(n.priority, n.parameters, n.timeout, n.max_attempts, n.retry_delay, n.blockers, n.held,
                                 n.progress)
    LIMIT 1;
    IF NOT FOUND THEN
        -- As check_sessions does it, without a call: the lock first, and then a look that is younger than the lock.
        IF NOT pg_try_advisory_xact_lock_shared(blackboard.session_lock(v_session_id)) THEN
            PERFORM pg_advisory_xact_lock_shared(blackboard.session_lock(v_session_id));
        END IF;
        PERFORM 1 FROM blackboard.sessions s WHERE s.id = v_session_id AND s.status IN ('active', 'paused');
        IF NOT FOUND OR current_setting('transaction_isolation') <> 'read committed' THEN
            PERFORM blackboard.check_sessions(ARRAY[v_session_id]);
        END IF;
    ELSE
        v_rule := (SELECT min(blackboard.broken_task_rule(
                               n.type, n.status, n.position, n.parameters, n.priority, n.timeout, n.requires_approval,
                               n.approved_by, n.run_at, n.attempt, n.max_attempts, n.retry_delay, n.assigned_to,
                               n.claim_id, n.lease_id, n.started_at, n.deadline_at, n.completed_at, n.blockers,
                               n.unique_key, n.limit_key, n.fallback, n.held, n.progress, n.result, n.error))
                   FROM new_rows n);
        IF v_rule IS NOT NULL THEN
            PERFORM blackboard.refuse_task(v_rule);
        END IF;
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
    FROM new_rows n;
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
    v_look integer;
    v_rule text;
BEGIN
    SELECT n.status, n.assigned_to, n.attempt, n.lease_id INTO v_one FROM new_rows n LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_tx := blackboard.current_tx();
    v_actor := blackboard.current_actor();
    -- The two hot steps, whole statements of them, need no look at what each row was before, but for what they clear. Only
    -- the functions that make them say so: by hand, a step may change other columns too.
    IF current_setting('xmlbinary') = 'hex' AND v_one.status = 'running' THEN
        -- 2: one is of another kind, 1: they differ, 0: each event says the same.
        v_look := (SELECT max(CASE
            WHEN n.status <> 'running' OR n.attempt <= 0 OR n.lease_id IS NULL OR n.claim_id IS NULL
                 OR n.assigned_to IS NULL OR n.started_at IS NULL OR n.position IS NOT NULL
                 OR n.completed_at IS NOT NULL OR n.result IS NOT NULL
                 OR (n.requires_approval AND n.approved_by IS NULL) OR pg_column_size(n.error) > 1048576
                 OR blackboard.is_odd_task(n.priority, n.parameters, n.timeout, n.max_attempts, n.retry_delay, n.blockers,
                                           n.held, n.progress)
            THEN 2
            WHEN n.attempt <> v_one.attempt OR n.lease_id <> v_one.lease_id OR n.assigned_to <> v_one.assigned_to THEN 1
            ELSE 0 END) FROM new_rows n);
        IF v_look < 2 THEN
            PERFORM 1 FROM old_rows o WHERE o.status NOT IN ('pending', 'assigned') OR o.progress IS NOT NULL LIMIT 1;
            IF NOT FOUND THEN
                INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
                SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.started_at, v_actor, 'task.assigned', n.id,
                       CASE WHEN v_look = 0 THEN one.data
                            ELSE jsonb_build_object('status', 'running', 'assigned_to', n.assigned_to,
                                                    'attempt', n.attempt, 'lease_id', n.lease_id) END
                FROM (SELECT jsonb_build_object('status', 'running', 'assigned_to', v_one.assigned_to,
                                                'attempt', v_one.attempt, 'lease_id', v_one.lease_id) AS data
                      OFFSET 0) one, new_rows n;
                RETURN NULL;
            END IF;
        END IF;
    ELSIF current_setting('xmlbinary') = 'hex' AND v_one.status = 'completed' THEN
        PERFORM 1 FROM new_rows n
        WHERE n.status <> 'completed' OR n.has_dependants OR n.limited OR n.attempt < 0 OR n.lease_id IS NOT NULL
           OR n.deadline_at IS NOT NULL OR n.position IS NOT NULL OR n.completed_at IS NULL OR n.error IS NOT NULL
           OR pg_column_size(n.result) > 1048576 OR pg_column_size(n.progress) > 1048576
           OR blackboard.is_odd_task(n.priority, n.parameters, n.timeout, n.max_attempts, n.retry_delay, n.blockers, n.held,
                                     NULL)
        LIMIT 1;
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
            RETURN NULL;
        END IF;
    END IF;

    v_rule := (SELECT min(blackboard.broken_task_rule(
                           n.type, n.status, n.position, n.parameters, n.priority, n.timeout, n.requires_approval,
                           n.approved_by, n.run_at, n.attempt, n.max_attempts, n.retry_delay, n.assigned_to,
                           n.claim_id, n.lease_id, n.started_at, n.deadline_at, n.completed_at, n.blockers,
                           n.unique_key, n.limit_key, n.fallback, n.held, n.progress, n.result, n.error)) FROM new_rows n);
    IF v_rule IS NOT NULL THEN
        PERFORM blackboard.refuse_task(v_rule);
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
               -- A step that changes nothing else says so in few words.
               CASE
                   WHEN n.status = 'running' AND o.status <> 'running'
                        AND (n.run_at, n.error, n.approved_by, n.blockers, n.released, n.cancel_requested, n.held,
                             n.max_attempts, n.result)
                            IS NOT DISTINCT FROM
                            (o.run_at, o.error, o.approved_by, o.blockers, o.released, o.cancel_requested, o.held,
                             o.max_attempts, o.result) THEN
                       jsonb_build_object('status', n.status, 'assigned_to', n.assigned_to, 'attempt', n.attempt,
                                          'lease_id', n.lease_id)
                   WHEN n.status = 'completed' AND o.status <> 'completed'
                        AND (n.run_at, n.assigned_to, n.attempt, n.approved_by, n.blockers, n.released, n.cancel_requested,
                             n.held, n.max_attempts)
                            IS NOT DISTINCT FROM
                            (o.run_at, o.assigned_to, o.attempt, o.approved_by, o.blockers, o.released, o.cancel_requested,
                             o.held, o.max_attempts) THEN
                       jsonb_build_object('status', n.status, 'lease_id', NULL,
                                          'result', CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END)
                       || CASE WHEN o.error IS DISTINCT FROM n.error
                               THEN jsonb_build_object('error', n.error) ELSE '{}' END
                   WHEN n.status <> o.status THEN
                       jsonb_build_object('status', n.status, 'lease_id', n.lease_id, 'assigned_to', n.assigned_to,
                                          'run_at', n.run_at, 'error', n.error, 'approved_by', n.approved_by,
                                          'blockers', n.blockers, 'released', n.released,
                                          'cancel_requested', n.cancel_requested, 'held', n.held)
                       || CASE WHEN (n.attempt, n.max_attempts) <> (o.attempt, o.max_attempts)
                               THEN jsonb_build_object('attempt', n.attempt, 'max_attempts', n.max_attempts)
                               ELSE '{}' END
                       || CASE WHEN n.result IS DISTINCT FROM o.result
                               THEN jsonb_build_object('result', CASE WHEN pg_column_size(n.result) <= 8192
                                                                      THEN n.result END)
                               ELSE '{}' END
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
               || CASE WHEN n.status <> o.status
                            AND (n.priority, n.capability, n.parameters, n.timeout, n.retry_delay, n.progress)
                                IS DISTINCT FROM
                                (o.priority, o.capability, o.parameters, o.timeout, o.retry_delay, o.progress)
                       THEN jsonb_build_object('priority', n.priority, 'capability', n.capability,
                                               'parameters', n.parameters, 'timeout', n.timeout,
                                               'retry_delay', n.retry_delay, 'progress', n.progress)
                       ELSE '{}' END
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

-- One value is cheaper to return than a table of one row. Who made the task is whoever was named, or the database's user.
-- squawk-ignore ban-drop-function
DROP FUNCTION blackboard.add_plain_task(uuid, uuid, text, text, smallint, jsonb, text, boolean);
CREATE FUNCTION blackboard.add_plain_task(
    p_session_id uuid, p_id uuid, p_type text, p_capability text, p_priority smallint, p_parameters jsonb, p_actor text,
    p_hint boolean) RETURNS timestamptz
LANGUAGE plpgsql SET xmlbinary = 'hex'
AS $$
DECLARE
    v_at timestamptz;
    v_actor text := pg_catalog.set_config('blackboard.actor', coalesce(p_actor, ''), true);
BEGIN
    INSERT INTO blackboard.tasks AS t (session_id, id, type, capability, priority, parameters)
    VALUES (p_session_id, p_id, p_type, p_capability, p_priority, p_parameters)
    ON CONFLICT (session_id, id) DO NOTHING
    RETURNING t.created_at INTO v_at;
    IF p_hint AND v_at IS NOT NULL AND current_setting('blackboard.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('blackboard', p_session_id::text || ' tasks.ready');
    END IF;
    RETURN v_at;
END
$$;
