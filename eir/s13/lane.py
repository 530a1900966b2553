"""The express lane: an ECR that looks like one answered before is answered straight from the read buffer.

One MME's requests differ in a few places only: the two identifiers of the header, Session-Id, IMEI, Software-Version and
User-Name. When the general path has answered an ECR, the lane remembers where in it these places are (a `Layout`) and what
all the other bytes were (a `Context`). A later message of the same layout whose other bytes are the same would pass the
same checks and get the same answer but for its identifiers and its verdict, so it is answered from parts encoded once.
Anything else, one byte of difference included, is left to the general path, which stays the specification:
tests/test_express.py holds the two to the same bytes.

Where a C compiler was there at the installation, eir.s13.compiled does the same many times as fast; this is what runs elsewhere.

May import what s13.service may; knows no connection and no clock. The verdicts are those of the policy in force in
eir.checks.checker, which counts them too.
"""

from collections.abc import Callable, Mapping
from itertools import chain
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from eir.checks.checker import Checker
from eir.checks.identifier import is_wrong_digit
from eir.checks.policy import Verdict
from eir.checks.question import IMEISV_DIGITS
from eir.checks.settings import Status
from eir.device import KEY_DIGITS
from eir.diameter.answer import Reply, result_label
from eir.diameter.dictionary import SESSION_ID
from eir.diameter.message import HEADER_BYTES, Request
from eir.s13.credit import Credit
from eir.s13.dictionary import ME_IDENTITY_CHECK_NAME
from eir.s13.places import AVP_HEADER_BYTES, IDS_AT, Place, answer_to, places_of
from eir.s13.service import PROTOCOL, REPLIES

if TYPE_CHECKING:
    from eir.checks.sighting import Sighting

FIRST_WORD_BYTES = 4
LAYOUTS_MAX = 16
"""Layouts that are told apart for one peer."""
CONTEXTS_MAX = 512
"""Contexts of all layouts: an agent brings requests of many MMEs."""
NOTHING: Mapping[str, int] = {}
"""No answers."""


class Pieces(NamedTuple):
    """An answer around the identifiers and the Session-Id that it repeats."""

    head: bytes
    """Version to application id."""
    session_head: bytes
    """The header of the Session-Id AVP."""
    tail: bytes
    """From the Session-Id's padding to the end."""
    is_plain: bool
    """`whitelisted`: nobody is told."""


class Context(NamedTuple):
    """Requests that are alike in all that is not looked at one by one."""

    origin_host: str
    origin_realm: str
    pieces: dict[Status, Pieces]
    by_verdict: dict[Verdict, Pieces]
    """The same by what the policy says, filled as verdicts come."""
    shed: Pieces
    """The answer past a limit on requests a second."""


class Layout(NamedTuple):
    """Where the fields of a request are. Indices are into what `unpack` returns."""

    length: int
    unpack: Callable[[bytes, int], tuple[bytes, ...]]
    constants: Callable[[tuple[bytes, ...]], object]
    """The fields that have to be those of a context."""
    ids: int
    session: int
    imei: int
    divisor: int
    """What an IMEI of this length is divided by for its first 14 digits."""
    is_imeisv: bool
    version: int | None
    imsi: int | None
    format: str
    contexts: dict[object, Context]


class Lane:
    """The lane of one peer; for `label`, `origin` and `overload` see eir.diameter.application.LaneFactory, for `replies` S13Service."""

    command = ME_IDENTITY_CHECK_NAME

    def __init__(
        self, checker: Checker, label: str, origin: bytes, overload: Reply, *, replies: Callable[[str], Mapping[Status, Reply]] = lambda _: REPLIES
    ) -> None:
        self._checker = checker
        self._replies = replies(label)
        self._results = {status: result_label(reply.result_code, reply.experimental) for status, reply in self._replies.items()}
        self._policy = checker.policy
        self._label = label
        self._origin = origin
        self._overload = overload
        self._credit = Credit()
        self._layouts: dict[bytes, list[Layout]] = {}
        self._latest: Layout | None = None
        """The layout of the last message: most often that of the next one too."""

    def take(self, data: bytes, position: int, messages_max: int, out: list[bytes]) -> tuple[int, Mapping[str, int]]:
        """See eir.diameter.application.Lane.take; results are `2001` and `10415:5422`."""
        if self._checker.policy is not self._policy:
            self._forget_verdicts()
        tally: dict[Verdict, int] = {}
        layout = self._latest
        if layout is not None:
            position, messages_max = self._run(layout, data, position, messages_max, out=out, tally=tally)
        while messages_max and position < len(data) and (layout := self._find(data, position)) is not None:
            before = position
            position, messages_max = self._run(layout, data, position, messages_max, out=out, tally=tally)
            if position == before:
                break
            self._latest = layout
        return position, self._count(tally) if tally else NOTHING

    def _run(
        self, layout: Layout, data: bytes, position: int, messages_max: int, *, out: list[bytes], tally: dict[Verdict, int]
    ) -> tuple[int, int]:
        """Answer the messages of one layout that follow one another; returns the position after them, and what is left to do."""
        length, unpack, constants, at_ids, at_session, at_imei, divisor, is_imeisv, at_version, at_imsi, _, contexts = layout
        decide, extend, by_digit = self._policy.decide, out.extend, self._policy.by_digit is not None
        sightings, held = self._checker.sightings, self._checker.held
        sighted: list[Sighting] = []
        told: Verdict | None = None
        texts: list[bytes] = []
        last = len(data) - length
        alike: object = None
        while messages_max and position <= last:
            fields = unpack(data, position)
            # Neighbours are mostly of one context, and comparing costs less than finding.
            if (found := constants(fields)) != alike:
                context = contexts.get(found)
                if context is None:
                    break
                alike, told = found, None
                origin_host, origin_realm, pieces_of, by_verdict, _ = context
            imei = fields[at_imei]
            imsi = fields[at_imsi] if at_imsi is not None else b""
            version = fields[at_version] if at_version is not None else imei[KEY_DIGITS:] if is_imeisv else b""
            # A field that is there and no number is for the general path to make sense of, and so is a check digit that matters.
            good = imei.isdigit() and (version.isdigit() or not version) and (imsi.isdigit() or not imsi)
            if not good or (by_digit and is_wrong_digit(imei)):
                break
            key = int(imei) // divisor
            verdict = decide(key, imsi.decode(), version.decode(), origin_host, origin_realm)
            pieces = by_verdict.get(verdict)
            if pieces is None:
                pieces = by_verdict[verdict] = pieces_of[verdict.status]
            head, session_head, tail, is_plain = pieces
            extend((head, fields[at_ids], session_head, fields[at_session], tail))
            tally[verdict] = tally.get(verdict, 0) + 1
            if verdict is not told or held:
                told, texts = verdict, []
                sighted.append((verdict.decision, origin_host, origin_realm, PROTOCOL, self._checker.observed_now(), texts))
            texts += (imei, imsi, version)
            if not is_plain:
                self._checker.note(verdict, self._label, origin_host, key, imsi.decode())
            position += length
            messages_max -= 1
        if sighted and sightings is not None:
            sightings.each(sighted)
        return position, messages_max

    def shed(self, data: bytes, position: int, messages_max: int, out: list[bytes]) -> tuple[int, int]:
        """See eir.diameter.application.Lane.shed."""
        count = 0
        while count < messages_max and position < len(data) and (layout := self._find(data, position)) is not None:
            fields = layout.unpack(data, position)
            head, session_head, tail, _ = layout.contexts[layout.constants(fields)].shed
            out.extend((head, fields[layout.ids], session_head, fields[layout.session], tail))
            position += layout.length
            count += 1
        return position, count

    def learn(self, request: Request) -> None:
        """Take an ECR that the general path has just answered by a verdict as the pattern for further ones."""
        if not self._credit.allows():
            return
        layout = _layout_of(request)
        if layout is None:
            return
        self._credit.spend()
        first_word = request.buffer[:FIRST_WORD_BYTES]
        known = next((each for each in self._layouts.get(first_word, ()) if each.format == layout.format), layout)
        if known is layout:
            if sum(map(len, self._layouts.values())) >= LAYOUTS_MAX:
                self._layouts.clear()  # The peer has changed its ways: begin afresh.
                self._latest = None
            self._layouts.setdefault(first_word, []).append(layout)
        layouts = list(chain.from_iterable(self._layouts.values()))
        if sum(len(layout.contexts) for layout in layouts) >= CONTEXTS_MAX:
            for layout in layouts:
                layout.contexts.clear()
        pieces = {status: self._cut(request, reply, is_plain=status is Status.WHITELISTED) for status, reply in self._replies.items()}
        shed = self._cut(request, self._overload, is_plain=True)
        context = Context(request.origin_host, request.origin_realm, pieces, {}, shed)
        known.contexts[known.constants(known.unpack(request.buffer, 0))] = context

    def _count(self, tally: dict[Verdict, int]) -> Mapping[str, int]:
        """Count what was answered; returns the answers by result."""
        self._checker.count(PROTOCOL, tally)
        results: dict[str, int] = {}
        for verdict, count in tally.items():
            result = self._results[verdict.status]
            results[result] = results.get(result, 0) + count
        self._credit.earn(sum(tally.values()))
        return results

    def _find(self, data: bytes, position: int) -> Layout | None:
        """The layout that the message at `position` has, if one of its contexts has it too; None if it is new or incomplete."""
        left = len(data) - position
        for layout in self._layouts.get(data[position : position + FIRST_WORD_BYTES], ()):
            if left >= layout.length and layout.constants(layout.unpack(data, position)) in layout.contexts:
                return layout
        return None

    def _forget_verdicts(self) -> None:
        self._policy = self._checker.policy
        for layout in chain.from_iterable(self._layouts.values()):
            for context in layout.contexts.values():
                context.by_verdict.clear()

    def _cut(self, request: Request, reply: Reply, *, is_plain: bool) -> Pieces:
        """The answer that this request would get by a reply, cut where it repeats what the request holds."""
        session, session_at = request.first[SESSION_ID].data, HEADER_BYTES + AVP_HEADER_BYTES
        answer = answer_to(request, reply, self._origin)
        return Pieces(answer[:IDS_AT], answer[HEADER_BYTES:session_at], answer[session_at + len(session) :], is_plain)


def _layout_of(request: Request) -> Layout | None:
    """Where the fields of a request are; None if it is one that the lane leaves alone."""
    if (found := places_of(request)) is None:
        return None
    stretches, at = [], 0
    for place in (*found.places, Place(len(request.buffer), len(request.buffer), "")):
        if place.start > at:
            stretches.append(Place(at, place.start, "constant"))
        stretches.append(place)
        at = place.end
    form = "".join(f"{place.end - place.start}{'s' if place.name else 'x'}" for place in stretches)
    read = [place.name for place in stretches if place.name]
    constants = [index for index, name in enumerate(read) if name == "constant"]
    index = {name: index for index, name in enumerate(read)}
    (digits,) = (place.end - place.start for place in found.places if place.name == "imei")
    return Layout(
        len(request.buffer), Struct(form).unpack_from, itemgetter(*constants), index["ids"], index["session"], index["imei"],
        10 ** (digits - KEY_DIGITS), digits == IMEISV_DIGITS, index.get("version"), index.get("imsi"), form, {},
    )  # fmt: skip
