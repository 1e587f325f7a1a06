"""Hypotheses: proposed, argued over with findings, decided by somebody else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from ..errors import InvalidInput, NotFound
from ..ids import as_uuid, new_id
from ..jsonable import check_text
from ..models.findings import Finding
from ..models.hypotheses import Assessment, Hypothesis, HypothesisEvidence, HypothesisStatus
from ..store.statements import statements
from .ids import PartialIds

__all__ = ["Hypotheses"]

_SQL = statements("hypotheses")


class Hypotheses(PartialIds):
    """The competing explanations of one session.

    A hypothesis's confidence is computed, in the transaction of whatever changes it:

    * the agents' own assessments, the author's prior among them, each clamped to [0.01, 0.99], are pooled: the mean
      of their log-odds, weighted with each agent's expertise in ``hypothesis`` (0.5 where none is declared);
    * every live link of evidence to an active finding adds (or, when it speaks against, takes away)
      ``weight * trust * ln((0.5 + c/2) / (0.5 - c/2))``, with c the finding's confidence up to 0.98, 0.5 where it
      states none; half of that while an active finding contradicts it; only the 10 strongest of each side count;
    * the sum as a probability, clamped to [0.01, 0.99].

    It is computed anew when evidence is added or retracted, an assessment changes, or a linked finding is retracted,
    superseded or contradicted; each time the revision grows and ``hypothesis.revised`` says why. Status stands apart:
    no confidence validates by itself.
    """

    noun = "hypothesis"

    async def propose(
        self,
        statement: str,
        confidence: float = 0.5,
        *,
        id: UUID | str | None = None,  # noqa: A002 - the column's name, the same in every language
    ) -> Hypothesis:
        """The hypothesis is on the board, and its author's confidence is the first assessment.

        Writes ``hypothesis.proposed``.

        Args:
            statement: 1 to 2000 characters.
            confidence: the author's, in [0, 1].
            id: the idempotency key; made here when not given.

        Raises:
            IdempotencyConflict: the id was used before with other content.
            InvalidInput: a value is refused, or this is no agent's handle; names the field.
            NotFound: no such session.
            SessionClosed: the session is over.
        """
        return await self._one(
            "propose_hypothesis",
            new_id() if id is None else id,
            agent_id=self._agent_id,
            description=check_text(statement, "statement", 2000, 1),
            confidence=_unit(confidence, "confidence"),
        )

    async def assess(
        self, hypothesis_id: UUID | str, confidence: float, reason: str = "", *, key: str | None = None
    ) -> Hypothesis:
        """This agent's own confidence is as given, whatever it was before, and the hypothesis is revised.

        Saying the same again changes nothing. Writes ``hypothesis.assessed`` and ``hypothesis.revised``.

        Args:
            confidence: in [0, 1].
            reason: up to 4000 characters.
            key: the idempotency key, kept for a day: a late repetition does not undo a newer assessment.

        Raises:
            IdempotencyConflict: ``key`` was used for another call.
            InvalidInput: a value is refused, or this is no agent's handle; names the field.
            InvalidTransition: it is decided or withdrawn.
            NotFound: no such hypothesis.
            SessionClosed: the session is over.
        """
        return await self._one(
            "assess_hypothesis",
            hypothesis_id,
            agent_id=self._agent_id,
            confidence=_unit(confidence, "confidence"),
            reason=check_text(reason, "reason", 4000),
            key=None if key is None else check_text(key, "key", 200, 1),
        )

    async def add_evidence(
        self,
        hypothesis_id: UUID | str,
        finding_id: UUID | str | Finding,
        *,
        supports: bool = True,
        weight: float = 1.0,
    ) -> Hypothesis:
        """The finding counts for the hypothesis (or against it), once, and the hypothesis is revised.

        Writes ``evidence.added`` and ``hypothesis.revised``.

        Args:
            finding_id: an active finding of this session.
            supports: whether it speaks for the hypothesis.
            weight: how much it says about this hypothesis, above 0 and up to 1.

        Raises:
            Conflict: the finding is not active, or is linked already with another direction or weight.
            InvalidInput: the weight is out of range.
            InvalidTransition: the hypothesis is decided or withdrawn.
            NotFound: no such hypothesis or finding.
            SessionClosed: the session is over.
        """
        if _unit(weight, "weight") == 0:
            raise InvalidInput("weight must be above 0; evidence that says nothing is none.", field="weight")
        return await self._one(
            "add_evidence",
            hypothesis_id,
            finding_id=_id(finding_id, "finding_id"),
            supports=bool(supports),
            weight=float(weight),
            actor=self._scope.actor,
        )

    async def retract_evidence(
        self, hypothesis_id: UUID | str, finding_id: UUID | str | Finding, reason: str = ""
    ) -> Hypothesis:
        """The finding no longer counts for this hypothesis, which is revised; the finding itself stands.

        Writes ``evidence.retracted`` and ``hypothesis.revised``; when it was retracted before, nothing.

        Raises:
            InvalidInput: the reason is over 4000 characters.
            NotFound: no such hypothesis, or the finding never was evidence for it.
            SessionClosed: the session is over.
        """
        return await self._one(
            "retract_evidence",
            hypothesis_id,
            finding_id=_id(finding_id, "finding_id"),
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.actor,
        )

    async def validate(
        self,
        hypothesis_id: UUID | str,
        result: bool,
        evidence: Iterable[UUID | str | Finding],
        reason: str = "",
    ) -> Hypothesis:
        """The verdict is given: the hypothesis is validated (True) or refuted (False), for good.

        Writes ``hypothesis.validated`` for both, with ``validated_by``, ``result`` and ``evidence``. Where the same
        verdict was given already, that one is returned.

        Args:
            evidence: at least one active finding of this session that the verdict rests on.
            reason: up to 4000 characters.

        Raises:
            Conflict: one of the findings is not active.
            InvalidInput: no evidence, or a value is refused.
            InvalidTransition: the other verdict was given, or it was withdrawn.
            NotFound: no such hypothesis or finding.
            NotPermitted: this is its author, and the session does not allow self-validation.
            SessionClosed: the session is over.
        """
        if not isinstance(result, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - "false" would validate
            raise InvalidInput("result must be True (validated) or False (refuted).", field="result")
        ids = [_id(finding, "evidence") for finding in evidence]
        if not ids:
            raise InvalidInput("A verdict needs evidence: name at least one active finding.", field="evidence")
        return await self._one(
            "validate_hypothesis",
            hypothesis_id,
            result=result,
            evidence=ids,
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.actor,
        )

    async def withdraw(self, hypothesis_id: UUID | str, reason: str = "") -> Hypothesis:
        """Its author has given the hypothesis up, once. Writes ``hypothesis.withdrawn``.

        Raises:
            InvalidInput: the reason is over 4000 characters.
            InvalidTransition: the verdict was given.
            NotFound: no such hypothesis.
            NotPermitted: this is not its author.
            SessionClosed: the session is over.
        """
        return await self._one(
            "withdraw_hypothesis",
            hypothesis_id,
            reason=check_text(reason, "reason", 4000),
            actor=self._scope.actor,
        )

    async def get(self, hypothesis_id: UUID | str) -> Hypothesis:
        """One hypothesis.

        Raises:
            NotFound: no such hypothesis in this session.
        """
        return await self._one("get_hypothesis", hypothesis_id)

    async def list(
        self,
        *,
        status: HypothesisStatus | str | None = None,
        min_confidence: float | None = None,
        limit: int = 100,
    ) -> list[Hypothesis]:
        """The hypotheses that match, most confident first.

        Raises:
            InvalidInput: no such status, or a value is out of range.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        rows = await self._executor.fetch_all(
            _SQL["list_hypotheses"],
            session_id=self._scope.session_id,
            status=None if status is None else _status(status),
            min_confidence=None if min_confidence is None else _unit(min_confidence, "min_confidence"),
            limit=limit,
        )
        return [Hypothesis.from_row(row) for row in rows]

    async def evidence(self, hypothesis_id: UUID | str) -> list[HypothesisEvidence]:
        """What was brought forward for and against it, with the findings, in order of time; also what was retracted."""
        rows = await self._executor.fetch_all(
            _SQL["list_evidence"], session_id=self._scope.session_id, id=as_uuid(hypothesis_id, "hypothesis_id")
        )
        return [HypothesisEvidence.from_row(row) for row in rows]

    async def assessments(self, hypothesis_id: UUID | str) -> list[Assessment]:
        """What each agent itself holds it to be worth, the latest first."""
        rows = await self._executor.fetch_all(
            _SQL["list_assessments"], session_id=self._scope.session_id, id=as_uuid(hypothesis_id, "hypothesis_id")
        )
        return [Assessment.from_row(row) for row in rows]

    async def _one(self, verb: str, hypothesis_id: UUID | str, /, **params: Any) -> Hypothesis:
        row = await self._executor.fetch_one(
            _SQL[verb],
            session_id=self._scope.session_id,
            id=as_uuid(hypothesis_id, "hypothesis_id"),
            **params,
        )
        if row is None:
            raise NotFound(
                f"There is no hypothesis {hypothesis_id} in this session; list them first.",
                noun="hypothesis",
                id=str(hypothesis_id),
            )
        return Hypothesis.from_row(row)


def _id(value: UUID | str | Finding, field: str) -> UUID:
    return value.id if isinstance(value, Finding) else as_uuid(value, field)


def _unit(value: float, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not 0 <= value <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{field} must be a number between 0 and 1, got {value!r:.80}.", field=field)
    return float(value)


def _status(value: HypothesisStatus | str) -> str:
    try:
        return HypothesisStatus(value).value
    except ValueError:
        known = ", ".join(HypothesisStatus)
        raise InvalidInput(f"There is no hypothesis status {value!r}; use one of {known}.", field="status") from None
