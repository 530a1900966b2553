"""Last devices of SIMs: rows of a list with the present and the previous device of each SIM.

A row of the table has 64 bits of the SIM: 36 as the key, 17 above the device in the second key, and 11 in the end. Its begin is the time
in Unix seconds at which the SIM came into the device. Its end also has the day of the last recorded sighting, and the number of returns.
So a row takes 18 bytes, and the rows of a SIM are in one block. Rows with arrays of their own (STAY) are sorted by SIM and time.

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

Stays: TypeAlias = NDArray[np.void]
STAY = np.dtype([("sim", "<u8"), ("device", "<u8"), ("changed", "<u4"), ("day", "<u2"), ("returns", "u1")])
"""SIM in a device: SIM, key of the device, time of the change in Unix seconds, day of the last recorded sighting, number of returns."""
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


def stay_rows(stays: Stays) -> TableRows:
    """Convert stays in any order to rows of a table."""
    sims = stays["sim"]
    seconds = (sims >> np.uint64(11) & np.uint64(0x1FFFF)) << np.uint64(DEVICE_BITS) | stays["device"]
    ends = (sims & np.uint64(0x7FF)) << np.uint64(18) | stays["returns"].astype("<u8") << np.uint64(16) | stays["day"]
    return rows_of(sims >> np.uint64(28), seconds=seconds, begins=stays["changed"], ends=ends)


def stays_of(rows: TableRows) -> Stays:
    """Convert rows of a table to stays, sorted by SIM and time."""
    seconds, ends = rows.column(SECONDS), rows.column(ENDS)
    stays = np.empty(len(rows), STAY)
    stays["sim"] = (
        rows.keys << np.uint64(28) | seconds >> np.uint64(DEVICE_BITS) << np.uint64(11) | ends >> np.uint32(18)
    )
    stays["device"] = seconds & np.uint64((1 << DEVICE_BITS) - 1)
    stays["changed"], stays["day"], stays["returns"] = rows.column(BEGINS), ends & 0xFFFF, ends >> np.uint32(16) & 3
    return _sorted(stays)


def stays_of_sims(table: Table, sims: Numbers) -> Stays:
    """Return the stays of SIMs (ascending) in a table."""
    stays = stays_of(table.rows(distinct(block_numbers(sims >> np.uint64(28)))))
    return stays[np.isin(stays["sim"], sims)]


def present_stays(stays: Stays, sims: Numbers) -> tuple[Stays, Stays]:
    """Return the present and the previous stay of each SIM (ascending); zeros where there is none."""
    ends = np.searchsorted(stays["sim"], sims, "right")
    padded = np.concatenate([np.zeros(2, STAY), stays])
    found = tuple(padded[ends + 1 - back] for back in (0, 1))
    for each in found:
        each[each["sim"] != sims] = np.zeros(1, STAY)
    return found[0], found[1]


def stays_after(stays: Stays, sightings: NDArray[np.void], now: float) -> Stays:
    """Return the stays of the SIMs whose stays change by sightings, after these sightings.

    Args:
        stays: stays of these SIMs.
        sightings: one sighting (SIGHTING) of each SIM, sorted by SIM.
        now: clock in Unix seconds.
    """
    present, previous = present_stays(stays, sightings["sim"])
    days, is_same = sightings["time"] // DAY_S, present["device"] == sightings["device"]
    is_later = (sightings["time"] > present["changed"]) | (present["changed"] > now + AHEAD_S)
    is_change = ~is_same & is_later
    is_written = is_change | (is_same & (days >= present["day"] + REFRESH_DAYS))
    came = np.zeros(len(sightings), STAY)
    came["sim"], came["device"], came["changed"] = sightings["sim"], sightings["device"], sightings["time"]
    is_return = previous["device"] == sightings["device"]
    came["returns"] = np.where(is_return, np.minimum(present["returns"] + 1, DUAL_USE), 0)
    after, before = np.where(is_change, came, present), np.where(is_change, present, previous)
    after["day"] = days
    before["changed"] = np.minimum(before["changed"], after["changed"] - 1)  # also of a stay from the future
    before = before[is_written & (before["device"] > 0) & (now < after["changed"] + np.int64(PREVIOUS_S))]
    return _sorted(np.concatenate([after[is_written], before]))


def _sorted(stays: Stays) -> Stays:
    """Sort stays by SIM and time."""
    return stays[np.lexsort((stays["changed"], stays["sim"]))]


def latest_stays(stays: Stays) -> Stays:
    """Merge stays from several tables: the two devices of each SIM into which it came last."""
    stays = stays[np.lexsort((stays["day"], stays["changed"], stays["device"], stays["sim"]))]
    stays = _sorted(stays[is_first(stays["sim"][::-1], stays["device"][::-1])[::-1]])
    is_latest = np.ones(len(stays), bool)
    is_latest[:-2] = stays["sim"][2:] != stays["sim"][:-2]
    return stays[is_latest]


def ended_stays(stays: Stays, now: float, remember: int) -> Stays:
    """Return the stays to remove: previous ones after PREVIOUS_S, and all of SIMs without a sighting for `remember` days.

    `stays`: all stays of some SIMs. Sightings are recorded every REFRESH_DAYS, so the days count from the last day that is not recorded.
    """
    sims = distinct(stays["sim"])
    present, previous = present_stays(stays, sims)
    is_unseen = now // DAY_S >= present["day"] + np.int64(remember + REFRESH_DAYS)
    is_over = is_unseen | (now >= present["changed"] + np.int64(PREVIOUS_S))
    is_previous = is_over & (previous["device"] > 0)
    return _sorted(np.concatenate([present[is_unseen], previous[is_previous]]))


def changed_stays(added: Stays, removed: Stays) -> tuple[Stays, Stays]:
    """Return from the stays that a change of the list adds and removes the new stay of each SIM in another device, and the stay before it.

    Stays of a new last day are left out. The stay before it has zeros for the first device of a SIM. Both are in the order of time.
    """
    sims = distinct(added["sim"])
    (present, previous), (held, _) = present_stays(added, sims), present_stays(removed, sims)
    is_new = (present["device"] != held["device"]) | (present["changed"] != held["changed"])
    order = np.flatnonzero(is_new)[np.argsort(present["changed"][is_new], kind="stable")]
    return present[order], previous[order]
