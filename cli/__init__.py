"""The command line: one module a noun, over the blocking twin of the public API.

Nothing here imports ``blackboard`` before a command runs, so that help and shell completion answer at once.
"""
