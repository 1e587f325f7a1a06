"""Findings, corroborations, links between findings, hypotheses and their evidence."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
