"""Flows: graphs of stages with joins, failure policies, loops and compensation."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
