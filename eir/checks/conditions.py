"""Table of rule conditions: name of a condition → function that compiles its value to a test.

A new condition needs a row here and a field of `settings.Rule` with the same name.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from eir.checks.question import KEY_TESTS
from eir.device import IMSI_LENGTHS, SNR_KEYS, TAC_DIGITS, device_key, device_type_key, imsi_key
from eir.errors import IdentifierError
from eir.lists.record.first_days import DAY_S, WAS_LISTED
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES

if TYPE_CHECKING:  # the configuration is checked without the lists
    from eir.lists.images.index import Index, PairList

T = TypeVar("T")

OfCheck = Callable[[int, str, str, str, str], T]
"""Function of a check: of its device key, IMSI, Software-Version, Origin-Host and Origin-Realm.

A text is empty if the request lacks it.
"""

Holds = OfCheck[bool]
"""Test that returns True if a condition holds for a check."""

NO_SUBSCRIBER = 0
"""Key that no IMSI has (eir.device.imsi_key gives each a leading 1), so it is in no list."""


class Condition(NamedTuple):
    """Kind of condition in policy rules: its name, and the function that compiles it."""

    compile: Callable[[Any, "Index"], Holds]
    """Function that builds the test from the value and the lists.

    It raises KeyError if the index has no list of the name in the value, or if that list has the wrong kind.
    """
    length: int | None = None
    """Length of a complete value; a shorter value is compared as a prefix. None: all values are complete."""
    names_list: bool = False
    """True if the value is the name of a list."""
    pairs_only: bool = False
    """True if that list must be a list of pairs."""
    records: bool = False
    """True if the test also records the first sighting of the device. It runs only if all other conditions hold."""
    show: Callable[[Any], str] = str
    """Function that formats one value for a person."""


def subscriber_key(imsi: str) -> int:
    """Return the key of an IMSI, or NO_SUBSCRIBER if the text is empty or not an IMSI."""
    if not imsi:
        return NO_SUBSCRIBER
    try:
        return imsi_key(imsi)
    except IdentifierError:
        return NO_SUBSCRIBER


def _imei(identifiers: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(map(device_key, identifiers))
    return lambda key, _imsi, _software_version, _host, _realm: key in wanted


def _tac(prefixes: tuple[str, ...], _: "Index") -> Holds:
    # The quotient key // divisor has as many digits as the prefix. The key of a MEID with letters has 15 digits or more,
    # so its quotient is longer than each prefix and never equal to one.
    by_divisor: dict[int, set[int]] = {}
    for prefix in prefixes:
        missing_digits = TAC_DIGITS - len(prefix)
        divisor = SNR_KEYS * 10**missing_digits
        by_divisor.setdefault(divisor, set()).add(int(prefix))
    lengths = tuple(by_divisor.items())
    if len(lengths) == 1:
        divisor, wanted = lengths[0]
        return lambda key, _imsi, _software_version, _host, _realm: key // divisor in wanted

    def has_prefix(key: int, _imsi: str, _software_version: str, _host: str, _realm: str) -> bool:
        for divisor, wanted in lengths:  # noqa: SIM110  a generator would take longer than the comparisons
            if key // divisor in wanted:
                return True
        return False

    return has_prefix


def _device_type(types: tuple[str, ...], index: "Index") -> Holds:
    wanted = frozenset(map(device_type_key, types))
    tables = [cast("PairList", entries) for entries in index.lists.values() if entries.kind == TYPES]
    if not tables:
        raise KeyError("no list of kind device_types is configured")
    return lambda key, _imsi, _software_version, _host, _realm: any(table.is_of_type(key, wanted) for table in tables)


def _software_version(versions: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(versions)
    return lambda _key, _imsi, software_version, _host, _realm: software_version in wanted


def _imsi(prefixes: tuple[str, ...], _: "Index") -> Holds:
    return lambda _key, imsi, _software_version, _host, _realm: imsi.startswith(prefixes)


def _identifier(faults: tuple[str, ...], _: "Index") -> Holds:
    # The fault `malformed` cannot be tested by the key. For malformed identifiers compile_policy builds variants of the
    # rules without this condition.
    tests = tuple(KEY_TESTS[fault] for fault in faults if fault in KEY_TESTS)
    return lambda key, _imsi, _software_version, _host, _realm: any(test(key) for test in tests)


def _origin_host(hosts: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(host.lower() for host in hosts)
    return lambda _key, _imsi, _software_version, host, _realm: host.lower() in wanted


def _origin_realm(realms: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(realm.lower() for realm in realms)
    return lambda _key, _imsi, _software_version, _host, realm: realm.lower() in wanted


def _list(name: str, index: "Index") -> Holds:
    # The bound method stays valid: a switch replaces the content of a list, never the list object.
    entries = index.lists[name]
    holds = entries.holds
    if entries.kind == SUBSCRIBERS:
        return lambda _key, imsi, _software_version, _host, _realm: holds(subscriber_key(imsi))
    if entries.kind == PAIRS:
        binds = cast("PairList", entries).binds
        return lambda key, imsi, _software_version, _host, _realm: holds(key) and binds(key, subscriber_key(imsi))
    return lambda key, _imsi, _software_version, _host, _realm: holds(key)


def _not_list(name: str, index: "Index") -> Holds:
    entries = index.lists[name]
    in_list = _list(name, index)
    needs_subscriber = entries.kind != DEVICES

    def not_in_list(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        # An allowlist that was never loaded would block every device, so the rule does not match before the first load
        # (and /ready returns 503). A loaded allowlist that is empty does block every device.
        if entries.state is None:
            return False
        if needs_subscriber and not subscriber_key(imsi):
            return False
        return not in_list(key, imsi, software_version, host, realm)

    return not_in_list


def _elsewhere(lookup: str) -> Callable[[str, "Index"], Holds]:
    """Return the function that compiles the rule condition `device_bound_elsewhere` or `subscriber_bound_elsewhere`.

    The value of each condition is the name of a list of pairs. The first condition holds if the list has the device, but not
    with this IMSI. The second condition holds if the list has the IMSI, but not with this device. `lookup`: method of PairList
    that the test calls.
    """

    def compile_test(name: str, index: "Index") -> Holds:
        entries = index.lists[name]
        if entries.kind != PAIRS:
            raise KeyError(f"{name} is a list of {entries.kind}; expected a list of pairs")
        bound_elsewhere: Callable[[int, int], bool] = getattr(entries, lookup)

        def holds(key: int, imsi: str, _software_version: str, _host: str, _realm: str) -> bool:
            subscriber = subscriber_key(imsi)
            return subscriber != NO_SUBSCRIBER and bound_elsewhere(key, subscriber)

        return holds

    return compile_test


def day_text(day: int) -> str:
    """Format a day such as `2026-12-01`; `day` counts from 1970-01-01."""
    moment = datetime.fromtimestamp(day * DAY_S, UTC)
    return f"{moment:%Y-%m-%d}"


def _first_seen(is_in_time: Callable[[int, int, int], bool]) -> Callable[[int, "Index"], Holds]:
    """Return the function that compiles a rule condition which tests the day when a device was first seen.

    `is_in_time` receives the first day, today, and the value of the condition.
    """

    def compile_test(value: int, index: "Index") -> Holds:
        if index.first_seen is None:
            raise KeyError("there is no record of first sightings")
        record = index.first_seen

        def holds(key: int, _imsi: str, _software_version: str, _host: str, _realm: str) -> bool:
            first = record.ask(key)
            return first != WAS_LISTED and is_in_time(first, record.today, value)

        return holds

    return compile_test


CONDITIONS: dict[str, Condition] = {
    "list": Condition(_list, names_list=True),
    "not_list": Condition(_not_list, names_list=True),
    "imei": Condition(_imei),
    "tac": Condition(_tac, length=TAC_DIGITS),
    "device_type": Condition(_device_type),
    "software_version": Condition(_software_version),
    "imsi": Condition(_imsi, length=IMSI_LENGTHS[-1]),
    "identifier": Condition(_identifier),
    "origin_host": Condition(_origin_host),
    "origin_realm": Condition(_origin_realm),
    "device_bound_elsewhere": Condition(_elsewhere("device_bound_elsewhere"), names_list=True, pairs_only=True),
    "subscriber_bound_elsewhere": Condition(_elsewhere("subscriber_bound_elsewhere"), names_list=True, pairs_only=True),
    "first_seen_within": Condition(
        _first_seen(lambda first, today, days: today - first <= days), records=True, show="{}d".format
    ),
    "first_seen_before": Condition(_first_seen(lambda first, _, day: first < day), records=True, show=day_text),
}
"""Name → kind of condition, in the order in which reports show the conditions of a rule."""
