"""The record as the manager has it: what recorders have counted, and the lists that it sends to them."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated.node import until_async
from test_manager import PID, PlayedProcess

from eir.lists.images.table_image import image_of
from eir.lists.log.change import Head
from eir.lists.record.settings import DEVICES
from eir.lists.table.table import EMPTY
from eir.node.processes.recorder import Recorded
from eir.node.processes.setup import Listed
from eir.sightings.settings import SightingsSettings, Webhook


async def test_what_a_recorder_has_counted_outlives_it_and_is_counted_once():
    recorded = Recorded(None, SightingsSettings(), None, lambda *_, **__: None)

    def shown():
        return [recorded.snapshot()[name][()] for name in ("eir_sightings_total", "eir_sightings_bytes")]

    for number in (1, 2):
        process = PlayedProcess("sightings", PID, {})
        attending = asyncio.create_task(recorded.child.attend(process))
        process.there.notify("counted", {"eir_sightings_total": {(): 3.0}, "eir_sightings_bytes": {(): 7.0}})
        await until_async(lambda: shown() == [3.0 * number, 7.0])  # noqa: B023 - it is called here
        process.end()
        await attending
        process.channel.close()
        assert shown() == [3.0 * number, 7.0]
    recorded.end()


@pytest.mark.parametrize(
    ("webhook", "searches"), [(None, []), (Webhook(url="http://127.0.0.1/", key_file=Path("key")), ["stolen"])]
)
async def test_only_events_that_are_sent_are_searched_for(webhook, searches):
    """Without a receiver no event leaves the queue, and the recorder would wait for that for good."""
    settings = SightingsSettings(webhook=webhook)
    recorded = Recorded(SimpleNamespace(store="sqlite"), settings, None, lambda *_, **__: None)
    state = Head(kind=DEVICES, serial=1, generation=1, highest_serial=1, release="")
    recorded.note_list(Listed("stolen", DEVICES, state), image_of(EMPTY), is_change=True)
    searched, is_greeted = [], asyncio.Event()

    def search(listed, memory):
        os.close(memory)
        searched.append(listed.name)

    process = PlayedProcess("sightings", PID, {"put_in_force": search, "greeted": is_greeted.set})
    attending = asyncio.create_task(recorded.child.attend(process))
    await until_async(lambda: recorded.child.channel is not None)
    process.channel.notify("greeted")
    await is_greeted.wait()
    assert searched == searches
    assert [*recorded.snapshot()["eir_events_total"]] == [("webhook",)] * len(searches)
    process.end()
    await attending
    process.channel.close()
    recorded.end()
