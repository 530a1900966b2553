"""Memory of a list in Redis, against a key per IMEI and a plain set.

The bench starts its own redis-server on a free port. All three forms contain the same scattered identifiers in the same number of TACs.
A script inside the server writes the other two forms, since ten million commands over a connection would need minutes.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from benchmark.servers import redis as redis_server
from redis.asyncio import Redis

from eir.device import SNR_KEYS
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.settings import DEVICES
from eir.lists.stores.redis import RedisStore
from eir.lists.table.columns import rows_of
from eir.lists.table.table import Table, table_of

LIST, LOG = "bench", "list as a log"
LIMIT_MB_PER_10_MILLION = 100
QUICK_ENTRIES, QUICK_TACS = 20_000, 200
AT_A_TIME = 20_000
# ARGV: first, last, identifiers in a TAC. TACs 397 apart, serial numbers 7,919 apart: scattered, and no number twice.
FORMS = {
    "one key each": """for i = ARGV[1], ARGV[2] do
        redis.call('SET', string.format('%08d%06d', math.floor(i / ARGV[3]) * 397 % 100000000, i * 7919 % 1000000), '1')
    end""",
    "one plain set": """for i = ARGV[1], ARGV[2] do
        redis.call('SADD', 'imeis', string.format('%08d%06d', math.floor(i / ARGV[3]) * 397 % 100000000, i * 7919 % 1000000))
    end""",
}


def made(entries: int, tacs: int) -> Table:
    """Return a list of scattered identifiers, with the same number in each TAC."""
    chosen = np.random.default_rng(1)
    numbers = chosen.choice(10**8, tacs, replace=False)
    keys = np.empty((tacs, entries // tacs), "<u8")
    for row, number in zip(keys, numbers, strict=True):
        row[:] = number * SNR_KEYS + chosen.choice(SNR_KEYS, len(row), replace=False, shuffle=False)
    return table_of(rows_of(keys.ravel()))


async def used_mb(client: Any) -> float:
    """Return the memory of the server's data in MB (10^6 bytes)."""
    return int((await client.info("memory"))["used_memory"]) / 1e6


async def measure(port: int, entries: int, tacs: int) -> dict[str, float]:
    """Measure each form in turn, in an empty server."""
    client: Any = Redis(port=port, socket_timeout=60, protocol=2)
    empty = await used_mb(client)
    store, table = RedisStore(f"redis://127.0.0.1:{port}"), made(entries, tacs)
    state = {"serial": 1, "highest_serial": 1}
    await ListWriter(store, LIST, DEVICES, "bench").write(lambda _: ListUpdate(what="load", table=table, state=state))
    found = {LOG: await used_mb(client) - empty}
    await store.close()
    for form, script in FORMS.items():
        await client.execute_command("FLUSHALL", "SYNC")
        for first in range(0, entries, AT_A_TIME):
            await client.execute_command("EVAL", script, 0, first, min(first + AT_A_TIME, entries) - 1, entries // tacs)
        found[form] = await used_mb(client) - empty
    await client.aclose()
    return found


def main(arguments: list[str]) -> int:
    """Measure each number of TACs and print a table; exit status 1 if the log needs more than the project allows."""
    parser = argparse.ArgumentParser(prog="bench redis-memory", description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--tacs", type=int, nargs="+", default=[50_000, 250_000])
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ENTRIES:,} entries: tests that it works; the figures are not valid",
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.entries, chosen.tacs = QUICK_ENTRIES, [QUICK_TACS]
    rows = []
    for tacs in chosen.tacs:
        with (
            tempfile.TemporaryDirectory(prefix="eir-bench-") as folder,
            redis_server(log=Path(folder) / "redis.log", cores=os.sched_getaffinity(0)) as server,
        ):
            found = asyncio.run(measure(server.port, chosen.entries, tacs))
        rows.append({"entries": chosen.entries, "tacs": tacs, **{form: round(size, 1) for form, size in found.items()}})
    if chosen.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['entries']:,} identifiers over {row['tacs']:,} TACs, MB in Redis:")
            for form, size in list(row.items())[2:]:
                print(f"  {form:<18}{size:>10,.1f}   {size / row[LOG]:.1f} times")
    allowed = LIMIT_MB_PER_10_MILLION * chosen.entries / 10_000_000
    return 0 if chosen.quick or all(row[LOG] <= allowed for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
