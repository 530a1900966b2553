"""Commands that write the state of a node to a backup, and restore the state.

The state is the lists, the journal, the keys, the clock time, and the highest accepted serial of each list.
"""

import asyncio
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from eir import __version__
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, acting_in, opened, record_event, recorded, who, with_store
from eir.cli.output import print_message, progress, show_one
from eir.cli.sightings import write_down
from eir.config import Config, load_config
from eir.disk import open_named, open_replacement, write_file
from eir.errors import EirError, StoreError
from eir.interfaces import INTERFACES
from eir.lists.changes.undo import RESTORE
from eir.lists.follow.backup import ListFile, Restored, newer_reasons, restore_list, verified_content, write_lists
from eir.lists.follow.list_copy import copied_heads, serial_marks
from eir.lists.log.change import Head, SerialMark, utc_text
from eir.lists.log.journal import ACCEPTED, FORCED, MAIN, JournalError, JournalEvent, paths_of
from eir.lists.log.journal_export import add_witness, export_journal, has_line, restore_journal, unpack_journal
from eir.lists.log.journal_faults import journal_faults
from eir.lists.log.reader import SuppressUnreadable
from eir.lists.log.store import LogStore
from eir.lists.log.writer import KEEP, ListWriter
from eir.lists.record.first_days import IMPORT
from eir.lists.record.in_force import IN_FORCE_FILE, load_in_force, save_in_force, save_mark
from eir.lists.record.settings import is_list_name
from eir.lists.sources.acknowledgement import KEY
from eir.lists.stores.open import COPIES, JOURNAL, open_store
from eir.node.observe.control import owner_advice
from eir.node.processes.state_folder import CLOCK_FILE, FILE_MODE, FOLDER_MODE, prepare
from eir.schema import IDENTITY
from eir.sightings.cases import FILE as CASES_FILE
from eir.sightings.schema import FOLDER
from eir.sightings.subscribers import KEY_FILE

FORMAT = "eir-backup/3"
MANIFEST = "backup.json"
"""First member of the file: facts about the backup, and the size and SHA-256 of each other member in their order."""
SMALL_BYTES_MAX = 16 << 20
"""Maximum size in bytes of the manifest, and of each member that is read into memory."""
Member = tuple[str, int, str]
"""Name, size in bytes, and SHA-256 in hexadecimal digits."""
KEYS = (KEY_FILE, KEY, f"{KEY}.pub", *(name for each in INTERFACES for name in each.state_files), CASES_FILE)
"""Files of the state folder that no program can create again: keys, the node's identity at an NRF, decisions about findings."""
MARKS = (CLOCK_FILE, IN_FORCE_FILE)
RECORD = re.compile(rf"{FOLDER}/[0-9-]{{10}}/[A-Za-z0-9_-][A-Za-z0-9._-]*\.parquet")
LISTS, JOURNAL_FILE = "lists", "journal.jsonl"
"""Folder of the lists in a backup, and the file with the exported journal."""
KEY_MODE, PUBLIC_MODE = 0o600, 0o644
PIECE_BYTES = 1 << 20
ROOM = ".backup-"
"""Begin of the name of the folder in which a command has the content of a backup. The command locks the folder."""

BackupFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="The backup, a tar file; - for standard output or input.", allow_dash=True),
]


def backup(
    file: BackupFile,
    sightings: Annotated[bool, typer.Option("--sightings", help="With the record of checks, which may be large.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Write the state of the node to one new file.

    The state is the lists with the releases that a rollback can restore, the journal, the keys, the clock time, and the highest
    accepted serial of each list. The node may run meanwhile. If the store has lost a list of this node, no file is written. The file is
    verified: each list and each kept release by its digest, the journal by its chains, and each part of the written file by its SHA-256.
    Only its owner can read the file. It does not contain the configuration, the certificates and the signers files.
    """
    checked = opened(load_config(config))
    if str(file) != "-" and os.path.lexists(file):
        raise EirError(
            f"{file} exists already, and a backup is a new file; give another name, or remove the file first"
        )
    if sightings:
        write_down(checked)
    with _room(checked) as room:
        with acting_in(checked.state):
            (room / LISTS).mkdir()
            held, marks = (
                copied_heads(checked.state / COPIES),
                serial_marks(checked.state),
            )  # before a later change of the store
        with_store(checked, lambda store: write_lists(store, room / LISTS), fresh=False, reads=True)
        with acting_in(checked.state):
            files = asyncio.run(_verified(room))
            _refuse_lost(checked, files, held, marks)
            heads = {name: each.head for name, each in files.items()}
            if not heads:
                raise EirError("nothing was written: the store has no list; load one first")
            journal = _export_journal(checked.state / JOURNAL, room)
            members: dict[str, Path | bytes] = {
                name: (checked.state / name).read_bytes() for name in _small_files(checked.state)
            }
        members |= {f"{LISTS}/{name}": room / LISTS / name for name in heads}
        if journal["lines"]:
            members[JOURNAL_FILE] = room / JOURNAL_FILE
        if sightings:
            for path in sorted((checked.state / FOLDER).glob("*/*.parquet")):
                members[str(path.relative_to(checked.state))] = path
        facts: dict[str, Any] = {
            "format": FORMAT, "eir": __version__, "made": utc_text(datetime.now(UTC)), "node": checked.identity.host,
            "lists": {name: _list_facts(head) for name, head in heads.items()}, "journal": journal,
        }  # fmt: skip
        with progress() as advance, _output(file) as stream:
            shown = advance or (lambda *_: None)
            facts |= _write(stream, members, facts, shown)
            if stream is not sys.stdout.buffer:
                stream.flush()
                with Path(stream.name).open("rb") as written:
                    _unpack(written, file, None)
    text = f"{file}: {len(heads)} lists, {journal['lines']:,} lines of the journal, {len(members)} files; verified"
    if str(file) == "-":
        print_message(text, "info")
    else:
        show_one({"file": str(file), **facts}, text, as_json=as_json)


def _refuse_lost(
    checked: Config, files: Mapping[str, ListFile], held: Mapping[str, Head], marks: Mapping[str, SerialMark]
) -> None:
    """Reject the backup of a store that lacks a list which was in force on this node, or has an older one. Lists without settings may be missing."""
    missing = (held.keys() | marks.keys()) & checked.lists.keys() - files.keys()
    reasons = dict.fromkeys(sorted(missing), "the store has no such list")
    reasons |= newer_reasons(files, {"this node's copy": held}, marks)
    if reasons:
        text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EirError(
            f"nothing was written: the store has lost lists: {text}; wait until a node has written them back (eir lists), "
            "load them, or restore an earlier backup"
        )


def _export_journal(folder: Path, room: Path) -> dict[str, Any]:
    """Export the journal to the temporary folder of the command; return facts about it. A fault of the journal is a warning."""
    if not paths_of(folder, MAIN):
        return {"lines": 0, "digest": "", "faults": 0}
    with (room / JOURNAL_FILE).open("w+b") as out:
        exported = export_journal(folder, out)
    faults = _journal_faults(room)
    if faults:
        print_message(f"warning: the journal has {len(faults)} faults, which the backup has too: {faults[0]}")
    return {**exported._asdict(), "faults": len(faults)}


def _journal_faults(room: Path) -> list[str]:
    """Verify the exported journal in the temporary folder of a command."""
    unpacked = room / JOURNAL
    unpack_journal(room / JOURNAL_FILE, unpacked)
    faults = [
        fault for fault in journal_faults(unpacked) if not fault.startswith("witness-")
    ]  # an export has no witness files
    shutil.rmtree(unpacked)
    return faults


async def _verified(room: Path) -> Mapping[str, ListFile]:
    """Read and verify the lists of a backup in the temporary folder of a command.

    Raises:
        StoreError: if a list is damaged.
    """
    files = {}
    for path in sorted((room / LISTS).glob("*")):
        files[path.name] = ListFile(path)
        await verified_content(files[path.name])
    return files


def _list_facts(head: Head) -> dict[str, Any]:
    return {"serial": head.serial, "generation": head.generation, "entries": head.entries, "digest": head.content}


def restore(
    file: BackupFile,
    force: Annotated[bool, typer.Option("--force", help="Set lists back that are newer in the store or on nodes, as a change that all nodes follow; replace keys that differ.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify the backup and show the reason of a refusal; change nothing.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Restore a backup to the store and to the state folder.

    The backup may come from a node with the other kind of store. Nothing changes if a list is newer than the backup's in the store, in
    this node's copy, or in the last state of this node. Lists that only the store has stay. A journal that exists stays; the backup's is
    kept beside it as a witness file, unless this journal continues it. Existing keys stay.
    """
    checked = opened(load_config(config))
    with _room(checked, creates=not dry_run) as room:
        with acting_in(checked.state), _input(file) as stream:
            facts, keys = _unpack(stream, file, room)
            try:
                files = asyncio.run(_verified(room))
                faults = _journal_faults(room) if JOURNAL_FILE in facts["files"] else []
            except (StoreError, JournalError) as e:
                raise EirError(f"{file} is damaged: {e}; use another backup") from None
            if faults and not facts["journal"]["faults"]:
                raise EirError(f"{file} is damaged: the journal: {faults[0]}; use another backup")
        work = partial(_restored, checked, room=room, files=files, facts=facts, force=force, dry_run=dry_run)
        restored = with_store(checked, work, reads=dry_run)
        notes = []
        if not dry_run:
            with acting_in(checked.state):
                notes = _restore_files(keys, room, checked.state, force=force)
    for note in notes:
        print_message(f"note: {note}")
    lists = [
        {"list": each.list, "serial": each.serial, "entries": each.entries, "is_written": each.is_written} for each in restored
    ]  # fmt: skip
    document = {
        "file": str(file), "made": facts["made"], "node": facts["node"], "lists": lists, "notes": notes, "dry_run": dry_run,
    }  # fmt: skip
    result = "could be restored; nothing was changed" if dry_run else "restored"
    lines = [f"the backup of {facts['made']} by {facts['node']}: {result}"]
    for each in restored:
        note = "" if each.is_written else " (as in the store)"
        lines.append(f"{each.list}: serial {each.serial}, {each.entries:,} entries{note}")
    show_one(document, "\n".join(lines), as_json=as_json)


async def _restored(
    checked: Config, store: LogStore, room: Path, files: Mapping[str, ListFile], facts: Mapping[str, Any], *, force: bool, dry_run: bool
) -> list[Restored]:  # fmt: skip
    """Restore the lists and the journal of an unpacked backup. With `dry_run`, only verify that the restore is allowed."""
    folder = checked.state
    marks = serial_marks(folder)
    held = copied_heads(folder / COPIES)
    stored = await _stored_heads(checked, force=force)
    found = newer_reasons(files, {"the store": stored, "this node's copy": held}, marks)
    if found and not force:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.items())
        raise EirError(
            f"nothing was changed: the backup is older than the lists of the nodes: {reasons}; --force restores it"
        )
    if dry_run:
        return [Restored(name, file.head.serial, file.head.entries, is_written=True) for name, file in files.items()]
    made = facts["made"]
    _restore_journal(checked, room, facts)

    def writer(name: str, kind: str) -> ListWriter:
        settings = checked.lists.get(name)
        return ListWriter(store, name, kind, who(), keep=KEEP if settings is None else settings.keep)

    restored = []
    for name, file in files.items():
        mark = marks.get(name, file.head.mark)
        each = await restore_list(file, store, writer, made=made, mark=mark, held=held.get(name), force=force)
        restored.append(each)
        if each.change is not None:
            await recorded(checked, store, name, each.change)
    heads = await store.heads()
    for name in files:
        save_mark(folder, name, heads[name].mark)
    time, detail = (
        utc_text(datetime.now(UTC)),
        f"the backup of {made} by {facts['node']}: {', '.join(files) or 'no list'}",
    )
    record_event(
        checked, JournalEvent(time=time, who=who(), what=RESTORE, detail=detail, outcome=FORCED if force else ACCEPTED)
    )
    return restored


async def _stored_heads(checked: Config, *, force: bool) -> Mapping[str, Head]:
    """Return the heads of the lists in the store; with `force`, without damaged ones.

    A missing file of the store is not created, so that a rejected restore changes nothing.
    """
    store = open_store(checked.store, checked.state, creates=False)
    stored: dict[str, Head] = {}
    try:
        heads = await store.heads()
        for name in heads:
            with SuppressUnreadable() if force else nullcontext():
                stored[name] = heads[name]
    finally:
        await store.close()
    return stored


def _restore_journal(checked: Config, room: Path, facts: Mapping[str, Any]) -> None:
    """Restore the journal if this host has none; otherwise keep that of the backup as a witness file, unless this journal continues it."""
    file, folder = room / JOURNAL_FILE, checked.state / JOURNAL
    if not file.exists():
        return
    with acting_in(checked.state):
        if restore_journal(file, folder) or has_line(folder, facts["journal"]["digest"]):
            return
        detail = f"journal in the backup of {facts['made']} by {facts['node']}"
        event = add_witness(file, folder, who=who(), detail=detail)
    record_event(checked, event)


def _restore_files(keys: Mapping[str, bytes], room: Path, folder: Path, *, force: bool) -> list[str]:
    """Restore the files of a backup to the state folder: keys, clock file, highest serial of each list, and recorded checks.

    `keys`: content of each key file by its name. Returns notes for the operator about key files that were not replaced.
    """
    notes = []
    for name, content in keys.items():
        path = folder / name
        if path.exists():
            if path.read_bytes() == content:
                continue
            if not force:
                notes.append(f"{path} differs from the backup and stays; --force replaces it")
                continue
        mode = PUBLIC_MODE if name.endswith(".pub") else KEY_MODE
        write_file(path, content, mode=mode, durable=True)
    times = [*_clock_times(folder), *_clock_times(room)]
    if times:
        write_file(folder / CLOCK_FILE, f"{max(times)}\n".encode(), mode=FILE_MODE)
    entries, present = load_in_force(room), load_in_force(folder)
    absent = {name: entry for name, entry in entries.items() if name not in present}
    save_in_force(folder, absent, {name: entry.mark for name, entry in entries.items()})
    for path in sorted((room / FOLDER).glob("*/*.parquet")):
        place = folder / path.relative_to(room)
        if not place.exists():
            place.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            path.replace(place)
    return notes


def _clock_times(folder: Path) -> list[int]:
    """Return the Unix time in the clock file of a folder as a list with one number, or an empty list if the file is unreadable."""
    with suppress(OSError, ValueError):
        return [int((folder / CLOCK_FILE).read_text())]
    return []


def _small_files(folder: Path) -> list[str]:
    return [name for name in (*KEYS, *MARKS) if (folder / name).is_file()]


@contextmanager
def _room(checked: Config, *, creates: bool = False) -> Iterator[Path]:
    """Create a locked temporary folder for the content of a backup; it is deleted at the end of the `with` block.

    Its place is the state folder, or if that is missing the system's folder for temporary files. Folders of killed commands are
    deleted first. `creates`: create a missing state folder, and remove it at the end if it is empty.
    """
    state = checked.state
    is_new = creates and not state.is_dir()
    with ExitStack() as stack:
        try:
            with acting_in(state):
                if creates:
                    prepare(state)
                room = _locked_room(state, stack)
        except OSError as e:
            raise EirError(
                f"the state folder {state} (`state` in {checked.path}): {e.strerror}{owner_advice(state)}"
            ) from None
        try:
            yield room
        finally:
            with acting_in(state):
                shutil.rmtree(room, ignore_errors=True)
                if is_new:
                    with suppress(OSError):  # it has content
                        state.rmdir()


def _locked_room(state: Path, stack: ExitStack) -> Path:
    """Create the temporary folder of a command, locked until `stack` closes; delete folders of commands that no longer run."""
    if not state.is_dir():
        return Path(tempfile.mkdtemp(prefix=ROOM))
    with _locked(state):  # no other command then finds the new folder without its lock
        for path in state.glob(f"{ROOM}*/"):
            with suppress(OSError), _locked(path, fcntl.LOCK_NB):  # a command that runs has the lock
                shutil.rmtree(path, ignore_errors=True)
        room = Path(tempfile.mkdtemp(prefix=ROOM, dir=state))
        stack.enter_context(_locked(room))
    return room


@contextmanager
def _locked(folder: Path, option: int = 0) -> Iterator[None]:
    """Lock a folder during the `with` block. With the option LOCK_NB, raise BlockingIOError if another command has the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | option)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _output(file: Path) -> Iterator[IO[bytes]]:
    """Open the backup file for writing, or standard output for `-`. The file gets its name only when it is complete."""
    if str(file) == "-":
        yield sys.stdout.buffer
        return
    with open_replacement(file, mode=KEY_MODE, durable=True) as stream:
        yield stream


@contextmanager
def _input(file: Path) -> Iterator[IO[bytes]]:
    """Open the backup file for reading, or standard input for `-`."""
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with file.open("rb") as stream:
        yield stream


def _write(
    stream: IO[bytes],
    members: Mapping[str, Path | bytes],
    facts: Mapping[str, Any],
    advance: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Write the manifest of a backup and its members to a tar file; return the size and the SHA-256 of each member."""
    sizes, digests = {}, {}
    for name, source in members.items():
        with _content(source) as content:
            digests[name] = hashlib.file_digest(content, "sha256").hexdigest()
            sizes[name] = content.seek(0, os.SEEK_END)
    contents = {"bytes": sizes, "files": digests}
    manifest = json.dumps({**facts, **contents}, indent=1).encode()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        for number, (name, source) in enumerate({MANIFEST: manifest, **members}.items()):
            advance("write", number, len(members) + 1)
            with _content(source) as content:
                header = tarfile.TarInfo(name)
                header.size, header.mode = sizes.get(name, len(manifest)), KEY_MODE
                tar.addfile(header, content)
    return contents


def _content(source: Path | bytes) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _unpack(stream: IO[bytes], file: Path, room: Path | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Verify a backup; return its manifest, and the content of its keys. The other members are written to the folder `room`.

    If `room` is `None`, the backup is only verified. The manifest limits the size of each member.

    Raises:
        EirError: if the backup is damaged or incomplete.
    """
    keys = {}
    try:
        facts, members = _read_manifest(stream, file)
        if room is not None:
            _check_disk(file, room, members)
        for name, size, digest in members:
            pieces = _verified_pieces(stream, name, size, digest)
            if room is None:
                deque(pieces, maxlen=0)
            elif name in KEYS:
                keys[name] = b"".join(pieces)
            else:
                path = room / name
                path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
                with open_named(path, path, "xb", partial(os.open, mode=KEY_MODE)) as out:
                    out.writelines(pieces)
    except (tarfile.TarError, ValueError) as e:
        raise EirError(f"{file} is not a complete backup: {e}; copy it again, or use another backup") from None
    if stream.read(tarfile.RECORDSIZE).strip(b"\0"):
        raise EirError(f"{file} has further content after the members that its manifest names; use another backup")
    return facts, keys


def _read_manifest(stream: IO[bytes], file: Path) -> tuple[dict[str, Any], list[Member]]:
    """Read the manifest of a backup; return it, and name, size and SHA-256 of each member that follows it.

    Raises:
        EirError: if the backup has another format.
        ValueError: if the manifest is invalid.
    """
    name, size = _read_header(stream)
    if name != MANIFEST or size > SMALL_BYTES_MAX:
        raise ValueError(f"it begins with {name!r:.80} of {size:,} bytes, and not with its manifest")
    content = b"".join(_read(stream, size))
    try:
        facts = json.loads(content)
        if facts["format"] != FORMAT:
            form = f"{facts['format']!r:.40}"
            raise EirError(
                f"{file} has the format {form}, and eir {__version__} reads {FORMAT}; restore it by the version that wrote it, write its lists"
                " there by eir export, and load them here by eir load or eir add --file"
            )
        sizes = facts["bytes"]
        members = [(name, sizes[name], digest) for name, digest in facts["files"].items()]
        valid = utc_text(datetime.fromisoformat(facts["made"])), IDENTITY.read(facts["node"])
        facts["journal"] = {"digest": str(facts["journal"]["digest"]), "faults": int(facts["journal"]["faults"])}
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError(f"its manifest is invalid: {type(e).__name__} {e}") from None
    if valid != (facts["made"], facts["node"]):
        raise ValueError("its manifest has an invalid time or host")
    for name, size, _ in members:
        is_large = name == JOURNAL_FILE or _is_list(name) or RECORD.fullmatch(name) is not None
        size_max = sys.maxsize if is_large else SMALL_BYTES_MAX if name in (*KEYS, *MARKS) else -1
        if type(size) is not int or not 0 <= size <= size_max:
            raise ValueError(f"its manifest names {name!r:.80} of {size!r:.40} bytes")
    return facts, members


def _is_list(name: str) -> bool:
    """Return True for the name of a member with a list."""
    folder, _, list_name = name.partition("/")
    return folder == LISTS and is_list_name(list_name.removesuffix(IMPORT))


def _check_disk(file: Path, room: Path, members: Sequence[Member]) -> None:
    """Raise EirError if the disk has no room for the members of a backup, and for an unpacked journal."""
    needs = sum(2 * size if name == JOURNAL_FILE else size for name, size, _ in members)
    free = shutil.disk_usage(room).free
    if needs > free:
        raise EirError(
            f"{file} needs {needs:,} bytes on the disk of {room.parent}, which has {free:,}; make room there, then try again"
        )


def _verified_pieces(stream: IO[bytes], name: str, size: int, digest: str) -> Iterator[bytes]:
    """Yield the content of the next member; raise ValueError if it differs from the manifest's `name`, `size` or `digest`."""
    found = _read_header(stream)
    if found != (name, size):
        raise ValueError(f"it has {found[0]!r:.80} of {found[1]:,} bytes, and its manifest {name} of {size:,} bytes")
    computed = hashlib.sha256()
    for piece in _read(stream, size):
        computed.update(piece)
        yield piece
    if computed.hexdigest() != digest:
        raise ValueError(f"its member {name} is damaged")


def _read_header(stream: IO[bytes]) -> tuple[str, int]:
    """Read the header of the next member; return its name and size. Raise ValueError unless it is a plain file."""
    header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "ascii", "backslashreplace")
    if header.type != tarfile.REGTYPE or header.size < 0:
        raise ValueError(f"it has {header.name!r:.80}, which is not a plain file")
    return header.name, header.size


def _read(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the content of a member in pieces, and skip its padding; raise ValueError if the stream ends before."""
    rest = size
    while rest:
        piece = stream.read(min(rest, PIECE_BYTES))
        if not piece:
            raise ValueError("its end is missing")
        rest -= len(piece)
        yield piece
    stream.read(-size % tarfile.BLOCKSIZE)
