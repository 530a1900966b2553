"""The express lane: an ECR that looks like one answered before is answered straight from the read buffer.

One MME's requests differ in a few places only: the two identifiers of the header, Session-Id, IMEI, Software-Version and
User-Name. When the general path has answered an ECR, the lane remembers where in it these places are (a `Layout`) and what
all the other bytes were (a `Context`). A later message of the same layout whose other bytes are the same would pass the
same checks and get the same answer but for its identifiers and its verdict, so it is answered from parts encoded once.
Anything else, one byte of difference included, is left to the general path, which stays the specification:
tests/test_express.py holds the two to the same bytes.

Many such messages in a row are answered by columns (eir.s13.columns), as far as every rule needs the device to be in a list:
only devices that some list may have are decided one by one.

May import what s13.service may, and numpy; knows no connection and no clock. The verdicts are those of the policy in force in
eir.checks.checker, which counts them too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from struct import Struct
from typing import NamedTuple

import numpy as np

from eir.checks.checker import Checker
from eir.checks.policy import Status, Verdict
from eir.checks.question import IMEISV_DIGITS, SOFTWARE_VERSION_DIGITS
from eir.device import IMEI_LENGTHS, KEY_DIGITS
from eir.diameter.answer import Reply, encode_answer, result_avp, result_label
from eir.diameter.avp import Avp
from eir.diameter.dictionary import DRMP, PROXY_INFO, SESSION_ID, USER_NAME
from eir.diameter.grammar import Grammar
from eir.diameter.message import HEADER_BYTES, Request
from eir.diameter.result import is_protocol_error
from eir.s13.columns import Columns
from eir.s13.dictionary import DICTIONARY, IMEI, ME_IDENTITY_CHECK_NAME, MEID, SOFTWARE_VERSION, TERMINAL_INFORMATION
from eir.s13.grammar import ECR, TERMINAL_GRAMMAR
from eir.s13.service import PROTOCOL, REPLIES

IDS_AT = 12
"""Offset of hop-by-hop and end-to-end identifier, 8 bytes together (RFC 6733 3)."""
FIRST_WORD_BYTES = 4
AVP_HEADER_BYTES = 8
LAYOUTS_MAX = 16
"""Layouts that are told apart for one peer."""
CONTEXTS_MAX = 512
"""Contexts of all layouts: an agent brings requests of many MMEs."""
BYTES_MAX = 2048
"""Of a request that is learned from, so that what is learned takes a few MB of memory whatever comes."""
LEARNING_COSTS = 32
"""Answers by the lane that pay for learning one context."""
CREDIT_MAX = 100 * LEARNING_COSTS
GENERAL_ONLY = frozenset({PROXY_INFO, DRMP, MEID})
"""A request that has one of these is always answered by the general path."""
COLUMNS_MIN = 20
"""Messages in a row from which columns are worth their fixed cost."""
COLUMNS_PAUSE = 16
"""Runs of messages that are answered one by one after one that columns could not answer."""
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
    columns: Columns


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
        self._credit = CREDIT_MAX
        self._passed_over = 0
        self._columns_pause = 0
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
        if messages_max >= COLUMNS_MIN and len(data) - position >= COLUMNS_MIN * layout.length:
            taken = self._by_columns(layout, data, position, messages_max, out=out, tally=tally)
            position += taken * layout.length
            messages_max -= taken
        length, unpack, constants, at_ids, at_session, at_imei, divisor, is_imeisv, at_version, at_imsi, _, contexts, _ = layout
        decide, extend = self._policy.decide, out.extend
        last = len(data) - length
        alike: object = None
        while messages_max and position <= last:
            fields = unpack(data, position)
            # Neighbours are mostly of one context, and comparing costs less than finding.
            if (found := constants(fields)) != alike:
                context = contexts.get(found)
                if context is None:
                    break
                alike = found
                origin_host, origin_realm, pieces_of, by_verdict, _ = context
            imei = fields[at_imei]
            imsi = fields[at_imsi] if at_imsi is not None else b""
            version = fields[at_version] if at_version is not None else imei[KEY_DIGITS:] if is_imeisv else b""
            # A field that is there and no number is for the general path to make sense of.
            if not (imei.isdigit() and (version.isdigit() or not version) and (imsi.isdigit() or not imsi)):
                break
            key = int(imei) // divisor
            verdict = decide(key, imsi.decode(), version.decode(), origin_host, origin_realm)
            pieces = by_verdict.get(verdict)
            if pieces is None:
                pieces = by_verdict[verdict] = pieces_of[verdict.status]
            head, session_head, tail, is_plain = pieces
            extend((head, fields[at_ids], session_head, fields[at_session], tail))
            tally[verdict] = tally.get(verdict, 0) + 1
            if not is_plain:
                self._checker.note(verdict, self._label, origin_host, key, imsi.decode())
            position += length
            messages_max -= 1
        return position, messages_max

    def _by_columns(
        self, layout: Layout, data: bytes, position: int, messages_max: int, *, out: list[bytes], tally: dict[Verdict, int]
    ) -> int:
        """Answer the messages from `position` on that are alike, if there are enough of them; returns how many it answered."""
        unlisted = self._policy.unlisted
        if unlisted is None or unlisted.verdict.status is not Status.WHITELISTED:  # other answers are told of one by one
            return 0
        if self._columns_pause:
            self._columns_pause -= 1
            return 0
        context = layout.contexts.get(layout.constants(layout.unpack(data, position)))
        if context is None:
            return 0
        rows, keys = layout.columns.alike(data, position, min(messages_max, (len(data) - position) // layout.length))
        if (count := len(rows)) < COLUMNS_MIN:
            self._columns_pause = COLUMNS_PAUSE
            return 0
        doubtful = np.zeros(count, np.bool_)
        for entries in unlisted.lists:
            if (doubts := entries.doubtful(keys)) is None:  # for some seconds after a start or a switch
                self._columns_pause = COLUMNS_PAUSE
                return 0
            doubtful |= doubts
        head, session_head, tail, _ = context.pieces[unlisted.verdict.status]
        answers = layout.columns.answers(rows, head, session_head, tail)
        size, done, listed = len(answers) // count, 0, 0
        for row in np.flatnonzero(doubtful).tolist():
            if unlisted.some_list_has(int(keys[row])):
                out.append(answers[done * size : row * size])
                self._run(layout, data, position + row * layout.length, 1, out=out, tally=tally)
                done, listed = row + 1, listed + 1
        out.append(answers[done * size :])
        tally[unlisted.verdict] = tally.get(unlisted.verdict, 0) + count - listed
        return count

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
        if self._credit < LEARNING_COSTS:
            self._passed_over += 1
            if self._passed_over % LEARNING_COSTS:
                return  # What was learned is of little use: this peer's requests are all different.
        layout = _layout_of(request)
        if layout is None:
            return
        self._credit = max(0, self._credit - LEARNING_COSTS)
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
            self._credit += count
        self._credit = min(CREDIT_MAX, self._credit)
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
        session = request.first[SESSION_ID].data
        session_at = HEADER_BYTES + AVP_HEADER_BYTES
        result, error = result_avp(reply.result_code, reply.experimental), is_protocol_error(reply.result_code)
        answer = encode_answer(request, result, self._origin, avps=reply.avps, error=error)
        return Pieces(answer[:IDS_AT], answer[HEADER_BYTES:session_at], answer[session_at + len(session) :], is_plain)


class _Place(NamedTuple):
    """A stretch of a message."""

    start: int
    end: int
    name: str
    """`ids`, `session`, `imei`, `version`, `imsi`, or `constant` for what is held to one; empty: nobody reads it."""


def _layout_of(request: Request) -> Layout | None:
    """Where the fields of a request are; None if it is one that the lane leaves alone."""
    info = request.first.get(TERMINAL_INFORMATION)
    if info is None or len(request.buffer) > BYTES_MAX or not GENERAL_ONLY.isdisjoint(request.first):
        return None
    members = request.members(info)
    if any(avp.key in GENERAL_ONLY for avp in members):
        return None
    places = [_Place(IDS_AT, HEADER_BYTES, "ids"), *_places(request.avps, ECR), *_places(members, TERMINAL_GRAMMAR)]
    places.sort()
    sizes = {place.name: place.end - place.start for place in places}
    if sizes.get("imei") not in IMEI_LENGTHS or sizes.get("version", SOFTWARE_VERSION_DIGITS) != SOFTWARE_VERSION_DIGITS:
        return None
    stretches, at = [], 0
    for place in (*places, _Place(len(request.buffer), len(request.buffer), "")):
        if place.start > at:
            stretches.append(_Place(at, place.start, "constant"))
        stretches.append(place)
        at = place.end
    form = "".join(f"{place.end - place.start}{'s' if place.name else 'x'}" for place in stretches)
    read = [place.name for place in stretches if place.name]
    constants = [index for index, name in enumerate(read) if name == "constant"]
    found = {name: index for index, name in enumerate(read)}
    fields = {place.name: slice(place.start, place.end) for place in places}
    columns = Columns(
        len(request.buffer), [slice(place.start, place.end) for place in places], ids=fields["ids"], session=fields["session"],
        imei=fields["imei"], digits=[fields[name] for name in ("version", "imsi") if name in fields],
    )  # fmt: skip
    return Layout(
        len(request.buffer), Struct(form).unpack_from, itemgetter(*constants), found["ids"], found["session"], found["imei"],
        10 ** (sizes["imei"] - KEY_DIGITS), sizes["imei"] == IMEISV_DIGITS, found.get("version"), found.get("imsi"), form, {}, columns,
    )  # fmt: skip


_NAMES = {SESSION_ID: "session", USER_NAME: "imsi", IMEI: "imei", SOFTWARE_VERSION: "version"}


def _places(avps: Sequence[Avp], grammar: Grammar) -> Iterator[_Place]:
    """The data of those AVPs that are read one by one, and of those whose value the grammar does not look at."""
    for avp in avps:
        name = _NAMES.get(avp.key)
        if name is not None or (avp.key not in grammar.rules and avp.key not in DICTIONARY.groups):
            yield _Place(avp.end - len(avp.data), avp.end, name or "")
