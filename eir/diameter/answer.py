"""Answers: from a request and a result to bytes (RFC 6733 6.2, 7.2, 7.5). Imports the codec, dictionary and result."""

from dataclasses import dataclass
from functools import cache

from eir.diameter import dictionary as keys
from eir.diameter.avp import encode, encode_u32
from eir.diameter.message import E_FLAG, P_FLAG, Message, encode_message
from eir.diameter.result import is_protocol_error
from eir.errors import DiameterError


@dataclass(frozen=True, slots=True)
class Reply:
    """The application's answer; the node adds everything else."""

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
        return encode_u32(keys.RESULT_CODE, reply_code)
    vendor, code = experimental
    return encode(
        keys.EXPERIMENTAL_RESULT, encode_u32(keys.VENDOR_ID, vendor) + encode_u32(keys.EXPERIMENTAL_RESULT_CODE, code)
    )


@cache
def result_label(reply_code: int, experimental: tuple[int, int] | None = None) -> str:
    """A result as counters label it: `2001`, or `10415:5422`."""
    return str(reply_code) if experimental is None else f"{experimental[0]}:{experimental[1]}"


def encode_answer(
    request: Message, result: bytes, origin: bytes, *, avps: bytes = b"", failed: bytes = b"", error: bool = False
) -> bytes:
    """The answer to a request: its ids, P bit, Session-Id and Proxy-Info come from there (RFC 6733 3, 6.2).

    `result` and `origin` (Origin-Host and Origin-Realm) are encoded AVPs, `avps` what follows them, `failed` what the
    Failed-AVP holds, `error` sets the E bit. The T bit is never copied.
    """
    parts = []
    session = request.first.get(keys.SESSION_ID)
    if session is not None:
        parts.append(encode(keys.SESSION_ID, session.data))
    parts += (result, origin, avps)
    if failed:
        parts.append(encode(keys.FAILED_AVP, failed))
    if keys.PROXY_INFO in request.first:
        # RFC 6733 6.2: in the same order, and byte for byte: their owner put state into them.
        parts += [request.raw(avp) for avp in request.avps if avp.key == keys.PROXY_INFO]
    flags = request.flags & P_FLAG | (E_FLAG if error else 0)
    ids = (request.hop_by_hop, request.end_to_end)
    return encode_message(flags, request.command, request.application_id, ids, b"".join(parts))


def error_answer(request: Message, fault: DiameterError, origin: bytes, avps: bytes, *, session: bool) -> bytes:
    """The answer that tells of a fault; `avps` are those that the command's own grammar requires in addition.

    The E bit goes with the answer-message grammar: for protocol errors (3xxx) always, for permanent failures (5xxx) only
    where the command's own grammar cannot be followed, since it wants a Session-Id (`session`) and the request has none
    (RFC 6733 7.1.3, 7.1.5, 7.2).
    """
    code = fault.result_code
    error = is_protocol_error(code) or (code >= 5000 and session and keys.SESSION_ID not in request.first)
    return encode_answer(
        request, result_avp(code), origin, avps=b"" if error else avps, failed=fault.failed_avp, error=error
    )
