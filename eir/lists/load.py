"""A release from its folder into the store: verified, read, built, within its limits, switched.

The order of trust is in one place each: signatures and manifest in lists.release, then here size and digest of every file
before the first row of any is read. Until the store switches, nothing of the list in force has changed; every refusal is
an event in the store's history.

The work is done on the calling thread: a load belongs in a process of its own, beside the server. May import lists,
eir.device and eir.errors; the store comes as an argument.
"""

import difflib
import gc
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from eir.errors import GenerationConflict, NothingToRollBack, ReleaseRefused, StoreError
from eir.lists.build import Reasons, Rows, TooManyPages, amend_pages, build_pages, differences
from eir.lists.delivered import DataFile, open_folder
from eir.lists.layout import DEVICES
from eir.lists.pages import Page, amended_digest, content_digest
from eir.lists.release import (
    ADDED,
    DELTA,
    ENTRIES,
    REMOVED,
    Release,
    Trust,
    check_serial,
    claimed,
    utc_text,
    verify_release,
)
from eir.lists.store import ACCEPTED, REFUSED, ROLLED_BACK, Event, ListState, ListStore

if TYPE_CHECKING:
    from eir.lists.reader import Tally

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a stage, what of it is done and what there is in all (bytes, keys or pages)."""

VERIFY, DIGEST, READ, BUILD, WRITE = "verify", "digest", "read", "build", "write"
STAGES = (VERIFY, DIGEST, READ, BUILD, WRITE)
"""In the order in which a load goes through them; each reports its begin with 0 done."""

CLAIMS = " (claims {} {}, unverified)"
"""Ends the detail of a refusal whose manifest was never verified: the list and the serial that it names all the same."""
_CLAIMED = re.compile(r" \(claims (\S+) [0-9]+, unverified\)\Z")

KEPT_BYTES_MAX = 256 << 20
"""Data files of a release that together are no larger stay in memory between hashing and reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSettings:
    """A list as the configuration declares it."""

    name: str
    kind: str = DEVICES
    """devices, pairs or subscribers."""
    signers: Path | None = None
    """An OpenSSH allowed_signers file: whose releases may change the list. None: nobody's."""
    revoked: Path | None = None
    threshold: int = 1
    """Distinct keys, of distinct principals, that must have signed."""
    local: bool = False
    """Changed by an operator's commands instead of releases."""
    shrink_max: float = 0.20
    """Fraction of the devices in force by which a release may shrink the list."""
    growth_max: float = 0.20
    """Fraction of the devices in force by which a release may grow the list."""
    range_tacs_max: int = 1000
    """TACs that one range may span."""
    bad_rows_max: int = 100
    """Rows of a release that may be wrong; they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load did, or a dry run would have done."""

    list: str
    kind: str
    """full or delta."""
    serial: int
    rows: int
    """Data rows in all files."""
    entries: int
    devices: int
    entries_before: int
    devices_before: int
    bad_rows: int
    bad: tuple[str, ...]
    """The first bad rows: file, line, what was expected."""
    skipped: int
    """Junk identifiers, in DIRBS layouts."""
    wrong_check_digits: int | None
    """IMEIs of 15 digits of which the last is neither the check digit nor 0; they count all the same. None but for a dry run."""
    come: int | None
    """Identifiers (a TAC counts a million) that were not in the list before; None for a full release that was loaded."""
    gone: int | None
    seconds: Mapping[str, float]
    """By stage."""
    state: ListState | None
    """As stored; None for a dry run."""
    recorded: bool
    """False if the list was switched and then the history could not be written."""

    def as_json(self) -> dict[str, object]:
        """The report for scripts."""
        hidden = {"state", "seconds"}
        shown = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in hidden}
        seconds = {stage: round(taken, 3) for stage, taken in self.seconds.items()}
        return {**shown, "bad": list(self.bad), "seconds": seconds}

    def as_text(self) -> str:
        """The report in a line, and a line for each bad row that is named."""
        said = [f"{self.list} {self.kind} {self.serial}: {self.entries:,} entries, before {self.entries_before:,}"]
        if self.come is not None:
            said.append(f"{self.come:,} identifiers come, {self.gone:,} go")
        if self.skipped:
            said.append(f"{self.skipped:,} junk identifiers skipped")
        if self.wrong_check_digits:
            said.append(f"warning: {self.wrong_check_digits:,} IMEIs of 15 digits end in a wrong check digit")
        if self.bad_rows:
            said.append(f"{self.bad_rows:,} bad rows left out")
        if self.state is not None and not self.recorded:
            said.append("the history could not be written")
        said.append(f"{sum(self.seconds.values()):.1f} s")
        return "\n  ".join(("; ".join(said), *self.bad))


async def load_release(
    manifest: Path,
    lists: Mapping[str, ListSettings],
    store: ListStore,
    *,
    who: str,
    now: datetime,
    force: bool = False,
    dry_run: bool = False,
    marks: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Load a release into the list that it names, wholly or not at all.

    `force` lifts the limits on shrinking, growth and ranges, and nothing else; a dry run does all but the switch, and
    records nothing. `marks`: for each list the highest serial that this node has ever had in force, whatever the store
    says. Raises ReleaseRefused, after recording the refusal (if the store can be written), and StoreError.
    """
    run = _Run(store=store, who=who, now=now, force=force, dry_run=dry_run, progress=progress or _silent)
    try:
        with _collector_paused():
            task = await _verified(run, manifest, lists, marks or {})
            return await _load(run, task, manifest.parent)
    except ReleaseRefused as refused:
        if run.release is not None:
            refused.list_name, refused.serial = run.release.manifest.list, run.release.manifest.serial
        if not dry_run:
            about = (refused.list_name, refused.serial)
            if refused.reason == "unknown_list":
                refused.detail += _which_list(manifest, lists)
            said = f"{refused.reason}: {refused.detail}"
            if refused.list_name is None and (claim := claimed(manifest)) is not None:
                said += CLAIMS.format(*claim)
            await _record(run, "refuse", REFUSED, about, said)
        raise


def is_about(event: Event, name: str) -> bool:
    """True for an event of this list, and for the refusal of a release that claimed to be for it."""
    if event.list is not None:
        return event.list == name
    found = _CLAIMED.search(event.detail)
    return found is not None and found[1] == name


def _which_list(manifest: Path, lists: Mapping[str, ListSettings]) -> str:
    """What to do about a release for a list that takes none."""
    claim = claimed(manifest)
    if claim is None:
        return ""
    if claim[0] in lists:
        return f"; {claim[0]} is local: entries go into it by eir add"
    near = difflib.get_close_matches(claim[0], lists, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(lists) or 'none'}"


async def roll_back(name: str, store: ListStore, *, who: str, now: datetime, dry_run: bool = False) -> ListState:
    """Undo the last release of a list, full or delta; its serial stays used. Raises StoreError (NothingToRollBack).

    A dry run returns the state that would be in force.
    """
    before = await store.state(name)
    if dry_run:
        kept = await store.previous(name)
        if before is None or kept is None:
            raise NothingToRollBack(f"no release of list {name} before the one in force is kept; {_instead(name, before)}")
        return replace(kept, highest_serial=before.highest_serial)
    try:
        state = await store.rollback(name, seen=0 if before is None else before.generation)
    except NothingToRollBack as error:
        raise NothingToRollBack(f"{error}; {_instead(name, before)}") from None
    undone = 0 if before is None else before.serial
    with suppress(StoreError):  # what happened has happened, also where the history cannot be written
        await store.record(
            Event(
                time=utc_text(now),
                who=who,
                what="rollback",
                list=name,
                serial=state.serial,
                digest=state.release_digest,
                outcome=ROLLED_BACK,
                detail=f"release {undone} undone; {state.entries} entries",
            )
        )
    return state


def _instead(name: str, state: ListState | None) -> str:
    """What leads to good data where no rollback does."""
    if state is None:
        return "it has never been loaded"
    if not state.serial:
        return f"put the entries right by eir add and eir remove, see eir history {name}"
    return f"publish the good data again with a serial above {state.highest_serial} (eir publish), and load it"


@dataclass(slots=True, kw_only=True)
class _Run:
    """One call of `load_release`."""

    store: ListStore
    who: str
    now: datetime
    force: bool
    dry_run: bool
    progress: Progress
    release: Release | None = None
    """Once its signatures hold."""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        self.progress(name, 0, total)
        began = time.monotonic()
        yield lambda done: self.progress(name, done, total)
        self.seconds[name] = time.monotonic() - began
        self.progress(name, total, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A release that is to be believed, the list that it is for, and what its rows say besides identifiers."""

    release: Release
    settings: ListSettings
    state: ListState | None
    """Of the list in force when the load began; the switch is on condition that it still is."""
    reasons: Reasons
    tally: "Tally"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Next:
    """What is to be written: all pages of a full list, or those that a delta changes; and the sums of the whole list."""

    pages: Sequence[Page]
    entries: int
    devices: int
    content_digest: str
    come: int | None = None
    gone: int | None = None


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the cyclic collector, which would walk hundreds of thousands of new pages again and again to free nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


async def _verified(
    run: _Run, manifest: Path, lists: Mapping[str, ListSettings], marks: Mapping[str, int]
) -> _Task:
    from eir.lists.reader import Tally  # noqa: PLC0415  # only a load needs polars, and the server imports this module

    trusts = {
        name: Trust(signers=settings.signers, revoked=settings.revoked, threshold=settings.threshold)
        for name, settings in lists.items()
        if settings.signers is not None and not settings.local
    }
    with run.stage(VERIFY, 1):
        run.release = release = verify_release(manifest, trusts, now=run.now)
        promised = release.manifest
        settings = lists[promised.list]
        state = await run.store.state(promised.list)
        highest = max(marks.get(promised.list, 0), 0 if state is None else state.highest_serial)
        check_serial(promised, current=None if state is None else state.serial, highest=highest)
    return _Task(
        release=release,
        settings=settings,
        state=state,
        reasons=Reasons(state.reasons if state is not None and promised.kind == DELTA else ()),
        tally=Tally(bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max, check_digits=run.dry_run),
    )


async def _load(run: _Run, task: _Task, folder: Path) -> LoadReport:
    manifest, settings, state, tally = task.release.manifest, task.settings, task.state, task.tally
    rows = _read(run, task, folder)
    if tally.wide and not run.force:
        limit = f"ranges over {settings.range_tacs_max} TACs (range_tacs_max); if they are meant, load them with --force"
        raise ReleaseRefused("range", "\n".join((limit, *tally.wide)))
    try:
        if manifest.kind == DELTA and state is not None:
            following = await _amended(run, task, state, rows)
        else:
            following = _replaced(run, rows[ENTRIES])
    except TooManyPages as error:
        raise ReleaseRefused("range", str(error)) from None
    before = 0 if state is None else state.devices
    if before and not run.force:
        _check_size(settings, before, following.devices)
    if run.dry_run and following.come is None:
        following = await _compared(run, manifest.list, following)

    stored, recorded = None, False
    if not run.dry_run:
        stored = await _switch(run, task, following)
        detail = f"{following.entries} entries, before {0 if state is None else state.entries}"
        if tally.bad:
            detail += f"; {tally.bad} bad rows left out"
        if run.force:
            detail += "; --force"
        detail += f"; signed by {', '.join(task.release.signers)}"
        recorded = await _record(run, "load", ACCEPTED, (manifest.list, manifest.serial), detail)
    return LoadReport(
        list=manifest.list,
        kind=manifest.kind,
        serial=manifest.serial,
        rows=sum(file.rows for file in manifest.files),
        entries=following.entries,
        devices=following.devices,
        entries_before=0 if state is None else state.entries,
        devices_before=before,
        bad_rows=tally.bad,
        bad=tuple(tally.complaints),
        skipped=tally.skipped,
        wrong_check_digits=tally.wrong_check_digits if run.dry_run else None,
        come=following.come,
        gone=following.gone,
        seconds=run.seconds,
        state=stored,
        recorded=recorded,
    )


def _read(run: _Run, task: _Task, folder: Path) -> Mapping[str, Rows]:
    """The rows of all files by role, once the size and digest of every file hold."""
    from eir.lists.reader import read_rows  # noqa: PLC0415  # as above

    files = task.release.manifest.files
    rows = {role: Rows(sum(file.rows for file in files if file.role == role)) for role in (ENTRIES, ADDED, REMOVED)}
    total = sum(entry.bytes for entry in files)
    keep = total <= KEPT_BYTES_MAX
    with ExitStack() as stack:
        folder_fd = open_folder(folder)
        stack.callback(os.close, folder_fd)
        opened = [(entry, stack.enter_context(DataFile(entry.name, folder_fd))) for entry in files]
        for entry, file in opened:
            if file.size != entry.bytes:
                raise ReleaseRefused("file_size", f"{entry.name} has {file.size} bytes; the manifest says {entry.bytes}")
        with run.stage(DIGEST, total) as done:
            before = 0
            for entry, file in opened:
                if (file.keep if keep else file.sha256)(_after(before, done)) != entry.sha256:
                    raise ReleaseRefused("digest", f"{entry.name} does not have the SHA-256 that the manifest says")
                before += entry.bytes
        with run.stage(READ, total) as done:
            before = 0
            for entry, file in opened:
                found = read_rows(
                    file.chunks(entry.rows, entry.sha256, _after(before, done)),
                    name=entry.name,
                    layout=entry.layout,
                    kind=task.settings.kind,
                    rows=rows[entry.role],
                    reasons=task.reasons,
                    tally=task.tally,
                )
                if found != entry.rows:
                    raise ReleaseRefused("rows", f"{entry.name} has {found} rows; the manifest says {entry.rows}")
                before += entry.bytes
    return rows


def _after(before: int, done: Callable[[int], None]) -> Callable[[int], None]:
    return lambda of_this_file: done(before + of_this_file)


def _replaced(run: _Run, rows: Rows) -> _Next:
    with run.stage(BUILD, 1):
        built = build_pages(rows, lambda done, total: run.progress(BUILD, done, total))
        digest = content_digest(built.pages)
    return _Next(pages=built.pages, entries=built.entries, devices=built.devices, content_digest=digest)


async def _amended(run: _Run, task: _Task, state: ListState, rows: Mapping[str, Rows]) -> _Next:
    settings = task.settings
    if state.kind != settings.kind:
        raise ReleaseRefused("base", f"the list in force is one of {state.kind}; a full release of {settings.kind} is needed")
    with run.stage(BUILD, 1):
        removed, added = build_pages(rows[REMOVED]), build_pages(rows[ADDED])
        numbers = sorted({page.number for built in (removed, added) for page in built.pages})
        found, before = await run.store.some_pages(settings.name, numbers)
        if found is None or found.generation != state.generation:
            raise _overtaken(settings.name)
        after, sums = amend_pages(before, removed.pages, added.pages)
        changed = {page.number for page in after}
        touched = [page for page in before if page.number in changed]
        come, gone = differences(touched, after)
    return _Next(
        pages=after,
        entries=state.entries + sums.entries,
        devices=state.devices + sums.devices,
        content_digest=amended_digest(state.content_digest, touched, after),
        come=come,
        gone=gone,
    )


async def _compared(run: _Run, name: str, following: _Next) -> _Next:
    """With the identifiers that come and go, for a dry run of a full release."""
    before = [page async for _, batch in run.store.pages(name) for page in batch]
    come, gone = differences(before, following.pages)
    return replace(following, come=come, gone=gone)


def _check_size(settings: ListSettings, before: int, after: int) -> None:
    """Refuse a list that is much smaller or larger than the one in force: more likely a mistake than the truth."""
    change = (after - before) / before
    for reason, key, change_of, limit in (
        ("shrink", "shrink_max", -change, settings.shrink_max),
        ("growth", "growth_max", change, settings.growth_max),
    ):
        if change_of > limit:
            raise ReleaseRefused(
                reason,
                f"{before} devices are in force and {after} would be: {change:+.1%}, where {key} is {limit:.1%}; "
                "if that is meant, load it with --force",
            )


async def _switch(run: _Run, task: _Task, following: _Next) -> ListState:
    manifest = task.release.manifest
    seen = 0 if task.state is None else task.state.generation
    state = ListState(
        kind=task.settings.kind,
        serial=manifest.serial,
        generation=seen + 1,
        highest_serial=manifest.serial,
        release_digest=task.release.digest,
        content_digest=following.content_digest,
        entries=following.entries,
        devices=following.devices,
        reasons=task.reasons.texts,
        issued=utc_text(manifest.issued),
        expires=utc_text(manifest.expires),
        signers=task.release.signers,
        loaded_at=utc_text(run.now),
    )
    write = run.store.amend if manifest.kind == DELTA else run.store.replace
    try:
        with run.stage(WRITE, len(following.pages)):
            return await write(manifest.list, state, following.pages, seen=seen)
    except GenerationConflict:
        raise _overtaken(manifest.list) from None


def _overtaken(name: str) -> ReleaseRefused:
    return ReleaseRefused(
        "conflict", f"{name} was changed by another load or command meanwhile; nothing was written, see eir history {name}"
    )


async def _record(run: _Run, what: str, outcome: str, about: tuple[str | None, int | None], detail: str) -> bool:
    """Write to the history of a list, with the serial; False if the store cannot: what happened has happened all the same."""
    name, serial = about
    try:
        await run.store.record(
            Event(
                time=utc_text(run.now),
                who=run.who,
                what=what,
                list=name,
                serial=serial,
                digest=None if run.release is None else run.release.digest,
                outcome=outcome,
                detail=detail,
            )
        )
    except StoreError:
        return False
    return True
