"""Types for configuration keys and metrics: keys, sections, kinds of values, a parsed file, metric families.

A package with keys or metrics of its own exports them in these types. Contains no key and no file.

A value is parsed from its text in the file, never from YAML's interpretation, so that `tac: 00101001` keeps its zeros and a
peer may be called `no`.
"""

import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from eir.errors import Problem

LABEL_MAX, NAME_MAX = 63, 255
"""Maximum lengths of a label and of a whole domain name in octets (RFC 1035 2.3.4)."""
SCTP, DTLS = "sctp", "dtls"
DAY_S, YEAR_DAYS = 86400, 365
DURATIONS: dict[str, Decimal | int] = {
    "ms": Decimal("0.001"), "s": 1, "m": 60, "min": 60, "h": 3600, "d": DAY_S, "y": YEAR_DAYS * DAY_S,
}  # fmt: skip
"""Unit of a duration → seconds."""
DURATION_MAX_S = 1000 * YEAR_DAYS * DAY_S
"""Maximum duration: 1000 years, so that the present plus or minus a duration is a valid date."""
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
    """Kind of configuration value: description of its written form, parser and formatter."""

    expected: str
    """Description that completes "expected …" and is used in the reference."""
    read: Callable[[str], Any]
    """Parser of a text. It raises ValueError, or Unexpected for a more precise message than `expected`."""
    show: Callable[[Any], Any] = str
    """Formatter of a value as JSON; the inverse of `read`."""
    place: Callable[[Any, Path], Any] = lambda value, _: value
    """Function that resolves the files of a value in a folder."""
    bare: bool = False
    """True if the value must not be quoted: a number or a switch, because quotes show that a text was meant."""
    many: bool = False
    """True if the key accepts one value or a list of them; it is read as a tuple."""
    may_be_empty: bool = False
    """With `many`: `[]` is allowed. Otherwise: a key without a value is allowed, and is read as None."""
    example: str = ""
    """Examples of a value, for error messages."""

    @property
    def form(self) -> str:
        """Description of how a configuration value is written, without an article, for the reference page."""
        text = re.sub(r"^(an?|the) ", "", self.expected)
        return f"{text}, or several" if self.many else text

    @property
    def form_with_example(self) -> str:
        """Description of how a configuration value is written, with examples. The text completes "expected …" in error messages."""
        text = self.expected
        if self.example:
            text += f", such as {self.example}"
        return f"{text}, or a list" if self.many else text


class Unexpected(ValueError):
    """Error for an invalid configuration value. The error's message is more precise than the text `expected` of the value's kind."""


def text(expected: str, pattern: str, read: Callable[[re.Match[str]], Any] = re.Match.group, **more: Any) -> Kind:
    """Build a Kind for texts that match the pattern as a whole; `read` converts the match to the value."""

    def matched(written: str) -> Any:
        match = re.fullmatch(pattern, written, re.ASCII | re.DOTALL)
        if match is None:
            raise ValueError
        return read(match)

    return Kind(expected, matched, **more)


def one_of(words: Mapping[str, Any]) -> Kind:
    """Build a Kind for a choice of words. `words` maps each word to its value."""
    *most, last = words
    listed = f"{', '.join(most)} or {last}" if most else last

    def read(written: str) -> Any:
        if written in words:
            return words[written]
        raise Unexpected(f"expected {listed}{did_you_mean(written, words)}")

    back = {value: word for word, value in words.items()}
    return Kind(listed, read, back.__getitem__)


def word(*words: str) -> Kind:
    """Build a Kind for a choice of words. The value of each word is the word itself."""
    return one_of({each: each for each in words})


def parse_amount(written: str, units: Mapping[str, Decimal | int]) -> Decimal:
    """Parse a number with a unit; return it in the base unit. `units` maps each unit to its factor.

    Raises:
        ValueError: if the text has another form.
    """
    match = re.fullmatch(rf"(-?[0-9]+(?:\.[0-9]+)?)\s*({'|'.join(units)})", written, re.ASCII)
    if match is None:
        raise ValueError
    return Decimal(match[1]) * units[match[2]]


def parse_duration(written: str) -> timedelta:
    """Parse a number with a unit of time, such as `20s`, `90m`, `36h` or `14d`.

    Raises:
        ValueError: if the text has another form, or the duration is below 0 or above `DURATION_MAX_S`.
    """
    amount_s = parse_amount(written, DURATIONS)
    if not 0 <= amount_s <= DURATION_MAX_S:
        raise ValueError
    return timedelta(seconds=float(amount_s))


def quantity(
    expected: str,
    low: float,
    high: float,
    units: Mapping[str, Decimal | int],
    of: type = float,
    *,
    one: int = 1,
    **more: Any,
) -> Kind:
    """Build a Kind for a number with a unit, from `low` to `high`.

    `units` maps each unit to its number of base units; `one` is the number of base units in a value of 1.
    """

    def read(written: str) -> Any:
        amount = parse_amount(written, units) / one
        value = of(amount)
        is_within = Decimal(str(low)) <= amount <= Decimal(str(high))
        if not is_within or value != float(amount):
            raise ValueError
        return value

    def show(value: float) -> float:
        return int(value) if value == int(value) else value

    return Kind(expected, read, **{"show": show, **more})


def whole(low: int, high: int) -> Kind:
    """Build a Kind for an integer from `low` to `high`."""
    expected = f"an integer from {low} to {high}"
    kind = quantity(expected, low, high, {"": 1}, of=int, bare=True)

    def read(written: str) -> Any:
        if re.fullmatch(r"0[0-9_]+", written):
            raise Unexpected(f"expected {expected}; remove the leading zero, which some YAML readers take as octal")
        return kind.read(written)

    return replace(kind, read=read)


def number(low: float, high: float, label: str) -> Kind:
    """Build a Kind for a number from `low` to `high`, with or without a decimal point."""
    return quantity(f"{label} from {low:.10g} to {high:.10g}", low, high, {"": 1}, bare=True)


def seconds(low: float, high: float) -> Kind:
    """Build a Kind for a duration in seconds, written as a plain number or as a number with a unit."""
    expected = f"seconds from {low:.10g} to {high:.10g}"
    example = "500ms, 30s, 2m" if low < 3600 else "36h, 90d"
    return quantity(expected, low, high, {"": 1} | DURATIONS, example=example)


def days(low: int, high: int) -> Kind:
    """Build a Kind for a duration in whole days, written as a number with a unit. 1 year has 365 days."""

    def show(value: int) -> str:
        return f"{value}d" if value % YEAR_DAYS else f"{value // YEAR_DAYS}y"

    expected = f"whole days from {show(low)} to {show(high)}, such as 90d"
    return quantity(expected, low, high, DURATIONS, of=int, one=DAY_S, show=show)


def byte_size(low: int, high: int) -> Kind:
    """Build a Kind for a size in bytes, written as a plain number or as a number with a unit."""
    return quantity(f"bytes from {low} to {high}", low, high, BYTES, of=int, example="64KiB")


def percentage(high: int) -> Kind:
    """Build a Kind for a percentage, which is stored as a fraction: `20%` is 0.2.

    The percent sign is required, because `0.2` would be ambiguous.
    """

    def show(value: float) -> str:
        return f"{value * 100:.10g}%"

    expected = f"a percentage from 0% to {high}%"
    return quantity(expected, 0, high / 100, {"%": Decimal("0.01")}, show=show, example="20%")


def many(kind: Kind, *, may_be_empty: bool = False) -> Kind:
    """Return a copy of the kind that accepts one value or a list of values."""
    return replace(kind, many=True, may_be_empty=may_be_empty)


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the most similar known word, or an empty text if no word is similar."""
    words = list(known)
    for form in (written.lower().replace("-", "_"), written):
        matches = difflib.get_close_matches(form, words, n=1)
        if matches:
            return f"; did you mean '{matches[0]}'?"
    return ""


def mask_password(url: str) -> str:
    """Hide the password of a URL; return any other text unchanged."""
    return re.sub(r"(?<=://)([^/@\s:]*):\S*@", r"\1:***@", url)


def mask_secrets(url: str) -> str:
    """Hide the password, query and fragment of a URL; return any other text unchanged."""
    # A password with ? and a query with @ cannot be distinguished, so everything from there on is hidden.
    whole = re.sub(r"(?<=://)([^/@\s:]*):\S*[?#]\S*@.*", r"\1:***", url, flags=re.DOTALL)
    return re.sub(r"(://[^?#]*[?#]).*", r"\1***", mask_password(whole), flags=re.DOTALL)


def domain_name(written: str) -> str:
    """Parse a DiameterIdentity: a fully qualified domain name (RFC 6733 4.3.1)."""
    if "://" in written or ":" in written:
        raise Unexpected("expected a name alone, without aaa:// and without a port")
    if not written.isascii():
        raise Unexpected("expected ASCII; write an internationalised name in its xn-- form")
    label = rf"[A-Za-z0-9_](?:[A-Za-z0-9_-]{{0,{LABEL_MAX - 2}}}[A-Za-z0-9_])?"
    if len(written) > NAME_MAX or not re.fullmatch(rf"{label}(?:\.{label})*", written):
        raise ValueError
    return written


def address(written: str, default_port: int | None) -> str:
    """Parse `HOST:PORT`, where the host is a domain name, an IPv4 address, or an IPv6 address in brackets."""
    parts = urlsplit(f"//{written}")
    host = parts.hostname
    port = default_port if parts.port is None else parts.port
    if not host or port is None or parts.netloc != written or "@" in written:
        raise ValueError
    if "[" in written:
        return f"[{ip_address(host)}]:{port}"
    if re.fullmatch(r"[0-9.]+", host):
        return f"{ip_address(host)}:{port}"
    return f"{domain_name(host)}:{port}"


def url(ports: Mapping[str, int], example: str, *, connects: bool = False) -> Kind:
    """Build a Kind for a URL with address and port; `ports` maps each allowed scheme to its default port.

    Over SCTP several addresses are allowed. If `connects` is true, the node connects to the URL, so port 0 is not
    allowed.
    """
    *most, last = (
        f"{scheme}://ADDRESS,ADDRESS:PORT" if scheme == SCTP else f"{scheme}://ADDRESS:PORT" for scheme in ports
    )
    forms = f"{', '.join(most)} or {last}" if most else last

    def read(match: re.Match[str]) -> str:
        scheme, addresses = match[1], [match[2]]
        if SCTP in ports:
            addresses = match[2].split(",")
        *more_addresses, final = addresses
        if scheme == DTLS:
            raise Unexpected("DTLS over SCTP is not supported: expected sctp:// with IPsec below it, or tls://")
        if more_addresses and scheme != SCTP:
            raise Unexpected("expected one address; only sctp:// accepts several")
        if any(urlsplit(f"//{each}").port is not None for each in more_addresses):
            raise Unexpected("expected one port for all addresses, after the last address")
        hosts = [address(each, 0).removesuffix(":0") for each in more_addresses]
        hosts.append(address(final, ports[scheme]))
        return f"{scheme}://{','.join(hosts)}"

    schemes = [*ports]
    if SCTP in ports and "tls" in ports:
        schemes.append(DTLS)
    no_port_0 = "(?!.*:0+$)" if connects else ""
    return text(forms, rf"({'|'.join(schemes)})://{no_port_0}(.+)", read, example=example)


def _network(written: str) -> IPv4Network | IPv6Network:
    network = ip_network(written, strict=False)
    host, _, _ = written.partition("/")
    if ip_address(host) != network.network_address:
        raise Unexpected(f"it has bits outside its mask; expected the network {network} or the address {host}")
    return network


def _path(expected: str) -> Kind:
    """Build a Kind for a path; a relative path starts in the folder of the configuration."""

    def place(path: Path, folder: Path) -> Path:
        return folder / path

    return text(expected, r"(?!\s*$)[^\0]+", lambda match: Path(match[0]), place=place)


IDENTITY = Kind("a domain name", domain_name, example="mme1.example.org")
POINT_CODE = text(
    "a point code such as 1-2-3",
    r"[0-9]{1,8}|[0-9]{1,3}([.-])[0-9]{1,3}\1[0-9]{1,3}",
    lambda match: match[0].replace(".", "-"),
)
CLAIM = text("a text of 1 to 255 characters", r"[\x21-\x7e]{1,255}")
NETWORK = Kind("a network such as 10.1.0.0/16, or an address", _network)
FLAG = text(
    "true or false", "(?i:(true|yes|on)|false|no|off)", lambda match: match[1] is not None, show=bool, bare=True
)
FILE, FOLDER = _path("a file path"), _path("a folder path")
PEER_NAME = text("1 to 64 letters, digits, '.', '_', '-' or ':'", r"[A-Za-z0-9._:-]{1,64}")
LIST_NAME = text("a name under `lists`", r".{1,200}")


# The table of keys

REQUIRED: Final = object()
"""Default of a required key."""

Spot = tuple[Hashable, ...]
"""Position of a value: keys by name, members of a list by their index from 0."""


@dataclass(frozen=True, slots=True)
class Key:
    """Configuration key: one row of the table of keys."""

    path: str
    """Dotted path; `name[]` is a list of sections, `name.*` a section whose keys are free names."""
    kind: Kind
    default: Any
    """Default; None: no value; REQUIRED: the key is required."""
    says: str
    field: str = ""
    """Name of the value in the built object, if it differs from the key."""
    live: bool = True
    """True if a reload applies it; otherwise it needs a restart, and its path is also the path of the field."""

    @property
    def required(self) -> bool:
        """True if the configuration file must contain the key."""
        return self.default is REQUIRED


def fixed(settings: object, names: Iterable[str]) -> dict[str, str]:
    """Return a warning for each removed key with a fixed value, by key, for `Section.gone`. `settings`: object with the fixed values."""
    return {name: f"the value is fixed at {getattr(settings, name):g}; remove the key" for name in names}


@dataclass(frozen=True, slots=True)
class Section:
    """Section of the configuration file: one mapping of keys, a list of such mappings, or such mappings by name."""

    path: str
    """Path as in Key."""
    build: Callable[..., Any] | None = None
    """Function that is called with the values by name; None: the values belong to the surrounding section."""
    optional: bool = False
    """True if the section is None when it is missing, even if it has required keys."""
    live: bool = True
    """True if a reload applies it; otherwise the whole section needs a restart."""
    short: str = ""
    """Key whose value may be written in place of the whole section; empty: none."""
    gone: Mapping[str, str] = field(default_factory=dict)
    """Removed keys, each with its successor or its fixed value; a file that has one gets a warning."""
    entries: "dict[str, Key | Section]" = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """Suffix of the configuration section's path: `[]` for a list of mappings, `.*` for named mappings, empty for one mapping."""
        return self.path[-2:] if self.path.endswith(("[]", ".*")) else ""

    @property
    def required(self) -> bool:
        """True if the section contains a required key."""
        return not (self.optional or self.shape) and any(entry.required for entry in self.entries.values())


@dataclass(slots=True)
class Document:
    """Parsed configuration file with line numbers.

    An invalid value is replaced by its default, or by None.
    """

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    """All built values, including defaults."""
    shown: dict[str, Any] = field(default_factory=dict)
    """Values by the keys of the file, in their form for JSON."""
    lines: dict[Spot, int] = field(default_factory=dict)
    """Lines (from 1) of keys and members in the file."""
    problems: dict[Problem, Spot] = field(default_factory=dict)
    """Problem → position of its value, in the order in which the problems were found."""
    faults: set[Spot] = field(default_factory=set)
    removed: list[Problem] = field(default_factory=list)
    """Warnings about removed keys."""

    def faulty(self, *spot: Hashable) -> bool:
        """Return True if a value is invalid, or if a section is invalid or contains an invalid value. `spot`: position in the file."""
        return any(fault[: len(spot)] == spot for fault in self.faults)

    def line(self, *spot: Hashable) -> int:
        """Return the line of a value in the configuration file. If the value is missing, return the line of its section."""
        while spot and spot not in self.lines:
            spot = spot[:-1]
        return self.lines.get(spot, 1)


Findings = Iterator[tuple[str, Spot]]
"""Texts to report, each with the position of its value in the file."""


DETAILS = "details"
"""Name under which a part of the node adds details of conditions to its metrics. The labels are alert, subject and text; a scrape omits them."""


@dataclass(frozen=True, slots=True)
class Family:
    """Metric family: name, type, labels, help text, and the rule that merges the values of all processes."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    merge: Literal["sum", "min", "max"] = "sum"
