-- Budgets: what may be spent, and the ledger of what was.
--
-- The ledger (spend) is the truth; the counters in a budget's row are kept by its triggers, whoever writes it, and by
-- nothing else. A reservation is one row a unit; every row names the budgets that it counts against, so that the
-- counters are sums over the ledger at any isolation level:
--   budgets.reserved = sum(reserved) of its rows with status 'reserved'
--   budgets.spent    = opening + sum(settled) of its rows that were settled (in the present window, where it has one)
-- Lock order: the session's budgets lock (shared by those who spend, exclusive for those who set), ledger rows,
-- budgets in order of id.

CREATE TABLE blackboard.budgets (
    session_id uuid NOT NULL CONSTRAINT budgets_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    scope text NOT NULL CONSTRAINT budgets_scope_known CHECK (scope IN ('session', 'agent', 'task')),
    agent_id text CONSTRAINT budgets_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    task_id uuid,
    unit text NOT NULL CONSTRAINT budgets_unit_known CHECK (unit IN ('tokens', 'cost', 'calls', 'seconds')),
    currency text CONSTRAINT budgets_currency_form CHECK (currency ~ '^[A-Z]{3,8}$'),
    ceiling numeric NOT NULL CONSTRAINT budgets_ceiling_range CHECK (ceiling >= 0 AND ceiling <= 1e15),
    soft numeric CONSTRAINT budgets_soft_range CHECK (soft >= 0 AND soft <= ceiling),
    -- Fixed windows, counted from Monday 2000-01-03 00:00 UTC: a day begins at midnight UTC, a week on Monday.
    period interval CONSTRAINT budgets_period_range CHECK (
        period BETWEEN interval '1 second' AND interval '366 days'
        AND extract(year FROM period) = 0 AND extract(month FROM period) = 0),
    window_start timestamptz,
    reserved numeric NOT NULL DEFAULT 0,
    spent numeric NOT NULL DEFAULT 0,
    -- What had been spent (in the present window) when the budget was set.
    opening numeric NOT NULL DEFAULT 0,
    created_by text NOT NULL DEFAULT blackboard.current_actor(),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT budgets_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT budgets_one_each UNIQUE NULLS NOT DISTINCT (session_id, scope, agent_id, task_id, unit),
    CONSTRAINT budgets_task_known FOREIGN KEY (session_id, task_id)
        REFERENCES blackboard.tasks (session_id, id) ON DELETE CASCADE,
    CONSTRAINT budgets_subject_fits_scope CHECK (
        (scope = 'agent') = (agent_id IS NOT NULL) AND (scope = 'task') = (task_id IS NOT NULL)),
    CONSTRAINT budgets_currency_iff_cost CHECK ((unit = 'cost') = (currency IS NOT NULL)),
    CONSTRAINT budgets_window_iff_period CHECK ((period IS NULL) = (window_start IS NULL)),
    CONSTRAINT budgets_counters_range CHECK (reserved >= 0 AND spent >= 0 AND opening >= 0)
) WITH (fillfactor = 25, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX budgets_task ON blackboard.budgets (session_id, task_id) WHERE task_id IS NOT NULL;

CREATE TABLE blackboard.spend (
    session_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    reservation_id uuid NOT NULL,
    agent_id text NOT NULL CONSTRAINT spend_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    task_id uuid,
    unit text NOT NULL CONSTRAINT spend_unit_known CHECK (unit IN ('tokens', 'cost', 'calls', 'seconds')),
    currency text CONSTRAINT spend_currency_form CHECK (currency ~ '^[A-Z]{3,8}$'),
    reserved numeric NOT NULL CONSTRAINT spend_reserved_range CHECK (
        reserved >= 0 AND reserved <= 1e15 AND scale(trim_scale(reserved)) <= 12),
    settled numeric CONSTRAINT spend_settled_range CHECK (
        settled >= 0 AND settled <= 1e15 AND scale(trim_scale(settled)) <= 12),
    status text NOT NULL DEFAULT 'reserved'
        CONSTRAINT spend_status_known CHECK (status IN ('reserved', 'settled', 'released', 'expired')),
    budget_ids uuid[] NOT NULL DEFAULT '{}',
    model text CONSTRAINT spend_model_length CHECK (length(model) BETWEEN 1 AND 200),
    note text NOT NULL DEFAULT '' CONSTRAINT spend_note_length CHECK (length(note) <= 1000),
    at timestamptz NOT NULL DEFAULT blackboard.now(),
    settled_at timestamptz,
    -- Whoever holds it: a process with a lease, else for an hour.
    lease_id uuid,
    expires_at timestamptz,
    CONSTRAINT spend_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT spend_unit_once UNIQUE (session_id, reservation_id, unit),
    CONSTRAINT spend_currency_iff_cost CHECK ((unit = 'cost') = (currency IS NOT NULL)),
    CONSTRAINT spend_whole_units CHECK (
        unit NOT IN ('tokens', 'calls')
        OR (reserved = trunc(reserved) AND (settled IS NULL OR settled = trunc(settled)))),
    CONSTRAINT spend_settled_iff_settled CHECK ((status = 'settled') = (settled IS NOT NULL)),
    CONSTRAINT spend_settled_at_iff_ended CHECK ((status = 'reserved') = (settled_at IS NULL)),
    CONSTRAINT spend_holder_has_an_end CHECK (
        status <> 'reserved' OR lease_id IS NOT NULL OR expires_at IS NOT NULL)
);
CREATE INDEX spend_at ON blackboard.spend (session_id, at);
CREATE INDEX spend_task ON blackboard.spend (session_id, task_id) WHERE task_id IS NOT NULL;
CREATE INDEX spend_open ON blackboard.spend (session_id, lease_id) WHERE status = 'reserved';
COMMENT ON TABLE blackboard.spend IS
    'The ledger: rows are added, and ended once. Counters in blackboard.budgets are kept from it by triggers.';

CREATE FUNCTION blackboard.budget_window(p_period interval, p_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pg_catalog.date_bin(p_period, p_at, timestamptz '2000-01-03 00:00:00+00') $$;

-- What counts against the ceiling now: a window that is over has taken its spending with it.
CREATE FUNCTION blackboard.budget_spent(p_budget blackboard.budgets) RETURNS numeric
LANGUAGE sql STABLE
AS $$
    SELECT CASE WHEN p_budget.period IS NOT NULL
                     AND blackboard.budget_window(p_budget.period, blackboard.now()) > p_budget.window_start
                THEN 0 ELSE p_budget.spent END
$$;

CREATE FUNCTION blackboard.budgets_lock(p_session_id uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pg_catalog.hashtextextended('blackboard budgets ' || p_session_id::text, 0) $$;

-- ----------------------------------------------------------------------------------------------------- budgets

CREATE FUNCTION blackboard.prepare_budget() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- Nobody spends while a budget is born: what was spent before is its opening, what comes after is charged.
        PERFORM pg_advisory_xact_lock(blackboard.budgets_lock(NEW.session_id));
        NEW.reserved := 0;
        NEW.spent := 0;
        NEW.opening := 0;
        -- A period that has no windows is for budgets_period_range to refuse.
        NEW.window_start := CASE
            WHEN NEW.period IS NULL THEN NULL
            WHEN NEW.period > interval '0' AND extract(year FROM NEW.period) = 0 AND extract(month FROM NEW.period) = 0
                THEN blackboard.budget_window(NEW.period, blackboard.now())
            ELSE blackboard.now() END;
        RETURN NEW;
    END IF;
    IF (NEW.session_id, NEW.id, NEW.scope, NEW.agent_id, NEW.task_id, NEW.unit, NEW.currency, NEW.period)
       IS DISTINCT FROM
       (OLD.session_id, OLD.id, OLD.scope, OLD.agent_id, OLD.task_id, OLD.unit, OLD.currency, OLD.period) THEN
        PERFORM blackboard.raise('BB003', 'What a budget is about does not change; use blackboard.set_budget().',
                                 jsonb_build_object('noun', 'budget', 'id', OLD.id));
    END IF;
    IF pg_trigger_depth() = 1
       AND (NEW.reserved, NEW.spent, NEW.opening, NEW.window_start)
           IS DISTINCT FROM (OLD.reserved, OLD.spent, OLD.opening, OLD.window_start) THEN
        PERFORM blackboard.raise('BB005', 'The counters of a budget are kept by the ledger; write to blackboard.spend.',
                                 jsonb_build_object('noun', 'budget', 'id', OLD.id));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.budgets
    FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_budget();

CREATE FUNCTION blackboard.history_budgets_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_budget blackboard.budgets;
    v_opening numeric;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.set', n.id,
           jsonb_build_object('scope', n.scope, 'agent_id', n.agent_id, 'task_id', n.task_id, 'unit', n.unit,
                              'currency', n.currency, 'ceiling', trim_scale(n.ceiling), 'soft', trim_scale(n.soft),
                              'period', n.period)
    FROM new_rows n ORDER BY n.id;
    FOR v_budget IN SELECT * FROM new_rows n ORDER BY n.session_id, n.id LOOP
        -- What is held, or may still be settled late, counts from now on; what was settled before is the opening.
        UPDATE blackboard.spend s SET budget_ids = s.budget_ids || v_budget.id
        WHERE s.session_id = v_budget.session_id AND s.status IN ('reserved', 'expired') AND s.unit = v_budget.unit
          AND s.currency IS NOT DISTINCT FROM v_budget.currency
          AND (v_budget.agent_id IS NULL OR s.agent_id = v_budget.agent_id)
          AND (v_budget.task_id IS NULL OR s.task_id = v_budget.task_id);
        SELECT sum(s.settled) INTO v_opening FROM blackboard.spend s
        WHERE s.session_id = v_budget.session_id AND s.status = 'settled' AND s.unit = v_budget.unit
          AND s.currency IS NOT DISTINCT FROM v_budget.currency
          AND (v_budget.agent_id IS NULL OR s.agent_id = v_budget.agent_id)
          AND (v_budget.task_id IS NULL OR s.task_id = v_budget.task_id)
          AND (v_budget.period IS NULL OR s.settled_at >= v_budget.window_start)
          AND NOT v_budget.id = ANY (s.budget_ids);
        IF v_opening > 0 THEN
            UPDATE blackboard.budgets SET opening = v_opening, spent = spent + v_opening
            WHERE session_id = v_budget.session_id AND id = v_budget.id;
        END IF;
    END LOOP;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.budgets REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_budgets_insert();

-- Counters are not history of their own: the ledger's events are. Crossing a line is.
CREATE FUNCTION blackboard.history_budgets_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.updated', n.id,
           CASE WHEN n.ceiling <> o.ceiling THEN jsonb_build_object('ceiling', trim_scale(n.ceiling)) ELSE '{}' END
           || CASE WHEN n.soft IS DISTINCT FROM o.soft THEN jsonb_build_object('soft', trim_scale(n.soft)) ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.ceiling, n.soft) IS DISTINCT FROM (o.ceiling, o.soft);
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, x.type, n.id,
           jsonb_build_object('scope', n.scope, 'agent_id', n.agent_id, 'task_id', n.task_id, 'unit', n.unit,
                              'currency', n.currency, 'ceiling', trim_scale(n.ceiling), 'soft', trim_scale(n.soft),
                              'spent', trim_scale(n.spent), 'reserved', trim_scale(n.reserved))
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    CROSS JOIN LATERAL (VALUES
        ('budget.warned', coalesce(n.spent >= n.soft, false)
            AND NOT coalesce(o.spent >= o.soft AND o.window_start IS NOT DISTINCT FROM n.window_start, false)),
        ('budget.exceeded', n.spent > n.ceiling
            AND NOT (o.spent > o.ceiling AND o.window_start IS NOT DISTINCT FROM n.window_start))) x (type, crossed)
    WHERE x.crossed;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.budgets
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_budgets_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.budgets REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('budget', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.budgets
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- ------------------------------------------------------------------------------------------------------ ledger

CREATE FUNCTION blackboard.prepare_spend() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_left timestamptz;
    v_other text;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status NOT IN ('reserved', 'settled') THEN
            PERFORM blackboard.raise('BB003', 'An entry of the ledger begins as reserved, or as settled.',
                                     '{"noun": "reservation", "field": "status"}');
        END IF;
        PERFORM pg_advisory_xact_lock_shared(blackboard.budgets_lock(NEW.session_id));
        SELECT m.left_at INTO v_left FROM blackboard.memberships m
        WHERE m.session_id = NEW.session_id AND m.agent_id = NEW.agent_id;
        IF NOT FOUND THEN
            PERFORM blackboard.open_session(NEW.session_id);
            PERFORM blackboard.raise('BB001', format('%s is not a member of this session; join it first.', NEW.agent_id),
                                     jsonb_build_object('noun', 'agent', 'id', NEW.agent_id, 'field', 'agent_id'));
        ELSIF v_left IS NOT NULL AND NEW.status = 'reserved' THEN
            PERFORM blackboard.raise('BB005', format('%s has left this session; join it again to spend.', NEW.agent_id),
                                     jsonb_build_object('noun', 'agent', 'id', NEW.agent_id));
        END IF;
        IF NEW.task_id IS NOT NULL THEN
            PERFORM FROM blackboard.tasks t WHERE t.session_id = NEW.session_id AND t.id = NEW.task_id;
            IF NOT FOUND THEN
                PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', NEW.task_id),
                                         jsonb_build_object('noun', 'task', 'id', NEW.task_id, 'field', 'task'));
            END IF;
        END IF;
        SELECT coalesce(array_agg(b.id ORDER BY b.id), '{}'),
               min(b.currency) FILTER (WHERE b.currency IS DISTINCT FROM NEW.currency)
        INTO NEW.budget_ids, v_other
        FROM blackboard.budgets b
        WHERE b.session_id = NEW.session_id AND b.unit = NEW.unit
          AND (b.agent_id IS NULL OR b.agent_id = NEW.agent_id) AND (b.task_id IS NULL OR b.task_id = NEW.task_id);
        IF v_other IS NOT NULL THEN
            PERFORM blackboard.raise('BB002', format('The budget of cost is in %s; say what this costs in %s.',
                                                     v_other, v_other),
                                     jsonb_build_object('field', 'currency', 'currency', v_other));
        END IF;
        NEW.at := blackboard.now();
        NEW.settled_at := CASE WHEN NEW.status = 'settled' THEN NEW.at END;
        NEW.expires_at := CASE WHEN NEW.lease_id IS NULL AND NEW.status = 'reserved'
                               THEN coalesce(NEW.expires_at, NEW.at + interval '1 hour') END;
        RETURN NEW;
    END IF;
    IF (NEW.session_id, NEW.id, NEW.reservation_id, NEW.agent_id, NEW.task_id, NEW.unit, NEW.currency, NEW.reserved,
        NEW.at, NEW.lease_id, NEW.expires_at)
       IS DISTINCT FROM
       (OLD.session_id, OLD.id, OLD.reservation_id, OLD.agent_id, OLD.task_id, OLD.unit, OLD.currency, OLD.reserved,
        OLD.at, OLD.lease_id, OLD.expires_at)
       OR (NEW.budget_ids IS DISTINCT FROM OLD.budget_ids AND pg_trigger_depth() = 1) THEN
        PERFORM blackboard.raise('BB005', 'The ledger is append-only: an entry is ended, never rewritten.',
                                 jsonb_build_object('noun', 'reservation', 'id', OLD.reservation_id));
    END IF;
    IF NEW.status = OLD.status THEN
        IF (NEW.settled, NEW.settled_at) IS DISTINCT FROM (OLD.settled, OLD.settled_at) THEN
            PERFORM blackboard.raise('BB003', 'What was settled stays; reserve and settle the difference.',
                                     jsonb_build_object('noun', 'reservation', 'id', OLD.reservation_id,
                                                        'status', OLD.status));
        END IF;
    ELSIF OLD.status = 'reserved' OR (OLD.status = 'expired' AND NEW.status = 'settled') THEN
        NEW.settled_at := blackboard.now();
    ELSE
        PERFORM blackboard.raise('BB003', format('This reservation was %s already.', OLD.status),
                                 jsonb_build_object('noun', 'reservation', 'id', OLD.reservation_id,
                                                    'status', OLD.status));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.spend
    FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_spend();

-- Moves the counters of one budget, which is locked by that. The window is that of the newest charge and never goes
-- back, whatever a clock does; what was settled before it counts no more.
CREATE FUNCTION blackboard.charge_budget(
    p_session_id uuid, p_id uuid, p_at timestamptz, p_reserved numeric, p_settled numeric[], p_times timestamptz[]
) RETURNS void
LANGUAGE sql
AS $$
    UPDATE blackboard.budgets b
    SET reserved = b.reserved + p_reserved,
        window_start = greatest(b.window_start, blackboard.budget_window(b.period, p_at)),
        opening = CASE WHEN blackboard.budget_window(b.period, p_at) > b.window_start THEN 0 ELSE b.opening END,
        spent = CASE WHEN blackboard.budget_window(b.period, p_at) > b.window_start THEN 0 ELSE b.spent END
                + (SELECT coalesce(sum(x.settled), 0) FROM unnest(p_settled, p_times) x (settled, at)
                   WHERE b.period IS NULL
                      OR x.at >= greatest(b.window_start, blackboard.budget_window(b.period, p_at)))
    WHERE b.session_id = p_session_id AND b.id = p_id
$$;

CREATE FUNCTION blackboard.history_spend_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_budget blackboard.budgets;
    v_entry blackboard.spend;
    v_charge record;
    v_asked numeric;
BEGIN
    -- What was reserved before the session closed may be settled after, also in units that nobody had thought of.
    PERFORM blackboard.check_sessions(array(
        SELECT DISTINCT n.session_id FROM new_rows n
        WHERE n.status = 'reserved'
           OR NOT EXISTS (SELECT FROM blackboard.spend s WHERE s.session_id = n.session_id
                          AND s.reservation_id = n.reservation_id AND s.id <> n.id)));
    IF EXISTS (SELECT FROM new_rows n WHERE n.budget_ids <> '{}') THEN
        FOR v_charge IN
            SELECT n.session_id, x.id, max(n.at) AS at,
                   coalesce(sum(n.reserved) FILTER (WHERE n.status = 'reserved'), 0) AS reserved,
                   array_agg(n.settled) FILTER (WHERE n.status = 'settled') AS settled,
                   array_agg(n.settled_at) FILTER (WHERE n.status = 'settled') AS times
            FROM new_rows n CROSS JOIN LATERAL unnest(n.budget_ids) x (id)
            GROUP BY 1, 2 ORDER BY 1, 2
        LOOP
            PERFORM blackboard.charge_budget(v_charge.session_id, v_charge.id, v_charge.at, v_charge.reserved,
                                             v_charge.settled, v_charge.times);
        END LOOP;
        SELECT b.* INTO v_budget FROM blackboard.budgets b
        WHERE (b.session_id, b.id) IN (SELECT n.session_id, unnest(n.budget_ids) FROM new_rows n
                                       WHERE n.status = 'reserved')
          AND b.spent + b.reserved > b.ceiling
        ORDER BY b.ceiling - b.spent - b.reserved, b.id LIMIT 1;
        IF FOUND THEN
            SELECT n.* INTO v_entry FROM new_rows n
            WHERE n.session_id = v_budget.session_id AND v_budget.id = ANY (n.budget_ids) LIMIT 1;
            SELECT sum(n.reserved) INTO v_asked FROM new_rows n
            WHERE n.session_id = v_budget.session_id AND v_budget.id = ANY (n.budget_ids) AND n.status = 'reserved';
            PERFORM blackboard.raise('BB014',
                format('The budget of %s for %s allows %s%s; %s are spent and %s reserved, so %s more would exceed it. '
                       'Ask for less, wait until others have settled%s, or raise it with `blackboard budget set`.',
                       v_budget.unit,
                       CASE v_budget.scope WHEN 'session' THEN 'this session' WHEN 'agent' THEN v_budget.agent_id
                                           ELSE 'task ' || v_budget.task_id END,
                       trim_scale(v_budget.ceiling), coalesce(' ' || v_budget.currency, ''),
                       trim_scale(v_budget.spent), trim_scale(v_budget.reserved - v_asked), trim_scale(v_asked),
                       CASE WHEN v_budget.period IS NOT NULL
                            THEN ' or the next window begins at ' || (v_budget.window_start + v_budget.period)
                            ELSE '' END),
                jsonb_build_object(
                    'budget', v_budget.id, 'scope', v_budget.scope, 'unit', v_budget.unit,
                    'currency', v_budget.currency, 'ceiling', trim_scale(v_budget.ceiling),
                    'spent', trim_scale(v_budget.spent), 'reserved', trim_scale(v_budget.reserved - v_asked),
                    'asked', trim_scale(v_asked), 'agent_id', v_entry.agent_id, 'task_id', v_entry.task_id,
                    'resets_at', v_budget.window_start + v_budget.period));
        END IF;
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.' || n.status, n.reservation_id,
           jsonb_build_object(
               'status', n.status, 'agent_id', n.agent_id, 'task_id', n.task_id, 'model', max(n.model),
               'currency', max(n.currency), 'lease_id', n.lease_id,
               'reserved', jsonb_object_agg(n.unit, trim_scale(n.reserved)),
               'settled', jsonb_object_agg(n.unit, trim_scale(n.settled)),
               'budget_ids', (SELECT coalesce(jsonb_agg(DISTINCT b.id), '[]') FROM new_rows o, unnest(o.budget_ids) b (id)
                              WHERE o.session_id = n.session_id AND o.reservation_id = n.reservation_id))
    FROM new_rows n
    GROUP BY n.session_id, n.reservation_id, n.status, n.agent_id, n.task_id, n.lease_id
    ORDER BY n.reservation_id;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.spend REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_spend_insert();

CREATE FUNCTION blackboard.history_spend_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_charge record;
BEGIN
    FOR v_charge IN
        SELECT m.session_id, x.id, max(coalesce(m.settled_at, m.at)) AS at,
               sum(CASE WHEN m.is_held AND x.id = ANY (m.new_ids) THEN m.reserved ELSE 0 END
                   - CASE WHEN m.was_held AND x.id = ANY (m.old_ids) THEN m.reserved ELSE 0 END) AS reserved,
               array_agg(m.settled) FILTER (WHERE m.ended) AS settled,
               array_agg(m.settled_at) FILTER (WHERE m.ended) AS times
        FROM (SELECT n.session_id, n.reserved, n.settled, n.at, n.settled_at, n.budget_ids AS new_ids,
                     o.budget_ids AS old_ids, n.status = 'reserved' AS is_held, o.status = 'reserved' AS was_held,
                     n.status = 'settled' AND o.status <> 'settled' AS ended
              FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id) m
        CROSS JOIN LATERAL unnest(m.new_ids) x (id)
        GROUP BY 1, 2
        HAVING bool_or(m.ended OR m.is_held <> m.was_held OR (m.is_held AND NOT x.id = ANY (m.old_ids)))
        ORDER BY 1, 2
    LOOP
        PERFORM blackboard.charge_budget(v_charge.session_id, v_charge.id, v_charge.at, v_charge.reserved,
                                         v_charge.settled, v_charge.times);
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.' || n.status, n.reservation_id,
           jsonb_build_object('status', n.status, 'agent_id', n.agent_id, 'task_id', n.task_id, 'model', max(n.model),
                              'currency', max(n.currency))
           || CASE WHEN n.status = 'settled'
                   THEN jsonb_build_object('settled', jsonb_object_agg(n.unit, trim_scale(n.settled)))
                   ELSE jsonb_build_object('reserved', jsonb_object_agg(n.unit, trim_scale(n.reserved))) END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE n.status <> o.status
    GROUP BY n.session_id, n.reservation_id, n.status, n.agent_id, n.task_id
    ORDER BY n.reservation_id;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.spend
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_spend_update();

CREATE FUNCTION blackboard.keep_ledger() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.raise('BB005', format('%s on blackboard.spend is refused: the ledger is append-only.', TG_OP),
                             jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;
CREATE TRIGGER append_only AFTER DELETE ON blackboard.spend
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.keep_ledger();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.spend
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.keep_ledger();

-- ------------------------------------------------------------------------------------------------------- verbs

-- The budget of that subject is as given. With another period or currency it is a new one that starts from what the
-- ledger says. What is spent already counts.
CREATE FUNCTION blackboard.set_budget(
    p_session_id uuid, p_unit text, p_ceiling numeric, p_soft numeric, p_period interval, p_currency text,
    p_agent_id text, p_task_id uuid, p_actor text
) RETURNS blackboard.budgets
LANGUAGE plpgsql
AS $$
DECLARE
    v_budget blackboard.budgets;
    v_scope text := CASE WHEN p_agent_id IS NOT NULL THEN 'agent' WHEN p_task_id IS NOT NULL THEN 'task'
                         ELSE 'session' END;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    PERFORM pg_advisory_xact_lock(blackboard.budgets_lock(p_session_id));
    SELECT * INTO v_budget FROM blackboard.budgets b
    WHERE b.session_id = p_session_id AND b.scope = v_scope AND b.agent_id IS NOT DISTINCT FROM p_agent_id
      AND b.task_id IS NOT DISTINCT FROM p_task_id AND b.unit = p_unit
    FOR UPDATE;
    IF FOUND AND (v_budget.period, v_budget.currency) IS NOT DISTINCT FROM (p_period, p_currency) THEN
        UPDATE blackboard.budgets SET ceiling = p_ceiling, soft = p_soft
        WHERE session_id = p_session_id AND id = v_budget.id AND (ceiling, soft) IS DISTINCT FROM (p_ceiling, p_soft);
    ELSE
        DELETE FROM blackboard.budgets WHERE session_id = p_session_id AND id = v_budget.id;
        INSERT INTO blackboard.budgets (session_id, scope, agent_id, task_id, unit, currency, ceiling, soft, period,
                                        created_by)
        VALUES (p_session_id, v_scope, p_agent_id, p_task_id, p_unit, p_currency, p_ceiling, p_soft, p_period,
                blackboard.current_actor())
        RETURNING * INTO v_budget;
    END IF;
    SELECT * INTO v_budget FROM blackboard.budgets WHERE session_id = p_session_id AND id = v_budget.id;
    RETURN v_budget;
END
$$;

-- There is no such budget any more; returns whether there was one. The ledger stays.
CREATE FUNCTION blackboard.remove_budget(
    p_session_id uuid, p_unit text, p_agent_id text, p_task_id uuid, p_actor text
) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    DELETE FROM blackboard.budgets b
    WHERE b.session_id = p_session_id AND b.agent_id IS NOT DISTINCT FROM p_agent_id
      AND b.task_id IS NOT DISTINCT FROM p_task_id AND b.unit = p_unit;
    RETURN FOUND;
END
$$;

-- Reserves all of the amounts against every budget that applies (session, agent, task), or none: raises BB014. Call
-- blackboard.refuse_budget() with its facts afterwards, or blackboard.expire_reservations() and then once more.
CREATE FUNCTION blackboard.reserve_budget(
    p_session_id uuid, p_id uuid, p_agent_id text, p_task_id uuid, p_units text[], p_amounts numeric[],
    p_currency text, p_model text, p_note text, p_lease_id uuid
) RETURNS SETOF blackboard.spend
LANGUAGE plpgsql
SET xmlbinary = 'hex'
AS $$
DECLARE
    v_added integer := 0;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM FROM blackboard.spend s WHERE s.session_id = p_session_id AND s.reservation_id = p_id;
    IF NOT FOUND THEN
        IF p_lease_id IS NOT NULL THEN
            PERFORM blackboard.live_lease(p_lease_id);
        END IF;
        INSERT INTO blackboard.spend (session_id, reservation_id, agent_id, task_id, unit, currency, reserved, model,
                                      note, lease_id)
        SELECT p_session_id, p_id, p_agent_id, p_task_id, x.unit, CASE WHEN x.unit = 'cost' THEN p_currency END,
               x.amount, p_model, coalesce(p_note, ''), p_lease_id
        FROM unnest(p_units, p_amounts) x (unit, amount) ORDER BY x.unit
        ON CONFLICT (session_id, reservation_id, unit) DO NOTHING;
        GET DIAGNOSTICS v_added = ROW_COUNT;
    END IF;
    IF v_added < cardinality(p_units) THEN
        -- Units that were first named when it was settled have nothing reserved.
        IF EXISTS (
            SELECT FROM (SELECT * FROM blackboard.spend s
                         WHERE s.session_id = p_session_id AND s.reservation_id = p_id) s
            FULL JOIN unnest(p_units, p_amounts) x (unit, amount) ON x.unit = s.unit
            WHERE coalesce(s.reserved, -1) IS DISTINCT FROM coalesce(x.amount, 0)
               OR (s.agent_id, s.task_id) IS DISTINCT FROM (p_agent_id, p_task_id)
               OR (s.unit = 'cost' AND x.unit IS NOT NULL AND s.currency IS DISTINCT FROM p_currency)) THEN
            PERFORM blackboard.raise('BB004', 'A reservation with this id has other content; use a new id.',
                                     jsonb_build_object('noun', 'reservation', 'id', p_id, 'field', 'id'));
        END IF;
    END IF;
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit;
END
$$;

CREATE FUNCTION blackboard.lock_reservation(p_session_id uuid, p_id uuid) RETURNS SETOF blackboard.spend
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(blackboard.budgets_lock(p_session_id));
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no reservation %s in this session.', p_id),
                                 jsonb_build_object('noun', 'reservation', 'id', p_id));
    END IF;
END
$$;

-- What was really spent is on record, also above what was reserved or the ceiling, after the lease lapsed, and after
-- the session closed. A unit that is not named is settled at what was reserved; one that was not reserved is added.
CREATE FUNCTION blackboard.settle_budget(
    p_session_id uuid, p_id uuid, p_units text[], p_amounts numeric[], p_currency text, p_model text, p_note text,
    p_actor text
) RETURNS SETOF blackboard.spend
LANGUAGE plpgsql
SET xmlbinary = 'hex'
AS $$
DECLARE
    v_statuses text[];
    v_first blackboard.spend;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT array_agg(DISTINCT l.status) INTO v_statuses FROM blackboard.lock_reservation(p_session_id, p_id) l;
    IF 'released' = ANY (v_statuses) THEN
        PERFORM blackboard.raise('BB003', 'This reservation was released; reserve again for what is still to be spent.',
                                 jsonb_build_object('noun', 'reservation', 'id', p_id, 'status', 'released'));
    ELSIF v_statuses = ARRAY['settled'] THEN
        IF EXISTS (
            SELECT FROM (SELECT * FROM blackboard.spend s
                         WHERE s.session_id = p_session_id AND s.reservation_id = p_id) s
            FULL JOIN unnest(p_units, p_amounts) x (unit, amount) ON x.unit = s.unit
            WHERE s.settled IS DISTINCT FROM coalesce(x.amount, s.reserved)
               OR (x.unit = 'cost' AND s.currency IS DISTINCT FROM p_currency)) THEN
            PERFORM blackboard.raise('BB004', 'This reservation was settled before with other amounts; they stay.',
                                     jsonb_build_object('noun', 'reservation', 'id', p_id));
        END IF;
    ELSE
        SELECT * INTO v_first FROM blackboard.spend s
        WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit LIMIT 1;
        IF EXISTS (SELECT FROM blackboard.spend s
                   WHERE s.session_id = p_session_id AND s.reservation_id = p_id AND s.unit = 'cost'
                     AND 'cost' = ANY (p_units) AND s.currency IS DISTINCT FROM p_currency) THEN
            PERFORM blackboard.raise('BB002', 'Settle the cost in the currency that it was reserved in.',
                                     '{"field": "currency"}');
        END IF;
        UPDATE blackboard.spend s
        SET status = 'settled',
            settled = coalesce((SELECT x.amount FROM unnest(p_units, p_amounts) x (unit, amount) WHERE x.unit = s.unit),
                               s.reserved),
            model = coalesce(p_model, s.model), note = coalesce(p_note, s.note)
        WHERE s.session_id = p_session_id AND s.reservation_id = p_id AND s.status <> 'settled';
        INSERT INTO blackboard.spend (session_id, reservation_id, agent_id, task_id, unit, currency, reserved, settled,
                                      status, model, note)
        SELECT p_session_id, p_id, v_first.agent_id, v_first.task_id, x.unit,
               CASE WHEN x.unit = 'cost' THEN p_currency END, 0, x.amount, 'settled', coalesce(p_model, v_first.model),
               coalesce(p_note, v_first.note)
        FROM unnest(p_units, p_amounts) x (unit, amount)
        WHERE NOT EXISTS (SELECT FROM blackboard.spend s WHERE s.session_id = p_session_id
                          AND s.reservation_id = p_id AND s.unit = x.unit)
        ORDER BY x.unit;
    END IF;
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit;
END
$$;

-- Nothing was spent: the amounts are free again. One that expired is left as it is.
CREATE FUNCTION blackboard.release_budget(p_session_id uuid, p_id uuid, p_actor text) RETURNS SETOF blackboard.spend
LANGUAGE plpgsql
SET xmlbinary = 'hex'
AS $$
DECLARE
    v_statuses text[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT array_agg(DISTINCT l.status) INTO v_statuses FROM blackboard.lock_reservation(p_session_id, p_id) l;
    IF 'settled' = ANY (v_statuses) THEN
        PERFORM blackboard.raise('BB003', 'This reservation was settled; what was spent cannot be taken back.',
                                 jsonb_build_object('noun', 'reservation', 'id', p_id, 'status', 'settled'));
    END IF;
    UPDATE blackboard.spend s SET status = 'released'
    WHERE s.session_id = p_session_id AND s.reservation_id = p_id AND s.status = 'reserved';
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit;
END
$$;

-- What silent processes hold is free again, a bounded number of entries at a time; returns how many.
CREATE FUNCTION blackboard.expire_reservations(p_session_id uuid, p_limit integer DEFAULT 200) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM blackboard.tend_leases();
    WITH gone AS MATERIALIZED (
        SELECT s.session_id, s.id
        FROM blackboard.spend s LEFT JOIN blackboard.leases l ON l.id = s.lease_id
        WHERE s.session_id = p_session_id AND s.status = 'reserved'
          AND (l.lapsed_at IS NOT NULL OR (s.lease_id IS NOT NULL AND l.id IS NULL) OR s.expires_at < blackboard.now())
        ORDER BY s.id LIMIT p_limit FOR UPDATE OF s SKIP LOCKED)
    UPDATE blackboard.spend s SET status = 'expired'
    FROM gone g WHERE s.session_id = g.session_id AND s.id = g.id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- Puts on record that BB014 was the answer: that took back its whole transaction. Said once while nothing changes.
CREATE FUNCTION blackboard.refuse_budget(p_session_id uuid, p_agent_id text, p_facts jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_budget blackboard.budgets;
    v_last jsonb;
    v_data jsonb;
BEGIN
    SELECT * INTO v_budget FROM blackboard.budgets b
    WHERE b.session_id = p_session_id AND b.id = (p_facts ->> 'budget')::uuid;
    IF NOT FOUND OR pg_column_size(p_facts) > 8192 THEN
        RETURN false;
    END IF;
    v_data := jsonb_build_object(
        'agent_id', p_agent_id, 'task_id', p_facts -> 'task_id', 'scope', v_budget.scope, 'unit', v_budget.unit,
        'currency', v_budget.currency, 'asked', p_facts -> 'asked', 'ceiling', trim_scale(v_budget.ceiling),
        'spent', trim_scale(v_budget.spent), 'reserved', trim_scale(v_budget.reserved));
    SELECT e.data INTO v_last FROM blackboard.events e
    WHERE e.session_id = p_session_id AND e.subject_id = v_budget.id ORDER BY e.seq DESC LIMIT 1;
    IF v_last = v_data THEN
        RETURN false;
    END IF;
    INSERT INTO blackboard.events (session_id, actor, type, subject_id, data)
    VALUES (p_session_id, p_agent_id, 'budget.refused', v_budget.id, v_data);
    PERFORM blackboard.hint(p_session_id, 'budgets');
    RETURN true;
END
$$;
REVOKE EXECUTE ON FUNCTION blackboard.refuse_budget(uuid, text, jsonb) FROM PUBLIC;

-- ------------------------------------------------------------------------------------------------- hard stop

-- The budgets that apply to the agent's work on the task (either may be NULL) and are spent.
CREATE FUNCTION blackboard.spent_budgets(p_session_id uuid, p_agent_id text, p_task_id uuid)
RETURNS SETOF blackboard.budgets
LANGUAGE sql STABLE
AS $$
    SELECT b.* FROM blackboard.budgets b
    WHERE b.session_id = p_session_id
      AND (b.agent_id IS NULL OR b.agent_id = p_agent_id) AND (b.task_id IS NULL OR b.task_id = p_task_id)
      AND blackboard.budget_spent(b) >= b.ceiling
    ORDER BY b.id
$$;

CREATE FUNCTION blackboard.over_budget(p_session_id uuid, p_agent_id text, p_task_id uuid) RETURNS boolean
LANGUAGE sql STABLE
AS $$ SELECT EXISTS (SELECT FROM blackboard.spent_budgets(p_session_id, p_agent_id, p_task_id)) $$;

-- Why a task cannot spend: the first budget that is used up, of its session, its own or its agent's; NULL for none.
CREATE FUNCTION blackboard.budget_reason(p_session_id uuid, p_task_id uuid) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_build_object(
        'code', 'budget', 'budget', b.id, 'scope', b.scope, 'agent_id', b.agent_id, 'unit', b.unit,
        'currency', b.currency, 'ceiling', trim_scale(b.ceiling), 'spent', trim_scale(b.spent),
        'reserved', trim_scale(b.reserved), 'resets_at', b.window_start + b.period,
        'message', format('The budget of %s for %s is used up: %s of %s%s are spent.', b.unit,
                          CASE b.scope WHEN 'session' THEN 'the session' WHEN 'agent' THEN b.agent_id
                                       ELSE 'this task' END,
                          trim_scale(b.spent), trim_scale(b.ceiling), coalesce(' ' || b.currency, '')))
    FROM blackboard.tasks t
    CROSS JOIN LATERAL blackboard.spent_budgets(t.session_id, t.assigned_to, t.id) b
    WHERE t.session_id = p_session_id AND t.id = p_task_id
    LIMIT 1
$$;
