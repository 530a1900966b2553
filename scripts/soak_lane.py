"""Millions of ECRs, half of them altered: the express lane gives the same bytes, counts and record as the general path.

Each AVP that the grammar knows may stand on any level, once or twice, with and without the M bit, in any order. Each process compares two
connections; it prints the seed, and the message for which the two differ.
"""

import argparse
import multiprocessing
import os
import random
import time
from typing import Any

from parts import report, seeded
from simulated import lanes

from eir.checks.settings import PolicySettings, Rule, Status

MESSAGES = 10_000_000
BURST, SOME = 60, 200
"""Maximum number of messages in one read; number of prepared messages, since making one costs as much as answering three."""
POLICIES = (
    lanes.LISTED, lanes.POLICY,
    PolicySettings(
        rules=(
            Rule(answer=Status.BLACKLISTED, identifier=("test",)), Rule(answer=Status.GREYLISTED, list="sims", observe=True),
            Rule(answer=Status.UNKNOWN, not_list="stolen", imsi=("00102",)), Rule(answer=Status.BLACKLISTED, list="ending"), Rule(answer=Status.GREYLISTED, device_type=("Module",)), Rule(answer=Status.GREYLISTED, list="tacs"),
        ),
        default=Status.WHITELISTED,
    ),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the part `lane` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak lane", description=__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"{MESSAGES:,} by default")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="number of processes (default: number of processors)"
    )
    options = seeded(parser, arguments)
    began = time.monotonic()
    share = -(-options.messages // options.processes)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        done = pool.starmap(_compare, [(f"{options.seed}/{number}", share) for number in range(options.processes)])
    different = [message for _, _, message in done if message is not None]
    sent, taken = (sum(each[at] for each in done) for at in range(2))
    print(
        f"{sent:,} messages, of which the lane answered {taken:,}; {len(different)} of {options.processes} processes found a difference; {time.monotonic() - began:.0f} s"
    )
    return report(
        [*(f"differs: {message}" for message in different), *(() if taken else ("the lane answered no message",))]
    )


def _compare(seed: str, messages: int) -> tuple[int, int, str | None]:
    """Return the number of messages, the number that the lane answered, and the message for which two connections differ."""
    rng, index, sent, taken = random.Random(seed), lanes.listed(), 0, 0
    while sent < messages:
        policy, some = rng.choice(POLICIES), [lanes.an_ecr(rng) for _ in range(SOME)]
        sides = lanes.sides(index, policy, sightings=True)
        for _ in range(20):
            burst = [
                lanes.altered(rng, message) if rng.random() < 0.5 else message
                for message in rng.choices(some, k=rng.randrange(1, BURST))
            ]
            sent += len(burst)
            if not _same(sides, b"".join(burst)):
                return sent, taken, _culprit(index, policy, burst)
        taken += sides[0].by_lane
    return sent, taken, None


def _same(sides: list[Any], stream: bytes) -> bool:
    answers = [side.feed(stream) for side in sides]
    return bool(answers[0] == answers[1] and sides[0].state() == sides[1].state())


def _culprit(index: Any, policy: PolicySettings, burst: list[bytes]) -> str:
    for message in burst:
        if not _same(lanes.sides(index, policy, sightings=True), message):
            return message.hex()
    return f"only in a row: {b''.join(burst).hex()}"
