"""Files that are there wholly or not at all, and names that outlive a power failure. Imports nothing of ours."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

UNFINISHED = ".tmp"
"""Ending of a file that has not got its name yet."""


@contextmanager
def putting(path: Path, *, mode: int | None = None, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file to be written, which takes its place, over one that may be there, once that is done.

    `mode`: its permissions, from the first byte on, if the umask's are not wanted; `durable`: it is on the disk before it has its name.
    Raises OSError, and leaves no part of it then: of a disk that is full the rest stays free.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with open(fresh, "wb", opener=partial(os.open, mode=0o666 if mode is None else mode)) as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)  # whatever the umask is
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def put(path: Path, content: bytes, *, mode: int | None = None, durable: bool = False) -> None:
    """Put a file in its place, over one that may be there. Raises OSError; see `putting`."""
    with putting(path, mode=mode, durable=durable) as file:
        file.write(content)


def sync(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Watched:
    """A file whose content counts, read again when it has changed, and is the same at two looks: half of it might read as another whole."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._taken: tuple[int, ...] | None = None
        self._seen: tuple[int, ...] | None = None
        self._is_first = True

    def changed(self) -> bool:
        """True if the file exists and is another one than when this was true last; a change counts from the second call on that sees it."""
        now = None
        if self.path is not None:
            with suppress(OSError):
                found = self.path.stat()
                now = found.st_ino, found.st_size, found.st_mtime_ns
        is_settled = self._is_first or now == self._seen
        self._is_first, self._seen = False, now
        if now is None or now == self._taken or not is_settled:
            return False
        self._taken = now
        return True
