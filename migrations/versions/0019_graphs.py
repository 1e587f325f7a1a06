"""Graphs of tasks are walked by their keys, whatever the statistics say."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
