"""Kinds of values: how each is written in the file, what it is read as, and how it is shown again. Knows no key and no file.

A value is read from the text that stands in the file, never from YAML's own idea of it, so that `tac: 00101001` keeps its
zeros and a peer may be called `no`.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eir.checks.settings import Status
from eir.device import TAC_DIGITS, device_key
from eir.errors import IdentifierError, StoreError
from eir.interfaces.gsup.settings import PORT as GSUP_PORT
from eir.interfaces.map.settings import PORT as M3UA_PORT
from eir.lists.rows.layout import is_date_form
from eir.lists.stores.open import SQLITE
from eir.wire.transport.endpoint import HTTP_PORTS, PORTS, SCTP

LABEL_MAX, NAME_MAX = 63, 255
"""Octets in a label and in a whole domain name (RFC 1035 2.3.4)."""
WORKERS_MAX = 64
ERROR = "error"
"""Instead of a status: the protocol error that the standard gives."""
TOO_BUSY = "3004"
"""Instead of a status: DIAMETER_TOO_BUSY (RFC 6733 7.1.3)."""

SECONDS: dict[str, Decimal | int] = {"": 1, "ms": Decimal("0.001"), "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
DAYS = {"d": 1, "y": 365}
BYTES = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "KiB": 1024,
    "MB": 10**6,
    "MiB": 1 << 20,
    "GB": 10**9,
    "GiB": 1 << 30,
    "TB": 10**12,
    "TiB": 1 << 40,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value: how it is written, read and shown."""

    expected: str
    """Completes "expected …", and is what the reference says of the key."""
    read: Callable[[str], Any]
    """The value that a text stands for. Raises ValueError, or Unexpected to say more than `expected` does."""
    show: Callable[[Any], Any] = str
    """The inverse: what to print, as JSON knows it."""
    place: Callable[[Any, Path], Any] = lambda value, _: value
    """The value with the files that it names found from a folder."""
    bare: bool = False
    """Must not stand in quotes: a number or a switch, where quotes say that someone meant a text."""
    many: bool = False
    """One value, or a list of them; read as a tuple."""
    may_be_empty: bool = False
    """With `many`: `[]` has a meaning. Otherwise: a key without a value has one, and is read as None."""


class Unexpected(ValueError):
    """A wrong value of which more can be said than what its kind expects; the message completes "found …; "."""


# Kinds that any file may need


def text(expected: str, pattern: str, read: Callable[[re.Match[str]], Any] = re.Match.group, **more: Any) -> Kind:
    """A text that matches the whole pattern; `read` makes the value of the match."""

    def matched(written: str) -> Any:
        match = re.fullmatch(pattern, written, re.ASCII | re.DOTALL)
        if match is None:
            raise ValueError
        return read(match)

    return Kind(expected, matched, **more)


def one_of(words: Mapping[str, Any]) -> Kind:
    """One of some words, each of which stands for a value."""
    *most, last = words
    listed = f"{', '.join(most)} or {last}" if most else last

    def read(written: str) -> Any:
        if written in words:
            return words[written]
        raise Unexpected(f"expected {listed}{did_you_mean(written, words)}")

    back = {value: word for word, value in words.items()}
    return Kind(listed, read, back.__getitem__)


def word(*words: str) -> Kind:
    """One of some words, which is the value."""
    return one_of({each: each for each in words})


def quantity(
    expected: str, low: float, high: float, units: Mapping[str, Decimal | int], of: type = float, **more: Any
) -> Kind:
    """A number with one of the units behind it, within limits that are given in the unit that is 1."""

    def read(match: re.Match[str]) -> Any:
        value = Decimal(match[1]) * units[match[2]]
        if not Decimal(str(low)) <= value <= Decimal(str(high)) or of(value) != float(value):
            raise ValueError
        return of(value)

    pattern = rf"(-?[0-9]+(?:\.[0-9]+)?)\s*({'|'.join(units)})"
    return text(expected, pattern, read, **{"show": lambda value: int(value) if value == int(value) else value, **more})


def whole(low: int, high: int) -> Kind:
    """A whole number within limits."""
    expected = f"a whole number from {low} to {high}"
    kind = quantity(expected, low, high, {"": 1}, of=int, bare=True)

    def read(written: str) -> Any:
        if re.fullmatch(r"0[0-9_]+", written):
            raise Unexpected(f"expected {expected}; a leading zero makes it octal for some readers, leave it out")
        return kind.read(written)

    return replace(kind, read=read)


def number(low: float, high: float, what: str) -> Kind:
    """A number within limits, with or without a decimal point."""
    return quantity(f"{what} from {low:.10g} to {high:.10g}", low, high, {"": 1}, bare=True)


def seconds(low: float, high: float) -> Kind:
    """A time, read as seconds: a plain number, or one with a unit."""
    return quantity(f"seconds from {low:.10g} to {high:.10g}, or a time such as 500ms, 30s, 2m", low, high, SECONDS)


def days(low: int, high: int) -> Kind:
    """A long time, read as days: a number with a unit; a year has 365."""

    def show(value: int) -> str:
        return f"{value}d" if value % DAYS["y"] else f"{value // DAYS['y']}y"

    return quantity(f"a time from {show(low)} to {show(high)}, such as 90d or 10y", low, high, DAYS, of=int, show=show)


def byte_size(low: int, high: int) -> Kind:
    """A size, read as bytes: a plain number, or one with a unit."""
    return quantity(f"bytes from {low} to {high}, or a size such as 64KiB", low, high, BYTES, of=int)


def percentage(high: int) -> Kind:
    """A percentage, read as a fraction; the sign has to be there, since 0.2 might be meant either way."""
    expected = f"a percentage from 0% to {high}%, such as 20%"
    return quantity(expected, 0, high / 100, {"%": Decimal("0.01")}, show=lambda value: f"{value * 100:.10g}%")


def many(kind: Kind, *, may_be_empty: bool = False) -> Kind:
    """One value of a kind, or a list of them."""
    return replace(kind, expected=f"{kind.expected}, or a list of such", many=True, may_be_empty=may_be_empty)


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing if no known word is near."""
    words, forms = list(known), (written.lower().replace("-", "_"), written)
    near = [match for form in forms for match in difflib.get_close_matches(form, words, n=1)]
    return f"; did you mean '{near[0]}'?" if near else ""


def mask_password(url: str) -> str:
    """A URL with its password hidden; anything else as it is."""
    return re.sub(r"(?<=://)([^/@\s:]*):\S*@", r"\1:***@", url)


def mask_secrets(url: str) -> str:
    """Return a URL with its password, query and fragment hidden; any other text unchanged."""
    # A password that holds ? and a query that holds @ look alike: everything from there on is hidden.
    whole = re.sub(r"(?<=://)([^/@\s:]*):\S*[?#]\S*@.*", r"\1:***", url, flags=re.DOTALL)
    return re.sub(r"(://[^?#]*[?#]).*", r"\1***", mask_password(whole), flags=re.DOTALL)


# Kinds that only this file has


def _diameter_identity(written: str) -> str:
    """A DiameterIdentity: a fully qualified domain name (RFC 6733 4.3.1)."""
    if "://" in written or ":" in written:
        raise Unexpected("expected a name alone, without aaa:// and without a port")
    if not written.isascii():
        raise Unexpected("expected ASCII; write an internationalised name in its xn-- form")
    label = rf"[A-Za-z0-9_](?:[A-Za-z0-9_-]{{0,{LABEL_MAX - 2}}}[A-Za-z0-9_])?"
    if len(written) > NAME_MAX or not re.fullmatch(rf"{label}(?:\.{label})*", written):
        raise ValueError
    return written


def _address(written: str, default_port: int | None) -> str:
    """host:port of an address or a name; IPv6 in brackets."""
    parts = urlsplit(f"//{written}")
    host, port = parts.hostname, parts.port if parts.port is not None else default_port
    if not host or port is None or parts.netloc != written or "@" in written:
        raise ValueError
    if "[" in written:
        return f"[{ip_address(host)}]:{port}"
    if re.fullmatch(r"[0-9.]+", host):
        return f"{ip_address(host)}:{port}"
    return f"{_diameter_identity(host)}:{port}"


def _url(match: re.Match[str], port: int | None = None) -> str:
    """Port: that of another protocol than Diameter."""
    scheme, (*others, last) = match[1], match[2].split(",")
    if scheme == "dtls":
        raise Unexpected("DTLS over SCTP is not offered: expected sctp:// with IPsec below it, or tls://")
    if others and scheme != SCTP:
        raise Unexpected("expected one address; only sctp:// takes several")
    if any(urlsplit(f"//{each}").port is not None for each in others):
        raise Unexpected("expected the port behind the last address alone, since it is that of all")
    hosts = [_address(each, 0).removesuffix(":0") for each in others]
    return f"{scheme}://{','.join([*hosts, _address(last, PORTS[scheme] if port is None else port)])}"


def _source(match: re.Match[str]) -> str:
    scheme, place, path = match[1], _address(match[2], HTTP_PORTS[match[1]]), match[3] or "/"
    host = urlsplit(f"//{place}").hostname or ""
    if scheme == "http" and not (
        host == "localhost" or (re.fullmatch(r"[0-9a-f.:]+", host) and ip_address(host).is_loopback)
    ):
        raise Unexpected(
            "expected https://; http:// is for this host's own addresses alone (127.0.0.1, [::1], localhost)"
        )
    return f"{scheme}://{match[2]}{path.rstrip('/')}/"


def _moment(written: str) -> datetime:
    moment = datetime.fromisoformat(written)
    if moment.tzinfo is None:
        raise Unexpected("expected one with a time zone such as 2026-11-25T06:00:00Z")
    return moment.astimezone(UTC)


def _network(written: str) -> IPv4Network | IPv6Network:
    around, address = ip_network(written, strict=False), written.partition("/")[0]
    if ip_address(address) != around.network_address:
        raise Unexpected(
            f"it has bits set that its mask leaves out, expected the network {around} or the one address {address}"
        )
    return around


def _store_url(written: str) -> str:
    if written == SQLITE:
        return written
    if "://" not in written:
        raise ValueError
    from eir.lists.stores.redis_url import parse_url  # noqa: PLC0415  # 0.2 s that the embedded store does not cost

    try:
        parse_url(written, check=False)
    except StoreError as error:
        raise Unexpected(str(error)) from None
    return written


def _with_files(store: str, folder: Path) -> str:
    if store == SQLITE:
        return store
    from eir.lists.stores.redis_url import with_files_in  # noqa: PLC0415  # as above

    return with_files_in(store, folder)


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


def _place(match: re.Match[str]) -> tuple[float, float]:
    latitude, longitude = float(match[1]), float(match[2])
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise ValueError
    return latitude, longitude


def _workers(written: str) -> int:
    if written == "auto":
        return min(len(os.sched_getaffinity(0)), WORKERS_MAX)
    return int(whole(1, WORKERS_MAX).read(written))


_STATUSES = {status.value: status for status in Status}
URLS = "tcp://ADDRESS:PORT, tls://ADDRESS:PORT or sctp://ADDRESS,ADDRESS:PORT such as"
M3UA_URLS = "tcp://ADDRESS:PORT or sctp://ADDRESS,ADDRESS:PORT such as"

IDENTITY = Kind("a domain name such as mme1.example.org", _diameter_identity)
CERTIFICATE_NAME = text(
    "a domain name such as dra.example.org, or *.example.org",
    r"(\*\.)?(.*)",
    lambda match: f"{match[1] or ''}{_diameter_identity(match[2])}",
)
HOST = text("a host name or an IP address", r"[A-Za-z0-9._-]{1,253}|\[?[0-9A-Fa-f:.]{2,45}\]?")
LISTEN = text(f"{URLS} tcp://0.0.0.0:3868 or tls://[::]:5868", r"(tcp|tls|sctp|dtls)://(.+)", _url)
LISTEN_HTTP = text(
    "http://ADDRESS:PORT or https://ADDRESS:PORT such as http://127.0.0.1:7777", r"(https?)://(.+)",
    lambda match: f"{match[1]}://{_address(match[2], HTTP_PORTS[match[1]])}",
)  # fmt: skip
LISTEN_GSUP, HLR = (
    text(
        f"tcp://ADDRESS:PORT such as tcp://127.0.0.1:{port}",
        pattern,
        lambda match: f"tcp://{_address(match[1], GSUP_PORT)}",
    )
    for port, pattern in ((GSUP_PORT, r"tcp://(.+)"), (4223, r"tcp://(?!.*:0+$)(.+)"))
)
LISTEN_M3UA = text(f"{M3UA_URLS} tcp://0.0.0.0:2905", r"(tcp|sctp)://(.+)", lambda match: _url(match, M3UA_PORT))
CONNECT_M3UA = text(
    f"{M3UA_URLS} sctp://10.20.0.9,10.21.0.9:2905", r"(tcp|sctp)://(?!.*:0+$)(.+)", lambda match: _url(match, M3UA_PORT)
)
POINT_CODE = text(
    "a point code such as 1-2-3",
    r"[0-9]{1,8}|[0-9]{1,3}([.-])[0-9]{1,3}\1[0-9]{1,3}",
    lambda match: match[0].replace(".", "-"),
)
GLOBAL_TITLE = text("first digits of a global title such as 49170", r"[0-9]{1,20}")
BER_TAG = text(
    "a tag of BER as hexadecimal octets such as 80 or 9f21",
    r"(?:[0-9A-Fa-f]{2}){1,4}",
    lambda match: int(match[0], 16),
    show=lambda tag: f"{tag:02x}",
)
API_ROOT = text(
    "http://HOST[:PORT] or https://HOST[:PORT], with a path where there is one, such as http://127.0.0.1:7777",
    r"(https?)://([^/?#]+)((?:/[A-Za-z0-9._~-]+)*)/?", lambda match: f"{match[1]}://{_address(match[2], HTTP_PORTS[match[1]])}{match[3]}",
)  # fmt: skip
UUID = text(
    "a UUID such as 0b8f1d3e-1111-4222-8333-0000000000e1",
    r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    lambda match: match[0].lower(),
)
PLMN = text("5 or 6 digits (MCC and MNC)", r"[0-9]{5,6}")
CLAIM = text("a text of 1 to 255 characters", r"[\x21-\x7e]{1,255}")
CONNECT = text(
    f"{URLS} tcp://10.20.0.1:3868 or tls://dra1.example.org:5868", r"(tcp|tls|sctp|dtls)://(?!.*:0+$)(.+)", _url
)
ADDRESS = Kind("an IP address", lambda written: str(ip_address(written.strip("[]"))))
HTTP = text(
    "ADDRESS:PORT such as 127.0.0.1:9868, or off", r"(?i:off|no|false)|(.+)", lambda match: match[1] and _address(match[1], None),
    show=lambda address: address, may_be_empty=True,
)  # fmt: skip
NETWORK = Kind("a network such as 10.1.0.0/16, or an address", _network)
MOMENT = Kind(
    "a time with its zone such as 2026-11-25T06:00:00Z", _moment, lambda time: time.isoformat().replace("+00:00", "Z")
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
PLACE = text(
    "latitude and longitude in degrees, such as 50.45 30.52", r"(-?[0-9]{1,2}(?:\.[0-9]+)?)[ ,]+(-?[0-9]{1,3}(?:\.[0-9]+)?)", _place,
    show=lambda place: f"{place[0]:.10g} {place[1]:.10g}",
)  # fmt: skip
FLAG = text(
    "true or false", "(?i:(true|yes|on)|false|no|off)", lambda match: match[1] is not None, show=bool, bare=True
)
FILE, FOLDER = (
    text(
        f"the path of a {what}",
        r"(?!\s*$)[^\0]+",
        lambda match: Path(match[0]),
        place=lambda path, folder: folder / path,
    )
    for what in ("file", "folder")
)
STORE = Kind(
    "sqlite, redis://HOST[:PORT][/DB] or rediss:// (TLS), redis+sentinel://HOST,…/SERVICE, or redis+cluster://HOST,…",
    _store_url, mask_password, _with_files,
)  # fmt: skip
COLUMN = text(
    "a column's name, or its position from 1", r"([1-9][0-9]{0,2})|([^0-9].{0,99})", lambda match: int(match[1]) if match[1] else match[2].strip().lower(),
    show=lambda column: column,
)  # fmt: skip
SEPARATOR = text(
    "tab, space, or one sign such as a semicolon", r"(tab|space)|([!#-/:-@\[-`{-~])", lambda match: {"tab": "\t", "space": " "}.get(match[0], match[0]),
    show=lambda sign: {"\t": "tab", " ": "space"}.get(sign, sign),
)  # fmt: skip
ENCODING = word("utf-8", "utf-16", "latin-1", *(f"windows-{page}" for page in range(1250, 1259)))
DATES = text("a form such as YYYYMMDD, DD.MM.YYYY, DD-Mon-YYYY or YYYY-MM-DD hh:mm:ss", ".{1,40}", _date_form)
CODE = text("a text of 1 to 40 characters", "[^\0\n]{1,40}")
CODE_AND_REASON = text(
    "a code, an equals sign and the reason that it stands for, such as 10=stolen", "([^=]{1,40})=(.{1,200})", lambda match: (match[1].strip(), match[2].strip()),
    show="=".join,
)  # fmt: skip
SOURCE = text(
    "a folder such as https://register.example/eir/NAME/", r"(https?)://([^/?#@]+)((?:/[A-Za-z0-9._~%-]+)*/?)", _source
)
POSITION = whole(1, 999)
HTTP_URL = text("http://HOST[:PORT]/PATH or https://…", r"https?://[^\s/@]+(/\S*)?")
STREAM = text(
    "a key such as eir:checks, of letters, digits, ':', '.', '_', '-' and braces", r"[A-Za-z0-9:._{}-]{1,128}"
)
RULE_NAME = text("a letter, and up to 63 letters, digits, '.', '_', '-' or ':'", r"[A-Za-z][A-Za-z0-9._:-]{0,63}")
PEER_NAME = text("1 to 64 letters, digits, '.', '_', '-' or ':'", r"[A-Za-z0-9._:-]{1,64}")
LIST_NAME = text("the name of a list under `lists`", r".{1,200}")
STATUS = one_of(_STATUSES)
STATUS_OR_TOO_BUSY = one_of({TOO_BUSY: TOO_BUSY, **_STATUSES})
STATUS_OR_ERROR = one_of({**_STATUSES, ERROR: None})
WORKERS = Kind(f"a whole number from 1 to {WORKERS_MAX}, or auto", _workers, int, bare=True)
