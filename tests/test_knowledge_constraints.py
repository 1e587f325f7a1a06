"""What raw SQL cannot do to findings and hypotheses: every constraint, every refusal of a trigger."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from blackboard.sqlstates import CONSTRAINTS

FINDING = "INSERT INTO blackboard.findings (session_id, agent_id, type, content{0}) VALUES ($1, 'a', 't', '0'{1})"
HYPOTHESIS = "INSERT INTO blackboard.hypotheses (session_id, agent_id, statement{0}) VALUES ($1, 'a', 's'{1})"
SET_FINDING = "UPDATE blackboard.findings SET {0} WHERE session_id = $1"
SET_HYPOTHESIS = "UPDATE blackboard.hypotheses SET {0} WHERE session_id = $1"
CORROBORATE = (
    "INSERT INTO blackboard.corroborations (session_id, finding_id, agent_id{0})"
    " SELECT session_id, id, 'b'{1} FROM blackboard.findings WHERE session_id = $1"
)
LINK = (
    "INSERT INTO blackboard.finding_links (session_id, finding_id, other_id{0})"
    " SELECT f.session_id, f.id, o.id{1} FROM blackboard.findings f, blackboard.findings o"
    " WHERE f.session_id = $1 AND o.session_id = $1 AND f.content = '1' AND o.content = '2'"
)
EVIDENCE = (
    "INSERT INTO blackboard.hypothesis_evidence (session_id, hypothesis_id, finding_id{0})"
    " SELECT h.session_id, h.id, f.id{1} FROM blackboard.hypotheses h, blackboard.findings f"
    " WHERE h.session_id = $1 AND f.session_id = $1 AND f.content = '1'"
)
ASSESS = (
    "INSERT INTO blackboard.hypothesis_assessments (session_id, hypothesis_id, agent_id, confidence{0})"
    " SELECT session_id, id, 'b', 0.5{1} FROM blackboard.hypotheses WHERE session_id = $1"
)
BIG = "to_jsonb(array(SELECT gen_random_uuid() FROM generate_series(1, 40000)))"
LONG = "repeat('x', 4001)"
MANY = "array_fill(gen_random_uuid(), ARRAY[1001])"
NIL = "'00000000-0000-0000-0000-000000000000'"


def plus(statement: str, column: str, value: str) -> str:
    return statement.format(f", {column}", f", {value}")


# Each constraint with a statement that breaks it, on a session with the findings 1 and 2 and one hypothesis.
BROKEN: dict[str, str] = {
    "corroborations_agent_id_length": CORROBORATE.format("", "").replace("'b'", "''"),
    "corroborations_confidence_range": plus(CORROBORATE, "confidence", "'NaN'::double precision"),
    "corroborations_evidence_items": plus(CORROBORATE, "evidence", """'[{"source": 1}]'::jsonb"""),
    "corroborations_evidence_size": plus(
        CORROBORATE, "evidence", f"jsonb_build_array(jsonb_build_object('source', 's', 'result', {BIG}))"
    ),
    "corroborations_finding_known": "INSERT INTO blackboard.corroborations (session_id, finding_id, agent_id)"
    f" VALUES ($1, {NIL}, 'b')",
    "corroborations_pkey": CORROBORATE.format("", "") + " UNION ALL SELECT session_id, id, 'b'"
    " FROM blackboard.findings WHERE session_id = $1",
    "corroborations_report_once": plus(CORROBORATE, "report_id", f"{NIL}::uuid"),
    "finding_links_agent_id_length": plus(LINK, "agent_id", "''"),
    "finding_links_finding_known": f"INSERT INTO blackboard.finding_links (session_id, finding_id, other_id)"
    f" SELECT session_id, {NIL}::uuid, id FROM blackboard.findings WHERE session_id = $1 LIMIT 1",
    "finding_links_kind_known": plus(LINK, "kind", "'likes'"),
    "finding_links_not_itself": LINK.format("", "").replace("'2'", "'1'"),
    "finding_links_once": LINK.format("", "") + " UNION ALL " + LINK.format("", "").partition(")")[2],
    "finding_links_other_known": f"INSERT INTO blackboard.finding_links (session_id, finding_id, other_id)"
    f" SELECT session_id, id, {NIL}::uuid FROM blackboard.findings WHERE session_id = $1 LIMIT 1",
    "finding_links_pkey": plus(LINK, "id", f"{NIL}::uuid").replace("'2'", "ANY (ARRAY['2', '3']::jsonb[])"),
    "finding_links_reason_length": plus(LINK, "reason", LONG),
    "findings_active_once": FINDING.format("", "").replace("'0'", "'1'"),
    "findings_agent_id_length": FINDING.format("", "").replace("'a'", "''"),
    "findings_category_known": plus(FINDING, "category", "'guess'"),
    "findings_confidence_range": plus(FINDING, "confidence", "'NaN'"),
    "findings_content_size": FINDING.format("", "").replace("'0'", BIG),
    "findings_corroborations_range": SET_FINDING.format("corroborations = -1"),
    "findings_derived_from_few": plus(FINDING, "derived_from", MANY),
    "findings_evidence_items": plus(FINDING, "evidence", """'[{"source": "s", "found": 1}]'"""),
    "findings_evidence_size": plus(
        FINDING, "evidence", f"jsonb_build_array(jsonb_build_object('source', 's', 'result', {BIG}))"
    ),
    "findings_pkey": plus(FINDING, "id", f"{NIL}").replace("VALUES", "VALUES ($1, 'a', 't', '5', " + NIL + "),"),
    "findings_provenance_object": plus(FINDING, "provenance", "'[]'"),
    "findings_provenance_size": plus(FINDING, "provenance", f"jsonb_build_object('x', {BIG})"),
    "findings_reason_length": plus(FINDING, "reason", LONG),
    "findings_session_known": FINDING.format("", "").replace("$1", "gen_random_uuid()"),
    "findings_status_known": SET_FINDING.format("status = 'gone'"),
    "findings_superseded_by_another": SET_FINDING.format("status = 'superseded', superseded_by = id"),
    "findings_superseded_by_iff_superseded": SET_FINDING.format("status = 'superseded'"),
    "findings_superseded_by_known": SET_FINDING.format(f"status = 'superseded', superseded_by = {NIL}"),
    "findings_tags_few": plus(FINDING, "tags", "ARRAY[NULL]::text[]"),
    "findings_trust_range": plus(FINDING, "trust", "-0.1"),
    "findings_type_length": FINDING.format("", "").replace("'t'", "''"),
    "hypotheses_agent_id_length": HYPOTHESIS.format("", "").replace("'a'", "''"),
    "hypotheses_confidence_range": SET_HYPOTHESIS.format("confidence = 2"),
    "hypotheses_pkey": plus(HYPOTHESIS, "id", NIL).replace("VALUES", "VALUES ($1, 'a', 't', " + NIL + "),"),
    "hypotheses_prior_range": plus(HYPOTHESIS, "prior", "'NaN'"),
    "hypotheses_reason_length": plus(HYPOTHESIS, "reason", LONG),
    "hypotheses_revision_range": SET_HYPOTHESIS.format("revision = -1"),
    "hypotheses_session_known": HYPOTHESIS.format("", "").replace("$1", "gen_random_uuid()"),
    "hypotheses_statement_length": HYPOTHESIS.format("", "").replace("'s'", "repeat('x', 2001)"),
    "hypotheses_status_known": SET_HYPOTHESIS.format("status = 'true'"),
    "hypotheses_validated_by_length": SET_HYPOTHESIS.format(
        f"status = 'refuted', validated_by = '', validated_at = now(), verdict_evidence = ARRAY[{NIL}]::uuid[]"
    ),
    "hypotheses_verdict_evidence_few": SET_HYPOTHESIS.format(
        f"status = 'refuted', validated_by = 'b', validated_at = now(), verdict_evidence = {MANY}"
    ),
    "hypotheses_verdict_iff_decided": SET_HYPOTHESIS.format("validated_by = 'b'"),
    "hypotheses_verdict_needs_evidence": SET_HYPOTHESIS.format(
        "status = 'validated', validated_by = 'b', validated_at = now()"
    ),
    "hypothesis_assessments_agent_id_length": ASSESS.format("", "").replace("'b'", "''"),
    "hypothesis_assessments_confidence_range": ASSESS.format("", "").replace("0.5", "1.5"),
    "hypothesis_assessments_hypothesis_known": "INSERT INTO blackboard.hypothesis_assessments"
    f" (session_id, hypothesis_id, agent_id, confidence) VALUES ($1, {NIL}, 'b', 0.5)",
    "hypothesis_assessments_pkey": ASSESS.format("", "").replace("'b'", "'a'"),
    "hypothesis_assessments_reason_length": plus(ASSESS, "reason", LONG),
    "hypothesis_evidence_agent_id_length": plus(EVIDENCE, "agent_id", "''"),
    "hypothesis_evidence_finding_known": "INSERT INTO blackboard.hypothesis_evidence"
    f" (session_id, hypothesis_id, finding_id) SELECT session_id, id, {NIL}::uuid"
    " FROM blackboard.hypotheses WHERE session_id = $1",
    "hypothesis_evidence_hypothesis_known": "INSERT INTO blackboard.hypothesis_evidence"
    f" (session_id, hypothesis_id, finding_id) SELECT session_id, {NIL}::uuid, id"
    " FROM blackboard.findings WHERE session_id = $1 LIMIT 1",
    "hypothesis_evidence_live_once": EVIDENCE.format("", "")
    + " UNION ALL "
    + EVIDENCE.format("", "").partition(")")[2],
    "hypothesis_evidence_pkey": plus(EVIDENCE, "id", f"{NIL}::uuid").replace("= '1'", "<> '9'"),
    "hypothesis_evidence_reason_length": plus(EVIDENCE, "reason", LONG),
    "hypothesis_evidence_weight_range": plus(EVIDENCE, "weight", "0"),
}
# Triggers keep these columns before the CHECK can speak; it still guards what is restored without triggers.
BEHIND_TRIGGERS = {"hypotheses_confidence_range", "hypotheses_revision_range"}


@pytest.fixture
async def raw(session: Any, db: Any) -> Any:
    """The session's id; there are findings 1, 2 and 3 in it and one hypothesis, written with plain SQL."""
    for content in "123":
        await db.execute(FINDING.format("", "").replace("'0'", f"'{content}'"), session.id)
    await db.execute(HYPOTHESIS.format("", ""), session.id)
    return session.id


@pytest.mark.parametrize("name", sorted(BROKEN))
async def test_each_constraint_holds_and_is_explained(raw: Any, db: Any, name: str) -> None:
    if name in BEHIND_TRIGGERS:
        await db.execute("SET session_replication_role = replica")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
        await db.execute(BROKEN[name], *([raw] if "$1" in BROKEN[name] else []))
    assert caught.value.constraint_name == name
    assert name in CONSTRAINTS


async def test_no_named_constraint_is_forgotten(db: Any) -> None:
    rows = await db.fetch(
        """SELECT conname AS name FROM pg_constraint
           WHERE connamespace = 'blackboard'::regnamespace AND contype <> 'n'
             AND conrelid::regclass::text ~ '^blackboard.(finding|corroboration|hypothes)'
           UNION SELECT i.indexrelid::regclass::text FROM pg_index i
           WHERE i.indisunique AND i.indpred IS NOT NULL
             AND i.indrelid::regclass::text ~ '^blackboard.(finding|corroboration|hypothes)'"""
    )
    names = {row["name"].removeprefix("blackboard.") for row in rows}
    assert names == BROKEN.keys()


# What triggers refuse, with the SQLSTATE of the refusal; each on a fresh session as above, after what must be true.
DECIDE = "status = 'validated', validated_by = '{0}', validated_at = now(), verdict_evidence = {1}"
TURN = (
    "UPDATE blackboard.hypothesis_evidence e SET finding_id = f.id FROM blackboard.findings f"
    " WHERE e.session_id = $1 AND f.session_id = $1 AND f.content = '2'"
)
ONE = "array(SELECT id FROM blackboard.findings WHERE session_id = $1 AND content = '1')"
REFUSED: list[tuple[str, list[str], str, str]] = [
    ("born hidden", [], plus(FINDING, "status", "'retracted'"), "BB003"),
    ("born corroborated", [], plus(FINDING, "corroborations", "3"), "BB005"),
    ("derived from nothing", [], plus(FINDING, "derived_from", f"ARRAY[{NIL}]::uuid[]"), "BB001"),
    (
        "opened again",
        ["UPDATE blackboard.findings SET status = 'retracted' WHERE session_id = $1"],
        SET_FINDING.format("status = 'active'"),
        "BB003",
    ),
    (
        "superseded by a retracted one",
        ["UPDATE blackboard.findings SET status = 'retracted' WHERE session_id = $1 AND content = '2'"],
        SET_FINDING.format(
            "status = 'superseded', superseded_by = (SELECT id FROM blackboard.findings"
            " WHERE session_id = $1 AND content = '2')"
        )
        + " AND content = '1'",
        "BB012",
    ),
    ("lineage rewritten", [], SET_FINDING.format(f"derived_from = ARRAY[{NIL}]::uuid[]"), "BB012"),
    ("id rewritten", [], SET_FINDING.format("id = gen_random_uuid()"), "BB012"),
    ("corroborations counted by hand", [], SET_FINDING.format("corroborations = 5"), "BB005"),
    ("more trust than its agent", [], SET_FINDING.format("trust = 1"), "BB005"),
    ("own finding corroborated", [], CORROBORATE.format("", "").replace("'b'", "'a'"), "BB002"),
    (
        "corroboration rewritten",
        [CORROBORATE.format("", "")],
        "UPDATE blackboard.corroborations SET confidence = 1 WHERE session_id = $1",
        "BB005",
    ),
    (
        "link rewritten",
        [LINK.format("", "")],
        "UPDATE blackboard.finding_links SET reason = 'x' WHERE session_id = $1",
        "BB005",
    ),
    ("born decided", [], plus(HYPOTHESIS, "status", "'withdrawn'"), "BB003"),
    ("confidence set", [], SET_HYPOTHESIS.format("confidence = 0.9"), "BB005"),
    ("statement rewritten", [], SET_HYPOTHESIS.format("statement = 'x'"), "BB012"),
    ("prior rewritten", [], SET_HYPOTHESIS.format("prior = 0.9"), "BB012"),
    ("judged by its author", [], SET_HYPOTHESIS.format(DECIDE.format("a", ONE)), "BB005"),
    ("judged by its author on the way", [], SET_HYPOTHESIS.format("revision = 7, " + DECIDE.format("a", ONE)), "BB005"),
    ("judged on nothing known", [], SET_HYPOTHESIS.format(DECIDE.format("b", f"ARRAY[{NIL}]::uuid[]")), "BB001"),
    (
        "judged on what was retracted",
        ["UPDATE blackboard.findings SET status = 'retracted' WHERE session_id = $1"],
        SET_HYPOTHESIS.format(DECIDE.format("b", ONE)),
        "BB012",
    ),
    (
        "opened again",
        [SET_HYPOTHESIS.format(DECIDE.format("b", ONE))],
        SET_HYPOTHESIS.format("status = 'proposed', validated_by = NULL, validated_at = NULL, verdict_evidence = '{}'"),
        "BB003",
    ),
    (
        "verdict reworded",
        [SET_HYPOTHESIS.format(DECIDE.format("b", ONE))],
        SET_HYPOTHESIS.format("validated_by = 'c'"),
        "BB003",
    ),
    (
        "evidence for what is decided",
        [SET_HYPOTHESIS.format(DECIDE.format("b", ONE))],
        EVIDENCE.format("", ""),
        "BB003",
    ),
    ("assessment of what is decided", [SET_HYPOTHESIS.format(DECIDE.format("b", ONE))], ASSESS.format("", ""), "BB003"),
    (
        "retracted evidence",
        ["UPDATE blackboard.findings SET status = 'retracted' WHERE session_id = $1"],
        EVIDENCE.format("", ""),
        "BB012",
    ),
    (
        "evidence brought back",
        [
            EVIDENCE.format("", ""),
            "UPDATE blackboard.hypothesis_evidence SET retracted_at = now() WHERE session_id = $1",
        ],
        "UPDATE blackboard.hypothesis_evidence SET retracted_at = NULL WHERE session_id = $1",
        "BB003",
    ),
    (
        "evidence turned to another finding",
        [EVIDENCE.format("", "")],
        TURN,
        "BB012",
    ),
    (
        "a closed session",
        ["UPDATE blackboard.sessions SET status = 'failed', closed_at = now() WHERE id = $1"],
        FINDING.format("", ""),
        "BB007",
    ),
    (
        "a closed session's hypotheses",
        ["UPDATE blackboard.sessions SET status = 'failed', closed_at = now() WHERE id = $1"],
        HYPOTHESIS.format("", ""),
        "BB007",
    ),
    *(
        (f"truncate {table}", [], f"TRUNCATE blackboard.{table} CASCADE", "BB005")
        for table in (
            "findings",
            "corroborations",
            "finding_links",
            "hypotheses",
            "hypothesis_evidence",
            "hypothesis_assessments",
        )
    ),
]


@pytest.mark.parametrize(("before", "statement", "code"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
async def test_triggers_refuse(raw: Any, db: Any, before: list[str], statement: str, code: str) -> None:
    for first in before:
        await db.execute(first, raw)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.execute(statement, *([raw] if "$1" in statement else []))
    assert caught.value.sqlstate == code
