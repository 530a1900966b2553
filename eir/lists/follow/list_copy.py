"""Copy of a list on the node's disk: its head, digest tree and table as of one change, and the changes since then.

The file `LIST.copy` has plain little-endian arrays, each aligned, so that the table in memory is a view of the mapped file:

    magic, format (4 bytes), length of the description (4), SHA-256 of the description (32)
    description     JSON: head, length of each array, SHA-256 of all bytes behind the description
    arrays          blocks, starts, lows and columns of the table, numbers and digests of each level of the tree, past digests

A small change is appended to `LIST-GENERATION-DIGEST.changes`, with generation and digest of the copy. Each record there has the length of
its content, the complement of the length, the SHA-256 of the content, and as content the change and its rows. When the file is long, or
the copy is old, the copy is written again. The changes of local lists that checks do not write stay for KEPT_S, so that the node can apply them again after a
failover of the store lost them.
"""

import errno
import json
import mmap
import os
import re
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from eir.disk import open_replacement, sync_folder
from eir.errors import Report, StoreError, silent
from eir.lists.log.change import NO_CHANGE, Change, Head, SerialMark, decode, encode, following
from eir.lists.log.reader import ChangeRows, LoggedList, apply_changes, join_parts, split_parts
from eir.lists.log.store import RECORDS_KEPT
from eir.lists.record.in_force import load_in_force
from eir.lists.record.settings import LEARNED_KINDS
from eir.lists.stores.open import COPIES
from eir.lists.stores.records import check_room
from eir.lists.table.codec import ARRAY_FORMS, arrays_of
from eir.lists.table.columns import Numbers
from eir.lists.table.digest import DIGEST_BYTES, LEVELS, DigestTree
from eir.lists.table.table import Table

COPY_FORM = 5
"""Version of the format of both files."""
KEPT_S = 7 * 86_400.0
"""Seconds for which the changes of local lists stay."""
APPENDED_SHARE, APPENDED_BYTES = 8, 1 << 20
"""The copy is written again when the changes have more bytes than this part of it and than this number."""
REWRITE_S = 600.0
"""Seconds after which a copy with appended changes is written again, so that the table in memory is a view of it."""
PAST_MAX = RECORDS_KEPT
"""Maximum number of past digests in a copy."""
RESERVE_BYTES = 32 << 20
"""Bytes that a copy leaves free on the disk."""
MODE = 0o600
_NEVER_SHORT = sys.maxsize
"""Size of the appended changes after which the whole copy is written next."""
_BEGIN = struct.Struct("<8sII32s")
_CHANGES_BEGIN = struct.Struct("<8sI")
_RECORD = struct.Struct("<II32s")
_COPY, _CHANGES = b"eir-copy", b"eir-rows"
_ALIGNED = 64
_LENGTH_MASK = (1 << 32) - 1
_TREE_FORMS = ("<u8", f"({DIGEST_BYTES},)u1") * (LEVELS + 1)
_FORMS = [*map(np.dtype, (*ARRAY_FORMS, *_TREE_FORMS, f"({DIGEST_BYTES},)u1"))]


class ListCopy:
    """Copy of one list. Methods are blocking; one process writes the copy.

    Args:
        folder: folder of the copies; it is created.
        name: name of the list.
        report: logs events.
    """

    def __init__(self, folder: Path, name: str, report: Report = silent) -> None:
        self.path = folder / f"{name}.copy"
        self.digest = NO_CHANGE
        """Digest of the newest change in the copy."""
        self._name, self._report = name, report
        self._past = b""
        """Digests of the changes that the node has held or has seen in the past of a held one."""
        self._changes = self.path
        """File of the changes since the copy."""
        self._bytes = self._appended = 0
        self._written_at = time.monotonic()

    def read(self, *, repairs: bool = True) -> LoggedList | None:
        """Map the copy, and verify it; return None if the file is missing.

        `repairs`: remove a change that a crash cut short. Only the process that writes the copy may repair it.

        Raises:
            StoreError: if the copy is damaged (`corrupt`), of another format (`schema`), or cannot be read (`io`).
        """
        with self._faults():
            if not self.path.exists():
                return None
            content = self._mapped(verifies=True)
            if self._changes.exists():
                changes = self._read_changes(content.head.digest, repairs=repairs)
                content = apply_changes(self._name, content, changes)
                self.note(each.change for each in changes)
            self.digest = content.head.digest
            return content

    def note(self, changes: Iterable[Change]) -> None:
        """Note changes of the held chain, oldest first, so that `known` has them."""
        self._past += b"".join(bytes.fromhex(each.digest) for each in changes)

    def known(self) -> frozenset[str]:
        """Return the digests of the held change and of those in its past, as far as the log and the kept changes reached back."""
        past = self._past.hex(" ", DIGEST_BYTES).split()
        with suppress(StoreError):
            past += [each.change.digest for each in self.changes()]
        return frozenset(past)

    def save(self, content: LoggedList, changes: Sequence[ChangeRows] = ()) -> LoggedList:
        """Bring the copy to a content; return the content, whose arrays are views of the file if the whole copy was written.

        `changes`: changes that lead from the content in the copy to this one; empty if they are not known.

        Raises:
            StoreError: if the disk has no room (`full`) or fails (`io`). The copy then has the earlier content.
        """
        with self._faults():
            is_level = self.digest == content.head.digest
            if is_level and not (self._appended and time.monotonic() - self._written_at > REWRITE_S):
                return content
            records = b"".join(map(_record, changes))
            is_short = self._appended + len(records) <= max(APPENDED_BYTES, self._bytes // APPENDED_SHARE)
            follows = bool(changes) and changes[0].change.before == self.digest != NO_CHANGE
            if follows and is_short and all(each.parts is not None for each in changes):
                self._append(records)
                self.digest = content.head.digest
                return content
            if (
                records
                and content.head.mark == (0, 0)
                and content.head.kind not in LEARNED_KINDS
                and self.digest != NO_CHANGE
            ):
                self._append(records)  # they stay for KEPT_S, although the copy will have them
                self._appended = _NEVER_SHORT
            self._write(content)
            return self._mapped(content)

    def changes(self) -> Iterator[ChangeRows]:
        """Yield the kept changes from the newest file to the oldest; in a file the oldest change first.

        Raises:
            StoreError: if a file is damaged.
        """
        with self._faults():
            for path in reversed(_changes_paths(self.path)):
                yield from (_change_rows(content) for content, _ in _records(path))

    # Copy

    def _write(self, content: LoggedList) -> None:
        self._past = self._past[-PAST_MAX * DIGEST_BYTES :]
        past = np.frombuffer(self._past, "u1").reshape(-1, DIGEST_BYTES)
        tree = [array for level in content.tree.levels for array in level]
        arrays = [
            None if array is None else np.ascontiguousarray(array, form.base)
            for array, form in zip((*arrays_of(content.table), *tree, past), _FORMS, strict=True)
        ]
        total = sha256()
        size = 0
        for octets in _octets(arrays):
            total.update(octets)
            size += len(octets)
        description = {
            "head": encode(content.head).decode(),
            "lengths": [None if array is None else len(array) for array in arrays],
            "sha256": total.hexdigest(),
        }
        text = json.dumps(description).encode()
        text += b" " * (-(_BEGIN.size + len(text)) % _ALIGNED)
        folder = self.path.parent
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        disk = os.statvfs(folder)
        advice = f"make room on the disk of {folder}"
        needs = _BEGIN.size + len(text) + size
        check_room("full", str(self.path), advice, needs=needs, free=disk.f_bavail * disk.f_frsize, reserve=RESERVE_BYTES)  # fmt: skip
        with open_replacement(self.path, mode=MODE, durable=True) as file:
            file.write(_BEGIN.pack(_COPY, COPY_FORM, len(text), sha256(text).digest()) + text)
            file.writelines(_octets(arrays))
        sync_folder(folder)
        self._changes, self._bytes = _changes_path(self.path, content.head), needs
        if self.digest == NO_CHANGE:
            self._changes.unlink(missing_ok=True)  # of a copy that was damaged
        self.digest = content.head.digest
        self._written_at, self._appended = time.monotonic(), 0
        kept_s = 0.0 if content.head.mark > (0, 0) or content.head.kind in LEARNED_KINDS else KEPT_S
        for path in _changes_paths(self.path):
            if path.stat().st_mtime + kept_s < time.time():
                path.unlink()

    def _mapped(self, written: LoggedList | None = None, *, verifies: bool = False) -> LoggedList:
        """Map the copy. `written`: content that was just written, whose other fields stay."""
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.path.stat().st_size else b""
        description, at = _description(self.path, mapped)
        if verifies and sha256(memoryview(mapped)[at:]).hexdigest() != description["sha256"]:
            raise ValueError("the rows have another SHA-256 than the description states")
        arrays = list[Any]()
        for length, form in zip(description["lengths"], _FORMS, strict=True):
            shape = (-1, DIGEST_BYTES) if form.shape else (-1,)
            array = None if length is None else np.frombuffer(mapped, form.base, length * form.itemsize // form.base.itemsize, at)  # fmt: skip
            arrays.append(None if array is None else array.reshape(shape))
            at += -(-(length or 0) * form.itemsize // _ALIGNED) * _ALIGNED
        blocks, starts, lows, *columns = arrays[: len(ARRAY_FORMS)]
        *levels, past = arrays[len(ARRAY_FORMS) :]
        table, tree = Table(blocks, starts, lows, tuple(columns)), DigestTree(tuple(zip(*[iter(levels)] * 2, strict=True)))  # fmt: skip
        if written is not None:
            return replace(written, table=table, tree=tree)
        head = decode(Head, description["head"])
        if tree.root != head.content:
            raise ValueError("the rows have another content digest than the head")
        self._changes, self._bytes, self._past = _changes_path(self.path, head), len(mapped), past.tobytes()
        return LoggedList(head, table, tree)

    # Changes since the copy

    def _read_changes(self, digest: str, *, repairs: bool) -> Sequence[ChangeRows]:
        """Read the changes that continue the copy, whose digest is `digest`. With `repairs`, remove a record that a crash cut short.

        Behind them are kept changes before which a full disk or a crash prevented a write of the copy. The next write is then of the whole copy.
        """
        changes, end, is_whole = _continuing(self._changes, digest)
        size = self._changes.stat().st_size
        if end < size and repairs:
            detail = f"{self._changes}: {size - end} bytes of an incomplete change were removed"
            self._report("copy_repaired", level="warning", list=self._name, detail=detail)
            os.truncate(self._changes, end)
        self._appended = end if is_whole else _NEVER_SHORT
        return changes

    def _append(self, records: bytes) -> None:
        descriptor = os.open(self._changes, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            size = os.fstat(descriptor).st_size
            octets = records if size else _CHANGES_BEGIN.pack(_CHANGES, COPY_FORM) + records
            try:
                view = memoryview(octets)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fdatasync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if not size:
            sync_folder(self.path.parent)
        self._appended = size + len(octets)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Convert faults to StoreError, with the remedy."""
        try:
            yield
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            files = f"{self.path} and {self.path.stem}-*.changes"
            remedy = f"the list is read from the store; delete {files} if the store has the list"
            raise StoreError("corrupt", f"list {self._name}: its copy is damaged: {error}; {remedy}") from error
        except OSError as error:
            cause = "full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "io"
            raise StoreError(cause, f"list {self._name}: its copy: {error.filename or self.path}: {error.strerror}") from error  # fmt: skip


def copied_heads(folder: Path) -> Mapping[str, Head]:
    """Return the head of each list that the node on this host held last. The rows are not verified; `entries` is that of the whole copy.

    Raises:
        StoreError: if a copy is damaged or cannot be read. Without its head, the list could be changed although the store has lost data.
    """
    heads = {path.stem: copied_head(folder, path.stem) for path in sorted(folder.glob("*.copy"))}
    return {name: head for name, head in heads.items() if head is not None}


def copied_head(folder: Path, name: str) -> Head | None:
    """Return the head of a list as `copied_heads`; None if the node has not held the list."""
    copy = ListCopy(folder, name)
    with copy._faults():  # noqa: SLF001  # of this module
        try:
            file = copy.path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            begin = file.read(_BEGIN.size)
            description, _ = _description(copy.path, begin + file.read(_BEGIN.unpack(begin)[2] if len(begin) == _BEGIN.size else 0))  # fmt: skip
        head = decode(Head, description["head"])
        changes = _changes_path(copy.path, head)
        for each in _continuing(changes, head.digest)[0] if changes.exists() else ():
            head = following(head, each.change, entries=head.entries, devices=head.devices)
        return head


def serial_marks(state_folder: Path) -> Mapping[str, SerialMark]:
    """Return the highest mark of each list (number of serial resets, highest serial) that was in force on this node, whatever the store has.

    Raises:
        StoreError: if a copy cannot be read. Without its serials, a release that was in force before could be loaded again.
    """
    marks = {name: entry.mark for name, entry in load_in_force(state_folder).items()}
    for name, head in copied_heads(state_folder / COPIES).items():
        marks[name] = max(marks.get(name, head.mark), head.mark)
    return marks


def _octets(arrays: Sequence[Numbers | None]) -> Iterator[memoryview]:
    """Yield the bytes of each array, and those that align the next one."""
    for array in arrays:
        if array is not None and array.size:
            octets = array.view("u1").reshape(-1).data
            yield octets
            yield memoryview(bytes(-len(octets) % _ALIGNED))


def _description(path: Path, octets: Any) -> tuple[dict[str, Any], int]:
    """Return the verified description at the begin of a copy, and the place of the first array."""
    if len(octets) < _BEGIN.size:
        raise ValueError("it is cut short")
    magic, form, length, digest = _BEGIN.unpack_from(octets)
    _check_form(path, magic, _COPY, form)
    text = octets[_BEGIN.size : _BEGIN.size + length]
    if sha256(text).digest() != digest:
        raise ValueError("the description has another SHA-256 than the file states")
    description: dict[str, Any] = json.loads(text)
    return description, _BEGIN.size + length


def _check_form(path: Path, magic: bytes, expected: bytes, form: int) -> None:
    if magic != expected:
        raise ValueError(f"{path.name} does not begin with {expected.decode()}")
    if form != COPY_FORM:
        raise StoreError("schema", f"{path} has format {form}, and this program has format {COPY_FORM}; delete the file, then the list is read from the store")  # fmt: skip


def _changes_path(path: Path, head: Head) -> Path:
    """Return the file of the changes since the head in the copy `path`."""
    return path.with_name(f"{path.stem}-{head.generation:012d}-{head.digest[:16]}.changes")


def _changes_paths(path: Path) -> list[Path]:
    """Return all files with changes of the list whose copy is `path`, oldest first."""
    form = re.compile(re.escape(path.stem) + r"-\d{12}-[0-9a-f]{16}")
    return sorted(each for each in path.parent.glob("*.changes") if form.fullmatch(each.stem))


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the content of each record in a file, and the place behind it. A last record that is cut short is left out."""
    with path.open("rb") as file:
        begin = file.read(_CHANGES_BEGIN.size)
        if len(begin) < _CHANGES_BEGIN.size:
            return
        magic, form = _CHANGES_BEGIN.unpack(begin)
        _check_form(path, magic, _CHANGES, form)
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            length, complement, digest = _RECORD.unpack(head)
            if length ^ complement != _LENGTH_MASK:
                raise ValueError(f"{path.name}: the length of a change was altered")
            content = file.read(length)
            if len(content) < length:
                return
            if sha256(content).digest() != digest:
                raise ValueError(f"{path.name}: a change has another SHA-256 than the file states")
            yield content, file.tell()


def _continuing(path: Path, digest: str) -> tuple[Sequence[ChangeRows], int, bool]:
    """Return the changes in a file that continue the one with a digest, the place behind the last record, and True if these are all changes."""
    changes, end, is_whole = list[ChangeRows](), 0, True
    for content, after in _records(path):
        each, end = _change_rows(content), after
        is_whole = is_whole and each.parts is not None and each.change.before == digest
        if is_whole:
            changes.append(each)
            digest = each.change.digest
    return changes, end, is_whole


def _record(each: ChangeRows) -> bytes:
    content = encode(each.change) + (b"" if each.parts is None else b"\n" + join_parts(each.parts))
    return _RECORD.pack(len(content), len(content) ^ _LENGTH_MASK, sha256(content).digest()) + content


def _change_rows(content: bytes) -> ChangeRows:
    change, has_rows, rows = content.partition(b"\n")
    return ChangeRows(decode(Change, change), split_parts(rows) if has_rows else None)
