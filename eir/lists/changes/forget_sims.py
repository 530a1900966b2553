"""Removal of SIMs from the list of last devices."""

from collections.abc import Sequence

import numpy as np

from eir.lists.log.change import FORGET
from eir.lists.log.reader import LoggedList
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.last_devices import pairing_rows, pairings_of_sims
from eir.lists.record.settings import LAST_DEVICE
from eir.lists.table.columns import NO_ROWS
from eir.lists.table.table import change


async def forget_sims(sims: Sequence[int], name: str, store: LogStore, *, who: str) -> int:
    """Remove SIMs from the list of last devices, with the rows of all changes before; return the number of removed rows.

    Raises:
        GenerationConflict: if other writers changed the list at each attempt.
        StoreError: if the store fails.
    """

    def make(content: LoggedList) -> ListUpdate | None:
        pairings = pairings_of_sims(content.table, np.unique(np.array(sims, "<u8")))
        table = change(content.table, NO_ROWS, pairing_rows(pairings)).table
        return ListUpdate(what=FORGET, table=table) if len(pairings) else None

    made = await ListWriter(store, name, LAST_DEVICE, who).write(make)
    return 0 if made is None else made.removed
