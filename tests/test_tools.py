"""Tools of the tests: the process that forks commands (scripts/simulated/commands.py), and the clock (tests/clock.py)."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from clock import TURN_S
from simulated.commands import Forked
from simulated.patience import PATIENCE_S

SERVE = (
    "import sys; from simulated import commands; commands.IMPORTED = (); commands._serve(sys.argv[1], int(sys.argv[2]))"
)


def test_a_command_ends_with_the_process_of_the_tests(tmp_path):
    """Else a killed run of the tests leaves nodes behind."""
    path, silent = str(tmp_path / "socket"), tmp_path / "eir.yaml"
    os.mkfifo(silent)
    theirs, life = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, path, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[1] / "scripts",
        )
    assert life.recv(1)
    command = Forked(path, ["lists", "-c", str(silent)], dict(os.environ), tmp_path, [0, 1, 2])
    watched = os.pidfd_open(command.pid)
    try:
        life.close()
        assert select.select([watched], [], [], 60)[0]
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(watched, signal.SIGKILL)
        os.close(watched)
    assert process.wait(PATIENCE_S) == 0
    command.wait(PATIENCE_S)


async def test_a_host_that_stands_still_takes_no_time_from_a_test():
    loop = asyncio.get_running_loop()
    began = loop.time()
    time.sleep(10 * TURN_S)  # noqa: ASYNC251
    await asyncio.sleep(0)
    assert loop.time() - began <= 2 * TURN_S
