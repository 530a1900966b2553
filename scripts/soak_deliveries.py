"""Ten thousand deliveries of forty kinds by three publishers: each good release is in force within 10 s, nothing is lost, each refusal has its reason.

A node with a drop folder runs; the publishers know nothing of it. A seed, which is printed, draws the deliveries and which of them are
good, damaged or hostile. The node answers checks meanwhile.
"""

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from simulated.deliveries import LISTS, Deliveries, settings
from simulated.node import Publisher, Site

IN_FORCE_S = 10.0
"""Maximum time from the arrival of a good release's last file until the store has it."""
LATER_S = 1.5
"""Time after which the missing files of a delivery come."""
PATIENCE_S = 20
LOOK_S = 0.1
END_S = 300.0


def main(arguments: list[str]) -> int:
    """Run the part `deliveries` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak deliveries", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--deliveries", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=6.0, help="deliveries per second")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of the deliveries (default: random)"
    )
    options = parser.parse_args(arguments)
    print(f"{options.deliveries:,} deliveries at {options.rate:g} a second, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        for made in ("publisher", "keys", "kept"):
            (folder / made).mkdir()
        with Site(folder / "site", Publisher(folder / "publisher")) as site:
            (site.folder / "in").mkdir()
            deliveries = Deliveries(folder / "keys", site.folder / "in", options.seed)
            rules = [{"list": each, "answer": "blacklisted"} for each in LISTS]
            site.configure(
                lists=settings(folder / "keys"), policy={"rules": rules}, inbox="in", inbox_patience_s=PATIENCE_S
            )
            broken = _soak(site.start(), deliveries, folder / "kept", options)
    for promise in broken[:50]:
        print(f"not kept: {promise}", file=sys.stderr)
    return 1 if broken else 0


class _Watch:
    """Times at which each content was seen in force, and an operator who empties the folders."""

    def __init__(self, node: Any, deliveries: Deliveries, kept: Path) -> None:
        self.node, self.deliveries, self.kept = node, deliveries, kept
        self.waiting: list[Any] = []
        self.took_s: list[float] = []
        self.late: list[Any] = []
        self._seen = self._kept = 0

    def look(self) -> None:
        """Look once at the content in force, and at the folders."""
        self.waiting += [each for each in self.deliveries.made[self._seen :] if not each.reasons]
        self._seen = len(self.deliveries.made)
        now, in_force = time.monotonic(), self.node.status()["lists"]
        unfinished = {id(expected) for expected, *_ in self.deliveries.later}
        for each in list(self.waiting):
            if id(each) in unfinished:
                continue
            took_s = now - each.whole
            if in_force.get(each.list, {"serial": 0})["serial"] >= each.serial:
                self.took_s.append(took_s)
                self.waiting.remove(each)
            elif took_s > IN_FORCE_S and each not in self.late:
                self.late.append(each)
        for room in ("accepted", "refused"):
            for path in list((self.deliveries.drop / room).glob("*")):
                self._kept += 1
                path.rename(self.kept / f"{self._kept}-{room}-{path.name}"[:255])


def _soak(node: Any, deliveries: Deliveries, kept: Path, options: argparse.Namespace) -> list[str]:
    watch, began, looked, later_at = _Watch(node, deliveries, kept), time.monotonic(), 0.0, None
    for number in range(options.deliveries):
        while (now := time.monotonic()) < began + number / options.rate:
            if now - looked > LOOK_S:
                watch.look()
                looked = time.monotonic()
            if later_at is not None and now > later_at:
                deliveries.catch_up()
                later_at = None
            time.sleep(0.005)
        deliveries.deliver()
        if deliveries.later and later_at is None:
            later_at = time.monotonic() + LATER_S
        if number and number % 1000 == 0:
            print(
                f"{number:,} after {now - began:.0f} s; slowest in force {max(watch.took_s, default=0):.1f} s",
                flush=True,
            )
    deliveries.catch_up()
    end = time.monotonic() + END_S
    while time.monotonic() < end and (watch.waiting or any(not path.is_dir() for path in deliveries.drop.iterdir())):
        watch.look()
        time.sleep(LOOK_S)
    watch.look()
    said = Counter(
        (line["event"], line.get("reason"))
        for line in node.lines()
        if line["event"] in {"inbox_failed", "inbox_unusable", "fault"}
    )
    events = [
        event for name in LISTS for event in node.site.json("history", name, "-n", 10**9) if event["what"] == "load"
    ]
    kinds = Counter(each.kind for each in deliveries.made)
    took_s = sorted(watch.took_s)
    print(
        f"{len(deliveries.made):,} deliveries of {len(kinds)} kinds in {time.monotonic() - began:.0f} s; {len(events):,} loads"
    )
    if took_s:
        print(f"in force after {took_s[len(took_s) // 2]:.1f} s (median), {took_s[-1]:.1f} s at most")
    broken = deliveries.broken([kept], [(event["list"], event["serial"]) for event in events])
    if watch.late:
        broken.append(
            f"{len(watch.late)} were not in force within {IN_FORCE_S:g} s, such as {watch.late[0].kind} {watch.late[0].manifest}"
        )
    return broken + [f"{count} times {event} {reason}" for (event, reason), count in said.items()]
