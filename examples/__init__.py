"""Worked examples of Blackboard, each a package of its own."""

__all__: list[str] = []
