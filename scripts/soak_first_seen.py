"""Periods of grace over weeks, on two nodes and a Redis with faults: no device gets a second period, and none loses its own.

Each simulated day has first checks of new devices and further checks of earlier ones. Each answer is compared with a model. During
the days answering processes and followers are killed, nodes restart, power is lost, two nodes are separated, Redis is lost, and so is the disk of a
node. Some devices are registered for a time. On one day a peer sends invented IMEIs; the node records at most the peer's limit.
"""

import argparse
import asyncio
import resource
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from simulated import servers
from simulated.first_sightings import NAME, REGISTERED, TODAY, SightingNode, register

from eir.checks.checker import Checker
from eir.checks.new_devices import AGAIN_TURNS, COMPARED_PER_TURN, NewDevices
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.lists.images.index import FirstSeenList, Index
from eir.lists.images.table_image import image_of
from eir.lists.record.first_days import DAY_S, first_days
from eir.lists.record.settings import DEVICES, FIRST_SEEN
from eir.lists.stores.open import open_store

PEERS = 4
PER_TAC = 200
SEEN_AGAIN = 0.05
"""Share of the known devices that is seen again each day."""
REGISTERED_SHARE = 0.02
"""Share of the known devices that is registered for a time."""
NEW_PER_PEER = 20_000
NEVER = 30_000
"""Day number after all others."""
WHITE, GREY, BLACK = Status.WHITELISTED, Status.GREYLISTED, Status.BLACKLISTED
KILLED_ANSWERING, KILLED_FOLLOWER, RESTART, POWER, APART, LOST_REDIS, START_ALONE, LOST_DISK = FAULTS = (
    "killed answering process", "killed follower", "restart", "loss of power", "partition", "lost Redis", "start without Redis", "lost disk",
)  # fmt: skip
"""Faults, one each day. A partition lasts until the node starts again, two days later."""
BAND = "the flood"

Devices = NDArray[np.int64]


def main(arguments: list[str]) -> int:
    """Run the part `first-seen` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak first-seen", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1_000_000, help="total number of devices (1,000,000)")
    parser.add_argument("--days", type=int, default=60, help="simulated days (60)")
    parser.add_argument("--period", type=int, default=20, help="days of a period of grace (20)")
    parser.add_argument("--flood", type=int, default=10_000_000, help="invented IMEIs of one peer (10,000,000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    programs = servers.programs()
    if not programs:
        parser.error("no Redis here")
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="eir-soak-") as folder,
        servers.Server(next(iter(programs.values()))) as redis,
    ):
        network = _Network(options, Path(folder), redis)
        faults = asyncio.run(network.run())
    print(
        f"{network.checks:,} checks of {options.devices:,} devices over {options.days} days; {time.monotonic() - began:.0f} s"
    )
    for fault in faults[:10]:
        print(f"not kept: {fault}", file=sys.stderr)
    return 1 if faults else 0


class _Answering:
    """Answering process: its lists, and the devices that wait for the record."""

    def __init__(self, node: "_Node") -> None:
        self._node = node
        self.index = Index({NAME: FIRST_SEEN, REGISTERED: DEVICES}, lambda: node.today * DAY_S + DAY_S // 2)
        record = cast("FirstSeenList", self.index.lists[NAME])
        self.new = NewDevices(record, NEW_PER_PEER)
        self.checker = Checker(node.policy, self.index, now=datetime.now(UTC), new_devices=self.new)
        self.waiting = record.fresh
        self.follow()

    def follow(self) -> None:
        """Map the lists that the node has in force."""
        host = self._node.host
        if host.record.image is not None:
            self.index.switch(NAME, host.record.state, host.record.image)
        held = host.follower.held.get(REGISTERED)
        if held is not None and held.head != self.index.lists[REGISTERED].state:
            self.index.switch(REGISTERED, held.head, image_of(held.table))
        self.checker.tick(datetime.now(UTC))

    def answers(self, keys: Devices, peers: Devices) -> list[Any]:
        """Return the answers for devices that peers ask about."""
        check = self.checker.check
        asked = zip(keys.tolist(), peers.tolist(), strict=True)
        return [check(Question(f"{key:014d}", protocol="s13", peer=f"mme{peer}")).status for key, peer in asked]

    def hand_over(self, turns: int = 1) -> None:
        """Send devices to the node, as the answering process does each second."""
        for _ in range(turns):
            deque(self.new.remove_recorded(), maxlen=0)
            self._node.host.learned.note_sightings(self.new.pop_sightings())


class _Node:
    """Node: its follower and record, and its answering process."""

    def __init__(self, name: str, folder: Path, url: str, policy: PolicySettings) -> None:
        self.name, self.today, self.policy, self._folder, self._url = name, TODAY, policy, folder / name, url

    async def start(self, *, is_redis_away: bool = False) -> None:
        """Start with the content of copies and store."""
        self._store = open_store(self._url, self._folder)
        await self._begin(is_redis_away=is_redis_away)
        self.answering = _Answering(self)

    async def _begin(self, *, is_redis_away: bool = False) -> None:
        self.host = SightingNode(
            self._store, self._folder, today=self.today, new_per_peer=NEW_PER_PEER, who=f"node on {self.name}"
        )
        self.host.store.is_away = is_redis_away
        await self.host.start()
        self.host.store.is_away = False

    async def kill_follower(self) -> None:
        """Replace the follower by a successor, while the answering process keeps the image in force."""
        await self._begin(is_redis_away=self.host.store.is_away)

    async def begin_day(self, day: int) -> None:
        """Move the clock."""
        self.today = self.host.today = day
        self.answering.follow()

    async def round(self) -> None:
        """Follow the store and write; the answering process follows."""
        await self.host.round()
        self.answering.follow()
        for peer, keys in self.host.rejected.items():
            self.answering.new.reject(peer, keys)
        for _ in range(len(self.answering.waiting) // COMPARED_PER_TURN + 1):
            self.answering.hand_over()
        self.host.rejected.clear()

    async def stop(self, *, keeps_disk: bool = True) -> None:
        """Stop; the disk keeps its content."""
        await self._store.close()
        if not keeps_disk:
            shutil.rmtree(self._folder)


class _Network:
    """Two nodes, and the model of all devices."""

    def __init__(self, options: argparse.Namespace, folder: Path, redis: servers.Server) -> None:
        self._options, self._redis = options, redis
        self._random = np.random.default_rng(options.seed)
        rules = (Rule(answer=WHITE, list="registered"), Rule(answer=GREY, first_seen_within=options.period))
        policy = PolicySettings(rules=rules, default=BLACK)
        self._nodes = [_Node(name, folder, redis.url, policy) for name in "ab"]
        tacs = 35_000_000 + self._random.choice(1_000_000, options.devices // PER_TAC + 1, replace=False)
        places = self._random.choice(len(tacs) * 1000, options.devices, replace=False)
        self._keys = np.sort(tacs[places // 1000] * 1_000_000 + places % 1000)
        self._begins = self._random.integers(0, options.days, options.devices)
        """Day of the first check of each device."""
        self._seen = np.full(options.devices, NEVER)
        """Day of the first check; with a fault, the record may lack this day."""
        self._safe = np.full(options.devices, NEVER)
        """Day of the first check that no fault took away."""
        self._is_registered, self._left = (np.zeros(options.devices, bool) for _ in range(2))
        self._faults = list[str]()
        self.checks = 0

    async def run(self) -> list[str]:
        """Run all days; return the broken promises."""
        async with AsyncExitStack() as stack:
            for node in self._nodes:
                await node.start()
                stack.push_async_callback(node.stop)
            for day in range(self._options.days):
                await self._day(day)
            await self._end_partition()
            self._compare_records()
        return self._faults

    async def _day(self, day: int) -> None:
        fault, days = FAULTS[day % len(FAULTS)], self._options.days
        hit = self._nodes[day // len(FAULTS) % 2]
        for node in self._nodes:
            await node.begin_day(TODAY + day)
        if fault == APART:
            hit.host.store.is_away = True
        if day == days // 3:
            await self._register(
                np.flatnonzero((self._safe < day) & (self._random.random(len(self._keys)) < REGISTERED_SHARE))
            )
        if day == 2 * days // 3:
            await self._register(np.flatnonzero(self._is_registered)[::2])
        if day == days // 2 and self._options.flood:
            await self._flood()
        await self._checks_of(day, fault, hit)
        if fault == LOST_REDIS:
            self._redis.flush()
        elif fault in {RESTART, START_ALONE, LOST_DISK}:
            await hit.round()  # a process that ends in order writes its last sightings
            await hit.stop(keeps_disk=fault != LOST_DISK)
            await hit.start(is_redis_away=fault == START_ALONE)
        await self._level()

    async def _checks_of(self, day: int, fault: str, hit: _Node) -> None:
        """Check all devices of a day at either node."""
        known = np.flatnonzero(self._begins < day)
        again = self._random.choice(known, int(len(known) * SEEN_AGAIN)) if len(known) else known
        devices = self._random.permutation(np.concatenate((np.flatnonzero(self._begins == day), again)))
        parts = np.array_split(devices, len(self._nodes))
        unsafe = list[Devices]()
        for node, part in zip(self._nodes, parts, strict=True):
            answers = node.answering.answers(self._keys[part], self._random.integers(0, PEERS, len(part)))
            self._compare(day, part, answers)
            self._seen[part] = np.minimum(self._seen[part], day)
            if node is hit and fault == KILLED_ANSWERING:
                node.answering = _Answering(node)
                unsafe.append(part)
            else:
                node.answering.hand_over()
            if node is hit and fault == POWER:
                unsafe.append(part)
        if fault == POWER:
            await hit.stop()
            await hit.start()
        if fault == KILLED_FOLLOWER:
            await hit.kill_follower()
            hit.answering.hand_over(AGAIN_TURNS + 1)
        lost = np.isin(devices, np.concatenate([*unsafe, devices[:0]]))
        kept = devices[~lost]
        self._safe[kept] = np.minimum(self._safe[kept], day)

    def _compare(self, day: int, devices: Devices, answers: Sequence[Any]) -> None:
        """Compare answers with the model."""
        self.checks += len(devices)
        period = self._options.period
        first, safe = np.minimum(self._seen[devices], day), self._safe[devices]
        white, left = self._is_registered[devices], self._left[devices]
        must_be_grey = ~white & ~left & (day <= first + period)
        must_be_black = ~white & (left | (day > safe + period))
        for expected, which in ((WHITE, white), (GREY, must_be_grey), (BLACK, must_be_black)):
            wrong = which & np.array([answer is not expected for answer in answers], bool)
            for at in np.flatnonzero(wrong)[:3].tolist():
                self._faults.append(
                    f"day {day}: {self._keys[devices[at]]:014d} is {answers[at]}, not {expected}; first seen on day {first[at]}, at the latest {safe[at]}"
                )

    async def _register(self, devices: Devices) -> None:
        """Register these devices and no others; both nodes are in touch."""
        await self._end_partition()
        now = np.zeros(len(self._keys), bool)
        now[devices] = True
        self._left |= self._is_registered & ~now
        self._is_registered = now
        await register(self._nodes[0].host.store.store, [f"{key:014d}" for key in self._keys[now].tolist()])
        await self._level()

    async def _flood(self) -> None:
        """Have one peer of one node send invented IMEIs."""
        node, before = self._nodes[0], len(self._nodes[0].host.learned._merged)  # noqa: SLF001
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answering = node.answering
        check, first = answering.checker.check, 86 * 10**12
        for number in range(self._options.flood):
            key = first + number * 9973 % 10**12
            if check(Question(f"{key:014d}", protocol="s13", peer=BAND)).status is not GREY:
                self._faults.append(f"an invented IMEI is not {GREY}")
            if number % 10_000 == 0:
                answering.hand_over()
        await node.round()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        recorded = len(node.host.learned._merged) - before  # noqa: SLF001
        refused = answering.new.unrecorded[BAND]
        print(
            f"{self._options.flood:,} invented IMEIs: {recorded:,} recorded, {refused:,} not; memory grew by {grown:.0f} MB"
        )
        if recorded != min(NEW_PER_PEER, self._options.flood) or recorded + refused != self._options.flood:
            self._faults.append(f"{recorded:,} invented IMEIs are recorded, {refused:,} are counted as not recorded")
        if len(answering.waiting) > recorded:
            self._faults.append("the answering process keeps more of a flood than its limits")

    async def _end_partition(self) -> None:
        """Connect both nodes to the store, and run rounds until their records agree."""
        for node in self._nodes:
            node.host.store.is_away = False
        await self._level()

    async def _level(self) -> None:
        """Run rounds of all nodes until each has all that the others wrote."""
        for _ in range(2):
            for node in self._nodes:
                await node.round()

    def _compare_records(self) -> None:
        """Compare the record of each node with the model."""
        seen = (self._seen < NEVER) & ~self._is_registered
        for node in self._nodes:
            rows = node.host.learned._merged.rows()  # noqa: SLF001
            firsts, keys = first_days(rows), self._keys.astype(np.uint64)
            at = np.searchsorted(rows.keys, keys).clip(max=len(rows) - 1)
            there = rows.keys[at] == keys
            first = firsts[at] - TODAY
            right = there & (first >= self._seen) & (first <= self._safe)
            wrong = seen & ~self._left & ~right & (there | (self._safe < NEVER))
            wrong |= self._left & (~there | (firsts[at] != 0)) | (self._is_registered & there)
            if wrong.any():
                self._faults.append(
                    f"node {node.name}: {int(wrong.sum()):,} devices have another first day than the model"
                )
            if node.host.learned.refused:
                self._faults.append(f"node {node.name}: {node.host.learned.refused:,} rows are refused")
            print(f"node {node.name}: {len(rows):,} devices on record")
