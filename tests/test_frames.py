"""Settings that polars reads at its import."""

import os
import subprocess
import sys

PROGRAM = "import os; from eir.frames import pl; print(pl.thread_pool_size(), os.environ['_RJEM_MALLOC_CONF'])"
OF_USER = "dirty_decay_ms:500,stats_print:true"


def test_polars_uses_one_thread_and_keeps_freed_memory_for_ten_seconds():
    """The allocator prints its options at the end. Programs that this one starts get the environment of the user."""
    environment = {**os.environ, "_RJEM_MALLOC_CONF": OF_USER}
    environment.pop("POLARS_MAX_THREADS", None)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"1 {OF_USER}"
    assert "opt.dirty_decay_ms: 10000 " in done.stderr
