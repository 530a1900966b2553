"""Parser and encoder of TCAP (Q.773) for transactions of one request and one answer, without I/O.

The answering side receives Begin and sends End or Abort; the asking side does the reverse. The parser returns the transaction
portion, the dialogue portion and the invocations. For a fault it also returns the encoded answer (Q.774 3.2, 3.3). The user
interprets the operations.
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
"""dialogue-as-id (Q.773 4.2.3) as an encoded element."""
_VERSION_1 = bytes.fromhex("80020780")
COMPONENTS_MAX = 8
"""Maximum number of components in a message; clients send 1."""


class AbortCause(IntEnum):
    """P-Abort causes (Q.773 3.2)."""

    UNRECOGNIZED_MESSAGE = 0
    UNRECOGNIZED_TRANSACTION = 1
    BADLY_FORMATTED = 2
    INCORRECT = 3
    RESOURCE = 4


class RejectProblem(NamedTuple):
    """Reason to reject a component (Q.773 3.3): tag of the problem's type (such as General or Invoke), and problem code of this type."""

    tag: int
    code: int


UNRECOGNIZED_COMPONENT, MISTYPED_COMPONENT, BADLY_STRUCTURED = (
    RejectProblem(0x80, 0),
    RejectProblem(0x80, 1),
    RejectProblem(0x80, 2),
)
DUPLICATE_ID, UNRECOGNIZED_OPERATION, MISTYPED_PARAMETER = (
    RejectProblem(0x81, 0),
    RejectProblem(0x81, 1),
    RejectProblem(0x81, 2),
)
RESOURCE_LIMITATION, UNRECOGNIZED_LINK = RejectProblem(0x81, 3), RejectProblem(0x81, 5)
RESULT_UNEXPECTED, ERROR_UNEXPECTED = RejectProblem(0x82, 0), RejectProblem(0x83, 0)


class TcapFault(Exception):
    """Invalid TCAP message. The exception's text is a label in metrics.

    `answer`: encoded Abort; None if the message has no transaction id for an Abort.
    """

    def __init__(self, reason: str, answer: bytes | None = None) -> None:
        super().__init__(reason)
        self.answer = answer


class Apdu(NamedTuple):
    """Contents of the dialogue portion of a TCAP message (Q.773 4)."""

    kind: int
    """AARQ, AARE or ABRT."""
    context: bytes = b""
    """Application context name: contents of the object identifier."""
    accepted: bool = True
    """In an AARE: True if the dialogue is accepted."""
    diagnostic: int = 0
    """In an AARE: value of result-source-diagnostic."""
    version_1: bool = True
    """True if version 1 of the protocol is offered, the only one that exists."""


class TcapMessage(NamedTuple):
    """Parsed TCAP message with a valid transaction portion."""

    kind: int
    otid: bytes
    dtid: bytes
    """Destination transaction id; like `otid` empty if absent."""
    cause: int | None
    dialogue: Element | None
    components: Element | None


class Invoke(NamedTuple):
    """Valid Invoke component."""

    id: bytes
    operation: int
    """Local operation code; -1 for a global code."""
    parameters: list[Element]
    """Elements after the operation: one or none, except for some vendors that add more."""


class OperationOutcome(NamedTuple):
    """Component that answers an Invoke: a result, an error or a Reject."""

    operation: int | None
    """Operation of a result."""
    error: int | None
    """Code of an error."""
    problem: RejectProblem | None
    """Problem of a reject."""
    parameters: list[Element]


# received messages


def read(octets: bytes) -> TcapMessage:
    """Parse the transaction portion of a TCAP message. Raises TcapFault."""
    kind = octets[0] if octets else 0
    otid = _otid_at_start(octets)
    try:
        whole = element(octets, 0, len(octets))
        parts = elements(octets, whole.start, whole.stop)
    except BerError:
        raise _fault("tcap_badly_formatted", otid, AbortCause.BADLY_FORMATTED) from None
    if kind not in _KINDS:
        raise _fault("tcap_message_type", otid, AbortCause.UNRECOGNIZED_MESSAGE)
    if whole.end != len(octets):
        raise _fault("tcap_badly_formatted", otid, AbortCause.BADLY_FORMATTED)
    places = [_ORDER.get(part.tag, -1) for part in parts]
    if -1 in places or any(later <= earlier for earlier, later in itertools.pairwise(places)):
        raise _fault("tcap_incorrect", otid, AbortCause.INCORRECT)
    by_tag = {part.tag: part for part in parts}
    ids = {tag: octets[by_tag[tag].start : by_tag[tag].stop] if tag in by_tag else b"" for tag in (_OTID, _DTID)}
    wanted = {
        BEGIN: (True, False),
        CONTINUE: (True, True),
        END: (False, True),
        ABORT: (False, True),
        UNIDIRECTIONAL: (False, False),
    }[kind]
    if (_OTID in by_tag, _DTID in by_tag) != wanted or any(
        tag in by_tag and not 1 <= len(each) <= 4 for tag, each in ids.items()
    ):
        raise _fault("tcap_incorrect", otid, AbortCause.INCORRECT)
    cause = by_tag.get(_CAUSE)
    if cause is not None and (kind != ABORT or cause.stop != cause.start + 1):
        raise _fault("tcap_incorrect", otid, AbortCause.INCORRECT)
    return TcapMessage(
        kind,
        ids[_OTID],
        ids[_DTID],
        None if cause is None else octets[cause.start],
        by_tag.get(_DIALOGUE),
        by_tag.get(_COMPONENTS),
    )


def _fault(reason: str, otid: bytes, cause: AbortCause) -> TcapFault:
    return TcapFault(reason, abort(otid, cause) if otid else None)


def _otid_at_start(octets: bytes) -> bytes:
    """Return the originating transaction id of an invalid TCAP message, so that the node can answer with an Abort.

    Empty if the id cannot be read (Q.774 3.3.3.1).
    """
    if not octets or octets[0] in {END, ABORT, UNIDIRECTIONAL}:
        return b""
    at = 2 + (octets[1] & 0x7F if len(octets) > 1 and octets[1] > 0x80 else 0)
    if octets[at : at + 1] != bytes((_OTID,)) or at + 1 >= len(octets):
        return b""
    length = octets[at + 1]
    otid = octets[at + 2 : at + 2 + length]
    return otid if 1 <= length <= 4 and len(otid) == length else b""


def apdu(octets: bytes, portion: Element) -> Apdu:
    """Parse the dialogue portion of a TCAP message. Raises BerError."""
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
    children = elements(octets, parent.start, parent.stop)
    if len(children) != count:
        raise BerError("another number of elements than there should be")
    return children


def _only(octets: bytes, parent: Element | None) -> Element:
    if parent is None:
        raise BerError("an element is missing")
    return _children(octets, parent, 1)[0]


def _number(octets: bytes, of: Element) -> int:
    if not 1 <= of.stop - of.start <= 4:
        raise BerError("no number")
    return int.from_bytes(octets[of.start : of.stop], signed=True)


def invocations(octets: bytes, portion: Element) -> list[Invoke | bytes]:
    """Return the Invoke components of a component portion in order; an invalid component is replaced by the Reject that answers it.

    A badly structured component ends the parsing (Q.774 3.2.2.2). A received Reject is ignored.
    """
    valid: list[Invoke | bytes] = []
    seen: set[bytes] = set()
    at = portion.start
    while at < portion.stop:
        try:
            component = element(octets, at, portion.stop)
            parts = elements(octets, component.start, component.stop)
        except BerError:
            return [*valid, reject(None, BADLY_STRUCTURED)]
        at = component.end
        if component.tag != _REJECT:
            valid.append(_component(octets, component.tag, parts, seen))
        if len(valid) > COMPONENTS_MAX:
            return [*valid[:COMPONENTS_MAX], reject(None, BADLY_STRUCTURED)]
    return valid


def _component(octets: bytes, tag: int, parts: list[Element], seen: set[bytes]) -> Invoke | bytes:
    if tag not in {_INVOKE, _RESULT, _RESULT_NOT_LAST, _ERROR}:
        return reject(None, UNRECOGNIZED_COMPONENT)
    if not parts or parts[0].tag != _INTEGER or parts[0].stop != parts[0].start + 1:
        return reject(None, MISTYPED_COMPONENT)
    number = octets[parts[0].start : parts[0].stop]
    if tag == _INVOKE and len(parts) > 1 and parts[1].tag == _NOT_LINKED and parts[1].start == parts[1].stop:
        del parts[1]  # linkedId absent [1] IMPLICIT NULL (X.880 in Q.773 06/97); OTC writes it into every Invoke
    problem: RejectProblem | None = None
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


def outcomes(octets: bytes, portion: Element) -> list[OperationOutcome]:
    """Return the results, errors and Rejects in the component portion of an End. Raises BerError."""
    replies = []
    for component in elements(octets, portion.start, portion.stop):
        parts = elements(octets, component.start, component.stop)[1:]
        if component.tag == _RESULT:
            inside = elements(octets, parts[0].start, parts[0].stop) if parts else []
            replies.append(OperationOutcome(_number(octets, inside[0]) if inside else None, None, None, inside[1:]))
        elif component.tag == _ERROR and parts:
            replies.append(OperationOutcome(None, _number(octets, parts[0]), None, parts[1:]))
        elif component.tag == _REJECT and parts:
            replies.append(OperationOutcome(None, None, RejectProblem(parts[0].tag, _number(octets, parts[0])), []))
        else:
            raise BerError("no result, error or reject")
    return replies


# sent messages


def abort(dtid: bytes, cause: AbortCause) -> bytes:
    """Encode a P-Abort (Abort by the provider, the TCAP layer)."""
    return encoded(ABORT, encoded(_DTID, dtid) + bytes((_CAUSE, 1, cause)))


def abort_dialogue(dtid: bytes, dialogue: bytes = b"") -> bytes:
    """Encode a U-Abort (Abort by the TCAP user). `dialogue`: encoded dialogue portion, or empty."""
    return encoded(ABORT, encoded(_DTID, dtid) + dialogue)


def end(dtid: bytes, dialogue: bytes, components: bytes) -> bytes:
    """Encode a TCAP End from encoded portions. Each portion may be empty."""
    return encoded(END, encoded(_DTID, dtid) + dialogue + (encoded(_COMPONENTS, components) if components else b""))


def begin(otid: bytes, dialogue: bytes, components: bytes) -> bytes:
    """Encode a TCAP Begin from encoded portions. Each portion may be empty."""
    return encoded(BEGIN, encoded(_OTID, otid) + dialogue + (encoded(_COMPONENTS, components) if components else b""))


def request(context: bytes) -> bytes:
    """Encode the dialogue portion that requests a dialogue with this application context (AARQ)."""
    return _portion(encoded(AARQ, _VERSION_1 + encoded(0xA1, encoded(_OBJECT, context))))


def response(context: bytes, *, accepted: bool, diagnostic: int = 0, provider: bool = False) -> bytes:
    """Encode the dialogue portion that accepts or rejects a dialogue (AARE, Q.773 4.2.3).

    `diagnostic`: reason code of the TCAP user, or of the TCAP layer if `provider` is true.
    """
    result = bytes((0xA2, 3, 2, 1, not accepted))
    source = encoded(0xA3, encoded(0xA2 if provider else 0xA1, bytes((2, 1, diagnostic))))
    return _portion(encoded(AARE, _VERSION_1 + encoded(0xA1, encoded(_OBJECT, context)) + result + source))


def ended(*, provider: bool) -> bytes:
    """Encode the dialogue portion of an Abort (ABRT).

    `provider`: True if the TCAP layer aborts because of an invalid dialogue portion; False if the TCAP user aborts.
    """
    return _portion(encoded(ABRT, bytes((0x80, 1, provider))))


def _portion(inner: bytes) -> bytes:
    return encoded(_DIALOGUE, encoded(0x28, _DIALOGUE_AS + encoded(0xA0, inner)))


def invoke(number: bytes, operation: int, parameter: bytes) -> bytes:
    """Encode an Invoke component."""
    return encoded(_INVOKE, encoded(_INTEGER, number) + bytes((_INTEGER, 1, operation)) + parameter)


def result(number: bytes, operation: int, parameter: bytes) -> bytes:
    """Encode the component with the last result of an Invoke (ReturnResultLast)."""
    return encoded(_RESULT, encoded(_INTEGER, number) + encoded(_SEQUENCE, bytes((_INTEGER, 1, operation)) + parameter))


def returned_error(number: bytes, code: int) -> bytes:
    """Encode an error component without a parameter (ReturnError)."""
    return encoded(_ERROR, encoded(_INTEGER, number) + bytes((_INTEGER, 1, code)))


def reject(number: bytes | None, problem: RejectProblem) -> bytes:
    """Encode a Reject component. `number`: invoke id of the rejected component, or None if the id is unknown."""
    return encoded(
        _REJECT,
        (bytes((_NULL, 0)) if number is None else encoded(_INTEGER, number)) + bytes((problem.tag, 1, problem.code)),
    )
