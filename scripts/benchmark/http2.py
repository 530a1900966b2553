"""HTTP/2 for benches: nghttp2's load generator, and the servers to compare with."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .build import HERE, python, tools
from .measure import Times
from .servers import Server, on_cores

RESOURCE = "/n5g-eir-eic/v1/equipment-status"
APPLICATION = ("starlette==1.10.0", "hypercorn==0.18.0", "uvloop")


class Failed(Exception):
    """Error: the generator did not finish its run; the text is its output."""


def questions(path: Path, asked: Path) -> Path:
    """Write a file with the paths of requests about the same devices as those of a file of load.c."""
    imeis = [line[:14] for line in asked.read_text().splitlines()]
    path.write_text(
        "".join(
            f"http://eir{RESOURCE}?pei=imei-{imei}0&supi=imsi-{1010000000000 + n:015d}\n"
            for n, imei in enumerate(imeis)
        )
    )
    return path


def command(port: int, paths: Path, *, connections: int, streams: int, seconds: float, warmup: float) -> Sequence[str]:
    """Return the command of the generator for a run of this duration."""
    tools("h2load", part="--test")
    times = [f"--duration={max(1, round(seconds))}", f"--warm-up-time={max(1, round(warmup))}"]
    return [
        "h2load",
        *times,
        "-c",
        str(connections),
        "-m",
        str(streams),
        "-i",
        str(paths),
        "-B",
        f"http://127.0.0.1:{port}",
    ]


def answers_per_s(
    port: int, paths: Path, how: Times, on: set[int], *, connections: int = 4, streams: int = 100
) -> float:
    """Return answers per second; all must have status 200. Raises Failed."""
    words = command(port, paths, connections=connections, streams=streams, seconds=how.seconds, warmup=how.warmup)
    with on_cores(on):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r"finished in .*?, ([0-9.]+) req/s", done.stdout)
    codes = re.search(r"status codes: ([0-9]+) 2xx, ([0-9]+) 3xx, ([0-9]+) 4xx, ([0-9]+) 5xx", done.stdout)
    if found is None or codes is None or any(int(codes[at]) for at in (2, 3, 4)) or not int(codes[1]):
        raise Failed(done.stdout[-1000:] + done.stderr[-1000:])
    return float(found[1])


def bare(port: int, *, log: Path, cores: set[int]) -> Server:
    """Run the bare server with the same library (http2_bare.py)."""
    return Server(
        "bare h2", [sys.executable, HERE / "http2_bare.py", str(port)], port, log=log, cores=cores, constant=True
    )


def application() -> Callable[..., Server]:
    """Run Starlette under Hypercorn in an environment of its own (peers/http2_app.py)."""
    interpreter = python(*APPLICATION)

    def start(port: int, data: Path, *, log: Path, cores: set[int]) -> Server:
        return Server(
            "starlette",
            [interpreter, HERE / "peers" / "http2_app.py", str(port), data],
            port,
            log=log,
            cores=cores,
            lists=True,
        )

    return start
