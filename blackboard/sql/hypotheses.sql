-- name: propose_hypothesis
-- Proposes a hypothesis; the same id with the same content returns it again. Locks nothing.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.propose_hypothesis(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:description AS text),
    CAST(:confidence AS double precision));

-- name: assess_hypothesis
-- States an agent's own confidence. Locks: the hypothesis.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.assess_hypothesis(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:confidence AS double precision),
    CAST(:reason AS text), CAST(:key AS text));

-- name: add_evidence
-- Links a finding to a hypothesis and revises that. Locks: the finding, then the hypothesis.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.add_evidence(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:finding_id AS uuid), CAST(:supports AS boolean),
    CAST(:weight AS double precision), CAST(:actor AS text));

-- name: retract_evidence
-- Takes a finding off a hypothesis and revises that. Locks: the hypothesis.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.retract_evidence(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:finding_id AS uuid), CAST(:reason AS text),
    CAST(:actor AS text));

-- name: validate_hypothesis
-- Gives the verdict. Locks: the findings by id, then the hypothesis.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.validate_hypothesis(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:result AS boolean), CAST(:evidence AS uuid[]),
    CAST(:reason AS text), CAST(:actor AS text));

-- name: withdraw_hypothesis
-- Its author gives it up. Locks: the hypothesis.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.withdraw_hypothesis(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:reason AS text), CAST(:actor AS text));

-- name: get_hypothesis
-- One hypothesis. Index: hypotheses_pkey.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.hypotheses
WHERE session_id = CAST(:session_id AS uuid) AND id = CAST(:id AS uuid);

-- name: list_hypotheses
-- Most confident first. Index: hypotheses_strongest.
SELECT id, session_id, agent_id, statement, status, prior, confidence, revision, validated_by, validated_at,
       verdict_evidence, reason, created_at, updated_at
FROM blackboard.hypotheses
WHERE session_id = CAST(:session_id AS uuid)
  AND (CAST(:status AS text) IS NULL OR status = CAST(:status AS text))
  AND confidence >= coalesce(CAST(:min_confidence AS double precision), 0)
ORDER BY confidence DESC, id
LIMIT CAST(:limit AS integer);

-- name: list_evidence
-- The links of a hypothesis in order of time, retracted ones too, with what each adds to the log-odds now.
-- Index: hypothesis_evidence_hypothesis.
SELECT e.id, e.session_id, e.hypothesis_id, e.finding_id, e.agent_id, e.supports, e.weight, e.reason, e.created_at,
       e.retracted_at,
       CASE WHEN e.retracted_at IS NULL AND f.status = 'active'
            THEN (CASE WHEN e.supports THEN 1 ELSE -1 END)
                 * blackboard.evidence_log_odds(f.confidence, e.weight, f.trust,
                                                blackboard.is_contradicted(f.session_id, f.id))
            ELSE 0 END AS log_odds,
       CAST(jsonb_build_object(
           'id', f.id, 'session_id', f.session_id, 'agent_id', f.agent_id, 'category', f.category, 'type', f.type,
           'content', f.content, 'confidence', f.confidence, 'evidence', f.evidence, 'tags', f.tags,
           'provenance', f.provenance, 'derived_from', f.derived_from, 'trust', f.trust, 'status', f.status,
           'superseded_by', f.superseded_by, 'reason', f.reason, 'corroborations', f.corroborations,
           'contradicted', blackboard.is_contradicted(f.session_id, f.id), 'created_at', f.created_at,
           'updated_at', f.updated_at) AS text) AS finding
FROM blackboard.hypothesis_evidence e
JOIN blackboard.findings f ON f.session_id = e.session_id AND f.id = e.finding_id
WHERE e.session_id = CAST(:session_id AS uuid) AND e.hypothesis_id = CAST(:id AS uuid)
ORDER BY e.created_at, e.id;

-- name: list_assessments
-- What each agent holds the hypothesis to be worth, latest first. Index: hypothesis_assessments_pkey.
SELECT session_id, hypothesis_id, agent_id, confidence, reason, at
FROM blackboard.hypothesis_assessments
WHERE session_id = CAST(:session_id AS uuid) AND hypothesis_id = CAST(:id AS uuid)
ORDER BY at DESC, agent_id;
