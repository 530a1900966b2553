"""List of the last devices of SIMs on one node: a learned list whose rows come from the batches of the recorder.

Sightings that the list lacks wait in memory and in a file until they are stored. Each change of the list has at most one change of
device for each SIM, so that a reader of its log sees all of them. Rows of one SIM from several nodes merge to its latest devices.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.device import key_text
from eir.disk import write_file
from eir.errors import Report, StoreError
from eir.lists.follow.learned_list import FORGOTTEN_MIN, FORGOTTEN_SHARE, LearnedList
from eir.lists.log.change import LEARN, Head, utc_text
from eir.lists.log.reader import LoggedList, empty_content
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ListUpdate
from eir.lists.record.first_days import DAY_S, batches
from eir.lists.record.last_devices import (
    PAIRING,
    REFRESH_DAYS,
    SIGHTING,
    Pairings,
    changed_pairings,
    ended_pairings,
    key_of_form,
    latest_pairings,
    pairing_rows,
    pairings_after,
    pairings_of,
    pairings_of_sims,
    present_pairings,
    sim_of,
)
from eir.lists.record.settings import LAST_DEVICE, LastDeviceSettings
from eir.lists.table.columns import distinct, is_first
from eir.lists.table.table import Table, change, difference

SimSightings = Sequence[tuple[str, bytes]]
"""Sightings of SIMs in devices (SIGHTING) from each peer."""
Sightings: TypeAlias = NDArray[np.void]
NO_SIGHTINGS = np.empty(0, SIGHTING)
CHANGED, REMOVED = "changed", "removed"
"""Reasons for a change of the list: a SIM in another device, and a pairing that ended long ago."""


class LastDevices(LearnedList):
    """List of the last devices of SIMs on one node.

    Args:
        settings: settings of the list.
        store: store of all lists.
        folder: state folder.
        now: trusted clock in Unix seconds.
        who: name of this node in changes.
        report: logs events.
        held: returns the newest verified content of each list of this node.
    """

    def __init__(
        self, settings: LastDeviceSettings, store: LogStore, folder: Path, *, now: Callable[[], float], who: str, report: Report,
        held: Callable[[], Mapping[str, LoggedList]],
    ) -> None:  # fmt: skip
        path = folder / "copies" / f"{settings.list}.learned"
        super().__init__(settings.list, LAST_DEVICE, store, path, who=who, report=report, held=held)
        self.unrecorded: Counter[str] = Counter()
        """Number of sightings of new SIMs above the limit of their peer."""
        self._settings, self._clock = settings, now
        self._queued: list[tuple[str, bytes]] = []
        self._waiting = NO_SIGHTINGS
        """Sightings that the list lacks, sorted by SIM and time."""
        self._new_sims: dict[str, int] = {}
        """Number of new SIMs of this day by peer."""
        self._day, self._is_cleaned = 0, False
        """Present day, and True if the rows that ended were removed on this day."""
        self._counts: Counter[str] = Counter()
        """Counts of the change that is being written."""

    def note_sightings(self, sightings: SimSightings) -> None:
        """Queue sightings from the recorder. They survive a kill of this process once this method has returned."""
        self._queued += sightings
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.writelines(octets for _, octets in sightings)
        except OSError as error:
            self._failed("copy_io", error)

    async def open(self) -> None:
        """Read the file with the sightings that the store lacks."""
        with suppress(FileNotFoundError):
            octets = self._path.read_bytes()
            self._queued.append(("", octets[: len(octets) // SIGHTING.itemsize * SIGHTING.itemsize]))

    async def round(self) -> None:
        """Write the changes that the queued sightings make."""
        async with self._lock:
            queued, self._queued = self._queued, []
            content, today = self._content(self.merging), int(self._clock() // DAY_S)
            if today != self._day:
                self._day, self._new_sims, self._is_cleaned = today, {}, False
            await asyncio.to_thread(self._add, content.table, queued)
            if len(self._waiting) or not self._is_cleaned:
                self._writer.content = content
                if await self._attempt(self._writer.write(self._update)):
                    self._waiting, self._is_cleaned = self._waiting[~is_first(self._waiting["sim"])], True
                    self.changes += self._counts
                self._writer.content = empty_content(LAST_DEVICE)
            if queued:
                try:
                    write_file(
                        self._path,
                        b"".join([self._waiting.tobytes(), *(octets for _, octets in self._queued)]),
                        mode=0o600,
                    )
                except OSError as error:
                    self._failed("copy_io", error)

    def find(self, imsi: str) -> list[dict[str, str]]:
        """Return the devices of a SIM, the present one last: IMEI, time of the change, and day of the last recorded sighting.

        Raises:
            EirError: if the text is not an IMSI, or the SIMs of the list have another key than this node.
        """
        content = self._content(self.merging)
        sim = sim_of(imsi, key_of_form(content.head.registered, self._settings.key_file))
        return [
            {
                "imei": key_text(int(pairing["device"])),
                "since": utc_text(datetime.fromtimestamp(int(pairing["changed"]), UTC)),
                "last_day": utc_text(datetime.fromtimestamp(int(pairing["day"]) * DAY_S, UTC))[:10],
            }
            for pairing in pairings_of_sims(content.table, np.array([sim], "<u8"))
        ]

    def _add(self, table: Table, queued: SimSightings) -> None:
        """Add queued sightings to those that wait. Left out are those in the present device, and new SIMs above the limit of a peer."""
        if not queued:
            return
        now, waiting = self._clock(), [self._waiting]
        present = self._present(table, *(np.frombuffer(octets, SIGHTING) for _, octets in queued))
        known = np.union1d(present["sim"], self._waiting["sim"])
        for peer, octets in queued:
            sightings = np.frombuffer(octets, SIGHTING).copy()
            np.minimum(sightings["time"], int(now), out=sightings["time"])
            new = np.setdiff1d(sightings["sim"], known)
            count = self._new_sims.get(peer, 0)
            room = max(self._settings.new_per_peer - count, 0)
            self._new_sims[peer] = count + min(room, len(new))
            is_left_out = np.isin(sightings["sim"], new[room:])
            if len(new) > room:
                self.unrecorded[peer] += int(is_left_out.sum())
            waiting.append(sightings[~is_left_out])
        self._waiting = _without_repeats(np.concatenate(waiting), present)

    def _present(self, table: Table, *sightings: Sightings) -> Pairings:
        """Return the present pairing of each SIM of sightings that has one."""
        sims = distinct(np.concatenate([self._waiting["sim"], *(each["sim"] for each in sightings)]))
        present, _ = present_pairings(pairings_of_sims(table, sims), sims)
        return present[present["device"] > 0]

    def _update(self, content: LoggedList) -> ListUpdate | None:
        """Return the change that the first waiting sighting of each SIM makes, with the removal of ended rows once in a day."""
        table, now = content.table, self._clock()
        sightings = self._waiting[is_first(self._waiting["sim"])]
        pairings = pairings_of_sims(table, sightings["sim"])
        added = pairings_after(pairings, sightings, now)
        removed = pairings[np.isin(pairings["sim"], added["sim"])]
        ended = pairings[:0] if self._is_cleaned else self._ended(table, now)
        ended = ended[~np.isin(ended["sim"], added["sim"])]
        self._counts = Counter({CHANGED: len(changed_pairings(added, removed)[0]), REMOVED: len(ended)})
        if not len(added) and not len(ended):
            return None
        return ListUpdate(what=LEARN, added=pairing_rows(added), removed=pairing_rows(np.concatenate([removed, ended])))

    def _ended(self, table: Table, now: float) -> Pairings:
        """Return the pairings to remove today, at most a share of the list. The order keeps the present pairing of a SIM longer than the previous one."""
        remember, room = self._settings.remember, max(FORGOTTEN_MIN, len(table) // FORGOTTEN_SHARE)
        parts = [ended_pairings(pairings_of(rows), now, remember) for rows in batches(table)]
        return np.concatenate([np.empty(0, PAIRING), *parts])[:room]

    def _merged_with(self, table: Table, held: Table) -> Table:
        lacking = pairings_of(difference(table, held)[0])
        stored = pairings_of_sims(table, distinct(lacking["sim"]))
        return change(
            table, pairing_rows(latest_pairings(np.concatenate([stored, lacking]))), pairing_rows(stored)
        ).table

    def _registered_after(self, held: Head, stored: Head) -> tuple[str, ...]:
        if stored.registered and held.registered != stored.registered:
            fault = "the store has SIMs with another key than this node; give all nodes one key_file"
            raise StoreError(
                "kind", f"list {self.merging}: {fault}, and delete the list in the store or the copy of this node"
            )
        return held.registered

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _without_repeats(sightings: Sightings, present: Pairings) -> Sightings:
    """Sort sightings by SIM and time, and leave out those in the device before, which is at first that of the present pairing."""
    held = np.zeros(len(present), SIGHTING)
    held["sim"], held["device"], held["time"] = present["sim"], present["device"], present["changed"]
    every = np.concatenate([held, sightings])
    days = np.concatenate([present["day"], sightings["time"] // DAY_S]).astype(np.int64)
    is_sighting = np.arange(len(every)) >= len(held)
    order = np.lexsort((is_sighting, every["time"], every["sim"]))
    every, days = every[order], days[order]
    is_kept = is_first(every["sim"], every["device"])
    is_kept[1:] |= days[1:] >= days[:-1] + REFRESH_DAYS
    return every[is_kept & is_sighting[order]]
