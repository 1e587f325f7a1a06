"""``share_findings: false``: an agent's handle that shows its own findings only."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import NotFound

__all__ = ["OwnFindings"]


class OwnFindings:
    """Findings, async or blocking, of which only those of one agent are read; writing is as ever.

    It keeps agents from leaning on each other's answers. It is no protection: events and ``session.board()`` tell all.
    """

    def __init__(self, findings: Any, agent_id: str) -> None:
        """``findings`` is a handle's."""
        self._findings = findings
        self._own_id = agent_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._findings, name)

    def list(self, **filters: Any) -> Any:
        """This agent's findings that match; see ``findings.list``."""
        return self._findings.list(**{**filters, "agent_id": self._own_id})

    def get(self, finding_id: Any) -> Any:
        """One of this agent's findings.

        Raises:
            NotFound: there is none of that id, or it is another agent's.
        """
        found = self._findings.get(finding_id)
        return self._later(found) if inspect.isawaitable(found) else self._own(found)

    async def _later(self, found: Any) -> Any:
        return self._own(await found)

    def _own(self, finding: Any) -> Any:
        if finding.agent_id != self._own_id:
            raise NotFound(
                "This swarm does not share findings: that one is another agent's.", noun="finding", id=str(finding.id)
            )
        return finding
