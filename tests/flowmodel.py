"""What a flow does, as a pure model that knows nothing of the database."""

from __future__ import annotations

from dataclasses import dataclass, field

from blackboard import After, Stage

OPEN = ("waiting", "ready")


@dataclass
class Model:
    """The states of a flow's stages; ``end`` says how the task of a ready stage ended."""

    stages: list[Stage]
    state: dict[str, str] = field(default_factory=dict)
    loops: dict[str, int] = field(default_factory=dict)
    compensating: bool = False
    compensated: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_name = {stage.name: stage for stage in self.stages}
        self.edges = {
            stage.name: {
                edge.stage: edge.on_failure
                for edge in (After(one) if isinstance(one, str) else one for one in stage.after)
            }
            for stage in self.stages
        }
        self.state = dict.fromkeys(self.by_name, "waiting")
        self.loops = dict.fromkeys(self.by_name, 0)
        self._settle()

    def ready(self) -> list[str]:
        """The stages that can run."""
        return [name for name, state in self.state.items() if state == "ready"]

    def end(self, name: str, outcome: str, quality: float | None = None) -> None:
        """The task of a ready stage was ``completed``, ``failed`` or ``cancelled``."""
        assert self.state[name] == "ready"
        stage = self.by_name[name]
        wanted = stage.min_quality
        if outcome == "completed" and wanted is not None and (quality is None or quality < wanted):
            if self.loops[name] + 1 < stage.max_iterations and not self.compensating:
                self._loop(stage)
                self._settle()
                return
            outcome = "failed"
        self.state[name] = outcome
        if outcome != "completed":
            out = [self.edges[other][name] for other in self.edges if name in self.edges[other]]
            said = out or list(self.edges[name].values())
            if "compensate" in said:
                self.compensating = True
        self._settle()

    def _loop(self, stage: Stage) -> None:
        target = stage.loop_to or stage.name
        for name in self._below(target) & self._above(stage.name):
            self.state[name] = "waiting"
            self.loops[name] = self.loops[name] + 1 if name == stage.name else 0

    def _above(self, name: str) -> set[str]:
        found = {name}
        for one in self.edges[name]:
            found |= self._above(one)
        return found

    def _below(self, name: str) -> set[str]:
        found = {name}
        for other, edges in self.edges.items():
            if name in edges:
                found |= self._below(other)
        return found

    def _settle(self) -> None:
        if self.compensating:
            # Whatever is ready and not running is stopped as well; the tests run one stage at a time.
            for name, state in self.state.items():
                if state in OPEN:
                    self.state[name] = "cancelled"
        moved = True
        while moved:
            moved = False
            for name, edges in self.edges.items():
                if self.state[name] == "waiting" and (verdict := self._verdict(name, edges)):
                    self.state[name] = verdict
                    moved = True

    def _verdict(self, name: str, edges: dict[str, str]) -> str | None:
        met = undecided = fatal = 0
        for parent, policy in edges.items():
            state = self.state[parent]
            if (
                state == "completed"
                or (state == "skipped" and policy != "skip")
                or (state in ("failed", "cancelled") and policy == "continue")
            ):
                met += 1
            elif state in OPEN:
                undecided += 1
            elif state in ("failed", "cancelled") and policy in ("fail", "compensate"):
                fatal += 1
        join = self.by_name[name].join
        need = {"all": len(edges), "any": 1}.get(join, join) if isinstance(join, str) else join
        if met >= need:
            return "ready"
        if met + undecided >= need:
            return None
        return "cancelled" if fatal else "skipped"

    @property
    def status(self) -> str:
        """Where the flow stands."""
        if any(state in OPEN for state in self.state.values()):
            return "running"
        return "completed" if set(self.state.values()) <= {"completed", "skipped"} else "failed"
