-- Flows: directed graphs of stages, each of which is a task, with joins, failure policies, loops and compensation.
--
-- A stage waits as a task that is blocked, and is released by the flow, not by edges in task_dependencies: its edges
-- are between names, so that a stage can get a new task (a loop) and the graph can change while it lives.
-- What a stage is:
--   waiting -> ready (its task can be claimed, or runs) -> completed | failed | cancelled, or skipped from waiting.
-- Lock order: running tasks, the flow's row, waiting tasks. Whoever ends a task holds it and then takes its flow;
-- whoever holds a flow touches running tasks only where nobody else holds them.

CREATE TABLE blackboard.flows (
    session_id uuid NOT NULL CONSTRAINT flows_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    name text NOT NULL CONSTRAINT flows_name_length CHECK (length(name) BETWEEN 1 AND 200),
    status text NOT NULL DEFAULT 'running'
        CONSTRAINT flows_status_known CHECK (status IN ('running', 'paused', 'completed', 'failed', 'cancelled')),
    -- Grows with every pause, resume, change and cancellation: who changes a flow names the version that it saw.
    version integer NOT NULL DEFAULT 1 CONSTRAINT flows_version_range CHECK (version >= 1),
    inputs jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT flows_inputs_object CHECK (jsonb_typeof(inputs) = 'object')
        CONSTRAINT flows_inputs_size CHECK (pg_column_size(inputs) <= 1048576),
    -- Nothing new starts; when what runs has ended, what was completed is compensated.
    compensating boolean NOT NULL DEFAULT false,
    error jsonb,
    digest text NOT NULL,
    created_by text NOT NULL DEFAULT blackboard.current_actor(),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    finished_at timestamptz,
    CONSTRAINT flows_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT flows_finished_at_iff_final CHECK (
        (status IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
);
CREATE INDEX flows_newest ON blackboard.flows (session_id, created_at DESC, id);

CREATE TABLE blackboard.flow_stages (
    session_id uuid NOT NULL,
    flow_id uuid NOT NULL,
    name text NOT NULL CONSTRAINT flow_stages_name_form
        CHECK (name ~ '^[^[:space:][:cntrl:].]{1,100}$' AND name <> 'inputs'),
    ordinal integer NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CONSTRAINT flow_stages_state_known
        CHECK (state IN ('waiting', 'ready', 'completed', 'failed', 'skipped', 'cancelled')),
    -- The task of its present iteration, and what a task of it is made of.
    task_id uuid NOT NULL,
    template jsonb NOT NULL,
    -- How many of its dependencies must succeed; NULL is all of them.
    join_need integer CONSTRAINT flow_stages_join_range CHECK (join_need >= 1),
    bindings jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT flow_stages_bindings_object CHECK (jsonb_typeof(bindings) = 'object'),
    output text CONSTRAINT flow_stages_output_form CHECK (output ~ '^[^[:space:][:cntrl:].]{1,100}$' AND output <> 'inputs'),
    compensation jsonb,
    compensation_task_id uuid,
    min_quality double precision CONSTRAINT flow_stages_min_quality_range CHECK (min_quality BETWEEN 0 AND 1),
    max_iterations integer NOT NULL DEFAULT 1
        CONSTRAINT flow_stages_max_iterations_range CHECK (max_iterations BETWEEN 1 AND 100),
    loop_to text,
    iteration integer NOT NULL DEFAULT 1,
    loops integer NOT NULL DEFAULT 0,
    quality double precision CONSTRAINT flow_stages_quality_range CHECK (quality BETWEEN 0 AND 1),
    -- Asked to stop by a pause: it starts over.
    stopping boolean NOT NULL DEFAULT false,
    error jsonb,
    CONSTRAINT flow_stages_pkey PRIMARY KEY (session_id, flow_id, name),
    CONSTRAINT flow_stages_loop_has_quality CHECK (loop_to IS NULL OR min_quality IS NOT NULL),
    CONSTRAINT flow_stages_flow_fkey FOREIGN KEY (session_id, flow_id) REFERENCES blackboard.flows (session_id, id)
);
-- Partial, so that nothing but what asks for outputs can be planned along them.
CREATE UNIQUE INDEX flow_stages_output_once ON blackboard.flow_stages (session_id, flow_id, output)
    WHERE output IS NOT NULL;
CREATE INDEX flow_stages_open ON blackboard.flow_stages (session_id, flow_id) WHERE state IN ('waiting', 'ready');

CREATE TABLE blackboard.flow_edges (
    session_id uuid NOT NULL,
    flow_id uuid NOT NULL,
    stage text NOT NULL,
    depends_on text NOT NULL,
    on_failure text NOT NULL DEFAULT 'fail'
        CONSTRAINT flow_edges_on_failure_known CHECK (on_failure IN ('fail', 'skip', 'continue', 'compensate')),
    CONSTRAINT flow_edges_pkey PRIMARY KEY (session_id, flow_id, stage, depends_on),
    CONSTRAINT flow_edges_stage_fkey FOREIGN KEY (session_id, flow_id, stage)
        REFERENCES blackboard.flow_stages (session_id, flow_id, name),
    CONSTRAINT flow_edges_depends_on_fkey FOREIGN KEY (session_id, flow_id, depends_on)
        REFERENCES blackboard.flow_stages (session_id, flow_id, name)
);
CREATE INDEX flow_edges_depends_on ON blackboard.flow_edges (session_id, flow_id, depends_on);
ALTER TABLE blackboard.flow_stages SET (autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE blackboard.flow_edges SET (autovacuum_analyze_scale_factor = 0.05);

-- Every task that a flow ever made, so that a task knows its flow.
CREATE TABLE blackboard.flow_tasks (
    session_id uuid NOT NULL,
    task_id uuid NOT NULL,
    flow_id uuid NOT NULL,
    stage text NOT NULL,
    iteration integer NOT NULL,
    kind text NOT NULL DEFAULT 'stage' CONSTRAINT flow_tasks_kind_known CHECK (kind IN ('stage', 'compensation')),
    CONSTRAINT flow_tasks_pkey PRIMARY KEY (session_id, task_id),
    CONSTRAINT flow_tasks_flow_fkey FOREIGN KEY (session_id, flow_id) REFERENCES blackboard.flows (session_id, id)
);
CREATE INDEX flow_tasks_stage ON blackboard.flow_tasks (session_id, flow_id, stage, iteration);

-- ----------------------------------------------------------------------------------------------------- history

CREATE FUNCTION blackboard.history_flows_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'flow.created', n.id,
           jsonb_build_object('name', n.name, 'status', n.status, 'version', n.version, 'compensating', n.compensating,
                              'inputs', CASE WHEN pg_column_size(n.inputs) <= 8192 THEN n.inputs END,
                              'error', n.error)
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'flows') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.flows REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flows_insert();

CREATE FUNCTION blackboard.history_flows_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET enable_hashjoin = on
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE
               -- What is over stays over: no branch, hence no type, hence refused.
               WHEN o.finished_at IS NOT NULL THEN NULL
               WHEN n.status = o.status THEN CASE WHEN n.version > o.version THEN 'flow.modified' ELSE 'flow.updated' END
               WHEN n.status = 'running' THEN 'flow.resumed'
               ELSE 'flow.' || n.status END,
           n.id,
           blackboard.changed(
               jsonb_build_object('status', o.status, 'version', o.version, 'compensating', o.compensating,
                                  'error', o.error),
               jsonb_build_object('status', n.status, 'version', n.version, 'compensating', n.compensating,
                                  'error', n.error))
           -- What a modification changed travels beside it.
           || CASE WHEN n.status = o.status AND n.version > o.version
                   THEN jsonb_build_object('change', nullif(current_setting('blackboard.flow_change', true), '')::jsonb)
                   ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.status, n.version, n.compensating, n.error)
          IS DISTINCT FROM (o.status, o.version, o.compensating, o.error);
    PERFORM blackboard.hint(s.session_id, 'flows') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'A flow that is over does not change any more; create a new one.',
                             '{"noun": "flow"}');
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.flows
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flows_update();
CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, name, inputs, digest, created_by, created_at
    ON blackboard.flows FOR EACH ROW
    WHEN ((OLD.session_id, OLD.id, OLD.name, OLD.inputs, OLD.digest, OLD.created_by, OLD.created_at) IS DISTINCT FROM
          (NEW.session_id, NEW.id, NEW.name, NEW.inputs, NEW.digest, NEW.created_by, NEW.created_at))
    EXECUTE FUNCTION blackboard.refuse_immutable('session_id, id, name, inputs, digest, created_by and created_at');
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flows REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('flow', 'id');

CREATE FUNCTION blackboard.history_flow_stages() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET enable_hashjoin = on
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id, 'flow.stage_added', n.flow_id,
               jsonb_build_object('stage', n.name, 'state', n.state, 'task_id', n.task_id, 'iteration', n.iteration,
                                  'quality', n.quality, 'error', n.error,
                                  'compensation_task_id', n.compensation_task_id)
        FROM new_rows n ORDER BY n.ordinal;
    ELSE
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id,
               CASE WHEN n.iteration > o.iteration THEN 'flow.stage_looped'
                    WHEN n.state <> o.state THEN 'flow.stage_' || n.state
                    ELSE 'flow.stage_updated' END,
               n.flow_id,
               jsonb_build_object('stage', n.name) || blackboard.changed(
                   jsonb_build_object('state', o.state, 'task_id', o.task_id, 'iteration', o.iteration,
                                      'quality', o.quality, 'error', o.error,
                                      'compensation_task_id', o.compensation_task_id),
                   jsonb_build_object('state', n.state, 'task_id', n.task_id, 'iteration', n.iteration,
                                      'quality', n.quality, 'error', n.error,
                                      'compensation_task_id', n.compensation_task_id))
        FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.flow_id = n.flow_id AND o.name = n.name
        WHERE (n.state, n.task_id, n.iteration, n.quality, n.error, n.compensation_task_id)
              IS DISTINCT FROM (o.state, o.task_id, o.iteration, o.quality, o.error, o.compensation_task_id)
        ORDER BY n.ordinal;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.flow_stages REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_stages();
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.flow_stages
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_stages();
CREATE FUNCTION blackboard.history_flow_stages_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'flow.stage_removed', o.flow_id, jsonb_build_object('stage', o.name, 'task_id', o.task_id)
    FROM old_rows o;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_stages REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_stages_delete();

-- Edges as they are after the change, one event a stage.
CREATE FUNCTION blackboard.history_flow_edges() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET enable_hashjoin = on
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
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.flow_edges REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_edges();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_edges REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_edges();

-- A flow's rows hang together and with its tasks: they are written by the verbs below, and by them only. The sign of
-- such a verb is a setting of PostgreSQL's own that says nothing here (xmloption), because only a superuser may name a
-- custom setting in a SET clause.
CREATE FUNCTION blackboard.refuse_flow_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.raise('BB005', format('%s on blackboard.%s is refused: flows are changed by their verbs, such as '
                                             'blackboard.create_flow() and blackboard.modify_flow().',
                                             TG_OP, TG_TABLE_NAME),
                             jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON blackboard.flows FOR EACH STATEMENT
    WHEN (pg_catalog.current_setting('xmloption') <> 'document')
    EXECUTE FUNCTION blackboard.refuse_flow_change();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON blackboard.flow_stages FOR EACH STATEMENT
    WHEN (pg_catalog.current_setting('xmloption') <> 'document')
    EXECUTE FUNCTION blackboard.refuse_flow_change();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON blackboard.flow_edges FOR EACH STATEMENT
    WHEN (pg_catalog.current_setting('xmloption') <> 'document')
    EXECUTE FUNCTION blackboard.refuse_flow_change();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON blackboard.flow_tasks FOR EACH STATEMENT
    WHEN (pg_catalog.current_setting('xmloption') <> 'document')
    EXECUTE FUNCTION blackboard.refuse_flow_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flow_stages
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flow_edges
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flow_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- An edge by hand would make a waiting stage's task ready behind its flow's back.
CREATE FUNCTION blackboard.refuse_edge_of_stage() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_task uuid;
BEGIN
    SELECT n.task_id INTO v_task FROM new_rows n
    JOIN blackboard.flow_tasks f ON f.session_id = n.session_id AND f.task_id = n.task_id AND f.kind = 'stage' LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Task %s is a stage of a flow: change what it depends on with '
                                                 'flows.modify(rewire=…).', v_task),
                                 jsonb_build_object('field', 'depends_on', 'id', v_task));
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER check_stages AFTER INSERT ON blackboard.task_dependencies REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_edge_of_stage();

-- -------------------------------------------------------------------------------------------------- the graph

-- The names in an order in which everything comes after what it depends on; raises with the path where there is a
-- cycle. Takes away what depends on nothing, again and again (Kahn): linear in the edges.
CREATE FUNCTION blackboard.flow_order(p_names text[], p_stages text[], p_depends_on text[]) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE
SET enable_nestloop = off SET enable_hashjoin = on
AS $$
DECLARE
    v_size integer := cardinality(p_names);
    v_dependants integer[];
    v_heads integer[];
    v_waiting integer[];
    v_depends_on integer[];
    v_queue integer[] := array_fill(0, ARRAY[greatest(v_size, 1)]);
    v_queued integer := 0;
    v_done integer := 0;
    v_from integer := 1;
    v_node integer;
    v_path integer[] := '{}';
BEGIN
    WITH nodes AS MATERIALIZED (
        SELECT u.name, u.n::integer AS n FROM unnest(p_names) WITH ORDINALITY u (name, n)
    ), edges AS MATERIALIZED (
        SELECT a.n AS stage, b.n AS depends_on
        FROM unnest(p_stages, p_depends_on) e (stage, depends_on)
        JOIN nodes a ON a.name = e.stage JOIN nodes b ON b.name = e.depends_on)
    SELECT (SELECT array_agg(e.stage ORDER BY e.depends_on, e.stage) FROM edges e),
           (SELECT array_agg(h.count ORDER BY h.n) FROM (
                SELECT n.n, count(e.stage)::integer AS count FROM nodes n LEFT JOIN edges e ON e.depends_on = n.n
                GROUP BY n.n) h),
           (SELECT array_agg(w.count ORDER BY w.n) FROM (
                SELECT n.n, count(e.depends_on)::integer AS count FROM nodes n LEFT JOIN edges e ON e.stage = n.n
                GROUP BY n.n) w)
    INTO v_dependants, v_heads, v_waiting;
    -- v_heads: from how many dependants of each to where its own begin.
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
        RETURN array(SELECT p_names[q.node] FROM unnest(v_queue) WITH ORDINALITY q (node, n)
                     WHERE q.node > 0 ORDER BY q.n);
    END IF;
    -- Everything that is left depends on something that is left: walk until the walk meets itself.
    SELECT min(w.n) INTO v_node FROM unnest(v_waiting) WITH ORDINALITY w (left_over, n) WHERE w.left_over > 0;
    WHILE NOT v_node = ANY (v_path) LOOP
        v_path := v_path || v_node;
        SELECT array_agg(array_position(p_names, e.depends_on)) INTO v_depends_on
        FROM unnest(p_stages, p_depends_on) e (stage, depends_on) WHERE e.stage = p_names[v_node];
        SELECT min(d.n) INTO v_node FROM unnest(v_depends_on) d (n) WHERE v_waiting[d.n] > 0;
    END LOOP;
    v_path := v_path[array_position(v_path, v_node) :] || v_node;
    PERFORM blackboard.raise(
        'BB008',
        (SELECT format('The stages form a cycle: %s. Leave one of these edges out.',
                       string_agg(p_names[p.node], ' -> ' ORDER BY p.n))
         FROM unnest(v_path) WITH ORDINALITY p (node, n)),
        jsonb_build_object('field', 'after', 'path', (SELECT jsonb_agg(p_names[p.node] ORDER BY p.n)
                                                      FROM unnest(v_path) WITH ORDINALITY p (node, n))));
END
$$;

-- Whether one stage comes before another, along any path.
CREATE FUNCTION blackboard.flow_precedes(p_session_id uuid, p_flow_id uuid, p_first text, p_second text)
RETURNS boolean
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

-- What a binding such as 'identify.changes.0' reads: the stage (or output) before the first dot, and the path after it.
CREATE FUNCTION blackboard.flow_binding(p_source text) RETURNS TABLE (source text, path text[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT split_part(p_source, '.', 1),
           CASE WHEN strpos(p_source, '.') > 0
                THEN string_to_array(substr(p_source, strpos(p_source, '.') + 1), '.') ELSE '{}' END
$$;

-- Nothing happens if the flow as it stands is sound; raises with the names otherwise.
CREATE FUNCTION blackboard.check_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off
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

-- Makes the tasks of these stages, all blocked; p_feedback goes into their parameters. The ids are those of the rows.
CREATE FUNCTION blackboard.make_stage_tasks(p_session_id uuid, p_flow_id uuid, p_stages text[], p_feedback jsonb)
RETURNS void
LANGUAGE plpgsql SET xmloption = 'document'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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

-- A note beside the parameters of a task; its result is left out where that would be too large for a task.
CREATE FUNCTION blackboard.with_note(p_parameters jsonb, p_name text, p_note jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_base jsonb := CASE WHEN p_note IS NULL OR jsonb_typeof(p_parameters) = 'object' THEN p_parameters
                         ELSE jsonb_build_object('parameters', p_parameters) END;
    v_whole jsonb;
BEGIN
    IF p_note IS NULL THEN
        RETURN v_base;
    END IF;
    v_whole := v_base || jsonb_build_object(p_name, p_note);
    IF pg_column_size(v_whole) > 1000000 THEN
        v_whole := v_base || jsonb_build_object(p_name, p_note - 'result');
    END IF;
    RETURN CASE WHEN pg_column_size(v_whole) > 1000000 THEN v_base ELSE v_whole END;
END
$$;

-- The edges that a description of stages names: [{"name", "after": ["a", {"stage": "b", "on_failure": "skip"}]}].
CREATE FUNCTION blackboard.described_edges(p_stages jsonb) RETURNS TABLE (stage text, depends_on text, on_failure text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT s.stage ->> 'name', coalesce(a.edge ->> 'stage', a.edge #>> '{}'), coalesce(a.edge ->> 'on_failure', 'fail')
    FROM jsonb_array_elements(p_stages) s (stage),
         LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(s.stage -> 'after') = 'array'
                                           THEN s.stage -> 'after' ELSE '[]' END) a (edge)
$$;

CREATE FUNCTION blackboard.wire_stages(p_session_id uuid, p_flow_id uuid, p_stages jsonb) RETURNS void
LANGUAGE plpgsql SET xmloption = 'document'
SET enable_nestloop = off SET enable_hashjoin = on
AS $$
DECLARE
    v_edge record;
BEGIN
    SELECT e.stage, e.depends_on, e.count INTO v_edge FROM (
        SELECT d.stage, d.depends_on, count(*) AS count FROM blackboard.described_edges(p_stages) d
        GROUP BY d.stage, d.depends_on) e
    WHERE e.count > 1 OR e.depends_on = e.stage
       OR NOT EXISTS (SELECT FROM blackboard.flow_stages s
                      WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = e.depends_on)
    LIMIT 1;
    IF FOUND THEN
        IF v_edge.depends_on = v_edge.stage THEN
            PERFORM blackboard.raise('BB008', format('The stages form a cycle: %1$s -> %1$s. Leave this edge out.',
                                                     v_edge.stage),
                                     jsonb_build_object('field', 'after',
                                                        'path', jsonb_build_array(v_edge.stage, v_edge.stage)));
        END IF;
        PERFORM blackboard.raise('BB002', format(CASE WHEN v_edge.count > 1 THEN 'Stage %L names %L twice in after.'
                                                      ELSE 'Stage %L comes after %L, which is no stage of this flow.' END,
                                                 v_edge.stage, v_edge.depends_on),
                                 jsonb_build_object('field', 'after', 'stage', v_edge.stage,
                                                    'depends_on', v_edge.depends_on));
    END IF;
    INSERT INTO blackboard.flow_edges (session_id, flow_id, stage, depends_on, on_failure)
    SELECT p_session_id, p_flow_id, d.stage, d.depends_on, d.on_failure FROM blackboard.described_edges(p_stages) d;
END
$$;

-- Adds stages as they are described, each with its task, and their edges.
CREATE FUNCTION blackboard.add_stages(p_session_id uuid, p_flow_id uuid, p_stages jsonb) RETURNS void
LANGUAGE plpgsql SET xmloption = 'document'
SET enable_seqscan = off
AS $$
DECLARE
    v_base integer;
    v_count integer;
    v_name text;
BEGIN
    SELECT coalesce(max(s.ordinal), 0), count(*) INTO v_base, v_count FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id;
    IF v_count + jsonb_array_length(p_stages) > 10000 THEN
        PERFORM blackboard.raise('BB002', 'A flow has at most 10000 stages; make several flows.', '{"field": "stages"}');
    END IF;
    SELECT n.name INTO v_name FROM (
        SELECT s.stage ->> 'name' AS name FROM jsonb_array_elements(p_stages) s (stage)
        UNION ALL
        SELECT s.name FROM blackboard.flow_stages s WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id) n
    GROUP BY n.name HAVING count(*) > 1 LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Two stages are called %L; names are unique in a flow.', v_name),
                                 jsonb_build_object('field', 'name', 'stage', v_name));
    END IF;
    INSERT INTO blackboard.flow_stages (
        session_id, flow_id, name, ordinal, task_id, template, join_need, bindings, output, compensation, min_quality,
        max_iterations, loop_to)
    SELECT p_session_id, p_flow_id, d.stage ->> 'name', v_base + d.n::integer,
           coalesce((d.stage ->> 'id')::uuid, gen_random_uuid()),
           jsonb_build_object('type', d.stage -> 'type', 'capability', coalesce(d.stage -> 'capability', '""'),
                              'priority', coalesce(d.stage -> 'priority', '5'),
                              'parameters', coalesce(d.stage -> 'parameters', '{}'), 'options', d.stage -> 'options'),
           CASE d.stage ->> 'join' WHEN 'any' THEN 1 WHEN 'all' THEN NULL ELSE (d.stage ->> 'join')::integer END,
           coalesce(nullif(d.stage -> 'inputs', 'null'), '{}'), d.stage ->> 'output',
           nullif(d.stage -> 'compensate', 'null'), (d.stage ->> 'min_quality')::double precision,
           coalesce((d.stage ->> 'max_iterations')::integer, 1), d.stage ->> 'loop_to'
    FROM jsonb_array_elements(p_stages) WITH ORDINALITY d (stage, n);
    PERFORM blackboard.wire_stages(p_session_id, p_flow_id, p_stages);
    PERFORM blackboard.make_stage_tasks(
        p_session_id, p_flow_id, array(SELECT s.stage ->> 'name' FROM jsonb_array_elements(p_stages) s (stage)), NULL);
END
$$;

-- What an unfinished flow still needs stays when tasks are pruned, and is refused to whoever deletes it by hand.
CREATE FUNCTION blackboard.keep_stage_task() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM 1 FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    WHERE t.session_id = OLD.session_id AND t.task_id = OLD.id AND f.finished_at IS NULL;
    IF NOT FOUND THEN
        RETURN OLD;
    ELSIF pg_catalog.current_setting('blackboard.pruning', true) = 'on' THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.raise('BB012', format('Task %s belongs to a flow that is not over; cancel the flow.', OLD.id),
                             jsonb_build_object('noun', 'task', 'id', OLD.id));
    RETURN NULL;
END
$$;
CREATE TRIGGER keep_stage_task BEFORE DELETE ON blackboard.tasks FOR EACH ROW WHEN (OLD.has_dependants)
    EXECUTE FUNCTION blackboard.keep_stage_task();

-- ------------------------------------------------------------------------------------------------- settlement

-- What becomes of waiting stages, from the states of those that they depend on: 'ready' when enough succeeded,
-- 'cancelled' or 'skipped' by the policies of the edges when enough never will, NULL while that is open.
-- A skipped stage counts as success, except along an edge with policy 'skip', which skips on.
CREATE FUNCTION blackboard.stage_verdicts(p_session_id uuid, p_flow_id uuid, p_stages text[])
RETURNS TABLE (name text, verdict text, failed jsonb)
LANGUAGE plpgsql STABLE ROWS 10
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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

-- Takes a stage, and those between loop_to and it, back to waiting with new tasks; returns their names.
CREATE FUNCTION blackboard.loop_stage(p_session_id uuid, p_flow_id uuid, p_name text, p_quality double precision)
RETURNS text[]
LANGUAGE plpgsql SET xmloption = 'document'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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
    SET state = 'waiting', task_id = gen_random_uuid(), iteration = s.iteration + 1,
        loops = CASE WHEN s.name = p_name THEN s.loops + 1 ELSE 0 END,
        quality = NULL, error = NULL, stopping = false
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_segment);
    PERFORM blackboard.make_stage_tasks(p_session_id, p_flow_id, v_segment, v_feedback);
    -- A branch that an early join left behind belongs to the old round.
    PERFORM blackboard.stop_tasks(p_session_id, v_stale, 'superseded', 'A later round of this stage has begun.');
    RETURN v_segment;
END
$$;

-- Cancels these tasks where nobody runs them, and asks the holders of the others to stop. Those that somebody is just
-- writing to are being ended, or will see the request when it is repeated.
CREATE FUNCTION blackboard.stop_tasks(p_session_id uuid, p_tasks uuid[], p_code text, p_message text) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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

-- The quality that a finished stage has: what complete_stage said, else a number called quality in the result.
CREATE FUNCTION blackboard.stated_quality(p_said double precision, p_result jsonb) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(p_said, CASE WHEN jsonb_typeof(p_result) = 'object' AND jsonb_typeof(p_result -> 'quality') = 'number'
                                      AND (p_result ->> 'quality')::numeric BETWEEN 0 AND 1
                                 THEN round((p_result ->> 'quality')::numeric, 15)::double precision END)
$$;

-- Tasks of the flow have ended, or p_stages are to be looked at: everything that follows, and whether it is over.
-- Two tasks that end at once are settled one after the other: the flow's row is locked. Costs what it changes, and
-- not what the flow or the session holds: must use tasks_pkey, flow_stages_pkey, flow_edges_depends_on.
CREATE FUNCTION blackboard.settle_flow(p_session_id uuid, p_flow_id uuid, p_tasks uuid[], p_stages text[]) RETURNS void
LANGUAGE plpgsql SET xmloption = 'document'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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
            SET state = 'waiting', task_id = gen_random_uuid(), stopping = false, quality = NULL
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

-- What the pause of a flow leaves in a task that it holds.
CREATE FUNCTION blackboard.held_by_flow(p_flow_id uuid, p_name text, p_position bigint) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT jsonb_build_object('code', 'flow_paused', 'flow', p_flow_id, 'position', p_position,
                              'message', format('Its flow %s is paused; resume it with `blackboard flow resume %s`.',
                                                p_name, p_flow_id))
$$;

-- The tasks of these stages wait for nothing of the flow any more; in a paused flow they are held.
CREATE FUNCTION blackboard.release_stages(p_session_id uuid, p_flow_id uuid, p_stages text[]) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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

-- Ends the flow when none of its stages is open any more: completed if all are completed or skipped, else failed.
CREATE FUNCTION blackboard.finish_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
LANGUAGE plpgsql SET xmloption = 'document'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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

-- Makes the compensation tasks of the completed stages, the last stage's first, one after the other. One that fails
-- does not keep the others from being done.
CREATE FUNCTION blackboard.compensate_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
LANGUAGE plpgsql SET xmloption = 'document'
AS $$
DECLARE
    v_stage record;
    v_last uuid;
BEGIN
    FOR v_stage IN
        SELECT s.name, s.iteration, s.compensation AS spec, s.task_id, gen_random_uuid() AS id, t.result
        FROM unnest(blackboard.flow_order(
                 array(SELECT x.name FROM blackboard.flow_stages x
                       WHERE x.session_id = p_session_id AND x.flow_id = p_flow_id ORDER BY x.ordinal),
                 array(SELECT e.stage FROM blackboard.flow_edges e
                       WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id ORDER BY e.stage, e.depends_on),
                 array(SELECT e.depends_on FROM blackboard.flow_edges e
                       WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id ORDER BY e.stage, e.depends_on)))
             WITH ORDINALITY o (name, n)
        JOIN blackboard.flow_stages s ON s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = o.name
        LEFT JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = s.task_id
        WHERE s.state = 'completed' AND s.compensation IS NOT NULL
        ORDER BY o.n DESC
    LOOP
        PERFORM blackboard.add_tasks(
            p_session_id, ARRAY[v_stage.id], ARRAY[v_stage.spec ->> 'type'],
            ARRAY[coalesce(v_stage.spec ->> 'capability', '')],
            ARRAY[coalesce((v_stage.spec ->> 'priority')::smallint, 5::smallint)],
            ARRAY[blackboard.with_note(coalesce(v_stage.spec -> 'parameters', '{}'), 'compensates',
                                       jsonb_build_object('flow', p_flow_id, 'stage', v_stage.name,
                                                          'task_id', v_stage.task_id, 'result', v_stage.result))],
            ARRAY[nullif(coalesce(nullif(v_stage.spec -> 'options', 'null'), '{}')
                         || CASE WHEN v_last IS NULL THEN '{}'
                                 ELSE jsonb_build_object('depends_on', jsonb_build_array(
                                     jsonb_build_object('id', v_last, 'on_failure', 'continue'))) END, '{}')],
            nullif(current_setting('blackboard.actor', true), ''));
        INSERT INTO blackboard.flow_tasks (session_id, task_id, flow_id, stage, iteration, kind)
        VALUES (p_session_id, v_stage.id, p_flow_id, v_stage.name, v_stage.iteration, 'compensation');
        UPDATE blackboard.flow_stages s SET compensation_task_id = v_stage.id
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = v_stage.name;
        v_last := v_stage.id;
    END LOOP;
END
$$;

-- What ends is looked at twice: by the tasks that depend on it, and by its flow.
-- squawk-ignore renaming-object
ALTER FUNCTION blackboard.settle_dependants(uuid, uuid[], boolean) RENAME TO settle_dependencies;
CREATE FUNCTION blackboard.settle_dependants(p_session_id uuid, p_parents uuid[], p_succeeded boolean) RETURNS void
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

-- A stage's task that got ready (again) while its flow is paused is held; in a cancelled flow it is cancelled. Deferred,
-- because a retry, a lapse or an approval must be history before what follows from it; nobody else sees the row before.
CREATE FUNCTION blackboard.hold_returned_stage() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
AS $$
DECLARE
    v_flow blackboard.flows;
    v_stage text;
BEGIN
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
CREATE CONSTRAINT TRIGGER hold_returned_stage AFTER UPDATE OF status ON blackboard.tasks
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.has_dependants AND NEW.status IN ('pending', 'assigned', 'scheduled')
          -- What was blocked is released by the flow, which looks itself.
          AND OLD.status NOT IN ('pending', 'assigned', 'scheduled', 'blocked'))
    EXECUTE FUNCTION blackboard.hold_returned_stage();

-- ------------------------------------------------------------------------------------------------------- verbs

-- Creates a flow with all its stages, tasks and edges, or nothing. p_stages is an array of
--   {"name", "type", "capability", "priority", "parameters", "options" (as add_tasks takes them), "id" of its task,
--    "after": ["a", {"stage": "b", "on_failure": "fail|skip|continue|compensate"}], "join": "all" | "any" | k,
--    "inputs": {"x": "stage.path" | "output.path" | "inputs.path"}, "output", "compensate": {"type", …},
--    "min_quality", "max_iterations", "loop_to"}
-- The same id with the same content returns the flow as it is now.
CREATE FUNCTION blackboard.create_flow(
    p_session_id uuid, p_id uuid, p_name text, p_stages jsonb, p_inputs jsonb, p_actor text
) RETURNS SETOF blackboard.flows
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
AS $$
DECLARE
    v_digest text := md5(jsonb_build_array(p_name, p_stages, coalesce(p_inputs, '{}'))::text);
    v_flow blackboard.flows;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    IF jsonb_typeof(p_stages) IS DISTINCT FROM 'array' OR jsonb_array_length(p_stages) = 0 THEN
        PERFORM blackboard.raise('BB002', 'A flow has at least one stage.', '{"field": "stages"}');
    END IF;
    INSERT INTO blackboard.flows (session_id, id, name, inputs, digest, created_by)
    VALUES (p_session_id, p_id, p_name, coalesce(p_inputs, '{}'), v_digest, blackboard.current_actor())
    ON CONFLICT (session_id, id) DO NOTHING;
    IF FOUND THEN
        PERFORM blackboard.add_stages(p_session_id, p_id, p_stages);
        PERFORM blackboard.check_flow(p_session_id, p_id);
        PERFORM blackboard.settle_flow(
            p_session_id, p_id, '{}', array(SELECT s.name FROM blackboard.flow_stages s
                                            WHERE s.session_id = p_session_id AND s.flow_id = p_id
                                            EXCEPT
                                            SELECT e.stage FROM blackboard.flow_edges e
                                            WHERE e.session_id = p_session_id AND e.flow_id = p_id));
    END IF;
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF v_flow.digest <> v_digest THEN
        PERFORM blackboard.raise('BB004', 'A flow with this id was created with other content; use a new id.',
                                 jsonb_build_object('noun', 'flow', 'id', p_id));
    END IF;
    RETURN NEXT v_flow;
END
$$;

-- The flow, locked; raises where there is none.
CREATE FUNCTION blackboard.lock_flow(p_session_id uuid, p_id uuid) RETURNS blackboard.flows
LANGUAGE plpgsql
AS $$
DECLARE
    v_flow blackboard.flows;
BEGIN
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no flow %s in this session.', p_id),
                                 jsonb_build_object('noun', 'flow', 'id', p_id));
    END IF;
    RETURN v_flow;
END
$$;

CREATE FUNCTION blackboard.refuse_finished_flow(p_flow blackboard.flows) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_flow.finished_at IS NOT NULL THEN
        PERFORM blackboard.raise('BB003', format('Flow %s is %s and does not change any more.', p_flow.id, p_flow.status),
                                 jsonb_build_object('noun', 'flow', 'id', p_flow.id, 'status', p_flow.status,
                                                    'version', p_flow.version));
    END IF;
END
$$;

-- Asks those who run stages of the flow to stop: before its row is locked, because whoever ends a task holds that and
-- then wants the flow.
CREATE FUNCTION blackboard.ask_to_stop(p_session_id uuid, p_id uuid) RETURNS void
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

-- No stage of the flow is handed out any more; what runs goes on, or is asked to stop and then starts over with resume.
CREATE FUNCTION blackboard.pause_flow(p_session_id uuid, p_id uuid, p_stop boolean, p_actor text)
RETURNS SETOF blackboard.flows
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
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

-- What the pause held can be claimed again, exactly that.
CREATE FUNCTION blackboard.resume_flow(p_session_id uuid, p_id uuid, p_actor text) RETURNS SETOF blackboard.flows
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
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

-- Ends the flow: what waits is cancelled, what runs is asked to stop.
CREATE FUNCTION blackboard.cancel_flow(p_session_id uuid, p_id uuid, p_reason text, p_actor text)
RETURNS SETOF blackboard.flows
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
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

-- A stage by name that has not started, its task locked; raises where it has, or where there is none.
CREATE FUNCTION blackboard.unstarted_stage(p_session_id uuid, p_flow blackboard.flows, p_name text)
RETURNS blackboard.flow_stages
LANGUAGE plpgsql
AS $$
DECLARE
    v_stage blackboard.flow_stages;
    v_task record;
BEGIN
    SELECT * INTO v_stage FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow.id AND s.name = p_name;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('This flow has no stage %L.', p_name),
                                 jsonb_build_object('noun', 'stage', 'id', p_name));
    END IF;
    SELECT t.status, t.attempt INTO v_task FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = v_stage.task_id AND t.status <> 'running' FOR UPDATE;
    IF NOT FOUND OR v_stage.state NOT IN ('waiting', 'ready') OR v_task.status = 'running' OR v_task.attempt > 0 THEN
        PERFORM blackboard.raise('BB012', format('Stage %L has started: what is done or being done stays as it is.', p_name),
                                 jsonb_build_object('noun', 'flow', 'id', p_flow.id, 'stage', p_name,
                                                    'state', v_stage.state, 'version', p_flow.version));
    END IF;
    RETURN v_stage;
END
$$;

-- Changes stages that have not started: p_change is {"add": [stages], "remove": [names], "rewire": {name: after},
-- "reprioritise": {name: priority}}. p_expected is the version that the caller saw.
CREATE FUNCTION blackboard.modify_flow(
    p_session_id uuid, p_id uuid, p_expected integer, p_change jsonb, p_actor text, p_key text
) RETURNS SETOF blackboard.flows
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
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

-- Completes a held task of a stage and says how good its result is. Repeating it changes nothing.
CREATE FUNCTION blackboard.complete_stage(
    p_session_id uuid, p_task_id uuid, p_claim_id uuid, p_attempt integer, p_result jsonb, p_quality double precision,
    p_agent_id text
) RETURNS SETOF uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
AS $$
DECLARE
    v_flow uuid;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    SELECT t.flow_id INTO v_flow FROM blackboard.flow_tasks t
    WHERE t.session_id = p_session_id AND t.task_id = p_task_id AND t.kind = 'stage';
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB002', format('Task %s is no stage of a flow: complete it with tasks.complete.', p_task_id),
                                 jsonb_build_object('field', 'task', 'id', p_task_id));
    END IF;
    IF NOT p_quality BETWEEN 0 AND 1 THEN
        PERFORM blackboard.raise('BB002', 'quality must be between 0 and 1.', '{"field": "quality"}');
    END IF;
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = p_task_id AND t.claim_id = p_claim_id AND t.attempt = p_attempt
      AND t.lease_id IS NOT NULL FOR UPDATE;
    IF FOUND THEN
        PERFORM blackboard.lock_flow(p_session_id, v_flow);
        UPDATE blackboard.flow_stages s SET quality = p_quality
        WHERE s.session_id = p_session_id AND s.flow_id = v_flow AND s.task_id = p_task_id;
    END IF;
    RETURN QUERY SELECT * FROM blackboard.complete_tasks(p_session_id, ARRAY[p_task_id], ARRAY[p_claim_id],
                                                         ARRAY[p_attempt], ARRAY[p_result], p_agent_id);
END
$$;

-- ----------------------------------------------------------------------------------------------------- reading

-- The result of a stage: of its latest task that completed.
CREATE FUNCTION blackboard.stage_result(p_session_id uuid, p_flow_id uuid, p_stage text) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT t.result FROM blackboard.flow_tasks f
    JOIN blackboard.tasks t ON t.session_id = f.session_id AND t.id = f.task_id
    WHERE f.session_id = p_session_id AND f.flow_id = p_flow_id AND f.stage = p_stage AND f.kind = 'stage'
      AND t.status = 'completed'
    ORDER BY f.iteration DESC LIMIT 1
$$;

-- The inputs of a stage's task by name, as they are bound; {} for any other task. What a skipped or failed stage would
-- have given is null.
CREATE FUNCTION blackboard.task_inputs(p_session_id uuid, p_task_id uuid) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(jsonb_object_agg(b.key, coalesce(
               CASE WHEN x.source = 'inputs' THEN f.inputs
                    ELSE blackboard.stage_result(p_session_id, f.id, p.name) END #> x.path, 'null')), '{}')
    FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    JOIN blackboard.flow_stages s ON s.session_id = t.session_id AND s.flow_id = t.flow_id AND s.name = t.stage
    CROSS JOIN LATERAL jsonb_each(s.bindings) b
    CROSS JOIN LATERAL blackboard.flow_binding(b.value #>> '{}') x
    LEFT JOIN blackboard.flow_stages p ON p.session_id = s.session_id AND p.flow_id = s.flow_id
                                      AND x.source IN (p.name, p.output)
    WHERE t.session_id = p_session_id AND t.task_id = p_task_id AND t.kind = 'stage'
$$;

-- The results of the stages that name an output, as one object.
CREATE FUNCTION blackboard.flow_outputs(p_session_id uuid, p_flow_id uuid) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(jsonb_object_agg(s.output, coalesce(blackboard.stage_result(s.session_id, s.flow_id, s.name), 'null')),
                    '{}')
    FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.output IS NOT NULL AND s.state = 'completed'
$$;

-- Why a flow keeps a task from being claimed; NULL where no flow does.
CREATE FUNCTION blackboard.flow_reason(p_session_id uuid, p_task_id uuid) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_build_object(
        'code', CASE WHEN s.state = 'waiting' THEN 'flow_waiting' ELSE 'flow_paused' END,
        'flow_id', f.id, 'flow', f.name, 'stage', s.name, 'need', coalesce(s.join_need, w.edges), 'waits_for', w.stages,
        'message', CASE WHEN s.state = 'waiting'
                        THEN format('Stage %s of flow %s waits for %s of: %s.', s.name, f.name,
                                    coalesce(s.join_need::text, 'all'), w.names)
                        ELSE format('Flow %s is paused; resume it with flows.resume.', f.name) END)
    FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    JOIN blackboard.flow_stages s ON s.session_id = t.session_id AND s.flow_id = t.flow_id AND s.task_id = t.task_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS edges, string_agg(p.name || ' (' || p.state || ')', ', ' ORDER BY p.ordinal) AS names,
               coalesce(jsonb_agg(jsonb_build_object('stage', p.name, 'state', p.state, 'task_id', p.task_id,
                                                     'on_failure', e.on_failure) ORDER BY p.ordinal), '[]') AS stages
        FROM blackboard.flow_edges e
        JOIN blackboard.flow_stages p ON p.session_id = e.session_id AND p.flow_id = e.flow_id AND p.name = e.depends_on
        WHERE e.session_id = s.session_id AND e.flow_id = s.flow_id AND e.stage = s.name) w
    JOIN blackboard.tasks k ON k.session_id = t.session_id AND k.id = t.task_id
    WHERE t.session_id = p_session_id AND t.task_id = p_task_id AND f.finished_at IS NULL
      AND (s.state = 'waiting' OR k.status = 'held' AND k.held ->> 'code' = 'flow_paused')
$$;

-- Definer's rights: an agent's role reads the tables of flows and writes them through these verbs only.
REVOKE EXECUTE ON FUNCTION
    blackboard.create_flow(uuid, uuid, text, jsonb, jsonb, text),
    blackboard.pause_flow(uuid, uuid, boolean, text),
    blackboard.resume_flow(uuid, uuid, text),
    blackboard.cancel_flow(uuid, uuid, text, text),
    blackboard.modify_flow(uuid, uuid, integer, jsonb, text, text),
    blackboard.complete_stage(uuid, uuid, uuid, integer, jsonb, double precision, text)
    FROM PUBLIC;

-- What flows and budgets know of a task's waiting is told with the rest.
-- squawk-ignore renaming-object
ALTER FUNCTION blackboard.why_task(uuid, uuid) RENAME TO why_task_waits;
CREATE FUNCTION blackboard.why_task(p_session_id uuid, p_id uuid) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_set(w.why, '{reasons}', (w.why -> 'reasons') || coalesce((
        SELECT jsonb_agg(blackboard.reason(m.more ->> 'code', m.more ->> 'message', m.more - 'code' - 'message'))
        FROM (SELECT blackboard.flow_reason(p_session_id, p_id) AS more
              UNION ALL
              SELECT blackboard.budget_reason(p_session_id, p_id)) m
        -- A held task says by itself what holds it.
        WHERE m.more IS NOT NULL AND NOT (w.why -> 'reasons') @> jsonb_build_array(
                  jsonb_build_object('code', m.more -> 'code'))
          AND w.why ->> 'status' NOT IN ('completed', 'failed', 'cancelled', 'dead')), '[]'))
    FROM (SELECT blackboard.why_task_waits(p_session_id, p_id) AS why) w
$$;
