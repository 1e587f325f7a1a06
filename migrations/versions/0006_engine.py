"""What a worker needs beyond single verbs: many at once, and the last one's end with the next one's claim."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")
