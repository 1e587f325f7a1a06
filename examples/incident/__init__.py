"""INC-1234: a recorded incident of a real service, and the analysis of its logs and metrics.

``service/`` is the service that broke, ``record`` records the incident afresh, ``recording/`` is the one that ships,
``analysis/`` finds out what happened from logs and metrics, these or your own.
"""

from pathlib import Path

__all__ = ["RECORDING"]

RECORDING = Path(__file__).parent / "recording"
"""The recording that ships: ``service.log``, ``postgresql.log``, ``deployments.log``, ``metrics.csv``."""
