"""One peer whose requests are all odd, at its limit, beside 64 good ones: what that does to the latency of theirs.

Odd requests are those that the express lane leaves to the general path, which takes many times as long for each of them. Latency counts
from when a request has come to the server's socket until its answer has come back, so that the generator's own lateness does not count.
"""

import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.measure import (
    COLUMNS,
    Load,
    Results,
    ask,
    at_most,
    begin,
    finish,
    percentile,
    rows,
    say,
    wrong_answers,
)
from benchmark.servers import REALM, free_port
from benchmark.site import loaded

from eir.commands.table import table
from eir.diameter.avp import encode, encode_text, encode_u32, key_of
from eir.diameter.message import encode_message

QUESTIONS = 200_000
GOOD = Load(64, 32, rate=20_000, on_wire=True)
ODD_HOST, ODD_RATE_MAX, ODD_RATE, PAUSE_S = f"odd.{REALM}", 1_000, 1_100, 0.01
"""The odd peer asks a little faster than it may, so that it is at its limit all the time."""
P99_TIMES_MAX = 1.5
VENDOR_3GPP, S13, STRANGER = 10415, 16777252, key_of(99, 9999)


def main(arguments: Sequence[str]) -> int:
    """The part `odd` of scripts/bench."""
    options, on, how = begin("odd", __doc__, arguments)
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, _, questions = loaded(folder, options, questions=QUESTIONS)
        peers = [
            {"name": "odd", "host": ODD_HOST, "realm": REALM, "rate_max": ODD_RATE_MAX},
            {"name": "mme", "realm": REALM},
        ]
        with site.server("eir", free_port(), cores=on.server, peers=peers) as server:
            for turn in range(how.turns):
                alone = ask(server, GOOD, questions, how, on.generator)
                odd = multiprocessing.get_context("spawn").Process(
                    target=_ask_oddly, args=(server.port, on.generator), daemon=True
                )
                odd.start()
                time.sleep(0.5)
                beside = ask(server, GOOD, questions, how, on.generator)
                if not odd.is_alive():
                    raise RuntimeError("the odd peer was thrown out")
                odd.terminate()
                odd.join()
                for name, found in (("alone", alone), ("beside the odd peer", beside)):
                    results.setdefault((name, str(GOOD)), []).append(found)
                say(
                    f"turn {turn + 1}: p99 {alone['latency_us']['p99']:.0f} us, then {beside['latency_us']['p99']:.0f} us"
                )
    value = percentile("p99")
    times_alone = [
        round(value(two) / value(one), 2)
        for one, two in zip(results["alone", str(GOOD)], results["beside the odd peer", str(GOOD)], strict=True)
    ]
    target = at_most("p99 beside the odd peer, times that without it", P99_TIMES_MAX, statistics.median(times_alone))
    measured: dict[str, Any] = {
        "measured": rows(results),
        "p99_times_alone": times_alone,
        "wrong_answers": wrong_answers(results),
    }
    text = f"by turn, p99 in times of that without the odd peer: {times_alone}\n"
    return finish("odd", measured, [target], options, table(rows(results), COLUMNS, width=None) + text)


def _ask_oddly(port: int, on: set[int]) -> None:
    """Ask until ended, each time by something that only the general path answers."""
    os.sched_setaffinity(0, on)
    origin = encode_text(264, ODD_HOST) + encode_text(296, REALM)
    about = (
        origin + encode(257, b"\0\x01\x7f\0\0\1") + encode_u32(266, 0) + encode_text(269, "odd") + encode_u32(258, S13)
    )
    info = encode(key_of(1401, VENDOR_3GPP), encode_text(key_of(1402, VENDOR_3GPP), "00101009000001"))
    odd = encode_u32(301, 10) + encode(STRANGER, b"x" * 20, flags=0) * 12  # a priority, which the lane leaves alone
    avps = encode_text(263, f"{ODD_HOST};1;1") + encode_u32(277, 1) + origin + encode_text(283, REALM) + info + odd
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(encode_message(0x80, 257, 0, (1, 1), about))
        one.recv(65536)
        one.setblocking(False)
        due = time.monotonic()
        number = 0
        while True:
            due += PAUSE_S
            burst = []
            for _ in range(int(ODD_RATE * PAUSE_S)):
                number += 1
                burst.append(encode_message(0xC0, 324, S13, (number, number), avps))
            one.setblocking(True)
            one.sendall(b"".join(burst))
            one.setblocking(False)
            while True:
                try:
                    if not one.recv(1 << 20):
                        return
                except BlockingIOError:
                    break
            time.sleep(max(0.0, due - time.monotonic()))
