"""Loading of delivered releases: in a pass over the drop folder, or one release from the private folder of a pull.

Each release is verified once, by eir.lists.releases.release and eir.lists.changes.load. An incomplete release waits. A loaded
release is moved to `accepted/`, a rejected one to `refused/` with a text that gives the reason. If the host is at fault (the store
is unreachable, the disk is full, a signers file cannot be read), the release stays where it is. A pass loads on the calling
thread, so it needs a process of its own.
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
from typing import NamedTuple

from eir.errors import ReleaseRefused, StoreError, escape_invalid, refused_by
from eir.lists.changes.load import KEPT_BYTES_MAX, Loader, LoadReport
from eir.lists.record.settings import ListSettings
from eir.lists.record.store import ACCEPTED, REFUSED, ListStore, Mark, utc_text
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
UNRECORDED = frozenset({CRASH, KILLED, "memory", "time", "fault"})
"""Reasons of refusals by the load's process, after which that process could not write to the history itself."""

ATTEMPTS_MAX, ATTEMPTED_MAX = 3, 100
"""Number of loads that may be killed before the release counts as the cause; number of such releases that are remembered."""
NOT_MOVED_AGAIN_S = 600.0
TEXT_NAME_BYTES_MAX = 240
"""Maximum length of a file's name in the name of its text, in bytes."""
PASS_S = 5.0
"""Seconds of a pass for verification, and again for all else. After them the pass ends, so that the next one sees new files. One release of each list always has its turn. Good releases must be verified before their list's turn, otherwise a later serial would be loaded before an earlier one."""

OURS = frozenset({"openssh", "signers_file", "revoked_file"})
"""Reasons that concern this host, not the release: the release stays until the host is repaired."""
AGED = frozenset({"expired", "signer_expired"})
"""Reasons for an old release, if the clock is trusted."""
PATIENT = frozenset({"threshold", "issued_in_future", "timeout"})
"""Reasons that may disappear with time: further signatures arrive, clocks converge."""
MOVED_UNDER_US = PATIENT | {"conflict", "changed", "file_missing", "file_size", "signature_missing"}
"""Reasons for a release whose files or list changed after the scan."""
OF_THE_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ})
"""System errors that a delivery causes; all others are this host's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """Outcome of a delivered release, or of a file that belongs to no release."""

    manifest: str
    outcome: str  # ACCEPTED, REFUSED or WAITING
    list: str | None = None
    serial: int | None = None
    reason: str = ""
    """Reason word, as in ReleaseRefused; also `incomplete`, `base` and others for a waiting release."""
    detail: str = ""
    here: bool = False
    """True if the release waits for this host: its store, its disk, its signers files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Result of one pass over the drop folder."""

    taken: tuple[DeliveryOutcome, ...] = ()
    again_s: float | None = None
    """Seconds until the next pass even without a change; None if it would have no effect."""
    strays: tuple[str, ...] = ()
    """Files that no release names yet."""
    elsewhere: bool = False
    """True if another process is making a pass, so this one made none."""

    def as_json(self) -> dict[str, object]:
        """Return the result of the pass as a JSON document, for scripts and for the node."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name in {"taken", "again_s"} or (name == "strays" and value)
        }


@dataclass(slots=True)
class Attempts:
    """File that counts the killed loads of each release, so that no release is retried forever."""

    _path: Path
    _going_on: str = ""

    @contextmanager
    def one(self, digest: str) -> Iterator[None]:
        """Count a load of the release with this digest as killed, until the block ends normally.

        Raises:
            ReleaseRefused: `crash`, after ATTEMPTS_MAX loads that were killed.
        """
        before = self.of(digest)
        if before >= ATTEMPTS_MAX:
            self.forget(digest)
            raise ReleaseRefused(
                CRASH, f"{before} loads were killed with the process that made them (memory?): try `eir load` by hand"
            )
        self._going_on = digest
        self._write({digest: before + 1} | {noted: count for noted, count in self._read().items() if noted != digest})
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
        """Return the number of killed loads of the release with this digest."""
        return self._read().get(digest, 0)

    def forget(self, digest: str = "") -> None:
        """Delete the count for the release with this digest, or for the release being loaded if no digest is given.

        For a load that has not killed its process.
        """
        self._write({noted: count for noted, count in self._read().items() if noted != (digest or self._going_on)})

    def _read(self) -> dict[str, int]:
        with suppress(OSError, ValueError, AttributeError):
            return {str(noted): int(count) for noted, count in json.loads(self._path.read_text()).items()}
        return {}

    def _write(self, counts: Mapping[str, int]) -> None:
        if counts:
            self._path.write_text(json.dumps(dict(list(counts.items())[:ATTEMPTED_MAX])))
        else:
            self._path.unlink(missing_ok=True)


class _Delay(NamedTuple):
    """Reason why a release must wait. If `bounded` is true, the release is rejected when it has waited for `patience`."""

    reason: str
    detail: str
    bounded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSettings:
    """Settings of a pass over the drop folder."""

    folder: Path
    lists: Mapping[str, ListSettings]
    store: ListStore
    who: str
    clock: Callable[[], datetime]
    patience_s: float
    """Seconds after the last change for which an incomplete release, or a file that no release names, may wait."""
    attempts: Attempts
    believed: bool = True
    """False while a jump of the clock is not accepted yet: then no release counts as too old."""
    marks: Mapping[str, Mark] | None = None  # as for load_release
    ours: Callable[[], bool] = lambda: True
    """Function that returns whether this process still holds the right to load; called before each load."""
    load: Callable[[VerifiedRelease, Path], Awaitable[LoadReport]] | None = None
    """Function that loads a release from a folder, as Loader.load; None: Loader.load in this process."""
    is_spool: bool = False
    """True for the private folder of a pull, whose files are complete."""
    pass_s: float = PASS_S
    items_max: int = ITEMS_MAX
    """Maximum number of files that a pass reads."""
    refused_max: tuple[int, int] = REFUSED_FILES_MAX, REFUSED_BYTES_MAX
    """Maximum number of rejected files that are kept, and of their bytes."""


async def run_pass(terms: PassSettings) -> Pass:
    """Make one pass over the drop folder: load all complete releases by serial, and move processed files.

    No delivery can prevent the others from their turn. If the store fails for a list, or has no room for a release, the
    releases stay. A pass ends after `pass_s`, and the next pass continues.
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
    """State of one pass: the scanned drop folder, and the outcome of each file."""

    def __init__(self, terms: PassSettings, rooms: Rooms) -> None:
        self.terms = terms
        self.taken: list[DeliveryOutcome] = []
        self.again: list[float] = []
        self.strays: list[str] = []
        self._rooms = rooms
        self._listing = scan_folder(rooms.drop, terms.items_max)
        self._looked = terms.clock().timestamp()
        """Time of the scan: with one time for the whole pass, a later release cannot count as settled before an earlier one."""
        self._began = time.monotonic()
        self._away: set[str | None] = set()
        """Lists whose store failed in this pass, and None if there is one."""
        self._gone: set[str] = set()
        """Files that were moved."""
        self._cut = False
        """True if the pass did not process all files."""

    async def make(self) -> None:
        """Run the pass: process each delivered release, then the files that belong to no release."""
        if len(self._listing) >= self.terms.items_max:
            self.again.append(SETTLED_S)
        likely, unlikely = await asyncio.to_thread(
            manifests_by_priority, self._listing, self._rooms.drop, self.terms.lists.values()
        )
        pending = [delivery async for delivery in self._verified(likely)]
        self._began = time.monotonic()
        waits = {name for delivery in pending for name in (delivery.name, *delivery.signatures, *delivery.data)}
        waiting = {delivery.name: delivery for delivery in pending}
        for number, delivery in order_by_turn(pending, self._was_killed):
            if not self.terms.ours():
                self.again.append(AGAIN_S)
                return
            if number and self._is_spent():
                return
            del waiting[delivery.name]
            other_data = {name for other_delivery in waiting.values() for name in other_delivery.data}
            await self.process(delivery, other_data)
        async for delivery in self._verified(unlikely):
            waits |= {delivery.name, *delivery.signatures, *delivery.data}
            await self.process(delivery, set())
            pending.append(delivery)
        if not self._cut and not any(
            delivery.release is None and delivery.name not in self._gone for delivery in pending
        ):
            # Otherwise a file may still belong to a manifest that is not verified yet.
            self._sweep(self._listing.keys() - waits)

    async def _verified(self, names: Sequence[str]) -> AsyncIterator[Delivery]:
        """Verify deliveries and yield the results, until the time limit of the pass."""
        terms = self.terms
        for name in names:
            if self._is_spent():
                return
            try:
                yield await asyncio.to_thread(
                    verify_delivery, name, terms.folder, self._listing, terms.lists, terms.clock()
                )
            except OSError as error:
                self._cut = True
                self._stays(Delivery(name, (), None, None), "disk", str(error))

    def _is_spent(self) -> bool:
        """Return True if the time limit of the pass has been reached; if so, plan another pass for the rest."""
        if time.monotonic() - self._began < self.terms.pass_s:
            return False
        self.again.append(0.0)
        self._cut = True
        return True

    def _was_killed(self, delivery: Delivery) -> bool:
        return delivery.release is not None and self.terms.attempts.of(delivery.release.digest) > 0

    async def process(self, delivery: Delivery, others: set[str]) -> None:
        """Process one delivery. An error concerns only this delivery, unless the store has failed."""
        if delivery.list in self._away:
            return
        try:
            await self._process(delivery, others)
        except StoreError as error:
            self._away |= {None, delivery.list}
            self._stays(delivery, error.cause, f"the store: {error}")
        except OSError as error:
            if error.errno in OF_THE_NAME:
                await self._refuse(delivery, others, refused_by(error))
            else:
                self._stays(delivery, "disk", str(error))
        except Exception as fault:  # noqa: BLE001 - a bug with one delivery must not stop the others
            await self._refuse(delivery, others, refused_by(fault))

    async def _process(self, delivery: Delivery, others: set[str]) -> None:
        """Load a delivered release, reject it, or let it wait.

        `others`: data files that other releases need too.
        """
        left_s = self._patience_left((delivery.name, *delivery.signatures, *delivery.data))
        delay = await self._delay(delivery)
        if delay is not None and (not delay.bounded or left_s > 0):
            self._waits(delivery, delay, min(left_s, AGAIN_S) if delay.bounded else AGAIN_S)
            return
        refused = delivery.refused if delivery.release is None else await self._load(delivery, delivery.release, others)
        if refused is None:
            return
        if refused.reason in AGED and not self.terms.believed:
            self._stays(
                delivery, refused.reason, f"{refused.detail}; that clock is ahead by hours, and not believed yet"
            )
            return
        if (
            refused.reason in {"conflict", KILLED}
            or refused.reason in OURS
            or (refused.reason in MOVED_UNDER_US and left_s > 0)
        ):
            delay = _Delay(refused.reason, refused.detail, bounded=refused.reason not in OURS | {KILLED})
            self._waits(delivery, delay, SETTLED_S if refused.reason == "conflict" else AGAIN_S)
            return
        await self._refuse(delivery, others, refused)

    async def _load(self, delivery: Delivery, release: VerifiedRelease, others: set[str]) -> ReleaseRefused | None:
        """Load a release and move its files; if the release is rejected, return the rejection."""
        manifest, terms = release.manifest, self.terms
        state = await terms.store.state(manifest.list)
        if state is not None and (state.serial, state.release_digest) == (manifest.serial, release.digest):
            # An earlier pass loaded it but could not move it.
            await self._move(delivery, others, _outcome(delivery, ACCEPTED, detail="it is in force already"))
            return None
        try:
            with naming_release(manifest), terms.attempts.one(release.digest):
                report = await (terms.load or self._loader().load)(release, terms.folder)
        except ReleaseRefused as refused:
            return refused
        await self._move(delivery, others, _outcome(delivery, ACCEPTED, detail=report.as_text()))
        return None

    async def _refuse(self, delivery: Delivery, others: set[str], refused: ReleaseRefused) -> None:
        """Move a rejected delivery to `refused/`, and record the rejection unless the load has done so."""
        release = delivery.release
        if release is not None:
            refused.name_release(release.manifest.list, release.manifest.serial)
        if release is None or refused.reason in UNRECORDED:
            await self._loader().record(refused, release.digest if release is not None else None)
        await self._move(delivery, others, _outcome(delivery, REFUSED, refused.reason, refused.detail))

    def _loader(self) -> Loader:
        terms = self.terms
        return Loader(terms.lists, terms.store, terms.who, terms.clock(), terms.marks or {})

    async def _delay(self, delivery: Delivery) -> _Delay | None:
        """Return the reason why a delivery must wait, or None if it can be loaded or rejected now."""
        refused = delivery.refused
        if refused is not None:
            if refused.reason in OURS:
                return _Delay(refused.reason, refused.detail, bounded=False)
            if not self.terms.is_spool and (half := self._half(delivery)):
                return _Delay("incomplete", half)
            return _Delay(refused.reason, refused.detail) if refused.reason in PATIENT else None
        if delivery.release is None:
            return None
        manifest = delivery.release.manifest
        if not self.terms.is_spool and (lack := missing_part(manifest, self._listing, self._looked)):
            return _Delay("incomplete", lack)
        state, base = await self.terms.store.state(manifest.list), manifest.base
        # The base of a delta may still arrive, because releases arrive in any order.
        comes = base is not None and (state is None or (base > state.serial and manifest.serial > state.highest_serial))
        in_force = "there is no list yet" if state is None else f"serial {state.serial} is in force"
        return _Delay("base", f"it builds on serial {base}, and {in_force}") if comes else None

    def _half(self, delivery: Delivery) -> str:
        """Return a message if the manifest or a signature seems incomplete, or an empty text.

        The files are not parsed.
        """
        signatures = ((name, SIGNATURE_BYTES_MAX, b"-----END SSH SIGNATURE-----") for name in delivery.signatures)
        for name, limit, ends in ((delivery.name, MANIFEST_BYTES_MAX, b"}"), *signatures):
            with suppress(ReleaseRefused, FileNotFoundError):
                changed = os.stat(name, dir_fd=self._rooms.drop, follow_symlinks=False).st_ctime
                if changed != self._listing[name].changed or not is_settled(self._listing[name], self._looked):
                    return f"{name} was changed just now"
                if not read_small(name, self._rooms.drop, limit).rstrip().endswith(ends):
                    return f"{name} ends in the middle"
        return ""

    def _waits(self, delivery: Delivery, delay: _Delay, again_s: float) -> None:
        self.taken.append(_outcome(delivery, WAITING, delay.reason, delay.detail, here=not delay.bounded))
        self.again.append(max(again_s, SETTLED_S))

    def _stays(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Let a delivery wait without a time limit, because this host must be repaired first."""
        self._waits(delivery, _Delay(reason, detail, bounded=False), AGAIN_S)

    def _patience_left(self, names: Iterable[str]) -> float:
        """Return the seconds for which the files may still wait, unchanged, before they are rejected."""
        if not self.terms.believed:
            return self.terms.patience_s
        changed = max((self._listing[name].changed for name in names if name in self._listing), default=0.0)
        return changed + self.terms.patience_s - self.terms.clock().timestamp()

    async def _move(self, delivery: Delivery, others: set[str], taken: DeliveryOutcome) -> None:
        """Move the files of a processed delivery to `accepted/` or `refused/`, data files first.

        The first signature is moved last: as long as it stays, a later pass completes an interrupted move.
        """
        files = [] if delivery.release is None else delivery.release.manifest.files
        names = [file.name for file in files if file.name not in others and file.name in self._listing]
        if taken.outcome == REFUSED:
            names = [
                file.name for file in files if file.name in names and await asyncio.to_thread(self._is_its_own, file)
            ]
        self._move_files(
            [*names, *delivery.signatures[:-1], delivery.name, delivery.signatures[-1]], delivery.name, taken
        )

    def _is_its_own(self, file: FileEntry) -> bool:
        """Return True if a data file belongs to the rejected manifest, or has waited too long for another manifest.

        Otherwise it may only have the name of another release's file, whose manifest is still to arrive.
        """
        if self._patience_left((file.name,)) <= 0:
            return True
        with suppress(ReleaseRefused, OSError), DataFile(file.name, self._rooms.drop) as data:
            return data.size == file.bytes and (data.size > KEPT_BYTES_MAX or data.sha256() == file.sha256)
        return False

    def _move_files(self, names: Sequence[str], about: str, taken: DeliveryOutcome) -> None:
        """Move files, and for a rejection write a text file about them.

        `about` is the name of the manifest or of the single file.
        """
        self._gone.update(names)
        text_name = f"{os.fsdecode(os.fsencode(about)[:TEXT_NAME_BYTES_MAX])}.txt"
        try:
            places = self._rooms.places([*names, text_name], taken.outcome)
            text_place = places.pop(text_name)
            text = (
                (text_place, _refusal_text(taken, places.values(), self.terms.clock()))
                if taken.outcome == REFUSED
                else None
            )
            self._rooms.move_files(places, taken.outcome, text)
        except OSError as error:
            taken = replace(taken, detail=f"{taken.detail}; it could not be moved: {error.strerror}")
            self.again.append(NOT_MOVED_AGAIN_S)
        self.taken.append(taken)

    def _sweep(self, strays: Iterable[str]) -> None:
        """Move files that no release names to `refused/`, after they have waited long enough."""
        detail = "no signed release named it; a release is NAME.manifest.json, its .sig, and the data files that the manifest names"
        for name in sorted(strays):
            if (left_s := self._patience_left((name,))) > 0:
                self.again.append(left_s)
                self.strays.append(printable(name))
            elif not self._is_spent():
                self._move_files(
                    [name],
                    name,
                    DeliveryOutcome(manifest=printable(name), outcome=REFUSED, reason="stray", detail=detail),
                )


def _outcome(
    delivery: Delivery, outcome: str, reason: str = "", detail: str = "", *, here: bool = False
) -> DeliveryOutcome:
    """Build the outcome of a delivery."""
    return DeliveryOutcome(
        manifest=printable(delivery.name), outcome=outcome, list=delivery.list, serial=delivery.serial, reason=reason,
        detail=escape_invalid(detail), here=here,
    )  # fmt: skip


def _refusal_text(taken: DeliveryOutcome, places: Iterable[str], now: datetime) -> str:
    return f"""{taken.manifest} was refused at {utc_text(now)}.
Reason: {taken.reason}
{taken.detail}
List: {taken.list or "unknown"}; serial: {taken.serial or "unknown"}
Files: {", ".join(map(printable, places))}

The list in force is untouched. Deliver a corrected release, or put these files back to have them tried again.
"""
