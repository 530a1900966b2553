"""Loading of delivered releases: all releases in the drop folder (a pass), or one release that a pull has fetched.

eir.lists.releases.release and eir.lists.changes.release_load verify each release. An incomplete release waits. A loaded release is moved to
`accepted/`, a rejected one to `refused/` with a text file that gives the reason. If this host causes the failure (the store is
unreachable, the disk is full, a signers file cannot be read), the release stays where it is. A pass blocks its thread, so it runs in
a process of its own.
"""

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeAlias

from eir.errors import ReleaseRefused, StoreError, escape_invalid, refused_by
from eir.lists.changes.release_load import LoadReport, ReleaseLoader, rejection_event
from eir.lists.log.change import Head, SerialMark, utc_text
from eir.lists.log.journal import ACCEPTED, REFUSED, JournalEvent
from eir.lists.log.store import LogStore
from eir.lists.record.settings import ListSettings
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX
from eir.lists.releases.release import MANIFEST_BYTES_MAX, FileEntry, VerifiedRelease, naming_release
from eir.lists.rows.delivered import DataFile, read_small
from eir.lists.sources.delivery import Delivery, manifests_by_priority, order_by_turn, verify_delivery
from eir.lists.sources.drop_folder import (
    AGAIN_S,
    ITEMS_MAX,
    REFUSED_BYTES_MAX,
    REFUSED_FILES_MAX,
    SETTLED_S,
    Rooms,
    is_settled,
    missing_part,
    open_rooms,
    printable,
    scan_folder,
)

WAITING = "waiting"
"""Outcome of a release that is neither accepted nor rejected yet."""
CRASH, KILLED = "crash", "killed"

ATTEMPTS_MAX = 3
"""Number of processes killed while they loaded the same release, after which the release is rejected."""
ATTEMPTED_MAX = 100
"""Maximum number of releases that have a counter of killed processes."""
NOT_MOVED_AGAIN_S = 600.0
KEPT_BYTES_MAX = 256 << 20
"""Size up to which a rejected release's data file is hashed."""
TEXT_NAME_BYTES_MAX = 240
"""Maximum number of bytes of a rejected file's name that are part of the name of its text file."""
PASS_S = 5.0
"""Seconds of a pass for verification, and the same time for loads. Then the pass ends, so that the next pass finds new files. One release of each list is always loaded. All valid releases must be verified before the loads, otherwise a later serial would be loaded before an earlier one."""

OURS = frozenset({"openssh", "signers_file", "revoked_file"})
"""Reasons that this host causes. The release stays until the host is repaired."""
AGED = frozenset({"expired", "signer_expired"})
"""Reasons for an old release. They count only while the clock is trusted."""
PATIENT = frozenset({"threshold", "issued_in_future", "timeout"})
"""Reasons that may disappear with time, because further signatures arrive or clocks converge."""
MOVED_UNDER_US = PATIENT | {"conflict", "changed", "file_missing", "file_size", "signature_missing"}
"""Reasons for which a release waits, because its files or its list may have changed after the scan."""
OF_THE_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ})
"""System errors that the name of a delivered file causes. This host causes all other system errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """Outcome of one delivered release, or of a file in the drop folder that belongs to no release."""

    manifest: str
    """File name of the manifest, or of the file that belongs to no release."""
    outcome: str
    """ACCEPTED, REFUSED or WAITING."""
    list: str | None = None
    serial: int | None = None
    reason: str = ""
    """Reason word, as in ReleaseRefused. For a waiting release also `incomplete`, `base` and the causes of StoreError."""
    detail: str = ""
    here: bool = False
    """True if the release waits because of this host: its store, its disk or its signers files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Result of one pass over the drop folder."""

    taken: tuple[DeliveryOutcome, ...] = ()
    again_s: float | None = None
    """Seconds after which the next pass starts even without a change; None if only a change can have an effect."""
    strays: tuple[str, ...] = ()
    """Files that no verified manifest names yet."""
    elsewhere: bool = False
    """True if this process made no pass, because another process is making one."""

    def as_json(self) -> dict[str, object]:
        """Return the result of the pass as a JSON document, for scripts and for the node."""
        document = asdict(self)
        del document["elsewhere"]
        if not self.strays:
            del document["strays"]
        return document


@dataclass(slots=True)
class Attempts:
    """File with a counter for each release: number of processes that were killed while they loaded the release, at most ATTEMPTS_MAX."""

    _path: Path
    _loading: str = ""
    """Digest of the release that is being loaded."""

    @contextmanager
    def one(self, digest: str) -> Iterator[None]:
        """Increment a release's counter of killed processes before a load; after the load, delete the counter unless a process was killed.

        The load is the `with` block. A process was killed if the block does not end, or if the block raises ReleaseRefused with the
        reason `killed`.

        Raises:
            ReleaseRefused: `crash`, after ATTEMPTS_MAX processes were killed while they loaded the release with this digest.
        """
        counts = self._read()
        before = counts.pop(digest, 0)
        if before >= ATTEMPTS_MAX:
            self.forget(digest)
            fault = f"{before} loads were killed with the process that made them (memory?)"
            raise ReleaseRefused(CRASH, f"{fault}: try `eir load` by hand")
        self._loading = digest
        self._write({digest: before + 1} | counts)
        try:
            yield
        except ReleaseRefused as refused:
            if refused.reason != KILLED:
                self.forget(digest)
            raise
        except BaseException:
            self.forget(digest)
            raise
        self.forget(digest)

    def of(self, digest: str) -> int:
        """Return how many processes were killed while they loaded the release with this digest."""
        return self._read().get(digest, 0)

    def forget(self, digest: str = "") -> None:
        """Delete a release's counter of killed processes. `digest`: digest of the release; empty: the release that is being loaded."""
        counts = self._read()
        counts.pop(digest or self._loading, None)
        self._write(counts)

    def _read(self) -> dict[str, int]:
        with suppress(OSError, ValueError, AttributeError):
            document = json.loads(self._path.read_text())
            return {str(digest): int(count) for digest, count in document.items()}
        return {}

    def _write(self, counts: Mapping[str, int]) -> None:
        kept = list(counts.items())[:ATTEMPTED_MAX]
        if kept:
            self._path.write_text(json.dumps(dict(kept)))
        else:
            self._path.unlink(missing_ok=True)


class _Delay(NamedTuple):
    """Reason why a delivered release must wait."""

    reason: str
    detail: str
    bounded: bool = True
    """True if the release is rejected after a wait of `patience_s`."""


Record: TypeAlias = Callable[[JournalEvent], object]
"""Function that records a rejection in the journal of this host's node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSettings:
    """Settings of a pass over the drop folder."""

    folder: Path
    lists: Mapping[str, ListSettings]
    store: LogStore
    who: str
    clock: Callable[[], datetime]
    patience_s: float
    """Seconds after the last change for which an incomplete release, or a file that no release names, may wait."""
    attempts: Attempts
    record: Record
    believed: bool = True
    """False while the clock is not trusted after a jump: no release counts as too old."""
    marks: Mapping[str, SerialMark] | None = None
    """Highest mark of each list on this node, as for ReleaseLoader."""
    ours: Callable[[], bool] = lambda: True
    """Function that is called before each load, and returns True if this process still has the right to load."""
    load: Callable[[VerifiedRelease, Path], Awaitable[LoadReport]] | None = None
    """Function that loads a release from a folder; None: ReleaseLoader.load in this process."""
    is_spool: bool = False
    """True for the private folder of a pull, which has only complete files."""
    pass_s: float = PASS_S
    items_max: int = ITEMS_MAX
    """Maximum number of files that a pass reads."""
    refused_max: tuple[int, int] = REFUSED_FILES_MAX, REFUSED_BYTES_MAX
    """Limits of `refused/`: maximum number of files, and maximum total size in bytes."""


async def run_pass(terms: PassSettings) -> Pass:
    """Make one pass over the drop folder: load all complete releases by serial, and move processed files.

    No delivery can block the others. If the store fails for a list, or is full, the releases of the list stay. A pass
    ends after `pass_s` seconds, and the next pass continues.
    """
    with open_rooms(terms.folder) as rooms:
        turn = _Turn(terms, rooms)
        await turn.make()
        with suppress(OSError):
            rooms.prune(*terms.refused_max)
        return Pass(taken=tuple(turn.taken), again_s=min(turn.again, default=None), strays=tuple(turn.strays))


async def process_fetched(terms: PassSettings, delivery: Delivery) -> DeliveryOutcome:
    """Load or reject the release that a pull has fetched to its private folder.

    Raises:
        EirError: if the folder cannot be used.
    """
    with open_rooms(terms.folder) as rooms:
        turn = _Turn(terms, rooms)
        await turn.process(delivery, set())
        return turn.taken[0]


class _Turn:
    """One pass over the drop folder: its files, and the outcome of each."""

    def __init__(self, terms: PassSettings, rooms: Rooms) -> None:
        self.terms = terms
        self.taken: list[DeliveryOutcome] = []
        self.again: list[float] = []
        self.strays: list[str] = []
        self._rooms = rooms
        self._listing = scan_folder(rooms.drop, terms.items_max)
        self._scanned_at = terms.clock().timestamp()
        """Time of the scan, for all files. With a time of its own, a later release could count as settled before an earlier one."""
        self._began = time.monotonic()
        self._failed_lists: set[str | None] = set()
        """Lists whose store failed in this pass. After a failure, None is a member, for deliveries that are not verified."""
        self._moved: set[str] = set()
        """Names of moved files."""
        self._is_partial = False
        """True if the pass did not process all files."""

    async def make(self) -> None:
        """Run the pass: process each delivered release, then the files that belong to no release."""
        if len(self._listing) >= self.terms.items_max:
            self.again.append(SETTLED_S)
        lists = self.terms.lists.values()
        trusted, others = await asyncio.to_thread(manifests_by_priority, self._listing, self._rooms.drop, lists)
        deliveries = [delivery async for delivery in self._verified(trusted)]
        self._began = time.monotonic()
        waiting = {delivery.name: delivery for delivery in deliveries}
        for number, delivery in order_by_turn(deliveries, self._was_killed):
            if not self.terms.ours():
                self.again.append(AGAIN_S)
                return
            if number and self._is_time_over():
                return
            del waiting[delivery.name]
            data_of_others = {name for other in waiting.values() for name in other.data}
            await self.process(delivery, data_of_others)
        async for delivery in self._verified(others):
            await self.process(delivery, set())
            deliveries.append(delivery)
        has_unverified = any(delivery.release is None and delivery.name not in self._moved for delivery in deliveries)
        if not self._is_partial and not has_unverified:  # otherwise an unverified manifest may name a file
            delivered = {name for delivery in deliveries for name in _file_names(delivery)}
            self._sweep(self._listing.keys() - delivered)

    async def _verified(self, names: Sequence[str]) -> AsyncIterator[Delivery]:
        """Verify deliveries and yield them, until the time of the pass is over."""
        terms = self.terms
        for name in names:
            if self._is_time_over():
                return
            now = terms.clock()
            try:
                yield await asyncio.to_thread(verify_delivery, name, terms.folder, self._listing, terms.lists, now)
            except OSError as error:
                self._is_partial = True
                self._stays(Delivery(name, (), None, None), "disk", str(error))

    def _is_time_over(self) -> bool:
        """Return True if this pass over the drop folder has exceeded its time limit.

        The next pass then starts at once for the remaining files.
        """
        if time.monotonic() - self._began < self.terms.pass_s:
            return False
        self.again.append(0.0)
        self._is_partial = True
        return True

    def _was_killed(self, delivery: Delivery) -> bool:
        return delivery.release is not None and self.terms.attempts.of(delivery.release.digest) > 0

    async def process(self, delivery: Delivery, others: set[str]) -> None:
        """Process one delivered release. An error affects only this release; if the store fails, later releases of the list are skipped.

        `others`: names of data files that other releases need too.
        """
        if delivery.list in self._failed_lists:
            return
        try:
            await self._process(delivery, others)
        except StoreError as error:
            self._failed_lists |= {None, delivery.list}
            self._stays(delivery, error.cause, f"the store: {error}")
        except OSError as error:
            if error.errno in OF_THE_NAME:
                await self._refuse(delivery, others, refused_by(error))
            else:
                self._stays(delivery, "disk", str(error))
        except Exception as fault:  # noqa: BLE001 - a bug with one delivery must not stop the others
            await self._refuse(delivery, others, refused_by(fault))

    async def _process(self, delivery: Delivery, others: set[str]) -> None:
        """Load or reject one delivered release, or leave it in the folder for a later pass."""
        patience_left_s = self._patience_left_s(_file_names(delivery))
        delay = await self._delay(delivery)
        if delay is not None and not delay.bounded:
            self._waits(delivery, delay, AGAIN_S)
            return
        if delay is not None and patience_left_s > 0:
            again_s = AGAIN_S if self._has_settled(delivery) else SETTLED_S
            self._waits(delivery, delay, min(patience_left_s, again_s))
            return
        refused = delivery.refused
        if delivery.release is not None:
            refused = await self._load(delivery, delivery.release, others)
        if refused is None:
            return
        reason = refused.reason
        if reason in AGED and not self.terms.believed:
            self._stays(delivery, reason, f"{refused.detail}; that clock is ahead by hours, and not believed yet")
        elif reason in OURS | {KILLED}:
            self._stays(delivery, reason, refused.detail)
        elif reason == "conflict":
            self._waits(delivery, _Delay(reason, refused.detail), SETTLED_S)
        elif reason in MOVED_UNDER_US and patience_left_s > 0:
            self._waits(delivery, _Delay(reason, refused.detail), AGAIN_S)
        else:
            await self._refuse(delivery, others, refused)

    async def _load(self, delivery: Delivery, release: VerifiedRelease, others: set[str]) -> ReleaseRefused | None:
        """Load a release and move its files to `accepted/`; if it is rejected, return the rejection without moving files."""
        terms = self.terms
        manifest = release.manifest
        head = await self._head(manifest.list)
        if head is not None and (head.serial, head.release) == (manifest.serial, release.digest):
            # An earlier pass has loaded the release but could not move its files.
            await self._move(delivery, others, _outcome(delivery, ACCEPTED, detail="it is in force already"))
            return None
        load = terms.load or ReleaseLoader(terms.lists, terms.store, terms.who, terms.clock(), terms.marks or {}).load
        try:
            with naming_release(manifest, release.digest), terms.attempts.one(release.digest):
                report = await load(release, terms.folder)
        except ReleaseRefused as refused:
            return refused
        await self._move(delivery, others, _outcome(delivery, ACCEPTED, detail=report.as_text()))
        return None

    async def _refuse(self, delivery: Delivery, others: set[str], refused: ReleaseRefused) -> None:
        """Record the rejection of a release, then move the release to `refused/`."""
        release = delivery.release
        if release is not None:
            refused.name_release(release.manifest.list, release.manifest.serial, release.digest)
        self.terms.record(rejection_event(refused, self.terms.who, self.terms.clock()))
        await self._move(delivery, others, _outcome(delivery, REFUSED, refused.reason, refused.detail))

    async def _head(self, name: str) -> Head | None:
        return (await self.terms.store.heads()).get(name)

    async def _delay(self, delivery: Delivery) -> _Delay | None:
        """Return the reason why a delivered release must wait; None if it can be loaded or rejected now."""
        if delivery.refused is not None:
            return self._delay_of_rejected(delivery, delivery.refused)
        if delivery.release is None:
            return None
        manifest = delivery.release.manifest
        if not self.terms.is_spool:
            fault = missing_part(manifest, self._listing, self._scanned_at)
            if fault:
                return _Delay("incomplete", fault)
        base = manifest.base
        if base is None:
            return None
        # Releases arrive in any order, so the base of a delta may still arrive.
        head = await self._head(manifest.list)
        if head is None:
            in_force = "there is no list yet"
        elif base > head.serial and manifest.serial > head.highest_serial:
            in_force = f"serial {head.serial} is in force"
        else:
            return None
        return _Delay("base", f"it builds on serial {base}, and {in_force}")

    def _has_settled(self, delivery: Delivery) -> bool:
        """Return False if one of the release's files was changed less than SETTLED_S before the scan."""
        items = [self._listing[name] for name in _file_names(delivery) if name in self._listing]
        return all(is_settled(item, self._scanned_at) for item in items)

    def _delay_of_rejected(self, delivery: Delivery, refused: ReleaseRefused) -> _Delay | None:
        """Return the reason why a release without valid signatures must wait; None if it can be rejected now."""
        if refused.reason in OURS:
            return _Delay(refused.reason, refused.detail, bounded=False)
        fault = "" if self.terms.is_spool else self._incomplete_fault(delivery)
        if fault:
            return _Delay("incomplete", fault)
        if refused.reason in PATIENT:
            return _Delay(refused.reason, refused.detail)
        return None

    def _incomplete_fault(self, delivery: Delivery) -> str:
        """Return a message if the manifest or a signature was changed just now, or is cut off; otherwise an empty text."""
        files = [(delivery.name, MANIFEST_BYTES_MAX, b"}")]
        files += [(name, SIGNATURE_BYTES_MAX, b"-----END SSH SIGNATURE-----") for name in delivery.signatures]
        for name, bytes_max, end in files:
            item = self._listing[name]
            with suppress(ReleaseRefused, FileNotFoundError):
                status = os.stat(name, dir_fd=self._rooms.drop, follow_symlinks=False)
                if status.st_ctime != item.changed or not is_settled(item, self._scanned_at):
                    return f"{name} was changed just now"
                content = read_small(name, self._rooms.drop, bytes_max)
                if not content.rstrip().endswith(end):
                    return f"{name} ends in the middle"
        return ""

    def _waits(self, delivery: Delivery, delay: _Delay, again_s: float) -> None:
        self.taken.append(_outcome(delivery, WAITING, delay.reason, delay.detail, here=not delay.bounded))
        self.again.append(max(again_s, SETTLED_S))

    def _stays(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Leave a release in the drop folder without a time limit, because a fault of this host must be repaired first."""
        self._waits(delivery, _Delay(reason, detail, bounded=False), AGAIN_S)

    def _patience_left_s(self, names: Iterable[str]) -> float:
        """Return the seconds until unchanged files are rejected."""
        if not self.terms.believed:
            return self.terms.patience_s
        items = [self._listing[name] for name in names if name in self._listing]
        changed = max((item.changed for item in items), default=0.0)
        return changed + self.terms.patience_s - self.terms.clock().timestamp()

    async def _move(self, delivery: Delivery, others: set[str], outcome: DeliveryOutcome) -> None:
        """Move the files of a processed delivery to `accepted/` or `refused/`, data files first.

        `.sig` is moved last: while it stays, a later pass completes an interrupted move.
        """
        names = []
        files = [] if delivery.release is None else delivery.release.manifest.files
        for file in files:
            if file.name in others or file.name not in self._listing:
                continue
            if outcome.outcome != REFUSED or await asyncio.to_thread(self._belongs_to_rejected, file):
                names.append(file.name)
        *further_signatures, first_signature = delivery.signatures
        names += [*further_signatures, delivery.name, first_signature]
        self._move_files(names, delivery.name, outcome)

    def _belongs_to_rejected(self, file: FileEntry) -> bool:
        """Return True if a data file must be moved with a rejected manifest: it matches the manifest, or has waited for `patience_s`.

        A file with other content may belong to another release that uses the same name and is still arriving.
        """
        if self._patience_left_s((file.name,)) <= 0:
            return True
        with suppress(ReleaseRefused, OSError), DataFile(file.name, self._rooms.drop) as data:
            return data.size == file.bytes and (data.size > KEPT_BYTES_MAX or data.sha256() == file.sha256)
        return False

    def _move_files(self, names: Sequence[str], subject: str, outcome: DeliveryOutcome) -> None:
        """Move files to the folder of the outcome, and for a rejection write a text file there.

        `subject`: name of the manifest or of the single file, from which the text file gets its name.
        """
        self._moved.update(names)
        begin = os.fsencode(subject)[:TEXT_NAME_BYTES_MAX]
        text_name = f"{os.fsdecode(begin)}.txt"
        text = None
        try:
            places = self._rooms.places([*names, text_name], outcome.outcome)
            text_place = places.pop(text_name)
            if outcome.outcome == REFUSED:
                text = (text_place, _refusal_text(outcome, places.values(), self.terms.clock()))
            self._rooms.move_files(places, outcome.outcome, text)
        except OSError as error:
            outcome = replace(outcome, detail=f"{outcome.detail}; it could not be moved: {error.strerror}")
            self.again.append(NOT_MOVED_AGAIN_S)
        self.taken.append(outcome)

    def _sweep(self, strays: Iterable[str]) -> None:
        """Move files that belong to no release to `refused/`, after they have waited in the drop folder for `patience_s`."""
        detail = "no signed release named it; a release is NAME.manifest.json, its .sig, and the data files that the manifest names"
        for name in sorted(strays):
            patience_left_s = self._patience_left_s((name,))
            label = printable(name)
            if patience_left_s > 0:
                self.again.append(patience_left_s)
                self.strays.append(label)
            elif not self._is_time_over():
                outcome = DeliveryOutcome(manifest=label, outcome=REFUSED, reason="stray", detail=detail)
                self._move_files([name], name, outcome)


def _file_names(delivery: Delivery) -> tuple[str, ...]:
    return (delivery.name, *delivery.signatures, *delivery.data)


def _outcome(
    delivery: Delivery, outcome: str, reason: str = "", detail: str = "", *, here: bool = False
) -> DeliveryOutcome:
    return DeliveryOutcome(
        manifest=printable(delivery.name), outcome=outcome, list=delivery.list, serial=delivery.serial, reason=reason,
        detail=escape_invalid(detail), here=here,
    )  # fmt: skip


def _refusal_text(outcome: DeliveryOutcome, places: Iterable[str], now: datetime) -> str:
    files = ", ".join(map(printable, places))
    return f"""{outcome.manifest} was refused at {utc_text(now)}.
Reason: {outcome.reason}
{outcome.detail}
List: {outcome.list or "unknown"}; serial: {outcome.serial or "unknown"}
Files: {files}

The list in force is untouched. Deliver a corrected release, or put these files back to have them tried again.
"""
