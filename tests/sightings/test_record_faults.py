"""The record when its disk is full, slow or read-only, its clock goes back, or its process is killed: checks go on, losses are counted."""

import os
import signal
from datetime import UTC, datetime

import full_disk
import polars as pl
import pytest
from simulated.node import LISTED, UNLISTED, children, until_async
from test_sightings import IMSI, NOON, asked, check, each, frame_of

from eir.sightings import files
from eir.sightings.schema import FOLDER

DISK_MB = 36
KEPT = {"window_s": 0.2, "subscribers": "full"}


def recorded(state):
    """Checks in the files; every file that is there has to be readable."""
    return sum(pl.read_parquet(path, glob=False)["checks"].sum() for path in (state / FOLDER).glob("*/*.parquet"))


async def test_a_disk_that_is_full_or_read_only_costs_the_record_and_no_check(tmp_path, site, connect):
    disk_folder = tmp_path / "disk"
    disk_folder.mkdir()
    if not full_disk.is_possible(disk_folder):
        pytest.skip("no mount namespace may be made here")
    with full_disk.small_disk(disk_folder, DISK_MB) as disk:
        state = disk.seen_from_outside
        site.configure(sightings=KEPT, policy={"rules": []}, lists={})
        site.state.mkdir()
        (site.state / FOLDER).symlink_to(disk_folder / FOLDER)
        (state / FOLDER).mkdir()
        node = site.start(prefix=disk.prefix)
        mme = await connect(node)
        await asked(mme, UNLISTED)
        await until_async(lambda: recorded(state) == 1)
        disk.fill()
        await asked(mme, *[UNLISTED] * 5)
        await until_async(lambda: node.lines("sightings_failed"))
        assert recorded(state) == 1
        disk.free()
        await asked(mme, LISTED)
        await until_async(lambda: recorded(state) == 7)  # what waited was not lost
        assert not list(state.glob(f"*/*/.*{files.UNFINISHED}"))
        disk.remount("ro")
        await asked(mme, *[UNLISTED] * 2)
        await until_async(lambda: node.lines("sightings_failed", reason="Read-only file system"))
        disk.remount("rw")
        await until_async(lambda: recorded(state) == 9)
        await until_async(lambda: node.metrics()["eir_sightings_total"] == 9)  # counted once it is written


BROKEN = """
import sys
if "recorder" in sys.argv:
    import eir.sightings.files as files
    write = files.write
    def broken(state, rows):
        return 1 / 0 if (state / "broken").exists() else write(state, rows)
    files.write = broken
"""
"""Body of a sitecustomize.py by which the recorder has a fault of its own for as long as a file is there."""


@pytest.mark.long
async def test_a_folder_that_cannot_be_written_and_a_fault_of_the_program(site, connect, altered):
    """Read-only, as a file system is after a fault; root may write anywhere, so a file stands where the folder should be."""
    altered(BROKEN)
    site.configure(sightings=KEPT, policy={"rules": []}, lists={})
    site.state.mkdir()
    (site.state / FOLDER).write_text("in the way")
    node = site.start()
    mme = await connect(node)
    await asked(mme, *[UNLISTED] * 3)
    await until_async(lambda: node.lines("sightings_failed"))
    assert node.get("/ready")[0] == 200
    (site.state / FOLDER).unlink()
    await until_async(lambda: recorded(site.state) == 3)
    (site.state / "broken").touch()
    await asked(mme, UNLISTED)
    await until_async(lambda: node.lines("fault", reason="sightings"))
    (site.state / "broken").unlink()
    await asked(mme, UNLISTED)
    await until_async(lambda: recorded(site.state) > 3)


async def test_killed_again_and_again_files_stay_readable_and_no_check_notices(site, connect):
    site.configure(sightings=KEPT, policy={"rules": []}, lists={})
    node = site.start()
    mme, asked_for, killed = await connect(node), 0, set()
    while len(killed) < 3:
        await asked(mme, *[UNLISTED] * 20)
        asked_for += 20
        pid = children(node.pid).get("recorder")
        if pid is not None and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    await until_async(lambda: children(node.pid).get("recorder") not in killed | {None})
    before, counted = recorded(site.state), node.metrics().get("eir_sightings_total", 0)
    await asked(mme, LISTED)
    await until_async(lambda: recorded(site.state) > before)
    assert recorded(site.state) <= asked_for + 1
    # Counted once it is written; who is killed in between has not told of it.
    await until_async(lambda: node.metrics()["eir_sightings_total"] > counted)
    assert node.metrics()["eir_sightings_total"] <= recorded(site.state)
    assert node.metrics()["eir_process_restarts_total{process=answering}"] == 0


async def test_while_the_process_that_writes_stands_still_checks_go_on_and_what_is_lost_is_counted(
    site, connect, altered
):
    small = "recorded.HANDED_BYTES_MAX = 20_000; recorded.SOCKET_BYTES = 1 << 15"
    altered(
        f"import sys\nif {{'serve', 'answering'}} & {{*sys.argv}}:\n    import eir.node.processes.recorder as recorded\n    {small}\n"
    )
    site.configure(sightings=KEPT | {"rate_max": 1e7}, policy={"rules": []}, lists={})
    node = site.start()
    mme = await connect(node)
    writer = children(node.pid)["recorder"]
    os.kill(writer, signal.SIGSTOP)
    try:
        count = 0
        while not (dropped := node.metrics().get("eir_sightings_dropped_total{reason=buffer}")):
            await mme.send(*(check(f"{count + number:014d}", number=number) for number in range(200)))
            for _ in range(200):
                await mme.read()
            count += 200
    finally:
        os.kill(writer, signal.SIGCONT)
    await until_async(
        lambda: recorded(site.state) + node.metrics()["eir_sightings_dropped_total{reason=buffer}"] == count
    )
    assert dropped


def test_a_clock_that_goes_back_an_hour_replaces_nothing(tmp_path):
    """Not even the same microsecond does."""
    for at in (NOON, NOON - 3600, NOON):
        files.write(tmp_path, frame_of(each(UNLISTED, imsi=IMSI), at=at))
    assert recorded(tmp_path) == 3
    days = {path.parent.name for path in (tmp_path / FOLDER).glob("*/*.parquet")}
    assert days == {f"{datetime.fromtimestamp(NOON, UTC):%Y-%m-%d}"}
