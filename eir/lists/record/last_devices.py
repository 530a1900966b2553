"""Last devices of SIMs: rows of a list with the present and the previous device of each SIM. A row is a pairing of a SIM with a device.

A row of the table has 64 bits of the SIM: 36 as the key, 17 above the device in the second key, and 11 in the end. Its begin is the time
in Unix seconds at which the SIM came into the device. Its end also has the day of the last recorded sighting, and the number of returns.
So a row takes 18 bytes, and the rows of a SIM are in one block. Pairings as arrays (PAIRING) are sorted by SIM and time.

A SIM is a hash with a key that all nodes share, or the IMSI, whose digits are spread over 64 bits by a multiplication.
"""

from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.device import imsi_key, imsi_text
from eir.errors import EirError
from eir.lists.record.first_days import DAY_S
from eir.lists.table.columns import (
    BEGINS,
    ENDS,
    SECONDS,
    Numbers,
    TableRows,
    block_numbers,
    distinct,
    is_first,
    rows_of,
)
from eir.lists.table.table import Table

Pairings: TypeAlias = NDArray[np.void]
PAIRING = np.dtype([("sim", "<u8"), ("device", "<u8"), ("changed", "<u4"), ("day", "<u2"), ("returns", "u1")])
"""Pairing of a SIM with a device: SIM, key of the device, time of the change in Unix seconds, day of the last recorded sighting, number of returns."""
SIGHTING = np.dtype([("sim", "<u8"), ("device", "<u8"), ("time", "<u4")])
DEVICE_BITS = 47
"""Bits of the key of an IMEI."""
DUAL_USE = 2
"""Number of returns to the previous device from which a SIM is in dual use."""
REFRESH_DAYS = 30
"""Days after which a sighting in the same device is recorded."""
PREVIOUS_S = 30 * DAY_S
"""Seconds after the change for which the previous device of a SIM stays."""
AHEAD_S = 600
"""Seconds ahead of the clock above which a recorded change does not exclude earlier ones."""
BY_IMSI = ("imsi",)
"""Form of SIMs that are IMSIs."""
_FILE, _STORE = "file", "store"
_SPREAD = 0x9E3779B97F4A7C15
_GATHER, _MASK = pow(_SPREAD, -1, 1 << 64), (1 << 64) - 1


def sim_key(octets: bytes) -> bytes:
    """Return the key of the hashes of SIMs from the content of a key file."""
    return sha256(octets.strip()).digest()


def file_form(key_file: Path) -> tuple[str]:
    """Return the form of SIMs (Head.registered) that are hashed with the key in a file.

    Raises:
        EirError: if the file cannot be read.
    """
    return (f"{_FILE} {sha256(_read_key(key_file)).hexdigest()[:16]}",)


def new_form(key: bytes) -> tuple[str]:
    """Return the form of SIMs that are hashed with a key in the store."""
    return (f"{_STORE} {key.hex()}",)


def key_of_form(form: Sequence[str], key_file: Path | None) -> bytes | None:
    """Return the key of SIMs of a form; None for IMSIs.

    Raises:
        EirError: if the key is not that of the file.
    """
    kind, _, text = "".join(form).partition(" ")
    if kind == _STORE:
        return bytes.fromhex(text)
    if kind != _FILE:
        return None
    if key_file is None or file_form(key_file) != tuple(form):
        raise EirError(
            "the SIMs of the list of last devices have another key: set last_device.key_file as on the other nodes"
        )
    return _read_key(key_file)


def _read_key(key_file: Path) -> bytes:
    try:
        return sim_key(key_file.read_bytes())
    except OSError as error:
        raise EirError(f"{key_file}: {error.strerror}") from None


def sim_of(imsi: str, key: bytes | None) -> int:
    """Return the 64 bits of a SIM: a keyed hash, or without a key the IMSI.

    Raises:
        IdentifierError: if the text is not an IMSI.
    """
    number = imsi_key(imsi)
    if key is None:
        return number * _SPREAD & _MASK
    return int.from_bytes(blake2b(imsi.encode(), key=key, digest_size=8).digest())


def sim_text(sim: int, key: bytes | None) -> str:
    """Return the name of a SIM in events: the hash in hexadecimal digits, or without a key the IMSI."""
    return imsi_text(sim * _GATHER & _MASK) if key is None else f"{sim:016x}"


def pairing_rows(pairings: Pairings) -> TableRows:
    """Convert pairings in any order to rows of a table."""
    sims = pairings["sim"]
    seconds = (sims >> np.uint64(11) & np.uint64(0x1FFFF)) << np.uint64(DEVICE_BITS) | pairings["device"]
    ends = (
        (sims & np.uint64(0x7FF)) << np.uint64(18)
        | pairings["returns"].astype("<u8") << np.uint64(16)
        | pairings["day"]
    )
    return rows_of(sims >> np.uint64(28), seconds=seconds, begins=pairings["changed"], ends=ends)


def pairings_of(rows: TableRows) -> Pairings:
    """Convert rows of a table to pairings, sorted by SIM and time."""
    seconds, ends = rows.column(SECONDS), rows.column(ENDS)
    pairings = np.empty(len(rows), PAIRING)
    pairings["sim"] = (
        rows.keys << np.uint64(28) | seconds >> np.uint64(DEVICE_BITS) << np.uint64(11) | ends >> np.uint32(18)
    )
    pairings["device"] = seconds & np.uint64((1 << DEVICE_BITS) - 1)
    pairings["changed"], pairings["day"], pairings["returns"] = (
        rows.column(BEGINS),
        ends & 0xFFFF,
        ends >> np.uint32(16) & 3,
    )
    return _sorted(pairings)


def pairings_of_sims(table: Table, sims: Numbers) -> Pairings:
    """Return the pairings of SIMs (ascending) in a table."""
    pairings = pairings_of(table.rows(distinct(block_numbers(sims >> np.uint64(28)))))
    return pairings[np.isin(pairings["sim"], sims)]


def present_pairings(pairings: Pairings, sims: Numbers) -> tuple[Pairings, Pairings]:
    """Return the present and the previous pairing of each SIM (ascending), or zeros for a SIM without one."""
    ends = np.searchsorted(pairings["sim"], sims, "right")
    padded = np.concatenate([np.zeros(2, PAIRING), pairings])
    found = tuple(padded[ends + 1 - back] for back in (0, 1))
    for each in found:
        each[each["sim"] != sims] = np.zeros(1, PAIRING)
    return found[0], found[1]


def pairings_after(pairings: Pairings, sightings: NDArray[np.void], now: float) -> Pairings:
    """Return the new pairings of each SIM for which a sighting has another device, or a day to record.

    Args:
        pairings: stored pairings of the sighted SIMs.
        sightings: one sighting (SIGHTING) of each SIM, sorted by SIM.
        now: clock in Unix seconds.
    """
    present, previous = present_pairings(pairings, sightings["sim"])
    days, is_same = sightings["time"] // DAY_S, present["device"] == sightings["device"]
    is_later = (sightings["time"] > present["changed"]) | (present["changed"] > now + AHEAD_S)
    is_change = ~is_same & is_later
    is_written = is_change | (is_same & (days >= present["day"] + REFRESH_DAYS))
    came = np.zeros(len(sightings), PAIRING)
    came["sim"], came["device"], came["changed"] = sightings["sim"], sightings["device"], sightings["time"]
    is_return = previous["device"] == sightings["device"]
    came["returns"] = np.where(is_return, np.minimum(present["returns"] + 1, DUAL_USE), 0)
    after, before = np.where(is_change, came, present), np.where(is_change, present, previous)
    after["day"] = days
    before["changed"] = np.minimum(before["changed"], after["changed"] - 1)  # also of a pairing from the future
    before = before[is_written & (before["device"] > 0) & (now < after["changed"] + np.int64(PREVIOUS_S))]
    return _sorted(np.concatenate([after[is_written], before]))


def _sorted(pairings: Pairings) -> Pairings:
    """Sort pairings by SIM and time."""
    return pairings[np.lexsort((pairings["changed"], pairings["sim"]))]


def latest_pairings(pairings: Pairings) -> Pairings:
    """Merge pairings from several tables: the two latest devices of each SIM."""
    pairings = pairings[np.lexsort((pairings["day"], pairings["changed"], pairings["device"], pairings["sim"]))]
    pairings = _sorted(pairings[is_first(pairings["sim"][::-1], pairings["device"][::-1])[::-1]])
    is_latest = np.ones(len(pairings), bool)
    is_latest[:-2] = pairings["sim"][2:] != pairings["sim"][:-2]
    return pairings[is_latest]


def ended_pairings(pairings: Pairings, now: float, remember: int) -> Pairings:
    """Return the pairings to remove: previous ones after PREVIOUS_S, and all of SIMs without a sighting for `remember` days.

    `pairings`: all pairings of some SIMs. Sightings are recorded every REFRESH_DAYS, so the days count from the last day that is not recorded.
    """
    sims = distinct(pairings["sim"])
    present, previous = present_pairings(pairings, sims)
    is_unseen = now // DAY_S >= present["day"] + np.int64(remember + REFRESH_DAYS)
    is_over = is_unseen | (now >= present["changed"] + np.int64(PREVIOUS_S))
    is_previous = is_over & (previous["device"] > 0)
    return _sorted(np.concatenate([present[is_unseen], previous[is_previous]]))


def changed_pairings(added: Pairings, removed: Pairings) -> tuple[Pairings, Pairings]:
    """Return the new pairing of each SIM that a change of the list pairs with another device, and its previous pairing, in the order of time.

    `added`, `removed`: pairings that the change adds and removes. A change that only records a day has no new pairing. For the first device
    of a SIM the previous pairing is zeros.
    """
    sims = distinct(added["sim"])
    (present, previous), (held, _) = present_pairings(added, sims), present_pairings(removed, sims)
    is_new = (present["device"] != held["device"]) | (present["changed"] != held["changed"])
    order = np.flatnonzero(is_new)[np.argsort(present["changed"][is_new], kind="stable")]
    return present[order], previous[order]
