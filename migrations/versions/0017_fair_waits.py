"""Limits are counted until it succeeds, windows are in seconds, what was started in time does not expire."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
