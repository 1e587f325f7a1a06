"""How a flow is described: stages, the edges between them, and three ways to put them together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from .base import Record
from .tasks import NewTask

__all__ = ["After", "OnFailure", "Plan", "Stage", "fork_join", "parallel", "sequential"]

OnFailure: TypeAlias = Literal["fail", "skip", "continue", "compensate"]


class After(Record):
    """An edge: the stage that comes before, and what becomes of the one that waits when it does not complete.

    Attributes:
        stage: the name of the stage that comes before.
        on_failure: ``fail`` cancels the stage that waits, ``skip`` leaves it out, ``continue`` counts the failure as
            done, ``compensate`` stops the flow and undoes what was completed (also when the stage that waits is one
            that nothing follows, and fails itself).
    """

    stage: str
    on_failure: OnFailure = "fail"

    def __init__(self, stage: str, on_failure: OnFailure = "fail") -> None:
        super().__init__(stage=stage, on_failure=on_failure)  # pyright: ignore[reportCallIssue]


class Stage(NewTask):
    """A task with its place in a flow.

    ::

        Stage("report", "write", capability="synthesize", after=["logs", After("metrics", on_failure="continue")],
              inputs={"changes": "logs.changes"}, output="report", min_quality=0.8, max_iterations=3)

    Attributes:
        name: unique in its flow; 1 to 100 characters without white space and dots, and not ``inputs``.
        after: the stages that come before, by name or as ``After``.
        join: how many of them must succeed for this one to run: ``all``, ``any`` (one) or a number. That the others
            failed is still told by the flow's status.
        inputs: what the stage reads, by ``TaskContext.inputs`` or ``flows.inputs(task)``: name → ``stage``,
            ``stage.path.to.it``, an output's name, or ``inputs.x`` of the flow; each from a stage that comes before it.
        output: the name under which its result is an output of the flow.
        compensate: the task that undoes it, when an edge says ``compensate``.
        min_quality: 0 to 1; below it the stage loops back, until ``max_iterations`` are done, and then fails.
        max_iterations: 1 to 100.
        loop_to: where it loops back to: a stage before it; itself by default.

    All other fields are those of ``tasks.add``.
    """

    name: str
    after: tuple[str | After, ...] = ()
    join: Literal["all", "any"] | Annotated[int, Field(ge=1)] = "all"
    inputs: Mapping[str, str] = Field(default_factory=dict[str, str])
    output: str | None = None
    compensate: NewTask | None = None
    min_quality: float | None = None
    max_iterations: int = 1
    loop_to: str | None = None

    def __init__(self, name: str, type: str, parameters: Any = None, **options: Any) -> None:  # noqa: A002
        super().__init__(
            name=name,  # pyright: ignore[reportCallIssue]
            type=type,
            parameters={} if parameters is None else parameters,
            **options,
        )

    @property
    def depends(self) -> tuple[str, ...]:
        """The names of the stages that come before it."""
        return tuple(edge if isinstance(edge, str) else edge.stage for edge in self.after)

    def following(self, names: Iterable[str]) -> Stage:
        """The same stage, also after those of ``names`` that it did not follow yet."""
        added = tuple(name for name in names if name not in self.depends and name != self.name)
        return self.model_copy(update={"after": self.after + added})


Plan: TypeAlias = Stage | Sequence[Stage]
"""A stage, or stages that were put together."""


def _stages(plan: Plan) -> list[Stage]:
    return [plan] if isinstance(plan, Stage) else list(plan)


def _first(stages: Sequence[Stage]) -> set[str]:
    """Those that follow nothing among ``stages``."""
    names = {stage.name for stage in stages}
    return {stage.name for stage in stages if not names & set(stage.depends)}


def _last(stages: Sequence[Stage]) -> list[str]:
    """Those that nothing among ``stages`` follows, in order."""
    followed = {name for stage in stages for name in stage.depends}
    return [stage.name for stage in stages if stage.name not in followed]


def sequential(*plans: Plan) -> list[Stage]:
    """The stages, each plan after the one before it: its first stages follow all the last ones of that."""
    whole: list[Stage] = []
    before: list[str] = []
    for plan in plans:
        stages = _stages(plan)
        first = _first(stages)
        whole += [stage.following(before) if stage.name in first else stage for stage in stages]
        before = _last(stages) or before
    return whole


def parallel(*plans: Plan) -> list[Stage]:
    """The stages side by side, with no edges between the plans."""
    return [stage for plan in plans for stage in _stages(plan)]


def fork_join(before: Plan, branches: Sequence[Plan], join: Stage, k: int | None = None) -> list[Stage]:
    """``before``, then all ``branches`` at once, then ``join`` when all of them, or ``k``, have succeeded.

    A branch of several last stages counts as that many for ``k``.
    """
    forked = sequential(before, parallel(*branches))
    ends = [name for branch in branches for name in _last(_stages(branch))]
    end = join.following(ends or _last(_stages(before)))
    return [*forked, end if k is None else end.model_copy(update={"join": k})]
