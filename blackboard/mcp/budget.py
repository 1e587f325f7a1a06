"""A budget of tokens: what still fits is shown, what does not is counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import BaseModel

from .fence import tokens

__all__ = ["Budget"]

T = TypeVar("T", bound=BaseModel)


class Budget:
    """Tokens that an answer may cost.

    Attributes:
        left: what is left of them.
        omitted: how many items of each kind did not fit.
    """

    def __init__(self, limit: int) -> None:
        """Nothing is spent."""
        self.left = limit
        self.omitted: Counter[str] = Counter()

    def spend(self, text: str, item: BaseModel | None = None) -> bool:
        """Whether it fits; then it is spent. Clients show a model the text or the values, so the longer one counts."""
        cost = tokens(text)
        if item is not None:
            cost = max(cost, tokens(json.dumps(item.model_dump(mode="json"), ensure_ascii=False)))
        if cost > self.left:
            return False
        self.left -= cost
        return True

    def fill(self, kind: str, items: Iterable[T], line: Callable[[T], str]) -> tuple[list[T], list[str]]:
        """The first of ``items`` that fit, and a line for each; the others count as omitted."""
        taken: list[T] = []
        lines: list[str] = []
        full = False
        for item in items:
            text = line(item)
            full = full or not self.spend(text, item)
            if full:
                self.omitted[kind] += 1
            else:
                taken.append(item)
                lines.append(text)
        return taken, lines
