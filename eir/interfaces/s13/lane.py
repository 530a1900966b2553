"""Express lane: C code (_lane.c) that parses, decides and answers ECRs, many times as fast as the general path in Python.

The C code has no state between two calls. This module binds a policy and its lists, counts the answers and records them. Other requests go
through the general path, which remains the specification: tests/interfaces/s13/test_express.py.
"""

from collections.abc import Callable, Iterable, Mapping
from struct import pack
from typing import Final

from eir.checks.checker import IDENTIFIER_MAX, Checker
from eir.checks.policy import TEXTS, SightingKind, Verdict
from eir.checks.program import (
    LISTS_MAX,
    PERIODS,
    STATUSES,
    VERDICTS_MAX,
    WORD_BYTES,
    ConditionCode,
    Field,
    Program,
    encode_names,
    sightings_and_today,
)
from eir.checks.settings import Status
from eir.checks.trace import NO_MATCH, TraceFilter
from eir.device import IMSI_LENGTHS, KEY_DIGITS, MSISDN_LENGTHS, SNR_KEYS
from eir.interfaces.s13.dictionary import DICTIONARY, ME_IDENTITY_CHECK, ME_IDENTITY_CHECK_NAME, S13_APPLICATION
from eir.interfaces.s13.service import PROTOCOL
from eir.lists.record.settings import DEVICES, FIRST_SEEN, PAIRS, SUBSCRIBERS
from eir.wire.diameter.application import LaneTerms
from eir.wire.diameter.message import E_FLAG, Reply, is_protocol_error, result_avp, result_label
from eir.wire.peers.settings import DESTINATION, UNKNOWN_M

KINDS: Final = {DEVICES: 0, SUBSCRIBERS: 1, PAIRS: 2, FIRST_SEEN: 3}
CONSTANTS: Final = {
    **{f"IF_{code.name}": code.value for code in ConditionCode}, **{field.name: field.value for field in Field},
    **{kind.upper(): number for kind, number in KINDS.items()}, "STATUSES": len(STATUSES), "LISTS_MAX": LISTS_MAX, "VERDICTS_MAX": VERDICTS_MAX,
    "KEY_DIGITS": KEY_DIGITS, "PAGE_KEYS": SNR_KEYS, "IDENTIFIER_MAX": IDENTIFIER_MAX, "TEXTS": TEXTS, "IMSI_MIN": IMSI_LENGTHS[0],
    "IMSI_MAX": IMSI_LENGTHS[-1], "MSISDN_MIN": MSISDN_LENGTHS[0], "MSISDN_MAX": MSISDN_LENGTHS[-1], **PERIODS, "APPLICATION": S13_APPLICATION, "COMMAND": ME_IDENTITY_CHECK,
}  # fmt: skip
"""Constants shared with the C code, by their names in C."""

try:
    from eir.interfaces.s13 import _lane

    COMPILED = all(getattr(_lane, name, None) == value for name, value in CONSTANTS.items())
except ImportError:
    COMPILED = False
LANE: Final = "compiled" if COMPILED else "none"
"""Lane of this installation in status, log and metrics. Without a lane the slower general path answers."""

UNTOLD, PLAIN, TOLD = range(3)  # how the sightings record a verdict: not, as plain, in full


class ExpressLanes:
    """Data shared by the fast paths (express lanes) of all connections: policy, lists, and replies by peer and status."""

    def __init__(self, checker: Checker, replies: Callable[[str], Mapping[Status, Reply]]) -> None:
        self.checker, self.replies = checker, replies
        self.program: Program | None = None
        self._traced, self._version = NO_MATCH, -1

    def exclude_traced(self, trace_filter: TraceFilter | None) -> None:
        """Exclude checks that match the filter of a trace from the fast path (express lane). None: no trace runs."""
        self.program = None
        self._traced = NO_MATCH if trace_filter is None else trace_filter.numbers

    def renew(self) -> "ExpressLanes":
        """Load the policy and lists in force into the fast paths (lanes). Each lane calls this before it answers messages."""
        if (program := self.checker.policy.program) is self.program and program.index.version == self._version:
            return self
        self.program, self._version = program, program.index.version
        are_plain = [verdict.decision.is_plain for verdict in program.verdicts]
        self.everything, self.events = (bytes(on if each else TOLD for each in are_plain) for on in (PLAIN, UNTOLD))
        lists = tuple((each.arrays, KINDS[each.kind], *sightings_and_today(each)) for each in program.lists)
        count = len(program.verdicts)
        bound = (program.words, count, lists, KEYS, ARE_GROUPS, *self._traced)
        self.lane = _lane.Lane(*bound) if count <= VERDICTS_MAX else None
        return self


class ExpressLane:
    """Fast path (express lane) for the ECRs of one connection; it implements eir.wire.diameter.application.Lane."""

    command = ME_IDENTITY_CHECK_NAME

    def __init__(self, lanes: ExpressLanes, terms: LaneTerms) -> None:
        replies = [*(lanes.replies(terms.label)[status] for status in STATUSES), terms.overload]
        self._lanes, self._label = lanes, terms.label
        labels = [result_label(reply.result_code, reply.experimental) for reply in replies]
        self._results = dict(zip(STATUSES, labels, strict=False))
        self.terms = _packed(terms, replies)
        """Settings of the connection as the bytes that the C code reads."""

    def take(
        self, data: bytes | memoryview, position: int, messages_max: int, out: list[bytes]
    ) -> tuple[int, Mapping[str, int]]:
        """Answer the ECRs in `data` by the C code, as eir.wire.diameter.application.Lane.take specifies.

        The results are `2001` and `10415:5422`.
        """
        lanes = self._lanes.renew()
        program, lane, checker = lanes.program, lanes.lane, lanes.checker
        if lane is None or program is None:
            return position, {}
        sightings = checker.sightings
        telling = b""
        if sightings is not None and (PROTOCOL, self._label) not in checker.probes:
            telling = lanes.events if self._label in sightings.full else lanes.everything
        result_parts = lane.take(self.terms, data, position, messages_max, self.decide, telling)
        position, answers, answered, counted, *recorded = result_parts
        if not answered:
            return position, {}
        out.append(answers)
        tally, results = dict[Verdict, int](), dict[str, int]()
        for number, count, host, key, imsi in counted:
            verdict = program.verdicts[number]
            tally[verdict] = count
            result = self._results[verdict.status]
            results[result] = results.get(result, 0) + count
            if verdict.status is not Status.WHITELISTED:
                checker.report_checks(verdict, self._label, host, key, imsi, count=count)
        checker.count(PROTOCOL, tally, self._label)
        if sightings is not None and telling:
            label, access = self._label, checker.accesses.get(self._label)
            kinds = tuple(
                SightingKind(verdict.decision, PROTOCOL, label, "", access=access) for verdict in program.verdicts
            )
            for numbers, texts in recorded:
                if numbers:
                    sightings.add(kinds, numbers, texts)
            if telling is lanes.events:
                sightings.left_out(sum(count for number, count, *_ in counted if not telling[number]), self._label)
        return position, results

    def shed(self, data: bytes | memoryview, position: int, messages_max: int, out: list[bytes]) -> tuple[int, int]:
        """Answer the ECRs in `data` with the overload answer, as eir.wire.diameter.application.Lane.shed specifies."""
        if (lane := self._lanes.renew().lane) is None:
            return position, 0
        position, answers, answered, *_ = lane.take(self.terms, data, position, messages_max, None, b"")
        out.append(answers)
        return position, answered

    def decide(self, key: int, *about: str) -> int:
        """Decide a check for the C code by the general policy, record the check, and return the verdict as an integer (status and index).

        `about`: see _lane.Lane.take.
        """
        checker, (imei, imsi, version, host, realm, msisdn) = self._lanes.checker, about
        verdict = checker.policy.decide(key, imsi, version, host, realm)
        checker.queue_new_device(PROTOCOL, self._label, imsi)
        checker.add_sighting(verdict.decision, PROTOCOL, self._label, (host, realm, imei, imsi, version, msisdn))
        return checker.policy.program.verdict_words[verdict]


def _packed(terms: LaneTerms, replies: Iterable[Reply]) -> bytes:
    """Encode the fixed parameters of a connection and the prepared replies for the C code (Terms in _lane.h).

    The encoded answers are those of eir.wire.diameter.message.encode_answer after the Session-Id.
    """
    hosts, realms, limits = encode_names(terms.hosts), encode_names(terms.realms), terms.limits
    tails = [result_avp(reply.result_code, reply.experimental) + terms.origin + reply.avps for reply in replies]
    flags = [E_FLAG if is_protocol_error(reply.result_code) else 0 for reply in replies]
    head = pack(
        "=12I", limits.max_message_bytes, limits.max_avps, limits.max_depth, DESTINATION in terms.lenient, UNKNOWN_M in terms.lenient,
        len(hosts) // WORD_BYTES, len(realms) // WORD_BYTES, *map(len, tails),
    )  # fmt: skip
    return b"".join([head, hosts, realms, *(pack("=Q", flag) + tail for flag, tail in zip(flags, tails, strict=True))])


AVPS = sorted(DICTIONARY.avps)  # dictionary of the C code
KEYS, ARE_GROUPS = pack(f"={len(AVPS)}Q", *AVPS), bytes(key in DICTIONARY.groups for key in AVPS)
