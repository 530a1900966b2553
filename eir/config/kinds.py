"""Kinds of configuration values: written form, parser and formatter of each.

Independent of keys and files.
"""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from eir.checks.question import FAULTS
from eir.checks.settings import Status
from eir.device import TAC_DIGITS, device_key
from eir.errors import IdentifierError, StoreError
from eir.lists.rows.layout import is_date_form
from eir.lists.stores.open import SQLITE
from eir.schema import Kind, Unexpected, address, domain_name, mask_password, one_of, text, url, whole, word
from eir.wire.transport.endpoint import HTTP_PORTS, PORTS

ERROR = "error"
"""Answer instead of a status: the protocol error of the standard."""
TOO_BUSY = "3004"
"""Answer instead of a status: DIAMETER_TOO_BUSY (RFC 6733 7.1.3)."""


def _source(match: re.Match[str]) -> str:
    scheme, place, path = match.groups()
    address_text = address(place, HTTP_PORTS[scheme])
    host = urlsplit(f"//{address_text}").hostname or ""
    is_local = host == "localhost"
    if re.fullmatch(r"[0-9a-f.:]+", host):
        is_local = ip_address(host).is_loopback
    if scheme == "http" and not is_local:
        own = "this host's own addresses (127.0.0.1, [::1], localhost)"
        raise Unexpected(f"expected https://; http:// is allowed only for {own}")
    return f"{scheme}://{place}{path.rstrip('/')}/"


def _http_url(match: re.Match[str]) -> str:
    if urlsplit(match[0]).port == 0:  # urlsplit raises ValueError for a port that is no number, or too large
        raise ValueError
    return match[0]


def _moment(written: str) -> datetime:
    moment = datetime.fromisoformat(written)
    if moment.tzinfo is None:
        raise Unexpected("expected a time with its zone such as 2026-11-25T06:00:00Z")
    return moment.astimezone(UTC)


def _store_url(written: str) -> str:
    if written == SQLITE:
        return written
    if "://" not in written:
        raise ValueError
    from eir.lists.stores.redis_url import parse_url  # noqa: PLC0415  # 0.2 s, only for Redis

    try:
        parse_url(written, check=False)
    except StoreError as error:
        raise Unexpected(str(error)) from None
    return written


def _with_files(store: str, folder: Path) -> str:
    if store == SQLITE:
        return store
    from eir.lists.stores.redis_url import resolve_files  # noqa: PLC0415  # 0.2 s, only for Redis

    return resolve_files(store, folder)


def _day(written: str) -> int:
    since_1970 = date.fromisoformat(written) - date(1970, 1, 1)
    return since_1970.days


def _device(written: str) -> str:
    try:
        device_key(written)
    except IdentifierError as error:
        raise Unexpected(f"expected a whole identifier: {error}") from None
    return written


def _date_form(match: re.Match[str]) -> str:
    if not is_date_form(match[0]):
        raise ValueError
    return match[0]


def _fault(written: str) -> str:
    if written == "check_digit":
        raise Unexpected("check_digit has no successor, because many clients send wrong check digits; remove it")
    return cast("str", _FAULT.read(written))


_FAULT = word(*FAULTS)
FAULT = replace(_FAULT, read=_fault)
"""Fault of an identifier. A removed fault is an error: without the condition its rule would match more devices."""
_STATUSES = {status.value: status for status in Status}
CERTIFICATE_NAME = text(
    "a domain name such as dra.example.org, or *.example.org",
    r"(\*\.)?(.*)",
    lambda match: f"{match[1] or ''}{domain_name(match[2])}",
)
GLOBAL_TITLE = text("first digits of a global title such as 49170", r"[0-9]{1,20}")
CONNECT = url(PORTS, "tcp://10.20.0.1:3868 or tls://dra1.example.org:5868", connects=True)
ADDRESS = Kind("an IP address", lambda written: str(ip_address(written.strip("[]"))))
HTTP = text(
    "ADDRESS:PORT such as 127.0.0.1:9868, or off", r"(?i:off|no|false)|(.+)", lambda match: match[1] and address(match[1], None),
    show=lambda address: address, may_be_empty=True,
)  # fmt: skip
MOMENT = Kind(
    "a time with its zone such as 2026-11-25T06:00:00Z", _moment, lambda time: time.isoformat().replace("+00:00", "Z")
)
DAY = Kind("a day such as 2026-12-01 (UTC)", _day, lambda day: str(date(1970, 1, 1) + timedelta(day)))
PER_DAY = text(
    "a number per day such as 20000/d", r"([1-9][0-9]{0,8})/d", lambda match: int(match[1]), show="{}/d".format
)
IMEI = Kind("an IMEI (14 or 15 digits), an IMEISV (16) or a MEID", _device)
TAC = text(
    "8 digits (a TAC), or fewer and a star (all TACs that begin with them)",
    rf"([0-9]{{{TAC_DIGITS}}})|([0-9]{{1,{TAC_DIGITS - 1}}})\*", lambda match: match[1] or match[2],
    show=lambda tac: tac if len(tac) == TAC_DIGITS else f"{tac}*",
)  # fmt: skip
DEVICE_TYPE = text("a device type such as Smartphone", r"[^\s,|\"](?:[^,|\"]{0,62}[^\s,|\"])?")
SOFTWARE_VERSION = text("two digits", r"[0-9]{2}")
IMSI_PREFIX = text("the first 1 to 15 digits of IMSIs", r"[0-9]{1,15}")
STORE = Kind(
    "sqlite, redis://HOST[:PORT][/DB] or rediss:// (TLS), redis+sentinel://HOST,…/SERVICE, or redis+cluster://HOST,…",
    _store_url, mask_password, _with_files,
)  # fmt: skip
COLUMN = text(
    "a column's name or position from 1", r"([1-9][0-9]{0,2})|([^0-9].{0,99})", lambda match: int(match[1]) if match[1] else match[2].strip().lower(),
    show=lambda column: column,
)  # fmt: skip
SEPARATOR = text(
    "tab, space, or one sign such as a semicolon", r"(tab|space)|([!#-/:-@\[-`{-~])", lambda match: {"tab": "\t", "space": " "}.get(match[0], match[0]),
    show=lambda sign: {"\t": "tab", " ": "space"}.get(sign, sign),
)  # fmt: skip
ENCODING = word("utf-8", "utf-16", "latin-1", *(f"windows-{page}" for page in range(1250, 1259)))
DATES = text("a form such as YYYYMMDD, DD.MM.YYYY, DD-Mon-YYYY or YYYY-MM-DD hh:mm:ss", ".{1,40}", _date_form)
CODE = text("a text of 1 to 40 characters", "[^\0\n]{1,40}")
REASON = text("a reason such as stolen: one line of at most 200 characters", r"[^\x00-\x1f]{1,200}")
CODE_AND_REASON = text(
    "a code, an equals sign and its reason, such as 10=stolen", "([^=]{1,40})=(.{1,200})", lambda match: (match[1].strip(), match[2].strip()),
    show="=".join,
)  # fmt: skip
SOURCE = text(
    "a folder such as https://register.example/eir/NAME/", r"(https?)://([^/?#@]+)((?:/[A-Za-z0-9._~%-]+)*/?)", _source
)
POSITION = whole(1, 999)
HTTP_URL = text("http://HOST[:PORT]/PATH or https://…", r"https?://[^\s/@]+(/\S*)?", _http_url)
RECORD_NAME = text("1 to 64 letters, digits, '.', '_' and '-'", r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RULE_NAME = text("a letter, and up to 63 letters, digits, '.', '_', '-' or ':'", r"[A-Za-z][A-Za-z0-9._:-]{0,63}")
STATUS = one_of(_STATUSES)
STATUS_OR_TOO_BUSY = one_of({TOO_BUSY: TOO_BUSY, **_STATUSES})
STATUS_OR_ERROR = one_of({**_STATUSES, ERROR: None})
