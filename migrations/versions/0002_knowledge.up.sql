-- Findings, corroborations, contradictions; hypotheses, their evidence and assessments.
--
-- Lock order of every verb and trigger here: findings before hypotheses, each by id. Whoever links a finding (as
-- evidence, as a contradiction) updates its row, even though nothing in it changes but updated_at: a mere lock would
-- let a transaction that retracts the finding under REPEATABLE READ miss the link, and leave a hypothesis standing on
-- a retracted finding. With the update one of the two gets a serialization failure.
--
-- What is derived (a finding's trust and corroborations, a hypothesis's confidence) is kept by triggers, so that it
-- is right for raw SQL as well, and a writer who sets it otherwise is refused.

-- ---------------------------------------------------------------------------------------------------- findings

-- Content as compared: lower case, each run of white space (raw or escaped) one blank, none beside a quote.
CREATE FUNCTION blackboard.normal_text(p_content jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    -- An escaped backslash is set aside first, so that "C:\\new" does not look like an escaped line feed.
    SELECT pg_catalog.regexp_replace(pg_catalog.regexp_replace(
        pg_catalog.replace(pg_catalog.lower(p_content::text), '\\', pg_catalog.chr(1)),
        '(\s|\\[ntrf])+', ' ', 'g'), ' ?" ?', '"', 'g')
$$;

-- The same for two reports of the same thing.
CREATE FUNCTION blackboard.finding_fingerprint(p_category text, p_type text, p_content jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- A body of this form has its dependencies recorded: a dump must restore normal_text first.
RETURN pg_catalog.sha256(pg_catalog.convert_to(
        p_category || E'\n' || p_type || E'\n' || blackboard.normal_text(p_content), 'UTF8'));

CREATE TABLE blackboard.findings (
    session_id uuid NOT NULL CONSTRAINT findings_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    agent_id text NOT NULL CONSTRAINT findings_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    category text NOT NULL DEFAULT 'observation'
        CONSTRAINT findings_category_known CHECK (category IN ('observation', 'hypothesis', 'conclusion')),
    type text NOT NULL CONSTRAINT findings_type_length CHECK (length(type) BETWEEN 1 AND 50),
    content jsonb NOT NULL CONSTRAINT findings_content_size CHECK (pg_column_size(content) <= 1048576),
    confidence double precision CONSTRAINT findings_confidence_range CHECK (confidence BETWEEN 0 AND 1),
    -- Items {source, query, result}: where it was looked up, with what question, what came back.
    evidence jsonb NOT NULL DEFAULT '[]'
        CONSTRAINT findings_evidence_size CHECK (pg_column_size(evidence) <= 1048576)
        CONSTRAINT findings_evidence_items CHECK (
            jsonb_typeof(evidence) = 'array'
            AND NOT evidence @? '$[*] ? (!(@.type() == "object" && @.source.type() == "string"))'
            AND NOT evidence @? '$[*].keyvalue() ? (@.key != "source" && @.key != "query" && @.key != "result")'),
    tags text[] NOT NULL DEFAULT '{}'
        CONSTRAINT findings_tags_few CHECK (cardinality(tags) <= 100 AND array_position(tags, NULL) IS NULL
                                            AND length(array_to_string(tags, '')) <= 10000),
    provenance jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT findings_provenance_object CHECK (jsonb_typeof(provenance) = 'object')
        CONSTRAINT findings_provenance_size CHECK (pg_column_size(provenance) <= 1048576),
    derived_from uuid[] NOT NULL DEFAULT '{}'
        CONSTRAINT findings_derived_from_few CHECK (cardinality(derived_from) <= 1000
                                                    AND array_position(derived_from, NULL) IS NULL),
    trust double precision NOT NULL DEFAULT 1 CONSTRAINT findings_trust_range CHECK (trust BETWEEN 0 AND 1),
    status text NOT NULL DEFAULT 'active'
        CONSTRAINT findings_status_known CHECK (status IN ('active', 'superseded', 'retracted')),
    superseded_by uuid,
    reason text NOT NULL DEFAULT '' CONSTRAINT findings_reason_length CHECK (length(reason) <= 4000),
    corroborations integer NOT NULL DEFAULT 0
        CONSTRAINT findings_corroborations_range CHECK (corroborations >= 0),
    fingerprint bytea NOT NULL
        GENERATED ALWAYS AS (blackboard.finding_fingerprint(category, type, content)) STORED,
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    updated_at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT findings_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT findings_superseded_by_iff_superseded CHECK ((status = 'superseded') = (superseded_by IS NOT NULL)),
    CONSTRAINT findings_superseded_by_another CHECK (superseded_by <> id),
    CONSTRAINT findings_superseded_by_known FOREIGN KEY (session_id, superseded_by)
        REFERENCES blackboard.findings (session_id, id)
);
-- The same thing stands on the board once: its second report is a corroboration.
CREATE UNIQUE INDEX findings_active_once ON blackboard.findings (session_id, fingerprint) WHERE status = 'active';
CREATE INDEX findings_newest ON blackboard.findings (session_id, created_at DESC, id) WHERE status = 'active';
CREATE INDEX findings_hidden ON blackboard.findings (session_id, created_at DESC, id) WHERE status <> 'active';
CREATE INDEX findings_type ON blackboard.findings (session_id, type, created_at DESC, id) WHERE status = 'active';
CREATE INDEX findings_agent ON blackboard.findings (session_id, agent_id, created_at DESC, id)
    WHERE status = 'active';
-- Most findings are observations; the newest of those are found on the way.
CREATE INDEX findings_category ON blackboard.findings (session_id, category, created_at DESC, id)
    WHERE status = 'active' AND category <> 'observation';
CREATE INDEX findings_tags ON blackboard.findings USING gin (tags) WHERE status = 'active' AND tags <> '{}';
CREATE INDEX findings_superseded_by ON blackboard.findings (session_id, superseded_by)
    WHERE superseded_by IS NOT NULL;
COMMENT ON COLUMN blackboard.findings.trust IS
    'At most the trust of its agent (0.5 where nobody registered it) and of every finding it was derived from.';

-- Another agent's report of the same thing; report_id is that report's idempotency key.
CREATE TABLE blackboard.corroborations (
    session_id uuid NOT NULL,
    finding_id uuid NOT NULL,
    agent_id text NOT NULL CONSTRAINT corroborations_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    report_id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    confidence double precision CONSTRAINT corroborations_confidence_range CHECK (confidence BETWEEN 0 AND 1),
    evidence jsonb NOT NULL DEFAULT '[]'
        CONSTRAINT corroborations_evidence_size CHECK (pg_column_size(evidence) <= 1048576)
        CONSTRAINT corroborations_evidence_items CHECK (
            jsonb_typeof(evidence) = 'array'
            AND NOT evidence @? '$[*] ? (!(@.type() == "object" && @.source.type() == "string"))'
            AND NOT evidence @? '$[*].keyvalue() ? (@.key != "source" && @.key != "query" && @.key != "result")'),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT corroborations_pkey PRIMARY KEY (session_id, finding_id, agent_id),
    CONSTRAINT corroborations_report_once UNIQUE (session_id, report_id),
    CONSTRAINT corroborations_finding_known FOREIGN KEY (session_id, finding_id)
        REFERENCES blackboard.findings (session_id, id) ON DELETE CASCADE
);

-- What findings say of each other: other_id contradicts finding_id.
CREATE TABLE blackboard.finding_links (
    session_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    finding_id uuid NOT NULL,
    other_id uuid NOT NULL,
    kind text NOT NULL DEFAULT 'contradicts' CONSTRAINT finding_links_kind_known CHECK (kind IN ('contradicts')),
    agent_id text NOT NULL DEFAULT blackboard.current_actor()
        CONSTRAINT finding_links_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    reason text NOT NULL DEFAULT '' CONSTRAINT finding_links_reason_length CHECK (length(reason) <= 4000),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT finding_links_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT finding_links_once UNIQUE (session_id, finding_id, other_id, kind),
    CONSTRAINT finding_links_not_itself CHECK (finding_id <> other_id),
    CONSTRAINT finding_links_finding_known FOREIGN KEY (session_id, finding_id)
        REFERENCES blackboard.findings (session_id, id) ON DELETE CASCADE,
    CONSTRAINT finding_links_other_known FOREIGN KEY (session_id, other_id)
        REFERENCES blackboard.findings (session_id, id) ON DELETE CASCADE
);
CREATE INDEX finding_links_other ON blackboard.finding_links (session_id, other_id);

-- -------------------------------------------------------------------------------------------------- hypotheses

CREATE TABLE blackboard.hypotheses (
    session_id uuid NOT NULL CONSTRAINT hypotheses_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    agent_id text NOT NULL CONSTRAINT hypotheses_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    statement text NOT NULL CONSTRAINT hypotheses_statement_length CHECK (length(statement) BETWEEN 1 AND 2000),
    status text NOT NULL DEFAULT 'proposed'
        CONSTRAINT hypotheses_status_known CHECK (status IN ('proposed', 'validated', 'refuted', 'withdrawn')),
    prior double precision NOT NULL DEFAULT 0.5 CONSTRAINT hypotheses_prior_range CHECK (prior BETWEEN 0 AND 1),
    confidence double precision NOT NULL DEFAULT 0.5
        CONSTRAINT hypotheses_confidence_range CHECK (confidence BETWEEN 0.01 AND 0.99),
    revision integer NOT NULL DEFAULT 0 CONSTRAINT hypotheses_revision_range CHECK (revision >= 0),
    validated_by text CONSTRAINT hypotheses_validated_by_length CHECK (length(validated_by) BETWEEN 1 AND 100),
    validated_at timestamptz,
    verdict_evidence uuid[] NOT NULL DEFAULT '{}'
        CONSTRAINT hypotheses_verdict_evidence_few CHECK (cardinality(verdict_evidence) <= 1000
                                                          AND array_position(verdict_evidence, NULL) IS NULL),
    reason text NOT NULL DEFAULT '' CONSTRAINT hypotheses_reason_length CHECK (length(reason) <= 4000),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    updated_at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT hypotheses_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT hypotheses_verdict_iff_decided CHECK (
        (status IN ('validated', 'refuted')) = (validated_by IS NOT NULL)
        AND (status IN ('validated', 'refuted')) = (validated_at IS NOT NULL)),
    CONSTRAINT hypotheses_verdict_needs_evidence CHECK (
        (status IN ('validated', 'refuted')) = (cardinality(verdict_evidence) > 0))
);
CREATE INDEX hypotheses_strongest ON blackboard.hypotheses (session_id, confidence DESC, id);
COMMENT ON COLUMN blackboard.hypotheses.confidence IS
    'Computed: blackboard.hypothesis_confidence() says how. Status stands apart from it.';

CREATE TABLE blackboard.hypothesis_evidence (
    session_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    hypothesis_id uuid NOT NULL,
    finding_id uuid NOT NULL,
    agent_id text NOT NULL DEFAULT blackboard.current_actor()
        CONSTRAINT hypothesis_evidence_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    supports boolean NOT NULL DEFAULT true,
    weight double precision NOT NULL DEFAULT 1
        CONSTRAINT hypothesis_evidence_weight_range CHECK (weight > 0 AND weight <= 1),
    reason text NOT NULL DEFAULT '' CONSTRAINT hypothesis_evidence_reason_length CHECK (length(reason) <= 4000),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    retracted_at timestamptz,
    CONSTRAINT hypothesis_evidence_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT hypothesis_evidence_hypothesis_known FOREIGN KEY (session_id, hypothesis_id)
        REFERENCES blackboard.hypotheses (session_id, id) ON DELETE CASCADE,
    CONSTRAINT hypothesis_evidence_finding_known FOREIGN KEY (session_id, finding_id)
        REFERENCES blackboard.findings (session_id, id)
);
CREATE UNIQUE INDEX hypothesis_evidence_live_once
    ON blackboard.hypothesis_evidence (session_id, hypothesis_id, finding_id) WHERE retracted_at IS NULL;
CREATE INDEX hypothesis_evidence_hypothesis ON blackboard.hypothesis_evidence (session_id, hypothesis_id);
CREATE INDEX hypothesis_evidence_finding ON blackboard.hypothesis_evidence (session_id, finding_id);

-- What each agent itself holds the hypothesis to be worth; the author's prior is the first.
CREATE TABLE blackboard.hypothesis_assessments (
    session_id uuid NOT NULL,
    hypothesis_id uuid NOT NULL,
    agent_id text NOT NULL DEFAULT blackboard.current_actor()
        CONSTRAINT hypothesis_assessments_agent_id_length CHECK (length(agent_id) BETWEEN 1 AND 100),
    confidence double precision NOT NULL
        CONSTRAINT hypothesis_assessments_confidence_range CHECK (confidence BETWEEN 0 AND 1),
    reason text NOT NULL DEFAULT '' CONSTRAINT hypothesis_assessments_reason_length CHECK (length(reason) <= 4000),
    at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT hypothesis_assessments_pkey PRIMARY KEY (session_id, hypothesis_id, agent_id),
    CONSTRAINT hypothesis_assessments_hypothesis_known FOREIGN KEY (session_id, hypothesis_id)
        REFERENCES blackboard.hypotheses (session_id, id) ON DELETE CASCADE
);

-- -------------------------------------------------------------------------------------------------- confidence

CREATE FUNCTION blackboard.log_odds(p_confidence double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pg_catalog.ln(p_confidence / (1 - p_confidence)) $$;

-- a * b for numbers of at least 0: PostgreSQL refuses a product that is too small for a double, where it means 0.
CREATE FUNCTION blackboard.product(p_a double precision, p_b double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN p_a > 1e-150 AND p_b > 1e-150 THEN p_a * p_b
                WHEN p_a = 0 OR p_b = 0 THEN 0
                WHEN log(p_a) + log(p_b) < -305 THEN 0
                ELSE p_a * p_b END
$$;

-- Probabilities pooled: the weighted mean of their log-odds, as a probability again (the normalised geometric mean of
-- the odds). Each is first clamped to [0.01, 0.99], so that nobody's certainty drowns the rest; NULLs and weights of 0
-- count nothing; when all weights are 0 they count as equal; 0.5 where nothing is known.
CREATE FUNCTION blackboard.pool_log_odds(p_confidences double precision[], p_weights double precision[])
RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(1 / (1 + exp(-coalesce(sum(s.w * s.l) / nullif(sum(s.w), 0), avg(s.l)))), 0.5)
    FROM (SELECT CASE WHEN u.w < 1e-200 THEN 0 ELSE least(coalesce(u.w, 1), 1e90) END AS w,
                 blackboard.log_odds(least(greatest(u.c, 0.01), 0.99)) AS l
          FROM unnest(p_confidences, p_weights) u (c, w)
          WHERE u.c IS NOT NULL
          -- A sum of doubles depends on its order, and the pool must not.
          ORDER BY 1, 2) s
$$;

-- What one finding adds to the log-odds of a hypothesis that it supports: ln(p / (1 - p)) with p = 0.5 + c/2, scaled
-- by the link's weight and the finding's trust. c is the finding's confidence up to 0.98, and 0.5 where none is stated;
-- a finding that another active one contradicts counts half.
CREATE FUNCTION blackboard.evidence_log_odds(
    p_confidence double precision, p_weight double precision, p_trust double precision, p_contradicted boolean
) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT blackboard.product(blackboard.product(p_weight, p_trust),
                              CASE WHEN p_contradicted THEN 0.5 ELSE 1 END * ln((0.5 + s.c / 2) / (0.5 - s.c / 2)))
    FROM (SELECT CASE WHEN p_confidence < 1e-300 THEN 0 ELSE least(coalesce(p_confidence, 0.5), 0.98) END AS c) s
$$;

CREATE FUNCTION blackboard.is_contradicted(p_session_id uuid, p_finding_id uuid) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT EXISTS (SELECT FROM blackboard.finding_links l
                   JOIN blackboard.findings o ON o.session_id = l.session_id AND o.id = l.other_id
                   WHERE l.session_id = p_session_id AND l.finding_id = p_finding_id
                     AND l.kind = 'contradicts' AND o.status = 'active')
$$;

-- The rule: log-odds of the agents' own assessments, pooled by their expertise in 'hypothesis', plus what the live
-- evidence adds (supports) or takes away (contradicts), the 10 strongest of each side; as a probability, clamped to
-- [0.01, 0.99]. Only links that are not retracted to findings that are active count.
CREATE FUNCTION blackboard.hypothesis_confidence(p_session_id uuid, p_hypothesis_id uuid, p_prior double precision)
RETURNS double precision
LANGUAGE sql STABLE
AS $$
    SELECT least(greatest(1 / (1 + exp(-(stated.l + weighed.l))), 0.01), 0.99)
    FROM (SELECT blackboard.log_odds(CASE WHEN count(*) > 0
                     THEN blackboard.pool_log_odds(array_agg(a.confidence),
                                                   array_agg(blackboard.expertise(a.agent_id, 'hypothesis')))
                     ELSE least(greatest(p_prior, 0.01), 0.99) END) AS l
          FROM blackboard.hypothesis_assessments a
          WHERE a.session_id = p_session_id AND a.hypothesis_id = p_hypothesis_id) stated,
         (SELECT coalesce(sum(CASE WHEN r.supports THEN r.l ELSE -r.l END), 0) AS l
          FROM (SELECT s.supports, s.l, row_number() OVER (PARTITION BY s.supports ORDER BY s.l DESC) AS place
                FROM (SELECT e.supports,
                             blackboard.evidence_log_odds(f.confidence, e.weight, f.trust,
                                                          blackboard.is_contradicted(f.session_id, f.id)) AS l
                      FROM blackboard.hypothesis_evidence e
                      JOIN blackboard.findings f ON f.session_id = e.session_id AND f.id = e.finding_id
                      WHERE e.session_id = p_session_id AND e.hypothesis_id = p_hypothesis_id
                        AND e.retracted_at IS NULL AND f.status = 'active') s) r
          WHERE r.place <= 10) weighed
$$;

-- One number for several findings. 'weighted': the average of their confidence, each weighted with the expertise of its
-- agent in its category times (items of evidence * 0.1 + 0.5); 0 where there is nothing to average. 'log_odds': the
-- same weights, log-odds pooled; 0.5 where nothing is known. Findings without a confidence do not count; of more than
-- p_max_findings only those with the greatest weight do.
CREATE FUNCTION blackboard.aggregate_confidence(
    p_session_id uuid, p_finding_ids uuid[], p_method text DEFAULT 'weighted', p_max_findings integer DEFAULT NULL
) RETURNS double precision
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_missing uuid;
    v_confidences double precision[];
    v_weights double precision[];
    v_result double precision;
BEGIN
    IF p_method IS NULL OR p_method NOT IN ('weighted', 'log_odds') THEN
        PERFORM blackboard.raise('BB002', format('There is no method %L; use weighted or log_odds.', p_method),
                                 jsonb_build_object('field', 'method'));
    END IF;
    IF p_max_findings < 1 THEN
        PERFORM blackboard.raise('BB002', 'max_findings must be at least 1.', '{"field": "max_findings"}');
    END IF;
    SELECT w.id INTO v_missing FROM unnest(p_finding_ids) w (id)
    WHERE NOT EXISTS (SELECT FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = w.id) LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.no_finding(v_missing);
    END IF;
    -- In the order given: a sum of doubles depends on it, and the result is the seed's to the last bit.
    SELECT array_agg(s.confidence ORDER BY s.position), array_agg(s.weight ORDER BY s.position)
    INTO v_confidences, v_weights
    FROM (SELECT f.confidence, x.weight, w.position,
                 row_number() OVER (ORDER BY x.weight DESC, w.position) AS place
          FROM unnest(p_finding_ids) WITH ORDINALITY w (id, position)
          JOIN blackboard.findings f ON f.session_id = p_session_id AND f.id = w.id,
               LATERAL (SELECT blackboard.product(
                            blackboard.expertise(f.agent_id, f.category),
                            jsonb_array_length(f.evidence)::double precision * 0.1::double precision
                            + 0.5::double precision) AS weight) x
          WHERE f.confidence IS NOT NULL) s
    WHERE p_max_findings IS NULL OR s.place <= p_max_findings;
    IF p_method = 'log_odds' THEN
        RETURN blackboard.pool_log_odds(v_confidences, v_weights);
    END IF;
    SELECT CASE WHEN sum(blackboard.product(u.c, u.w) ORDER BY u.position) > 1e-300
                THEN sum(blackboard.product(u.c, u.w) ORDER BY u.position) / sum(u.w ORDER BY u.position)
                ELSE 0 END INTO v_result
    FROM unnest(v_confidences, v_weights) WITH ORDINALITY u (c, w, position);
    RETURN v_result;
END
$$;

-- ------------------------------------------------------------------------------------------ errors, permissions

CREATE FUNCTION blackboard.no_finding(p_id uuid) RETURNS void
LANGUAGE sql
AS $$
    SELECT blackboard.raise('BB001', format('There is no finding %s in this session; list them first.', p_id),
                            jsonb_build_object('noun', 'finding', 'id', p_id))
$$;

CREATE FUNCTION blackboard.no_hypothesis(p_id uuid) RETURNS void
LANGUAGE sql
AS $$
    SELECT blackboard.raise('BB001', format('There is no hypothesis %s in this session; list them first.', p_id),
                            jsonb_build_object('noun', 'hypothesis', 'id', p_id))
$$;

-- Whether the actor may overrule an author: a member whose role is controller, or somebody who is no member (a human
-- at a terminal, a service). Members answer each other by contradicting.
CREATE FUNCTION blackboard.may_overrule(p_session_id uuid, p_actor text) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT coalesce((SELECT m.role = 'controller' AND m.left_at IS NULL FROM blackboard.memberships m
                     WHERE m.session_id = p_session_id AND m.agent_id = p_actor), true)
$$;

-- The most trust that such a finding can have.
CREATE FUNCTION blackboard.finding_trust(p_session_id uuid, p_agent_id text, p_derived_from uuid[])
RETURNS double precision
LANGUAGE sql STABLE
AS $$
    SELECT least(coalesce((SELECT a.trust FROM blackboard.agents a WHERE a.id = p_agent_id), 0.5),
                 (SELECT min(f.trust) FROM blackboard.findings f
                  WHERE f.session_id = p_session_id AND f.id = ANY (p_derived_from)))
$$;

-- For rows that are facts about the past: they may be added and (with a trace) deleted, never rewritten.
CREATE FUNCTION blackboard.refuse_rewrite() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.raise('BB005', format('Rows of blackboard.%s are never changed: %s.', TG_TABLE_NAME, TG_ARGV[0]),
                             jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;

-- Recomputes hypotheses, each locked before its evidence is read; p_because goes into their hypothesis.revised. The
-- revision grows even where the number stays: under REPEATABLE READ the update is what makes two revisions collide.
CREATE FUNCTION blackboard.revise_hypotheses(p_session_id uuid, p_hypothesis_ids uuid[], p_because jsonb) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = ANY (p_hypothesis_ids)
    ORDER BY h.id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM pg_catalog.set_config('blackboard.because', p_because::text, true);
    UPDATE blackboard.hypotheses SET revision = revision + 1
    WHERE session_id = p_session_id AND id = ANY (p_hypothesis_ids);
    PERFORM pg_catalog.set_config('blackboard.because', '', true);
END
$$;

-- ------------------------------------------------------------------------------------------ findings: triggers

CREATE FUNCTION blackboard.prepare_finding() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.trust := least(coalesce(NEW.trust, 1),
                           blackboard.finding_trust(NEW.session_id, NEW.agent_id, NEW.derived_from));
    ELSE
        -- Here and not in history_update, where a CHECK would have spoken first.
        IF OLD.status <> 'active' AND (NEW.status, NEW.superseded_by) IS DISTINCT FROM (OLD.status, OLD.superseded_by)
        THEN
            PERFORM blackboard.raise('BB003', format('This finding is %s, and stays so; report it again.', OLD.status),
                                     jsonb_build_object('noun', 'finding', 'id', OLD.id, 'status', OLD.status));
        END IF;
        NEW.updated_at := blackboard.now();
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.findings
    FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_finding();

-- A document as an event carries it: over 8 kB, only a sign that it is in the row.
CREATE FUNCTION blackboard.in_event(p_name text, p_document jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN octet_length(p_document::text) <= 8192 THEN jsonb_build_object(p_name, p_document)
                ELSE jsonb_build_object(p_name || '_ref', true) END
$$;

CREATE FUNCTION blackboard.history_findings_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_row blackboard.findings;
    v_missing uuid;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    FOR v_row IN SELECT (n).* FROM new_rows n
                 WHERE n.status <> 'active' OR n.corroborations <> 0 OR n.derived_from <> '{}' LOOP
        IF v_row.status <> 'active' THEN
            PERFORM blackboard.raise('BB003', 'A new finding is active; retract or supersede it afterwards.',
                                     jsonb_build_object('noun', 'finding', 'id', v_row.id, 'status', v_row.status));
        END IF;
        IF v_row.corroborations <> 0 THEN
            PERFORM blackboard.raise('BB005', 'A finding''s corroborations are counted, not set.',
                                     jsonb_build_object('field', 'corroborations', 'id', v_row.id));
        END IF;
        SELECT d.id INTO v_missing FROM unnest(v_row.derived_from) d (id)
        WHERE d.id = v_row.id
           OR NOT EXISTS (SELECT FROM blackboard.findings f WHERE f.session_id = v_row.session_id AND f.id = d.id)
        LIMIT 1;
        IF FOUND THEN
            PERFORM blackboard.no_finding(v_missing);
        END IF;
        IF v_row.trust > blackboard.finding_trust(v_row.session_id, v_row.agent_id, v_row.derived_from) THEN
            PERFORM blackboard.raise('BB005', 'A finding is not trusted more than what it was derived from.',
                                     jsonb_build_object('field', 'trust', 'id', v_row.id));
        END IF;
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'finding.reported', n.id,
           jsonb_build_object('agent_id', n.agent_id, 'category', n.category, 'type', n.type,
                              'confidence', n.confidence, 'tags', n.tags, 'derived_from', n.derived_from,
                              'trust', n.trust, 'status', n.status, 'corroborations', n.corroborations)
           || blackboard.in_event('content', n.content) || blackboard.in_event('evidence', n.evidence)
           || blackboard.in_event('provenance', n.provenance)
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.findings REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_findings_insert();

CREATE FUNCTION blackboard.history_findings_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_change record;
BEGIN
    FOR v_change IN
        SELECT o.session_id, o.id, n.id IS NULL OR n.derived_from <> o.derived_from
                   OR n.created_at <> o.created_at AS rewritten,
               CASE WHEN n.status = 'superseded' AND o.status = 'active' THEN n.superseded_by END AS successor,
               n.corroborations <> o.corroborations
                   AND n.corroborations <> (SELECT count(*) FROM blackboard.corroborations c
                                            WHERE c.session_id = n.session_id AND c.finding_id = n.id) AS miscounted,
               n.trust > o.trust
                   AND n.trust > blackboard.finding_trust(n.session_id, n.agent_id, n.derived_from) AS overtrusted
        FROM old_rows o LEFT JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
    LOOP
        IF v_change.rewritten THEN
            PERFORM blackboard.raise('BB012',
                                     'A finding''s id, lineage and time of creation never change; supersede it.',
                                     jsonb_build_object('noun', 'finding', 'id', v_change.id));
        ELSIF v_change.miscounted THEN
            PERFORM blackboard.raise('BB005', 'A finding''s corroborations are counted, not set.',
                                     jsonb_build_object('field', 'corroborations', 'id', v_change.id));
        ELSIF v_change.overtrusted THEN
            PERFORM blackboard.raise('BB005',
                                     'A finding is not trusted more than its agent and what it was derived from.',
                                     jsonb_build_object('field', 'trust', 'id', v_change.id));
        ELSIF v_change.successor IS NOT NULL THEN
            -- Active ones only, so that no finding supersedes itself by way of others.
            PERFORM blackboard.active_finding(v_change.session_id, v_change.successor);
        END IF;
    END LOOP;
    -- Corroborations have their own event, finding.corroborated.
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, CASE WHEN n.status = o.status THEN 'finding.updated' ELSE 'finding.' || n.status END, n.id,
           -- The stripped ones are never null themselves; confidence may become so.
           jsonb_strip_nulls(jsonb_build_object(
               'agent_id', CASE WHEN n.agent_id <> o.agent_id THEN n.agent_id END,
               'category', CASE WHEN n.category <> o.category THEN n.category END,
               'type', CASE WHEN n.type <> o.type THEN n.type END,
               'tags', CASE WHEN n.tags <> o.tags THEN n.tags END,
               'trust', CASE WHEN n.trust <> o.trust THEN n.trust END,
               'status', CASE WHEN n.status <> o.status THEN n.status END,
               'superseded_by', CASE WHEN n.superseded_by IS DISTINCT FROM o.superseded_by THEN n.superseded_by END,
               'reason', CASE WHEN n.reason <> o.reason OR n.status = 'retracted' THEN n.reason END))
           || CASE WHEN n.confidence IS DISTINCT FROM o.confidence
                   THEN jsonb_build_object('confidence', n.confidence) ELSE '{}' END
           -- What the event of the report did not carry is lost from the row now: it is kept here.
           || CASE WHEN n.content <> o.content
                   THEN jsonb_build_object('content', n.content, 'content_was', o.content) ELSE '{}' END
           || CASE WHEN n.evidence <> o.evidence
                   THEN jsonb_build_object('evidence', n.evidence, 'evidence_was', o.evidence) ELSE '{}' END
           || CASE WHEN n.provenance <> o.provenance
                   THEN jsonb_build_object('provenance', n.provenance, 'provenance_was', o.provenance) ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.agent_id, n.category, n.type, n.content, n.confidence, n.evidence, n.tags, n.provenance, n.trust,
           n.status, n.superseded_by, n.reason)
          IS DISTINCT FROM (o.agent_id, o.category, o.type, o.content, o.confidence, o.evidence, o.tags, o.provenance,
                            o.trust, o.status, o.superseded_by, o.reason);
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- A finding that one of these contradicts counts otherwise now: whoever links it at this moment must see that, or
    -- be seen here.
    UPDATE blackboard.findings f SET updated_at = blackboard.now()
    WHERE (f.session_id, f.id) IN (SELECT l.session_id, l.finding_id FROM blackboard.finding_links l
                                   JOIN new_rows n ON n.session_id = l.session_id AND n.id = l.other_id
                                   JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
                                   WHERE n.status <> o.status);
    -- Hypotheses that rest on them, or on a finding that they contradict.
    FOR v_change IN
        SELECT c.session_id, array_agg(DISTINCT e.hypothesis_id) AS hypothesis_ids,
               jsonb_build_object('event', min(c.event), 'finding_ids', jsonb_agg(DISTINCT c.id)) AS because
        FROM (SELECT n.session_id, n.id,
                     CASE WHEN n.status = o.status THEN 'finding.updated' ELSE 'finding.' || n.status END AS event,
                     n.status <> o.status AS moved
              FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
              WHERE (n.status, n.confidence, n.trust) IS DISTINCT FROM (o.status, o.confidence, o.trust)) c,
             LATERAL (SELECT e.hypothesis_id FROM blackboard.hypothesis_evidence e
                      WHERE e.session_id = c.session_id AND e.finding_id = c.id AND e.retracted_at IS NULL
                      UNION
                      SELECT e.hypothesis_id FROM blackboard.finding_links l
                      JOIN blackboard.hypothesis_evidence e
                        ON e.session_id = l.session_id AND e.finding_id = l.finding_id AND e.retracted_at IS NULL
                      WHERE c.moved AND l.session_id = c.session_id AND l.other_id = c.id) e
        GROUP BY c.session_id
    LOOP
        PERFORM blackboard.revise_hypotheses(v_change.session_id, v_change.hypothesis_ids, v_change.because);
    END LOOP;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.findings
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_findings_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.findings REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('finding', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.findings
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.history_corroborations_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    IF EXISTS (SELECT FROM new_rows n JOIN blackboard.findings f ON f.session_id = n.session_id AND f.id = n.finding_id
               WHERE f.agent_id = n.agent_id) THEN
        PERFORM blackboard.raise('BB002', 'An agent cannot corroborate its own finding.', '{"field": "agent_id"}');
    END IF;
    PERFORM 1 FROM blackboard.findings f
    WHERE (f.session_id, f.id) IN (SELECT n.session_id, n.finding_id FROM new_rows n)
    ORDER BY f.session_id, f.id FOR NO KEY UPDATE;
    WITH counted AS (
        UPDATE blackboard.findings f SET corroborations = f.corroborations + c.more
        FROM (SELECT n.session_id, n.finding_id, count(*)::integer AS more FROM new_rows n GROUP BY 1, 2) c
        WHERE f.session_id = c.session_id AND f.id = c.finding_id
        RETURNING f.session_id, f.id, f.corroborations
    )
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'finding.corroborated', n.finding_id,
           jsonb_build_object('corroborations', f.corroborations,
                              'corroboration', jsonb_build_object('agent_id', n.agent_id, 'confidence', n.confidence)
                                               || blackboard.in_event('evidence', n.evidence))
    FROM new_rows n JOIN counted f ON f.session_id = n.session_id AND f.id = n.finding_id;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.corroborations REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_corroborations_insert();
CREATE TRIGGER history_update BEFORE UPDATE ON blackboard.corroborations
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_rewrite('the agent said so at that time');
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.corroborations REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('corroboration', 'finding_id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.corroborations
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.recount_corroborations() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WITH counted AS (
        UPDATE blackboard.findings f SET corroborations = f.corroborations - c.less
        FROM (SELECT o.session_id, o.finding_id, count(*)::integer AS less FROM old_rows o GROUP BY 1, 2) c
        WHERE f.session_id = c.session_id AND f.id = c.finding_id
        RETURNING f.session_id, f.id, f.corroborations
    )
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT f.session_id, 'finding.updated', f.id, jsonb_build_object('corroborations', f.corroborations)
    FROM counted f;
    RETURN NULL;
END
$$;
CREATE TRIGGER recount AFTER DELETE ON blackboard.corroborations REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.recount_corroborations();

CREATE FUNCTION blackboard.history_finding_links() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_change record;
BEGIN
    -- Both ends: whoever retracts either must see this link, or collide with it.
    PERFORM 1 FROM blackboard.findings f
    WHERE (f.session_id, f.id) IN (SELECT r.session_id, r.finding_id FROM changed_rows r
                                   UNION SELECT r.session_id, r.other_id FROM changed_rows r)
    ORDER BY f.session_id, f.id FOR NO KEY UPDATE;
    UPDATE blackboard.findings f SET updated_at = blackboard.now()
    WHERE (f.session_id, f.id) IN (SELECT r.session_id, r.finding_id FROM changed_rows r
                                   UNION SELECT r.session_id, r.other_id FROM changed_rows r);
    IF TG_OP = 'INSERT' THEN
        PERFORM blackboard.check_sessions(array(SELECT DISTINCT r.session_id FROM changed_rows r));
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT r.session_id, 'finding.contradicted', r.finding_id,
               jsonb_build_object('contradiction', jsonb_build_object('id', r.id, 'by', r.other_id,
                                                                      'agent_id', r.agent_id, 'reason', r.reason))
        FROM changed_rows r;
    END IF;
    FOR v_change IN
        SELECT r.session_id, array_agg(DISTINCT e.hypothesis_id) AS hypothesis_ids,
               jsonb_build_object('event', 'finding.contradicted', 'finding_ids', jsonb_agg(DISTINCT r.finding_id))
                   AS because
        FROM changed_rows r
        JOIN blackboard.hypothesis_evidence e
          ON e.session_id = r.session_id AND e.finding_id = r.finding_id AND e.retracted_at IS NULL
        GROUP BY r.session_id
    LOOP
        PERFORM blackboard.revise_hypotheses(v_change.session_id, v_change.hypothesis_ids, v_change.because);
    END LOOP;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT r.session_id FROM changed_rows r) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.finding_links REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_finding_links();
CREATE TRIGGER history_update BEFORE UPDATE ON blackboard.finding_links
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_rewrite('retract the finding that contradicts');
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.finding_links REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('contradiction', 'finding_id');
CREATE TRIGGER revise AFTER DELETE ON blackboard.finding_links REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_finding_links();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.finding_links
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- ---------------------------------------------------------------------------------------- hypotheses: triggers

-- The confidence is computed here and nowhere else: the row is locked by now, so every committed link is seen.
CREATE FUNCTION blackboard.prepare_hypothesis() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.confidence := least(greatest(NEW.prior, 0.01), 0.99);
        NEW.revision := 0;
    ELSE
        IF OLD.status <> 'proposed' AND NEW.status <> OLD.status THEN
            PERFORM blackboard.raise('BB003',
                                     format('This hypothesis is %s, and stays so; propose it anew.', OLD.status),
                                     jsonb_build_object('noun', 'hypothesis', 'id', OLD.id, 'status', OLD.status));
        END IF;
        NEW.updated_at := blackboard.now();
        IF NEW.revision <> OLD.revision THEN
            NEW.revision := OLD.revision + 1;
            NEW.confidence := blackboard.hypothesis_confidence(NEW.session_id, NEW.id, NEW.prior);
        ELSIF NEW.confidence IS DISTINCT FROM OLD.confidence THEN
            PERFORM blackboard.raise('BB005', 'A hypothesis''s confidence is computed; assess it or add evidence.',
                                     jsonb_build_object('field', 'confidence', 'id', OLD.id));
        END IF;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.hypotheses
    FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_hypothesis();

CREATE FUNCTION blackboard.history_hypotheses_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    IF EXISTS (SELECT FROM new_rows n WHERE n.status <> 'proposed') THEN
        PERFORM blackboard.raise('BB003', 'A new hypothesis is proposed; give the verdict afterwards.',
                                 '{"noun": "hypothesis"}');
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'hypothesis.proposed', n.id,
           jsonb_build_object('agent_id', n.agent_id, 'description', n.statement, 'status', n.status,
                              'prior', n.prior, 'confidence', n.confidence, 'revision', n.revision)
    FROM new_rows n;
    INSERT INTO blackboard.hypothesis_assessments (session_id, hypothesis_id, agent_id, confidence)
    SELECT n.session_id, n.id, n.agent_id, n.prior FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'hypotheses') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.hypotheses REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_hypotheses_insert();

CREATE FUNCTION blackboard.history_hypotheses_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_change record;
    v_finding uuid;
BEGIN
    FOR v_change IN
        SELECT o.session_id, o.id, o.status AS was, n.status, n.verdict_evidence, n.validated_by,
               n.id IS NULL OR (n.statement, n.agent_id, n.prior, n.created_at)
                               <> (o.statement, o.agent_id, o.prior, o.created_at) AS rewritten,
               n.status = o.status AND (n.verdict_evidence, n.validated_by, n.validated_at)
                   IS DISTINCT FROM (o.verdict_evidence, o.validated_by, o.validated_at) AS reworded,
               n.validated_by = n.agent_id AND NOT s.allow_self_validation AS own
        FROM old_rows o LEFT JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
        LEFT JOIN blackboard.sessions s ON s.id = o.session_id
    LOOP
        IF v_change.rewritten THEN
            PERFORM blackboard.raise('BB012',
                'A hypothesis''s id, statement, author and prior never change; propose another one.',
                jsonb_build_object('noun', 'hypothesis', 'id', v_change.id));
        ELSIF v_change.reworded THEN
            PERFORM blackboard.raise('BB003',
                'A verdict, who gave it and what it rests on stay as they are; propose the hypothesis anew.',
                jsonb_build_object('noun', 'hypothesis', 'id', v_change.id, 'status', v_change.was));
        ELSIF v_change.status IN ('validated', 'refuted') AND v_change.was = 'proposed' THEN
            IF v_change.own THEN
                PERFORM blackboard.raise('BB005',
                    'Its author may not judge a hypothesis; another agent or a human must, unless the session was '
                    'started with allow_self_validation.',
                    jsonb_build_object('noun', 'hypothesis', 'id', v_change.id, 'agent_id', v_change.validated_by));
            END IF;
            SELECT v.id INTO v_finding FROM unnest(v_change.verdict_evidence) v (id)
            WHERE NOT EXISTS (SELECT FROM blackboard.findings f WHERE f.session_id = v_change.session_id
                              AND f.id = v.id AND f.status = 'active') LIMIT 1;
            IF FOUND THEN
                PERFORM blackboard.active_finding(v_change.session_id, v_finding);
            END IF;
        END IF;
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE WHEN n.status <> o.status THEN CASE n.status WHEN 'withdrawn' THEN 'hypothesis.withdrawn'
                                                             ELSE 'hypothesis.validated' END
                WHEN n.revision <> o.revision THEN 'hypothesis.revised'
                ELSE 'hypothesis.updated' END,
           n.id,
           jsonb_strip_nulls(jsonb_build_object(
               'status', CASE WHEN n.status <> o.status THEN n.status END,
               'validated_by', CASE WHEN n.status <> o.status THEN n.validated_by END,
               'validated_at', CASE WHEN n.status <> o.status THEN n.validated_at END,
               'verdict_evidence', CASE WHEN n.validated_by IS NOT NULL AND n.status <> o.status
                                        THEN n.verdict_evidence END,
               -- The seed's names for the verdict.
               'result', CASE WHEN n.status <> o.status AND n.status <> 'withdrawn' THEN n.status = 'validated' END,
               'evidence', CASE WHEN n.validated_by IS NOT NULL AND n.status <> o.status
                                THEN n.verdict_evidence END,
               'reason', CASE WHEN n.reason <> o.reason OR n.status <> o.status THEN n.reason END,
               'confidence', CASE WHEN n.revision <> o.revision THEN n.confidence END,
               'revision', CASE WHEN n.revision <> o.revision THEN n.revision END,
               'because', CASE WHEN n.revision <> o.revision
                               THEN nullif(pg_catalog.current_setting('blackboard.because', true), '')::jsonb END))
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.status, n.revision, n.reason) IS DISTINCT FROM (o.status, o.revision, o.reason);
    PERFORM blackboard.hint(s.session_id, 'hypotheses') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.hypotheses
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_hypotheses_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.hypotheses REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('hypothesis', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.hypotheses
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Of this session and active, or an error that says which it is not.
CREATE FUNCTION blackboard.active_finding(p_session_id uuid, p_id uuid) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_status text;
BEGIN
    SELECT f.status INTO v_status FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_finding(p_id);
    ELSIF v_status <> 'active' THEN
        PERFORM blackboard.raise('BB012', format('The finding %s is %s and proves nothing; use an active one.', p_id,
                                                 v_status),
                                 jsonb_build_object('noun', 'finding', 'id', p_id, 'status', v_status));
    END IF;
END
$$;

CREATE FUNCTION blackboard.proposed_hypothesis(p_session_id uuid, p_id uuid) RETURNS blackboard.hypotheses
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    ELSIF v_hypothesis.status <> 'proposed' THEN
        PERFORM blackboard.raise('BB003', format('This hypothesis is %s and no longer argued over; propose it anew.',
                                                 v_hypothesis.status),
                                 jsonb_build_object('noun', 'hypothesis', 'id', p_id, 'status', v_hypothesis.status));
    END IF;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.history_evidence_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_row record;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    PERFORM 1 FROM blackboard.findings f
    WHERE (f.session_id, f.id) IN (SELECT n.session_id, n.finding_id FROM new_rows n)
    ORDER BY f.session_id, f.id FOR NO KEY UPDATE;
    UPDATE blackboard.findings f SET updated_at = blackboard.now()
    WHERE (f.session_id, f.id) IN (SELECT n.session_id, n.finding_id FROM new_rows n);
    FOR v_row IN SELECT DISTINCT n.session_id, n.finding_id FROM new_rows n LOOP
        PERFORM blackboard.active_finding(v_row.session_id, v_row.finding_id);
    END LOOP;
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE (h.session_id, h.id) IN (SELECT n.session_id, n.hypothesis_id FROM new_rows n)
    ORDER BY h.session_id, h.id FOR NO KEY UPDATE;
    FOR v_row IN SELECT DISTINCT n.session_id, n.hypothesis_id FROM new_rows n LOOP
        PERFORM blackboard.proposed_hypothesis(v_row.session_id, v_row.hypothesis_id);
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'evidence.added', n.id,
           jsonb_build_object('agent_id', n.agent_id, 'hypothesis_id', n.hypothesis_id, 'finding_id', n.finding_id,
                              'supports', n.supports, 'weight', n.weight)
    FROM new_rows n;
    FOR v_row IN SELECT n.session_id, array_agg(DISTINCT n.hypothesis_id) AS hypothesis_ids,
                        jsonb_build_object('event', 'evidence.added', 'finding_ids', jsonb_agg(DISTINCT n.finding_id))
                            AS because
                 FROM new_rows n GROUP BY n.session_id LOOP
        PERFORM blackboard.revise_hypotheses(v_row.session_id, v_row.hypothesis_ids, v_row.because);
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.hypothesis_evidence REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_evidence_insert();

CREATE FUNCTION blackboard.history_evidence_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_row record;
BEGIN
    IF EXISTS (SELECT FROM old_rows o LEFT JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
               WHERE n.id IS NULL OR (n.hypothesis_id, n.finding_id, n.created_at)
                                     <> (o.hypothesis_id, o.finding_id, o.created_at)) THEN
        PERFORM blackboard.raise('BB012', 'What a link of evidence connects never changes; retract it and add another.',
                                 '{"noun": "evidence"}');
    END IF;
    SELECT o.id INTO v_row FROM old_rows o JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
    WHERE o.retracted_at IS NOT NULL AND n.retracted_at IS NULL LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB003', 'Evidence that was retracted stays so; add it again.',
                                 jsonb_build_object('noun', 'evidence', 'id', v_row.id, 'status', 'retracted'));
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE WHEN n.retracted_at IS NOT NULL AND o.retracted_at IS NULL THEN 'evidence.retracted'
                ELSE 'evidence.updated' END,
           n.id,
           jsonb_strip_nulls(jsonb_build_object(
               'hypothesis_id', n.hypothesis_id, 'finding_id', n.finding_id,
               'agent_id', CASE WHEN n.agent_id <> o.agent_id THEN n.agent_id END,
               'supports', CASE WHEN n.supports <> o.supports THEN n.supports END,
               'weight', CASE WHEN n.weight <> o.weight THEN n.weight END,
               'reason', CASE WHEN n.reason <> o.reason THEN n.reason END,
               'retracted_at', CASE WHEN n.retracted_at IS DISTINCT FROM o.retracted_at THEN n.retracted_at END))
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.agent_id, n.supports, n.weight, n.reason, n.retracted_at)
          IS DISTINCT FROM (o.agent_id, o.supports, o.weight, o.reason, o.retracted_at);
    FOR v_row IN SELECT n.session_id, array_agg(DISTINCT n.hypothesis_id) AS hypothesis_ids,
                        jsonb_build_object('event', CASE WHEN bool_or(n.retracted_at IS NULL) THEN 'evidence.updated'
                                                         ELSE 'evidence.retracted' END,
                                           'finding_ids', jsonb_agg(DISTINCT n.finding_id)) AS because
                 FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
                 WHERE (n.supports, n.weight, n.retracted_at IS NULL)
                       IS DISTINCT FROM (o.supports, o.weight, o.retracted_at IS NULL)
                 GROUP BY n.session_id LOOP
        PERFORM blackboard.revise_hypotheses(v_row.session_id, v_row.hypothesis_ids, v_row.because);
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.hypothesis_evidence
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_evidence_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.hypothesis_evidence REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('evidence', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.hypothesis_evidence
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.history_assessments() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_row record;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    FOR v_row IN
        SELECT n.session_id, n.hypothesis_id, n.agent_id, n.confidence, n.reason FROM new_rows n
        JOIN blackboard.hypotheses h ON h.session_id = n.session_id AND h.id = n.hypothesis_id
        -- The author's first one came with the proposal, whose event has it.
        WHERE NOT (TG_OP = 'INSERT' AND h.revision = 0 AND n.agent_id = h.agent_id AND n.confidence = h.prior)
        ORDER BY n.session_id, n.hypothesis_id, n.agent_id
    LOOP
        PERFORM 1 FROM blackboard.hypotheses h
        WHERE h.session_id = v_row.session_id AND h.id = v_row.hypothesis_id FOR NO KEY UPDATE;
        PERFORM blackboard.proposed_hypothesis(v_row.session_id, v_row.hypothesis_id);
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        VALUES (v_row.session_id, 'hypothesis.assessed', v_row.hypothesis_id,
                jsonb_build_object('assessment', jsonb_build_object('agent_id', v_row.agent_id,
                                                                    'confidence', v_row.confidence,
                                                                    'reason', v_row.reason)));
        PERFORM blackboard.revise_hypotheses(v_row.session_id, ARRAY[v_row.hypothesis_id],
            jsonb_build_object('event', 'hypothesis.assessed', 'agent_id', v_row.agent_id));
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.hypothesis_assessments REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_assessments();
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.hypothesis_assessments REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_assessments();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.hypothesis_assessments REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('assessment', 'hypothesis_id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.hypothesis_assessments
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.revise_after_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_row record;
BEGIN
    FOR v_row IN SELECT o.session_id, array_agg(DISTINCT o.hypothesis_id) AS hypothesis_ids
                 FROM old_rows o GROUP BY o.session_id LOOP
        PERFORM blackboard.revise_hypotheses(v_row.session_id, v_row.hypothesis_ids,
                                             jsonb_build_object('event', TG_ARGV[0]));
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER revise AFTER DELETE ON blackboard.hypothesis_evidence REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.revise_after_delete('evidence.deleted');
CREATE TRIGGER revise AFTER DELETE ON blackboard.hypothesis_assessments REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.revise_after_delete('assessment.deleted');

-- ------------------------------------------------------------------------------------------------------- verbs

-- What was made by an earlier call with this id: the finding, or the one that the call corroborated; NULL if nothing.
CREATE FUNCTION blackboard.reported_finding(
    p_session_id uuid, p_id uuid, p_agent_id text, p_type text, p_content jsonb, p_category text,
    p_confidence double precision, p_evidence jsonb, p_tags text[], p_provenance jsonb, p_derived_from uuid[]
) RETURNS blackboard.findings
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_finding blackboard.findings;
    v_corroboration blackboard.corroborations;
    v_same boolean;
BEGIN
    SELECT * INTO v_finding FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF FOUND THEN
        v_same := (v_finding.agent_id, v_finding.category, v_finding.type, v_finding.content, v_finding.confidence,
                   v_finding.evidence, v_finding.tags, v_finding.provenance, v_finding.derived_from)
                  IS NOT DISTINCT FROM
                  (p_agent_id, p_category, p_type, p_content, p_confidence, p_evidence, p_tags, p_provenance,
                   p_derived_from);
    ELSE
        SELECT * INTO v_corroboration FROM blackboard.corroborations c
        WHERE c.session_id = p_session_id AND c.report_id = p_id;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        SELECT * INTO v_finding FROM blackboard.findings f
        WHERE f.session_id = p_session_id AND f.id = v_corroboration.finding_id;
        v_same := (v_corroboration.agent_id, v_corroboration.confidence, v_corroboration.evidence,
                   v_finding.fingerprint)
                  IS NOT DISTINCT FROM
                  (p_agent_id, p_confidence, p_evidence,
                   blackboard.finding_fingerprint(p_category, p_type, p_content));
    END IF;
    IF NOT v_same THEN
        PERFORM blackboard.raise('BB004', 'A finding with this id was reported with other content; use a new id.',
                                 jsonb_build_object('noun', 'finding', 'id', p_id));
    END IF;
    RETURN v_finding;
END
$$;

-- Records a finding. Where the same thing (category, type, normalised content) stands already, that one is returned:
-- with one corroboration more if another agent reports it, unchanged otherwise. The id tells which happened.
CREATE FUNCTION blackboard.report_finding(
    p_session_id uuid, p_id uuid, p_agent_id text, p_type text, p_content jsonb,
    p_category text DEFAULT 'observation', p_confidence double precision DEFAULT NULL, p_evidence jsonb DEFAULT '[]',
    p_tags text[] DEFAULT '{}', p_provenance jsonb DEFAULT '{}', p_derived_from uuid[] DEFAULT '{}'
) RETURNS blackboard.findings
LANGUAGE plpgsql
AS $$
DECLARE
    v_finding blackboard.findings;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    p_id := coalesce(p_id, gen_random_uuid());
    LOOP
        v_finding := blackboard.reported_finding(p_session_id, p_id, p_agent_id, p_type, p_content, p_category,
                                                 p_confidence, p_evidence, p_tags, p_provenance, p_derived_from);
        IF v_finding.id IS NOT NULL THEN
            RETURN v_finding;
        END IF;
        PERFORM blackboard.open_session(p_session_id);
        -- Waits for whoever reports the same at this moment.
        INSERT INTO blackboard.findings (session_id, id, agent_id, category, type, content, confidence, evidence, tags,
                                         provenance, derived_from)
        VALUES (p_session_id, p_id, p_agent_id, p_category, p_type, p_content, p_confidence, p_evidence, p_tags,
                p_provenance, p_derived_from)
        ON CONFLICT DO NOTHING
        RETURNING * INTO v_finding;
        IF FOUND THEN
            RETURN v_finding;
        END IF;
        -- Held until the corroboration stands, lest the finding be retracted in between.
        SELECT * INTO v_finding FROM blackboard.findings f
        WHERE f.session_id = p_session_id AND f.status = 'active'
          AND f.fingerprint = blackboard.finding_fingerprint(p_category, p_type, p_content)
        FOR NO KEY UPDATE;
        IF FOUND THEN
            IF v_finding.agent_id <> p_agent_id THEN
                INSERT INTO blackboard.corroborations (session_id, finding_id, agent_id, report_id, confidence,
                                                       evidence)
                VALUES (p_session_id, v_finding.id, p_agent_id, p_id, p_confidence, p_evidence)
                ON CONFLICT DO NOTHING;
                SELECT * INTO v_finding FROM blackboard.findings f
                WHERE f.session_id = p_session_id AND f.id = v_finding.id;
            END IF;
            RETURN v_finding;
        END IF;
        -- Hidden since, or the conflict was about the id: look again.
    END LOOP;
END
$$;

-- Replaces a finding by another one, in one transaction. Its author may, and whoever may overrule.
CREATE FUNCTION blackboard.supersede_finding(
    p_session_id uuid, p_old_id uuid, p_id uuid, p_actor text, p_content jsonb, p_type text DEFAULT NULL,
    p_category text DEFAULT NULL, p_confidence double precision DEFAULT NULL, p_evidence jsonb DEFAULT '[]',
    p_tags text[] DEFAULT '{}', p_provenance jsonb DEFAULT '{}', p_derived_from uuid[] DEFAULT '{}',
    p_reason text DEFAULT ''
) RETURNS blackboard.findings
LANGUAGE plpgsql
AS $$
DECLARE
    v_old blackboard.findings;
    v_new blackboard.findings;
    v_actor text;
    v_fingerprint bytea;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    v_actor := blackboard.current_actor();
    PERFORM blackboard.open_session(p_session_id);
    p_id := coalesce(p_id, gen_random_uuid());
    SELECT * INTO v_old FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_old_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_finding(p_old_id);
    END IF;
    p_type := coalesce(p_type, v_old.type);
    p_category := coalesce(p_category, v_old.category);
    v_fingerprint := blackboard.finding_fingerprint(p_category, p_type, p_content);
    -- With the one that says the new content already, and those that the old one contradicts: all by id.
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id
      AND f.id = ANY (array(SELECT o.id FROM blackboard.findings o
                            WHERE o.session_id = p_session_id AND o.status = 'active'
                              AND o.fingerprint = v_fingerprint
                            UNION ALL
                            SELECT l.finding_id FROM blackboard.finding_links l
                            WHERE l.session_id = p_session_id AND l.other_id = p_old_id) || p_old_id)
    ORDER BY f.id FOR NO KEY UPDATE;
    SELECT * INTO v_old FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_old_id;
    v_new := blackboard.reported_finding(p_session_id, p_id, v_actor, p_type, p_content, p_category, p_confidence,
                                         p_evidence, p_tags, p_provenance, p_derived_from);
    IF v_old.status <> 'active' THEN
        SELECT * INTO v_new FROM blackboard.findings f
        WHERE f.session_id = p_session_id AND f.id = v_old.superseded_by AND f.fingerprint = v_fingerprint;
        IF FOUND THEN
            RETURN v_new;
        END IF;
        PERFORM blackboard.raise('BB003', format('This finding is %s already; supersede the one that replaced it.',
                                                 v_old.status),
                                 jsonb_build_object('noun', 'finding', 'id', p_old_id, 'status', v_old.status,
                                                    'superseded_by', v_old.superseded_by));
    END IF;
    IF v_new.id IS NOT NULL THEN
        PERFORM blackboard.raise('BB004', 'This id was used for another report; use a new id.',
                                 jsonb_build_object('noun', 'finding', 'id', p_id));
    END IF;
    IF v_actor <> v_old.agent_id AND NOT blackboard.may_overrule(p_session_id, v_actor) THEN
        PERFORM blackboard.raise('BB005',
            format('Only %s, a controller or a human may supersede this finding; report another one and contradict it.',
                   v_old.agent_id),
            jsonb_build_object('noun', 'finding', 'id', p_old_id, 'agent_id', v_old.agent_id));
    END IF;
    IF v_fingerprint = v_old.fingerprint THEN
        -- One statement, so that the old one makes room for the new one and both ends of the reference exist.
        WITH old AS (
            UPDATE blackboard.findings SET status = 'superseded', superseded_by = p_id, reason = coalesce(p_reason, '')
            WHERE session_id = p_session_id AND id = p_old_id
            RETURNING session_id
        )
        INSERT INTO blackboard.findings (session_id, id, agent_id, category, type, content, confidence, evidence, tags,
                                         provenance, derived_from)
        SELECT old.session_id, p_id, v_actor, p_category, p_type, p_content, p_confidence, p_evidence, p_tags,
               p_provenance, p_derived_from
        FROM old
        RETURNING * INTO v_new;
    ELSE
        v_new := blackboard.report_finding(p_session_id, p_id, v_actor, p_type, p_content, p_category, p_confidence,
                                           p_evidence, p_tags, p_provenance, p_derived_from);
        UPDATE blackboard.findings
        SET status = 'superseded', superseded_by = v_new.id, reason = coalesce(p_reason, '')
        WHERE session_id = p_session_id AND id = p_old_id;
    END IF;
    RETURN v_new;
END
$$;

-- Takes a finding back: it is hidden from default reads and no longer counts for hypotheses.
CREATE FUNCTION blackboard.retract_finding(p_session_id uuid, p_id uuid, p_reason text, p_actor text)
RETURNS blackboard.findings
LANGUAGE plpgsql
AS $$
DECLARE
    v_finding blackboard.findings;
    v_actor text;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    v_actor := blackboard.current_actor();
    PERFORM blackboard.open_session(p_session_id);
    -- With those that it contradicts, which its trigger is going to touch: all by id.
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id
      AND f.id = ANY (array(SELECT l.finding_id FROM blackboard.finding_links l
                            WHERE l.session_id = p_session_id AND l.other_id = p_id) || p_id)
    ORDER BY f.id FOR NO KEY UPDATE;
    SELECT * INTO v_finding FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_finding(p_id);
    END IF;
    IF v_actor <> v_finding.agent_id AND NOT blackboard.may_overrule(p_session_id, v_actor) THEN
        PERFORM blackboard.raise('BB005',
            format('Only %s, a controller or a human may retract this finding; contradict it instead.',
                   v_finding.agent_id),
            jsonb_build_object('noun', 'finding', 'id', p_id, 'agent_id', v_finding.agent_id));
    END IF;
    IF v_finding.status <> 'retracted' THEN
        UPDATE blackboard.findings SET status = 'retracted', reason = coalesce(p_reason, '')
        WHERE session_id = p_session_id AND id = p_id
        RETURNING * INTO v_finding;
    END IF;
    RETURN v_finding;
END
$$;

-- Records that the finding p_by_id contradicts p_id; while p_by_id is active, p_id counts half for hypotheses.
CREATE FUNCTION blackboard.contradict_finding(
    p_session_id uuid, p_id uuid, p_by_id uuid, p_reason text, p_actor text
) RETURNS blackboard.finding_links
LANGUAGE plpgsql
AS $$
DECLARE
    v_link blackboard.finding_links;
    v_id uuid;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    -- The check on a CHECK's behalf: the locks and the look below need two different findings.
    IF p_id = p_by_id THEN
        PERFORM blackboard.raise('BB002', 'A finding cannot contradict itself; name another one.', '{"field": "by"}');
    END IF;
    SELECT * INTO v_link FROM blackboard.finding_links l
    WHERE l.session_id = p_session_id AND l.finding_id = p_id AND l.other_id = p_by_id AND l.kind = 'contradicts';
    IF FOUND THEN
        RETURN v_link;
    END IF;
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.id IN (p_id, p_by_id) ORDER BY f.id FOR NO KEY UPDATE;
    FOREACH v_id IN ARRAY ARRAY[p_id, p_by_id] LOOP
        PERFORM blackboard.active_finding(p_session_id, v_id);
    END LOOP;
    INSERT INTO blackboard.finding_links (session_id, finding_id, other_id, kind, agent_id, reason)
    VALUES (p_session_id, p_id, p_by_id, 'contradicts', blackboard.current_actor(), coalesce(p_reason, ''))
    ON CONFLICT ON CONSTRAINT finding_links_once DO NOTHING
    RETURNING * INTO v_link;
    IF NOT FOUND THEN
        SELECT * INTO v_link FROM blackboard.finding_links l
        WHERE l.session_id = p_session_id AND l.finding_id = p_id AND l.other_id = p_by_id AND l.kind = 'contradicts';
    END IF;
    RETURN v_link;
END
$$;

-- The findings that match, newest first. The plan depends on which filters are given, hence always a custom one.
CREATE FUNCTION blackboard.list_findings(
    p_session_id uuid, p_category text, p_type text, p_agent_id text, p_tag text, p_min_confidence double precision,
    p_min_trust double precision, p_since timestamptz, p_before_at timestamptz, p_before_id uuid, p_limit integer
) RETURNS SETOF blackboard.findings
LANGUAGE plpgsql STABLE SET plan_cache_mode = 'force_custom_plan'
AS $$
BEGIN
    RETURN QUERY
    SELECT f.* FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.status = 'active'
      AND (p_category IS NULL OR f.category = p_category)
      AND (p_category IS NULL OR p_category = 'observation' OR f.category <> 'observation')
      AND (p_type IS NULL OR f.type = p_type)
      AND (p_agent_id IS NULL OR f.agent_id = p_agent_id)
      AND (p_tag IS NULL OR (f.tags @> ARRAY[p_tag] AND f.tags <> '{}'))
      AND (p_min_confidence IS NULL OR f.confidence >= p_min_confidence)
      AND (p_min_trust IS NULL OR f.trust >= p_min_trust)
      AND (p_since IS NULL OR f.created_at >= p_since)
      AND (p_before_at IS NULL OR (f.created_at <= p_before_at
                                   AND (f.created_at < p_before_at OR f.id > p_before_id)))
    ORDER BY f.created_at DESC, f.id
    LIMIT p_limit;
END
$$;

-- The same with what was superseded or retracted.
CREATE FUNCTION blackboard.list_all_findings(
    p_session_id uuid, p_category text, p_type text, p_agent_id text, p_tag text, p_min_confidence double precision,
    p_min_trust double precision, p_since timestamptz, p_before_at timestamptz, p_before_id uuid, p_limit integer
) RETURNS SETOF blackboard.findings
LANGUAGE plpgsql STABLE SET plan_cache_mode = 'force_custom_plan'
AS $$
BEGIN
    RETURN QUERY
    SELECT u.* FROM (
        SELECT a.* FROM blackboard.list_findings(p_session_id, p_category, p_type, p_agent_id, p_tag, p_min_confidence,
                                                 p_min_trust, p_since, p_before_at, p_before_id, p_limit) a
        UNION ALL
        (SELECT f.* FROM blackboard.findings f
         WHERE f.session_id = p_session_id AND f.status <> 'active'
           AND (p_category IS NULL OR f.category = p_category)
           AND (p_type IS NULL OR f.type = p_type)
           AND (p_agent_id IS NULL OR f.agent_id = p_agent_id)
           AND (p_tag IS NULL OR f.tags @> ARRAY[p_tag])
           AND (p_min_confidence IS NULL OR f.confidence >= p_min_confidence)
           AND (p_min_trust IS NULL OR f.trust >= p_min_trust)
           AND (p_since IS NULL OR f.created_at >= p_since)
           AND (p_before_at IS NULL OR (f.created_at <= p_before_at
                                        AND (f.created_at < p_before_at OR f.id > p_before_id)))
         ORDER BY f.created_at DESC, f.id
         LIMIT p_limit)) u
    ORDER BY u.created_at DESC, u.id
    LIMIT p_limit;
END
$$;

CREATE FUNCTION blackboard.propose_hypothesis(
    p_session_id uuid, p_id uuid, p_agent_id text, p_statement text, p_confidence double precision DEFAULT 0.5
) RETURNS blackboard.hypotheses
LANGUAGE plpgsql
AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    p_id := coalesce(p_id, gen_random_uuid());
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.open_session(p_session_id);
        INSERT INTO blackboard.hypotheses (session_id, id, agent_id, statement, prior)
        VALUES (p_session_id, p_id, p_agent_id, p_statement, p_confidence)
        ON CONFLICT (session_id, id) DO NOTHING
        RETURNING * INTO v_hypothesis;
        IF FOUND THEN
            RETURN v_hypothesis;
        END IF;
        SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    END IF;
    IF (v_hypothesis.agent_id, v_hypothesis.statement, v_hypothesis.prior)
       IS DISTINCT FROM (p_agent_id, p_statement, p_confidence) THEN
        PERFORM blackboard.raise('BB004',
            'A hypothesis with this id was proposed with other content; use a new id.',
            jsonb_build_object('noun', 'hypothesis', 'id', p_id));
    END IF;
    RETURN v_hypothesis;
END
$$;

-- An agent's own confidence in a hypothesis, stated or stated anew.
CREATE FUNCTION blackboard.assess_hypothesis(
    p_session_id uuid, p_id uuid, p_agent_id text, p_confidence double precision, p_reason text, p_key text
) RETURNS blackboard.hypotheses
LANGUAGE plpgsql
AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM blackboard.open_session(p_session_id);
    IF blackboard.first_time(p_session_id, p_key, 'assess_hypothesis',
                             jsonb_build_array(p_id, p_agent_id, p_confidence, p_reason)) THEN
        PERFORM 1 FROM blackboard.hypotheses h
        WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
        PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
        INSERT INTO blackboard.hypothesis_assessments AS a (session_id, hypothesis_id, agent_id, confidence, reason)
        VALUES (p_session_id, p_id, p_agent_id, p_confidence, coalesce(p_reason, ''))
        ON CONFLICT (session_id, hypothesis_id, agent_id) DO UPDATE
            SET confidence = excluded.confidence, reason = excluded.reason, at = blackboard.now()
            WHERE (a.confidence, a.reason) IS DISTINCT FROM (excluded.confidence, excluded.reason);
    END IF;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.add_evidence(
    p_session_id uuid, p_id uuid, p_finding_id uuid, p_supports boolean, p_weight double precision, p_actor text
) RETURNS blackboard.hypotheses
LANGUAGE plpgsql
AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
    v_link blackboard.hypothesis_evidence;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.id = p_finding_id FOR NO KEY UPDATE;
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    SELECT * INTO v_link FROM blackboard.hypothesis_evidence e
    WHERE e.session_id = p_session_id AND e.hypothesis_id = p_id AND e.finding_id = p_finding_id
      AND e.retracted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM blackboard.active_finding(p_session_id, p_finding_id);
        PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
        INSERT INTO blackboard.hypothesis_evidence (session_id, hypothesis_id, finding_id, agent_id, supports, weight)
        VALUES (p_session_id, p_id, p_finding_id, blackboard.current_actor(), p_supports, p_weight);
    ELSIF (v_link.supports, v_link.weight) IS DISTINCT FROM (p_supports, p_weight) THEN
        PERFORM blackboard.raise('BB012',
            'This finding is evidence for that hypothesis already, with another direction or weight; retract it first.',
            jsonb_build_object('noun', 'evidence', 'id', v_link.id, 'supports', v_link.supports,
                               'weight', v_link.weight));
    END IF;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.retract_evidence(
    p_session_id uuid, p_id uuid, p_finding_id uuid, p_reason text, p_actor text
) RETURNS blackboard.hypotheses
LANGUAGE plpgsql
AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    END IF;
    UPDATE blackboard.hypothesis_evidence
    SET retracted_at = blackboard.now(), reason = coalesce(p_reason, '')
    WHERE session_id = p_session_id AND hypothesis_id = p_id AND finding_id = p_finding_id AND retracted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM 1 FROM blackboard.hypothesis_evidence e
        WHERE e.session_id = p_session_id AND e.hypothesis_id = p_id AND e.finding_id = p_finding_id;
        IF NOT FOUND THEN
            PERFORM blackboard.raise('BB001',
                                     format('The finding %s is no evidence for this hypothesis.', p_finding_id),
                                     jsonb_build_object('noun', 'evidence', 'id', p_finding_id));
        END IF;
    END IF;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    RETURN v_hypothesis;
END
$$;

-- The verdict: validated (true) or refuted (false), on evidence, by somebody other than the author.
CREATE FUNCTION blackboard.validate_hypothesis(
    p_session_id uuid, p_id uuid, p_result boolean, p_evidence uuid[], p_reason text, p_actor text
) RETURNS blackboard.hypotheses
LANGUAGE plpgsql
AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
    v_evidence uuid[];
    v_status text := CASE WHEN p_result THEN 'validated' ELSE 'refuted' END;
    v_id uuid;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    SELECT coalesce(array_agg(DISTINCT v.id), '{}') INTO v_evidence FROM unnest(p_evidence) v (id);
    IF p_result IS NULL THEN
        PERFORM blackboard.raise('BB002', 'A verdict is true or false.', '{"field": "result"}');
    END IF;
    IF v_evidence = '{}' THEN
        PERFORM blackboard.raise('BB002', 'A verdict needs evidence: name at least one active finding.',
                                 '{"field": "evidence"}');
    END IF;
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.id = ANY (v_evidence) ORDER BY f.id FOR SHARE;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    END IF;
    IF v_hypothesis.status = v_status THEN
        RETURN v_hypothesis;
    END IF;
    PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
    FOREACH v_id IN ARRAY v_evidence LOOP
        PERFORM blackboard.active_finding(p_session_id, v_id);
    END LOOP;
    UPDATE blackboard.hypotheses
    SET status = v_status, validated_by = blackboard.current_actor(), validated_at = blackboard.now(),
        verdict_evidence = v_evidence, reason = coalesce(p_reason, '')
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_hypothesis;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.withdraw_hypothesis(p_session_id uuid, p_id uuid, p_reason text, p_actor text)
RETURNS blackboard.hypotheses
LANGUAGE plpgsql
AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    END IF;
    IF v_hypothesis.agent_id <> blackboard.current_actor() THEN
        PERFORM blackboard.raise('BB005',
            format('Only its author, %s, may withdraw this hypothesis; refute it instead.', v_hypothesis.agent_id),
            jsonb_build_object('noun', 'hypothesis', 'id', p_id, 'agent_id', v_hypothesis.agent_id));
    END IF;
    IF v_hypothesis.status = 'withdrawn' THEN
        RETURN v_hypothesis;
    END IF;
    PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
    UPDATE blackboard.hypotheses SET status = 'withdrawn', reason = coalesce(p_reason, '')
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_hypothesis;
    RETURN v_hypothesis;
END
$$;
