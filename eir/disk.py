"""Atomic writing of files, flushing of folders to disk, and detection of changed files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

UNFINISHED = ".tmp"
"""Ending of the name of an incomplete file."""


@contextmanager
def errors_name(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Set the file name of an OSError in the `with` block to `path`, if it is missing or is that of the temporary file `unfinished`.

    The body may use only the temporary file: the system's error of a write, such as on a full disk, has no file name.
    """
    try:
        yield
    except OSError as e:
        if e.filename is None or (unfinished is not None and str(e.filename) == str(unfinished)):
            e.filename = str(path)
        raise


class _NamedFile(FileIO):
    """File for writing. Its errors (OSError) have `path` as the file name."""

    def __init__(self, file: Path, path: Path, mode: str, opener: Callable[[str, int], int] | None) -> None:
        self._path = path
        with errors_name(path, file):
            super().__init__(str(file), mode, opener=opener)

    def write(self, data: "ReadableBuffer", /) -> int:
        with errors_name(self._path):
            return super().write(data)

    def close(self) -> None:
        with errors_name(self._path):
            super().close()


def open_named(
    file: Path, path: Path, mode: str = "wb", opener: Callable[[str, int], int] | None = None
) -> BufferedWriter:
    """Open a file for writing. Its errors (OSError) have `path` as the file name, also if `file` is a temporary file.

    Raises:
        OSError: if the file cannot be opened.
    """
    return BufferedWriter(_NamedFile(file, path, mode, opener))


@contextmanager
def open_replacement(path: Path, *, mode: int | None = None, durable: bool = False) -> Iterator[BufferedWriter]:
    """Open a temporary file for writing. When the context ends without an error, the file replaces `path`.

    If the block fails, the temporary file is removed, so that it uses no space on a full disk.

    Args:
        path: file to create or replace.
        mode: permissions from the first byte on; None: those of the umask.
        durable: write the content to the disk before the file gets its name.

    Raises:
        OSError: if the file cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    opener = partial(os.open, mode=0o666 if mode is None else mode)
    with errors_name(path, fresh):
        fresh.unlink(missing_ok=True)  # of a killed process with the same number
    try:
        with open_named(fresh, path, "xb", opener) as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)  # the umask may have removed bits
            yield file
            if durable:
                file.flush()
                with errors_name(path):
                    os.fsync(file.fileno())
        with errors_name(path, fresh):
            fresh.replace(path)
    finally:
        with suppress(OSError):  # an error of the block is more important
            fresh.unlink(missing_ok=True)


def write_file(path: Path, content: bytes, *, mode: int | None = None, durable: bool = False) -> None:
    """Write a file atomically with `open_replacement`. An existing file is replaced.

    Raises:
        OSError: if the file cannot be written.
    """
    with open_replacement(path, mode=mode, durable=durable) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk (fsync), so that the names of new files survive a crash.

    Raises:
        OSError: if that fails.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WatchedFile:
    """File that is watched for changes of its inode, size or modification time.

    A change counts only if two consecutive checks find the same state, because a partly written file may be valid.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._reported: tuple[int, ...] | None = None
        self._seen: tuple[int, ...] | None = ()

    def changed(self) -> bool:
        """Return True once after each change or removal of the file.

        A change is reported when two calls in a row find the same inode, size and modification time. The first call reports
        an existing file at once.
        """
        now = None
        if self.path is not None:
            with suppress(OSError):
                status = self.path.stat()
                now = status.st_ino, status.st_size, status.st_mtime_ns
        is_settled = self._seen in {(), now}
        self._seen = now
        if now == self._reported or not is_settled:
            return False
        self._reported = now
        return True
