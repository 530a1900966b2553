"""Settings that polars reads at its import."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
before = os.environ.get("_RJEM_MALLOC_CONF")
from eir.frames import pl
print(pl.thread_pool_size(), os.environ.get("_RJEM_MALLOC_CONF") == before)
"""


@pytest.mark.parametrize("of_user", ["dirty_decay_ms:500,stats_print:true", None])
def test_polars_uses_one_thread_and_keeps_freed_memory_for_ten_seconds(of_user):
    """The allocator can print its options at the end. Programs that this one starts get the environment of the user."""
    environment = {name: value for name, value in os.environ.items() if name != "POLARS_MAX_THREADS"}
    environment.pop("_RJEM_MALLOC_CONF", None)
    if of_user is not None:
        environment["_RJEM_MALLOC_CONF"] = of_user
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 True"
    if of_user is not None:
        assert "opt.dirty_decay_ms: 10000 " in done.stderr
