"""Commands that write the state of a node to a backup, and restore the state.

The state is the lists, the history, the keys, the clock time, and the highest accepted serial of each list.
"""

import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from eir import __version__
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, acting_in, opened, who, with_store
from eir.cli.output import print_message, progress, show_one
from eir.cli.sightings import write_down
from eir.config import Config, load_config
from eir.disk import open_replacement, write_file
from eir.errors import EirError, GenerationConflict
from eir.interfaces.n5g.registration import INSTANCE_FILE
from eir.lists.follow.backup import RESTORE, Restored, behind, copy_store, restore_store, verify_copy
from eir.lists.record.dates import is_dates
from eir.lists.record.in_force import IN_FORCE_FILE, load_in_force, save_in_force, save_mark
from eir.lists.record.store import ACCEPTED, Event, ListState, ListStore, utc_text
from eir.lists.sources.acknowledge import KEY
from eir.lists.stores.open import COPY_FILE, SQLITE_FILE, open_copy
from eir.lists.stores.sqlite import SqliteStore
from eir.node.observe.control import owner_advice
from eir.node.processes.state_folder import CLOCK_FILE, FILE_MODE, FOLDER_MODE, lock, prepare
from eir.sightings.cases import FILE as CASES_FILE
from eir.sightings.schema import FOLDER
from eir.sightings.subscribers import KEY_FILE

FORMAT = "eir-backup/1"
MANIFEST = "backup.json"
"""Last member of the file: facts about the backup, and the SHA-256 of each other member."""
MANIFEST_BYTES_MAX = 16 << 20
KEYS = (KEY_FILE, KEY, f"{KEY}.pub", INSTANCE_FILE, CASES_FILE)
"""Files of the state folder that no program can create again: keys, the node's identity at an NRF, decisions about findings."""
MARKS = (CLOCK_FILE, IN_FORCE_FILE)
KNOWN = {SQLITE_FILE, MANIFEST, *KEYS, *MARKS}
RECORD = re.compile(rf"{FOLDER}/[0-9-]{{10}}/[A-Za-z0-9_-][A-Za-z0-9._-]*\.parquet")
KEY_MODE, PUBLIC_MODE = 0o600, 0o644
PIECE_BYTES = 1 << 20

BackupFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="The backup, a tar file; - for standard output or input.", allow_dash=True),
]


def backup(
    file: BackupFile,
    sightings: Annotated[bool, typer.Option("--sightings", help="With the record of checks, which may be large.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Write the state of the node to one file.

    The state is the lists, the history, the keys, the clock time, and the highest accepted serial of each list. The
    node may run meanwhile. The file is verified: each list by its digest, the history by its chain, and each part
    of the written file by its SHA-256. Only its owner can read the file. From a store in SQLite, the file also has the
    releases that a rollback can restore. It does not contain the configuration, the certificates and the signers files.
    """
    checked = opened(load_config(config))
    if sightings:
        write_down(checked)
    with _room(checked) as room:
        copied = room / SQLITE_FILE
        with_store(checked, lambda store: copy_store(store, copied), fresh=False, reads=True)
        with acting_in(checked.state):
            states, ledgers = asyncio.run(verify_copy(copied))
            members = {name: Path(shutil.copy(checked.state / name, room)) for name in _small_files(checked.state)}
        members[SQLITE_FILE] = copied
        if sightings:
            for path in sorted((checked.state / FOLDER).glob("*/*.parquet")):
                members[str(path.relative_to(checked.state))] = path
        histories = {chain: {"records": ledger.number, "digest": ledger.digest} for chain, ledger in ledgers.items()}
        facts: dict[str, Any] = {
            "format": FORMAT, "eir": __version__, "made": utc_text(datetime.now(UTC)), "node": checked.identity.host,
            "lists": {name: _list_facts(state) for name, state in states.items()}, "history": histories,
        }  # fmt: skip
        with progress() as advance, _output(file) as stream:
            shown = advance or (lambda *_: None)
            facts["files"] = _write(stream, members, facts, shown)
            if stream is not sys.stdout.buffer:
                stream.flush()
                with Path(stream.name).open("rb") as written:
                    _unpack(written, file, None)
    records = sum(ledger.number for ledger in ledgers.values())
    lists = [name for name in states if not is_dates(name)]
    text = f"{file}: {len(lists)} lists, {records:,} records of the history, {len(members)} files; verified"
    if str(file) == "-":
        print_message(text, "info")
    else:
        show_one({"file": str(file), **facts}, text, as_json=as_json)


def _list_facts(state: ListState) -> dict[str, Any]:
    return {
        "serial": state.serial, "generation": state.generation, "entries": state.entries, "digest": state.content_digest
    }  # fmt: skip


def restore(
    file: BackupFile,
    force: Annotated[bool, typer.Option("--force", help="Set lists back that are newer in the store or on nodes, as a change that all nodes follow; replace keys that differ.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify the backup and show the reason of a refusal; change nothing.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Restore a backup to the store and to the state folder.

    The backup may come from a node with the other kind of store. Nothing changes if a list is newer than the backup's
    in the store, in this node's copy, or in the last state of this node. Lists that only the store has stay. A history
    that is empty, damaged or cut off is restored; a history that continues the backup's stays. Existing keys stay.
    """
    checked = opened(load_config(config))
    if not dry_run:
        with acting_in(checked.state):
            prepare(checked.state)
    with _room(checked) as room:
        with acting_in(checked.state), _input(file) as stream:
            facts = _unpack(stream, file, room)
            states, _ = asyncio.run(verify_copy(room / SQLITE_FILE))
        work = partial(_restored, checked, room=room, states=states, facts=facts, force=force, dry_run=dry_run)
        try:
            restored = with_store(checked, work, reads=dry_run)
        except GenerationConflict as e:
            raise EirError(f"{e}; the lists restored before it stay; run the command again") from None
        notes = []
        if not dry_run:
            with acting_in(checked.state):
                notes = _restore_files(room, checked.state, force=force)
    for note in notes:
        print_message(f"note: {note}")
    document = {
        "file": str(file), "made": facts["made"], "node": facts["node"], "lists": [asdict(each) for each in restored], "notes": notes,
        "dry_run": dry_run,
    }  # fmt: skip
    result = "could be restored; nothing was changed" if dry_run else "restored"
    lines = [f"the backup of {facts['made']} by {facts['node']}: {result}"]
    for each in restored:
        if not is_dates(each.list):
            note = "" if each.is_written else " (as in the store)"
            lines.append(f"{each.list}: serial {each.serial}, {each.entries:,} entries{note}")
    show_one(document, "\n".join(lines), as_json=as_json)


async def _restored(
    checked: Config, store: ListStore, room: Path, states: Mapping[str, ListState], facts: Mapping[str, Any], *, force: bool, dry_run: bool
) -> list[Restored]:  # fmt: skip
    """Restore the lists and the history of an unpacked backup. With `dry_run`, only verify that the restore is allowed."""
    folder = checked.state
    backup = SqliteStore(room / SQLITE_FILE, upgrades=False)
    new_file = store.path if isinstance(store, SqliteStore) and await _is_empty(store) else None
    marks = {name: entry.mark for name, entry in load_in_force(folder).items()}
    copy = open_copy(checked.store, folder, upgrades=False) if (folder / COPY_FILE).exists() else None
    try:
        places = {"the store": store if new_file is None else None, "this node's copy": copy}
        found = await behind(states, places, marks)
        if found and not force:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in found.items())
            raise EirError(
                f"nothing was changed: the backup is older than the lists of the nodes: {reasons}; --force restores it"
            )
        restored = [Restored(name, state.serial, state.entries, is_written=True) for name, state in states.items()]
        if dry_run:
            return restored
        now, by = datetime.now(UTC), who()
        if new_file is not None and not found and _replace_file(new_file, room / SQLITE_FILE):
            await _record(new_file, f"the backup of {facts['made']} by {facts['node']}", now, by)
        else:
            restored = await restore_store(
                backup, store, marks, who=by, now=now, made=facts["made"], force=force, registering=checked.registering
            )
            states = await store.states()
        for name, state in states.items():
            if not is_dates(name):
                save_mark(folder, name, state.mark)
        return restored
    finally:
        await backup.close()
        if copy is not None:
            await copy.close()


async def _is_empty(store: SqliteStore) -> bool:
    """Return True if the file of a store is absent, or has neither lists nor history records, so that a backup may replace it."""
    if not store.path.exists():
        return True
    reader = SqliteStore(store.path, upgrades=False)
    try:
        ledger = await reader.ledger()
        return not ledger.number and not await reader.states()
    finally:
        await reader.close()


def _replace_file(path: Path, backup: Path) -> bool:
    """Write the SQLite file of a backup in place of an empty store. If a running node uses the store, write nothing and return False."""
    try:
        descriptor = lock(path.parent)
    except EirError:
        return False
    try:
        for journal in path.parent.glob(f"{path.name}-*"):
            journal.unlink()
        write_file(path, backup.read_bytes(), mode=FILE_MODE, durable=True)
    finally:
        os.close(descriptor)
    return True


async def _record(path: Path, detail: str, now: datetime, by: str) -> None:
    """Add the event of the restore to the history in a restored SQLite file."""
    store = SqliteStore(path)
    event = Event(time=utc_text(now), who=by, what=RESTORE, outcome=ACCEPTED, detail=detail)
    try:
        await store.record(event)
    finally:
        await store.close()


def _restore_files(room: Path, folder: Path, *, force: bool) -> list[str]:
    """Restore the files of a backup to the state folder: keys, clock file, highest serial of each list, and recorded checks.

    Returns notes for the operator about key files that were not replaced.
    """
    notes = []
    for name in KEYS:
        path, saved = folder / name, room / name
        if not saved.exists():
            continue
        content = saved.read_bytes()
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
def _room(checked: Config) -> Iterator[Path]:
    """Create a temporary folder for the content of a backup; it is deleted at the end of the `with` block.

    Its place is the state folder, or if that is missing the system's folder for temporary files.
    """
    try:
        with acting_in(checked.state):
            room = Path(tempfile.mkdtemp(prefix=".backup-", dir=checked.state if checked.state.is_dir() else None))
    except OSError as e:
        raise EirError(
            f"the state folder {checked.state} (`state` in {checked.path}): {e.strerror}{owner_advice(checked.state)}"
        ) from None
    try:
        yield room
    finally:
        with acting_in(checked.state):
            shutil.rmtree(room, ignore_errors=True)


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
    stream: IO[bytes], members: Mapping[str, Path], facts: Mapping[str, Any], advance: Callable[[str, int, int], None]
) -> dict[str, str]:
    """Write the members of a backup, then its manifest, to a tar file; return the SHA-256 of each member."""
    digests = {}
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        for number, (name, path) in enumerate(members.items()):
            advance("write", number, len(members))
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256")
                digests[name] = digest.hexdigest()
                size = content.tell()
                content.seek(0)
                tar.addfile(_member(name, size), content)
        manifest = json.dumps({**facts, "files": digests}, indent=1).encode()
        tar.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
    return digests


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, KEY_MODE
    return member


def _unpack(stream: IO[bytes], file: Path, room: Path | None) -> dict[str, Any]:
    """Verify a backup and return its manifest; unless `room` is `None`, extract its members to that folder.

    Raises EirError if the backup is damaged or incomplete.
    """
    digests: dict[str, str] = {}
    facts: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = member.name
                content = tar.extractfile(member)
                is_known = name in KNOWN or RECORD.fullmatch(name)
                if content is None or facts or not is_known:
                    raise EirError(f"{file} is not a backup of an EIR: it contains {name!r}")
                if name == MANIFEST:
                    facts = json.loads(content.read(MANIFEST_BYTES_MAX))
                    continue
                to = None if room is None else room / name
                digests[name] = _extract(content, to)
    except (tarfile.TarError, ValueError, EOFError) as e:
        raise EirError(f"{file} is not a complete backup: {e}") from None
    if not facts or SQLITE_FILE not in digests:
        raise EirError(f"{file} is an incomplete backup; copy it again")
    if facts.get("format") != FORMAT:
        form = repr(facts.get("format"))
        raise EirError(
            f"{file} has the format {form}, and eir {__version__} reads {FORMAT}; restore it by the version that wrote it"
        )
    damaged = [name for name, digest in facts["files"].items() if digests.get(name) != digest]
    if damaged:
        raise EirError(f"{file} is damaged: {', '.join(damaged)}")
    return facts


def _extract(content: IO[bytes], to: Path | None) -> str:
    """Return the SHA-256 of a member of the tar file; unless `to` is `None`, write the member to that file."""
    digest = hashlib.sha256()
    with ExitStack() as stack:
        out = None
        if to is not None:
            to.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            out = stack.enter_context(to.open("xb"))
        while piece := content.read(PIECE_BYTES):
            digest.update(piece)
            if out is not None:
                out.write(piece)
    return digest.hexdigest()
