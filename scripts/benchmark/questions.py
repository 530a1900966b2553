"""Questions: IMEIs with their expected answers, in the form that load.c reads, and lists that contain some of them.

TACs are drawn by Zipf's law: the n-th most common model has 1/n of the phones of the first.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KEYS_PER_TAC = 1_000_000
IMEI_DIGITS, IMSI_DIGITS = 14, 15
IMSI_MIN, IMSIS = 999_990_000_000_000, 10_000_000_000
"""999 99 is a test network; the generator's SIMs are of 001 01."""
WHITELISTED, BLACKLISTED = b"0", b"1"
PART_ROWS = 500_000
QUICK_QUESTIONS = 20_000
"""Number of questions of runs whose figures are not valid."""

Keys = NDArray[np.int64]


class Scattered(NamedTuple):
    """Keys of a list in ascending order, and all TACs of the questions."""

    keys: Keys
    tacs: Keys


def scattered(entries: int, tacs: int, seed: int = 14) -> Scattered:
    """Return `entries` keys spread evenly over `tacs` TACs, the same ones each time."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(98_000_000, tacs, replace=False) + 1_000_000)
    keys = np.empty(0, np.int64)
    while len(keys) < entries:
        keys = np.concatenate((keys, _drawn(rng, chosen, entries - len(keys))))
        keys.sort()
        keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]  # 20 times as fast as numpy.unique
    return Scattered(keys, chosen)


def _drawn(rng: np.random.Generator, tacs: Keys, count: int) -> Keys:
    return tacs[rng.integers(0, len(tacs), count)] * KEYS_PER_TAC + rng.integers(0, KEYS_PER_TAC, count)


def write_questions(path: Path, listed: Scattered, *, count: int, hits: float, seed: int = 41) -> None:
    """Write about `count` questions; the share `hits` is about blacklisted devices."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(listed.tacs) + 1)
    by_rank = rng.permutation(listed.tacs)
    keys = by_rank[rng.choice(len(by_rank), count, p=share / share.sum())] * KEYS_PER_TAC + rng.integers(
        0, KEYS_PER_TAC, count
    )
    hit = rng.random(count) < hits
    keys[hit] = rng.choice(listed.keys, int(hit.sum()))
    is_listed = listed.keys[np.searchsorted(listed.keys, keys).clip(max=len(listed.keys) - 1)] == keys
    if not hits:
        keys, is_listed = keys[~is_listed], is_listed[~is_listed]
    rows = np.full((len(keys), IMEI_DIGITS + 2), ord("\n"), np.uint8)
    _digits(keys, rows[:, :IMEI_DIGITS])
    rows[:, IMEI_DIGITS] = np.where(is_listed, ord(BLACKLISTED), ord(WHITELISTED))
    path.write_bytes(rows.tobytes())


def write_list(path: Path, keys: Keys, seed: int = 5, *, with_imsi: bool = False) -> None:
    """Write a data file of a release with these devices, in no order; `with_imsi`: each with an IMSI that no question has."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(keys))
    with path.open("wb") as file:
        file.write(b"imei,imsi\n" if with_imsi else b"imei\n")
        for first in range(0, len(keys), PART_ROWS):
            part = keys[order[first : first + PART_ROWS]]
            rows = np.full((len(part), IMEI_DIGITS + 1 + (1 + IMSI_DIGITS if with_imsi else 0)), ord("\n"), np.uint8)
            _digits(part, rows[:, :IMEI_DIGITS])
            if with_imsi:
                rows[:, IMEI_DIGITS] = ord(",")
                _digits(IMSI_MIN + rng.integers(0, IMSIS, len(part)), rows[:, IMEI_DIGITS + 1 : -1])
            file.write(rows.tobytes())


def _digits(numbers: Keys, columns: NDArray[np.uint8]) -> None:
    """Return one digit in each column."""
    rest = numbers
    for column in range(columns.shape[1] - 1, -1, -1):
        rest, columns[:, column] = rest // 10, rest % 10 + ord("0")
