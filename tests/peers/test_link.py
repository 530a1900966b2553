"""The connection of a client, whatever its protocol."""

import asyncio
from types import SimpleNamespace

import pytest

from eir.peers.link import Link


async def test_a_connection_whose_end_goes_wrong_is_gone_all_the_same():
    """Else it would count among those of its source for ever."""

    class Broken(Link):
        def ended(self):
            raise ZeroDivisionError

    link = Broken(SimpleNamespace(lost=lambda _: None), asyncio.get_running_loop())
    with pytest.raises(ZeroDivisionError):
        link.connection_lost(None)
    assert link.closed.done()
