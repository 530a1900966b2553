"""A list of which few pages changed: an image of these before the one of all, which stays where it is. May import lists' chunks, image, making.

So a change costs what changed, not the size of the list. Once a share of all pages has changed, one image is made of both.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain, groupby

import numpy as np

from eir.lists.chunks import Chunk, PageRows, joined, replaced, with_changes
from eir.lists.image import Image, ImageError
from eir.lists.making import make
from eir.lists.pages import PAGE_KEYS

SHARE = 8
"""One page in so many may stand before the others."""
_NO_KEYS = np.empty(0, np.uint32)


class Amended:
    """Two images: of a page that both have `front` says what there is, which may be nothing. It is asked as an Image is."""

    __slots__ = ("_back", "_front", "layers")

    def __init__(self, front: Image, back: Image) -> None:
        self.layers: tuple[Image, ...] = front, back
        self._front, self._back = front, back

    @property
    def has_ends(self) -> bool:
        """Some of its rows end."""
        return self._front.has_ends or self._back.has_ends

    def holds(self, key: int, now: float) -> bool:
        """True if a row with this key is in force."""
        return self._of(key).holds(key, now)

    def imsis(self, key: int, now: float) -> tuple[int, ...]:
        """The IMSIs of the rows with this device that are in force: none, since lists of pairs are not amended like this."""
        return self._of(key).imsis(key, now)

    def has_subscriber(self, imsi: int, now: float) -> bool:
        """True if a row with this IMSI is in force: none is, as above."""
        return self._back.has_subscriber(imsi, now)

    def keys(self, now: float) -> Iterator[int]:
        """All keys in ascending order that a row in force has."""
        behind = (keys for number, keys in groupby(self._back.keys(now), lambda key: key // PAGE_KEYS) if not self._front.has_page(number))
        return merge(self._front.keys(now), chain.from_iterable(behind))

    def _of(self, key: int) -> Image:
        return self._front if self._front.has_page(key // PAGE_KEYS) else self._back


ListImage = Image | Amended


def amended(image: ListImage, changes: Mapping[int, PageRows | None]) -> ListImage:
    """Another image: this one with some pages replaced, or gone (None). Raises OSError."""
    *fronts, back = image.layers
    # A page that is gone stands there without keys.
    pages = {number: PageRows(number, _NO_KEYS) if page is None else page for number, page in changes.items()}
    changed = with_changes(joined([front.chunk() for front in fronts]), pages)
    if back.has_pairs or len(changed.imsis) or SHARE * len(changed.numbers) > len(back.numbers):
        return make([_both(changed, back)])
    return Amended(make([changed]), back)


def mapped(descriptors: Sequence[int], known: ListImage | None) -> ListImage:
    """The image whose layers these memory files are; what `known` has mapped of them stays mapped as it is. They are the image's from now on.

    Raises ImageError, and OSError.
    """
    there = {_file(layer.descriptor): layer for layer in (known.layers if known else ())}
    left, layers = [*descriptors], list[Image]()
    try:
        while left:
            if (layer := there.get(_file(left[0]))) is None:
                layers.append(Image.map(left.pop(0)))
            else:
                layers.append(layer)
                os.close(left.pop(0))
        match layers:
            case [alone]:
                return alone
            case [front, back]:
                return Amended(front, back)
        raise ImageError(f"an image has one layer or two, not {len(layers)}")
    finally:
        for descriptor in left:
            os.close(descriptor)


def whole(image: ListImage) -> Image:
    """One image that says the same. Raises OSError."""
    *fronts, back = image.layers
    return make([_both(front.chunk(), back) for front in fronts]) if fronts else back


def _both(changed: Chunk, back: Image) -> Chunk:
    """What changed, in what there is; what has no rows any more is not there."""
    stays = changed.bits != 0
    return replaced(back.chunk(), changed.numbers, changed._replace(numbers=changed.numbers[stays], bits=changed.bits[stays]))


def _file(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
