"""The contestants: each a process of its own that does what it is told, one JSON object a line."""
