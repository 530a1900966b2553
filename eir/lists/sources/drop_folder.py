"""A drop folder: its content, the complete part of it, the time of the next look, and the two rooms for files.

Files come in any order and in halves, change while they are read, or are links: everything is moved through descriptors that
no link leads astray. What is here reads names, sizes and times, and no content.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eir.errors import EirError
from eir.lists.record.store import ACCEPTED, REFUSED
from eir.lists.releases.release import MANIFEST_ENDS, Manifest

SETTLED_S = 1.0
"""A file that was changed less than this ago may still be on its way."""
ITEMS_MAX = 50_000
"""Files of the folder that are looked at; the rest waits until these have gone."""
AGAIN_S, CHANGED_AGAIN_S = 30.0, 10.0
"""Pause between two passes where no file changes, and while files only grow."""

FOLDER_MODE, TEXT_MODE = 0o750, 0o640
NAME_BYTES_MAX = 255
REFUSED_FILES_MAX, REFUSED_BYTES_MAX = 1000, 1 << 30
"""Limits of `refused`: the oldest files go first, those of the latest release never."""


class Item(NamedTuple):
    """One name in the folder: bytes, and Unix seconds of the last change of content or name (ctime)."""

    size: int
    changed: float


Listing = Mapping[str, Item]


def look(folder: Path | int, most: int = ITEMS_MAX) -> dict[str, Item]:
    """The names in the folder (or its descriptor) that may belong to releases, `most` of them: no folders, nothing hidden. Raises OSError."""
    found: dict[str, Item] = {}
    with os.scandir(folder) as entries:
        for entry in (each for each in entries if not each.name.startswith(".")):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    found[entry.name] = Item(status.st_size, status.st_ctime)
            if len(found) >= most:
                break
    return found


def delivered(listing: Listing) -> list[str]:
    """Manifests whose signature has arrived, by name. Others' files cannot be taken for one: no data file may have such a name."""
    return sorted(name for name in listing if name.endswith(MANIFEST_ENDS) and f"{name}.sig" in listing)


def printable(name: str) -> str:
    """A file's name as texts have it: octets that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def lacking(manifest: Manifest, listing: Listing, now: float) -> str:
    """The reason why a release's data files are not whole; empty if they are."""
    for file in manifest.files:
        item = listing.get(file.name)
        if item is None:
            return f"{file.name} is not there"
        if item.size != file.bytes:
            return f"{file.name} has {item.size} of {file.bytes} bytes"
        if not settled(item, now):
            return f"{file.name} was changed just now"
    return ""


def settled(item: Item, now: float) -> bool:
    """True unless the file was changed a moment ago. A time in the future is another host's clock, and says nothing."""
    return not now - SETTLED_S < item.changed <= now


class Watch:
    """Decides from one look at the folder after another when a pass is worth making. `patience_s` as in inbox.PassSettings."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s, self._again_at, self._passed_at = patience_s, 0.0, -float("inf")
        self._seen: Listing = {}  # as the last pass found it

    def due(self, listing: Listing, now: float) -> bool:
        """True if there may be something to do. `now` in Unix seconds, like the times of the files."""
        if not listing:
            return False
        since = now - self._passed_at
        lain = since >= AGAIN_S and min(item.changed for item in listing.values()) + self._patience_s <= now
        if now >= self._again_at or lain:
            return True
        fresh: dict[str, list[Item]] = {}  # a manifest and its signatures together, any other file alone
        for name, item in listing.items():
            if self._seen.get(name) != item:
                fresh.setdefault(name.partition(f"{MANIFEST_ENDS}.sig")[0].removesuffix(MANIFEST_ENDS), []).append(item)
        if not fresh or not any(name.endswith(".sig") for name in listing):
            return False
        return since >= CHANGED_AGAIN_S or any(all(settled(item, now) for item in items) for items in fresh.values())

    def passed(self, listing: Listing, again_s: float | None, now: float) -> None:
        """A pass over the content of `listing` was made."""
        self._seen, self._passed_at = listing, now
        self._again_at = float("inf") if again_s is None else now + again_s


@dataclass(frozen=True, slots=True)
class Rooms:
    """A drop folder, open: descriptors of it and of the rooms in it, and the names that were put into a room since."""

    drop: int
    rooms: dict[str, int]
    moved: set[str] = field(default_factory=set)

    def places(self, names: Iterable[str], room: str) -> dict[str, str]:
        """New names for these files in a room, so that they replace nothing there.

        All stay as they are, or all get one mark.
        """
        names, number = list(names), 1
        while True:
            places = {name: _marked(name, number) for name in names}
            if not any(self._is_taken(place, room) for place in places.values()):
                return places
            number += 1

    def put_away(self, places: Mapping[str, str], room: str, text: tuple[str, str] | None = None) -> None:
        """Move files in this order, and write a text (its place, its content) beside them first. Raises OSError."""
        self.moved.update(places.values())
        if text is not None:
            self.moved.add(text[0])
            _write_text(*text, self.rooms[room])
        for name, place in places.items():
            with suppress(FileNotFoundError):  # the publisher took it back
                os.rename(name, place, src_dir_fd=self.drop, dst_dir_fd=self.rooms[room])

    def prune(self, files_max: int, bytes_max: int) -> None:
        """Delete the oldest refused files past what is kept of them."""
        files = size = 0
        for name, item in sorted(look(self.rooms[REFUSED]).items(), key=lambda named: named[1].changed, reverse=True):
            files, size = files + 1, size + item.size
            if name not in self.moved and (files > files_max or size > bytes_max):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self.rooms[REFUSED])

    def _is_taken(self, name: str, room: str) -> bool:
        try:
            os.stat(name, dir_fd=self.rooms[room], follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def _marked(name: str, number: int) -> str:
    """`name`, then `name~2`, `name~3` and so on, within what a file system takes."""
    if number == 1:
        return name
    mark = f"~{number}".encode()
    return os.fsdecode(os.fsencode(name)[: NAME_BYTES_MAX - len(mark)] + mark)


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
            if stat.S_ISLNK(os.stat(folder, dir_fd=inside, follow_symlinks=False).st_mode):
                raise EirError(
                    f"the drop folder cannot be used: {folder} in it is a link; remove it, a folder is made in its place"
                )
        no_link = os.O_NOFOLLOW if inside is not None else 0
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link, dir_fd=inside)
    except OSError as error:
        raise EirError(f"the drop folder cannot be used: {folder}: {error.strerror}") from None
    stack.callback(os.close, descriptor)
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor):
        raise EirError(f"the drop folder cannot be used: {folder} is not writable for user {os.getuid()}")
    return descriptor


def _write_text(name: str, text: str, folder_fd: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(name, flags, TEXT_MODE, dir_fd=folder_fd), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # A release that may not stay in the folder goes without its text; log and history say the same.
