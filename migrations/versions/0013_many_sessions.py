"""Many sessions in one call: joined, claimed from, completed in."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
