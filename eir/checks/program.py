"""Encoder of a policy into 64-bit words, which the compiled fast path evaluates for any protocol.

A rule is encoded as the word of its verdict, the number of words that follow, and its conditions. An observed rule has ASK_INSTEAD
in place of its verdict, because the general path must count a match. A condition is encoded as its code (`ConditionCode`), the number
of words that follow, and these words. The last word of the program is the verdict if no rule matches.

The word of a verdict has the verdict's number in the lower half and the index of its status in the upper half. If a condition has no
encoding, the general path (`decide`) evaluates the rule.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any, Final

import numpy as np

from eir.checks.question import KEY_FAULTS, KeyRange
from eir.checks.settings import Status
from eir.device import IMSI_LENGTHS, MEID_BASE, SNR_KEYS, TAC_DIGITS, device_key, device_type_key
from eir.lists.images.index import DeviceList, FirstSeenList, Index, TacsOfTypes
from eir.lists.record.first_days import PERIOD_DAYS, PERIODS_BEGIN, WAS_LISTED
from eir.lists.record.settings import DEVICES

ASK_INSTEAD: Final = (1 << 64) - 1
"""Word that sends a check to the general path."""
LISTS_MAX = 16
"""Maximum number of lists in a program."""
VERDICTS_MAX = 1024
"""Maximum number of verdicts in a program."""
WORD_BYTES = 8
STATUSES: Final = tuple(Status)
IMSI_DIGITS_MAX = IMSI_LENGTHS[-1]
PERIODS: Final = {"PERIOD_DAYS": PERIOD_DAYS, "PERIODS_BEGIN": PERIODS_BEGIN}
"""Constants with which the compiled lookup decides whether a sighting must be recorded (eir.lists.record.first_days)."""


class ConditionCode(IntEnum):
    """Code of a condition in an encoded policy."""

    OTHER = 0
    """Condition that only the general path can evaluate."""
    LISTED = 1
    """Device is in a list; one word: number of the list."""
    NOT_LISTED = 2
    """Device is not in a list; one word: number of the list."""
    WITHIN = 3
    """Field is in a range; words: the field, then the first and last number of each range."""
    ORIGIN_HOST = 4
    """Origin-Host is one of the names; words as of `encode_names`."""
    ORIGIN_REALM = 5
    """Origin-Realm is one of the names; words as of `encode_names`."""


Encoded = tuple[ConditionCode, list[int]]
"""Operation code of a condition, and its operand words."""
_OTHER: Encoded = ConditionCode.OTHER, []

Entries = DeviceList | TacsOfTypes
"""List in which a program looks up devices."""


class Field(IntEnum):
    """Property of a check that an encoded condition compares as a number, such as the IMSI."""

    DEVICE = 0
    """Key of the device."""
    SIM = 1
    """IMSI of 15 digits. For IMSIs of other lengths the general path decides."""
    VERSION = 2
    """Software version."""
    FIRST_DAY = 3
    """First day of the device in the record of first sightings.

    If the record lacks the device, or if this sighting must be recorded, the general path decides.
    """


@dataclass(frozen=True, slots=True)
class Program:
    """Policy encoded as 64-bit words, which refer to verdicts and lists by number."""

    words: bytes
    verdicts: tuple[Any, ...]
    """Verdicts by number."""
    verdict_words: Mapping[Any, int]
    """Verdict → its word."""
    lists: tuple[Entries, ...]
    """Lists by number."""
    index: Index


class _ConditionEncoder:
    """Encoder of the conditions in one policy. It gives each list in the conditions a number."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.lists: dict[Hashable, Entries] = {}
        """Lists in the order of their numbers, by name, or by device types."""

    def encode(self, name: str, value: Any) -> list[int]:
        """Encode a condition of a rule as the 64-bit words that the compiled fast path evaluates.

        Returns:
            Operation code (`ConditionCode`), count of the operand words, and the operand words.
        """
        encode = _ENCODERS.get(name)
        code, words = _OTHER if encode is None else encode(self, value)
        return [code, len(words), *words]

    def listed(self, name: str) -> Encoded:
        """Encode the condition that the device is in a list."""
        return self._lookup(ConditionCode.LISTED, name, self.index.lists[name])

    def not_listed(self, name: str) -> Encoded:
        """Encode the condition that the device is not in a list.

        In a list of IMSIs or pairs this depends on the IMSI, so the general path evaluates the condition.
        """
        entries = self.index.lists[name]
        if entries.kind != DEVICES:
            return _OTHER
        return self._lookup(ConditionCode.NOT_LISTED, name, entries)

    def device_types(self, types: tuple[str, ...]) -> Encoded:
        """Encode the condition that the device has one of these types. The lookup uses the set of all TACs of these types."""
        type_keys = frozenset(map(device_type_key, types))
        return self._lookup(ConditionCode.LISTED, type_keys, TacsOfTypes(self.index, type_keys))

    def _lookup(self, code: ConditionCode, name: Hashable, entries: Entries) -> Encoded:
        if not self._add(name, entries):
            return _OTHER
        number = list(self.lists).index(name)
        return code, [number]

    def _add(self, name: Hashable, entries: Entries) -> bool:
        """Add a list to the encoded policy; return False if the policy already has its maximum number of lists."""
        if name not in self.lists:
            if len(self.lists) == LISTS_MAX:
                return False
            self.lists[name] = entries
        return True

    def first_day(self, earliest: int, latest: int) -> Encoded:
        """Encode the condition that a device was first seen on a day from `earliest` to `latest`."""
        record = self.index.first_seen
        if record is None or not self._add(record.name, record):
            return _OTHER
        days = max(earliest, WAS_LISTED + 1), latest
        return _within(Field.FIRST_DAY, [days])

    def first_seen_within(self, days: int) -> Encoded:
        """Encode the condition that a device was first seen at most `days` days ago.

        The encoding is valid only today.
        """
        record = self.index.first_seen
        today = 0 if record is None else record.today
        return self.first_day(today - days, today)


def sightings_and_today(entries: Entries) -> tuple[memoryview | None, int]:
    """Return two values for the fast path: the arrays of a record of first sightings, and today as days since 1970-01-01.

    If the list is not a record of first sightings, the result is (None, 0).
    """
    if isinstance(entries, FirstSeenList):
        return entries.sightings, entries.today
    return None, 0


def _within(field: Field, ranges: Iterable[KeyRange]) -> Encoded:
    return ConditionCode.WITHIN, [field, *chain.from_iterable(ranges)]


def _devices(_: _ConditionEncoder, identifiers: tuple[str, ...]) -> Encoded:
    keys = map(device_key, identifiers)
    return _within(Field.DEVICE, [(key, key) for key in keys if key < MEID_BASE])


def _identifiers(_: _ConditionEncoder, faults: tuple[str, ...]) -> Encoded:
    # Faults that the key does not reveal have no range, as in eir.checks.conditions.
    return _within(Field.DEVICE, [key_range for fault in faults for key_range in KEY_FAULTS.get(fault, ())])


def _versions(_: _ConditionEncoder, versions: tuple[str, ...]) -> Encoded:
    numbers = map(int, versions)
    return _within(Field.VERSION, [(number, number) for number in numbers])


def _tacs(_: _ConditionEncoder, prefixes: tuple[str, ...]) -> Encoded:
    return _prefixes(Field.DEVICE, prefixes, TAC_DIGITS, SNR_KEYS)


def _imsis(_: _ConditionEncoder, prefixes: tuple[str, ...]) -> Encoded:
    return _prefixes(Field.SIM, prefixes, IMSI_DIGITS_MAX, 1)


def _prefixes(field: Field, prefixes: tuple[str, ...], digits: int, keys: int) -> Encoded:
    """Encode the condition that a number with `digits` digits begins with one of the prefixes.

    `keys`: number of keys for each such number.
    """
    ranges = []
    for prefix in prefixes:
        missing_digits = digits - len(prefix)
        if missing_digits < 0:
            return _OTHER
        size = keys * 10**missing_digits
        first = int(prefix) * size
        ranges.append((first, first + size - 1))
    return _within(field, ranges)


def encode_names(names: Iterable[bytes]) -> bytes:
    """Encode names, such as host names, in lower case for the compiled fast path.

    Each name is encoded as its length in one word, and its bytes padded to whole words.
    """
    encoded = b""
    for name in names:
        length = len(name)
        padding = bytes(-length % WORD_BYTES)
        encoded += length.to_bytes(WORD_BYTES, "little") + name.lower() + padding
    return encoded


def _names(code: ConditionCode, names: tuple[str, ...]) -> Encoded:
    encoded = encode_names(map(str.encode, names))
    return code, np.frombuffer(encoded, "<u8").tolist()


_ENCODERS: Mapping[str, Callable[[_ConditionEncoder, Any], Encoded]] = {
    "list": _ConditionEncoder.listed,
    # The condition holds only for devices in the list. The fast path leaves all devices in a list of pairs to the general path.
    "device_bound_elsewhere": _ConditionEncoder.listed,
    "not_list": _ConditionEncoder.not_listed,
    "device_type": _ConditionEncoder.device_types,
    "imei": _devices,
    "identifier": _identifiers,
    "tac": _tacs,
    "imsi": _imsis,
    "software_version": _versions,
    "origin_host": lambda _, hosts: _names(ConditionCode.ORIGIN_HOST, hosts),
    "origin_realm": lambda _, realms: _names(ConditionCode.ORIGIN_REALM, realms),
    "first_seen_within": _ConditionEncoder.first_seen_within,
    "first_seen_before": lambda encoder, day: encoder.first_day(0, day - 1),
}
"""Name of a condition → function that encodes the condition's value."""


def encode_policy(rules: Sequence[tuple[Mapping[str, Any], Any, bool]], default: Any, index: Index) -> Program:
    """Encode the rules and the default answer of a policy for the compiled fast path.

    Args:
        rules: for each rule its conditions, its verdict, and True if the rule is observed.
        default: verdict if no rule matches.
        index: lists of the conditions.
    """
    verdicts = (*(verdict for _, verdict, _ in rules), default)
    verdict_words = {}
    for number, verdict in enumerate(verdicts):
        verdict_words[verdict] = STATUSES.index(verdict.status) << 32 | number
    encoder = _ConditionEncoder(index)
    program: list[int] = []
    for conditions, verdict, is_observed in rules:
        condition_words: list[int] = []
        for name, value in conditions.items():
            condition_words += encoder.encode(name, value)
        first_word = ASK_INSTEAD if is_observed else verdict_words[verdict]
        program += [first_word, len(condition_words), *condition_words]
    program.append(verdict_words[default])
    words = np.array(program, "<u8").tobytes()
    return Program(words, verdicts, verdict_words, tuple(encoder.lists.values()), index)
