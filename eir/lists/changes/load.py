"""Loader of a release: verifies its files, reads the rows, builds pages and writes them to the store.

The module eir.lists.releases.release verifies signatures and manifest. Then this module verifies size and digest of all files
before it reads the first row. The list in force stays until one atomic write replaces it. Every refusal is an event in the store's
history. A load blocks the calling thread, so it needs a process of its own.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eir.errors import GenerationConflict, ReleaseRefused, StoreChanged
from eir.lists.changes.data_files import BUILD, KEPT_BYTES_MAX, VERIFY, WRITE, read_release
from eir.lists.changes.local import add_dates
from eir.lists.log.change import utc_text
from eir.lists.pages.pages import content_digest
from eir.lists.record.dates import write_dates
from eir.lists.record.history import CLAIMS
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import LOAD_MEMORY, TYPES, ListSettings
from eir.lists.record.store import ACCEPTED, FORCED, NO_LIST, REFUSED, Event, ListState, ListStore, Mark, try_record
from eir.lists.releases.release import (
    DELTA,
    Manifest,
    VerifiedRelease,
    check_serial,
    check_times,
    naming_release,
    verify_release,
)
from eir.lists.rows.build import Built, Rows, amend_pages, build_pages
from eir.lists.rows.dates import date_pages
from eir.lists.rows.delivered import Done, Progress, sum_progress
from eir.lists.rows.turnover import differences, exceeded_limits, force_text, turnover

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Result of a load or of a dry run."""

    list: str
    holds: str
    """Kind of the list."""
    kind: str
    serial: int
    rows: int
    entries: int
    devices: int
    entries_before: int
    devices_before: int
    bad_rows: int
    bad: tuple[str, ...]
    """Complaints about the first bad rows, as in Tally."""
    skipped: int
    """Number of junk identifiers that were skipped, as in Tally."""
    wrong_check_digits: int | None
    """Number of IMEIs with a wrong check digit, which are in the list nevertheless; None except in a dry run."""
    come: int
    """Number of identifiers that were not in the list before; a whole TAC counts as 1,000,000."""
    gone: int
    """Number of identifiers that are no longer in the list."""
    lifted: tuple[str, ...]
    """Limits that the release exceeds and that `force` lifted: `shrink`, `growth`, `range`."""
    seconds: Mapping[str, float]
    """Duration of each stage in seconds."""
    state: ListState | None
    """Stored state; None for a dry run."""

    def as_json(self) -> dict[str, object]:
        """Return the report of the load as a JSON document for scripts."""
        names = [part.name for part in fields(self) if part.name != "state"]
        document = {name: getattr(self, name) for name in names}
        seconds = {stage: round(duration, 3) for stage, duration in self.seconds.items()}
        return document | {"seconds": seconds}

    def as_text(self) -> str:
        """Format the report of the load in one line, followed by one line for each bad row."""
        release = f"{self.list} {self.kind} {self.serial}"
        parts = [f"{release}: {self.entries:,} entries, before {self.entries_before:,}"]
        parts.append(turnover(self.holds, self.come, self.gone))
        if self.lifted:
            parts.append(force_text(self.lifted))
        if self.skipped:
            parts.append(f"{self.skipped:,} junk identifiers skipped")
        if self.wrong_check_digits:
            parts.append(f"warning: {self.wrong_check_digits:,} IMEIs of 15 digits end in a wrong check digit")
        if self.bad_rows:
            parts.append(f"{self.bad_rows:,} bad rows left out")
        parts.append(f"{sum(self.seconds.values()):.1f} s")
        return "\n  ".join(("; ".join(parts), *self.bad))


async def load_release(
    manifest: Path, lists: Mapping[str, ListSettings], store: ListStore, *, who: str, now: datetime, force: bool = False,
    dry_run: bool = False, marks: Mapping[str, Mark] | None = None, progress: Progress | None = None,
) -> LoadReport:  # fmt: skip
    """Verify a release, and load it into its list in one atomic write. The other arguments are fields of Loader.

    Raises:
        ReleaseRefused: after the refusal was recorded, if the store can be written.
        StoreError: if the store fails.
    """
    report_progress = progress or (lambda *_: None)
    loader = Loader(lists, store, who, now, marks or {}, force, dry_run, progress=report_progress)
    return await loader.verify_and_load(manifest)


@dataclass(slots=True)
class Loader:
    """Load of one release: its settings, and the duration of each stage."""

    lists: Mapping[str, ListSettings]
    store: ListStore
    who: str
    now: datetime
    marks: Mapping[str, Mark] = field(default_factory=dict)
    """Highest mark (`ListState.mark`) of each list that was ever in force on this node, independent of the store."""
    force: bool = False
    """Lift the limits on shrinking, growth and ranges, but no other check."""
    dry_run: bool = False
    """Write nothing to the store, neither the list nor an event; do everything else."""
    save_mark: Callable[[str, Mark], None] = lambda *_: None
    """Function that stores the mark of a list on this host. It is called after the write, before the load returns."""
    progress: Progress = lambda *_: None
    memory_max: int = LOAD_MEMORY
    """Memory in bytes for the rows; a release that needs more is rejected before its first row is read."""
    kept_max: int = KEPT_BYTES_MAX
    """Bytes of a release's data files up to which the files stay in memory between hashing and reading."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each finished stage."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Done]:
        """Measure the duration of a stage (the `with` block). Yield a function that the block calls with the size of each completed part.

        `total`: sum of the sizes of all parts.
        """
        began = time.monotonic()
        yield sum_progress(self.progress, name, total)
        self.seconds[name] = time.monotonic() - began
        self.progress(name, total, total)

    async def record(self, refused: ReleaseRefused, digest: str | None = None) -> None:
        """Write the rejection of a release to the history, unless the store cannot be written.

        `digest`: digest of the manifest; None if its signatures are not valid.
        """
        if self.dry_run:
            return
        claims = "" if refused.claims is None else CLAIMS.format(*refused.claims)
        event = Event(
            time=utc_text(self.now), who=self.who, what="refuse", list=refused.list_name, serial=refused.serial,
            digest=digest, outcome=REFUSED, detail=f"{refused.reason}: {refused.detail}{claims}",
        )  # fmt: skip
        await try_record(self.store, event)

    async def verify_and_load(self, manifest: Path) -> LoadReport:
        """Verify and load the release of this manifest. Raises the errors of load_release."""
        try:
            with self.stage(VERIFY, 1):
                release = verify_release(manifest, self.lists, now=self.now)
        except ReleaseRefused as refused:
            await self.record(refused)
            raise
        return await self.load(release, manifest.parent)

    async def load(self, release: VerifiedRelease, folder: Path) -> LoadReport:
        """Load a verified release whose data files are in `folder`. Raises the errors of load_release."""
        name = release.manifest.list
        gc.disable()  # the collector would scan hundreds of thousands of new pages repeatedly and free nothing
        try:
            with naming_release(release.manifest):
                try:
                    return await self._load(release, folder)
                except (GenerationConflict, StoreChanged):
                    detail = f"{name} was changed by another load or command meanwhile; nothing was written, see eir history {name}"
                    raise ReleaseRefused("conflict", detail) from None
        except ReleaseRefused as refused:
            await self.record(refused, release.digest)
            raise
        finally:
            gc.enable()

    async def _load(self, release: VerifiedRelease, folder: Path) -> LoadReport:
        manifest = release.manifest
        settings = self.lists[manifest.list]
        check_times(manifest, self.now)
        before = await self.store.state(manifest.list) or NO_LIST
        resets, highest = max(self.marks.get(manifest.list, NO_LIST.mark), before.mark)
        current = None if before is NO_LIST else before.serial
        check_serial(manifest, current=current, highest=highest, step_max=settings.serial_step_max)
        reasons = Reasons(before.reasons if manifest.kind == DELTA else ())
        rows, tally = self._read(manifest, folder, settings, reasons)
        if manifest.kind != DELTA:
            self._check_growth(settings, before, *rows)
        with self.stage(BUILD, 1):
            if manifest.kind == DELTA:
                built = await self._build_delta(settings, before, *rows)
            else:
                built = await self._build_full(manifest.list, before, *rows)
        passed = {} if before is NO_LIST else exceeded_limits(settings, before.devices, built.come, built.gone)
        if passed and not self.force:
            reason, excess = next(iter(passed.items()))
            raise ReleaseRefused(reason, f"{excess}; if this is intended, load it with --force")
        lifted = [*passed]
        if tally.wide:
            lifted.append("range")
        state = ListState(
            kind=settings.kind, serial=manifest.serial, generation=before.generation + 1, highest_serial=manifest.serial,
            serial_resets=resets, release_digest=release.digest, content_digest=built.content_digest, entries=built.entries, devices=built.devices,
            reasons=reasons.texts, issued=utc_text(manifest.issued), expires=utc_text(manifest.expires),
            signers=release.signers, loaded_at=utc_text(self.now),
        )  # fmt: skip
        stored = None
        if not self.dry_run:
            event = self._load_event(release, before, built, lifted, tally.bad)
            stored = await self._write(manifest, settings, state, built, event)
        return LoadReport(
            list=manifest.list, holds=settings.kind, kind=manifest.kind, serial=manifest.serial, rows=sum(file.rows for file in manifest.files),
            entries=built.entries, devices=built.devices, entries_before=before.entries, devices_before=before.devices,
            bad_rows=tally.bad, bad=tuple(tally.complaints), skipped=tally.skipped,
            wrong_check_digits=tally.wrong_check_digits if self.dry_run else None,
            come=built.come, gone=built.gone, lifted=tuple(lifted), seconds=self.seconds, state=stored,
        )  # fmt: skip

    def _read(
        self, manifest: Manifest, folder: Path, settings: ListSettings, reasons: Reasons
    ) -> tuple[Iterable[Rows], "Tally"]:
        """Verify and read the data files; return the rows by their role in the release, and the counts of good and bad rows."""
        from eir.lists.rows.reader import Tally  # noqa: PLC0415  # only a load needs polars, and the server imports this module

        tally = Tally(
            bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max, check_digits=self.dry_run,
            dates=settings.dates,
        )  # fmt: skip
        rows = read_release(
            manifest, folder, settings, reasons, tally, collect=Rows, stage=self.stage, memory_max=self.memory_max, kept_max=self.kept_max
        )  # fmt: skip
        if tally.wide and not self.force:
            limit = f"ranges over {settings.range_tacs_max} TACs (range_tacs_max); if they are intended, load them with --force"
            raise ReleaseRefused("range", "\n".join((limit, *tally.wide)))
        return rows, tally

    def _check_growth(self, settings: ListSettings, before: ListState, rows: Rows) -> None:
        """Reject a full release before pages are built, if its entries for whole TACs alone exceed the limit on growth."""
        if before is NO_LIST or self.force:
            return
        come = rows.devices_min() - before.devices
        for reason, excess in exceeded_limits(settings, before.devices, come, 0).items():
            raise ReleaseRefused(reason, f"at least {excess}; if this is intended, load it with --force")

    def _load_event(
        self, release: VerifiedRelease, before: ListState, built: Built, lifted: Sequence[str], bad_rows: int
    ) -> Event:
        """Create the history event of a load. `before`: state of the list before the load. `lifted`: limits that `force` lifted."""
        manifest = release.manifest
        sizes = f"{built.entries} entries, before {before.entries}"
        parts = [sizes, turnover(self.lists[manifest.list].kind, built.come, built.gone)]
        if bad_rows:
            parts.append(f"{bad_rows} bad rows left out")
        if self.force:
            parts.append(force_text(lifted))
        parts.append(f"signed by {', '.join(release.signers)}")
        return Event(
            time=utc_text(self.now), who=self.who, what="load", list=manifest.list, serial=manifest.serial,
            digest=release.digest, outcome=FORCED if self.force else ACCEPTED, detail="; ".join(parts),
        )  # fmt: skip

    async def _write(
        self, manifest: Manifest, settings: ListSettings, state: ListState, built: Built, event: Event
    ) -> ListState:
        """Write the built pages, and the dates of their entries, to the store; return the stored state of the list."""
        is_delta = manifest.kind == DELTA
        seen = state.generation - 1
        write = self.store.amend if is_delta else self.store.replace
        with self.stage(WRITE, len(built.pages)):
            if settings.dates or not is_delta:
                await write_dates(
                    self.store, manifest.list, built.dates, replaced=built.dates_before, seen=built.dates_state, state=state, keep=settings.keep,
                )  # fmt: skip
            stored = await write(manifest.list, state, built.pages, seen=seen, keep=settings.keep, event=event)
        self.save_mark(manifest.list, stored.mark)
        return stored

    async def _build_full(self, name: str, state: ListState, rows: Rows) -> Built:
        """Build the pages of a full release, and count their differences from the present content of the list."""
        dates = rows.dates
        built = build_pages(rows, lambda done, total: self.progress(BUILD, done, total))
        dated = tuple(date_pages(built.pages, dates)) if self.lists[name].dates else ()
        built = replace(built, content_digest=content_digest(built.pages), dates=dated)
        if state is NO_LIST:
            return replace(built, come=built.devices)
        if built.content_digest == state.content_digest:
            return built
        now = self.now.timestamp()
        new = {page.number: page for page in built.pages}
        all_come = 0
        all_gone = 0
        async for stored, before in self.store.pages(name):
            if stored.generation != state.generation:
                raise GenerationConflict(f"list {name} is no longer at generation {state.generation}")
            after = [new.pop(page.number) for page in before if page.number in new]
            come, gone = differences(before, after, now)
            all_come += come
            all_gone += gone
        come_on_new_pages, _ = differences((), new.values(), now)
        return replace(built, come=all_come + come_on_new_pages, gone=all_gone)

    async def _build_delta(
        self, settings: ListSettings, state: ListState, rows_added: Rows, rows_removed: Rows
    ) -> Built:
        """Build the pages that a delta changes, and count the entries of the whole list."""
        if state.kind != settings.kind:
            raise ReleaseRefused(
                "base", f"the list in force is a list of {state.kind}; publish a full release of {settings.kind}"
            )
        removed = build_pages(rows_removed).pages
        added = build_pages(rows_added).pages
        numbers = sorted({page.number for page in (*removed, *added)})
        stored, before = await self.store.some_pages(settings.name, numbers)
        if stored is None or stored.generation != state.generation:
            raise GenerationConflict(f"list {settings.name} is no longer at generation {state.generation}")
        built = amend_pages(
            before, removed, added, state.content_digest, self.now.timestamp(), one_each=settings.kind == TYPES
        )
        whole = replace(built, entries=state.entries + built.entries, devices=state.devices + built.devices)
        if not settings.dates:
            return whole
        return await add_dates(
            whole, rows_added.dates, settings, self.store, numbers=numbers, before=before, waits=False
        )
