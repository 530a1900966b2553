"""A minute of fuzzed data files and manifests: each is either read, or refused with a reason.

Inputs follow from seeds that count up from the printed one; `scripts/simulated/fuzzed_releases.py` makes the input of one seed.
"""

import argparse
import secrets
import sys
import time
import traceback
from collections import Counter

from simulated import fuzzed_releases

SLOW_S = 2.0


def main(arguments: list[str]) -> int:
    """Run the part `readers` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak readers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of the first input (default: random)"
    )
    options = parser.parse_args(arguments)
    print(f"{options.seconds:g} s, seed {options.seed}", flush=True)
    ended: Counter[str] = Counter()
    faults: dict[str, int] = {}
    slowest = 0.0
    seed, end = options.seed, time.monotonic() + options.seconds
    while time.monotonic() < end:
        began = time.process_time()
        try:
            ended[fuzzed_releases.run(seed)] += 1
        except Exception:  # noqa: BLE001 - what is looked for
            faults.setdefault(traceback.format_exc().splitlines()[-2], seed)
        slowest = max(slowest, time.process_time() - began)
        seed += 1
    print(f"{seed - options.seed:,} scripts, the slowest took {slowest:.2f} s: {dict(ended.most_common())}")
    for where, first in faults.items():
        print(f"not kept: no exception but a refusal: seed {first}: {where.strip()}", file=sys.stderr)
    if slowest > SLOW_S:
        print(f"not kept: each within {SLOW_S:g} s", file=sys.stderr)
    return 1 if faults or slowest > SLOW_S else 0
