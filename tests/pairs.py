"""Two nodes of ours, a wire between them, and every order in which things can happen: what tests/wire/diameter/test_pairs.py explores.

The code that runs is the product's: Peer for each end of a connection, Admission for each node. What stands between them in Node (events
one way, orders the other) is repeated here in a few lines, without a loop. A step of one Peer depends on what that Peer has been through
and on nothing else, so that it is run once for each state of a Peer and each input, and looked up from then on.

Time has no measure here: a timer may run out at any moment, as long as there is one. That is more than any real wire can do.
"""

import copy
from collections import OrderedDict
from typing import NamedTuple

from simulated.wire import VSAI, Message, answer_to, avp, message, u32

from eir.errors import DiameterError, silent
from eir.interfaces.s13.application import S13
from eir.wire.diameter.admission import Admission, Admit, Claim, Drop, ProbeOldest, Refuse
from eir.wire.diameter.capabilities import find_peer
from eir.wire.diameter.peer import Alive, Arrived, Closed, DisconnectCause, Leaving, Opened, Peer
from eir.wire.diameter.serve import NodeContext
from eir.wire.diameter.states import State
from eir.wire.peers.counts import Counts
from eir.wire.peers.settings import Identity, Limits, PeerSettings

REALM = "example.org"
HOSTS = ("a.example.org", "b.example.org")
SLOTS = 4
"""Connections at once, the dead ones included that one side has not noticed yet."""
QUEUE_MAX = 3
"""Messages on their way in one direction."""
RESTARTS_MAX = 2
END = "END"
"""On the wire, behind the last message: the other end has closed."""
COMMANDS = {257: "CE", 280: "DW", 282: "DP"}

COUNTS = Counts()
CONTEXTS = {
    (side, boots): NodeContext(
        identity=Identity(host=HOSTS[side], realm=REALM, origin_state_id=100 + boots), limits=Limits(), application=S13, counts=COUNTS,
        report=silent, jitter=lambda: 0.0,
    )
    for side in (0, 1)
    for boots in range(RESTARTS_MAX + 1)
}  # fmt: skip
ENTRIES = tuple(PeerSettings(label=HOSTS[1 - side], host=HOSTS[1 - side], connect="tcp://x:1") for side in (0, 1))


class End(NamedTuple):
    """The past of one end of a connection, as far as it matters for what it will do."""

    side: int
    boots: int
    dialed: bool
    state: State
    watchdog: tuple | None
    asked: bool
    probing: bool
    timers: tuple
    known: tuple | None
    opened_by: tuple | None


LOOKED_AT = {
    "_asked", "_close_at", "_dwr_ids", "_opening_ids", "_wait_until", "capabilities", "state", "watchdog",  # what an End holds
    "_context", "_identify", "secure", "settings",  # the same for every Peer of a node, or follows from what it holds
    "_framer", "_pending_cer", "_row", "events", "more", "traffic",  # empty between two inputs, or follows from the state; ids do not matter
}  # fmt: skip
assert set(Peer.__slots__) == LOOKED_AT, "does an End tell all that a Peer goes by?"


REPRESENTATIVES = {}
"""End → (a Peer that has been through that, its time)."""
STEPS = {}
"""(End, input) → (End, messages out, events)."""
RAW = {}
"""Message on the wire → bytes, of which an answer's ids are still to be set."""


def end_of(side, boots, dialed, peer):
    watchdog, said = peer.watchdog, peer.capabilities
    return End(
        side, boots, dialed, peer.state,
        (watchdog.status, watchdog.pending, max(-1, min(watchdog.num_dwa, 3))) if watchdog is not None else None,
        bool(peer._asked), bool(peer._dwr_ids), (peer._wait_until is not None, peer._close_at is not None),
        (said.host, said.origin_state_id) if said is not None else None, peer._opening_ids,
    )  # fmt: skip


def new_end(side, boots, *, dialed):
    """An end that begins: (End, messages out)."""
    key = (side, boots, dialed)
    if key not in STEPS:
        settings = ENTRIES[side]

        def identify(said):
            found = find_peer((settings,), said.host, said.realm, None)
            if found is None:
                raise DiameterError(3010, "unknown_peer")
            return found

        peer = Peer(CONTEXTS[side, boots], identify, addresses=("127.0.0.1",), now=0.0, first_id=1)
        if dialed:
            peer.connect(settings, 0.0)
        out = taken(peer)
        end = end_of(side, boots, dialed, peer)
        REPRESENTATIVES[end] = (peer, 0.0)
        STEPS[key] = end, out
    return STEPS[key]


def taken(peer):
    """The messages that a Peer has to say, as what they are on the wire."""
    octets, found = peer.data_to_send(), []
    while octets:
        length = int.from_bytes(octets[1:4])
        raw, octets = octets[:length], octets[length:]
        read = Message(raw)
        kind = COMMANDS[read.command] + ("R" if read.is_request else "A")
        name = (kind, read.number(268), read.data(264).decode(), read.number(278))
        RAW[name] = raw
        found.append(name)
    return tuple(found)


def step(end, what):
    """The response of one end to an input: (End, messages out, events)."""
    if (end, what) not in STEPS:
        origin, now = REPRESENTATIVES[end]
        context = CONTEXTS[end.side, end.boots]
        peer = copy.deepcopy(
            origin, {id(context): context, id(ENTRIES): ENTRIES, id(ENTRIES[end.side]): ENTRIES[end.side]}
        )
        match what:
            case ("message", name):
                peer.receive(addressed(peer, name), now)
            case ("timer",):
                now = peer.deadline()
                peer.timer(now)
            case ("end",):
                peer.end(now)
            case ("admit", failed_before):
                peer.admit(now, failed_before=failed_before)
            case ("refuse", code, reason):
                peer.refuse(DiameterError(code, reason), now)
            case ("probe",):
                peer.probe(now)
            case ("drop", reason):
                peer.drop(reason, now)
            case ("stop",):
                peer.stop(DisconnectCause.REBOOTING, now)
        events, peer.events = tuple(told(each) for each in peer.events), []
        out = taken(peer)
        after = end_of(end.side, end.boots, end.dialed, peer)
        assert COUNTS.errors["internal"] == 0, (end, what)
        assert after.state in {State.CLOSED, State.WAIT_ADMISSION} or peer.deadline() is not None, (
            "waits for ever",
            end,
            what,
        )
        REPRESENTATIVES.setdefault(after, (peer, now))
        STEPS[end, what] = after, out, events
    return STEPS[end, what]


def addressed(peer, name):
    """The bytes of a message; an answer has the ids of the request that it answers, if there is one."""
    raw, kind = RAW[name], name[0]
    if kind.endswith("A"):
        waiting = peer._dwr_ids if kind == "DWA" else peer._asked
        hop_by_hop = min(waiting, default=0xDEAD).to_bytes(4)
        raw = raw[:12] + hop_by_hop + hop_by_hop + raw[20:]
    return raw


def told(event):
    match event:
        case Arrived(said, _):
            return ("arrived", said.host, said.origin_state_id or 0)
        case Closed(reason):
            return ("closed", reason)
    return {Opened: ("opened",), Leaving: ("leaving",), Alive: ("alive",)}[type(event)]


def base_messages(side):
    """Each message of the base protocol, as the node on this side might send it."""
    host = HOSTS[side]
    origin = avp(264, host) + avp(296, REALM)
    cer = message(
        257, origin + avp(257, b"\0\1\x7f\0\0\1") + u32(266, 0) + avp(269, "x", flags=0) + u32(278, 100) + VSAI, 0x80, 0
    )
    requests = [cer, message(280, origin, 0x80, 0), message(282, origin + u32(273, 0), 0x80, 0)]

    class Asked:
        app, hop_by_hop, end_to_end = 0, 1, 1

        def __init__(self, command):
            self.command = command

    answers = [
        answer_to(Asked(code), extra=extra, host=host, realm=REALM)
        for code, extra in ((257, VSAI), (280, b""), (282, b""))
    ]
    names = []
    for raw in (*requests, *answers):
        kind = COMMANDS[int.from_bytes(raw[5:8])] + ("R" if raw[4] & 0x80 else "A")
        name = (kind, None if raw[4] & 0x80 else 2001, host, -1)
        RAW[name] = raw
        names.append(name)
    return tuple(names)


INJECTED = (base_messages(1), base_messages(0))
"""Messages by the side that they come to."""


# The whole: all connections, both nodes


class Link(NamedTuple):
    """A connection: its ends (None: gone) and what is on its way to each."""

    ends: tuple
    queues: tuple


class World(NamedTuple):
    """All of it, as a value."""

    links: tuple
    admissions: tuple
    """The content of each node's Admission."""
    probes: tuple
    """(side, slot) of connections that were asked for a sign of life."""
    boots: tuple
    mischief: int
    """Times that the wire, or somebody, may still do what it should not."""


NOTHING = Link((None, None), ((), ()))
EMPTY = ((), (), (), (), ())


def begin(mischief):
    return World((NOTHING,) * SLOTS, (EMPTY, EMPTY), (), (0, 0), mischief)


def thawed(frozen):
    """An Admission that holds this."""
    opened, probed, dialing, waiting, failed = frozen
    admission = Admission()
    admission.connections = {host: OrderedDict(each) for host, each in opened}
    admission.hosts = {name: host for host, each in opened for name, _ in each}
    admission.probed, admission.attempts = OrderedDict(probed), dict(dialing)
    admission.waiting, admission.failed = dict(waiting), OrderedDict.fromkeys(failed, True)
    return admission


def frozen(admission):
    return (
        tuple((host, tuple(each.items())) for host, each in admission.connections.items()), tuple(admission.probed.items()),
        tuple(admission.attempts.items()), tuple(admission.waiting.items()), tuple(admission.failed),
    )  # fmt: skip


class Move:
    """One move of a world: what it does, and all that follows at once."""

    def __init__(self, world):
        self.links = [[list(link.ends), [list(queue) for queue in link.queues]] for link in world.links]
        self.admissions = list(world.admissions)
        self.probes, self.boots, self.mischief = set(world.probes), list(world.boots), world.mischief

    def world(self):
        links = []
        for ends, queues in self.links:
            if ends == [None, None]:
                links.append(NOTHING)
            else:
                # What is on its way to an end that is gone goes nowhere.
                links.append(
                    Link(
                        tuple(ends),
                        tuple(tuple(queue) if end is not None else () for end, queue in zip(ends, queues, strict=True)),
                    )
                )
        return World(tuple(links), tuple(self.admissions), tuple(sorted(self.probes)), tuple(self.boots), self.mischief)

    def dial(self, side):
        slot = next(number for number, (ends, _) in enumerate(self.links) if ends == [None, None])
        end, out = new_end(side, self.boots[side], dialed=True)
        other, _ = new_end(1 - side, self.boots[1 - side], dialed=False)
        ends = [None, None]
        ends[side], ends[1 - side] = end, other
        self.links[slot] = [ends, [[], []]]
        self._send(side, slot, out)
        self._admit(side, lambda admission: admission.dialing(slot, HOSTS[1 - side], HOSTS[side]))

    def feed(self, side, slot, what):
        ends, queues = self.links[slot]
        end = ends[side]
        if end is None or end.state is State.CLOSED:
            return
        after, out, events = step(end, what)
        ends[side] = after
        self._send(side, slot, out)
        for event in events:
            self._told(side, slot, event)
        if self.links[slot][0][side] is not None and self.links[slot][0][side].state is State.CLOSED:
            ends[side] = None
            queues[side].clear()
            if what != ("end",):
                self._send(side, slot, (END,))

    def vanish(self, side, slot):
        """One end is gone, and its node has forgotten it; the other hears nothing of that."""
        self.links[slot][0][side] = None
        self.probes.discard((side, slot))

    def _send(self, side, slot, out):
        ends, queues = self.links[slot]
        if ends[1 - side] is not None:
            queues[1 - side] += out
        elif out and out != (END,) and ends[side] is not None:
            queues[side] = [END]  # there is nobody: a reset comes back

    def _told(self, side, slot, event):
        end = self.links[slot][0][side]
        match event:
            case ("arrived", host, state_id):
                self._admit(side, lambda admission: admission.arrived(Claim(slot, host, 1, state_id)))
            case ("opened",) if end.dialed:
                self._admit(side, lambda admission: admission.opened(slot, end.known[0], end.known[1] or 0))
            case ("leaving",):
                self._admit(side, lambda admission: admission.closed(slot, "leaving"))
            case ("alive",) if (side, slot) in self.probes:
                self.probes.discard((side, slot))
                self._admit(side, lambda admission: admission.alive(slot))
            case ("closed", reason):
                self.probes.discard((side, slot))
                self._admit(side, lambda admission: admission.closed(slot, reason))

    def _admit(self, side, report):
        admission = thawed(self.admissions[side])
        orders = report(admission)
        self.admissions[side] = frozen(admission)
        for order in orders:
            slot = order.connection
            match order:
                case Admit(_, failed_before):
                    self.feed(side, slot, ("admit", failed_before))
                case Refuse(_, code, reason, _):
                    self.feed(side, slot, ("refuse", code, reason))
                case ProbeOldest():
                    self.probes.add((side, slot))
                    self.feed(side, slot, ("probe",))
                case Drop(_, reason):
                    self.feed(side, slot, ("drop", reason))


def may_dial(world, side):
    """As Node._is_wanted, and the Dialer's one attempt at a time."""
    if not any(link is NOTHING or link == NOTHING for link in world.links):
        return False
    ends = [link.ends[side] for link in world.links if link.ends[side] is not None]
    if any(end.dialed or end.state not in {State.WAIT_CER, State.CLOSED} for end in ends):
        return False
    return not thawed(world.admissions[side]).is_open(HOSTS[1 - side])


def deliveries(world):
    """(side, slot) of ends that something is on its way to and that read."""
    return [
        (side, slot)
        for slot, link in enumerate(world.links)
        for side in (0, 1)
        if link.queues[side] and (link.ends[side].state is not State.WAIT_ADMISSION or link.queues[side][0] == END)
    ]


def deliver(world, side, slot):
    move = Move(world)
    first = move.links[slot][1][side].pop(0)
    move.feed(side, slot, ("end",) if first == END else ("message", first))
    return move.world()


def moved(world, do):
    move = Move(world)
    do(move)
    return move.world()


def lawful(world):
    """Everything that may come next without mischief: deliveries, attempts to connect, timers."""
    for side, slot in deliveries(world):
        yield ("deliver", side, slot), deliver(world, side, slot)
    for side in (0, 1):
        if may_dial(world, side):
            yield ("dial", side), moved(world, lambda move, side=side: move.dial(side))
    for side, slot in world.probes:

        def silent_probe(move, side=side, slot=slot):
            move.probes.discard((side, slot))
            move.feed(side, slot, ("drop", "duplicate_silent"))

        yield ("silent", side, slot), moved(world, silent_probe)
    for slot, link in enumerate(world.links):
        for side in (0, 1):
            if link.ends[side] is not None and link.ends[side].state is not State.WAIT_ADMISSION:
                yield (
                    ("timer", side, slot),
                    moved(world, lambda move, side=side, slot=slot: move.feed(side, slot, ("timer",))),
                )


def unlawful(world):
    """The misdeeds of wires, people and strangers: cuts, losses, restarts, stops, any message at any moment."""
    if world.mischief:
        world = world._replace(mischief=world.mischief - 1)
        yield from mishaps(world)
        yield from restarts(world)


def mishaps(world):
    for slot, link in enumerate(world.links):
        if link.ends != (None, None):
            cut = Link(link.ends, tuple((END,) if end is not None else () for end in link.ends))
            yield ("cut", slot), world._replace(links=(*world.links[:slot], cut, *world.links[slot + 1 :]))
        for side in (0, 1):
            if link.ends[side] is None:
                continue

            def lost_on_one_side(move, side=side, slot=slot):
                move.links[slot][1][1 - side].clear()
                move.links[slot][1][side][:] = []
                other = move.links[slot][0][1 - side]
                move.feed(side, slot, ("end",))
                move.links[slot][0][1 - side] = other

            yield ("lost", side, slot), moved(world, lost_on_one_side)
            yield (
                ("stop", side, slot),
                moved(world, lambda move, side=side, slot=slot: move.feed(side, slot, ("stop",))),
            )
            if link.ends[side].state is not State.WAIT_ADMISSION:
                for name in INJECTED[side]:
                    yield (
                        ("inject", side, slot, name[0]),
                        moved(
                            world,
                            lambda move, side=side, slot=slot, name=name: move.feed(side, slot, ("message", name)),
                        ),
                    )


def restarts(world):
    for side in (0, 1):
        if world.boots[side] == RESTARTS_MAX:
            continue
        for heard in (True, False):

            def restart(move, side=side, heard=heard):
                for slot, (ends, queues) in enumerate(move.links):
                    if ends[side] is not None:
                        move.vanish(side, slot)
                        if ends[1 - side] is not None:
                            queues[1 - side][:] = [*queues[1 - side], END] if heard else []
                move.admissions[side] = EMPTY
                move.boots[side] += 1

            yield ("restart", side, heard), moved(world, restart)


def fits(world):
    """No queue grows without an end, by more messages than a wire of this size holds."""
    return all(len(queue) <= QUEUE_MAX for link in world.links for queue in link.queues)


def is_connected(world):
    """One connection is open at both ends."""
    return any(
        link.ends[0] is not None and link.ends[1] is not None and {end.state for end in link.ends} == {State.OPEN}
        for link in world.links
    )


def is_quiet(world):
    return not any(queue for link in world.links for queue in link.queues)


def onward(world):
    """The next worlds if the wire is good from now on, and time goes by; None if nothing happens.

    What is on its way arrives. Then timers run out, the short ones first: of a sign of life (2 s), of a goodbye and a handshake (5 and
    10 s), then of a new attempt to connect (Tc), and of the watchdog at last.
    """
    waiting = deliveries(world)
    if waiting:
        return deliver(world, *waiting[0])
    choices = []
    for what, after in lawful(world):
        if what[0] == "timer":
            rank = 1 if any(world.links[what[2]].ends[what[1]].timers) else 3
        else:
            rank = {"silent": 0, "dial": 2}[what[0]]
        choices.append((rank, len(choices), after))
    return min(choices, default=(0, 0, None))[-1]
