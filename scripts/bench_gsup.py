"""Processor time of a CHECK-IMEI over GSUP, against an echo.

The parts of a worker run in this process with a list of 100,000 devices; 1 % of the questions are about these. An MSC in a process of its
own asks over one connection, with 1 and with 64 unanswered questions. The result is the server's processor time for each message: it
determines the rate of a worker, and does not depend on other load of the host.
"""

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvloop
from benchmark.measure import add_options, at_least, finish, times
from benchmark.questions import KEYS_PER_TAC, scattered
from simulated.store_content import fill

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings, Rule, Status
from eir.cli.output import table
from eir.interfaces.gsup import ipa
from eir.interfaces.gsup.ipa import Frames
from eir.interfaces.gsup.message import check_imei, is_nack
from eir.interfaces.gsup.server import GsupServer
from eir.interfaces.gsup.settings import GsupSettings
from eir.lists.images.index import Index
from eir.lists.table.columns import rows_of
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.settings import Limits, PeerSettings

ENTRIES, TACS, QUESTIONS = 100_000, 20_000, 20_000
OF_ECHO = 0.5
"""An echo looks up and counts nothing. With more than one unanswered question it has nearly no cost, so there is no target for that ratio."""
WINDOWS = (1, 64)
READ_BYTES = 1 << 16


class Echo(asyncio.Protocol):
    """Server that cuts the stream into frames and sends each back."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport
        self._frames = Frames(1 << 17)

    def data_received(self, data: bytes) -> None:
        """Send complete frames back."""
        self._frames.feed(data)
        if whole := list(self._frames.whole()):
            self._transport.write(b"".join(whole))

    def connection_lost(self, _exc: Exception | None) -> None:
        """Set the end."""
        self.over.set_result(None)


def main(arguments: Sequence[str]) -> int:
    """Run the part `gsup` of scripts/bench."""
    parser = argparse.ArgumentParser(
        prog="bench gsup", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser, seconds=2, turns=5)
    options = parser.parse_args(arguments)
    how = times(options)
    listed = scattered(1000 if options.quick else ENTRIES, 100 if options.quick else TACS)
    index = Index({"stolen": "devices"})
    fill(index, "stolen", rows_of(listed.keys))
    rng = np.random.default_rng(41)
    keys = rng.choice(listed.tacs, QUESTIONS) * KEYS_PER_TAC + rng.integers(0, KEYS_PER_TAC, QUESTIONS)
    keys[::100] = rng.choice(listed.keys, len(keys[::100]))
    is_listed = np.isin(keys, listed.keys).tolist()
    questions = [check_imei(f"{1010000000000 + at:015}", f"{key:014}") for at, key in enumerate(map(int, keys))]
    found: dict[tuple[str, int], list[float]] = {}
    wrong = 0
    for _turn in range(how.turns):
        for name, serve in (("eir", lambda there: _eir(index, there)), ("echo", _echo)):
            for window in WINDOWS:
                cost, mistaken = uvloop.run(
                    _measured(serve, questions, is_listed if name == "eir" else None, window, how.seconds)
                )
                found.setdefault((name, window), []).append(cost)
                wrong += mistaken
    ratios = {
        window: round(
            statistics.median(
                echo / eir for eir, echo in zip(found["eir", window], found["echo", window], strict=True)
            ),
            2,
        )
        for window in WINDOWS
    }
    rows = [
        {
            "server": name,
            "under way": window,
            "cpu_us": round(statistics.median(all_turns), 2),
            "a_cpu_second": round(1e6 / statistics.median(all_turns)),
        }
        for (name, window), all_turns in found.items()
    ]
    targets = [at_least("checks of a worker, times what an echo frames, one under way", OF_ECHO, ratios[1])]
    measured = {"measured": rows, "ratios": ratios, "wrong_answers": wrong}
    return finish(
        "gsup", measured, targets, options, table(rows, ("server", "under way", "cpu_us", "a_cpu_second"), width=None)
    )


async def _eir(index: Index, there: socket.socket) -> None:
    """Answer one connection with the parts of a worker, until it ends."""
    checker = Checker(
        PolicySettings(rules=(Rule(list="stolen", answer=Status.BLACKLISTED),)), index, now=datetime.now(UTC)
    )
    peers, limits = (PeerSettings(label="msc"),), Limits()
    shared = SimpleNamespace(peers=peers, limits=limits, overload_answer=None)
    context: Any = SimpleNamespace(
        shared=shared, checker=checker, counts=Counts(), rates=RateLimits(limits),
        report=lambda *_, **__: None,
    )  # fmt: skip
    server = GsupServer(GsupSettings(), context)
    await server.serve(there)
    await server.drain(1)


async def _echo(there: socket.socket) -> None:
    echo = Echo()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: echo, there)
    await echo.over


async def _measured(
    serve: Callable[[socket.socket], Awaitable[None]],
    questions: Sequence[bytes],
    is_listed: Sequence[bool] | None,
    window: int,
    seconds: float,
) -> tuple[float, int]:
    """Return microseconds of this process per message, and the number of wrong answers by `is_listed` (None: not compared)."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        asking = multiprocessing.get_context("fork").Process(
            target=_ask, args=(listening.getsockname()[1], (questions, is_listed), window, seconds, theirs)
        )
        asking.start()
        there, _ = listening.accept()
    there.setblocking(False)
    began = time.process_time()
    await serve(there)
    spent = time.process_time() - began
    asking.join()
    done, wrong = ours.recv()
    return spent / done * 1e6, wrong


def _ask(
    port: int, asked: tuple[Sequence[bytes], Sequence[bool] | None], window: int, seconds: float, told: Any
) -> None:
    """Be an MSC that has this many unanswered questions at all times; puts the numbers of answers and of wrong answers into `told`."""
    questions, is_listed = asked
    chunks = [b"".join(questions[at : at + window]) for at in range(0, len(questions) - window + 1, window)]
    refusals = [sum((is_listed or ())[at : at + window]) for at in range(0, len(questions) - window + 1, window)]
    frames, done, wrong, end, at = Frames(1 << 17), 0, 0, time.monotonic() + seconds, 0
    with socket.create_connection(("127.0.0.1", port)) as there:
        while not done or time.monotonic() < end:
            there.sendall(chunks[at % len(chunks)])
            answers: list[bytes] = []
            while len(answers) < window:
                frames.feed(there.recv(READ_BYTES))
                answers += [frame for frame in frames.whole() if frame[2] != ipa.CCM]
            if is_listed is not None:
                wrong += abs(sum(map(is_nack, answers)) - refusals[at % len(chunks)])
            done += window
            at += 1
    told.send((done, wrong))
