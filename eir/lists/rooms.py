"""The two folders in a drop folder that finished releases go to, `accepted` and `refused`.

Everything is done through descriptors that no link leads astray. May import eir.errors, lists.drop_folder, lists.store.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from eir.errors import EirError
from eir.lists.drop_folder import look
from eir.lists.store import ACCEPTED, REFUSED

FOLDER_MODE, TEXT_MODE = 0o750, 0o640
REFUSED_FILES_MAX, REFUSED_BYTES_MAX = 1000, 1 << 30
"""What `refused` keeps: the oldest files go first, those of the latest release never."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """A drop folder, open."""

    drop: int
    """Its descriptor."""
    rooms: dict[str, int]
    moved: set[str] = field(default_factory=set)
    """Names that were put away since it was opened."""

    def put_away(self, names: Sequence[str], room: str, text: tuple[str, str] | None = None) -> None:
        """Move files in this order, and write a text (name, content) beside them first. Raises OSError."""
        self.moved.update(names)
        if text is not None:
            self.moved.add(text[0])
            _write_text(*text, self.rooms[room])
        for name in names:
            with suppress(FileNotFoundError):  # the publisher took it back
                os.rename(name, name, src_dir_fd=self.drop, dst_dir_fd=self.rooms[room])

    def prune(self) -> None:
        """Delete the oldest refused files past what is kept of them."""
        files = size = 0
        found = look(self.rooms[REFUSED])
        for name, item in sorted(found.items(), key=lambda named: named[1].changed, reverse=True):
            files, size = files + 1, size + item.size
            if name not in self.moved and (files > REFUSED_FILES_MAX or size > REFUSED_BYTES_MAX):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self.rooms[REFUSED])


@contextmanager
def open_rooms(folder: Path) -> Iterator[Rooms]:
    """Open a drop folder, and make the folders in it if need be. Raises EirError if it cannot be used."""
    with ExitStack() as stack:
        drop = _opened(folder, None, stack)
        yield Rooms(drop, {room: _opened(Path(room), drop, stack) for room in (ACCEPTED, REFUSED)})


def _opened(folder: Path, inside: int | None, stack: ExitStack) -> int:
    """A descriptor of the folder, or of one inside another, which may not be a link."""
    try:
        if inside is not None:
            with suppress(FileExistsError):
                os.mkdir(folder, FOLDER_MODE, dir_fd=inside)
        no_link = os.O_NOFOLLOW if inside is not None else 0
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link, dir_fd=inside)
    except OSError as error:
        raise EirError(f"the drop folder cannot be used: {folder}: {error.strerror}") from None
    stack.callback(os.close, descriptor)
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor):
        raise EirError(f"the drop folder cannot be used: {folder} is not writable for user {os.getuid()}")
    return descriptor


def _write_text(name: str, text: str, folder_fd: int) -> None:
    """A new file in place of what has the name."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(name, flags, TEXT_MODE, dir_fd=folder_fd), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # A release that may not stay in the folder goes without its text; log and history say the same.
