"""Budgets: reserved before, settled after, never over the ceiling; the ledger of what was spent."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
