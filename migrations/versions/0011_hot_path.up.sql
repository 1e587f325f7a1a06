-- The hot path: fewer statements a call, no subtransaction where nothing is to be caught, data of events built once
-- where it is the same in all of them; and nothing that walks again and again over what was done already while somebody
-- holds an old snapshot. What a step clears is told by its event, so that the fold of a task's events is its row; and a
-- failure that is reported once more is known again, also when the task has gone on since.

-- --------------------------------------------------------------------------------------------------------- history

CREATE OR REPLACE FUNCTION blackboard.history_tasks_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_tx bigint;
    v_actor text;
    v_session_id uuid := (SELECT n.session_id FROM new_rows n LIMIT 1);
BEGIN
    IF v_session_id IS NULL THEN
        RETURN NULL;
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
BEGIN
    SELECT n.status, n.assigned_to, n.attempt, n.lease_id INTO v_one FROM new_rows n LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
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

-- ------------------------------------------------------------------------------------------------------------- add

-- Adds one task that has nothing special about it; returns when and by whom, or no row if its id was used before
-- (add_task then tells with what content). With p_hint listeners are told with the commit, without they are the
-- client's to tell. Visible after commit.
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

-- ---------------------------------------------------------------------------------------------------------- leases

-- No task stays with a lease that is gone: a claim may be committed after its lease was swept (by a caller whose
-- transaction took long), and a lease may be deleted by hand.
CREATE OR REPLACE FUNCTION blackboard.repair_leases() RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
DECLARE
    v_leases uuid[];
BEGIN
    -- One walk over what is leased, which is long while an old snapshot is held.
    v_leases := array(SELECT DISTINCT t.lease_id FROM blackboard.tasks t WHERE t.lease_id IS NOT NULL);
    INSERT INTO blackboard.leases (id, host, term, expires_at, lapsed_at)
    SELECT u.id, 'unknown', interval '1 second', blackboard.now(), blackboard.now()
    FROM unnest(v_leases) u (id) WHERE NOT EXISTS (SELECT FROM blackboard.leases l WHERE l.id = u.id)
    ON CONFLICT DO NOTHING;
    UPDATE blackboard.leases l SET swept_at = NULL WHERE l.swept_at IS NOT NULL AND l.id = ANY (v_leases);
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
    IF v_unswept THEN
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

-- Keeps a lease for one more term; returns how many tasks it holds, or NULL when it lapsed (which is final). With
-- p_claims_since only those claimed under that id or a later one are counted: ids of claims are UUIDv7, made by the
-- owner, so that it need not walk over everything that it has done since an old snapshot was taken.
CREATE FUNCTION blackboard.renew_lease(p_lease_id uuid, p_claims_since uuid) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    UPDATE blackboard.leases SET expires_at = blackboard.now() + term, suspected_at = NULL
    WHERE id = p_lease_id AND lapsed_at IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.tend_leases();
    IF p_claims_since IS NULL THEN
        RETURN (SELECT count(*)::integer FROM blackboard.tasks t WHERE t.lease_id = p_lease_id);
    END IF;
    RETURN (SELECT count(*)::integer FROM blackboard.tasks t
            WHERE t.lease_id = p_lease_id AND t.claim_id >= p_claims_since);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.renew_lease(p_lease_id uuid) RETURNS integer
LANGUAGE sql VOLATILE
AS $$ SELECT blackboard.renew_lease(p_lease_id, NULL) $$;

-- ---------------------------------------------------------------------------------------------------------- floors

-- The floors that this connection has noted for a session (see claim_tasks), while they are good: {"priority capability":
-- position, ...}. No row otherwise.
CREATE FUNCTION blackboard.floors(p_session_id uuid) RETURNS TABLE (floors jsonb, until timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT n.note -> 'floors', (n.note ->> 'until')::timestamptz
    FROM (SELECT nullif(current_setting('blackboard.floors', true), '')::jsonb -> p_session_id::text OFFSET 0) n (note)
    WHERE (n.note ->> 'until')::timestamptz > blackboard.now()
$$;

-- Notes floors of a session: for that many seconds, or, with NULL, for as long as was noted before.
CREATE FUNCTION blackboard.note_floors(p_session_id uuid, p_floors jsonb, p_seconds double precision) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_notes jsonb := coalesce(nullif(current_setting('blackboard.floors', true), '')::jsonb, '{}');
BEGIN
    IF p_seconds IS NULL THEN
        v_notes := jsonb_set(v_notes, ARRAY[p_session_id::text, 'floors'], p_floors);
    ELSE
        -- Of other sessions only what is still good.
        SELECT coalesce(jsonb_object_agg(n.key, n.value), '{}') INTO v_notes
        FROM jsonb_each(v_notes) n WHERE (n.value ->> 'until')::timestamptz > v_now;
        v_notes := v_notes || jsonb_build_object(p_session_id, jsonb_build_object(
            'until', v_now + p_seconds * interval '1 second', 'floors', p_floors));
    END IF;
    PERFORM set_config('blackboard.floors', v_notes::text, false);
END
$$;

-- What claim_tasks does, from the floors on that were noted: each head (a capability and a priority) has its own.
CREATE FUNCTION blackboard.claim_above_floors(
    p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer,
    p_now timestamptz, p_floors jsonb
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_sort = off
AS $$
DECLARE
    v_left integer := p_limit;
    v_got integer;
    v_below integer := 11;
    v_priority smallint;
    v_capability text;
    v_head text;
    v_floor bigint;
    v_floors jsonb := p_floors;
BEGIN
    WHILE v_left > 0 LOOP
        SELECT max(h.priority) INTO v_priority
        FROM unnest(p_capabilities) c (capability), generate_series(0, v_below - 1) q (priority),
             LATERAL (SELECT t.priority FROM blackboard.tasks t
                      WHERE t.session_id = p_session_id AND t.capability = c.capability
                        AND t.priority = q.priority::smallint AND t.status = 'pending'
                        AND t.position > coalesce((v_floors ->> (q.priority || ' ' || c.capability))::bigint, 0)
                      ORDER BY t.position LIMIT 1) h;
        EXIT WHEN v_priority IS NULL;
        FOREACH v_capability IN ARRAY p_capabilities LOOP
            v_head := v_priority || ' ' || v_capability;
            v_floor := coalesce((v_floors ->> v_head)::bigint, 0);
            RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT t.session_id, t.id, t.position FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.capability = v_capability AND t.priority = v_priority
                  AND t.status = 'pending' AND t.position > v_floor
                  AND (t.expires_at IS NULL OR t.expires_at > p_now)
                ORDER BY t.position LIMIT v_left FOR UPDATE SKIP LOCKED
            ), highest AS MATERIALIZED (
                SELECT set_config('blackboard.floor', max(p.position)::text, true) FROM picked p HAVING count(*) > 0)
            UPDATE blackboard.tasks t
            SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
                lease_id = p_lease_id, claim_id = p_claim_id, started_at = p_now,
                deadline_at = p_now + t.timeout, progress = NULL
            FROM highest, picked p WHERE t.session_id = p.session_id AND t.id = p.id
            RETURNING t.*;
            GET DIAGNOSTICS v_got = ROW_COUNT;
            IF v_got > 0 THEN
                v_floors := v_floors || jsonb_build_object(v_head, current_setting('blackboard.floor')::bigint);
                v_left := v_left - v_got;
            END IF;
            EXIT WHEN v_left <= 0;
        END LOOP;
        v_below := v_priority;
    END LOOP;
    PERFORM blackboard.note_floors(p_session_id, v_floors, NULL);
END
$$;

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

    IF current_setting('blackboard.floors', true) <> '' THEN
        SELECT f.floors INTO v_floors FROM blackboard.floors(p_session_id) f;
        IF v_floors IS NOT NULL THEN
            RETURN QUERY SELECT * FROM blackboard.claim_above_floors(p_session_id, p_agent_id, v_capabilities, p_lease_id,
                                                                     p_claim_id, v_left, v_now, v_floors);
            RETURN;
        END IF;
    END IF;
    v_began := clock_timestamp();
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
    v_took := extract(epoch FROM clock_timestamp() - v_began);
    IF v_took > 0.003 + 0.00006 * (p_limit - v_left) THEN
        -- Slow for so few tasks: from the next claim on, what lies below is left out for a while.
        PERFORM blackboard.note_floors(p_session_id, '{}', least(15, 40 * v_took));
    END IF;
END
$$;

-- One look at many sessions: whether there is something that the agent could claim, and in how long the next
-- scheduled task is due or what lies below a floor is to be looked at (NULL: none). Must use tasks_ready, tasks_assigned and
-- tasks_scheduled.
CREATE OR REPLACE FUNCTION blackboard.look_for_tasks(p_session_ids uuid[], p_agent_id text, p_capabilities text[])
RETURNS TABLE (session_id uuid, status text, ready boolean, due_in interval)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_capabilities text[] := p_capabilities || ''::text;
BEGIN
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
    LEFT JOIN LATERAL blackboard.floors(s.id) f ON true;
END
$$;

-- ------------------------------------------------------------------------------------------------------- failures

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

-- Hands many held tasks back; their attempts do not count. With a delay a task comes back after it, otherwise at once;
-- one that was asked to stop is cancelled. p_errors says why, where somebody should know. Returns where each went; a
-- task that is not held any more is not among them. Locks the tasks by id.
CREATE OR REPLACE FUNCTION blackboard.release_tasks(
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
