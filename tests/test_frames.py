"""Settings that polars reads at its import."""

import os
import subprocess
import sys

PROGRAM = "import os; from eir.frames import pl; print(pl.thread_pool_size(), os.environ['_RJEM_MALLOC_CONF'].rpartition(',')[2])"


def test_polars_uses_one_thread_and_keeps_freed_memory_for_ten_seconds():
    """A process that has imported polars passes polars' own defaults on in its environment."""
    environment = {**os.environ, "_RJEM_MALLOC_CONF": "dirty_decay_ms:500,muzzy_decay_ms:1000"}
    environment.pop("POLARS_MAX_THREADS", None)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 dirty_decay_ms:10000"
