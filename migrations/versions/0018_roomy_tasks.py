"""A task's later versions lie beside its first one."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
