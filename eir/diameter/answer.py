"""Answers: from a request and a result to bytes (RFC 6733 6.2, 7.2, 7.5). Imports avp, dictionary and message."""

from dataclasses import dataclass
from functools import cache

from eir.diameter.avp import encode, encode_u32, key_of
from eir.diameter.dictionary import AVPS, FAILED_AVP, PROXY_INFO, SESSION_ID
from eir.diameter.message import (
    E_FLAG,
    EXPERIMENTAL_RESULT,
    EXPERIMENTAL_RESULT_CODE,
    P_FLAG,
    RESULT_CODE,
    VENDOR_ID,
    Message,
    encode_message,
)
from eir.errors import DiameterError


@dataclass(frozen=True, slots=True)
class Reply:
    """What an application answers; the node adds everything else."""

    result_code: int = 0
    """Result-Code; 0 where `experimental` is set instead."""
    experimental: tuple[int, int] | None = None
    """Experimental-Result as (vendor, code)."""
    avps: bytes = b""
    """Encoded AVPs that follow Origin-Realm."""


@cache
def result_avp(reply_code: int, experimental: tuple[int, int] | None = None) -> bytes:
    """Result-Code or Experimental-Result, encoded."""
    if experimental is None:
        return encode_u32(RESULT_CODE, reply_code)
    vendor, code = experimental
    return encode(EXPERIMENTAL_RESULT, encode_u32(VENDOR_ID, vendor) + encode_u32(EXPERIMENTAL_RESULT_CODE, code))


@cache
def result_label(reply_code: int, experimental: tuple[int, int] | None = None) -> str:
    """A result as counters label it: `2001`, or `10415:5422`."""
    return str(reply_code) if experimental is None else f"{experimental[0]}:{experimental[1]}"


def example_avp(code: int, vendor: int = 0, inside: tuple[tuple[int, int], ...] = ()) -> bytes:
    """An example of a missing AVP: zeros of the least length that its type allows (RFC 6733 7.1.5, 5005).

    `inside`: the groups that it belongs in, each as (code, vendor), outermost first.
    """
    definition = AVPS[key_of(code, vendor)]
    octets = encode(code, bytes(definition.type.least_bytes), vendor, definition.flags)
    for group_code, group_vendor in reversed(inside):
        octets = encode(group_code, octets, group_vendor, AVPS[key_of(group_code, group_vendor)].flags)
    return octets


def corrected_avp(key: int, flags: int) -> bytes:
    """An AVP whose length was wrong, as a Failed-AVP holds it: its header, a payload of zeros, a length that fits both.

    RFC 6733 7.1.5 (5014): the least payload of its type; none for a group or an AVP that nobody knows.
    """
    definition = AVPS.get(key)
    least = definition.type.least_bytes if definition else 0
    octets = encode(key & 0xFFFFFFFF, bytes(least), key >> 32, flags & 0x7F)
    if flags & 0x80 and not key >> 32:
        # A header that was cut before its Vendor-Id keeps its V bit: the Vendor-Id is zero.
        octets = encode(key & 0xFFFFFFFF, bytes(4 + least), 0, flags)
    return octets


def encode_answer(
    request: Message, result: bytes, origin: bytes, *, avps: bytes = b"", failed: bytes = b"", error: bool = False
) -> bytes:
    """The answer to a request: its ids, P bit, Session-Id and Proxy-Info come from there (RFC 6733 3, 6.2).

    `result` and `origin` (Origin-Host and Origin-Realm) are encoded AVPs, `avps` what follows them, `failed` what the
    Failed-AVP holds, `error` sets the E bit. The T bit is never copied.
    """
    parts = []
    session = request.first.get(SESSION_ID)
    if session is not None:
        parts.append(encode(SESSION_ID, session.data))
    parts += (result, origin, avps)
    if failed:
        parts.append(encode(FAILED_AVP, failed))
    if PROXY_INFO in request.first:
        # RFC 6733 6.2: in the same order, and byte for byte: their owner put state into them.
        parts += [request.raw(avp) for avp in request.avps if avp.key == PROXY_INFO]
    flags = request.flags & P_FLAG | (E_FLAG if error else 0)
    ids = (request.hop_by_hop, request.end_to_end)
    return encode_message(flags, request.command, request.application_id, ids, b"".join(parts))


def error_answer(request: Message, fault: DiameterError, origin: bytes, avps: bytes, *, session: bool) -> bytes:
    """The answer that tells of a fault; `avps` are those that the command's own grammar wants besides.

    The E bit goes with the answer-message grammar: for protocol errors (3xxx) always, for permanent failures (5xxx) only
    where the command's own grammar cannot be followed, since it wants a Session-Id (`session`) and the request has none
    (RFC 6733 7.1.3, 7.1.5, 7.2).
    """
    code = fault.result_code
    error = is_protocol_error(code) or (code >= 5000 and session and SESSION_ID not in request.first)
    return encode_answer(
        request, result_avp(code), origin, avps=b"" if error else avps, failed=fault.failed_avp, error=error
    )


def is_protocol_error(code: int) -> bool:
    """True for 3xxx, which an answer with the E bit carries (RFC 6733 7.1.3)."""
    return 3000 <= code < 4000
