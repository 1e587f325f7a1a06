"""Findings: reported once, corroborated, superseded, retracted, contradicted; read newest first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import ValidationError

from ..errors import InvalidInput, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_text, dump_json
from ..models.findings import Contradiction, Corroboration, Evidence, Finding, FindingCategory, Similar
from ..store.executor import Row
from ..store.statements import statements
from .ids import PartialIds

__all__ = ["Findings"]

_SQL = statements("findings")

MAX_PAGE = 10_000


class Findings(PartialIds):
    """What is known in one session, and by whom."""

    noun = "finding"

    async def report(
        self,
        content: Any,
        *,
        type: str,  # noqa: A002 - the column's name, the same in every language
        category: FindingCategory | str = FindingCategory.OBSERVATION,
        confidence: float | None = None,
        evidence: Iterable[Evidence | Mapping[str, Any]] = (),
        tags: Iterable[str] = (),
        provenance: Mapping[str, Any] | None = None,
        derived_from: Iterable[UUID | str | Finding] = (),
        id: UUID | str | None = None,  # noqa: A002
    ) -> Finding:
        """The finding is on the board, once: who reports the same thing again gets the one that stands.

        The same thing is: same category and type, and content that differs at most in case and white space. Reported
        by another agent it becomes a corroboration (event ``finding.corroborated``), by the same agent nothing; the
        answer's ``corroborated`` is True then. A new one writes ``finding.reported``.

        Args:
            content: any JSON value up to 1 MiB.
            type: what kind of thing it is about, such as ``deployment``; 1 to 50 characters.
            category: observation, hypothesis or conclusion.
            confidence: in [0, 1]; None states none.
            evidence: ``Evidence`` items or dicts with ``source`` and optionally ``query`` and ``result``.
            tags: up to 100, each 1 to 100 characters.
            provenance: any JSON object up to 1 MiB: model, tool, prompt …
            derived_from: findings of this session that it was made from; it is trusted no more than they are.
            id: the idempotency key; made here when not given.

        Raises:
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused, or this is no agent's handle; names the field.
            NotFound: no such session, or no such finding to derive from.
            PayloadTooLarge: content, evidence or provenance is over 1 MiB.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["report_finding"],
            session_id=self._scope.session_id,
            id=new_id() if id is None else as_uuid(id, "id"),
            agent_id=self._agent_id,
            type=check_text(type, "type", 50, 1),
            category=_category(category),
            **_statement_of(content, confidence, evidence, tags, provenance, derived_from),
        )
        assert row is not None
        return Finding.from_row(row)

    async def supersede(
        self,
        finding_id: UUID | str,
        content: Any,
        *,
        type: str | None = None,  # noqa: A002
        category: FindingCategory | str | None = None,
        confidence: float | None = None,
        evidence: Iterable[Evidence | Mapping[str, Any]] = (),
        tags: Iterable[str] = (),
        provenance: Mapping[str, Any] | None = None,
        derived_from: Iterable[UUID | str | Finding] = (),
        reason: str = "",
        id: UUID | str | None = None,  # noqa: A002
    ) -> Finding:
        """The finding is hidden and the returned one stands in its place, both or neither.

        It no longer counts as evidence for hypotheses; link the new one where it does. Type and category are those of
        the old one when not given; everything else is as given here. Should another finding say the new content
        already, that one takes the place (and is corroborated). Writes ``finding.superseded`` and ``finding.reported``.

        Args:
            finding_id: the finding to replace; its author, a controller or somebody who is no member may.
            reason: why, up to 4000 characters.
            id: the idempotency key, and the new finding's id. The others are as in ``report``.

        Raises:
            IdempotencyConflict: the id was used before for something else.
            InvalidInput: a value is refused; names the field.
            InvalidTransition: it was retracted, or superseded by other content.
            NotFound: no such finding.
            NotPermitted: it is another agent's.
            PayloadTooLarge: content, evidence or provenance is over 1 MiB.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["supersede_finding"],
            session_id=self._scope.session_id,
            old_id=as_uuid(finding_id, "finding_id"),
            id=new_id() if id is None else as_uuid(id, "id"),
            actor=self._scope.actor,
            type=None if type is None else check_text(type, "type", 50, 1),
            category=None if category is None else _category(category),
            reason=check_text(reason, "reason", 4000),
            **_statement_of(content, confidence, evidence, tags, provenance, derived_from),
        )
        assert row is not None
        return Finding.from_row(row)

    async def retract(self, finding_id: UUID | str, reason: str = "") -> Finding:
        """The finding is taken back, once: hidden, and no longer counted by the hypotheses that used it.

        They are revised in the same transaction. Its author may, a member whose role is ``controller``, and somebody
        who is no member, such as a human; others contradict it. Writes ``finding.retracted``.

        Raises:
            InvalidInput: the reason is over 4000 characters.
            InvalidTransition: it was superseded.
            NotFound: no such finding.
            NotPermitted: it is another agent's.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["retract_finding"],
            session_id=self._scope.session_id,
            id=as_uuid(finding_id, "finding_id"),
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.actor,
        )
        assert row is not None
        return Finding.from_row(row)

    async def contradict(self, finding_id: UUID | str, by: UUID | str, reason: str = "") -> Contradiction:
        """It is on record, once, that the finding ``by`` contradicts ``finding_id``.

        While ``by`` is active, ``finding_id`` counts half for the hypotheses that use it; they are revised in the same
        transaction. Writes ``finding.contradicted``.

        Raises:
            Conflict: one of them is no longer active.
            InvalidInput: they are the same finding, or the reason is over 4000 characters.
            NotFound: no such finding.
            SessionClosed: the session is over.
        """
        row = await self._executor.fetch_one(
            _SQL["contradict_finding"],
            session_id=self._scope.session_id,
            id=as_uuid(finding_id, "finding_id"),
            by=as_uuid(by, "by"),
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.actor,
        )
        assert row is not None
        return Contradiction.from_row(row)

    async def get(self, finding_id: UUID | str) -> Finding:
        """One finding, in whatever status.

        Raises:
            NotFound: no such finding in this session.
        """
        row = await self._executor.fetch_one(
            _SQL["get_finding"], session_id=self._scope.session_id, id=as_uuid(finding_id, "finding_id")
        )
        if row is None:
            raise NotFound(
                f"There is no finding {finding_id} in this session; list them first.",
                noun="finding",
                id=str(finding_id),
            )
        return Finding.from_row(row)

    async def list(
        self,
        *,
        category: FindingCategory | str | None = None,
        type: str | None = None,  # noqa: A002
        agent_id: str | None = None,
        tag: str | None = None,
        min_confidence: float | None = None,
        min_trust: float | None = None,
        since: datetime | None = None,
        include_hidden: bool = False,
        limit: int = 100,
        before: tuple[datetime, UUID] | Finding | None = None,
    ) -> list[Finding]:
        """The findings that match all that is given, newest first.

        Args:
            min_confidence: in [0, 1]; findings that state none do not match.
            since: created at this moment or later (aware).
            include_hidden: also what was superseded or retracted.
            limit: 1 to 10 000.
            before: the last finding of the page before, or its ``(created_at, id)``.

        Raises:
            InvalidInput: a filter is refused; names the field.
        """
        if isinstance(before, Finding):
            before = (before.created_at, before.id)
        filters: dict[str, Any] = {
            "category": None if category is None else _category(category),
            "type": None if type is None else check_text(type, "type", 50),
            "agent_id": None if agent_id is None else check_text(agent_id, "agent_id", 100),
            "tag": None if tag is None else check_text(tag, "tag", 100),
            "min_confidence": None if min_confidence is None else _unit(min_confidence, "min_confidence"),
            "min_trust": None if min_trust is None else _unit(min_trust, "min_trust"),
            "since": None if since is None else _aware(since, "since"),
            "before_at": None if before is None else _aware(before[0], "before"),
            "before_id": None if before is None else as_uuid(before[1], "before"),
        }
        rows: Sequence[Row]
        if include_hidden or any(value is not None for value in filters.values()):
            rows = await self._executor.fetch_all(
                _SQL["list_all_findings" if include_hidden else "list_findings"],
                session_id=self._scope.session_id,
                limit=_page(limit),
                **filters,
            )
        else:
            rows = await self._executor.fetch_all(
                _SQL["newest_findings"], session_id=self._scope.session_id, limit=_page(limit)
            )
        return [Finding.from_row(row) for row in rows]

    async def corroborations(self, finding_id: UUID | str) -> list[Corroboration]:
        """Who else reported the same thing, oldest first."""
        rows = await self._executor.fetch_all(
            _SQL["list_corroborations"], session_id=self._scope.session_id, id=as_uuid(finding_id, "finding_id")
        )
        return [Corroboration.from_row(row) for row in rows]

    async def contradictions(self, finding_id: UUID | str) -> list[Contradiction]:
        """What contradicts the finding, oldest first; also by findings that are no longer active."""
        rows = await self._executor.fetch_all(
            _SQL["list_contradictions"], session_id=self._scope.session_id, id=as_uuid(finding_id, "finding_id")
        )
        return [Contradiction.from_row(row) for row in rows]

    async def similar(self, content: Any, limit: int = 5) -> list[Similar]:
        """Findings that share words with ``content``, the most similar first: look before you report.

        Compared are the sets of words of the newest 500 active findings: words in common over words in either.

        Args:
            content: any JSON value; its first 20 000 characters count.
            limit: 1 to 500.

        Raises:
            InvalidInput: the limit is out of range, or content is no JSON.

        Source: P. Jaccard, "The Distribution of the Flora in the Alpine Zone", New Phytologist 11 (1912).
        """
        rows = await self._executor.fetch_all(
            _SQL["similar_findings"],
            session_id=self._scope.session_id,
            content=dump_json(content, "content"),
            limit=_page(limit, 500),
        )
        found: list[Similar] = []
        for row in rows:
            values = dict(row)
            similarity = values.pop("similarity")
            found.append(Similar(finding=Finding.from_row(values), similarity=similarity))
        return found

    async def aggregate_confidence(
        self,
        finding_ids: Iterable[UUID | str | Finding],
        method: Literal["weighted", "log_odds"] = "weighted",
        max_findings: int | None = None,
    ) -> float:
        """One confidence for several findings, each weighted with its agent's expertise and its evidence.

        A finding's weight is the expertise of its agent in its category times ``len(evidence) * 0.1 + 0.5``. Findings
        that state no confidence do not count.

        Args:
            finding_ids: of this session, in any status.
            method: ``weighted`` averages; 0.0 where there is nothing to average. ``log_odds`` averages the log-odds,
                each confidence clamped to [0.01, 0.99], so that agreement of the sure counts more; 0.5 for nothing.
            max_findings: only so many count, those with the greatest weight.

        Raises:
            InvalidInput: no such method, or ``max_findings`` is below 1.
            NotFound: no such finding.

        Source: for ``log_odds``, C. Genest and J. Zidek, "Combining Probability Distributions: A Critique and an
            Annotated Bibliography", Statistical Science 1 (1986).
        """
        row = await self._executor.fetch_one(
            _SQL["aggregate_confidence"],
            session_id=self._scope.session_id,
            ids=_ids(finding_ids, "finding_ids"),
            method=check_text(method, "method", 20),
            max_findings=max_findings,
        )
        assert row is not None
        return float(row["confidence"])


def _statement_of(
    content: Any,
    confidence: float | None,
    evidence: Iterable[Evidence | Mapping[str, Any]],
    tags: Iterable[str],
    provenance: Mapping[str, Any] | None,
    derived_from: Iterable[UUID | str | Finding],
) -> dict[str, Any]:
    """What report and supersede have in common, checked."""
    if isinstance(tags, str):
        raise InvalidInput("tags must be a list of texts, not one text.", field="tags")
    chosen = list(dict.fromkeys(check_text(tag, "tags", 100, 1) for tag in tags))
    if len(chosen) > 100:
        raise InvalidInput(f"There are {len(chosen)} tags and the limit is 100.", field="tags")
    sources = _ids(derived_from, "derived_from")
    if len(sources) > 1000:
        raise InvalidInput("derived_from names more than 1000 findings; derive in steps.", field="derived_from")
    return {
        "content": dump_json(content, "content"),
        "confidence": None if confidence is None else _unit(confidence, "confidence"),
        "evidence": dump_json([_evidence(item) for item in evidence], "evidence"),
        "tags": chosen,
        "provenance": dump_json({} if provenance is None else dict(provenance), "provenance"),
        "derived_from": sources,
    }


def _evidence(item: Evidence | Mapping[str, Any]) -> dict[str, Any]:
    try:
        checked = item if isinstance(item, Evidence) else Evidence.model_validate(dict(item))
    except (ValidationError, TypeError, ValueError):
        raise InvalidInput(
            "An item of evidence is an object with a text `source` and optionally `query` and `result`; "
            f"got {item!r:.200}.",
            field="evidence",
        ) from None
    return {"source": checked.source, "query": checked.query, "result": checked.result}


def _ids(values: Iterable[UUID | str | Finding], field: str) -> list[UUID]:
    return [value.id if isinstance(value, Finding) else as_uuid(value, field) for value in values]


def _category(value: FindingCategory | str) -> str:
    try:
        return FindingCategory(value).value
    except ValueError:
        known = ", ".join(FindingCategory)
        raise InvalidInput(f"There is no category {value!r}; use one of {known}.", field="category") from None


def _unit(value: float, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not 0 <= value <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{field} must be a number between 0 and 1, got {value!r:.80}.", field=field)
    return float(value)


def _aware(value: datetime, field: str) -> datetime:
    if value.tzinfo is None:
        raise InvalidInput(f"{field} must be an aware datetime, such as datetime.now(UTC).", field=field)
    return value


def _page(limit: int, most: int = MAX_PAGE) -> int:
    if not 1 <= limit <= most:
        raise InvalidInput(f"limit must be between 1 and {most}.", field="limit")
    return limit
