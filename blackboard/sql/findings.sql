-- name: report_finding
-- Records a finding, or corroborates the one that says the same; corroborated tells which.
-- Locks: the finding that is corroborated. Index: findings_pkey, findings_active_once.
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at, id <> CAST(:id AS uuid) AS corroborated
FROM blackboard.report_finding(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:type AS text),
    CAST(CAST(:content AS text) AS jsonb), CAST(:category AS text), CAST(:confidence AS double precision),
    CAST(CAST(:evidence AS text) AS jsonb), CAST(:tags AS text[]), CAST(CAST(:provenance AS text) AS jsonb),
    CAST(:derived_from AS uuid[]));

-- name: supersede_finding
-- Replaces a finding by a new one and returns that. Locks: the old finding, then hypotheses that rest on it.
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at, id <> CAST(:id AS uuid) AS corroborated
FROM blackboard.supersede_finding(
    CAST(:session_id AS uuid), CAST(:old_id AS uuid), CAST(:id AS uuid), CAST(:actor AS text),
    CAST(CAST(:content AS text) AS jsonb), CAST(:type AS text), CAST(:category AS text),
    CAST(:confidence AS double precision), CAST(CAST(:evidence AS text) AS jsonb), CAST(:tags AS text[]),
    CAST(CAST(:provenance AS text) AS jsonb), CAST(:derived_from AS uuid[]), CAST(:reason AS text));

-- name: retract_finding
-- Takes a finding back. Locks: the finding, then hypotheses that rest on it.
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at
FROM blackboard.retract_finding(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:reason AS text), CAST(:actor AS text));

-- name: contradict_finding
-- Links two findings of which one contradicts the other. Locks: both by id, then hypotheses that rest on the first.
SELECT id, session_id, finding_id, other_id, kind, agent_id, reason, created_at
FROM blackboard.contradict_finding(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:by AS uuid), CAST(:reason AS text), CAST(:actor AS text));

-- name: get_finding
-- One finding, hidden ones too. Index: findings_pkey.
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at
FROM blackboard.findings
WHERE session_id = CAST(:session_id AS uuid) AND id = CAST(:id AS uuid);

-- name: newest_findings
-- The newest active findings, without a filter. Index: findings_newest, never more than the page.
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at
FROM blackboard.findings
WHERE session_id = CAST(:session_id AS uuid) AND status = 'active'
ORDER BY created_at DESC, id
LIMIT CAST(:limit AS integer);

-- name: list_findings
-- The active findings that match, newest first. Index: findings_newest, or that of the rarest filter.
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at
FROM blackboard.list_findings(
    CAST(:session_id AS uuid), CAST(:category AS text), CAST(:type AS text), CAST(:agent_id AS text),
    CAST(:tag AS text), CAST(:min_confidence AS double precision), CAST(:min_trust AS double precision),
    CAST(:since AS timestamptz), CAST(:before_at AS timestamptz), CAST(:before_id AS uuid),
    CAST(:limit AS integer))
ORDER BY created_at DESC, id;

-- name: list_all_findings
-- The same with superseded and retracted ones. Index: findings_newest and findings_hidden, merged.
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at
FROM blackboard.list_all_findings(
    CAST(:session_id AS uuid), CAST(:category AS text), CAST(:type AS text), CAST(:agent_id AS text),
    CAST(:tag AS text), CAST(:min_confidence AS double precision), CAST(:min_trust AS double precision),
    CAST(:since AS timestamptz), CAST(:before_at AS timestamptz), CAST(:before_id AS uuid),
    CAST(:limit AS integer))
ORDER BY created_at DESC, id;

-- name: list_corroborations
-- Who else reported the same, oldest first. Index: corroborations_pkey.
SELECT session_id, finding_id, agent_id, report_id, confidence, CAST(evidence AS text) AS evidence, created_at
FROM blackboard.corroborations
WHERE session_id = CAST(:session_id AS uuid) AND finding_id = CAST(:id AS uuid)
ORDER BY created_at, agent_id;

-- name: list_contradictions
-- What contradicts a finding, oldest first. Index: finding_links_once.
SELECT id, session_id, finding_id, other_id, kind, agent_id, reason, created_at
FROM blackboard.finding_links
WHERE session_id = CAST(:session_id AS uuid) AND finding_id = CAST(:id AS uuid) AND kind = 'contradicts'
ORDER BY created_at, id;

-- name: similar_findings
-- Near duplicates among the newest 500 active findings: Jaccard index of the sets of words, most similar first.
-- Index: findings_newest.
WITH wanted AS (
    SELECT tsvector_to_array(to_tsvector('simple', regexp_replace(
        left(CAST(CAST(CAST(:content AS text) AS jsonb) AS text), 20000), '\\[ntrf]', ' ', 'g'))) AS words
), recent AS (
    SELECT f.*, tsvector_to_array(to_tsvector('simple', regexp_replace(
        left(CAST(f.content AS text), 20000), '\\[ntrf]', ' ', 'g'))) AS words
    FROM blackboard.findings f
    WHERE f.session_id = CAST(:session_id AS uuid) AND f.status = 'active'
    ORDER BY f.created_at DESC, f.id
    LIMIT 500
), scored AS (
    SELECT r.*, CAST(common.count AS double precision)
                / nullif(cardinality(r.words) + cardinality(w.words) - common.count, 0) AS similarity
    FROM recent r, wanted w,
         LATERAL (SELECT count(*) AS count FROM unnest(r.words) word WHERE word = ANY (w.words)) common
    WHERE r.words && w.words
)
SELECT id, session_id, agent_id, category, type, CAST(content AS text) AS content, confidence,
       CAST(evidence AS text) AS evidence, tags, CAST(provenance AS text) AS provenance, derived_from, trust, status,
       superseded_by, reason, corroborations, blackboard.is_contradicted(session_id, id) AS contradicted,
       created_at, updated_at, similarity
FROM scored
ORDER BY similarity DESC, created_at DESC, id
LIMIT CAST(:limit AS integer);

-- name: aggregate_confidence
-- One number for several findings. Index: findings_pkey.
SELECT blackboard.aggregate_confidence(
    CAST(:session_id AS uuid), CAST(:ids AS uuid[]), CAST(:method AS text), CAST(:max_findings AS integer)
) AS confidence;
