"""Headers of requests in a 5G core, and their effect (TS 29.500 5.2.3, 6.8, 6.11, 6.13)."""

from collections.abc import Mapping
from datetime import UTC, datetime

from eir.web.http2_message import Response

MESSAGE_PRIORITY = b"3gpp-sbi-message-priority"
SENDER_TIMESTAMP = b"3gpp-sbi-sender-timestamp"
MAX_RSP_TIME = b"3gpp-sbi-max-rsp-time"
CORRELATION_INFO = b"3gpp-sbi-correlation-info"
ACCEPT_BYTES_MAX = 512
"""Taking one apart takes as long as its commas are many, and a client that has it remembered (RFC 7541) sends it again for one octet."""
PRIORITY_DEFAULT = 24
"""TS 29.500 6.8.4: that of a request that does not say; 0 is the highest, 31 the lowest."""
DRMP_DEFAULT = 10
PRIORITIES = tuple(
    round(priority * DRMP_DEFAULT / PRIORITY_DEFAULT)
    if priority <= PRIORITY_DEFAULT
    else DRMP_DEFAULT + round((priority - PRIORITY_DEFAULT) * 5 / 7)
    for priority in range(32)
)
"""Priorities of RFC 7944 by message priority of the same rank, so that both protocols' requests share one limit
fairly."""
CLOCKS_DIFFER_S = 60.0
"""A request that seems to be older than this, or from the future, has come from a clock that is wrong, and its age means nothing."""
MONTHS = {name: number for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}


def priority_of(headers: Mapping[bytes, bytes]) -> int:
    """The priority of a request, as limits know it: 0 (highest) to 15."""
    said = headers.get(MESSAGE_PRIORITY, b"")
    return PRIORITIES[int(said)] if said.isdigit() and len(said) <= 2 and int(said) < len(PRIORITIES) else DRMP_DEFAULT


def is_too_late(headers: Mapping[bytes, bytes], now: float) -> bool:
    """True if the client has given up waiting, by its own word (TS 29.500 6.11.2); `now` is Unix time."""
    most = headers.get(MAX_RSP_TIME, b"")
    sent = moment(headers.get(SENDER_TIMESTAMP, b""))
    if sent is None or not most.isdigit() or len(most) > 9:
        return False
    return int(most) / 1000 < now - sent < CLOCKS_DIFFER_S


def carried_back(headers: Mapping[bytes, bytes], response: Response) -> Response:
    """The response, whatever it says, with what the client wants back to find its own request (TS 29.500 6.13)."""
    if (info := headers.get(CORRELATION_INFO)) is None:
        return response
    return Response(response.status, (*response.headers, (CORRELATION_INFO, info)), response.body)


def moment(text: bytes) -> float | None:
    """Unix time of `Sun, 04 Aug 2019 08:49:37.845 GMT` (TS 29.500 5.2.3.2.2); None for another form."""
    parts = text.replace(b":", b" ").split()
    if len(parts) != 8 or parts[7] != b"GMT":
        return None
    try:
        second = float(parts[6])
        at = datetime(
            int(parts[3]), MONTHS[parts[2]], int(parts[1]), int(parts[4]), int(parts[5]), int(second), tzinfo=UTC
        )
    except (ValueError, KeyError, OverflowError):
        return None
    return at.timestamp() + second % 1


def accepts_json(accept: bytes) -> bool:
    """True if an Accept header accepts JSON or, if it is empty, anything (RFC 9110 12.5.1).

    What exceeds its limit is ignored.
    """
    if len(accept) > ACCEPT_BYTES_MAX:
        accept = accept[:ACCEPT_BYTES_MAX].rpartition(b",")[0]
    if not accept.strip():
        return True
    best: tuple[int, float] = (-1, 0.0)
    for entry in accept.lower().split(b","):
        kind, *parameters = (part.strip() for part in entry.split(b";"))
        rank = {b"*/*": 0, b"application/*": 1, b"application/json": 2}.get(kind, -1)
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith(b"q=")), b"1")
        try:
            best = max(best, (rank, float(quality))) if rank >= 0 else best
        except ValueError:
            continue
    return best[0] >= 0 and best[1] > 0
