"""What the storm found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Report", "Violation"]

_SHOWN = 5


@dataclass(frozen=True)
class Violation:
    """Something that must hold and did not.

    Attributes:
        rule: what must hold.
        text: what was found.
        evidence: lines that show it: the events of a task, its rows.
    """

    rule: str
    text: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """How a storm went.

    Attributes:
        options: what was asked for.
        seconds: how long it took.
        faults: how often each kind came, and which answers were lost.
        facts: numbers that say how much was really tried.
        violations: none is good.
    """

    options: dict[str, Any]
    seconds: float
    faults: dict[str, int]
    facts: dict[str, int]
    violations: list[Violation] = field(default_factory=list[Violation])

    @property
    def good(self) -> bool:
        """Everything held."""
        return not self.violations

    def json(self) -> dict[str, Any]:
        """All of it."""
        return {"good": self.good, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """All of it but for repetitions, to be read."""
        yield f"seed {self.options['seed']}: {self.seconds:.0f} s"
        yield "faults:  " + ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        yield "so that: " + ", ".join(f"{count} {name}" for name, count in self.facts.items())
        if self.good:
            yield "everything held"
            return
        rules: dict[str, list[Violation]] = {}
        for violation in self.violations:
            rules.setdefault(violation.rule, []).append(violation)
        for rule, found in rules.items():
            yield ""
            yield f"VIOLATED: {rule} ({len(found)} times)"
            for violation in found[:_SHOWN]:
                yield f"  {violation.text}"
                yield from (f"    {line}" for line in violation.evidence)
            if len(found) > _SHOWN:
                yield "  …"
        yield ""
        options = self.options
        faults = ",".join(options["faults"])
        yield f"run it again with --seed {options['seed']} --sessions {options['sessions']} --faults {faults}"
