"""A small orders service, real enough to break for real: asyncio HTTP in front of PostgreSQL through a bounded pool.

Two releases differ by one function (``release_1_2_2.py`` and ``release_1_2_3.py``: diff them). The later one keeps
a connection for ever on one path, which is how incident INC-1234 was recorded (:mod:`..record`).
"""

__all__: list[str] = []
