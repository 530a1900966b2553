"""Memory files that never change once they are sealed, and how a process maps one: in pages of 2 MB, where the kernel makes them.

A look-up in a large list reads places that are far apart, and the processor finds them sooner among fewer pages. Of ours nothing is imported.
"""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
HUGE_BYTES = 2 << 20
STEP_BYTES = 1 << 20
"""Bytes of a mapping that are released at a time: some 50 us."""
MAP_FIXED, MADV_COLLAPSE = 0x10, 25
"""Linux's, which the module mmap does not name; the second one since Linux 6.1."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def write_all(descriptor: int, octets: "memoryview | bytes", at: int) -> None:
    """Write all of it from byte `at` on. Raises OSError."""
    left = memoryview(octets)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written


class MappedFile:
    """A memory file of at least a byte as this process reads it, from an address on where a page of 2 MB can begin. Raises OSError."""

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        # The kernel aligns no mapping of such a file by itself: room is reserved, and the file takes a part of it.
        self._room = mmap.mmap(-1, size + HUGE_BYTES, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        begins = np.frombuffer(self._room, np.uint8).ctypes.data
        self._at = -begins % HUGE_BYTES
        self._address = begins + self._at
        if _LIBC.mmap(self._address, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, descriptor, 0) != self._address:
            raise OSError(ctypes.get_errno(), "a memory file cannot be mapped")
        self.buffer = memoryview(self._room)[self._at : self._at + size]
        """All of it."""

    def gather(self, size: int) -> None:
        """Have that much of it in pages of 2 MB, for all who map it; if the kernel cannot, nothing changes."""
        _LIBC.madvise(self._address, size, MADV_COLLAPSE)

    def drop(self, done: int) -> int:
        """Give back a part of the mapping, from byte `done` on, and return up to where it is: nobody reads it any more."""
        length = min(STEP_BYTES, len(self.buffer) - done)
        self._room.madvise(mmap.MADV_DONTNEED, self._at + done, length)
        return done + length


@contextmanager
def sealed(size: int) -> Iterator[int]:
    """The descriptor of a memory file of that size, all zeros, which is sealed once it was written. Raises OSError."""
    descriptor = os.memfd_create("eir-list", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        if size >= HUGE_BYTES:
            _enlarge_pages(descriptor, size // HUGE_BYTES * HUGE_BYTES)
        yield descriptor
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(descriptor)
        raise


def _enlarge_pages(descriptor: int, size: int) -> None:
    """Have the memory of an empty file in large pages.

    While the kernel makes one it may serve nothing else on that processor, and one that is empty takes half as long as one with content.
    """
    for at in range(0, size, HUGE_BYTES):
        os.pwrite(descriptor, b"\0", at)  # of what has no page at all it makes none
    MappedFile(descriptor).gather(size)
