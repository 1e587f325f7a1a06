"""What the tools on findings take and answer, and how a finding is shown."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from ..models.findings import Evidence, Finding, FindingCategory
from .fence import NOTICE, Fence, quoted, shown
from .tool import Arguments, IdempotencyKey, Item, JsonArray, MaxTokens, Result

__all__ = [
    "FindingChange",
    "FindingView",
    "GetArguments",
    "GetResult",
    "PostArguments",
    "PostResult",
    "RetractArguments",
    "RetractResult",
    "SimilarItem",
    "clipped_view",
    "finding_block",
    "finding_view",
]

Confidence = Annotated[
    float | None, Field(ge=0, le=1, description="How sure you are that it is true, from 0 to 1.", examples=[0.9])
]
Ids = Annotated[list[UUID], JsonArray, Field(max_length=100)]


class PostArguments(Arguments):
    """What post_finding takes."""

    content: Annotated[
        Any,
        Field(
            description="One fact, in a sentence, or as a JSON object where others will compute with it. Up to 1 MiB: "
            "big things stay where they are, and you post where.",
            examples=["error rate rises from 0.2 % to 5 % at 10:16 UTC, one minute after deployment v1.2.3"],
        ),
    ]
    type: Annotated[
        str, Field(min_length=1, max_length=50, description="What it is about.", examples=["error_rate", "deployment"])
    ] = "note"
    category: Annotated[
        FindingCategory,
        Field(description="observation: you saw it. hypothesis: you suspect it. conclusion: you infer it."),
    ] = FindingCategory.OBSERVATION
    confidence: Confidence = None
    evidence: Annotated[
        list[Evidence],
        JsonArray,
        Field(
            max_length=100,
            description="Where you looked, with which question, and what came back; others check it.",
            examples=[[{"source": "prometheus", "query": "rate(errors[5m])", "result": "0.05"}]],
        ),
    ] = Field(default_factory=list[Evidence])
    tags: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=100)]],
        JsonArray,
        Field(max_length=100, description="Words to find it by."),
    ] = Field(default_factory=list[str])
    derived_from: Annotated[
        Ids, Field(description="Ids of the findings you made it from; it is trusted no more than they are.")
    ] = Field(default_factory=list[UUID])
    supersedes: Annotated[
        UUID | None, Field(description="A finding of yours that this one replaces: it is hidden from now on.")
    ] = None
    contradicts: Annotated[Ids, Field(description="Ids of findings that cannot be true if this one is.")] = Field(
        default_factory=list[UUID]
    )
    reason: Annotated[
        str, Field(max_length=4000, description="Why it supersedes or contradicts those; not needed otherwise.")
    ] = ""
    idempotency_key: IdempotencyKey = None


class SimilarItem(Item):
    """A finding that says something like it; similarity from 0 to 1 by common words."""

    id: str
    author: str
    similarity: float
    summary: str


class PostResult(Result):
    """What post_finding answers: ``corroborated`` says that the same thing stood already, under ``finding_id``."""

    notice: str = NOTICE
    finding_id: str
    corroborated: bool
    corroborations: int
    trust: float
    superseded: str | None
    near_duplicates: tuple[SimilarItem, ...]


class GetArguments(Arguments):
    """What get_findings takes."""

    since: Annotated[
        str | None,
        Field(
            max_length=100_000,
            description="A cursor: only what was reported after it, oldest first, and what was retracted, superseded, "
            "contradicted or corroborated since. Pass the next_cursor of the last call.",
        ),
    ] = None
    ids: Annotated[Ids, Field(description="Exactly these findings, in whatever status; the filters do not apply.")] = (
        Field(default_factory=list[UUID])
    )
    category: Annotated[FindingCategory | None, Field(description="Only this category.")] = None
    type: Annotated[str | None, Field(min_length=1, max_length=50, description="Only this type.")] = None
    agent: Annotated[str | None, Field(min_length=1, max_length=100, description="Only by this agent.")] = None
    tag: Annotated[str | None, Field(min_length=1, max_length=100, description="Only with this tag.")] = None
    min_confidence: Annotated[
        float | None, Field(ge=0, le=1, description="Only findings that their author is at least so sure of.")
    ] = None
    min_trust: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Only findings trusted at least so much; trust is never above that of author and sources.",
        ),
    ] = None
    include_hidden: Annotated[bool, Field(description="Also what was superseded or retracted.")] = False
    limit: Annotated[int, Field(ge=1, le=200, description="At most so many findings.")] = 50
    before: Annotated[
        UUID | None, Field(description="The last finding of the page before, to read the next older page.")
    ] = None
    max_tokens: MaxTokens = 4000


class FindingView(Item):
    """A finding in full. ``cut`` says that content and evidence were shortened to fit."""

    id: str
    author: str
    yours: bool
    category: str
    type: str
    content: Any
    confidence: float | None
    trust: float
    status: str
    superseded_by: str | None
    corroborations: int
    contradicted: bool
    evidence: tuple[Any, ...]
    tags: tuple[str, ...]
    derived_from: tuple[str, ...]
    reported_at: str
    cut: bool = False


class FindingChange(Item):
    """What became of a finding since the cursor."""

    id: str
    change: str
    by: str
    at: str
    details: str


class GetResult(Result):
    """What get_findings answers; ``left_out_at_least`` tells that counting stopped there."""

    notice: str = NOTICE
    findings: tuple[FindingView, ...]
    changes: tuple[FindingChange, ...]
    left_out: int
    left_out_at_least: bool
    next_before: str | None
    next_cursor: str


class RetractArguments(Arguments):
    """What retract_finding takes."""

    finding_id: Annotated[UUID, Field(description="Your finding that turned out to be wrong.")]
    reason: Annotated[str, Field(min_length=1, max_length=4000, description="Why; others read it.")]
    idempotency_key: IdempotencyKey = None


class RetractResult(Result):
    """What retract_finding answers."""

    finding_id: str
    status: str


def finding_view(finding: Finding, agent_id: str) -> FindingView:
    """The finding in full, as ``agent_id`` sees it."""
    return FindingView(
        id=str(finding.id),
        author=finding.agent_id,
        yours=finding.agent_id == agent_id,
        category=finding.category.value,
        type=finding.type,
        content=finding.content,
        confidence=finding.confidence,
        trust=finding.trust,
        status=finding.status.value,
        superseded_by=None if finding.superseded_by is None else str(finding.superseded_by),
        corroborations=finding.corroborations,
        contradicted=finding.contradicted,
        evidence=tuple(item.model_dump(mode="json", exclude_none=True) for item in finding.evidence),
        tags=finding.tags,
        derived_from=tuple(str(source) for source in finding.derived_from),
        reported_at=finding.created_at.isoformat(timespec="seconds"),
    )


def clipped_view(view: FindingView, characters: int) -> FindingView:
    """The finding with content and evidence cut, so that its text stays near ``characters``."""
    # Escapes may double a text's length as JSON, and content and evidence share the room.
    half = max(80, characters // 4)
    return view.model_copy(
        update={
            "content": shown(view.content, half),
            "evidence": tuple(quoted(item, half // 2) for item in view.evidence[:2]),
            "tags": (),
            "derived_from": view.derived_from[:2],
            "cut": True,
        }
    )


def finding_block(view: FindingView, fence: Fence) -> str:
    """The finding within its own marks."""
    sure = "unstated" if view.confidence is None else f"{view.confidence:.2f}"
    facts = [
        f"author: {quoted(view.author, 100)}{' (you)' if view.yours else ''}",
        (
            f"confidence: {sure}, trust: {view.trust:.2f}, category: {view.category}, type: {quoted(view.type, 50)}, "
            f"at: {view.reported_at}"
        ),
    ]
    if view.status != "active":
        after = f" by {view.superseded_by}" if view.superseded_by else ""
        facts.append(f"no longer in force: {view.status}{after}")
    if view.contradicted:
        facts.append("contradicted by another finding")
    if view.corroborations:
        facts.append(f"corroborated by {view.corroborations} other agents")
    if view.tags:
        facts.append(f"tags: {', '.join(quoted(tag, 100) for tag in view.tags)}")
    if view.derived_from:
        facts.append(f"derived from: {', '.join(view.derived_from)}")
    content = shown(view.content, 1_000_000)
    lines = [*facts, "content:", *(f"  {line}" for line in content.split("\n"))]
    if view.evidence:
        lines.append("evidence:")
        lines += [f"  {quoted(item, 1_000_000)}" for item in view.evidence]
    if view.cut:
        lines.append("(content and evidence are cut here)")
    return fence.around(f"finding {view.id}", lines)
