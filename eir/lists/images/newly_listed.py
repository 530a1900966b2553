"""Finder of newly listed devices: compares the contents of a list before and after a change."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from eir.lists.images.chunks import chunk_of_image
from eir.lists.images.day_images import held_in, left
from eir.lists.images.image import WHOLE, WHOLE_TIMED, Image
from eir.lists.images.imaging import build_image
from eir.lists.table.columns import Numbers

KEYS_AT_ONCE = 1_000_000
"""Number of devices from which a batch is full."""


class NewlyListed(NamedTuple):
    """Devices that a change has added to a list. Devices whose rows have ended or not begun are included."""

    keys: Numbers
    """Keys of devices that are listed singly."""
    tacs: Numbers
    """Page numbers of the TACs that are listed whole. The previous image may have some of their devices."""


def newly_listed(before: Image | None, now: Image) -> Iterator[NewlyListed]:
    """Yield the devices that a change has added to a list. `before`: content of the list before the change; None: the list was empty.

    Raises:
        OSError: if memory for an image is lacking.
    """
    before = before or build_image([])
    none = np.empty(0, np.uint64)
    tacs = np.setdiff1d(_whole_tacs(now), _whole_tacs(before), assume_unique=True)
    if len(tacs):
        yield NewlyListed(none, tacs)
    parts, size = list[Numbers](), 0
    for keys in left(now, before):
        parts.append(keys)
        size += len(keys)
        if size >= KEYS_AT_ONCE:
            yield NewlyListed(np.concatenate(parts), none)
            parts, size = [], 0
    if size:
        yield NewlyListed(np.concatenate(parts), none)


def without_listed(before: Image | None, keys: Numbers) -> Numbers:
    """Return a mask of the keys (ascending) that a list did not contain. `before`: content of the list; None: the list was empty."""
    if before is None:
        return np.ones(len(keys), bool)
    mask: Numbers = ~held_in(before, keys)
    return mask


def _whole_tacs(image: Image) -> Numbers:
    whole = chunk_of_image(image)
    tacs: Numbers = whole.numbers[whole.bits & np.uint32(WHOLE | WHOLE_TIMED) != 0]
    return tacs
