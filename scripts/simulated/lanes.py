"""Connection with the express lane, connection without it, and ECRs for both: usual ones, and ones with any AVP on any level."""

from collections import Counter
from datetime import UTC, datetime
from ipaddress import ip_network

from eir.checks.checker import Checker
from eir.checks.policy import TEXTS
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import SNR_KEYS, device_type_key, imsi_key
from eir.interfaces.s13.application import s13_application
from eir.interfaces.s13.dictionary import DICTIONARY
from eir.interfaces.s13.lane import ExpressLane, ExpressLanes
from eir.interfaces.s13.service import S13Service
from eir.lists.images.index import Index
from eir.lists.table.columns import WHOLE, rows_of
from eir.wire.diameter.application import LaneTerms
from eir.wire.diameter.avp import encode, encode_text, encode_u32, key_of
from eir.wire.diameter.message import encode_message
from eir.wire.diameter.peer import Arrived, Peer
from eir.wire.diameter.serve import TOO_BUSY_REPLY, NodeContext
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import Bucket, Limit
from eir.wire.peers.settings import Identity, Limits, PeerSettings

from .store_content import fill, pair_rows

VENDOR = 10415
MSISDN, UNKNOWN = key_of(701, VENDOR), key_of(9999, 99)
LIMITS = Limits()
IDENTITY = Identity(
    host="eir.example", realm="example", aliases=("eir2.example",), realms=("other",), origin_state_id=7
)
MME = PeerSettings(label="mme", realm="example", sources=(ip_network("127.0.0.0/8"),))
POLICY = PolicySettings(
    rules=(
        Rule(answer=Status.WHITELISTED, imei=("001010010000025",)),
        Rule(answer=Status.BLACKLISTED, tac=("00101001",)),
        Rule(answer=Status.GREYLISTED, imsi=("00102",)),
        Rule(answer=Status.UNKNOWN, software_version=("77",)),
        Rule(answer=Status.BLACKLISTED, origin_host=("mme2.example",)),
    )
)


class Kept:
    """The sightings, as rows."""

    full = ()

    def __init__(self):
        self.rows = Counter()
        self.accesses = set()
        self.left = 0

    def left_out(self, count, peer):
        assert peer == "mme"
        self.left += count

    def add(self, kinds, numbers, texts):
        *lines, last = texts.decode().split("\n")
        assert last == ""
        numbers = memoryview(numbers).cast("H").tolist()
        assert len(lines) == TEXTS * len(numbers)
        assert len({kinds[number].decision.is_plain for number in numbers}) == 1
        for number, *said in zip(numbers, *(lines[at::TEXTS] for at in range(TEXTS)), strict=True):
            decision, protocol, peer, observed, early, access = kinds[number]
            assert not early
            self.accesses.add(access)
            self.rows[tuple(decision), protocol, peer, observed, *said] += 1


class Side:
    """A peer connection that is open, with or without a lane."""

    def __init__(
        self,
        *,
        lane: bool,
        policy=POLICY,
        rates=(),
        overload=TOO_BUSY_REPLY,
        index=None,
        mme=MME,
        sightings=False,
        limits=LIMITS,
        new_devices=None,
    ):
        self.notes = {}
        self.sightings = Kept() if sightings else None
        self.checker = Checker(
            policy, index or Index({}), now=datetime.now(UTC), note_check=self.note, sightings=self.sightings,
            new_devices=new_devices,
        )  # fmt: skip
        self.counts = Counts()
        service = S13Service(self.checker, (mme,))
        self.by_lane = self.shed_by_lane = 0
        self.lanes = ExpressLanes(self.checker, service.replies)
        application = s13_application(service, self.lane if lane else None)
        self.context = NodeContext(
            identity=IDENTITY,
            limits=limits,
            application=application,
            counts=self.counts,
            report=lambda *_, **__: None,
            jitter=lambda: 0.0,
            overload=overload,
        )
        self.peer = Peer(self.context, lambda _: mme, addresses=("127.0.0.1",), now=0.0, first_id=1)
        self.peer.receive(CER, 0.0)
        assert isinstance(self.peer.events.pop(), Arrived)
        self.peer.limit([Limit(f"rate_{rate}", Bucket(rate, 0.0)) for rate in rates])
        self.peer.admit(0.0)
        self.peer.events.clear()
        self.peer.data_to_send()

    def lane(self, terms):
        """The lane of a connection, whose answers are counted in `by_lane`, and its overload answers in `shed_by_lane`."""
        made, side = ExpressLane(self.lanes, terms), self

        class Counted:
            command = made.command

            def take(self, *what):
                position, results = made.take(*what)
                side.by_lane += sum(results.values())
                return position, results

            def shed(self, *what):
                position, answered = made.shed(*what)
                side.shed_by_lane += answered
                return position, answered

        return Counted()

    def note(self, kind, *latest):
        *latest, count = latest
        self.notes[kind] = (self.notes.get(kind, [0])[0] + count, *latest)

    def feed(self, data: bytes, now=1.0) -> bytes:
        self.peer.receive(data, now)
        while self.peer.more:
            self.peer.receive(b"", now)
        return self.peer.data_to_send()

    def state(self):
        counts = self.counts
        return (
            counts.messages,
            counts.answers,
            counts.errors,
            counts.dropped,
            counts.shed,
            self.checker.checks(),
            self.checker.identity_errors,
            self.peer.traffic.requests,
            self.peer.traffic.answers,
            self.peer.state,
            self.notes,
            self.checker.observed,
            self.sightings and self.sightings.rows,
        )


def origin(host="mme.example", realm="example"):
    return encode_text(264, host) + encode_text(296, realm)


CER = encode_message(
    0x80,
    257,
    0,
    (1, 1),
    origin()
    + encode(257, b"\0\x01\x7f\0\0\1")
    + encode_u32(266, 0)
    + encode_text(269, "mme")
    + encode_u32(258, 16777252),
)


def ecr(
    imei="00101009000001", *, session="mme.example;1;1", version="01", imsi="001010123456789", host="mme.example", flags=0xC0, origin_realm="example",
    realm="example", ids=(5, 6), before=b"", extra=b"", inside_first=b"", inside=b"", terminal=True, order=False,
):  # fmt: skip
    """An ECR; `before` and `extra` stand behind the Session-Id and at the end, `inside_first` and `inside` in Terminal-Information, before and behind the rest."""
    info = inside_first + (b"" if imei is None else encode_text(key_of(1402, VENDOR), imei))
    if version is not None:
        info += encode_text(key_of(1403, VENDOR), version)
    parts = [encode_u32(277, 1), origin(host, origin_realm), encode_text(283, realm)]
    if terminal:
        parts.append(encode(key_of(1401, VENDOR), info + inside))
    if imsi is not None:
        parts.append(encode_text(1, imsi))
    if order:
        parts.reverse()
    return encode_message(flags, 324, 16777252, ids, encode_text(263, session) + before + b"".join(parts) + extra)


BLOCKED, TRACKED_TAC, BOUND, ENDED, ENDING, NAMED = (
    101009_000007,
    101004,
    101009_000008,
    101009_000009,
    101009_000010,
    101009_000011,
)
LISTED = PolicySettings(
    rules=(
        Rule(
            answer=Status.BLACKLISTED,
            imei=(f"{NAMED:014d}", f"{TRACKED_TAC * SNR_KEYS + 5:014d}0"),
            software_version=("01",),
        ),
        Rule(answer=Status.WHITELISTED, list="bound", imsi=("00102",)),
        Rule(answer=Status.BLACKLISTED, list="stolen"),
        Rule(answer=Status.UNKNOWN, list="tacs"),
        Rule(answer=Status.GREYLISTED, device_bound_elsewhere="bound"),
    )
)
NOW = 1_000.0
"""The time, by the clock of the lists."""


def listed():
    """The lists that rules are about."""
    index = Index(
        {
            "stolen": "devices",
            "tacs": "devices",
            "bound": "pairs",
            "sims": "subscribers",
            "never": "devices",
            "ending": "devices",
            "types": "device_types",
        },
        lambda: NOW,
    )
    fill(
        index, "stolen", rows_of([*range(101007_130000, 101007_132000), BLOCKED, *range(101009_500000, 101009_500100)])
    )
    fill(
        index,
        "tacs",
        [
            rows_of([WHOLE | 101003, WHOLE | 101005, WHOLE | 101006], ends=[1100, 0, 900]),
            rows_of(range(TRACKED_TAC * SNR_KEYS, (TRACKED_TAC + 1) * SNR_KEYS)),
            rows_of([101005_000007, 101006_000009]),
        ],
    )
    fill(index, "sims", rows_of([imsi_key("001020123456789"), imsi_key("001021")]))
    fill(index, "ending", rows_of([ENDED, ENDING], ends=[999, 1001]))
    fill(index, "bound", pair_rows({BOUND: [imsi_key("001010123456789")]}))
    phone, module = map(device_type_key, ("Smartphone", "Module"))
    said = {TRACKED_TAC: {module: 0}, 101006: {phone: 900}, 101007: {phone: 1100}, 101009: {phone: 0, module: 900}}
    fill(
        index,
        "types",
        [pair_rows({tac * SNR_KEYS: types}, ends=[*types.values()]) for tac, types in said.items()],
    )
    return index


def terms(side):
    """The terms from which a lane of this connection is made."""
    names, context = side.peer.traffic.names, side.peer.traffic.context
    return LaneTerms("mme", names.origin, names.hosts, names.realms, frozenset(), context.limits, context.overload)


def sides(index, policy=LISTED, **given):
    """One with a lane, one without."""
    return [Side(lane=lane, policy=policy, index=index, **given) for lane in (True, False)]


# ECRs with anything anywhere

KEYS = tuple(DICTIONARY.avps)
RULED = (
    1,
    258,
    259,
    260,
    263,
    264,
    277,
    282,
    283,
    284,
    293,
    296,
    301,
    *(key_of(code, VENDOR) for code in (1401, 1402, 1403, 1471)),
    MSISDN,
)
"""Keys that the grammar names on some level, and that of the number, which is recorded."""
GROUPS = tuple(DICTIONARY.groups)
STRANGERS = (key_of(9999, 99), key_of(264, 99), key_of(1402, 99), key_of(263, VENDOR), 9999, key_of(1402))
"""AVPs that nobody knows, some of them under another's number."""
IMEIS = ("", "0", "00", "3", "77", "x")
"""Texts that may follow the first 14 digits."""
DEVICES = (
    BLOCKED,
    BOUND,
    NAMED,
    ENDED,
    ENDING,
    TRACKED_TAC * SNR_KEYS + 5,
    101009_500050,
    101005_000007,
    101006_000009,
    101003_000001,
    101007_131072,
    0,
    12345678901234,
)
NAIS = (
    "0001020123456789", "6001020123456789", "6001020123456789@nai.epc.mnc002.mcc001.3gppnetwork.org", "0001021@nai.epc.mnc002.mcc001.3gppnetwork.org",
    "001020123456789@ims.mnc002.mcc001.3gppnetwork.org", "001020123456789@example.org", "00102012345678@", "0001020123456789x",
)  # fmt: skip
"""User-Names that are no plain IMSI (TS 23.003 13.3, 19.3.2), and some that are only like them."""
IMSIS = (
    "001010123456789",
    "001020123456789",
    "001021",
    "00102",
    "",
    "9" * 40,
    "x01010123456789",
    "0010201234567890",
    *NAIS,
)
NAMES = (
    "mme.example",
    "mme2.example",
    "MME2.example",
    "example",
    "EXAMPLE",
    "other",
    "eir.example",
    "EIR2.example",
    "other.example",
    "a b",
    "",
    "n" * 255,
    "n" * 256,
    "mmé",
)
MSISDNS = tuple(
    bytes.fromhex(octets)
    for octets in ("947110325476", "9471103254f6", "94711032547698f0", "9471103254769810", "94710f", "9471f0", "94", "", "9471a0", "f94710", "94" * 20)
)  # fmt: skip
"""Data of MSISDN AVPs: numbers of 5 to 15 digits, and faulty ones."""
VERSIONS = ("01", "77", "7", "", "a7", "770")
SESSIONS = ("mme.example;1;1", "mme.example;1;22", "", "s" * 40, "s" * 600, "mme.example;1;333")


def value(rng, key, depth=0):
    """Data for an AVP: mostly what it may hold."""
    if rng.random() < 0.03:
        return rng.randbytes(rng.randrange(9))
    code = key & 0xFFFFFFFF
    if key in DICTIONARY.groups:
        return b"".join(any_avp(rng, depth + 1) for _ in range(rng.randrange(3))) if depth < 10 else b""
    if code in {258, 259}:
        return (16777252).to_bytes(4)
    if code == 277:
        return rng.choice((0, 1, 1, 1, 2)).to_bytes(4)
    texts = {1402: (imei(rng),), 1403: VERSIONS, 1: IMSIS, 263: SESSIONS}.get(code, NAMES)
    kind = DICTIONARY.avps[key].type if key in DICTIONARY.avps else None
    if kind is not None and kind.only_bytes is not None:
        return rng.randbytes(kind.only_bytes)
    return rng.choice(MSISDNS if key == MSISDN else [text.encode() for text in texts])


def imei(rng):
    """An IMEI, in most cases."""
    device = rng.choice(DEVICES) if rng.random() < 0.6 else rng.randrange(10**14)
    return f"{device:014d}{rng.choice(IMEIS)}"


def any_avp(rng, depth=0, key=None):
    """Any AVP, on any level."""
    if key is None:
        key = rng.choice(rng.choice((RULED, RULED, KEYS, GROUPS, STRANGERS)))
    data = value(rng, key, depth)
    made = encode(key, data, flags=rng.choice((0, 0x40, 0x40, 0x20)))
    if rng.random() < 0.03 and not key >> 32:
        made = encode(key_of(key, 1 << 31), data)
        made = made[:8] + bytes(4) + made[12:]  # the V bit, and vendor 0
    return made


def an_ecr(rng):  # noqa: C901 - each part may be there or not
    """An ECR that is good in most cases, with up to a few AVPs of any kind at the top and inside Terminal-Information."""
    host = rng.choice(("mme.example", "mme.example", "mme2.example", f"mme{rng.randrange(2000)}.example"))
    usual = rng.random() < 0.5
    info = [encode_text(key_of(1402, VENDOR), imei(rng))]
    if rng.random() < 0.7:
        info.append(encode_text(key_of(1403, VENDOR), rng.choice(VERSIONS[:2] if usual else VERSIONS)))
    top = [
        encode_text(263, f"{host};1;{rng.randrange(10 ** rng.randrange(1, 9))}" if usual else rng.choice(SESSIONS)), encode_u32(277, 1), encode_text(264, host),
        encode_text(296, "example" if usual else rng.choice(NAMES)), encode_text(283, rng.choice(("example", "Example", "other")) if usual else rng.choice(NAMES)),
    ]  # fmt: skip
    if rng.random() < 0.8:
        top.append(encode_text(1, rng.choice(IMSIS[:2] if usual else IMSIS)))
    if rng.random() < 0.5:
        top.append(encode(260, encode_u32(266, VENDOR) + encode_u32(258, 16777252)))
    if rng.random() < 0.2:
        top += [any_avp(rng, key=MSISDN) for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.2:
        top.append(encode_text(293, rng.choice(NAMES[6:9])))
    if rng.random() < 0.3:
        top += [encode_text(282, rng.choice(NAMES[:3]))] * rng.randrange(1, 3)
    if rng.random() < 0.2:
        top += [
            encode(284, encode_text(280, "dra.example") + encode(33, rng.randbytes(rng.randrange(6))))
            for _ in range(rng.randrange(1, 3))
        ]
    if not usual:
        for level in (info, top):
            for _ in range(rng.choice((0, 0, 1, 1, 2))):
                level.extend([any_avp(rng)] * rng.choice((1, 1, 1, 2)))
        if rng.random() < 0.2:
            top.pop(rng.randrange(len(top)))
    if rng.random() < 0.5:
        rng.shuffle(info)
    inside = b"".join(info)
    if rng.random() < 0.1:
        inside = inside[: len(inside) - rng.randrange(4)]  # the padding of the last AVP, or more than that
    if rng.random() < 0.97:
        top.append(encode(key_of(1401, VENDOR), inside))
    if rng.random() < 0.5:
        first, *others = top
        rng.shuffle(others)
        top = [first, *others]
    flags = 0xC0 if usual else rng.choice((0xC0, 0x80, 0xD0, 0xC1, 0xE0, 0x40))
    return encode_message(flags, 324, 16777252, (rng.getrandbits(32), rng.getrandbits(32)), b"".join(top))


def altered(rng, message):
    """The same with some octets that are others, or with a length that is another; what frames it stays."""
    octets = bytearray(message)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(4, len(octets))
        if rng.random() < 0.5:
            at &= ~3  # where codes, flags and lengths are
            at += rng.randrange(4)
        octets[at] = rng.choice((0, 1, 4, 8, 12, 0x40, 0x80, 0xC0, 0xFF, rng.randrange(256)))
    return bytes(octets)
