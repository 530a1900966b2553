"""A whole connection under fire, without sockets: bytes, pauses and ends in any order, by a script that any bytes are.

Two connections get the same: one with the express lane, where it was compiled, and one without. Their answers, counters and states are
to be equal, each answer well formed, and the accounts are to add up after each step.
"""

import struct
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network

from simulated.wire import EIR, REALM, TGPP, Message

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings, Rule, Status
from eir.interfaces.s13.application import s13_application
from eir.interfaces.s13.lane import COMPILED, ExpressLane, ExpressLanes
from eir.interfaces.s13.service import S13Service
from eir.lists.images.index import Index
from eir.wire.diameter.node import Identity, Limits, PeerSettings
from eir.wire.diameter.peer import Arrived, Peer
from eir.wire.diameter.serve import NodeContext
from eir.wire.diameter.states import State
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import Bucket, Limit

IDENTITY = Identity(host=EIR, realm=REALM, origin_state_id=7)
MME = PeerSettings(label="mme", realm=REALM, sources=(ip_network("127.0.0.0/8"),))
LIMITS = Limits(max_message_bytes=32768, max_avps=128, turn_messages=16)
POLICY = PolicySettings(
    rules=(Rule(answer=Status.BLACKLISTED, tac=("35209900",)), Rule(answer=Status.UNKNOWN, software_version=("77",))),
    no_identity=None, bad_identity=Status.GREYLISTED,
)  # fmt: skip
LANES = (False, True) if COMPILED else (False,)
WHOLE, PIECE, SECOND, MINUTE, END = range(5)
KINDS = 5


def script(*steps):
    """The bytes of a script: octets are fed whole (the first 64 KiB), numbers are SECOND, MINUTE and END."""
    made = b"\0"
    for step in steps:
        made += (
            bytes([step])
            if isinstance(step, int)
            else bytes([WHOLE]) + struct.pack(">H", len(step[:0xFFFF])) + step[:0xFFFF]
        )
    return made


class Side:
    """One of them."""

    def __init__(self, *, lane, rate):
        self.noted = {}
        self.checker = Checker(POLICY, Index({}), now=datetime.now(UTC), note_check=self.note)
        self.counts = Counts()
        service = S13Service(self.checker)
        application = s13_application(
            service, partial(ExpressLane, ExpressLanes(self.checker, service.replies)) if lane else None
        )
        context = NodeContext(
            identity=IDENTITY, limits=LIMITS, application=application, counts=self.counts, report=lambda *_, **__: None,
            jitter=lambda: 0.0,
        )  # fmt: skip
        self.peer = Peer(context, lambda _: MME, addresses=("127.0.0.1",), now=0.0, first_id=1)
        self.peer.limit([Limit("rate_max", Bucket(rate, 0.0))] if rate else [])
        self.answers = self.asked = 0

    def note(self, kind, *latest):
        *latest, count = latest
        self.noted[kind] = (self.noted.get(kind, [0])[0] + count, *latest)

    def step(self, kind, octets, now):
        peer = self.peer
        if kind in {SECOND, MINUTE}:
            due = peer.deadline()
            if due is not None and now >= due:
                peer.timer(now)
        elif kind == END:
            peer.end(now)
        else:
            peer.receive(octets, now)
        out = b""
        while True:
            for event in peer.events:
                if isinstance(event, Arrived):
                    peer.admit(now)
            peer.events.clear()
            out += peer.data_to_send()
            if not peer.more:
                break
            peer.receive(b"", now)
        self._hold(out)
        return out

    def _hold(self, out):
        while out:
            length = int.from_bytes(out[1:4])
            message = Message(out[:length])
            out = out[length:]
            if message.is_request:
                self.asked += 1
                continue
            self.answers += 1
            result = message.result
            is_protocol_error = isinstance(result, int) and 3000 <= result < 4000
            assert message.error or not is_protocol_error
            assert message.flags & 0x90 == 0
            if message.command == 324 and message.app == 16777252 and not message.error:
                assert message.avps[0].code == 263
                assert message.number(277) == 1
                assert len(message.every(1445, TGPP)) == (result == 2001)
        way = {"in": 0, "out": 0}
        for (_, _, _, direction), number in self.counts.messages.items():
            way[direction] += number
        assert way["out"] == self.answers + self.asked
        # What came in has an answer, or a reason why not; an answer to a DWR of ours is neither.
        waiting = self.peer.state is State.WAIT_ADMISSION
        assert not waiting
        assert 0 <= way["in"] - self.answers - self.counts.dropped.total() <= self.asked

    def state(self):
        counts = self.counts
        return (
            counts.messages, counts.answers, counts.errors, counts.dropped, counts.shed, counts.peers_refused, self.checker.checks(),
            self.checker.identity_errors, self.peer.state, self.peer.traffic.requests, self.peer.traffic.answers, self.peer.pending, self.noted,
        )  # fmt: skip


def run(octets):
    """Follow the script, and return both sides. Its first byte chooses the limit on requests a second, if any."""
    rate = (None, 2.0, 50.0, 2.0)[octets[0] & 3] if octets else None
    sides = [Side(lane=lane, rate=rate) for lane in LANES]
    now, at = 0.0, 1
    while at < len(octets):
        kind = octets[at] % KINDS
        at += 1
        piece = b""
        if kind in {WHOLE, PIECE}:
            size = int.from_bytes(octets[at : at + 2]) if kind == WHOLE else 1 + octets[at] if at < len(octets) else 0
            at += 2 if kind == WHOLE else 1
            piece = octets[at : at + size]
            at += size
        now += {SECOND: 1.0, MINUTE: 61.0}.get(kind, 0.001)
        answers = [side.step(kind, piece, now) for side in sides]
        assert answers == answers[:1] * len(sides)
        assert all(side.state() == sides[0].state() for side in sides[1:])
    for side in sides:
        side.step(END, b"", now)
        assert side.peer.pending == 0
        assert side.peer.state is State.CLOSED
        assert len(side.peer._framer.buffered) == 0
        assert side.counts.errors["internal"] == 0
    return sides
