"""Finished flows are pruned, `why` does not contradict itself, ids are found by a part of them."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
