"""The compiled lane under fire, in a build that stops at the first byte it should not touch: tests/test_lane.py makes and runs it.

Called with the extension's file, seconds and a seed. Messages are cut at every place, altered and mixed; images are altered; what
the lane answers is held to the general path. All memory is malloc's own, so that a byte too far is seen.
"""

import importlib.machinery
import importlib.util
import random
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

if __name__ == "__main__":  # in place of the one that is installed
    loader = importlib.machinery.ExtensionFileLoader("eir.s13._lane", sys.argv[1])
    spec = importlib.util.spec_from_loader("eir.s13._lane", loader)
    sys.modules["eir.s13._lane"] = importlib.util.module_from_spec(spec)

import test_express as express

from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import imsi_key
from eir.lists.image import ImageError
from eir.lists.pages import PAGE_KEYS
from eir.s13 import _lane, compiled

RULES = (
    Rule(answer=Status.WHITELISTED, list="bound", imsi=("00102",)), Rule(answer=Status.BLACKLISTED, list="stolen"),
    Rule(answer=Status.UNKNOWN, not_list="tacs", software_version=("77",)), Rule(answer=Status.GREYLISTED, list="sims", tac=("001010", "35")),
    Rule(answer=Status.GREYLISTED, list="ending", origin_host=("mme2.example",)),
)  # fmt: skip


def request(rng):
    """A request that a lane may take."""
    key = rng.choice([express.BLOCKED, express.BOUND, express.ENDED, express.ENDING, 101004_000005, 101006_000009, rng.randrange(10**14)])
    host = rng.choice(["mme.example", "mme2.example", f"mme{rng.randrange(30)}.example"])
    return express.ecr(
        f"{key:014d}{rng.choice(['', '0', '77'])}", host=host, session=f"{host};{'9' * rng.randrange(9)}", version=rng.choice(["01", "77", None]),
        imsi=rng.choice(["001010123456789", "001020123456789", "001021", "", "9" * 40, None]), ids=(rng.getrandbits(32), rng.getrandbits(32)),
    )  # fmt: skip


def altered(rng, octets):
    """The same with some bytes that are others."""
    octets = bytearray(octets)
    for _ in range(rng.randrange(1, 6)):
        octets[rng.randrange(len(octets))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(octets)


def traffic(rng, index):
    """Whatever comes, the same answers; in pieces too."""
    sides = [express.Side(lane=lane, policy=PolicySettings(rules=RULES), index=index) for lane in (True, False)]
    for _ in range(20):
        stream = b"".join(request(rng) for _ in range(rng.randrange(1, 40)))
        cut = rng.randrange(len(stream) + 1)
        for piece in (stream[:cut], stream[cut:]):
            first, second = (side.feed(piece) for side in sides)
            assert first == second
    stream = altered(rng, b"".join(request(rng) for _ in range(9)))
    first, second = (side.feed(stream) for side in sides)
    assert first == second


def cuts(rng, index):
    """The lane itself, with a buffer that ends anywhere."""
    side = express.Side(lane=True, policy=PolicySettings(rules=RULES), index=index)
    messages = [request(rng) for _ in range(4)]
    for message in messages:
        side.feed(message)
    lane = side.peer._framer._lane
    stream = b"".join(messages)
    for end in range(len(stream) + 1):
        lane.take(bytes(memoryview(stream)[:end]), 0, 99, [])
        lane.shed(bytes(memoryview(stream)[:end]), 0, 99, [])
    for _ in range(100):
        lane.take(altered(rng, stream), 0, 99, [])


def images(rng, good):
    """Images with other bytes: refused, or asked, with no look outside."""
    head = rng.random() < 0.5
    image = bytearray(rng.choice(good))
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(480) if head else rng.randrange(len(image))
        image[at & ~3 : (at & ~3) + 4] = struct.pack("<I", rng.choice([0, 1, 2, 0xFFFFFFFF, 0x7FFFFFFF, len(image), rng.getrandbits(32), 1 << rng.randrange(32)]))
    if rng.random() < 0.2:
        del image[rng.randrange(len(image)) :]
    with suppress(ValueError, ImageError):
        table = _lane.Table(bytes(image))
        if rng.random() < 0.5:
            other = _lane.Table(rng.choice(good))
            table = rng.choice([lambda: _lane.Table(bytes(image), other), lambda: _lane.Table(rng.choice(good), table)])()
        keys = [express.BLOCKED, express.ENDED, express.BOUND, 101004_000005, 101005_000007, 101006_000009, imsi_key("001021"), rng.getrandbits(64), PAGE_KEYS]
        table.find(struct.pack(f"={len(keys)}Q", *keys) * 3, 1000.0)


def programs(rng, index):
    """Policies with other words: refused, or obeyed."""
    side = express.Side(lane=True, policy=PolicySettings(rules=RULES), index=index)
    side.feed(request(rng))
    lane, program = side.peer._framer._lane, side.checker.policy.program
    lane.take(b"", 0, 1, [])
    words = altered(rng, program.words)
    with suppress(ValueError):
        lane._lane.bind(words, lane._statuses, tuple(map(compiled._list, program.lists)), rng.random() < 0.5)
        with suppress(KeyError, ValueError):
            lane._lane.take(request(rng) * 3, 0, 9, 0.0, side.checker.policy.decide, lane._numbers, bytes(rng.choice((0, 1, len(lane._statuses), 1 << 10))))


def main(seconds, seed):
    """Fire until the time is over."""
    express.Side.lane = compiled.CompiledLane
    rng, indexes = random.Random(seed), [express.listed(changed=changed) for changed in (False, True)]
    good = [bytes(entries.image.buffer) for index in indexes for entries in index.lists.values() if entries.image]
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        index = rng.choice(indexes)
        traffic(rng, index)
        cuts(rng, index)
        for _ in range(300):
            images(rng, good)
            programs(rng, index)
        rounds += 1
    print(f"{rounds} rounds")


if __name__ == "__main__":
    loader.exec_module(sys.modules["eir.s13._lane"])
    main(float(sys.argv[2]), int(sys.argv[3]))
