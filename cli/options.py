"""The options that every command takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What was given on the command line; what was not is left to the environment and the settings files."""

    url: str | None = None
    data_dir: Path | None = None
    session: str | None = None
    actor: str | None = None
    json: bool = False
    no_color: bool = False

    def overridden(self, by: Options) -> Options:
        """These, where ``by`` says nothing else."""
        return Options(
            url=by.url or self.url,
            data_dir=by.data_dir or self.data_dir,
            session=by.session or self.session,
            actor=by.actor or self.actor,
            json=by.json or self.json,
            no_color=by.no_color or self.no_color,
        )
