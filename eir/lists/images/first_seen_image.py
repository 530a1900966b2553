"""Image of the record of first sightings, built from its table."""

import numpy as np

from eir.lists.images.image import SIGHTINGS, Image
from eir.lists.images.table_image import image_of
from eir.lists.record.first_days import batches, first_days, last_periods
from eir.lists.table.table import Table


def first_seen_image(table: Table) -> Image:
    """Build the image of a record of first sightings in a sealed memory file.

    Raises:
        OSError: if the memory file cannot be written.
    """
    sightings, at = np.empty(len(table), SIGHTINGS), 0
    for rows in batches(table):
        part = sightings[at : at + len(rows)]
        part["first"], part["last"] = first_days(rows), last_periods(rows)
        at += len(rows)
    return image_of(Table(table.blocks, table.starts, table.lows), sightings)
