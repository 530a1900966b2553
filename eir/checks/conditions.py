"""The conditions that a rule may have: one table, from the condition's name to what makes a test of its value.

A new condition is a row here and a field of `settings.Rule` with the same name.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from eir.checks.question import BY_KEY
from eir.device import IMSI_LENGTHS, SNR_KEYS, TAC_DIGITS, device_key, device_type_key, imsi_key
from eir.errors import IdentifierError
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES

if TYPE_CHECKING:  # the configuration is checked without the lists
    from eir.lists.images.index import Index, PairList

Holds = Callable[[int, str, str, str, str], bool]
"""(device key, IMSI, Software-Version, Origin-Host, Origin-Realm) → whether the condition holds; texts are empty where absent."""

NOBODY = 0
"""The key of no IMSI (eir.device.imsi_key gives each a leading 1), so no list has it."""


class Condition(NamedTuple):
    """One condition, whose value in a rule is a tuple of texts, or the name of a list."""

    compile: Callable[[Any, "Index"], Holds]
    """Makes the test. Raises KeyError if the value names a list that the index does not have, or has as one of another kind."""
    length: int | None = None
    """Characters of a complete text, where shorter ones stand for all that begin with them. None: texts are compared
    whole."""
    names_list: bool = False
    pairs_only: bool = False
    """The list has to be one of pairs."""


def subscriber_key(imsi: str) -> int:
    """The key of an IMSI; NOBODY where the request carried none, or a text that is not an IMSI."""
    try:
        return imsi_key(imsi) if imsi else NOBODY
    except IdentifierError:
        return NOBODY


def _imei(identifiers: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(map(device_key, identifiers))
    return lambda key, _imsi, _software_version, _host, _realm: key in wanted


def _tac(prefixes: tuple[str, ...], _: "Index") -> Holds:
    # key // divisor leaves as many leading digits as the prefix has. The key of a MEID with letters has 15 digits or
    # more, so what is left of it is longer than any prefix and equals none.
    by_divisor: dict[int, set[int]] = {}
    for prefix in prefixes:
        by_divisor.setdefault(SNR_KEYS * 10 ** (TAC_DIGITS - len(prefix)), set()).add(int(prefix))
    if len(by_divisor) == 1:
        ((divisor, wanted),) = by_divisor.items()
        return lambda key, _imsi, _software_version, _host, _realm: key // divisor in wanted
    lengths = tuple(by_divisor.items())

    def one_holds(key: int, _imsi: str, _software_version: str, _host: str, _realm: str) -> bool:
        for divisor, wanted in lengths:  # noqa: SIM110  a generator for each check costs more than the comparisons do
            if key // divisor in wanted:
                return True
        return False

    return one_holds


def _device_type(types: tuple[str, ...], index: "Index") -> Holds:
    wanted = frozenset(map(device_type_key, types))
    tables = [cast("PairList", entries) for entries in index.lists.values() if entries.kind == TYPES]
    if not tables:
        raise KeyError("no list says of which type a device is")
    return lambda key, _imsi, _software_version, _host, _realm: any(table.is_of_type(key, wanted) for table in tables)


def _software_version(versions: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(versions)
    return lambda _key, _imsi, software_version, _host, _realm: software_version in wanted


def _imsi(prefixes: tuple[str, ...], _: "Index") -> Holds:
    return lambda _key, imsi, _software_version, _host, _realm: imsi.startswith(prefixes)


def _identifier(wrong: tuple[str, ...], _: "Index") -> Holds:
    # What the key does not show is what `policy` compiles the rules for besides: there such a rule asks nothing here.
    tests = tuple(BY_KEY[name] for name in wrong if name in BY_KEY)
    return lambda key, _imsi, _software_version, _host, _realm: any(test(key) for test in tests)


def _origin_host(hosts: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(host.lower() for host in hosts)
    return lambda _key, _imsi, _software_version, host, _realm: host.lower() in wanted


def _origin_realm(realms: tuple[str, ...], _: "Index") -> Holds:
    wanted = frozenset(realm.lower() for realm in realms)
    return lambda _key, _imsi, _software_version, _host, realm: realm.lower() in wanted


def _list(name: str, index: "Index") -> Holds:
    # The bound method is taken once: a switch replaces what the list holds, never the list.
    entries = index.lists[name]
    holds = entries.holds
    if entries.kind == SUBSCRIBERS:
        return lambda _key, imsi, _software_version, _host, _realm: holds(subscriber_key(imsi))
    if entries.kind == PAIRS:
        binds = cast("PairList", entries).binds
        return lambda key, imsi, _software_version, _host, _realm: holds(key) and binds(key, subscriber_key(imsi))
    return lambda key, _imsi, _software_version, _host, _realm: holds(key)


def _not_list(name: str, index: "Index") -> Holds:
    entries, in_list = index.lists[name], _list(name, index)
    needs_subscriber = entries.kind != DEVICES

    def not_in_list(key: int, imsi: str, software_version: str, host: str, realm: str) -> bool:
        # An allow-list that never arrived holds nobody. Taken at its word it would block everyone, so the rule waits
        # for the first load (and /ready says 503); an allow-list that was loaded and is empty does mean everyone.
        if entries.state is None or (needs_subscriber and not subscriber_key(imsi)):
            return False
        return not in_list(key, imsi, software_version, host, realm)

    return not_in_list


def _elsewhere(question: str) -> Callable[[str, "Index"], Holds]:
    def compiled(name: str, index: "Index") -> Holds:
        entries = index.lists[name]
        if entries.kind != PAIRS:
            raise KeyError(f"{name} is a list of {entries.kind}; one of pairs says what is bound to what")

        bound_elsewhere: Callable[[int, int], bool] = getattr(entries, question)

        def holds(key: int, imsi: str, _software_version: str, _host: str, _realm: str) -> bool:
            subscriber = subscriber_key(imsi)
            return subscriber != NOBODY and bound_elsewhere(key, subscriber)

        return holds

    return compiled


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
}
"""Name → condition, in the order in which people are told of them."""
