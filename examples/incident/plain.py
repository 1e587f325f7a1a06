"""JSON values of a board, looked at without knowing their form."""

from __future__ import annotations

import json
from typing import Any, cast

__all__ = ["as_object", "one_line"]


def as_object(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def one_line(value: Any, most: int = 400) -> str:
    """The value on one line, cut to so many characters; objects and lists as JSON."""
    if isinstance(value, dict | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"
