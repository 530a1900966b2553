"""Writer of the record of checks, without a node. Its files and faults: tests/sightings."""

import asyncio

from simulated.patience import PATIENCE_S
from simulated.wire import until

from eir.node.processes.record_writer import RecordWriter
from eir.sightings.settings import SightingsSettings

WINDOW_S = 10 * PATIENCE_S


async def test_a_request_to_write_does_not_wait_for_the_window_or_after_another_write(tmp_path, monkeypatch):
    monkeypatch.setattr("eir.node.processes.record_writer.AGAIN_S", WINDOW_S)
    settings = SightingsSettings(window_s=WINDOW_S)
    writer = RecordWriter(tmp_path, settings, dict, count=lambda *_, **__: None, report=print)
    running = asyncio.create_task(writer.run())
    async with asyncio.timeout(PATIENCE_S):
        await writer.flush()
        await writer.flush()
    running.cancel()


async def test_who_waits_for_a_write_waits_until_one_succeeds(tmp_path, monkeypatch):
    monkeypatch.setattr("eir.node.processes.record_writer.AGAIN_S", 0.01)
    failed = []
    (tmp_path / "sightings.key").mkdir()  # the key cannot be read
    writer = RecordWriter(
        tmp_path, SightingsSettings(window_s=0.01), dict, count=lambda *_, **__: None,
        report=lambda *what, **_: failed.append(what),
    )  # fmt: skip
    running = asyncio.create_task(writer.run())
    flushing = asyncio.create_task(writer.flush())
    async with asyncio.timeout(PATIENCE_S):
        await until(lambda: len(failed) > 1)
        assert not flushing.done()
        (tmp_path / "sightings.key").rmdir()
        await flushing
    running.cancel()
