"""Encoder of a policy into 64-bit words, which the compiled fast path evaluates.

Each rule has the word of its verdict (ASK_INSTEAD if it is observed, since matches are counted), the number of words
that follow, and its conditions: kind (`Asked`), number of words, and these words. The last word is the verdict if no
rule holds. The word of a verdict has its number in the lower half and the index of its status in the upper half. A
condition without an encoding is left to the general path (`decide`). Independent of protocols.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np

from eir.checks.question import STRETCHES
from eir.checks.settings import Status
from eir.device import IMSI_LENGTHS, MEID_BASE, SNR_KEYS, TAC_DIGITS, device_key, device_type_key
from eir.lists.images.index import DeviceList, FirstSeenList, Index, TacsOfTypes
from eir.lists.pages.first_days import PERIOD_DAYS, PERIODS_BEGIN, WAS_LISTED
from eir.lists.record.settings import DEVICES

ASK_INSTEAD: Final = (1 << 64) - 1
LISTS_MAX, VERDICTS_MAX = 16, 1024
WORD_BYTES = 8
STATUSES: Final = tuple(Status)
IMSI_DIGITS_MAX = IMSI_LENGTHS[-1]
PERIODS: Final = {"PERIOD_DAYS": PERIOD_DAYS, "PERIODS_BEGIN": PERIODS_BEGIN}
"""Constants by which a compiled look-up decides whether a sighting belongs on the record of first sightings."""


class Asked(IntEnum):
    """Code of a condition in an encoded policy."""

    OTHER = 0
    """Condition that only the general path can evaluate."""
    LISTED = 1
    NOT_LISTED = 2
    """Conditions with one word for the list."""
    WITHIN = 3
    """Condition with words for the field, and for the first and last number of each range."""
    ORIGIN_HOST = 4
    ORIGIN_REALM = 5
    """Conditions with names, as `names_in_words` encodes them."""


class Field(IntEnum):
    """Field of a request that an encoded condition compares: device key, IMSI, software version, or first day.

    SIM is an IMSI of 15 digits; for IMSIs of other lengths the general path decides. FIRST_DAY is the first day of the
    device in the record of first sightings. If the record lacks the device, or if the sighting must be recorded, the
    general path decides.
    """

    DEVICE = 0
    SIM = 1
    VERSION = 2
    FIRST_DAY = 3


@dataclass(frozen=True, slots=True)
class Program:
    """Policy encoded as 64-bit words, which refer to verdicts and lists by index."""

    words: bytes
    verdicts: tuple[Any, ...]
    verdict_words: Mapping[Any, int]
    """Word of each verdict."""
    lists: tuple[DeviceList | TacsOfTypes, ...]
    index: Index


class _Words:
    """Encoder for the conditions of one policy."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.lists: dict[Hashable, DeviceList | TacsOfTypes] = {}

    def condition(self, name: str, value: Any) -> list[int]:
        """Encode a condition as its code, its number of words, and these words."""
        make = _WORDS.get(name)
        asked, words = (Asked.OTHER, []) if make is None else make(self, value)
        return [asked, len(words), *words]

    def listed(self, asked: Asked, name: str) -> tuple[Asked, list[int]]:
        """Encode a condition that looks up the device in a list."""
        return self._looked_up(asked, name, self.index.lists[name])

    def of_types(self, types: tuple[str, ...]) -> tuple[Asked, list[int]]:
        """Encode a condition on device types as a lookup in the set of their TACs."""
        wanted = frozenset(map(device_type_key, types))
        return self._looked_up(Asked.LISTED, wanted, TacsOfTypes(self.index, wanted))

    def _looked_up(self, asked: Asked, name: Hashable, entries: DeviceList | TacsOfTypes) -> tuple[Asked, list[int]]:
        if name not in self.lists and len(self.lists) == LISTS_MAX:
            return Asked.OTHER, []
        self.lists.setdefault(name, entries)
        return asked, [list(self.lists).index(name)]

    def first_seen(self, earliest: int, latest: int) -> tuple[Asked, list[int]]:
        """Encode the condition that the first day of a device is in the range from `earliest` to `latest`."""
        record = self.index.first_seen
        if record is None or (record.name not in self.lists and len(self.lists) == LISTS_MAX):
            return Asked.OTHER, []
        self.lists.setdefault(record.name, record)
        return _within(Field.FIRST_DAY, [(max(earliest, WAS_LISTED + 1), latest)])

    def first_seen_within(self, days: int) -> tuple[Asked, list[int]]:
        """Encode the condition that a device was first seen at most `days` days ago.

        The encoding is valid only today.
        """
        today = 0 if self.index.first_seen is None else self.index.first_seen.today
        return self.first_seen(today - days, today)

    def not_list(self, name: str) -> tuple[Asked, list[int]]:
        """Encode the condition that a list does not contain the device.

        In a list of IMSIs or pairs this depends on the IMSI, so the general path evaluates the condition.
        """
        return self.listed(Asked.NOT_LISTED, name) if self.index.lists[name].kind == DEVICES else (Asked.OTHER, [])


def days_of(entries: DeviceList | TacsOfTypes) -> tuple[tuple[memoryview, memoryview] | None, int]:
    """Return the arrays of days in a record of first sightings, and the number of today; (None, 0) for other lists."""
    return (entries.day_arrays, entries.today) if isinstance(entries, FirstSeenList) else (None, 0)


def _within(field: Field, stretches: Iterable[tuple[int, int]]) -> tuple[Asked, list[int]]:
    return Asked.WITHIN, [field, *(end for stretch in stretches for end in stretch)]


def _devices(_: _Words, identifiers: tuple[str, ...]) -> tuple[Asked, list[int]]:
    return _within(Field.DEVICE, [(key, key) for key in map(device_key, identifiers) if key < MEID_BASE])


def _identifiers(_: _Words, wrong: tuple[str, ...]) -> tuple[Asked, list[int]]:
    # Faults that the key does not show have no range, as in eir.checks.conditions.
    return _within(Field.DEVICE, [stretch for name in wrong for stretch in STRETCHES.get(name, ())])


def _prefixes(field: Field, prefixes: tuple[str, ...], digits: int, below: int = 1) -> tuple[Asked, list[int]]:
    """Encode the condition that a number with `digits` digits begins with one of the prefixes.

    `below`: number of keys for each number.
    """
    if any(len(prefix) > digits for prefix in prefixes):
        return Asked.OTHER, []
    rooms = [below * 10 ** (digits - len(prefix)) for prefix in prefixes]
    return _within(
        field,
        [(int(prefix) * room, (int(prefix) + 1) * room - 1) for prefix, room in zip(prefixes, rooms, strict=True)],
    )


def names_in_words(names: Iterable[bytes]) -> bytes:
    """Encode names in lower case for a compiled fast path.

    Each name is encoded as its length in one word, and its bytes padded to whole words.
    """
    lower = [name.lower() for name in names]
    return b"".join(len(name).to_bytes(WORD_BYTES, "little") + name + bytes(-len(name) % WORD_BYTES) for name in lower)


def _names(asked: Asked, names: tuple[str, ...]) -> tuple[Asked, list[int]]:
    return asked, np.frombuffer(names_in_words(name.encode() for name in names), "<u8").tolist()


_WORDS: Mapping[str, Callable[[_Words, Any], tuple[Asked, list[int]]]] = {
    "list": lambda words, name: words.listed(Asked.LISTED, name),
    # A device that is not in the list is not bound in it.
    "device_bound_elsewhere": lambda words, name: words.listed(Asked.LISTED, name),
    "not_list": _Words.not_list,
    "device_type": _Words.of_types,
    "imei": _devices,
    "identifier": _identifiers,
    "tac": lambda _, prefixes: _prefixes(Field.DEVICE, prefixes, TAC_DIGITS, SNR_KEYS),
    "imsi": lambda _, prefixes: _prefixes(Field.SIM, prefixes, IMSI_DIGITS_MAX),
    "software_version": lambda _, versions: _within(
        Field.VERSION, [(int(version), int(version)) for version in versions]
    ),
    "origin_host": lambda _, hosts: _names(Asked.ORIGIN_HOST, hosts),
    "origin_realm": lambda _, realms: _names(Asked.ORIGIN_REALM, realms),
    "first_seen_within": _Words.first_seen_within,
    "first_seen_before": lambda words, day: words.first_seen(0, day - 1),
}


def program_of(rules: Iterable[tuple[Mapping[str, Any], Any, bool]], default: Any, index: Index) -> Program:
    """Encode a policy for the compiled fast path.

    `rules`: for each rule its conditions, its verdict, and True if the rule is observed. `default`: verdict if no rule
    matches.
    """
    rules = tuple(rules)
    verdicts = (*(verdict for _, verdict, _ in rules), default)
    known = {verdict: STATUSES.index(verdict.status) << 32 | number for number, verdict in enumerate(verdicts)}
    words, program = _Words(index), list[int]()
    for conditions, verdict, observed in rules:
        condition_words = [word for name, value in conditions.items() for word in words.condition(name, value)]
        program += [ASK_INSTEAD if observed else known[verdict], len(condition_words), *condition_words]
    program.append(known[default])
    return Program(np.array(program, "<u8").tobytes(), verdicts, known, tuple(words.lists.values()), index)
