"""Exit codes of an agent's process that mean something to the runner."""

from __future__ import annotations

from typing import Final

__all__ = ["EXIT_ABANDONED", "EXIT_CONFIGURATION"]

EXIT_CONFIGURATION: Final = 78
"""What the file asks for is not there: a function that cannot be imported, a program that cannot be found."""
EXIT_ABANDONED: Final = 75
"""A task's program would not stop; the process ended so that it does."""
