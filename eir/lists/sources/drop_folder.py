"""Drop folder as a source of releases: a release is complete if its signature is there and each file of its manifest has the stated size.

Anyone with write access may deliver many invalid files. Files may arrive in any order and in parts, change while they are read, or be
links. So all files are moved relative to the open descriptors of the folders, which no link can redirect. A faulty release is
rejected after its files have not changed for a moment. A turn verifies a limited number of deliveries, chosen at random. Then one
release of each list is loaded after the other, by serial, and those last whose load was killed.
"""

import asyncio
import errno
import os
import random
import stat
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from eir.errors import EirError, ReleaseRefused
from eir.lists.log.change import utc_text
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX
from eir.lists.releases.release import (
    MANIFEST_BYTES_MAX,
    MANIFEST_ENDS,
    FileEntry,
    Manifest,
    check_plain_name,
    signature_names,
    verify_release,
)
from eir.lists.rows.delivered import DataFile, read_small
from eir.lists.sources.release_result import ELSEWHERE, WAITING, ReleaseResult, Turn, printable
from eir.lists.sources.source import Candidate, TurnSettings, Unfinished, load_attempts, process_source

SETTLED_S = 1.0
"""Seconds after the last change of a file during which a node starts no turn for the file, and a faulty release is not rejected."""
ITEMS_MAX = 50_000
"""Maximum number of files that one turn reads. The other files wait for a later turn."""
VERIFIED_MAX = 200
"""Maximum number of deliveries that one turn verifies."""
STRAYS_MAX = 1000
"""Maximum number of files without a release that one turn processes and names, the oldest first."""
NOT_MOVED_AGAIN_S = 600.0
FOLDER_MODE, TEXT_MODE = 0o750, 0o640
NAME_BYTES_MAX = 255
TEXT_NAME_BYTES_MAX = 240
"""Maximum number of bytes of a rejected file's name that are part of the name of its text file."""
REFUSED_FILES_MAX = 1000
"""Maximum number of files in `refused/`. The oldest files are deleted first, but no file that this turn has moved."""
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


def is_settled(item: Item, now: float) -> bool:
    """Return False if the file was changed less than SETTLED_S ago.

    A file with a time in the future, by another host's clock, counts as settled.
    """
    return not now - SETTLED_S < item.changed <= now


def order_by_turn(candidates: Iterable[Candidate], killed: Collection[str]) -> list[Candidate]:
    """Sort releases: one of each list after the other, each list by serial. Releases in `killed` follow, then unverified ones.

    `killed`: digests of releases whose load was killed.
    """
    ranks: Counter[tuple[bool, str | None]] = Counter()
    places: list[tuple[Any, ...]] = []
    for each in sorted(candidates, key=lambda each: (each.serial or 0, each.name)):
        is_late = each.digest in killed
        ranks[is_late, each.list] += 1
        places.append((each.release is None, is_late, ranks[is_late, each.list], each.list or "", len(places), each))
    return [place[-1] for place in sorted(places, key=lambda place: place[:-1])]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropFolderSettings:
    """Settings of the drop folder."""

    folder: Path
    patience_s: float
    """Seconds after the last change for which an incomplete release, or a file that no release names, may wait."""
    items_max: int = ITEMS_MAX
    """Maximum number of files that a turn reads."""
    verified_max: int = VERIFIED_MAX
    refused_max: tuple[int, int] = REFUSED_FILES_MAX, REFUSED_BYTES_MAX
    """Limits of `refused/`: maximum number of files, and maximum total size in bytes."""


async def load_delivered(drop: DropFolderSettings, settings: TurnSettings) -> Turn:
    """Load all complete releases in the drop folder, and move processed files to its subfolders `accepted` and `refused`.

    Raises:
        EirError: if the folder or a subfolder cannot be used.
    """
    with open_rooms(drop.folder) as rooms:
        source = DropFolderSource(drop, settings, rooms)
        turn = await process_source(source, settings)
        with suppress(OSError):
            rooms.prune(*drop.refused_max)
    return turn


class DropFolderSource:
    """Drop folder as a source: the files of one scan, and the releases that they form."""

    def __init__(self, drop: DropFolderSettings, settings: TurnSettings, rooms: "Rooms") -> None:
        self.turn = Turn()
        self._drop, self._settings, self._rooms = drop, settings, rooms
        self._listing: Listing = {}
        self._scanned_at = 0.0
        """Time of the scan."""
        self._present: dict[str, Candidate] = {}
        """Verified and unverified releases in the folder, by manifest."""

    async def candidates(self) -> AsyncIterator[Candidate]:
        """Yield the delivered releases in the order of their turns; then move old files that belong to no release."""
        settings = self._settings
        if not await settings.claim():
            self.turn.end(ELSEWHERE, "", "another process or node is processing the drop folder")
            return
        self._listing = await asyncio.to_thread(scan_folder, self._rooms.drop, self._drop.items_max)
        self._scanned_at = settings.clock().timestamp()
        names = signed_manifests(self._listing)
        # So deliveries that wait for hours, and are verified each time, cannot hold up another one.
        random.shuffle(names)
        for name in names[: self._drop.verified_max]:
            self._present[name] = await asyncio.to_thread(self._verify, name)
        strays = self._listing.keys() - {name for each in self._present.values() for name in _file_names(each)}
        for candidate in order_by_turn(self._present.values(), load_attempts(settings.attempts)):
            yield candidate
        if len(names) > self._drop.verified_max or len(self._listing) >= self._drop.items_max:
            self.turn.repeat_after(SETTLED_S)
        is_whole = len(names) <= self._drop.verified_max
        if is_whole and all(candidate.release is not None for candidate in self._present.values()):
            self._sweep(strays)  # otherwise an unverified manifest may name a file

    async def fetch(self, candidate: Candidate) -> Path:
        """Check that all data files of a release have arrived, and return the drop folder.

        Raises:
            Unfinished: `incomplete`.
        """
        fault = missing_part(candidate.release.manifest, self._listing) if candidate.release is not None else ""
        if fault:
            raise Unfinished("incomplete", fault)
        return self._drop.folder

    def remaining_s(self, candidate: Candidate, *, is_patient: bool) -> float:
        """Return the seconds until a faulty release is rejected, which begin with the last change of its files."""
        left_s = self._left_s(_file_names(candidate))
        if is_patient:
            return left_s
        return 0.0 if self._has_settled(candidate) else min(left_s, SETTLED_S)

    async def done(self, candidate: Candidate, result: ReleaseResult) -> None:
        """Move the files of a processed release to `accepted/` or `refused/`, data files first.

        `.sig` is moved last: while it stays, a later turn completes an interrupted move. A file with other content may belong
        to another release that uses the same name and is still arriving.
        """
        if result.outcome == WAITING:
            return
        del self._present[candidate.name]
        others = {name for other in self._present.values() for name in other.data}
        names = []
        for file in () if candidate.release is None else candidate.release.manifest.files:
            if file.name not in self._listing or file.name in others:
                continue
            if result.outcome == ACCEPTED or await asyncio.to_thread(self._belongs_to_rejected, file):
                names.append(file.name)
        *further, first = candidate.signatures
        self._move([*names, *further, candidate.name, first], candidate.name, result)

    def _verify(self, name: str) -> Candidate:
        """Verify the signatures of a manifest, and return the release with the result."""
        first, *further = (signature for signature in signature_names(name) if signature in self._listing)
        signatures = (*further, first)
        try:
            check_plain_name(name)
            release = verify_release(self._drop.folder / name, self._settings.lists, now=self._settings.clock())
            return Candidate(name, signatures, release)
        except Exception as fault:  # noqa: BLE001 - a bug with one delivery must not stop the others
            cut_off = self._cut_off((name, *signatures)) if isinstance(fault, ReleaseRefused) else ""
            return Candidate(
                name, signatures, fault=Unfinished("incomplete", f"{cut_off} is not complete") if cut_off else fault
            )

    def _cut_off(self, names: Iterable[str]) -> str:
        """Return the first file that has changed since the scan, or ends in the middle; otherwise an empty text. `names`: manifest, signatures."""
        end, bytes_max = b"}", MANIFEST_BYTES_MAX
        for name in names:
            with suppress(ReleaseRefused, FileNotFoundError):
                status = os.stat(name, dir_fd=self._rooms.drop, follow_symlinks=False)
                is_changed = status.st_ctime != self._listing[name].changed
                if is_changed or not read_small(name, self._rooms.drop, bytes_max).rstrip().endswith(end):
                    return printable(name)
            end, bytes_max = b"-----END SSH SIGNATURE-----", SIGNATURE_BYTES_MAX
        return ""

    def _has_settled(self, candidate: Candidate) -> bool:
        items = [self._listing[name] for name in _file_names(candidate) if name in self._listing]
        return all(is_settled(item, self._scanned_at) for item in items)

    def _left_s(self, names: Iterable[str]) -> float:
        """Return the seconds until unchanged files are rejected."""
        patience_s = self._drop.patience_s
        if not self._settings.believed:
            return patience_s
        changed = max((self._listing[name].changed for name in names if name in self._listing), default=0.0)
        return changed + patience_s - self._settings.clock().timestamp()

    def _belongs_to_rejected(self, file: FileEntry) -> bool:
        """Return True if a data file must be moved with a rejected manifest: it matches the manifest, or has waited for long."""
        if self._left_s((file.name,)) <= 0:
            return True
        with suppress(ReleaseRefused, OSError), DataFile(file.name, self._rooms.drop) as data:
            return data.size == file.bytes and data.sha256() == file.sha256
        return False

    def _move(self, names: Sequence[str], subject: str, result: ReleaseResult) -> None:
        """Move files to the folder of the outcome, and for a rejection write a text file there.

        `subject`: name of the manifest or of the single file, from which the text file gets its name.
        """
        text_name = f"{os.fsdecode(os.fsencode(subject)[:TEXT_NAME_BYTES_MAX])}.txt"
        try:
            places = self._rooms.places([*names, text_name], result.outcome)
            text_place = places.pop(text_name)
            text = None
            if result.outcome == REFUSED:
                text = (text_place, _refusal_text(result, places.values(), self._settings.clock()))
            self._rooms.move_files(places, result.outcome, text)
        except OSError as error:
            moved = replace(result, detail=f"{result.detail}; it could not be moved: {error.strerror}")
            self.turn.results[-1] = moved
            self.turn.repeat_after(NOT_MOVED_AGAIN_S)

    def _sweep(self, strays: Iterable[str]) -> None:
        """Move files that belong to no release to `refused/`, after they have waited in the drop folder for `patience_s`."""
        detail = "no signed release named it; a release is NAME.manifest.json, its .sig, and the data files that the manifest names"
        oldest = sorted(strays, key=lambda name: (self._listing[name].changed, name))
        for name in oldest[:STRAYS_MAX]:
            left_s = self._left_s((name,))
            label = printable(name)
            if left_s > 0:
                self.turn.repeat_after(left_s)
                self.turn.strays.append(label)
            else:
                self.turn.results.append(ReleaseResult(manifest=label, outcome=REFUSED, reason="stray", detail=detail))
                self._move([name], name, self.turn.results[-1])
                if len(oldest) > STRAYS_MAX:
                    self.turn.repeat_after(SETTLED_S)


def missing_part(manifest: Manifest, listing: Listing) -> str:
    """Return a message about the first data file of a release that is missing or incomplete; otherwise an empty text."""
    for file in manifest.files:
        item = listing.get(file.name)
        if item is None:
            return f"{file.name} is missing"
        if item.size != file.bytes:
            return f"{file.name} has {item.size} of {file.bytes} bytes"
    return ""


def _file_names(candidate: Candidate) -> tuple[str, ...]:
    return (candidate.name, *candidate.signatures, *candidate.data)


def _refusal_text(result: ReleaseResult, places: Iterable[str], now: datetime) -> str:
    files = ", ".join(map(printable, places))
    return f"""{result.manifest} was refused at {utc_text(now)}.
Reason: {result.reason}
{result.detail}
List: {result.list or "unknown"}; serial: {result.serial or "unknown"}
Files: {files}

The list in force is untouched. Deliver a corrected release, or put these files back to have them tried again.
"""


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
