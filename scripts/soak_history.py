"""Journal of a node under floods: no event of the main series is lost, each line can be verified, and the sizes keep their limits.

A busy year with ten lists and an hourly delta for each, and a year of a register that feeds rows beside it. The feed keeps the ratio of rows to
its size limit that 1,200 rows/s have, and the clock is simulated.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from simulated.history import LISTS, LOADS_PER_DAY, YEAR_BYTES_MAX, sizes, timed


def main(arguments: list[str]) -> int:
    """Run the part `history` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak history", description=__doc__)
    parser.add_argument("--days", type=int, default=365, help="simulated days")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the register per day")
    options = parser.parse_args(arguments)
    kept = True
    for name, settings in (
        ("busy year", {"loads": LOADS_PER_DAY * LISTS, "rows": 0, "rejections": 300}),
        ("year of a feed", {"rows": options.rows, "feed_max_bytes": 256 << 20}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            seconds, faults = timed(Path(folder) / "journal", options.days, **settings)
            taken = sizes(Path(folder) / "journal")
            if options.days <= 365 and taken["main"] > YEAR_BYTES_MAX:
                faults.append(f"the main series has {taken['main']:,} bytes, expected at most {YEAR_BYTES_MAX:,}")
        shown = ", ".join(f"{series} {size / 1e6:.1f} MB" for series, size in taken.items())
        print(f"{name}: {options.days} days; {shown}; {seconds:.0f} s", flush=True)
        for fault in faults[:20]:
            print(f"not kept: {name}: {fault}", file=sys.stderr)
        kept &= not faults
    return 0 if kept else 1
