"""Finder of newly listed devices: compares the contents of a list before and after a change."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from eir.lists.images.image import Image
from eir.lists.images.table_image import table_view
from eir.lists.record.registered import is_registered
from eir.lists.table.columns import NO_COLUMNS, SECONDS, WHOLE, Numbers, TableRows, distinct
from eir.lists.table.table import EMPTY, Table, difference, table_of

KEYS_AT_ONCE = 1_000_000
"""Number of devices in a full batch."""


class NewlyListed(NamedTuple):
    """Devices that a change has added to a list. Devices whose rows have ended or not begun are included."""

    keys: Numbers
    """Keys of devices that are listed singly."""
    tacs: Numbers
    """Page numbers of the TACs that are listed whole. The previous image may have some of their devices."""


def newly_listed(before: Image | None, now: Image) -> Iterator[NewlyListed]:
    """Yield the devices that a change has added to a list. `before`: content of the list before the change; None: the list was empty."""
    old = _keys_of(before)
    added = difference(old, _keys_of(now))[0].keys
    singles, tacs = added[added < WHOLE], added[added >= WHOLE] & np.uint64(WHOLE - 1)
    if len(tacs):
        yield NewlyListed(singles[:0], tacs)
    singles = singles[~is_registered([old], singles, 0)]
    for at in range(0, len(singles), KEYS_AT_ONCE):
        yield NewlyListed(singles[at : at + KEYS_AT_ONCE], singles[:0])


def without_listed(before: Image | None, keys: Numbers) -> Numbers:
    """Return a mask of the keys (ascending) that a list did not contain. `before`: content of the list; None: the list was empty."""
    mask: Numbers = ~is_registered([_keys_of(before)], keys, 0)
    return mask


def _keys_of(image: Image | None) -> Table:
    """Return the keys of a list without its other columns."""
    if image is None:
        return EMPTY
    table = table_view(image)
    if table.columns[SECONDS] is not None:
        return table_of(TableRows(distinct(table.rows().keys), NO_COLUMNS))
    return Table(table.blocks, table.starts, table.lows)
