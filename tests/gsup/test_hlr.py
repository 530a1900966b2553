"""The connection towards the HLR."""

import asyncio
import gc
from types import SimpleNamespace

import osmo_wire
from node import until_async

from eir.gsup.hlr import Hlr
from eir.peers.settings import Limits


async def test_one_that_is_over_is_kept_by_nothing():
    """Clients that come and go would fill the memory with those that wait for the end of `stalled_write_s`."""
    server = await osmo_wire.Hlr(asks=False).start()
    client = SimpleNamespace(identity=None, hlr_is=lambda *_: None, set_reading=lambda: None)
    ours = Hlr(client, f"tcp://127.0.0.1:{server.port}", lambda: Limits(stalled_write_s=1000))

    def is_kept():
        gc.collect()
        found = (each for each in gc.get_objects() if isinstance(each, asyncio.Transport))
        return any((each.get_extra_info("peername") or (0, 0))[1] == server.port for each in found)

    await until_async(lambda: server.ends and is_kept())
    ours.close()
    await until_async(lambda: not is_kept())
    await server.stop()
