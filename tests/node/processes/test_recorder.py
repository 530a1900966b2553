"""The record as the supervisor has it: what recorders have counted."""

import asyncio

from node import until_async
from test_supervisor import PID, PlayedProcess

from eir.node.processes.recorder import Recorded
from eir.sightings.settings import SightingsSettings


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
