"""The two names of every tool: ``swarm_claim_task``, and ``swarm.claim_task`` as the seed document writes it."""

from __future__ import annotations

import re

__all__ = ["Names"]

_PREFIX = "swarm"
_VERB = re.compile(r"\{([a-z]+(?:_[a-z]+)*)\}")


class Names:
    """How tools are listed. Several clients refuse a dot, so the underscore is the default; calls work under both."""

    def __init__(self, *, dotted: bool = False) -> None:
        """The names are as ``dotted`` says."""
        self._separator = "." if dotted else "_"

    def __getitem__(self, verb: str) -> str:
        """The listed name of the tool ``verb``."""
        return f"{_PREFIX}{self._separator}{verb}"

    def fill(self, template: str) -> str:
        """A text of ours with every ``{verb}`` replaced by that tool's listed name."""
        return _VERB.sub(lambda found: self[found[1]], template)

    @staticmethod
    def verb(name: str) -> str:
        """The verb that is called by either ``name``; a name that is none of ours is returned as it is."""
        head, rest = name[: len(_PREFIX)], name[len(_PREFIX) :]
        return rest[1:] if head == _PREFIX and rest[:1] in {".", "_"} else name
