DROP INDEX blackboard.task_dependencies_depends_on;
CREATE INDEX task_dependencies_depends_on ON blackboard.task_dependencies (session_id, depends_on_id);
DROP INDEX blackboard.flow_tasks_stage;
CREATE INDEX flow_tasks_stage ON blackboard.flow_tasks (session_id, flow_id, stage, iteration);
DROP INDEX blackboard.flow_edges_depends_on;
CREATE INDEX flow_edges_depends_on ON blackboard.flow_edges (session_id, flow_id, depends_on);

DROP FUNCTION blackboard.flow_precedes(text[], text[], text[], text[], text[]);

CREATE FUNCTION blackboard.flow_precedes(p_session_id uuid, p_flow_id uuid, p_first text, p_second text) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    WITH RECURSIVE above (name) AS (
        SELECT e.depends_on FROM blackboard.flow_edges e
        WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.stage = p_second
        UNION
        SELECT e.depends_on FROM above a
        JOIN blackboard.flow_edges e ON e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.stage = a.name)
    SELECT EXISTS (SELECT FROM blackboard.flow_edges e
                   WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.stage = p_second
                     AND e.depends_on = p_first)
        OR EXISTS (SELECT FROM above a WHERE a.name = p_first)
$$;

CREATE OR REPLACE FUNCTION blackboard.add_tasks(p_session_id uuid, p_ids uuid[], p_types text[], p_capabilities text[], p_priorities smallint[], p_parameters jsonb[], p_options jsonb[], p_actor text) RETURNS integer
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    AS $$
DECLARE
    v_added integer;
    v_id uuid;
    -- Those that were not there before; NULL: all of them.
    v_new uuid[];
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
        v_new := blackboard.refuse_other_content(p_session_id, p_ids, p_types, p_capabilities, p_priorities,
                                                 p_parameters, p_options, v_added);
    END IF;
    IF v_added > 0 AND EXISTS (SELECT FROM unnest(p_options) o WHERE o ? 'depends_on') THEN
        SELECT d.id INTO v_id
        FROM unnest(p_ids, p_options) x (id, options),
             LATERAL blackboard.dependency_options(x.options) d (id, on_failure)
        WHERE (v_new IS NULL OR x.id = ANY (v_new))
          AND NOT EXISTS (SELECT FROM blackboard.tasks t
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
        WHERE v_new IS NULL OR x.id = ANY (v_new)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN v_added;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.check_dependencies() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE OR REPLACE FUNCTION blackboard.dependency_cycle(p_session_id uuid, p_tasks uuid[]) RETURNS uuid[]
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
                             WHEN t.assigned_to IS NOT NULL AND t.claim_id IS NULL THEN 'assigned' ELSE 'pending' END
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

CREATE OR REPLACE FUNCTION blackboard.settle_dependencies(p_session_id uuid, p_parents uuid[], p_succeeded boolean) RETURNS void
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

CREATE OR REPLACE FUNCTION blackboard.settle_dependants(p_session_id uuid, p_parents uuid[], p_succeeded boolean) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.settle_dependencies(p_session_id, p_parents, p_succeeded);
    PERFORM blackboard.settle_flow(p_session_id, f.flow_id, f.tasks, '{}')
    FROM (SELECT t.flow_id, array_agg(t.task_id) AS tasks FROM blackboard.flow_tasks t
          WHERE t.session_id = p_session_id AND t.task_id = ANY (p_parents) AND t.kind = 'stage'
          GROUP BY t.flow_id ORDER BY t.flow_id) f;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.settle_flow(p_session_id uuid, p_flow_id uuid, p_tasks uuid[], p_stages text[]) RETURNS void
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_flow blackboard.flows;
    v_alive boolean;
    v_stage record;
    v_quality double precision;
    v_candidates text[] := p_stages;
    v_done text[] := '{}';
    v_decided text[];
    v_changed text[];
    v_errors jsonb;
    v_released text[] := '{}';
    v_stopped text[] := '{}';
BEGIN
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_flow_id FOR UPDATE;
    v_alive := v_flow.finished_at IS NULL AND NOT v_flow.compensating
               AND EXISTS (SELECT FROM blackboard.sessions s
                           WHERE s.id = p_session_id AND s.status IN ('active', 'paused'));
    -- 1. What ended. The two special endings one by one, all others in one statement.
    FOR v_stage IN
        SELECT s.name, s.task_id, s.min_quality, s.max_iterations, s.loops, s.iteration, s.quality, t.status, t.result
        FROM blackboard.flow_stages s
        JOIN blackboard.tasks t ON t.session_id = s.session_id AND t.id = s.task_id
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.task_id = ANY (p_tasks)
          AND s.state IN ('waiting', 'ready') AND v_alive
          AND (t.status = 'completed' AND s.min_quality IS NOT NULL OR t.status = 'cancelled' AND s.stopping)
        ORDER BY s.ordinal
    LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM blackboard.flow_stages s
                                  WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id
                                    AND s.name = v_stage.name AND s.task_id = v_stage.task_id);
        IF v_stage.status = 'cancelled' THEN
            -- It was asked to stop by a pause: it starts over.
            UPDATE blackboard.flow_stages s
            SET state = 'waiting', task_id = blackboard.new_id(), stopping = false, quality = NULL
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = v_stage.name;
            PERFORM blackboard.make_stage_tasks(p_session_id, p_flow_id, ARRAY[v_stage.name], NULL);
            v_candidates := v_candidates || v_stage.name;
        ELSE
            v_quality := blackboard.stated_quality(v_stage.quality, v_stage.result);
            IF v_quality >= v_stage.min_quality THEN
                CONTINUE;
            ELSIF v_stage.loops + 1 < v_stage.max_iterations THEN
                v_candidates := v_candidates
                    || blackboard.loop_stage(p_session_id, p_flow_id, v_stage.name, v_quality);
            END IF;
        END IF;
    END LOOP;
    WITH e AS MATERIALIZED (
        SELECT s.name, s.task_id, t.status, q.quality, t.status = 'completed' AND s.min_quality IS NOT NULL
                   AND coalesce(q.quality < s.min_quality, true) AS below,
               CASE WHEN t.status <> 'completed' AND pg_column_size(t.error) <= 8192 THEN t.error - 'traceback' END AS error
        FROM unnest(p_tasks) x (id)
        JOIN blackboard.flow_tasks f ON f.session_id = p_session_id AND f.task_id = x.id AND f.flow_id = p_flow_id
        JOIN blackboard.flow_stages s
          ON s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = f.stage AND s.task_id = x.id
        JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = x.id
        CROSS JOIN LATERAL (SELECT blackboard.stated_quality(s.quality, t.result) AS quality) q
        WHERE t.completed_at IS NOT NULL
          -- A dead task that was redriven and made it after all.
          AND (s.state IN ('waiting', 'ready')
               OR s.state = 'failed' AND t.status = 'completed' AND s.error ->> 'code' IS DISTINCT FROM 'quality')
    ), ended AS (
        UPDATE blackboard.flow_stages s
        SET state = CASE WHEN e.below OR e.status = 'dead' THEN 'failed' ELSE e.status END, quality = e.quality,
            error = CASE WHEN e.below THEN jsonb_build_object(
                              'code', 'quality',
                              'message', format('Its quality is %s and must be %s at least, after %s rounds.',
                                                coalesce(e.quality::text, 'not said'), s.min_quality, s.loops + 1))
                         ELSE e.error END
        FROM e
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = e.name AND s.task_id = e.task_id
        RETURNING s.name)
    SELECT array_agg(e.name) INTO v_done FROM ended e;
    IF v_flow.finished_at IS NOT NULL THEN
        RETURN;
    END IF;
    -- 2. A failure that asks for compensation: nothing new starts any more.
    IF NOT v_flow.compensating AND EXISTS (
        SELECT FROM blackboard.flow_stages s
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_done)
          AND s.state IN ('failed', 'cancelled')
          AND EXISTS (SELECT FROM blackboard.flow_edges e
                      WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.on_failure = 'compensate'
                        AND (e.depends_on = s.name
                             OR e.stage = s.name AND NOT EXISTS (
                                 SELECT FROM blackboard.flow_edges o
                                 WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.depends_on = s.name))))
    THEN
        UPDATE blackboard.flows f SET compensating = true WHERE f.session_id = p_session_id AND f.id = p_flow_id;
        v_flow.compensating := true;
    END IF;
    IF v_flow.compensating THEN
        WITH stopped AS (
            UPDATE blackboard.flow_stages s
            SET state = 'cancelled',
                error = jsonb_build_object('code', 'flow_failed', 'message', 'The flow failed and is being compensated.')
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.state = 'waiting'
            RETURNING s.name)
        SELECT array_agg(p.name) INTO v_stopped FROM stopped p;
        PERFORM blackboard.stop_tasks(
            p_session_id,
            (SELECT array_agg(s.task_id) FROM blackboard.flow_stages s
             WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id
               AND (s.state = 'ready' OR s.name = ANY (v_stopped))),
            'flow_failed', 'The flow failed and is being compensated.');
    ELSE
        -- 3. What follows from that, wave by wave; tasks are touched once, in the end.
        v_candidates := v_candidates || array(
            SELECT e.stage FROM blackboard.flow_edges e
            WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.depends_on = ANY (v_done));
        WHILE cardinality(v_candidates) > 0 LOOP
            -- By way of arrays and a map: joined, a thousand verdicts would meet a thousand stages.
            SELECT coalesce(array_agg(v.name), '{}'), coalesce(array_agg(v.name) FILTER (WHERE v.verdict <> 'ready'), '{}'),
                   jsonb_object_agg(v.name, CASE v.verdict
                       WHEN 'ready' THEN NULL
                       WHEN 'skipped' THEN jsonb_build_object(
                           'code', 'skipped', 'depends_on', v.failed,
                           'message', 'A stage that this one depends on did not complete, and its policy is to skip this one.')
                       ELSE jsonb_build_object(
                           'code', 'dependency_failed', 'depends_on', v.failed,
                           'message', 'A stage that this one depends on did not complete.') END)
            INTO v_decided, v_changed, v_errors
            FROM blackboard.stage_verdicts(p_session_id, p_flow_id, v_candidates) v WHERE v.verdict IS NOT NULL;
            UPDATE blackboard.flow_stages s
            SET state = CASE v_errors -> s.name ->> 'code' WHEN 'skipped' THEN 'skipped'
                             WHEN 'dependency_failed' THEN 'cancelled' ELSE 'ready' END,
                error = nullif(v_errors -> s.name, 'null')
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_decided);
            v_released := v_released || array(SELECT unnest(v_decided) EXCEPT SELECT unnest(v_changed));
            v_stopped := v_stopped || v_changed;
            v_candidates := array(SELECT DISTINCT e.stage FROM blackboard.flow_edges e
                                  WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id
                                    AND e.depends_on = ANY (v_changed));
        END LOOP;
        PERFORM 1 FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id IN (
            SELECT s.task_id FROM blackboard.flow_stages s
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_released || v_stopped))
        ORDER BY t.id FOR UPDATE;
        PERFORM blackboard.release_stages(p_session_id, p_flow_id, v_released);
        UPDATE blackboard.tasks t
        SET status = 'cancelled', position = NULL, completed_at = blackboard.now(), error = s.error
        FROM blackboard.flow_stages s
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_stopped)
          AND t.session_id = p_session_id AND t.id = s.task_id AND t.completed_at IS NULL AND t.status <> 'running';
    END IF;
    PERFORM blackboard.finish_flow(p_session_id, p_flow_id);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.release_stages(p_session_id uuid, p_flow_id uuid, p_stages text[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
BEGIN
    WITH n AS MATERIALIZED (
        SELECT w.*, nextval('blackboard.task_positions') AS position
        FROM (SELECT o.id, f.id AS flow_id, f.name AS flow_name, o.status = 'blocked' AND f.status = 'paused' AS paused,
                     CASE WHEN o.status <> 'blocked' THEN o.status
                          WHEN f.status = 'paused' THEN 'held'
                          ELSE blackboard.next_status(jsonb_populate_record(o, '{"blockers": 0}')) END AS status
              FROM blackboard.flow_stages s
              JOIN blackboard.flows f ON f.session_id = s.session_id AND f.id = s.flow_id
              JOIN blackboard.tasks o ON o.session_id = s.session_id AND o.id = s.task_id
              WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (p_stages)
                AND o.completed_at IS NULL
              ORDER BY s.ordinal) w)
    UPDATE blackboard.tasks t
    SET blockers = 0, status = n.status, position = CASE WHEN n.status IN ('pending', 'assigned') THEN n.position END,
        held = CASE WHEN n.paused THEN blackboard.held_by_flow(n.flow_id, n.flow_name, NULL) ELSE t.held END
    FROM n
    WHERE t.session_id = p_session_id AND t.id = n.id;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.stage_verdicts(p_session_id uuid, p_flow_id uuid, p_stages text[]) RETURNS TABLE(name text, verdict text, failed jsonb)
    LANGUAGE plpgsql STABLE ROWS 10
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
BEGIN
    RETURN QUERY
    SELECT s.name,
           CASE WHEN v.met >= coalesce(s.join_need, v.edges) THEN 'ready'
                WHEN v.met + v.undecided >= coalesce(s.join_need, v.edges) THEN NULL
                WHEN v.fatal > 0 THEN 'cancelled' ELSE 'skipped' END,
           v.failed
    FROM blackboard.flow_stages s
    CROSS JOIN LATERAL (
        SELECT count(*) AS edges,
               count(*) FILTER (WHERE p.state = 'completed' OR (p.state = 'skipped' AND e.on_failure <> 'skip')
                                   OR (p.state IN ('failed', 'cancelled') AND e.on_failure = 'continue')) AS met,
               count(*) FILTER (WHERE p.state IN ('waiting', 'ready')) AS undecided,
               count(*) FILTER (WHERE p.state IN ('failed', 'cancelled')
                                  AND e.on_failure IN ('fail', 'compensate')) AS fatal,
               jsonb_agg(p.name ORDER BY p.ordinal)
                   FILTER (WHERE p.state IN ('failed', 'cancelled', 'skipped')) AS failed
        FROM blackboard.flow_edges e
        JOIN blackboard.flow_stages p
          ON p.session_id = e.session_id AND p.flow_id = e.flow_id AND p.name = e.depends_on
        WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.stage = s.name) v
    -- In a form that does not invite a walk along flow_stages_open.
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (p_stages)
      AND (s.state = 'waiting') IS TRUE;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.loop_stage(p_session_id uuid, p_flow_id uuid, p_name text, p_quality double precision) RETURNS text[]
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_stage blackboard.flow_stages;
    v_segment text[];
    v_stale uuid[];
    v_feedback jsonb;
BEGIN
    SELECT * INTO v_stage FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = p_name;
    WITH RECURSIVE above (name) AS (
        SELECT p_name
        UNION
        SELECT e.depends_on FROM above a
        JOIN blackboard.flow_edges e ON e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.stage = a.name
        WHERE a.name <> coalesce(v_stage.loop_to, p_name)
    ), below (name) AS (
        SELECT coalesce(v_stage.loop_to, p_name)
        UNION
        SELECT e.stage FROM below b
        JOIN blackboard.flow_edges e ON e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.depends_on = b.name
        WHERE b.name <> p_name)
    SELECT array_agg(a.name) INTO v_segment FROM above a JOIN below b USING (name);
    SELECT jsonb_build_object('stage', p_name, 'quality', p_quality, 'min_quality', v_stage.min_quality,
                              'iteration', v_stage.iteration, 'task_id', t.id, 'result', t.result)
    INTO v_feedback
    FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_stage.task_id;
    SELECT array_agg(s.task_id) INTO v_stale FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_segment)
      AND s.state IN ('waiting', 'ready') AND s.name <> p_name;
    UPDATE blackboard.flow_stages s
    SET state = 'waiting', task_id = blackboard.new_id(), iteration = s.iteration + 1,
        loops = CASE WHEN s.name = p_name THEN s.loops + 1 ELSE 0 END,
        quality = NULL, error = NULL, stopping = false
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_segment);
    PERFORM blackboard.make_stage_tasks(p_session_id, p_flow_id, v_segment, v_feedback);
    -- A branch that an early join left behind belongs to the old round.
    PERFORM blackboard.stop_tasks(p_session_id, v_stale, 'superseded', 'A later round of this stage has begun.');
    RETURN v_segment;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.finish_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_flow blackboard.flows;
    v_failed jsonb;
    v_closed boolean;
BEGIN
    PERFORM 1 FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.state IN ('waiting', 'ready') LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_flow_id;
    IF v_flow.finished_at IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT jsonb_agg(s.name ORDER BY s.ordinal), coalesce(bool_or(s.error ->> 'code' = 'session_closed'), false)
    INTO v_failed, v_closed
    FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.state IN ('failed', 'cancelled');
    UPDATE blackboard.flows f
    SET finished_at = blackboard.now(),
        status = CASE WHEN v_failed IS NULL THEN 'completed' WHEN v_closed THEN 'cancelled' ELSE 'failed' END,
        error = CASE WHEN v_closed THEN jsonb_build_object('code', 'session_closed', 'message', 'The session was closed.')
                     WHEN v_failed IS NOT NULL THEN jsonb_build_object(
                         'code', 'stages_failed', 'message', 'Not every stage of the flow completed.',
                         'stages', CASE WHEN jsonb_array_length(v_failed) <= 100 THEN v_failed END) END
    WHERE f.session_id = p_session_id AND f.id = p_flow_id;
    IF v_flow.compensating AND NOT v_closed AND EXISTS (
        SELECT FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status IN ('active', 'paused'))
    THEN
        PERFORM blackboard.compensate_flow(p_session_id, p_flow_id);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.stop_tasks(p_session_id uuid, p_tasks uuid[], p_code text, p_message text) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
BEGIN
    IF p_tasks IS NULL THEN
        RETURN;
    END IF;
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = ANY (p_tasks) AND t.completed_at IS NULL AND t.status <> 'running'
    ORDER BY t.id FOR UPDATE;
    UPDATE blackboard.tasks t
    SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
        error = jsonb_build_object('code', p_code, 'message', p_message)
    WHERE t.session_id = p_session_id AND t.id = ANY (p_tasks) AND t.completed_at IS NULL AND t.status <> 'running';
    WITH running AS MATERIALIZED (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id = ANY (p_tasks) AND t.status = 'running' AND NOT t.cancel_requested
        FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t SET cancel_requested = true
    FROM running r WHERE t.session_id = p_session_id AND t.id = r.id;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.make_stage_tasks(p_session_id uuid, p_flow_id uuid, p_stages text[], p_feedback jsonb) RETURNS void
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_ids uuid[];
    v_made integer;
BEGIN
    SELECT array_agg(s.task_id), blackboard.add_tasks(
               p_session_id, array_agg(s.task_id ORDER BY s.ordinal),
               array_agg(s.template ->> 'type' ORDER BY s.ordinal),
               array_agg(coalesce(s.template ->> 'capability', '') ORDER BY s.ordinal),
               array_agg(coalesce((s.template ->> 'priority')::smallint, 5::smallint) ORDER BY s.ordinal),
               array_agg(blackboard.with_note(coalesce(s.template -> 'parameters', '{}'), 'feedback', p_feedback)
                         ORDER BY s.ordinal),
               array_agg(nullif(s.template -> 'options', 'null') ORDER BY s.ordinal),
               nullif(current_setting('blackboard.actor', true), ''))
    INTO v_ids, v_made
    FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (p_stages);
    IF v_made < cardinality(v_ids) THEN
        PERFORM blackboard.raise('BB004', 'The id of a stage''s task was used before; leave it out or use a new one.',
                                 '{"noun": "task", "field": "id"}');
    END IF;
    INSERT INTO blackboard.flow_tasks (session_id, task_id, flow_id, stage, iteration)
    SELECT s.session_id, s.task_id, s.flow_id, s.name, s.iteration FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (p_stages);
    -- has_dependants: somebody waits for their end, namely the flow.
    UPDATE blackboard.tasks t
    SET has_dependants = true, blockers = 1,
        status = CASE WHEN t.status IN ('pending', 'assigned', 'scheduled') THEN 'blocked' ELSE t.status END,
        position = NULL
    WHERE t.session_id = p_session_id AND t.id = ANY (v_ids);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.ask_to_stop(p_session_id uuid, p_id uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.status = 'running' AND NOT t.cancel_requested
      AND t.id IN (SELECT s.task_id FROM blackboard.flow_stages s
                   WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready')
    ORDER BY t.id FOR UPDATE;
    UPDATE blackboard.tasks t SET cancel_requested = true
    WHERE t.session_id = p_session_id AND t.status = 'running' AND NOT t.cancel_requested
      AND t.id IN (SELECT s.task_id FROM blackboard.flow_stages s
                   WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready');
END
$$;

CREATE OR REPLACE FUNCTION blackboard.pause_flow(p_session_id uuid, p_id uuid, p_stop boolean, p_actor text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_flow blackboard.flows;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    IF p_stop THEN
        PERFORM blackboard.ask_to_stop(p_session_id, p_id);
    END IF;
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    PERFORM blackboard.refuse_finished_flow(v_flow);
    IF v_flow.status = 'running' THEN
        UPDATE blackboard.flows f SET status = 'paused', version = f.version + 1
        WHERE f.session_id = p_session_id AND f.id = p_id;
        PERFORM 1 FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status IN ('pending', 'assigned', 'scheduled')
          AND t.id IN (SELECT s.task_id FROM blackboard.flow_stages s
                       WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready')
        ORDER BY t.id FOR UPDATE;
        UPDATE blackboard.tasks t
        SET status = 'held', position = NULL, held = blackboard.held_by_flow(p_id, v_flow.name, t.position)
        WHERE t.session_id = p_session_id AND t.status IN ('pending', 'assigned', 'scheduled')
          AND t.id IN (SELECT s.task_id FROM blackboard.flow_stages s
                       WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready');
    END IF;
    IF p_stop THEN
        UPDATE blackboard.flow_stages s SET stopping = true
        FROM blackboard.tasks t
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready' AND NOT s.stopping
          AND t.session_id = s.session_id AND t.id = s.task_id AND t.status = 'running' AND t.cancel_requested;
    END IF;
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.resume_flow(p_session_id uuid, p_id uuid, p_actor text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_flow blackboard.flows;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    PERFORM blackboard.refuse_finished_flow(v_flow);
    IF v_flow.status = 'paused' THEN
        PERFORM blackboard.open_session(p_session_id);
        UPDATE blackboard.flows f SET status = 'running', version = f.version + 1
        WHERE f.session_id = p_session_id AND f.id = p_id;
        PERFORM 1 FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = 'flow_paused'
          AND t.id IN (SELECT s.task_id FROM blackboard.flow_stages s
                       WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready')
        ORDER BY t.id FOR UPDATE;
        WITH n AS MATERIALIZED (
            SELECT o.id, o.status, nextval('blackboard.task_positions') AS position
            FROM (SELECT h.id, blackboard.next_status(h) AS status
                  FROM blackboard.flow_stages s
                  JOIN blackboard.tasks h ON h.session_id = s.session_id AND h.id = s.task_id
                  WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready'
                    AND h.status = 'held' AND h.held ->> 'code' = 'flow_paused'
                  ORDER BY (h.held ->> 'position')::bigint, s.ordinal) o)
        UPDATE blackboard.tasks t
        SET status = n.status, held = NULL, position = CASE WHEN n.status IN ('pending', 'assigned') THEN n.position END
        FROM n
        WHERE t.session_id = p_session_id AND t.id = n.id AND t.status = 'held';
    END IF;
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.cancel_flow(p_session_id uuid, p_id uuid, p_reason text, p_actor text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_flow blackboard.flows;
    v_error jsonb := jsonb_build_object('code', 'flow_cancelled', 'message', coalesce(nullif(p_reason, ''),
                                                                                    'The flow was cancelled.'));
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.ask_to_stop(p_session_id, p_id);
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    IF v_flow.status <> 'cancelled' THEN
        PERFORM blackboard.refuse_finished_flow(v_flow);
        UPDATE blackboard.flows f
        SET status = 'cancelled', version = f.version + 1, error = v_error, finished_at = blackboard.now()
        WHERE f.session_id = p_session_id AND f.id = p_id;
        UPDATE blackboard.flow_stages s SET state = 'cancelled', error = v_error
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'waiting';
        PERFORM blackboard.stop_tasks(
            p_session_id,
            (SELECT array_agg(s.task_id) FROM blackboard.flow_stages s
             WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state IN ('ready', 'cancelled')),
            'flow_cancelled', v_error ->> 'message');
    END IF;
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.modify_flow(p_session_id uuid, p_id uuid, p_expected integer, p_change jsonb, p_actor text, p_key text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_flow blackboard.flows;
    v_stage blackboard.flow_stages;
    v_name text;
    v_value jsonb;
    v_left text;
    v_removed uuid[] := '{}';
    v_rewired text[] := '{}';
BEGIN
    PERFORM blackboard.act_as(p_actor);
    IF NOT blackboard.first_time(p_session_id, p_key, 'modify_flow', jsonb_build_array(p_id, p_expected, p_change)) THEN
        RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
        RETURN;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    IF v_flow.version <> p_expected THEN
        PERFORM blackboard.raise('BB012', format('Flow %s is at version %s, not %s: look at it again, then repeat the change.',
                                                 p_id, v_flow.version, p_expected),
                                 jsonb_build_object('noun', 'flow', 'id', p_id, 'version', v_flow.version,
                                                    'expected_version', p_expected));
    END IF;
    PERFORM blackboard.refuse_finished_flow(v_flow);
    IF v_flow.compensating THEN
        PERFORM blackboard.raise('BB003', 'The flow has failed and is being compensated: it takes no more changes.',
                                 jsonb_build_object('noun', 'flow', 'id', p_id, 'status', v_flow.status));
    END IF;
    FOR v_name IN SELECT r.name FROM jsonb_array_elements_text(coalesce(p_change -> 'remove', '[]')) r (name) ORDER BY 1 LOOP
        v_stage := blackboard.unstarted_stage(p_session_id, v_flow, v_name);
        v_removed := v_removed || v_stage.task_id;
        DELETE FROM blackboard.flow_edges e WHERE e.session_id = p_session_id AND e.flow_id = p_id AND e.stage = v_name;
    END LOOP;
    FOR v_name IN SELECT k FROM jsonb_object_keys(coalesce(p_change -> 'rewire', '{}')) k ORDER BY 1 LOOP
        v_stage := blackboard.unstarted_stage(p_session_id, v_flow, v_name);
        v_rewired := v_rewired || v_name;
        DELETE FROM blackboard.flow_edges e WHERE e.session_id = p_session_id AND e.flow_id = p_id AND e.stage = v_name;
    END LOOP;
    SELECT e.stage INTO v_left FROM blackboard.flow_edges e
    WHERE e.session_id = p_session_id AND e.flow_id = p_id
      AND e.depends_on IN (SELECT jsonb_array_elements_text(coalesce(p_change -> 'remove', '[]'))) LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Stage %L depends on a stage that is to be removed: rewire or remove it too.',
                                                 v_left),
                                 jsonb_build_object('field', 'remove', 'stage', v_left));
    END IF;
    DELETE FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.task_id = ANY (v_removed);
    IF p_change -> 'add' IS NOT NULL THEN
        PERFORM blackboard.add_stages(p_session_id, p_id, p_change -> 'add');
    END IF;
    IF cardinality(v_rewired) > 0 THEN
        PERFORM blackboard.wire_stages(
            p_session_id, p_id, (SELECT jsonb_agg(jsonb_build_object('name', r.key, 'after', r.value))
                                 FROM jsonb_each(p_change -> 'rewire') r));
        -- What was ready waits again until its new dependencies are looked at.
        UPDATE blackboard.flow_stages s SET state = 'waiting'
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.name = ANY (v_rewired) AND s.state = 'ready';
        UPDATE blackboard.tasks t
        SET blockers = 1, position = NULL, held = NULL,
            status = CASE WHEN t.status IN ('pending', 'assigned', 'scheduled', 'held') THEN 'blocked' ELSE t.status END
        WHERE t.session_id = p_session_id AND t.blockers = 0
          AND t.id IN (SELECT s.task_id FROM blackboard.flow_stages s
                       WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.name = ANY (v_rewired));
    END IF;
    FOR v_name, v_value IN SELECT r.key, r.value FROM jsonb_each(coalesce(p_change -> 'reprioritise', '{}')) r ORDER BY 1 LOOP
        v_stage := blackboard.unstarted_stage(p_session_id, v_flow, v_name);
        UPDATE blackboard.flow_stages s SET template = s.template || jsonb_build_object('priority', v_value)
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.name = v_name;
        UPDATE blackboard.tasks t SET priority = (v_value #>> '{}')::smallint
        WHERE t.session_id = p_session_id AND t.id = v_stage.task_id;
    END LOOP;
    IF NOT EXISTS (SELECT FROM blackboard.flow_stages s WHERE s.session_id = p_session_id AND s.flow_id = p_id) THEN
        PERFORM blackboard.raise('BB002', 'A flow has at least one stage; cancel it instead.', '{"field": "remove"}');
    END IF;
    PERFORM blackboard.check_flow(p_session_id, p_id);
    PERFORM set_config('blackboard.flow_change',
                       CASE WHEN pg_column_size(p_change) <= 65536 THEN p_change::text ELSE '' END, true);
    UPDATE blackboard.flows f SET version = f.version + 1 WHERE f.session_id = p_session_id AND f.id = p_id;
    PERFORM set_config('blackboard.flow_change', '', true);
    UPDATE blackboard.tasks t
    SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
        error = jsonb_build_object('code', 'removed', 'message', 'Its stage was taken out of the flow.')
    WHERE t.session_id = p_session_id AND t.id = ANY (v_removed) AND t.completed_at IS NULL;
    PERFORM blackboard.settle_flow(
        p_session_id, p_id, '{}', v_rewired || array(
            SELECT a.stage ->> 'name' FROM jsonb_array_elements(coalesce(p_change -> 'add', '[]')) a (stage)));
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.history_flow_edges() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT c.session_id, 'flow.stage_wired', c.flow_id,
           jsonb_build_object('stage', c.stage, 'after', coalesce(
               jsonb_agg(jsonb_build_object('stage', e.depends_on, 'on_failure', e.on_failure) ORDER BY e.depends_on)
                   FILTER (WHERE e.depends_on IS NOT NULL), '[]'))
    FROM (SELECT DISTINCT session_id, flow_id, stage FROM changed_rows) c
    LEFT JOIN blackboard.flow_edges e USING (session_id, flow_id, stage)
    GROUP BY c.session_id, c.flow_id, c.stage
    ORDER BY c.stage;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.check_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    AS $$
DECLARE
    v_row record;
BEGIN
    PERFORM blackboard.flow_order(
        array(SELECT s.name FROM blackboard.flow_stages s
              WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id ORDER BY s.ordinal),
        e.stages, e.depends_on)
    FROM (SELECT array_agg(e.stage) AS stages, array_agg(e.depends_on) AS depends_on FROM blackboard.flow_edges e
          WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id) e;
    SELECT s.name, s.join_need, count(e.depends_on) AS edges INTO v_row
    FROM blackboard.flow_stages s
    LEFT JOIN blackboard.flow_edges e ON e.session_id = s.session_id AND e.flow_id = s.flow_id AND e.stage = s.name
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.join_need IS NOT NULL
    GROUP BY s.name, s.join_need, s.ordinal HAVING s.join_need > count(e.depends_on) ORDER BY s.ordinal LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Stage %L joins on %s successes and has %s dependencies.',
                                                 v_row.name, v_row.join_need, v_row.edges),
                                 jsonb_build_object('field', 'join', 'stage', v_row.name));
    END IF;
    SELECT s.name, s.loop_to INTO v_row FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.loop_to <> s.name
      AND NOT blackboard.flow_precedes(p_session_id, p_flow_id, s.loop_to, s.name)
    ORDER BY s.ordinal LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Stage %L cannot loop back to %L, which does not come before it.',
                                                 v_row.name, v_row.loop_to),
                                 jsonb_build_object('field', 'loop_to', 'stage', v_row.name));
    END IF;
    SELECT s.name INTO v_row FROM blackboard.flow_stages s
    JOIN blackboard.flow_stages o ON o.session_id = s.session_id AND o.flow_id = s.flow_id AND o.name = s.output
                                 AND o.name <> s.name
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.output IS NOT NULL ORDER BY s.ordinal LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('The output of stage %L has the name of another stage.', v_row.name),
                                 jsonb_build_object('field', 'output', 'stage', v_row.name));
    END IF;
    SELECT s.name, b.key, b.value ->> 0 AS said, x.source, p.name AS producer INTO v_row
    FROM blackboard.flow_stages s
    CROSS JOIN LATERAL jsonb_each(s.bindings) b
    CROSS JOIN LATERAL blackboard.flow_binding(b.value #>> '{}') x
    LEFT JOIN LATERAL (
        SELECT p.name FROM blackboard.flow_stages p
        WHERE p.session_id = s.session_id AND p.flow_id = s.flow_id AND p.name = x.source
        UNION ALL
        SELECT p.name FROM blackboard.flow_stages p
        WHERE p.session_id = s.session_id AND p.flow_id = s.flow_id AND p.output = x.source LIMIT 1) p ON true
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.bindings <> '{}'
      AND x.source IS DISTINCT FROM 'inputs'
      AND (p.name IS NULL OR NOT blackboard.flow_precedes(p_session_id, p_flow_id, p.name, s.name))
    ORDER BY s.ordinal, b.key LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise(
            'BB002',
            CASE WHEN v_row.producer IS NULL
                 THEN format('Input %L of stage %L is bound to %L, which is no stage or output of this flow.',
                             v_row.key, v_row.name, v_row.source)
                 ELSE format('Input %L of stage %L is bound to stage %L, which does not come before it; let it depend on it.',
                             v_row.key, v_row.name, v_row.producer) END,
            jsonb_build_object('field', 'inputs', 'stage', v_row.name, 'input', v_row.key));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.prunable_tasks(p_session_id uuid, p_ids uuid[], p_before timestamp with time zone, p_statuses text[]) RETURNS uuid[]
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(array_agg(t.id ORDER BY t.id), '{}') FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = ANY (p_ids) AND t.completed_at < p_before
      AND t.status = ANY (p_statuses)
      AND NOT (t.has_dependants AND (
              EXISTS (SELECT FROM blackboard.task_dependencies d
                      JOIN blackboard.tasks c ON c.session_id = d.session_id AND c.id = d.task_id
                      WHERE d.session_id = p_session_id AND d.depends_on_id = t.id AND c.completed_at IS NULL)
              OR EXISTS (SELECT FROM blackboard.flow_tasks m
                         JOIN blackboard.flows f ON f.session_id = m.session_id AND f.id = m.flow_id
                         WHERE m.session_id = p_session_id AND m.task_id = t.id AND f.finished_at IS NULL)))
$$;

CREATE OR REPLACE FUNCTION blackboard.prune_tasks(p_session_id uuid, p_before timestamp with time zone, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean, p_actor text, OUT next uuid, OUT pruned integer) RETURNS record
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_seen uuid[];
    v_ids uuid[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT array_agg(w.id ORDER BY w.id) INTO v_seen FROM (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND (p_after IS NULL OR t.id > p_after)
        ORDER BY t.id LIMIT p_scan) w;
    next := CASE WHEN cardinality(v_seen) = p_scan THEN v_seen[p_scan] END;
    v_ids := blackboard.prunable_tasks(p_session_id, v_seen, p_before, p_statuses);
    pruned := cardinality(v_ids);
    IF p_dry_run OR pruned = 0 THEN
        RETURN;
    END IF;
    -- In another statement than the look, so that what was redriven meanwhile is seen and stays.
    SELECT coalesce(array_agg(w.id), '{}') INTO v_ids FROM (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id = ANY (v_ids) AND t.completed_at < p_before
          AND t.status = ANY (p_statuses)
        ORDER BY t.id FOR UPDATE SKIP LOCKED) w;
    -- Not in a SET clause: only a superuser may name a setting of our own there.
    PERFORM pg_catalog.set_config('blackboard.pruning', 'on', true);
    DELETE FROM blackboard.task_dependencies d
    WHERE d.session_id = p_session_id AND (d.depends_on_id = ANY (v_ids) OR d.task_id = ANY (v_ids));
    DELETE FROM blackboard.late_results r WHERE r.session_id = p_session_id AND r.task_id = ANY (v_ids);
    WITH gone AS (
        DELETE FROM blackboard.keyed_tasks k WHERE k.session_id = p_session_id AND k.task_id = ANY (v_ids)
        RETURNING k.key, k.task_id)
    DELETE FROM blackboard.task_keys k USING gone g
    WHERE k.session_id = p_session_id AND k.key = g.key AND k.task_id = g.task_id;
    DELETE FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (v_ids);
    GET DIAGNOSTICS pruned = ROW_COUNT;
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    -- Nobody is waited for: a counter in use is not an old one.
    DELETE FROM blackboard.limit_usage u
    USING (SELECT l.limit_id, l.key FROM blackboard.limit_usage l
           WHERE l.session_id = p_session_id AND l.key <> '' AND l.running = 0 AND NOT l.waiting
             AND l.window_started_at < p_before AND l.deferred = 0
           ORDER BY l.limit_id, l.key FOR UPDATE SKIP LOCKED) w
    WHERE u.session_id = p_session_id AND u.limit_id = w.limit_id AND u.key = w.key;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.prune_flows(p_session_id uuid, p_before timestamp with time zone, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean, p_actor text, OUT next uuid, OUT pruned integer) RETURNS record
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_last uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
    v_seen uuid[];
    v_flow uuid;
    v_tasks uuid[];
    v_rows integer := 0;
    v_count integer;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    pruned := 0;
    SELECT array_agg(w.id ORDER BY w.id) INTO v_seen FROM (
        SELECT f.id FROM blackboard.flows f
        WHERE f.session_id = p_session_id AND (p_after IS NULL OR f.id > p_after)
        ORDER BY f.id LIMIT p_scan) w;
    PERFORM pg_catalog.set_config('blackboard.pruning', 'on', true);
    FOREACH v_flow IN ARRAY coalesce(v_seen, '{}') LOOP
        IF v_rows >= p_scan THEN
            next := v_last;
            EXIT;
        END IF;
        PERFORM 1 FROM blackboard.flows f
        WHERE f.session_id = p_session_id AND f.id = v_flow AND f.finished_at < p_before AND f.status = ANY (p_statuses);
        IF FOUND THEN
            -- What is over makes no more tasks, hence none can come after this look.
            SELECT array_agg(t.id) INTO v_tasks FROM blackboard.flow_tasks m
            JOIN blackboard.tasks t ON t.session_id = m.session_id AND t.id = m.task_id
            WHERE m.session_id = p_session_id AND m.flow_id = v_flow;
            IF p_dry_run THEN
                IF v_tasks IS NULL OR cardinality(v_tasks) = cardinality(
                       blackboard.prunable_tasks(p_session_id, v_tasks, p_before, p_statuses)) THEN
                    pruned := pruned + 1;
                END IF;
            ELSIF v_tasks IS NULL THEN
                PERFORM 1 FROM blackboard.flows f
                WHERE f.session_id = p_session_id AND f.id = v_flow FOR UPDATE SKIP LOCKED;
                IF FOUND THEN
                    -- A flow can have made a hundred tasks for each of ten thousand stages.
                    WITH w AS MATERIALIZED (
                        SELECT o.task_id FROM blackboard.flow_tasks o
                        WHERE o.session_id = p_session_id AND o.flow_id = v_flow LIMIT p_scan - v_rows)
                    DELETE FROM blackboard.flow_tasks m USING w
                    WHERE m.session_id = p_session_id AND m.task_id = w.task_id;
                    GET DIAGNOSTICS v_count = ROW_COUNT;
                    v_rows := v_rows + v_count;
                    IF v_rows >= p_scan THEN
                        next := v_last;
                        EXIT;
                    END IF;
                    DELETE FROM blackboard.flow_edges e WHERE e.session_id = p_session_id AND e.flow_id = v_flow;
                    GET DIAGNOSTICS v_count = ROW_COUNT;
                    v_rows := v_rows + v_count;
                    DELETE FROM blackboard.flow_stages s WHERE s.session_id = p_session_id AND s.flow_id = v_flow;
                    GET DIAGNOSTICS v_count = ROW_COUNT;
                    v_rows := v_rows + v_count + 1;
                    DELETE FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = v_flow;
                    pruned := pruned + 1;
                END IF;
            END IF;
        END IF;
        v_last := v_flow;
    END LOOP;
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    IF next IS NULL AND cardinality(v_seen) = p_scan THEN
        next := v_seen[p_scan];
    END IF;
END
$$;

DROP FUNCTION blackboard.add_dependencies(uuid, uuid[], jsonb[], uuid[]);
DROP FUNCTION blackboard.edges_above(uuid, uuid[]);
DROP FUNCTION blackboard.stages_after(uuid, uuid, text[]);
DROP FUNCTION blackboard.tasks_of_stages(uuid, uuid, text[]);
