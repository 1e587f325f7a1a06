"""What an application needs to know to live in one database with the board: its schema, and a filter for Alembic."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SCHEMA", "VERSION_TABLE", "include_name"]

SCHEMA = "blackboard"
VERSION_TABLE = "schema_version"


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """False for what is the board's own, so that the application's autogenerate neither sees nor drops it.

    Give it to ``context.configure(include_name=include_name, include_schemas=True, …)`` in the application's own
    ``env.py``. Without ``include_schemas`` Alembic looks at the default schema only, and nothing is needed unless
    ``blackboard`` is on the search path.
    """
    if type_ == "schema":
        return name != SCHEMA
    return parent_names.get("schema_name") != SCHEMA
