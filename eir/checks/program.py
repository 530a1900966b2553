"""A policy in words of 32 bits, for a fast path that is compiled: what it can decide by itself, and where it has to ask `decide`.

For each rule: its verdict (ASK_INSTEAD under observation, since that is counted), how many words follow, and for each condition
what it asks, how many words follow, and these. The last word is the verdict where no rule holds. A condition that has no row
here is asked of the general path. May import eir.checks.conditions and eir.lists.index; knows no protocol.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np

from eir.checks.conditions import CONDITIONS, Holds
from eir.checks.identifier import BY_KEY, KEYS
from eir.device import MEID_BASE, SNR_KEYS, TAC_DIGITS, device_key
from eir.lists.index import DeviceList, Index
from eir.lists.settings import DEVICES

ASK_INSTEAD: Final = 0xFFFFFFFF
ORIGINS_MAX = 32
LISTS_MAX = 16
VERSIONS, VERSION_WORDS = 100, 4
IMSI_DIGITS_MAX = 15


class Asked(IntEnum):
    """What a condition asks."""

    OTHER = 0
    """Something that only the general path knows."""
    LISTED = 1
    NOT_LISTED = 2
    """With one word: which list."""
    TAC = 3
    """The first and the last one of each stretch."""
    IMSI = 4
    """Of each prefix its length, and its value in two words, the lower one first."""
    SOFTWARE_VERSION = 5
    """A bit for each number of two digits."""
    ORIGIN = 6
    """With one word: which test of Program.origins."""
    DEVICE = 7
    """Of each device its TAC and its serial number."""


@dataclass(frozen=True, slots=True)
class Program:
    """A policy in words. Verdicts, lists and tests of the origin are known in it by their place."""

    words: bytes
    verdicts: tuple[Any, ...]
    lists: tuple[DeviceList, ...]
    origins: tuple[Holds, ...]
    """Tests of Origin-Host and Origin-Realm, which are the same for all requests of one context."""
    index: Index


class _Words:
    """The words of one policy, as they come together."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.lists: dict[str, DeviceList] = {}
        self.origins: list[Holds] = []

    def condition(self, name: str, value: Any) -> list[int]:
        """The words of one condition."""
        make = _WORDS.get(name)
        asked, words = (Asked.OTHER, []) if make is None else make(self, value)
        return [asked, len(words), *words]

    def listed(self, asked: Asked, name: str) -> tuple[Asked, list[int]]:
        """The words of a condition on a list."""
        if name not in self.lists and len(self.lists) == LISTS_MAX:
            return Asked.OTHER, []
        self.lists[name] = self.index.lists[name]
        return asked, [list(self.lists).index(name)]

    def not_list(self, name: str) -> tuple[Asked, list[int]]:
        """What is not in a list of SIMs or pairs depends on whether the request has an IMSI."""
        return self.listed(Asked.NOT_LISTED, name) if self.index.lists[name].kind == DEVICES else (Asked.OTHER, [])

    def origin(self, name: str, value: tuple[str, ...]) -> tuple[Asked, list[int]]:
        """The words of a condition on Origin-Host or Origin-Realm."""
        if len(self.origins) == ORIGINS_MAX:
            return Asked.OTHER, []
        self.origins.append(CONDITIONS[name].compile(value, self.index))
        return Asked.ORIGIN, [len(self.origins) - 1]


def _devices(_: _Words, identifiers: tuple[str, ...]) -> tuple[Asked, list[int]]:
    return _keys(map(device_key, identifiers))


def _identifiers(_: _Words, wrong: tuple[str, ...]) -> tuple[Asked, list[int]]:
    # Of what the key does not show nothing holds here, as in eir.checks.conditions.
    by_key = [name for name in wrong if name in BY_KEY]
    return _keys(key for name in by_key for key in KEYS[name]) if KEYS.keys() >= set(by_key) else (Asked.OTHER, [])


def _keys(keys: Iterable[int]) -> tuple[Asked, list[int]]:
    return Asked.DEVICE, [word for key in keys if key < MEID_BASE for word in divmod(key, SNR_KEYS)]


def _tacs(_: _Words, prefixes: tuple[str, ...]) -> tuple[Asked, list[int]]:
    stretches = []
    for prefix in prefixes:
        room = 10 ** (TAC_DIGITS - len(prefix))
        stretches += [int(prefix) * room, int(prefix) * room + room - 1]
    return Asked.TAC, stretches


def _imsis(_: _Words, prefixes: tuple[str, ...]) -> tuple[Asked, list[int]]:
    if any(len(prefix) > IMSI_DIGITS_MAX for prefix in prefixes):
        return Asked.OTHER, []
    return Asked.IMSI, [word for prefix in prefixes for word in (len(prefix), int(prefix) & 0xFFFFFFFF, int(prefix) >> 32)]


def _versions(_: _Words, versions: tuple[str, ...]) -> tuple[Asked, list[int]]:
    bits = sum(1 << int(version) for version in set(versions))
    return Asked.SOFTWARE_VERSION, [bits >> 32 * word & 0xFFFFFFFF for word in range(VERSION_WORDS)]


_WORDS: Mapping[str, Callable[[_Words, Any], tuple[Asked, list[int]]]] = {
    "list": lambda words, name: words.listed(Asked.LISTED, name),
    # A device that is not in the list is bound nowhere in it.
    "device_bound_elsewhere": lambda words, name: words.listed(Asked.LISTED, name),
    "not_list": _Words.not_list,
    "imei": _devices,
    "identifier": _identifiers,
    "tac": _tacs,
    "imsi": _imsis,
    "software_version": _versions,
    "origin_host": lambda words, hosts: words.origin("origin_host", hosts),
    "origin_realm": lambda words, realms: words.origin("origin_realm", realms),
}


def program_of(rules: Iterable[tuple[Mapping[str, Any], Any, bool]], default: Any, index: Index) -> Program:
    """A policy in words: for each rule its conditions, its verdict, and whether it is under observation; and what holds where none does."""
    words, program, verdicts = _Words(index), list[int](), list[Any]()
    for number, (conditions, verdict, observed) in enumerate(rules):
        said = [word for name, value in conditions.items() for word in words.condition(name, value)]
        program += [ASK_INSTEAD if observed else number, len(said), *said]
        verdicts.append(verdict)
    program.append(len(verdicts))
    return Program(np.array(program, "<u4").tobytes(), (*verdicts, default), tuple(words.lists.values()), tuple(words.origins), index)
