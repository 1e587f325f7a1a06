-- The functions as they were.

-- Adds many tasks; arrays run in parallel, p_options holds what is rare (NULL for a plain task):
--   assigned_to, run_at, timeout, requires_approval, max_attempts, retry_delay, depends_on [ids or {id, on_failure}],
--   limit_key, expires_at, fallback, unique {key, window, states} (only its key is recorded here: add_task and
--   add_unique_tasks keep it unique)
-- Repeated ids with the same content are left alone. Visible after commit, in the order given.
CREATE OR REPLACE FUNCTION blackboard.add_tasks(
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

-- For each new task the id under which it is to be found: its own, or that of the task that its
-- options.unique {key, window, states} says is the same. Locks the keys, in their order.
CREATE OR REPLACE FUNCTION blackboard.unique_tasks(p_session_id uuid, p_ids uuid[], p_options jsonb[]) RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_ids uuid[] := p_ids;
    v_new record;
    v_found uuid;
    v_last_key text;
    v_last_id uuid;
    v_states text[];
BEGIN
    FOR v_new IN
        SELECT u.id, u.n, u.options #>> '{unique,key}' AS key, (u.options #>> '{unique,window}')::interval AS "window",
               u.options #> '{unique,states}' AS states
        FROM unnest(p_ids, p_options) WITH ORDINALITY u (id, options, n)
        WHERE u.options ? 'unique' ORDER BY 3, 2
    LOOP
        -- The same call again.
        CONTINUE WHEN EXISTS (SELECT FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_new.id);
        v_states := CASE WHEN jsonb_typeof(v_new.states) = 'array'
                         THEN array(SELECT jsonb_array_elements_text(v_new.states))
                         ELSE ARRAY['scheduled', 'blocked', 'awaiting_approval', 'held', 'pending', 'assigned',
                                    'running'] END;
        IF v_new.key IS NOT DISTINCT FROM v_last_key AND 'pending' = ANY (v_states) THEN
            v_ids[v_new.n] := v_last_id;
            CONTINUE;
        END IF;
        INSERT INTO blackboard.task_keys (session_id, key, task_id) VALUES (p_session_id, v_new.key, v_new.id)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            PERFORM 1 FROM blackboard.task_keys k WHERE k.session_id = p_session_id AND k.key = v_new.key FOR UPDATE;
        END IF;
        SELECT t.id INTO v_found FROM blackboard.keyed_tasks k
        JOIN blackboard.tasks t ON t.session_id = k.session_id AND t.id = k.task_id
        WHERE k.session_id = p_session_id AND k.key = v_new.key AND t.status = ANY (v_states)
          AND (v_new."window" IS NULL OR t.created_at > blackboard.now() - v_new."window")
        ORDER BY t.created_at DESC LIMIT 1;
        IF FOUND THEN
            v_ids[v_new.n] := v_found;
        ELSE
            -- A transaction with an older snapshot will collide with this change, and not miss the new task.
            UPDATE blackboard.task_keys k SET task_id = v_new.id
            WHERE k.session_id = p_session_id AND k.key = v_new.key;
            INSERT INTO blackboard.keyed_tasks (session_id, key, task_id) VALUES (p_session_id, v_new.key, v_new.id);
        END IF;
        v_last_key := v_new.key;
        v_last_id := v_ids[v_new.n];
    END LOOP;
    RETURN v_ids;
END
$$;

-- Ends many attempts that failed. p_outcomes says how: 'retry' (back after p_delays, or the task's own backoff, while
-- fewer than p_max_attempts, or the task's own number, have failed; else dead), 'failed' or 'dead' at once. Returns
-- where each task went, some of them twice when others are refused; a NULL status is a refusal, whose error is kept
-- aside. Repeating it is no refusal. Locks the tasks by id.
CREATE OR REPLACE FUNCTION blackboard.fail_tasks(
    p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_errors jsonb[], p_outcomes text[],
    p_delays interval[], p_max_attempts integer[], p_agent_id text
) RETURNS TABLE (id uuid, status text)
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_done integer;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    -- A request to cancel that comes in meanwhile must be seen: the statement after the locks has a new snapshot.
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (p_ids)
    ORDER BY t.id FOR UPDATE;
    RETURN QUERY
    -- The session comes from the list and not from the parameter: then no scan of the session's tasks can be mistaken
    -- for cheap while they look empty. The limit limits nothing: by it the planner expects one row, and looks up keys.
    WITH x AS MATERIALIZED (
        SELECT u.session_id, u.id, u.claim_id, u.attempt, u.error, u.delay, u.max_attempts,
               CASE WHEN u.outcome <> 'retry' THEN u.outcome
                    WHEN o.cancel_requested THEN 'cancelled'
                    WHEN o.attempt - o.released >= coalesce(u.max_attempts, o.max_attempts) THEN 'dead'
                    ELSE 'scheduled' END AS status
        FROM (SELECT p_session_id AS session_id, w.*
              FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors, p_outcomes, p_delays, p_max_attempts)
                       w (id, claim_id, attempt, error, outcome, delay, max_attempts) LIMIT cardinality(p_ids)) u
        JOIN blackboard.tasks o ON o.session_id = u.session_id AND o.id = u.id)
    UPDATE blackboard.tasks t
    SET status = x.status, lease_id = NULL, deadline_at = NULL,
        max_attempts = coalesce(x.max_attempts, t.max_attempts),
        error = coalesce(x.error, '{"code": "failed", "message": ""}')
                || jsonb_build_object('attempt', x.attempt, 'agent_id', p_agent_id),
        run_at = CASE WHEN x.status = 'scheduled'
                      THEN v_now + coalesce(x.delay, blackboard.backoff(t.retry_delay, t.attempt - t.released))
                      ELSE t.run_at END,
        completed_at = CASE WHEN x.status <> 'scheduled' THEN v_now END
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running'
    RETURNING t.id, t.status;
    GET DIAGNOSTICS v_done = ROW_COUNT;
    IF v_done = cardinality(p_ids) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH answered AS (
        SELECT x.id, x.claim_id, x.attempt, x.error,
               CASE WHEN t.lease_id IS NULL AND t.claim_id = x.claim_id AND t.attempt = x.attempt
                         AND t.error -> 'attempt' = to_jsonb(x.attempt)
                         AND t.error -> 'code' IS NOT DISTINCT FROM coalesce(x.error -> 'code', '"failed"')
                    THEN t.status
                    -- It has gone on since: history knows of this failure.
                    WHEN EXISTS (SELECT FROM blackboard.events e
                                 WHERE e.session_id = p_session_id AND e.subject_id = x.id
                                   AND e.type IN ('task.retried', 'task.failed', 'task.dead', 'task.cancelled')
                                   AND e.data #> '{error,attempt}' = to_jsonb(x.attempt)
                                   AND e.data #> '{error,code}' IS NOT DISTINCT FROM
                                       coalesce(x.error -> 'code', '"failed"'))
                    THEN 'scheduled' END AS status, t.id IS NOT NULL AS known
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors) x (id, claim_id, attempt, error)
        LEFT JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = x.id
    ), kept AS (
        INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id, error)
        SELECT p_session_id, a.id, a.claim_id, a.attempt, p_agent_id, a.error FROM answered a
        WHERE a.status IS NULL AND a.known
        ON CONFLICT DO NOTHING)
    SELECT a.id, a.status FROM answered a;
END
$$;

-- Ends an attempt that failed: back with backoff (or p_delay) while attempts are left, else dead; failed at once
-- without p_retry. Repeating it after the row moved on is answered with LeaseLost, whose caller may drop the work.
CREATE OR REPLACE FUNCTION blackboard.fail_task(
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

DROP FUNCTION blackboard.refuse_other_content(uuid, uuid[], text[], text[], smallint[], jsonb[], jsonb[], integer);
DROP FUNCTION blackboard.added_content(blackboard.tasks, jsonb);
DROP FUNCTION blackboard.task_content(text, text, smallint, jsonb, jsonb);

DROP FUNCTION blackboard.release_tasks(
    uuid, uuid[], uuid[], integer[], interval[], jsonb[], text, boolean[]);

-- Hands many held tasks back; their attempts do not count. With a delay a task comes back after it, otherwise at once;
-- one that was asked to stop is cancelled. p_errors says why, where somebody should know. Returns where each went; a
-- task that is not held any more is not among them. Locks the tasks by id.
CREATE FUNCTION blackboard.release_tasks(
    p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_delays interval[], p_errors jsonb[],
    p_agent_id text
) RETURNS TABLE (id uuid, status text)
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (p_ids)
    ORDER BY t.id FOR UPDATE;
    RETURN QUERY
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.delay, u.error
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_delays, p_errors) u (id, claim_id, attempt, delay, error)
        LIMIT cardinality(p_ids))
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.cancel_requested THEN 'cancelled' WHEN t.blockers > 0 THEN 'blocked'
                      WHEN x.delay IS NOT NULL THEN 'scheduled' ELSE 'pending' END,
        position = CASE WHEN NOT t.cancel_requested AND t.blockers = 0 AND x.delay IS NULL
                        THEN nextval('blackboard.task_positions') END,
        run_at = CASE WHEN NOT t.cancel_requested AND x.delay IS NOT NULL THEN v_now + x.delay ELSE t.run_at END,
        completed_at = CASE WHEN t.cancel_requested THEN v_now END,
        error = CASE WHEN t.cancel_requested
                     THEN jsonb_build_object('code', 'cancelled', 'message', 'It was asked to stop, and did.',
                                             'attempt', x.attempt, 'agent_id', p_agent_id)
                     WHEN x.error IS NOT NULL
                     THEN x.error || jsonb_build_object('attempt', x.attempt, 'agent_id', p_agent_id) END,
        lease_id = NULL, deadline_at = NULL, started_at = NULL, released = t.released + 1
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running'
    RETURNING t.id, t.status;
END
$$;

-- Hands a task back as if it had not been claimed: the attempt does not count.
CREATE OR REPLACE FUNCTION blackboard.release_task(
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

-- Takes back what lapsed leases hold. An owner who renewed meanwhile is safe: only lapsed leases are looked at, and a
-- lapsed one cannot be renewed.
CREATE OR REPLACE FUNCTION blackboard.sweep_leases(p_limit integer) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
DECLARE
    -- A variable: an index is not searched for what a volatile function returns.
    v_now timestamptz := blackboard.now();
    v_swept integer := 0;
    v_unswept boolean;
    v_late integer;
BEGIN
    PERFORM 1 FROM blackboard.leases l WHERE l.lapsed_at IS NOT NULL AND l.swept_at IS NULL LIMIT 1;
    v_unswept := FOUND;
    IF v_unswept THEN
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
    END IF;
    -- What follows locks further tasks, and their counters: the next look does it, if counters are locked by now.
    IF current_setting('blackboard.slots', true) = 'locked' THEN
        RETURN v_swept;
    END IF;
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
    IF v_unswept AND current_setting('blackboard.slots', true) IS DISTINCT FROM 'locked' THEN
        -- Without waiting: two sweepers at once, one of which has a claim before it, must not wait for each other.
        UPDATE blackboard.leases l SET swept_at = blackboard.now()
        WHERE l.id IN (SELECT u.id FROM blackboard.leases u
                       WHERE u.lapsed_at IS NOT NULL AND u.swept_at IS NULL
                         AND NOT EXISTS (SELECT FROM blackboard.tasks t WHERE t.lease_id = u.id)
                       FOR UPDATE SKIP LOCKED);
    END IF;
    RETURN v_swept + v_late;
END
$$;

-- Where a task that nothing holds back any more goes next.
CREATE OR REPLACE FUNCTION blackboard.next_status(p_task blackboard.tasks) RETURNS text
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

-- What wake_scheduled does when there is something to do.
CREATE OR REPLACE FUNCTION blackboard.wake_due(p_session_id uuid, p_now timestamptz, p_limit integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
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

-- Locks the children in order of id, then counts afresh: two parents that finish at once are both seen.
CREATE OR REPLACE FUNCTION blackboard.refresh_blockers(p_session_id uuid, p_children uuid[]) RETURNS void
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

-- Cancels: at once where nobody runs it, else by request to its holder. A final task is left as it is.
CREATE OR REPLACE FUNCTION blackboard.cancel_task(p_session_id uuid, p_id uuid, p_reason text, p_actor text)
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

DROP FUNCTION blackboard.decide_task(uuid, uuid, boolean, text, text, text);

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

DROP FUNCTION blackboard.redrive_task(uuid, uuid, text, text);

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

DROP FUNCTION blackboard.redrive_tasks(uuid, text, text, timestamptz, integer, boolean, text, text);

-- Dead tasks that match (NULL: any) start over, the longest dead first, attempts counted anew; only returned with
-- p_dry_run. Skips those that somebody else is at.
CREATE FUNCTION blackboard.redrive_tasks(
    p_session_id uuid, p_type text, p_error_code text, p_before timestamptz, p_limit integer, p_dry_run boolean,
    p_actor text
) RETURNS SETOF uuid
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    IF p_dry_run THEN
        RETURN QUERY
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'dead' AND (p_type IS NULL OR t.type = p_type)
          AND (p_error_code IS NULL OR t.error ->> 'code' = p_error_code)
          AND (p_before IS NULL OR t.completed_at < p_before)
        ORDER BY t.completed_at, t.id LIMIT p_limit;
        RETURN;
    END IF;
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'dead' AND (p_type IS NULL OR t.type = p_type)
          AND (p_error_code IS NULL OR t.error ->> 'code' = p_error_code)
          AND (p_before IS NULL OR t.completed_at < p_before)
        ORDER BY t.completed_at, t.id LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.blockers > 0 THEN 'blocked' ELSE 'pending' END,
        position = CASE WHEN t.blockers = 0 THEN nextval('blackboard.task_positions') END,
        completed_at = NULL, error = NULL, cancel_requested = false, released = t.attempt
    FROM found f WHERE t.session_id = p_session_id AND t.id = f.id
    RETURNING t.id;
END
$$;

ALTER TABLE blackboard.requests DROP COLUMN result;
