-- What a worker needs beyond single verbs: outcomes in batches, one look over many sessions, the end of one task with
-- the claim of the next, dead letters by filter.

-- Nobody asks for it but those who look after dead letters: a completion cannot be matched to it. Not CONCURRENTLY: a
-- revision is one transaction, and there are few dead tasks to index.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX tasks_dead ON blackboard.tasks (session_id, completed_at, id) WHERE status = 'dead';

-- Completes a held task and claims the next ones, in one transaction: what the completion freed can be among them.
-- Raises LeaseLost if the task or the lease is not the caller's any more; then nothing has happened. Claims nothing
-- while the session is paused or over. Repeating it with the same p_next_claim_id returns the same rows.
CREATE FUNCTION blackboard.complete_and_claim(
    p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_result jsonb, p_agent_id text,
    p_capabilities text[], p_lease_id uuid, p_next_claim_id uuid, p_limit integer
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
SET xmlbinary = 'hex'
AS $$
BEGIN
    PERFORM blackboard.complete_tasks(p_session_id, ARRAY[p_id], ARRAY[p_claim_id], ARRAY[p_attempt],
                                      ARRAY[p_result], p_agent_id);
    IF FOUND THEN
        PERFORM blackboard.raise('BB006', format('Task %s is not yours any more: drop this work.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    PERFORM 1 FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status = 'active';
    IF FOUND THEN
        RETURN QUERY SELECT * FROM blackboard.claim_tasks(p_session_id, p_agent_id, p_capabilities, p_lease_id,
                                                          p_next_claim_id, p_limit);
    END IF;
END
$$;

-- Ends many attempts that failed. p_outcomes says how: 'retry' (back after p_delays, or the task's own backoff, while
-- fewer than p_max_attempts, or the task's own number, have failed; else dead), 'failed' or 'dead' at once. Returns
-- where each task went, some of them twice when others are refused; a NULL status is a refusal, whose error is kept
-- aside. Repeating it is no refusal. Locks the tasks by id.
CREATE FUNCTION blackboard.fail_tasks(
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
    -- for cheap while they look empty.
    WITH x AS MATERIALIZED (
        SELECT u.session_id, u.id, u.claim_id, u.attempt, u.error, u.delay, u.max_attempts,
               CASE WHEN u.outcome <> 'retry' THEN u.outcome
                    WHEN o.cancel_requested THEN 'cancelled'
                    WHEN o.attempt - o.released >= coalesce(u.max_attempts, o.max_attempts) THEN 'dead'
                    ELSE 'scheduled' END AS status
        FROM (SELECT p_session_id AS session_id, w.*
              FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors, p_outcomes, p_delays, p_max_attempts)
                       w (id, claim_id, attempt, error, outcome, delay, max_attempts) OFFSET 0) u
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
                    THEN t.status END AS status, t.id IS NOT NULL AS known
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
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_delays, p_errors) u (id, claim_id, attempt, delay, error))
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

-- One look at many sessions: whether there is something that the agent could claim, and in how long the next
-- scheduled task is due (NULL: none). Must use tasks_ready, tasks_assigned and tasks_scheduled.
CREATE FUNCTION blackboard.look_for_tasks(p_session_ids uuid[], p_agent_id text, p_capabilities text[])
RETURNS TABLE (session_id uuid, status text, ready boolean, due_in interval)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_capabilities text[] := p_capabilities || ''::text;
BEGIN
    RETURN QUERY
    SELECT s.id, s.status,
           s.status = 'active' AND (
               EXISTS (SELECT FROM unnest(v_capabilities) c (capability),
                           LATERAL (SELECT FROM blackboard.tasks t
                                    WHERE t.session_id = s.id AND t.capability = c.capability
                                      AND t.status = 'pending' LIMIT 1) p
                       WHERE NOT s.gated OR NOT blackboard.capability_paused(s.id, c.capability))
               OR EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.assigned_to = p_agent_id AND t.status = 'assigned')
               -- A slot is free, and tasks are held that it was not given to.
               OR (s.gated AND blackboard.slots_left(s.id))),
           CASE WHEN s.status = 'active'
                THEN (SELECT greatest(t.run_at - v_now, interval '0') FROM blackboard.tasks t
                      WHERE t.session_id = s.id AND t.status = 'scheduled' ORDER BY t.run_at LIMIT 1) END
    FROM unnest(p_session_ids) w (id) JOIN blackboard.sessions s ON s.id = w.id;
END
$$;

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

-- Gives a dead task up for good; what it died of stays in its error.
CREATE FUNCTION blackboard.discard_task(p_session_id uuid, p_id uuid, p_reason text, p_actor text)
RETURNS SETOF blackboard.tasks
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
    IF v_task.status = 'cancelled' AND v_task.error ->> 'code' = 'discarded' THEN
        RETURN NEXT v_task;
        RETURN;
    END IF;
    IF v_task.status <> 'dead' THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s; only dead tasks can be discarded.',
                                                 p_id, v_task.status),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    END IF;
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET status = 'cancelled', completed_at = blackboard.now(),
        error = jsonb_build_object('code', 'discarded', 'message', p_reason, 'last', t.error)
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;
