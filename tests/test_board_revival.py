"""A board on the embedded server outlives that server's idle end."""

from __future__ import annotations

from pathlib import Path

import pytest

from blackboard import Blackboard, EmbeddedServer
from blackboard import sync as blocking
from blackboard.store.temporary import temporary_server


@pytest.mark.lifecycle
async def test_a_server_that_stopped_comes_back_with_the_next_call() -> None:
    with temporary_server() as place:
        # Only for a directory that any account can reach; the server under test is another one beside it.
        data = Path(place.status().data_dir).parent / "revived"
        server = EmbeddedServer(data)
        try:
            async with Blackboard.open(data_dir=data) as board:
                session = await board.start("outlives")
                assert server.stop()
                assert (await board.session("outlives")).id == session.id
            with blocking.Blackboard.open(data_dir=data) as board:
                assert server.stop()
                assert board.session("outlives").id == session.id
        finally:
            server.stop()
