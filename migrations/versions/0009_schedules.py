"""Schedules: tasks that are added at the times of a cron expression."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
