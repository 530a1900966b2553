"""Latency while a million newly listed devices are looked up in the record of checks, and while their events are sent.

A node of one worker has a record of the last hours. A release lists a million devices that are in the record, and the node raises one
event for each. Latency is measured during the search, and from the first event on. A turn does not wait for all events: a release
without the devices follows, and the recorder is killed. Worker and recorder share one core, also with the webhook that receives the
events, which has idle priority. The store is SQLite. Latency begins when the request arrives at the node's socket. In the
case `beside a loop`, a process of idle priority runs an empty loop on that core, which shows how fast the machine preempts such a process.
"""

import asyncio
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from benchmark.measure import (
    COLUMNS,
    Case,
    Load,
    at_most,
    begin,
    compared,
    finish,
    own_options,
    percentile,
    ratio,
    rows,
    wrong_answers,
)
from benchmark.questions import QUICK_QUESTIONS, Keys, Scattered, scattered, write_list, write_questions
from benchmark.servers import Server, free_port
from benchmark.site import ENTRIES, TACS, Site, at_rest, await_serial

from eir.cli.output import table
from eir.sightings import files
from eir.sightings.schema import SCHEMA

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

DEVICES, QUICK_DEVICES, SIGHTINGS, QUICK_SIGHTINGS, QUESTIONS = 1_000_000, 2_000, 20_000_000, 20_000, 500_000
STEADY = Load(4, 4096, 20_000.0, on_wire=True)
QUIET, LOOPING, SEARCHING, SENDING = "quiet", "beside a loop", "beside the search", "beside the events"
P99_TIMES_MAX = 1.5
SEEN_PER_LISTED = 10
"""Number of devices in the record for each listed one."""
RECORDER = "eir-sightings\n"
"""Name of the process that searches the record and sends events."""
HOURS, ROWS_PER_FILE = 20, 1_000_000
FOUND_MIN_S, FOUND_S_PER_MILLION, LOOK_S = 60.0, 15.0, 0.1
"""Limit for the time until the first event: seconds, and seconds more per million rows of the record. Seconds between two looks."""


def main(arguments: Sequence[str]) -> int:
    """Run the part `listed` of scripts/bench."""
    own = own_options()
    own.add_argument("--devices", type=int, help=f"newly listed devices, all in the record ({DEVICES:,})")
    own.add_argument("--sightings", type=int, help=f"rows of the record ({SIGHTINGS:,})")
    options, on, how = begin("listed", __doc__, arguments, own, seconds=5, turns=3)
    devices = options.devices or (QUICK_DEVICES if options.quick else DEVICES)
    sightings = options.sightings or (QUICK_SIGHTINGS if options.quick else SIGHTINGS)
    base, seen = scattered(ENTRIES, TACS), scattered(SEEN_PER_LISTED * devices, TACS, seed=15)
    listed = np.setdiff1d(seen.keys[::SEEN_PER_LISTED], base.keys)
    first_s: list[float] = []
    sent: list[int] = []
    port, events = free_port(), multiprocessing.get_context("spawn").Value("q", 0)
    receiver = _running(_receive, port, on.server, events)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made, receiver:
        folder = Path(made)
        site = Site(folder / "site", loader_cores=on.generator)
        _write_record(site.state, seen.keys, listed, sightings)
        os.sync()  # the writing of the record to disk must not fall into a turn
        # No device is asked about that a release lists, so that the right answer is the same all the time.
        listed_ever = Scattered(np.union1d(base.keys, listed), np.union1d(base.tacs, seen.tacs))
        write_questions(
            folder / "questions", listed_ever, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=0
        )
        (site.folder / "hook").write_text("key of the bench")
        hook = {"url": f"http://127.0.0.1:{port}/", "key_file": "hook"}
        settings = {"sightings": {"webhook": hook, "events_max": 100_000, "rate_max": 1}}
        releases = _Releases(site, base.keys, np.union1d(base.keys, listed))
        site.load(releases.next(with_listed=False))
        with site.server("eir", free_port(), cores=on.server, **settings) as server:
            found_max_s = FOUND_MIN_S + FOUND_S_PER_MILLION * sightings / 1e6
            searching = partial(_searching, releases, server, events, found_max_s)
            cases = [
                Case(QUIET, server),
                Case(LOOPING, server, partial(_running, _loop, on.server)),
                Case(SEARCHING, server, searching),
                Case(SENDING, server, partial(searching, first_s=first_s, sent=sent)),
            ]
            results = compared(cases, [STEADY], folder / "questions", how, on.generator)
    p99 = {case: ratio(results, case, QUIET, STEADY, percentile("p99")) for case in (LOOPING, SEARCHING, SENDING)}
    measured: dict[str, Any] = {
        "measured": rows(results), "p99_ratio": p99, "devices": len(listed), "sightings": sightings, "first_event_s": first_s,
        "events": sent, "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = table(rows(results), COLUMNS, width=None)
    text += f"{len(listed):,} devices among {sightings:,} rows: first event after {statistics.median(first_s):.0f} s, "
    text += f"{statistics.median(sent):,.0f} events received in a turn\n"
    targets = [at_most(f"p99 {case} to quiet", P99_TIMES_MAX, p99[case]["median"]) for case in (SEARCHING, SENDING)]
    return finish("listed", measured, targets, options, text)


class _Releases:
    """Releases of the list in turn: with the searched devices, and without."""

    def __init__(self, site: Site, base: Keys, listed: Keys) -> None:
        self.site, self._serial = site, 0
        self._files = {False: site.folder / "base.csv", True: site.folder / "listed.csv"}
        for with_listed, keys in ((False, base), (True, listed)):
            write_list(self._files[with_listed], keys)

    def next(self, *, with_listed: bool) -> Path:
        """Return the manifest of the next release."""
        self._serial += 1
        return self.site.release(self._files[with_listed], self._serial)

    def put_in_force(self, *, with_listed: bool) -> None:
        """Load the next release, and wait until the node answers by it."""
        self.site.load(self.next(with_listed=with_listed))
        await_serial(self.site.state, self._serial)


@contextmanager
def _searching(
    releases: _Releases, server: Server, events: "Synchronized[int]", found_max_s: float, *,
    first_s: list[float] | None = None, sent: list[int] | None = None,
) -> Iterator[None]:  # fmt: skip
    """List the devices. After the run, remove the devices from the list and kill the recorder; the next recorder has no events to send.

    `first_s`, `sent`: if given, the run begins with the first event, and its time and the number of events until the end of the run are added.
    """
    events.value, began = 0, time.monotonic()
    releases.put_in_force(with_listed=True)
    if first_s is not None:
        while not events.value:
            if time.monotonic() - began > found_max_s:
                raise RuntimeError("no event has come")
            time.sleep(LOOK_S)
        first_s.append(round(time.monotonic() - began, 1))
    yield
    if sent is not None:
        sent.append(events.value)
    releases.put_in_force(with_listed=False)
    asyncio.run(at_rest(releases.site.store, releases.site.state))
    for pid in server.pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == RECORDER:
                os.kill(pid, signal.SIGKILL)
    server.rest()


@contextmanager
def _running(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run a function in a process of its own, which ends with the context."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _set_idle_priority() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _loop(on: set[int]) -> None:
    """Use the free time of these cores at idle priority until the process is ended."""
    os.sched_setaffinity(0, on)
    _set_idle_priority()
    while True:
        pass


def _write_record(state: Path, seen: Keys, listed: Keys, count: int) -> None:
    """Write checks of the last hours: one of each listed device, the others of any device."""
    rng = np.random.default_rng(7)
    devices = np.concatenate((listed, rng.choice(seen, count - len(listed))))
    rng.shuffle(devices)
    start = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=HOURS)
    for at in range(0, count, ROWS_PER_FILE):
        some = devices[at : at + ROWS_PER_FILE]
        times_us = np.sort(rng.integers(0, HOURS * 3600 * 10**6, len(some)))
        when = pl.lit(start) + pl.duration(microseconds=pl.Series(times_us))
        frame = pl.select(device=pl.Series(some), time=when)
        values = {
            "last": pl.col("time"), "checks": pl.lit(1, pl.UInt32), "imei": pl.col("device").cast(pl.String).str.zfill(14),
            "subscriber": pl.col("device").hash().cast(pl.String), "home": pl.lit("001010"), "origin_host": pl.lit("mme1.example.org"),
            "peer": pl.lit("mme"), "origin_realm": pl.lit("example.org"), "protocol": pl.lit("s13"), "status": pl.lit("whitelisted"),
        }  # fmt: skip
        whole = frame.with_columns(**values)
        absent = {name: pl.lit(None, pl.Boolean if kind == "BOOLEAN" else pl.String) for name, kind in SCHEMA.items()}
        files.write(
            state,
            whole.with_columns(**{name: value for name, value in absent.items() if name not in whole.columns}).select(
                list(SCHEMA)
            ),
        )


class _Receiver(BaseHTTPRequestHandler):
    """Webhook that counts events."""

    def do_POST(self) -> None:
        """Count the events of one delivery."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.events.get_lock():  # type: ignore[attr-defined]
            self.server.events.value += body.count(b'"id": ')  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _receive(port: int, on: set[int], events: "Synchronized[int]") -> None:
    """Count on these cores the events that a webhook receives, until the process is ended."""
    os.sched_setaffinity(0, on)
    _set_idle_priority()  # it must delay neither the worker nor the load generator
    server = HTTPServer(("127.0.0.1", port), _Receiver)
    server.events = events  # type: ignore[attr-defined]
    server.serve_forever()
