"""The compiled lane under fire, in a build that stops at the first byte it should not touch: tests/interfaces/s13/test_lane.py makes and runs it.

Called with the extension's file, seconds and a seed. Messages are cut at every place, altered and mixed; policies, lists and a peer's
terms are altered; what the lane answers is held to the general path. All memory is malloc's own, so that a byte too far is seen.
"""

import importlib.machinery
import importlib.util
import random
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

if __name__ == "__main__":  # in place of the one that is installed
    loader = importlib.machinery.ExtensionFileLoader("eir.interfaces.s13._lane", sys.argv[1])
    spec = importlib.util.spec_from_loader("eir.interfaces.s13._lane", loader)
    sys.modules["eir.interfaces.s13._lane"] = importlib.util.module_from_spec(spec)

from simulated import lanes

from eir.checks.program import WORD_BYTES
from eir.checks.settings import PolicySettings, Rule, Status
from eir.interfaces.s13 import _lane, lane

RULES = (
    Rule(answer=Status.WHITELISTED, list="bound", imsi=("00102",)), Rule(answer=Status.BLACKLISTED, list="stolen"),
    Rule(answer=Status.UNKNOWN, not_list="tacs", software_version=("77",)), Rule(answer=Status.GREYLISTED, list="sims", tac=("001010", "35")),
    Rule(answer=Status.GREYLISTED, list="ending", origin_host=("mme2.example",)),
)  # fmt: skip


def traffic(rng, index):
    """Whatever comes, the same answers; in pieces too."""
    with_lane, without = lanes.sides(index, PolicySettings(rules=RULES), sightings=True)
    for _ in range(20):
        stream = b"".join(lanes.an_ecr(rng) for _ in range(rng.randrange(1, 40)))
        if rng.random() < 0.3:
            stream = lanes.altered(rng, stream)
        cut = rng.randrange(len(stream) + 1)
        for piece in (stream[:cut], stream[cut:]):
            assert with_lane.feed(piece) == without.feed(piece)
            assert with_lane.state() == without.state()


def taken(side, data, position=0, **given):
    """The result of the C for these bytes."""
    express = lane.ExpressLane(side.lanes, lanes.terms(side))
    side.lanes.renew()
    given = {"terms": express.terms, "telling": side.lanes.everything} | given
    return side.lanes.lane.take(given["terms"], data, position, 99, express.decide, given["telling"])


def cuts(rng, index):
    """The lane itself, with a buffer that ends anywhere."""
    side = lanes.Side(lane=True, policy=PolicySettings(rules=RULES), index=index, sightings=True)
    stream = b"".join(lanes.an_ecr(rng) for _ in range(4))
    for end in range(len(stream) + 1):
        taken(side, bytes(memoryview(stream)[:end]))
    for _ in range(100):
        octets = lanes.altered(rng, stream)
        taken(side, octets, rng.randrange(len(octets)))
        with suppress(ValueError):
            taken(side, stream, rng.choice((-1, len(stream), len(stream) + 1)))


def terms(rng, index):
    """Terms of a peer with other bytes: refused, or obeyed."""
    side = lanes.Side(lane=True, policy=PolicySettings(rules=RULES), index=index)
    good = lane.ExpressLane(side.lanes, lanes.terms(side)).terms
    octets = bytearray(good)
    for _ in range(rng.randrange(1, 4)):
        octets[rng.randrange(len(octets))] = rng.choice([0, 1, 4, 0x7F, 0xFF, rng.randrange(256)])
    if rng.random() < 0.3:
        del octets[rng.randrange(len(octets)) :]
    with suppress(ValueError):
        taken(side, lanes.an_ecr(rng) * 3, terms=bytes(octets), telling=rng.choice((b"", bytes(3))))


def programs(rng, index):
    """Policies with other words and lists with other arrays: refused, or obeyed, with no look outside."""
    program = lanes.Side(lane=True, policy=PolicySettings(rules=RULES), index=index).checker.policy.program
    words = bytearray(program.words)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(words) // WORD_BYTES) * WORD_BYTES
        words[at : at + WORD_BYTES] = struct.pack(
            "=Q", rng.choice([0, 1, 2, 5, 7, 1 << 32, 4 << 32, (1 << 64) - 1, (1 << 64) - 2, rng.getrandbits(64)])
        )
    arrays = tuple(
        (
            None if entries.image is None else tuple(map(rng_bytes(rng), entries.image.lane_arrays)),
            rng.randrange(4),
            rng.randbytes(3 * rows - rng.randrange(2)),
            rng.choice((0, 19_723, 20_787, 0xFFFFFFFF)),
        )
        for entries in program.lists
        for rows in [1 if entries.image is None else 1 + len(entries.image.lane_arrays[2])]
    )
    side = lanes.Side(lane=True, policy=PolicySettings(rules=RULES), index=index)
    with suppress(ValueError):
        made = _lane.Lane(
            bytes(words),
            len(program.verdicts) + rng.randrange(-1, 2),
            arrays,
            lane.KEYS,
            lane.ARE_GROUPS,
            *lane.NO_MATCH,
        )
        express = lane.ExpressLane(side.lanes, lanes.terms(side))
        made.take(
            express.terms,
            b"".join(lanes.an_ecr(rng) for _ in range(9)),
            0,
            9,
            lambda *_: rng.choice((0, 1 << 32, 7 << 32, 99)),
            b"",
        )


def rng_bytes(rng):
    """Makes arrays with some other words, or cut short."""

    def altered(array):
        octets = bytearray(array.cast("B"))
        for _ in range(rng.randrange(3)):
            if octets:
                at = rng.randrange(len(octets)) & ~3
                octets[at : at + 4] = struct.pack(
                    "<I",
                    rng.choice(
                        [0, 1, 0xFFFFFFFF, 0x7FFFFFFF, len(octets), rng.getrandbits(32), 1 << rng.randrange(32)]
                    ),
                )
        if octets and rng.random() < 0.1:
            del octets[rng.randrange(len(octets)) :]
        return bytes(octets)

    return altered


def main(seconds, seed):
    """Fire until the time is over."""
    rng, index = random.Random(seed), lanes.listed()
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        traffic(rng, index)
        cuts(rng, index)
        for _ in range(100):
            terms(rng, index)
            programs(rng, index)
        rounds += 1
    print(f"{rounds} rounds")


if __name__ == "__main__":
    loader.exec_module(sys.modules["eir.interfaces.s13._lane"])
    main(float(sys.argv[2]), int(sys.argv[3]))
