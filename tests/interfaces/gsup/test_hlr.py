"""The connection towards the HLR."""

import asyncio
import gc
from types import SimpleNamespace

from clock import Clock
from simulated import osmo_wire
from simulated.node import until_async
from simulated.osmo_wire import ID_RESP, IMSI, gsup, tbcd, update_location
from test_gsup_flood import answered, serving

from eir.interfaces.gsup.hlr import HOLD_BYTES, HOLD_S, PING_S, HeldMessages, Hlr, HlrState
from eir.wire.peers.settings import Limits

ME = (1, tbcd(IMSI))
ACCEPTED, NET_FAIL = gsup(0x06, ME), gsup(0x05, ME, (2, b"\x11"))


async def test_one_that_is_over_is_kept_by_nothing():
    """Clients that come and go would fill the memory with those that wait for the end of `stalled_write_s`."""
    server = await osmo_wire.Hlr(asks=False).start()
    owner = SimpleNamespace(limits=Limits(stalled_write_s=1000), silent_hlrs=set())
    client = SimpleNamespace(identity=None, hlr_is=lambda *_: None, set_reading=lambda: None, owner=owner)
    ours = Hlr(client, f"tcp://127.0.0.1:{server.port}")

    def is_kept():
        gc.collect()
        found = (each for each in gc.get_objects() if isinstance(each, asyncio.Transport))
        return any((each.get_extra_info("peername") or (0, 0))[1] == server.port for each in found)

    await until_async(lambda: server.ends and is_kept())
    ours.close()
    await until_async(ours._task.done)
    await until_async(lambda: not is_kept())
    await server.stop()


async def test_one_that_asks_for_a_name_that_its_client_does_not_send_is_away():
    server = await osmo_wire.Hlr().start()
    owner = SimpleNamespace(limits=Limits(), silent_hlrs=set())
    states = []
    client = SimpleNamespace(
        identity=None, hlr_is=lambda *state: states.append(state), set_reading=lambda: None, owner=owner
    )
    clock, ours = Clock(), Hlr(client, f"tcp://127.0.0.1:{server.port}")
    await until_async(lambda: ours._asked)
    clock.forward(HOLD_S)
    await until_async(lambda: states)
    assert states == [(HlrState.AWAY, "it requests the name of the client, which the client does not send")]
    ours.close()
    await server.stop()


def test_the_bytes_of_all_held_messages_count():
    held, half = HeldMessages(), bytes(HOLD_BYTES // 2)
    for _ in range(2):
        held.add([half])
        held.add([half])
        assert not held.is_full
        held.add([b"x"])
        assert held.is_full
        assert held.clear() == [half, half, b"x"]
        assert not held.is_full


async def test_each_forwarded_message_is_counted_once():
    """Before and after the HLR is connected."""
    hlr = await osmo_wire.Hlr().start()
    async with serving(hlr=f"tcp://127.0.0.1:{hlr.port}") as (server, connect):
        client = (await connect()).send(ID_RESP, *(update_location(number=number) for number in range(3)))
        await until_async(lambda: len(hlr.messages) == 3)
        assert server.through == {("msc", "out"): 3}
        client.send(*(update_location(number=number) for number in range(4)))
        await until_async(lambda: len(hlr.messages) == 7)
        assert server.through == {("msc", "out"): 7}
    await hlr.stop()


async def test_one_that_hangs_is_away_until_it_answers_something():
    """The kernel accepts connections for it: a connection alone shows nothing. That holds for clients that come later too."""
    hlr = await osmo_wire.Hlr(lambda frame: ACCEPTED if frame[4:5] == b"\x04" else b"").start()
    reports = []
    address = f"tcp://127.0.0.1:{hlr.port}"
    async with serving(lambda event, **fields: reports.append((event, fields.get("detail"))), hlr=address) as (
        server,
        connect,
    ):
        clock = Clock()

        async def answer(client):
            return await client.send(update_location()).next()

        async def pass_time(seconds):
            clock.forward(seconds)
            await answered(client)
            await answered(client)

        client = (await connect()).send(ID_RESP)
        assert await answer(client) == ACCEPTED
        hlr.runs.clear()
        for _ in range(3):
            await pass_time(PING_S)
        assert ("hlr_away", "no answer to a PING") in reports
        for _ in range(5):
            await pass_time(PING_S)
            assert await answer(client) == NET_FAIL
        later = (await connect()).send(ID_RESP)
        await pass_time(2 * HOLD_S)
        assert await answer(later) == NET_FAIL
        assert server.gauges()["eir_gsup_hlr_up"] == {("msc",): 0.0}
        assert "hlr_back" not in dict(reports)
        hlr.runs.set()
        for each in (client, later):
            assert await answer(each) in {NET_FAIL, ACCEPTED}
            await until_async(lambda: all(link.has_hlr for link in server.links.values()))
            assert await answer(each) == ACCEPTED
        assert [event for event, _ in reports if event.startswith("hlr_")] == ["hlr_away", "hlr_back"]
    await hlr.stop()
