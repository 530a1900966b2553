"""The express lane as eir.s13.lane has it, with what is done for each message compiled (_lane.c): many times as fast.

Here is what is done seldom: a request is learned, a policy and the images of its lists are bound, and what was answered is
counted. What the compiled part cannot decide by itself (a rule under observation, a pair) it asks of the policy's own `decide`,
message by message. COMPILED says whether it is there.

May import what s13.service may; knows no connection.
"""

import secrets
from collections.abc import Callable, Mapping
from struct import pack_into, unpack_from
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from eir.checks.checker import Checker
from eir.checks.policy import Verdict
from eir.checks.program import LISTS_MAX, Program
from eir.checks.question import IMEISV_DIGITS
from eir.checks.settings import Status
from eir.checks.sighting import Sighting, Sightings
from eir.device import KEY_DIGITS
from eir.diameter.answer import Reply, result_label
from eir.diameter.message import Request
from eir.lists.image import Image
from eir.lists.index import DeviceList
from eir.lists.settings import PAIRS, SUBSCRIBERS
from eir.s13 import lane
from eir.s13.credit import LEARNING_COSTS, Credit
from eir.s13.dictionary import ME_IDENTITY_CHECK_NAME
from eir.s13.places import BYTES_MAX, Places, answer_to, places_of
from eir.s13.service import PROTOCOL, REPLIES

try:
    from eir.s13 import _lane
except ImportError:
    COMPILED = False
else:
    COMPILED = True
LANE = "compiled" if COMPILED else "python"
"""Which lane this installation has, as status, log and metrics show it."""

CONTEXTS_MAX = 4_096
LEARNED_BYTES_MAX = 8 << 20
"""What one peer's requests may take of memory: an agent brings those of a thousand MMEs in some 6 MB."""
CREDIT_MAX = 1024 * LEARNING_COSTS
"""A peer begins with less, so that one whose requests are all different makes the worker learn no more than a hundred."""
NUMBERS: Final = {status: number for number, status in enumerate(Status)}
LENGTH_WORD_AT = 4
"""Of an AVP's header: its flags and length."""
FACT: Final = np.dtype([("key", "<u8"), ("context", "<u4"), ("verdict", "<u4"), ("at", "<u4"), ("asked", "<u4")])
"""What the compiled part says of each answered message, where there are sightings: key of the device, number of the context, place of
the verdict among Program.verdicts, where the message begins in the buffer, and whether `decide` was asked."""
ALIKE_MIN = 8
"""Messages of one context and verdict from which it is worth the cost to hand them in together."""
COLUMNS_MIN = 64
"""Messages from which it is worth the cost to look for such."""
_ZERO: Final = np.uint8(ord("0"))
NOWHERE = slice(0, 0)
UNTOLD = b""
"""For no verdict the compiled part says what it answered."""
KINDS = {SUBSCRIBERS: 1, PAIRS: 2}


class CompiledLane:
    """The lane of one peer; as eir.s13.lane.Lane."""

    command = ME_IDENTITY_CHECK_NAME

    def __init__(
        self, checker: Checker, label: str, origin: bytes, overload: Reply, *, replies: Callable[[str], Mapping[Status, Reply]] = lambda _: REPLIES
    ) -> None:
        self._checker, self._label, self._origin = checker, label, origin
        replies_to = replies(label)
        self._replies = [*(replies_to[status] for status in Status), overload]
        self._results = [result_label(reply.result_code, reply.experimental) for reply in self._replies]
        self._lane = _lane.Lane(CONTEXTS_MAX, LEARNED_BYTES_MAX, secrets.randbits(64))
        self._origins: list[tuple[str, str]] = []
        """Origin-Host and Origin-Realm by context."""
        self._fields: list[tuple[slice, slice, slice]] = []
        """Where IMEI, software version and IMSI are, by context."""
        self._credit = Credit(CREDIT_MAX)
        self._program: Program | None = None
        self._version = -1

    def take(self, data: bytes, position: int, messages_max: int, out: list[bytes]) -> tuple[int, Mapping[str, int]]:
        """See eir.diameter.application.Lane.take; results are `2001` and `10415:5422`."""
        if not self._origins:
            return position, lane.NOTHING
        policy = self._checker.policy
        program = policy.program
        if program is not self._program or program.index.version != self._version:
            self._bind(program)
        now = program.index.now() if self._has_ends else 0.0
        if (sightings := self._checker.sightings) is None:
            position, answers, said, _ = self._lane.take(data, position, messages_max, now, policy.decide, self._numbers, UNTOLD)
        else:
            observed: list[str] = []

            def decide(*about: Any) -> Verdict:
                verdict = policy.decide(*about)
                observed.append(self._checker.observed_now())
                return verdict

            has_room = sightings.has_room
            told = self._all if has_room else self._events
            position, answers, said, octets = self._lane.take(data, position, messages_max, now, decide, self._numbers, told)
            facts = np.frombuffer(octets, FACT)
            self._sight(sightings, program, data, facts, observed)
            if not has_room:
                sightings.left_out(sum(count for _, count, *_ in said) - len(facts))
        if not said:
            return position, lane.NOTHING
        out.append(answers)
        tally: dict[Verdict, int] = {}
        results: dict[str, int] = {}
        for number, count, context, key, imsi in said:
            verdict = program.verdicts[number]
            tally[verdict] = count
            result = self._results[self._statuses[number]]
            results[result] = results.get(result, 0) + count
            if verdict.status is not Status.WHITELISTED:
                self._checker.note(verdict, self._label, self._origins[context][0], key, imsi, count=count)
        self._checker.count(PROTOCOL, tally)
        self._credit.earn(sum(tally.values()))
        return position, results

    def shed(self, data: bytes, position: int, messages_max: int, out: list[bytes]) -> tuple[int, int]:
        """See eir.diameter.application.Lane.shed."""
        position, answers, count = self._lane.shed(data, position, messages_max)
        out.append(answers)
        return position, count

    def learn(self, request: Request) -> None:
        """Take an ECR that the general path has just answered by a verdict as the pattern for further ones."""
        if not self._credit.allows():
            return
        places = places_of(request)
        if places is None:
            return
        self._credit.spend()
        buffer = request.buffer
        mask = bytearray(b"\xff" * len(buffer))
        for place in places.places:
            mask[place.start : place.end] = bytes(place.end - place.start)
        answers = tuple(answer_to(request, reply, self._origin) for reply in self._replies)
        origin = request.origin_host, request.origin_realm
        what = (buffer, bytes(mask), _places(buffer, places), *origin, self._origin_bits(*origin), answers)
        context = self._lane.learn(*what)
        if context is None:  # there is no more room: begin afresh
            self._lane.forget()
            self._origins.clear()
            self._fields.clear()
            context = self._lane.learn(*what)
        if context is not None:
            self._origins.append(origin)
            at = {place.name: slice(place.start, place.end) for place in places.places}
            self._fields.append((at["imei"], at.get("version", NOWHERE), at.get("imsi", NOWHERE)))

    def _sight(self, sightings: Sightings, program: Program, data: bytes, facts: npt.NDArray[Any], observed: list[str]) -> None:
        """Hand in what was answered: by the group what has one context and a plain verdict and was not asked, all else one by one."""
        if len(facts) < COLUMNS_MIN:
            self._sight_each(sightings, program, data, facts, observed)
            return
        kinds = facts["context"].astype(np.uint64) << np.uint64(32) | facts["verdict"]
        told = facts["asked"] != 0
        for kind, count in zip(*np.unique(kinds[~told], return_counts=True), strict=True) if len(facts) else ():
            decision = program.verdicts[int(kind) & 0xFFFFFFFF].decision
            if count >= ALIKE_MIN and decision.is_plain:
                context, rows = int(kind) >> 32, (kinds == kind) & ~told
                fields = self._fields[context]
                at = np.concatenate([np.arange(field.start, field.stop) for field in fields])
                digits = np.frombuffer(data, np.uint8)[facts["at"][rows].astype(np.intp)[:, None] + at] - _ZERO
                imei, version, imsi = (field.stop - field.start for field in fields)
                sightings.alike(decision, (*self._origins[context], PROTOCOL), digits, (imei, version, imsi), [])
                facts, kinds, told = facts[~rows], kinds[~rows], told[~rows]
        self._sight_each(sightings, program, data, facts, observed)

    def _sight_each(self, sightings: Sightings, program: Program, data: bytes, facts: npt.NDArray[Any], observed: list[str]) -> None:
        """Hand in checks one by one; neighbours of one context and verdict go together."""
        held, told, found, texts = iter(observed), None, list[Sighting](), list[bytes]()
        for _, context, verdict, at, asked in facts.tolist():
            said = next(held) if asked else ""
            if (kind := (context, verdict, said)) != told:
                told, texts = kind, []
                found.append((program.verdicts[verdict].decision, *self._origins[context], PROTOCOL, said, texts))
                imei, version, imsi = self._fields[context]
            message = data[at : at + BYTES_MAX]
            sent = message[imei]
            texts += (sent, message[imsi], message[version] or sent[KEY_DIGITS:][: 2 * (len(sent) == IMEISV_DIGITS)])
        if found:
            sightings.each(found)

    @property
    def learned(self) -> tuple[int, int]:
        """How many kinds of requests were learned, and the bytes that they take."""
        return self._lane.learned()

    def renew(self) -> None:
        """Let go of the images of lists that are no longer in force; without that it happens with the next message."""
        if self._program is not None:
            self._bind(self._checker.policy.program)

    def _bind(self, program: Program) -> None:
        """Take over a policy, and its lists as they are now."""
        self._version = program.index.version
        self._numbers = {verdict: number for number, verdict in enumerate(program.verdicts)}
        self._statuses = bytes(NUMBERS[verdict.status] for verdict in program.verdicts)
        self._all = b"\1" * len(program.verdicts)
        self._events = bytes(not verdict.decision.is_plain for verdict in program.verdicts)
        images = [entries.image for entries in program.lists[:LISTS_MAX]]
        self._has_ends = any(image is not None and image.has_ends for image in images)
        self._lane.bind(program.words, self._statuses, tuple(map(_list, program.lists)), self._checker.policy.by_digit is not None)
        if program is not self._program:
            self._program = program
            for context, origin in enumerate(self._origins):
                self._lane.set_origin(context, self._origin_bits(*origin))

    def _origin_bits(self, host: str, realm: str) -> int:
        tests = () if self._program is None else self._program.origins
        return sum(1 << number for number, holds in enumerate(tests) if holds(0, "", "", host, realm))


def _list(entries: DeviceList) -> tuple["_lane.Table | None", int]:
    """A list as the compiled part is given it: None if it was never loaded."""
    return None if entries.image is None else table_of(entries.image), KINDS.get(entries.kind, 0)


def table_of(image: Image) -> "_lane.Table":
    """An image as the compiled part looks into it."""
    return _lane.Table(image.buffer)


def _places(buffer: bytes, of: Places) -> bytes:
    """Where the fields are, as the compiled part reads it, and where the AVPs' lengths are, which tell layouts apart."""
    at = {place.name: (place.start, place.end - place.start) for place in of.places}
    fields = (len(buffer), *at["session"], *at["imei"], at.get("version", (0, 0))[0], *at.get("imsi", (0, 0)))
    made = bytearray(4 * (len(fields) + 2 * len(of.headers)))
    shape = [word for start in of.headers for word in (start + LENGTH_WORD_AT, *unpack_from("!I", buffer, start + LENGTH_WORD_AT))]
    pack_into(f"={len(fields) + len(shape)}I", made, 0, *fields, *shape)
    return bytes(made)
