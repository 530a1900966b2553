"""Reader of delivered files: opens each file once, measures and hashes it, and reads it in bounded pieces.

Only regular files are accepted. A publisher may write to the drop folder at any time. So a file is opened through the
descriptor of its folder, without following a link and without waiting for the writer of a pipe. The file is hashed before its rows
are read through the same descriptor, and a second hash detects a file that was changed in place.
"""

import errno
import gzip
import hashlib
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from eir.errors import ReleaseRefused

CHUNK_BYTES = 2 << 20
"""Number of bytes that are read, expanded and parsed together. A chunk of this size fits into the processor's cache."""
LINE_BYTES_MAX = 64 << 10
EXPANDED_BYTES_PER_ROW = 4 << 10
"""Maximum number of expanded bytes per row. The row count is that of the manifest, plus 1 for the header."""
EXPANDED_RATIO_MAX, EXPANDED_BYTES_FREE = 500, 16 << 20
"""Maximum expanded size: EXPANDED_RATIO_MAX times the delivered size, plus EXPANDED_BYTES_FREE bytes. The ratio of a file of consecutive IMEIs with a long reason is 160."""
ZSTD_WINDOW_BYTES_MAX = 128 << 20

Done = Callable[[int], None]
"""Callback that receives the number of bytes of a delivered file that were processed since the previous call."""
Progress = Callable[[str, int, int], None]
"""Callback that receives the name of a stage, the processed amount, and the total amount (bytes, keys or pages)."""


def sum_progress(progress: Progress, stage: str, total: int) -> Done:
    """Return a callback that adds each amount to a sum and reports the sum to `progress`, with the stage and the total.

    It reports 0 at once.
    """
    so_far = 0

    def done(more: int) -> None:
        nonlocal so_far
        so_far += more
        progress(stage, so_far, total)

    done(0)
    return done


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Open the folder of a release, yield its descriptor, and close it after the `with` block.

    Raises:
        ReleaseRefused: `file_missing`.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ReleaseRefused("file_missing", f"{folder}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(name: str, folder_fd: int) -> int:
    """Open a regular file in a folder without blocking, and return its descriptor, which the caller closes.

    Raises:
        ReleaseRefused: `file_missing`, or `not_a_file` for a link, pipe, folder or device.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder_fd)
    except FileNotFoundError:
        raise ReleaseRefused("file_missing", f"{name} is missing") from None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # ELOOP: link; ENXIO: socket
            raise ReleaseRefused("not_a_file", f"{name} is a link or a socket; expected a regular file") from None
        raise ReleaseRefused("file_missing", f"{name}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ReleaseRefused("not_a_file", f"{name} is not a regular file")
    return descriptor


def read_small(name: str, folder_fd: int, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises:
        ReleaseRefused: `too_large`, and as `open_regular`.
    """
    with os.fdopen(open_regular(name, folder_fd), "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ReleaseRefused("too_large", f"{name} is larger than {max_bytes} bytes")
    return content


class _Source:
    """Stream of delivered bytes, which are hashed. Each read reports the number of bytes to a callback."""

    def __init__(self, stream: BinaryIO, done: Done) -> None:
        self._stream, self._done, self._digest = stream, done, hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(CHUNK_BYTES if size < 0 else size)
        self._digest.update(data)
        self._done(len(data))
        return data

    def sha256(self) -> str:
        """Read the bytes that a decompressor left, and return the SHA-256 of all bytes."""
        while self.read(CHUNK_BYTES):
            pass
        return self._digest.hexdigest()


class Lines:
    """Decompressed content of a data file in pieces that end with a newline. A newline is added to a last line without one.

    Iteration raises ReleaseRefused: `expanded` if the content is larger than the number of rows or EXPANDED_RATIO_MAX allow; `data` if the
    content cannot be decompressed or a line is too long.
    """

    def __init__(self, name: str, source: _Source, size: int, rows_max: int = sys.maxsize) -> None:
        """Create the pieces. `name`: file name, whose end is the form of compression; `size`: number of delivered bytes."""
        self._name, self._source, self._size, self._rows_max = name, source, size, rows_max
        self.is_unended = False
        """True if the last line had no newline: the file may be truncated."""

    def begin(self) -> bytes:
        """Return the first piece, without an added newline."""
        piece = next(iter(self), b"")
        return piece[:-1] if self.is_unended else piece

    def __iter__(self) -> Iterator[bytes]:
        most_by_rows = (self._rows_max + 1) * EXPANDED_BYTES_PER_ROW
        most_by_size = EXPANDED_BYTES_FREE + EXPANDED_RATIO_MAX * self._size
        budget = min(most_by_rows, most_by_size)
        rest = b""
        expanded = _open_expander(self._name, self._source)
        try:
            while chunk := expanded.read(CHUNK_BYTES):
                budget -= len(chunk)
                if budget < 0:
                    limit = f"{EXPANDED_BYTES_PER_ROW} bytes for each row"
                    if most_by_size <= most_by_rows:
                        limit = f"{EXPANDED_RATIO_MAX} times its size"
                    raise ReleaseRefused("expanded", f"{self._name} expands to more than {limit}")
                end = chunk.rfind(b"\n") + 1
                if end:
                    yield b"".join((rest, memoryview(chunk)[:end]))
                    rest = chunk[end:]
                else:
                    rest += chunk
                if len(rest) > LINE_BYTES_MAX:
                    raise ReleaseRefused("data", f"{self._name} holds a line of more than {LINE_BYTES_MAX} bytes")
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise ReleaseRefused("data", f"{self._name} cannot be expanded: {error}") from None
        self.is_unended = bool(rest)
        if rest:
            yield rest + b"\n"


class DataFile(AbstractContextManager["DataFile"]):
    """Data file of a release, opened for reading. The end of the `with` block closes the file."""

    def __init__(self, name: str, folder_fd: int) -> None:
        self.name = name
        self._stream = os.fdopen(open_regular(name, folder_fd), "rb", buffering=0)
        self.size = os.fstat(self._stream.fileno()).st_size
        """Number of delivered bytes, before decompression."""

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def sha256(self, done: Done = lambda _: None) -> str:
        """Return the SHA-256 of the delivered file as hexadecimal digits."""
        return self._source(done).sha256()

    def chunks(self, rows_max: int, sha256: str, done: Done = lambda _: None) -> Iterator[bytes]:
        """Yield the content of the file as `Lines`.

        Raises:
            ReleaseRefused: as `Lines`; `changed` if the delivered bytes do not have the digest `sha256`.
        """
        source = self._source(done)
        yield from Lines(self.name, source, self.size, rows_max)
        if source.sha256() != sha256:
            raise ReleaseRefused("changed", f"{self.name} was changed while it was being loaded")

    def _source(self, done: Done) -> _Source:
        self._stream.seek(0)
        return _Source(cast("BinaryIO", self._stream), done)


def read_lines(name: str, stream: BinaryIO, size: int, done: Done = lambda _: None) -> Lines:
    """Return the lines of a data file of `size` bytes from its open stream. `done` receives the number of bytes that were read."""
    return Lines(name, _Source(stream, done), size)


def _open_expander(name: str, source: _Source) -> gzip.GzipFile | zstandard.ZstdDecompressionReader | _Source:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=cast("BinaryIO", source))
    if name.endswith(".zst"):
        expander = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        return expander.stream_reader(cast("BinaryIO", source), read_across_frames=True)
    return source
