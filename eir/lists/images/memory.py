"""Memory files that are immutable after sealing, mapped in huge pages (2 MB) if the kernel supports them.

A lookup in a large list reads distant addresses, and large pages need fewer address translations. This module imports no
other module of eir.
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
"""Bytes of a mapping that are released in one step (about 50 us)."""
MAP_FIXED, MADV_COLLAPSE = 0x10, 25
"""Linux constants that the module mmap lacks; MADV_COLLAPSE exists since Linux 6.1."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def write_all(descriptor: int, octets: "memoryview | bytes", at: int) -> None:
    """Write all bytes of a buffer to a file, from offset `at` on.

    Raises:
        OSError: if a write fails.
    """
    rest = memoryview(octets)
    while rest:
        written = os.pwrite(descriptor, rest, at)
        rest, at = rest[written:], at + written


class MappedFile:
    """Mapping of a memory file of at least one byte, at an address that is aligned for huge pages (2 MB).

    Raises:
        OSError: if the file cannot be mapped.
    """

    def __init__(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        # The kernel does not align the mapping of such a file, so address space is reserved and the file mapped within it.
        self._room = mmap.mmap(-1, size + HUGE_BYTES, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        begins = np.frombuffer(self._room, np.uint8).ctypes.data
        self._at = -begins % HUGE_BYTES
        self._address = begins + self._at
        if _LIBC.mmap(self._address, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, descriptor, 0) != self._address:
            raise OSError(ctypes.get_errno(), "a memory file cannot be mapped")
        self.buffer = memoryview(self._room)[self._at : self._at + size]
        """All bytes of the file."""

    def gather(self, size: int) -> None:
        """Move the first `size` bytes of the memory file to huge pages, for all processes that map it.

        If the kernel does not support this, nothing changes.
        """
        _LIBC.madvise(self._address, size, MADV_COLLAPSE)

    def drop(self, done: int) -> int:
        """Unmap at most STEP_BYTES from byte `done` on; return the end of the unmapped part, where the next call continues."""
        length = min(STEP_BYTES, len(self.buffer) - done)
        self._room.madvise(mmap.MADV_DONTNEED, self._at + done, length)
        return done + length


@contextmanager
def sealed(size: int) -> Iterator[int]:
    """Create a memory file of `size` zero bytes, yield it for writing, and seal it at the end of the context.

    Raises:
        OSError: if the file cannot be created.
    """
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
    """Let the kernel use huge pages (2 MB) for a new, empty memory file.

    While the kernel moves a page it may block that processor, and an empty page takes half as long as one with content.
    """
    for at in range(0, size, HUGE_BYTES):
        os.pwrite(descriptor, b"\0", at)  # the kernel moves only pages that exist
    MappedFile(descriptor).gather(size)
