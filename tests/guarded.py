"""Images with damaged bytes before a page without access: a read behind an image ends the process by SIGSEGV.

Called with a number of images and a seed. The compiled lane and the general path look keys up in each image that is accepted. With
the seed `beyond` the program reads one byte behind an image.
"""

import ctypes
import mmap
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from simulated.lanes import ecr, sides
from simulated.store_content import state

from eir.checks.settings import PolicySettings, Rule, Status
from eir.lists.images.image import BODY_AT, Image, ImageError, open_arrays
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.record.settings import DEVICES
from eir.lists.table.columns import WHOLE, rows_of
from eir.lists.table.table import table_of

LIBC = ctypes.CDLL(None, use_errno=True)
PROT_NONE = 0
KEYS = (35_000_001, 35_070_000, 36_000_005, 37_000_000)
VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF)
NOW = 1_000.0
POLICY = PolicySettings(rules=(Rule(answer=Status.BLACKLISTED, list="list"),))
STREAM = b"".join(ecr(f"{key:014d}", imsi=None) for key in KEYS)


def guarded(octets):
    """Return a copy of the octets that ends at a page without access."""
    size = -(-len(octets) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    pages[size - len(octets) : size] = octets
    if LIBC.mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    return memoryview(pages)[size - len(octets) : size]


def read(octets):
    """Look the keys up in an image of these octets, by the compiled lane and by the general path. Raises ImageError."""
    view = guarded(octets)
    image = Image(SimpleNamespace(buffer=view), open_arrays(view), os.open(os.devnull, os.O_RDONLY))
    lists = Index({"list": DEVICES}, lambda: NOW)
    lists.switch("list", state(), image)
    with_lane, _ = sides(lists, POLICY)
    with suppress(IndexError):
        with_lane.feed(STREAM)
    for key in KEYS:
        with suppress(IndexError):
            image.holds(key, NOW)


def main(count, seed):
    """Read images with damaged bytes, and print the number of accepted images."""
    keys = (35_000_001, 35_070_000, 36_000_005, WHOLE | 36)
    table = table_of(rows_of(keys, begins=(0, 0, 500, 0), ends=(0, 0, 2000, 1500)))
    whole = bytes(image_of(table).buffer)
    if seed == "beyond":
        view = guarded(whole)
        ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(view)) + len(view), 1)
    rng, accepted = random.Random(seed), 0
    read(whole)
    for _ in range(count):
        octets = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            octets[rng.randrange(rng.choice((0, BODY_AT)), len(octets))] = rng.choice(VALUES)
        with suppress(ImageError):
            read(octets)
            accepted += 1
    print(accepted)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
