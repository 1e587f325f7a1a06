"""The hot path made leaner, and flat while an old snapshot is held."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
