"""TCAP (Q.773) of who answers at once and keeps no transaction: Begin in, End or Abort out; and of who asks so.

A message is taken apart into its transaction portion, its dialogue and the invocations in it; what is wrong with it has its answer
beside it (Q.774 3.2, 3.3). What an operation means is the user's. No I/O, no state.
"""

import itertools
from enum import IntEnum
from typing import NamedTuple

from eir.wire.ss7.ber import BerError, Element, element, elements, encoded

BEGIN, END, CONTINUE, ABORT, UNIDIRECTIONAL = 0x62, 0x64, 0x65, 0x67, 0x61
_KINDS = frozenset({BEGIN, END, CONTINUE, ABORT, UNIDIRECTIONAL})
_OTID, _DTID, _CAUSE, _DIALOGUE, _COMPONENTS = 0x48, 0x49, 0x4A, 0x6B, 0x6C
_ORDER = {_OTID: 0, _DTID: 1, _CAUSE: 2, _DIALOGUE: 3, _COMPONENTS: 4}
_INVOKE, _RESULT, _RESULT_NOT_LAST, _ERROR, _REJECT = 0xA1, 0xA2, 0xA7, 0xA3, 0xA4
_INTEGER, _NULL, _OBJECT, _SEQUENCE, _LINKED, _NOT_LINKED = 0x02, 0x05, 0x06, 0x30, 0x80, 0x81
AARQ, AARE, ABRT = 0x60, 0x61, 0x64
_DIALOGUE_AS = bytes.fromhex("060700118605010101")
"""dialogue-as-id (Q.773 4.2.3), as an element."""
_VERSION_1 = bytes.fromhex("80020780")
COMPONENTS_MAX = 8
"""Invocations in one message; a client asks one."""


class Cause(IntEnum):
    """P-Abort causes (Q.773 3.2)."""

    UNRECOGNIZED_MESSAGE = 0
    UNRECOGNIZED_TRANSACTION = 1
    BADLY_FORMATTED = 2
    INCORRECT = 3
    RESOURCE = 4


class Problem(NamedTuple):
    """Reason why a component is rejected (Q.773 3.3): the kind of problem by its tag, and its code."""

    tag: int
    code: int


UNRECOGNIZED_COMPONENT, MISTYPED_COMPONENT, BADLY_STRUCTURED = Problem(0x80, 0), Problem(0x80, 1), Problem(0x80, 2)
DUPLICATE_ID, UNRECOGNIZED_OPERATION, MISTYPED_PARAMETER = Problem(0x81, 0), Problem(0x81, 1), Problem(0x81, 2)
RESOURCE_LIMITATION, UNRECOGNIZED_LINK = Problem(0x81, 3), Problem(0x81, 5)
RESULT_UNEXPECTED, ERROR_UNEXPECTED = Problem(0x82, 0), Problem(0x83, 0)


class TcapFault(Exception):
    """A message that gets an Abort of the provider, if it says to whom, or nothing; the text is a short word for metrics."""

    def __init__(self, reason: str, answer: bytes | None = None) -> None:
        super().__init__(reason)
        self.answer = answer


class Apdu(NamedTuple):
    """A dialogue portion (Q.773 4)."""

    kind: int
    """AARQ, AARE or ABRT."""
    context: bytes = b""
    """Application context name: contents of the object identifier."""
    accepted: bool = True
    """In an AARE: the dialogue is accepted."""
    diagnostic: int = 0
    """In an AARE: the value of its result-source-diagnostic."""
    version_1: bool = True
    """Version 1 of the protocol is offered, which is the only one."""


class Message(NamedTuple):
    """A message whose transaction portion is good."""

    kind: int
    otid: bytes
    dtid: bytes
    """Transaction ids; empty: it has none."""
    cause: int | None
    dialogue: Element | None
    components: Element | None


class Invoke(NamedTuple):
    """A good invocation."""

    id: bytes
    operation: int
    """Local code; -1: it is another kind of code."""
    parameters: list[Element]
    """Elements after the operation: one or none; some makers add to it."""


class Outcome(NamedTuple):
    """The outcome of an invocation."""

    operation: int | None
    """Operation of a result."""
    error: int | None
    """The code of an error."""
    problem: Problem | None
    """Problem of a reject."""
    parameters: list[Element]


# what comes


def read(octets: bytes) -> Message:
    """The message in these octets. Raises TcapFault."""
    kind = octets[0] if octets else 0
    otid = _otid_at_start(octets)
    try:
        whole = element(octets, 0, len(octets))
        parts = elements(octets, whole.start, whole.stop)
    except BerError:
        raise _fault("tcap_badly_formatted", otid, Cause.BADLY_FORMATTED) from None
    if kind not in _KINDS:
        raise _fault("tcap_message_type", otid, Cause.UNRECOGNIZED_MESSAGE)
    if whole.end != len(octets):
        raise _fault("tcap_badly_formatted", otid, Cause.BADLY_FORMATTED)
    places = [_ORDER.get(part.tag, -1) for part in parts]
    if -1 in places or any(later <= earlier for earlier, later in itertools.pairwise(places)):
        raise _fault("tcap_incorrect", otid, Cause.INCORRECT)
    found = {part.tag: part for part in parts}
    ids = {tag: octets[found[tag].start : found[tag].stop] if tag in found else b"" for tag in (_OTID, _DTID)}
    wanted = {
        BEGIN: (True, False),
        CONTINUE: (True, True),
        END: (False, True),
        ABORT: (False, True),
        UNIDIRECTIONAL: (False, False),
    }[kind]
    if (_OTID in found, _DTID in found) != wanted or any(
        tag in found and not 1 <= len(each) <= 4 for tag, each in ids.items()
    ):
        raise _fault("tcap_incorrect", otid, Cause.INCORRECT)
    cause = found.get(_CAUSE)
    if cause is not None and (kind != ABORT or cause.stop != cause.start + 1):
        raise _fault("tcap_incorrect", otid, Cause.INCORRECT)
    return Message(
        kind,
        ids[_OTID],
        ids[_DTID],
        None if cause is None else octets[cause.start],
        found.get(_DIALOGUE),
        found.get(_COMPONENTS),
    )


def _fault(reason: str, otid: bytes, cause: Cause) -> TcapFault:
    return TcapFault(reason, abort(otid, cause) if otid else None)


def _otid_at_start(octets: bytes) -> bytes:
    """The transaction id that an Abort needs, wherever the rest is wrong; empty: none can be derived (Q.774 3.3.3.1)."""
    if not octets or octets[0] in {END, ABORT, UNIDIRECTIONAL}:
        return b""
    at = 2 + (octets[1] & 0x7F if len(octets) > 1 and octets[1] > 0x80 else 0)
    if octets[at : at + 1] != bytes((_OTID,)) or at + 1 >= len(octets):
        return b""
    length = octets[at + 1]
    found = octets[at + 2 : at + 2 + length]
    return found if 1 <= length <= 4 and len(found) == length else b""


def apdu(octets: bytes, portion: Element) -> Apdu:
    """The dialogue portion. Raises BerError."""
    (external,) = _children(octets, portion, 1)
    if external.tag != 0x28:
        raise BerError("no EXTERNAL")
    name, single = _children(octets, external, 2)
    if octets[external.start : name.end] != _DIALOGUE_AS or single.tag != 0xA0:
        raise BerError("not the structured dialogue")
    (inner,) = _children(octets, single, 1)
    parts = {part.tag: part for part in elements(octets, inner.start, inner.stop)}
    if inner.tag == ABRT:
        return Apdu(ABRT)
    if inner.tag not in {AARQ, AARE} or 0xA1 not in parts:
        raise BerError("no dialogue of TCAP")
    (context,) = _children(octets, parts[0xA1], 1)
    if context.tag != _OBJECT or context.start == context.stop:
        raise BerError("no application context name")
    version = parts.get(0x80)
    versions = octets[version.start : version.stop] if version is not None else _VERSION_1[2:]
    accepted, diagnostic = True, 0
    if inner.tag == AARE:
        accepted = _number(octets, _only(octets, parts.get(0xA2))) == 0
        diagnostic = _number(octets, _only(octets, _only(octets, parts.get(0xA3))))
    return Apdu(
        inner.tag,
        octets[context.start : context.stop],
        accepted,
        diagnostic,
        len(versions) > 1 and bool(versions[1] & 0x80),
    )


def _children(octets: bytes, parent: Element, count: int) -> list[Element]:
    found = elements(octets, parent.start, parent.stop)
    if len(found) != count:
        raise BerError("another number of elements than there should be")
    return found


def _only(octets: bytes, parent: Element | None) -> Element:
    if parent is None:
        raise BerError("an element is missing")
    return _children(octets, parent, 1)[0]


def _number(octets: bytes, of: Element) -> int:
    if not 1 <= of.stop - of.start <= 4:
        raise BerError("no number")
    return int.from_bytes(octets[of.start : of.stop], signed=True)


def invocations(octets: bytes, portion: Element) -> list[Invoke | bytes]:
    """Return the invocations in order and, in between, the node's answers to invalid components: each a Reject.

    Nothing is read after a badly structured component (Q.774 3.2.2.2). A Reject gets no answer.
    """
    found: list[Invoke | bytes] = []
    seen: set[bytes] = set()
    at = portion.start
    while at < portion.stop:
        try:
            component = element(octets, at, portion.stop)
            parts = elements(octets, component.start, component.stop)
        except BerError:
            return [*found, reject(None, BADLY_STRUCTURED)]
        at = component.end
        if component.tag != _REJECT:
            found.append(_component(octets, component.tag, parts, seen))
        if len(found) > COMPONENTS_MAX:
            return [*found[:COMPONENTS_MAX], reject(None, BADLY_STRUCTURED)]
    return found


def _component(octets: bytes, tag: int, parts: list[Element], seen: set[bytes]) -> Invoke | bytes:
    if tag not in {_INVOKE, _RESULT, _RESULT_NOT_LAST, _ERROR}:
        return reject(None, UNRECOGNIZED_COMPONENT)
    if not parts or parts[0].tag != _INTEGER or parts[0].stop != parts[0].start + 1:
        return reject(None, MISTYPED_COMPONENT)
    number = octets[parts[0].start : parts[0].stop]
    if tag == _INVOKE and len(parts) > 1 and parts[1].tag == _NOT_LINKED and parts[1].start == parts[1].stop:
        del parts[1]  # linkedId absent [1] IMPLICIT NULL (X.880 in Q.773 06/97); OTC writes it into every Invoke
    problem: Problem | None = None
    if tag != _INVOKE:
        problem = ERROR_UNEXPECTED if tag == _ERROR else RESULT_UNEXPECTED
    elif len(parts) > 1 and parts[1].tag == _LINKED:
        problem = UNRECOGNIZED_LINK
    elif len(parts) < 2 or parts[1].tag not in {_INTEGER, _OBJECT} or parts[1].start == parts[1].stop:
        problem = MISTYPED_COMPONENT
    elif number in seen:
        problem = DUPLICATE_ID
    if problem is not None:
        return reject(number, problem)
    seen.add(number)
    code = int.from_bytes(octets[parts[1].start : parts[1].stop], signed=True) if parts[1].tag == _INTEGER else -1
    return Invoke(number, code, parts[2:])


def outcomes(octets: bytes, portion: Element) -> list[Outcome]:
    """Return the outcomes in an End. Raises BerError."""
    found = []
    for component in elements(octets, portion.start, portion.stop):
        parts = elements(octets, component.start, component.stop)[1:]
        if component.tag == _RESULT:
            inside = elements(octets, parts[0].start, parts[0].stop) if parts else []
            found.append(Outcome(_number(octets, inside[0]) if inside else None, None, None, inside[1:]))
        elif component.tag == _ERROR and parts:
            found.append(Outcome(None, _number(octets, parts[0]), None, parts[1:]))
        elif component.tag == _REJECT and parts:
            found.append(Outcome(None, None, Problem(parts[0].tag, _number(octets, parts[0])), []))
        else:
            raise BerError("no result, error or reject")
    return found


# what goes


def abort(dtid: bytes, cause: Cause) -> bytes:
    """An Abort of the provider."""
    return encoded(ABORT, encoded(_DTID, dtid) + bytes((_CAUSE, 1, cause)))


def abort_dialogue(dtid: bytes, dialogue: bytes = b"") -> bytes:
    """An Abort of the user, with this dialogue portion or none."""
    return encoded(ABORT, encoded(_DTID, dtid) + dialogue)


def end(dtid: bytes, dialogue: bytes, components: bytes) -> bytes:
    """An End; each part may be empty."""
    return encoded(END, encoded(_DTID, dtid) + dialogue + (encoded(_COMPONENTS, components) if components else b""))


def begin(otid: bytes, dialogue: bytes, components: bytes) -> bytes:
    """A Begin, likewise."""
    return encoded(BEGIN, encoded(_OTID, otid) + dialogue + (encoded(_COMPONENTS, components) if components else b""))


def request(context: bytes) -> bytes:
    """The dialogue portion that opens a dialogue in a context."""
    return _portion(encoded(AARQ, _VERSION_1 + encoded(0xA1, encoded(_OBJECT, context))))


def response(context: bytes, *, accepted: bool, diagnostic: int = 0, provider: bool = False) -> bytes:
    """The dialogue portion that takes a dialogue or refuses it (Q.773 4.2.3); `diagnostic`: of the user, or of the provider."""
    result = bytes((0xA2, 3, 2, 1, not accepted))
    source = encoded(0xA3, encoded(0xA2 if provider else 0xA1, bytes((2, 1, diagnostic))))
    return _portion(encoded(AARE, _VERSION_1 + encoded(0xA1, encoded(_OBJECT, context)) + result + source))


def ended(*, provider: bool) -> bytes:
    """The dialogue portion of an Abort in a dialogue, by us or for a dialogue that cannot be understood (ABRT)."""
    return _portion(encoded(ABRT, bytes((0x80, 1, provider))))


def _portion(inner: bytes) -> bytes:
    return encoded(_DIALOGUE, encoded(0x28, _DIALOGUE_AS + encoded(0xA0, inner)))


def invoke(number: bytes, operation: int, parameter: bytes) -> bytes:
    """An invocation."""
    return encoded(_INVOKE, encoded(_INTEGER, number) + bytes((_INTEGER, 1, operation)) + parameter)


def result(number: bytes, operation: int, parameter: bytes) -> bytes:
    """The last result."""
    return encoded(_RESULT, encoded(_INTEGER, number) + encoded(_SEQUENCE, bytes((_INTEGER, 1, operation)) + parameter))


def returned_error(number: bytes, code: int) -> bytes:
    """An error without a parameter."""
    return encoded(_ERROR, encoded(_INTEGER, number) + bytes((_INTEGER, 1, code)))


def reject(number: bytes | None, problem: Problem) -> bytes:
    """A reject; None: the invocation's number cannot be told."""
    return encoded(
        _REJECT,
        (bytes((_NULL, 0)) if number is None else encoded(_INTEGER, number)) + bytes((problem.tag, 1, problem.code)),
    )
