"""Where the fields of an ECR are that differ from request to request of one MME: what a lane learns. Knows no lane."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from eir.checks.question import SOFTWARE_VERSION_DIGITS
from eir.device import IMEI_LENGTHS
from eir.diameter.answer import Reply, encode_answer, result_avp
from eir.diameter.avp import Avp
from eir.diameter.dictionary import DRMP, PROXY_INFO, SESSION_ID, USER_NAME
from eir.diameter.grammar import Grammar
from eir.diameter.message import HEADER_BYTES, Request
from eir.diameter.result import is_protocol_error
from eir.s13.dictionary import DICTIONARY, IMEI, MEID, SOFTWARE_VERSION, TERMINAL_INFORMATION
from eir.s13.grammar import ECR, TERMINAL_GRAMMAR

IDS_AT = 12
"""Offset of hop-by-hop and end-to-end identifier, 8 bytes together (RFC 6733 3)."""
AVP_HEADER_BYTES = 8
BYTES_MAX = 2048
"""Of a request that is learned from, so that what is learned takes a few MB of memory whatever comes."""
GENERAL_ONLY = frozenset({PROXY_INFO, DRMP, MEID})
"""A request that has one of these is always answered by the general path."""


class Place(NamedTuple):
    """A stretch of a message."""

    start: int
    end: int
    name: str
    """`ids`, `session`, `imei`, `version`, `imsi`; empty: nobody reads it."""


class Places(NamedTuple):
    """What may differ between requests that are otherwise alike."""

    places: Sequence[Place]
    """In the order in which they stand in a message."""
    headers: Sequence[int]
    """Where the AVPs begin that the message is made of, those inside Terminal-Information included."""


def places_of(request: Request) -> Places | None:
    """Where the fields of a request are; None if it is one that a lane leaves alone."""
    info = request.first.get(TERMINAL_INFORMATION)
    if info is None or len(request.buffer) > BYTES_MAX or not GENERAL_ONLY.isdisjoint(request.first):
        return None
    members = request.members(info)
    if any(avp.key in GENERAL_ONLY for avp in members):
        return None
    places = [Place(IDS_AT, HEADER_BYTES, "ids"), *_places(request.avps, ECR), *_places(members, TERMINAL_GRAMMAR)]
    places.sort()
    sizes = {place.name: place.end - place.start for place in places}
    if sizes.get("imei") not in IMEI_LENGTHS or sizes.get("version", SOFTWARE_VERSION_DIGITS) != SOFTWARE_VERSION_DIGITS:
        return None
    return Places(places, [avp.start for avp in (*request.avps, *members)])


def answer_to(request: Request, reply: Reply, origin: bytes) -> bytes:
    """The answer that a request gets by a reply; its Session-Id stands behind the header of the first AVP."""
    result, error = result_avp(reply.result_code, reply.experimental), is_protocol_error(reply.result_code)
    return encode_answer(request, result, origin, avps=reply.avps, error=error)


_NAMES = {SESSION_ID: "session", USER_NAME: "imsi", IMEI: "imei", SOFTWARE_VERSION: "version"}


def _places(avps: Sequence[Avp], grammar: Grammar) -> Iterator[Place]:
    """The data of those AVPs that are read one by one, and of those whose value the grammar does not look at."""
    for avp in avps:
        name = _NAMES.get(avp.key)
        if name is not None or (avp.key not in grammar.rules and avp.key not in DICTIONARY.groups):
            yield Place(avp.end - len(avp.data), avp.end, name or "")
