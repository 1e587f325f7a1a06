"""Proposals, votes, actions, locks."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
