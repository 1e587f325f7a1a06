"""The board's schema, revision by revision; installed as ``blackboard_migrations``."""
