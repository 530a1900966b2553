"""Parser of feed requests: reads the row (identifiers and date) from the path, and gives invalid rows an HTTP status.

    POST|DELETE /eir/{block|exception|track}/<IMEI>/<IMSI>/<MSISDN>/<ACTUAL_IMEI>/<yyyy-MM-dd-HH-mm-ss>
    POST|DELETE /eir/{allowed-tac|blocked-tac}/<TAC>/<yyyy-MM-dd-HH-mm-ss>

An absent value is NULL. ACTUAL_IMEI is the identifier as it was seen; IMEI is its first digits. A row that begins later has the query
`?begin=TIME`, with the time of a data file: 2026-12-22 or 2026-12-22T12:00:00Z.
"""

from collections.abc import Callable
from datetime import date, datetime
from typing import Final, NamedTuple

from eir.device import device_key, imsi_key
from eir.errors import IdentifierError
from eir.interfaces.clients import RequestRefused
from eir.interfaces.feed.settings import TAC_ROLES
from eir.lists.changes.local_rows import ADD, REMOVE
from eir.lists.rows.layout import BEGIN, begin_seconds, tac_key
from eir.lists.rows.msisdn import number_key
from eir.lists.table.columns import DAY_MAX

ROOT: Final = "eir"
NULL: Final = "NULL"
DATE_CHARS: Final = len("yyyy-MM-dd-HH-mm-ss")
EPOCH: Final = date(1970, 1, 1).toordinal()
METHODS: Final = {"POST": ADD, "DELETE": REMOVE}
SEGMENTS: Final = 5
"""Number of path segments of a row about a device or a subscriber, after the word for the list."""
TAC_SEGMENTS: Final = 2

ADDED, REMOVED, THERE, NOT_THERE = 201, 202, 208, 204
"""Statuses of success for a register; 208 and 204: the list already was in the requested state."""
DONE: Final = {(ADD, True): ADDED, (ADD, False): THERE, (REMOVE, True): REMOVED, (REMOVE, False): NOT_THERE}
"""Status by the request, and by whether it changed the list."""


class FeedRow(NamedTuple):
    """Row of a feed request. Its identifiers are valid; an absent identifier is empty."""

    what: str
    """ADD or REMOVE."""
    role: str
    """Word of the path that selects the list."""
    device: str
    """IMEI, IMEISV or MEID; for a role in TAC_ROLES the TAC."""
    imsi: str = ""
    msisdn: str = ""
    day: int = 0
    """Day of the row's date, in the register's local time, since 1970-01-01; 0 if it is earlier."""
    begin: int = 0
    """Begin of the row in Unix seconds; 0: at once."""


def read_row(method: str, path: str, roles: frozenset[str]) -> FeedRow:
    """Parse the row of a feed request from its method and path.

    `roles`: accepted words for the list. Raises RequestRefused with 404, 405 or 400.
    """
    path, _, query = path.partition("?")
    root, _, rest = path.removeprefix("/").partition("/")
    role, *segments = rest.split("/")
    if root != ROOT or not path.startswith("/") or role not in roles:
        raise RequestRefused(404, "path", f"not here; there are /{ROOT}/ and one of {', '.join(sorted(roles))}")
    if method not in METHODS:
        raise RequestRefused(405, "method", "POST adds a row, DELETE removes it")
    if len(segments) != (TAC_SEGMENTS if role in TAC_ROLES else SEGMENTS):
        form = "TAC/DATE" if role in TAC_ROLES else "IMEI/IMSI/MSISDN/ACTUAL_IMEI/DATE"
        raise RequestRefused(404, "path", f"expected /{ROOT}/{role}/{form}")
    *named, written = segments
    day, begin = _day(written), _begin(query, METHODS[method])
    if role in TAC_ROLES:
        return FeedRow(METHODS[method], role, _good(named[0], tac_key, "TAC"), day=day, begin=begin)
    imei, imsi, msisdn, actual = named
    device, seen = _given(imei, device_key, "IMEI"), _given(actual, device_key, "ACTUAL_IMEI")
    if device and seen and device_key(device) != device_key(seen):
        raise RequestRefused(400, "identifier", "IMEI and ACTUAL_IMEI are different devices")
    row = FeedRow(
        METHODS[method], role, device or seen, _given(imsi, imsi_key, "IMSI"), _given(msisdn, number_key, "MSISDN"),
        day=day, begin=begin,
    )  # fmt: skip
    if not (row.device or row.imsi or row.msisdn):
        raise RequestRefused(
            400, "identifier", "the row names no device and no subscriber: IMEI, IMSI and MSISDN are NULL"
        )
    return row


def _day(text: str) -> int:
    """Parse the date of a row to a day. Raises RequestRefused."""
    try:
        if len(text) != DATE_CHARS:
            raise ValueError  # noqa: TRY301 - as the parts of what is no date do
        year, month, day, hour, minute, second = map(int, text.split("-"))
        moment = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - a register's local time, of which only the day is kept
    except ValueError:
        raise RequestRefused(400, "date", "expected the date as yyyy-MM-dd-HH-mm-ss") from None
    return min(max(moment.toordinal() - EPOCH, 0), DAY_MAX - 1)


def _begin(query: str, what: str) -> int:
    """Parse the query of a row to its begin in Unix seconds. Raises RequestRefused."""
    if not query:
        return 0
    name, _, text = query.partition("=")
    try:
        if name != BEGIN or not text or what == REMOVE:
            raise ValueError  # noqa: TRY301 - handled as an invalid time
        return begin_seconds(text)
    except ValueError:
        raise RequestRefused(
            400, "begin", "expected POST with ?begin=2026-12-22 or ?begin=2026-12-22T12:00:00Z"
        ) from None


def _given(text: str, key_of: Callable[[str], int], name: str) -> str:
    return "" if text == NULL else _good(text, key_of, name)


def _good(text: str, key_of: Callable[[str], int], name: str) -> str:
    """Return the identifier `text` of a row if `key_of` accepts it. Otherwise raise RequestRefused with status 400."""
    try:
        key_of(text)
    except IdentifierError as e:
        raise RequestRefused(400, "identifier", f"{name}: {e}") from None
    return text
