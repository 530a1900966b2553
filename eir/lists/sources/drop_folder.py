"""Drop folder: its files, their completeness, the schedule of passes, and the subfolders for processed files.

A pass is one processing of all files in the folder.

Files may arrive in any order and in parts, change while they are read, or be links. So all files are moved through descriptors,
which no link can redirect. This module reads names, sizes and times, but no content.
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
"""Seconds after the last change during which a file may be incomplete."""
ITEMS_MAX = 50_000
"""Maximum number of files that one pass reads; the others wait."""
AGAIN_S, CHANGED_AGAIN_S = 30.0, 10.0
"""Seconds between two passes while no file changes, and while files only grow."""

FOLDER_MODE, TEXT_MODE = 0o750, 0o640
NAME_BYTES_MAX = 255
REFUSED_FILES_MAX, REFUSED_BYTES_MAX = 1000, 1 << 30
"""Limits of `refused`: the oldest files are deleted first, those of the latest release never."""


class Item(NamedTuple):
    """File in the drop folder: size in bytes, and Unix seconds of the last change of content or name (ctime)."""

    size: int
    changed: float


Listing = Mapping[str, Item]


def scan_folder(folder: Path | int, most: int = ITEMS_MAX) -> dict[str, Item]:
    """Return the files in the drop folder that may belong to releases, at most `most`.

    `folder` is a path or a descriptor. Folders and hidden files are left out.

    Raises:
        OSError: if the folder cannot be read.
    """
    items: dict[str, Item] = {}
    with os.scandir(folder) as entries:
        for entry in (each for each in entries if not each.name.startswith(".")):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    items[entry.name] = Item(status.st_size, status.st_ctime)
            if len(items) >= most:
                break
    return items


def signed_manifests(listing: Listing) -> list[str]:
    """Return the names of the manifests that have a signature beside them.

    Other files cannot be mistaken for a manifest, because data files have other names.
    """
    return sorted(name for name in listing if name.endswith(MANIFEST_ENDS) and f"{name}.sig" in listing)


def printable(name: str) -> str:
    """Escape control characters, and bytes that are not valid UTF-8, in the name of a file."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def missing_part(manifest: Manifest, listing: Listing, now: float) -> str:
    """Return a message about the first incomplete data file of a release, or an empty text."""
    for file in manifest.files:
        item = listing.get(file.name)
        if item is None:
            return f"{file.name} is not there"
        if item.size != file.bytes:
            return f"{file.name} has {item.size} of {file.bytes} bytes"
        if not is_settled(item, now):
            return f"{file.name} was changed just now"
    return ""


def is_settled(item: Item, now: float) -> bool:
    """Return True unless the file was changed less than SETTLED_S ago.

    A time in the future comes from another host's clock, and is ignored.
    """
    return not now - SETTLED_S < item.changed <= now


class Watch:
    """Scheduler of the passes over a drop folder, which compares scans of the folder.

    `patience_s` is that of inbox.PassSettings.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s, self._again_at, self._passed_at = patience_s, 0.0, -float("inf")
        self._seen: Listing = {}  # files of the last pass

    def due(self, listing: Listing, now: float) -> bool:
        """Return True if the next pass must start.

        `now` is in Unix seconds, like the times of the files.
        """
        if not listing:
            return False
        since = now - self._passed_at
        lain = since >= AGAIN_S and min(item.changed for item in listing.values()) + self._patience_s <= now
        if now >= self._again_at or lain:
            return True
        fresh: dict[str, list[Item]] = {}  # a manifest is grouped with its signatures; other files are separate
        for name, item in listing.items():
            if self._seen.get(name) != item:
                fresh.setdefault(name.partition(f"{MANIFEST_ENDS}.sig")[0].removesuffix(MANIFEST_ENDS), []).append(item)
        if not fresh or not any(name.endswith(".sig") for name in listing):
            return False
        return since >= CHANGED_AGAIN_S or any(all(is_settled(item, now) for item in items) for items in fresh.values())

    def record_pass(self, listing: Listing, again_s: float | None, now: float) -> None:
        """Record that a pass has processed the files of `listing`.

        The next pass starts after `again_s` even without a change.
        """
        self._seen, self._passed_at = listing, now
        self._again_at = float("inf") if again_s is None else now + again_s


@dataclass(frozen=True, slots=True)
class Rooms:
    """Open drop folder: descriptors of the folder and of its subfolders, and the names of moved files."""

    drop: int
    rooms: dict[str, int]
    moved: set[str] = field(default_factory=set)

    def places(self, names: Iterable[str], room: str) -> dict[str, str]:
        """Return free names in a subfolder (`room`) for these files: all unchanged, or all with the same number."""
        names, number = list(names), 1
        while True:
            places = {name: _numbered(name, number) for name in names}
            if not any(self._is_taken(place, room) for place in places.values()):
                return places
            number += 1

    def move_files(self, places: Mapping[str, str], room: str, text: tuple[str, str] | None = None) -> None:
        """Move files to a subfolder (`room`) in the given order.

        If `text` is given, a text file (name, content) is written there first.

        Raises:
            OSError: if a file cannot be moved.
        """
        self.moved.update(places.values())
        if text is not None:
            self.moved.add(text[0])
            _write_text(*text, self.rooms[room])
        for name, place in places.items():
            with suppress(FileNotFoundError):  # the publisher removed it
                os.rename(name, place, src_dir_fd=self.drop, dst_dir_fd=self.rooms[room])

    def prune(self, files_max: int, bytes_max: int) -> None:
        """Delete the oldest files in `refused/` that exceed the limits on number and bytes."""
        files = size = 0
        for name, item in sorted(
            scan_folder(self.rooms[REFUSED]).items(), key=lambda named: named[1].changed, reverse=True
        ):
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


def _numbered(name: str, number: int) -> str:
    """Return `name` for number 1, or else `name~NUMBER`, shortened to the length limit of the file system."""
    if number == 1:
        return name
    mark = f"~{number}".encode()
    return os.fsdecode(os.fsencode(name)[: NAME_BYTES_MAX - len(mark)] + mark)


@contextmanager
def open_rooms(folder: Path) -> Iterator[Rooms]:
    """Open a drop folder for the context, and create its subfolders if they do not exist.

    Raises:
        EirError: if it cannot be used.
    """
    with ExitStack() as stack:
        drop = _open_folder(folder, None, stack)
        yield Rooms(drop, {room: _open_folder(Path(room), drop, stack) for room in (ACCEPTED, REFUSED)})


def _open_folder(folder: Path, inside: int | None, stack: ExitStack) -> int:
    """Open a folder, or its subfolder in `inside`, and return the descriptor.

    A subfolder is created if it does not exist, and must not be a link.
    """
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
        # On a full disk the files are moved without the text; log and history have the same information.
