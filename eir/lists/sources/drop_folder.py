"""Drop folder: completeness of its files, times of its passes (reads of the folder), and subfolders for processed files.

A pass processes all files in the folder once.

Files may arrive in any order and in parts, change while they are read, or be links. So all files are moved relative to the open
descriptors of the folders, which no link can redirect. This module reads names, sizes and times of files, but no content.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from eir.errors import EirError
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.releases.release import MANIFEST_ENDS, Manifest

SETTLED_S = 1.0
"""Seconds after the last change of a file during which the file counts as incomplete."""
ITEMS_MAX = 50_000
"""Maximum number of files that one pass reads. The other files wait for a later pass."""
AGAIN_S = 30.0
"""Seconds between two passes while no file changes."""
CHANGED_AGAIN_S = 10.0
"""Seconds between two passes while files change and none of them is complete."""

FOLDER_MODE, TEXT_MODE = 0o750, 0o640
NAME_BYTES_MAX = 255
REFUSED_FILES_MAX = 1000
"""Maximum number of files in `refused/`. The oldest files are deleted first, but no file that this pass has moved."""
REFUSED_BYTES_MAX = 1 << 30
"""Maximum total size of the files in `refused/`."""


class Item(NamedTuple):
    """File in the drop folder."""

    size: int
    changed: float
    """Unix seconds of the last change of content or name (ctime)."""


Listing = Mapping[str, Item]


def scan_folder(folder: Path | int, most: int = ITEMS_MAX) -> dict[str, Item]:
    """Return at most `most` files in the drop folder, without hidden files and subfolders.

    `folder` is a path or a descriptor.

    Raises:
        OSError: if the folder cannot be read.
    """
    items: dict[str, Item] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    items[entry.name] = Item(status.st_size, status.st_ctime)
            if len(items) >= most:
                break
    return items


def signed_manifests(listing: Listing) -> list[str]:
    """Return the names of the manifests that have a signature in the folder.

    A data file cannot have the name of a manifest (eir.lists.releases.release).
    """
    manifests = [name for name in listing if name.endswith(MANIFEST_ENDS)]
    return sorted(name for name in manifests if f"{name}.sig" in listing)


def printable(name: str) -> str:
    """Escape control characters, and bytes that are not valid UTF-8, in the name of a file."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    characters = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return "".join(characters)


def missing_part(manifest: Manifest, listing: Listing, now: float) -> str:
    """Return a message about the first data file of a release that is missing or incomplete; otherwise an empty text."""
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
    """Return False if the file was changed less than SETTLED_S ago.

    A file with a time in the future, by another host's clock, counts as settled.
    """
    return not now - SETTLED_S < item.changed <= now


class Watch:
    """Scheduler of passes over a drop folder: compares the files with those of the last pass.

    `patience_s` is that of inbox.PassSettings.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._again_at = 0.0
        self._passed_at = -float("inf")
        self._seen: Listing = {}
        """Files of the last pass."""

    def due(self, listing: Listing, now: float) -> bool:
        """Return True if a pass over the folder must start now.

        `now` is in Unix seconds, like the times of the files.
        """
        if not listing:
            return False
        if now >= self._again_at:
            return True
        since_pass_s = now - self._passed_at
        oldest = min(item.changed for item in listing.values())
        if since_pass_s >= AGAIN_S and oldest + self._patience_s <= now:
            return True
        has_signature = any(name.endswith(".sig") for name in listing)
        groups = self._changed_groups(listing)
        if not groups or not has_signature:
            return False
        return since_pass_s >= CHANGED_AGAIN_S or any(_are_settled(group, now) for group in groups)

    def _changed_groups(self, listing: Listing) -> Collection[Sequence[Item]]:
        """Return the new and changed files in groups. A group is a manifest with its signatures, or a single other file."""
        groups: dict[str, list[Item]] = {}
        for name, item in listing.items():
            if self._seen.get(name) != item:
                stem, _, _ = name.partition(f"{MANIFEST_ENDS}.sig")
                groups.setdefault(stem.removesuffix(MANIFEST_ENDS), []).append(item)
        return groups.values()

    def record_pass(self, listing: Listing, again_s: float | None, now: float) -> None:
        """Store that a pass has processed the files of `listing`. `again_s`: time until the next pass.

        The next pass starts after `again_s` seconds even without a change; None: it needs a change.
        """
        self._seen = listing
        self._passed_at = now
        self._again_at = float("inf") if again_s is None else now + again_s


def _are_settled(items: Iterable[Item], now: float) -> bool:
    return all(is_settled(item, now) for item in items)


@dataclass(frozen=True, slots=True)
class Rooms:
    """Descriptors of the drop folder, and of its subfolders `accepted` and `refused` for processed files."""

    drop: int
    """Descriptor of the drop folder."""
    rooms: dict[str, int]
    """Descriptors of the subfolders by name."""
    moved: set[str] = field(default_factory=set)
    """Names in the subfolders of the files that were moved or written."""

    def places(self, names: Iterable[str], room: str) -> dict[str, str]:
        """Return a free file name in the subfolder `room` for each file. If a name is taken, the same number is added to all names."""
        names = list(names)
        for number in count(1):
            places = {name: _numbered(name, number) for name in names}
            if not any(self._is_taken(place, room) for place in places.values()):
                break
        return places

    def move_files(self, places: Mapping[str, str], room: str, text: tuple[str, str] | None = None) -> None:
        """Move files to a subfolder.

        Args:
            places: new name by name, in the order of the moves.
            room: name of the subfolder.
            text: name and content of a text file, which is written to the subfolder first.

        Raises:
            OSError: if a file cannot be moved.
        """
        room_fd = self.rooms[room]
        self.moved.update(places.values())
        if text is not None:
            name, content = text
            self.moved.add(name)
            _write_text(name, content, room_fd)
        for name, place in places.items():
            with suppress(FileNotFoundError):  # the publisher has deleted the file
                os.rename(name, place, src_dir_fd=self.drop, dst_dir_fd=room_fd)

    def prune(self, files_max: int, bytes_max: int) -> None:
        """Delete the oldest files in `refused/` if their number or total size exceeds a limit. Keep files that were just moved there."""
        room_fd = self.rooms[REFUSED]
        items = scan_folder(room_fd)
        newest_first = sorted(items, key=lambda name: items[name].changed, reverse=True)
        size = 0
        for files, name in enumerate(newest_first, 1):
            size += items[name].size
            if name not in self.moved and (files > files_max or size > bytes_max):
                with suppress(OSError):
                    os.unlink(name, dir_fd=room_fd)

    def _is_taken(self, name: str, room: str) -> bool:
        try:
            os.stat(name, dir_fd=self.rooms[room], follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def _numbered(name: str, number: int) -> str:
    """Return a file name with a number: `name~NUMBER`, shortened to the limit of the file system. Number 1 is omitted."""
    if number == 1:
        return name
    end = f"~{number}".encode()
    begin = os.fsencode(name)[: NAME_BYTES_MAX - len(end)]
    return os.fsdecode(begin + end)


@contextmanager
def open_rooms(folder: Path) -> Iterator[Rooms]:
    """Open a drop folder and its subfolders, and close them after the `with` block. Create missing subfolders.

    Raises:
        EirError: if the folder or a subfolder cannot be used.
    """
    with ExitStack() as stack:
        drop = _open_folder(folder, None, stack)
        rooms = {room: _open_folder(Path(room), drop, stack) for room in (ACCEPTED, REFUSED)}
        yield Rooms(drop, rooms)


def _open_folder(folder: Path, inside: int | None, stack: ExitStack) -> int:
    """Open the drop folder or one of its subfolders, and return the descriptor. `inside`: descriptor of the parent.

    A subfolder is created if it does not exist, and must not be a link.
    """
    unusable = "the drop folder cannot be used"
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        if inside is not None:
            flags |= os.O_NOFOLLOW
            with suppress(FileExistsError):
                os.mkdir(folder, FOLDER_MODE, dir_fd=inside)
            status = os.stat(folder, dir_fd=inside, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise EirError(f"{unusable}: {folder} in it is a link; remove it, a folder is made in its place")
        descriptor = os.open(folder, flags, dir_fd=inside)
    except OSError as error:
        raise EirError(f"{unusable}: {folder}: {error.strerror}") from None
    stack.callback(os.close, descriptor)
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor):
        raise EirError(f"{unusable}: {folder} is not writable for user {os.getuid()}")
    return descriptor


def _write_text(name: str, text: str, folder_fd: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, TEXT_MODE, dir_fd=folder_fd)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # On a full disk the files are moved without the text file. Log and history have the same information.
