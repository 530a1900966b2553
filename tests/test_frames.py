"""Settings that polars reads at its import."""

import os
import subprocess
import sys

import pytest

PROGRAM = "import os; from eir.frames import pl; print(pl.thread_pool_size(), os.environ['_RJEM_MALLOC_CONF'].rpartition(',')[2])"
OWN = {"POLARS_MAX_THREADS": "2", "_RJEM_MALLOC_CONF": "dirty_decay_ms:7"}


@pytest.mark.parametrize(("given", "used"), [({}, "1 dirty_decay_ms:5000"), (OWN, "2 dirty_decay_ms:7")])
def test_a_host_can_override_the_threads_and_the_time_until_freed_memory_is_returned(given, used):
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | given
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == used
