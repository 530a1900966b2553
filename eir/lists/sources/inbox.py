"""One pass over the drop folder: the releases in it that are loaded, their order, and the outcome of each.

Nothing is believed but what lists.release and lists.load believe, and each release is verified once; one that is not whole
waits; one that is finished goes to `accepted/` or, with a text that says why, to `refused/`. What is not the release's fault
(a store that is away, a full disk, a signers file that cannot be read) leaves it where it is. A pass loads on the calling
thread, so it belongs in a process of its own.
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

from eir.errors import ReleaseRefused, StoreError, refused_by, shown
from eir.lists.changes.load import KEPT_BYTES_MAX, Loader, LoadReport
from eir.lists.record.settings import ListSettings
from eir.lists.record.store import ACCEPTED, REFUSED, ListStore, Mark, utc_text
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, UNSIGNED
from eir.lists.releases.release import MANIFEST_BYTES_MAX, FileEntry, Release, about
from eir.lists.rows.delivered import DataFile, read_small
from eir.lists.sources.delivery import Delivery, in_turn, to_look_at, verified
from eir.lists.sources.drop_folder import (
    AGAIN_S,
    ITEMS_MAX,
    REFUSED_BYTES_MAX,
    REFUSED_FILES_MAX,
    SETTLED_S,
    Rooms,
    lacking,
    look,
    open_rooms,
    printable,
    settled,
)

WAITING = "waiting"
"""The outcome of a release that is neither accepted nor refused."""
CRASH, KILLED = "crash", "killed"
UNRECORDED = frozenset({CRASH, KILLED, "memory", "time", "fault"})
"""Refusals that come of the load's process, after which it could not write the history itself."""

ATTEMPTS_MAX, ATTEMPTED_MAX = 3, 100
"""Times that a load may end with the process, before its release counts as the reason; how many such releases are remembered."""
NOT_MOVED_AGAIN_S = 600.0
TEXT_NAME_BYTES_MAX = 240
"""Bytes of a name that says what a text is about, so that there is room behind it."""
IN_VAIN_S, VERIFY_S, PASS_S = 3.0, 10.0, 3.0
"""Seconds that a pass spends on verifying manifests that claim a trusted key in vain, on all verification, and then on
the rest. It ends after that, so that the next one sees what has arrived meanwhile. One release of each list always has
its turn; good ones have to be known before their list's turn, or a later serial would come before an earlier one."""

OURS = frozenset({"openssh", "signers_file", "revoked_file"})
"""Refusals that say something about this host, not about the release: it stays until that is mended."""
AGED = frozenset({"expired", "signer_expired"})
"""Refusals of what is too old, by a clock that is believed."""
PATIENT = frozenset({"threshold", "issued_in_future", "timeout"})
"""Refusals that time may mend: further signatures come, clocks come nearer."""
MOVED_UNDER_US = PATIENT | {"conflict", "changed", "file_missing", "file_size", "signature_missing"}
"""Refusals of a release that was whole when it was looked at: files or list changed since."""
OF_THE_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ})
"""Faults of the system that a delivery brings about; any other is this host's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The outcome of one release, or of a file that belongs to no release."""

    manifest: str
    outcome: str  # ACCEPTED, REFUSED or WAITING
    list: str | None = None
    serial: int | None = None
    reason: str = ""
    """A short stable word, as ReleaseRefused has it; `incomplete`, `base` and others for those that wait."""
    detail: str = ""
    here: bool = False
    """It waits for this host: its store, its disk, its signers files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The result of one pass."""

    taken: tuple[Taken, ...] = ()
    again_s: float | None = None
    """Seconds until the next look even if no file changes; None: a look would find nothing."""
    strays: tuple[str, ...] = ()
    """Files that no release names yet."""
    elsewhere: bool = False
    """Another process makes a pass just now, and this one made none."""

    def as_json(self) -> dict[str, object]:
        """The pass for scripts, and for the node that had it made."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name in {"taken", "again_s"} or (name == "strays" and value)
        }


@dataclass(slots=True)
class Attempts:
    """A note, in a file, of loads that went on when their process was killed: no release is tried for ever."""

    _path: Path
    _going_on: str = ""

    @contextmanager
    def one(self, digest: str) -> Iterator[None]:
        """Around one load of the release with this digest. Raises ReleaseRefused (`crash`) after ATTEMPTS_MAX without an end."""
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
        """Loads of the release that were killed so far."""
        return self._read().get(digest, 0)

    def forget(self, digest: str = "") -> None:
        """Forget a load, or else the one in progress: it ended for its own reason, or because somebody wants it to."""
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
    """The reason why a release cannot be taken yet; `bounded`: past the patience that counts as final."""

    reason: str
    detail: str
    bounded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSettings:
    """The settings of a pass."""

    folder: Path
    lists: Mapping[str, ListSettings]
    store: ListStore
    who: str
    clock: Callable[[], datetime]
    patience_s: float
    """Seconds after the last change of its files for which an incomplete release may wait, and a file that no release
    names may lie."""
    attempts: Attempts
    believed: bool = True
    """False while the clock is ahead by hours that it was not ahead by before: then nothing counts as too old."""
    marks: Mapping[str, Mark] | None = None  # as for load_release
    ours: Callable[[], bool] = lambda: True
    """Asked before each load: whether the right to load is still held."""
    load: Callable[[Release, Path], Awaitable[LoadReport]] | None = None
    """Loads a release whose data lie in a folder, as Loader.load does; None: that, in this process."""
    in_vain_s: float = IN_VAIN_S
    verify_s: float = VERIFY_S
    pass_s: float = PASS_S
    items_max: int = ITEMS_MAX
    """Files that a pass looks at."""
    refused_max: tuple[int, int] = REFUSED_FILES_MAX, REFUSED_BYTES_MAX
    """Refused files that are kept, and their bytes."""


async def take_in(terms: PassSettings) -> Pass:
    """Load each whole release, by serial, and move those that are finished. Raises EirError if the folder cannot be used.

    Whatever one of them brings about, the others have their turn. A list whose store fails, and a release for which there is no
    room, stay where they are. A pass ends after `pass_s`; what is left then is the next one's.
    """
    with open_rooms(terms.folder) as rooms:
        turn = _Turn(terms, rooms)
        await turn.make()
        with suppress(OSError):
            rooms.prune(*terms.refused_max)
        return Pass(taken=tuple(turn.taken), again_s=min(turn.again, default=None), strays=tuple(turn.strays))


class _Turn:
    """One pass: the open folder as it was found, and the outcome of everything in it."""

    def __init__(self, terms: PassSettings, rooms: Rooms) -> None:
        self.terms = terms
        self.taken: list[Taken] = []
        self.again: list[float] = []
        self.strays: list[str] = []
        self._rooms = rooms
        self._listing = look(rooms.drop, terms.items_max)
        self._looked = terms.clock().timestamp()
        """The time of the look, so that of two releases the later one does not settle before the earlier one during the
        pass."""
        self._began = time.monotonic()
        self._away: set[str | None] = set()
        """Lists whose store failed in this pass, and None if one did."""
        self._gone: set[str] = set()
        """Files that were put away."""
        self._cut = False
        """Not everything was looked at."""

    async def make(self) -> None:
        """Each release, then what belongs to none."""
        if len(self._listing) >= self.terms.items_max:
            self.again.append(SETTLED_S)
        likely, unlikely = await asyncio.to_thread(
            to_look_at, self._listing, self._rooms.drop, self.terms.lists.values()
        )
        pending = [delivery async for delivery in self._verified(likely, self.terms.verify_s, self.terms.in_vain_s)]
        self._began = time.monotonic()
        waits = {name for delivery in pending for name in (delivery.name, *delivery.signatures, *delivery.data)}
        left = {delivery.name: delivery for delivery in pending}
        for number, delivery in in_turn(pending, self._was_killed):
            if not self.terms.ours():
                self.again.append(AGAIN_S)
                return
            if number and self._spent(self.terms.pass_s):
                return
            del left[delivery.name]
            others = {name for other in left.values() for name in other.data}
            await self._handled(delivery, others)
        async for delivery in self._verified(unlikely, self.terms.pass_s, self.terms.pass_s):
            waits |= {delivery.name, *delivery.signatures, *delivery.data}
            await self._handled(delivery, set())
            pending.append(delivery)
        if not self._cut and not any(
            delivery.release is None and delivery.name not in self._gone for delivery in pending
        ):
            # Else what seems to belong to none may belong to a manifest that is not believed yet.
            self._sweep(self._listing.keys() - waits)

    async def _verified(self, names: Sequence[str], until_s: float, in_vain_max_s: float) -> AsyncIterator[Delivery]:
        """The result of verifying each, as long as the pass has time for that, and for those that fail."""
        terms, in_vain_s = self.terms, 0.0
        for name in names:
            if self._spent(until_s) or (in_vain_s > in_vain_max_s and self._spent(0.0)):
                return
            began = time.monotonic()
            try:
                delivery = await asyncio.to_thread(
                    verified, name, terms.folder, self._listing, terms.lists, terms.clock()
                )
                if delivery.refused is not None and delivery.refused.reason in UNSIGNED:
                    in_vain_s += time.monotonic() - began
                yield delivery
            except OSError as error:
                self._cut = True
                self._stays(Delivery(name, (), None, None), "disk", str(error))

    def _spent(self, after_s: float) -> bool:
        """True if the pass has taken this long; the next one does the rest."""
        if time.monotonic() - self._began < after_s:
            return False
        self.again.append(0.0)
        self._cut = True
        return True

    def _was_killed(self, delivery: Delivery) -> bool:
        return delivery.release is not None and self.terms.attempts.of(delivery.release.digest) > 0

    async def _handled(self, delivery: Delivery, others: set[str]) -> None:
        """Take one delivery; anything that goes wrong with it is reported for it alone."""
        if delivery.list in self._away:
            return
        try:
            await self._take(delivery, others)
        except StoreError as error:
            self._away |= {None, delivery.list}
            self._stays(delivery, error.cause, f"the store: {error}")
        except OSError as error:
            if error.errno in OF_THE_NAME:
                await self._refuse(delivery, others, refused_by(error))
            else:
                self._stays(delivery, "disk", str(error))
        except Exception as fault:  # noqa: BLE001 - the outermost loop over deliveries: the others have their turn
            await self._refuse(delivery, others, refused_by(fault))

    async def _take(self, delivery: Delivery, others: set[str]) -> None:
        """Load one release, refuse it, or let it wait. `others`: files that further releases need as well."""
        left = self._patience_left((delivery.name, *delivery.signatures, *delivery.data))
        delay = await self._delay(delivery)
        if delay is not None and (not delay.bounded or left > 0):
            self._waits(delivery, delay, min(left, AGAIN_S) if delay.bounded else AGAIN_S)
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
            or (refused.reason in MOVED_UNDER_US and left > 0)
        ):
            delay = _Delay(refused.reason, refused.detail, bounded=refused.reason not in OURS | {KILLED})
            self._waits(delivery, delay, SETTLED_S if refused.reason == "conflict" else AGAIN_S)
            return
        await self._refuse(delivery, others, refused)

    async def _load(self, delivery: Delivery, release: Release, others: set[str]) -> ReleaseRefused | None:
        """Load a release and put it away; returns why it was refused, which the history says then."""
        manifest, terms = release.manifest, self.terms
        state = await terms.store.state(manifest.list)
        if state is not None and (state.serial, state.release_digest) == (manifest.serial, release.digest):
            # It was loaded by a pass that could not move it any more.
            await self._move(delivery, others, _taken(delivery, ACCEPTED, detail="it is in force already"))
            return None
        try:
            with about(manifest), terms.attempts.one(release.digest):
                report = await (terms.load or self._loader().load)(release, terms.folder)
        except ReleaseRefused as refused:
            return refused
        await self._move(delivery, others, _taken(delivery, ACCEPTED, detail=report.as_text()))
        return None

    async def _refuse(self, delivery: Delivery, others: set[str], refused: ReleaseRefused) -> None:
        """Move a delivery to the refused, with a record in the history if nobody else has written it."""
        release = delivery.release
        if release is not None:
            refused.list_name, refused.serial = release.manifest.list, release.manifest.serial
        if release is None or refused.reason in UNRECORDED:
            await self._loader().record(refused, release.digest if release is not None else None)
        await self._move(delivery, others, _taken(delivery, REFUSED, refused.reason, refused.detail))

    def _loader(self) -> Loader:
        terms = self.terms
        return Loader(terms.lists, terms.store, terms.who, terms.clock(), terms.marks or {})

    async def _delay(self, delivery: Delivery) -> _Delay | None:
        """The reason why the release cannot be taken yet; None if it can be, or can be refused."""
        refused = delivery.refused
        if refused is not None:
            if refused.reason in OURS:
                return _Delay(refused.reason, refused.detail, bounded=False)
            if half := self._half(delivery):
                return _Delay("incomplete", half)
            return _Delay(refused.reason, refused.detail) if refused.reason in PATIENT else None
        if delivery.release is None:
            return None
        manifest = delivery.release.manifest
        if lack := lacking(manifest, self._listing, self._looked):
            return _Delay("incomplete", lack)
        state, base = await self.terms.store.state(manifest.list), manifest.base
        # The base of a delta may still come: releases arrive in any order.
        comes = base is not None and (state is None or (base > state.serial and manifest.serial > state.highest_serial))
        there = "there is no list yet" if state is None else f"serial {state.serial} is in force"
        return _Delay("base", f"it builds on serial {base}, and {there}") if comes else None

    def _half(self, delivery: Delivery) -> str:
        """The sign that manifest and signatures are not complete yet, found without reading any meaning into them."""
        signatures = ((name, SIGNATURE_BYTES_MAX, b"-----END SSH SIGNATURE-----") for name in delivery.signatures)
        for name, limit, ends in ((delivery.name, MANIFEST_BYTES_MAX, b"}"), *signatures):
            with suppress(ReleaseRefused, FileNotFoundError):
                changed = os.stat(name, dir_fd=self._rooms.drop, follow_symlinks=False).st_ctime
                if changed != self._listing[name].changed or not settled(self._listing[name], self._looked):
                    return f"{name} was changed just now"
                if not read_small(name, self._rooms.drop, limit).rstrip().endswith(ends):
                    return f"{name} ends in the middle"
        return ""

    def _waits(self, delivery: Delivery, delay: _Delay, again_s: float) -> None:
        self.taken.append(_taken(delivery, WAITING, delay.reason, delay.detail, here=not delay.bounded))
        self.again.append(max(again_s, SETTLED_S))

    def _stays(self, delivery: Delivery, reason: str, detail: str) -> None:
        """It waits for this host, for as long as it takes."""
        self._waits(delivery, _Delay(reason, detail, bounded=False), AGAIN_S)

    def _patience_left(self, names: Iterable[str]) -> float:
        """Seconds until files that do not change any more have waited long enough."""
        if not self.terms.believed:
            return self.terms.patience_s
        changed = max((self._listing[name].changed for name in names if name in self._listing), default=0.0)
        return changed + self.terms.patience_s - self.terms.clock().timestamp()

    async def _move(self, delivery: Delivery, others: set[str], taken: Taken) -> None:
        """Move a delivery to its place, data first.

        While its signature is there, a later pass ends what this one began.
        """
        files = [] if delivery.release is None else delivery.release.manifest.files
        names = [file.name for file in files if file.name not in others and file.name in self._listing]
        if taken.outcome == REFUSED:
            names = [
                file.name for file in files if file.name in names and await asyncio.to_thread(self._is_its_own, file)
            ]
        self._put_away(
            [*names, *delivery.signatures[:-1], delivery.name, delivery.signatures[-1]], delivery.name, taken
        )

    def _is_its_own(self, file: FileEntry) -> bool:
        """True if a data file is the one that a refused manifest means, or has lain there too long to be anybody's.

        It may have another release's name only, whose manifest is still on its way.
        """
        if self._patience_left((file.name,)) <= 0:
            return True
        with suppress(ReleaseRefused, OSError), DataFile(file.name, self._rooms.drop) as data:
            return data.size == file.bytes and (data.size > KEPT_BYTES_MAX or data.sha256() == file.sha256)
        return False

    def _put_away(self, names: Sequence[str], about: str, taken: Taken) -> None:
        """Move files, and put a text about one of them beside them."""
        self._gone.update(names)
        text_name = f"{os.fsdecode(os.fsencode(about)[:TEXT_NAME_BYTES_MAX])}.txt"
        try:
            places = self._rooms.places([*names, text_name], taken.outcome)
            text_place = places.pop(text_name)
            text = (text_place, _said(taken, places.values(), self.terms.clock())) if taken.outcome == REFUSED else None
            self._rooms.put_away(places, taken.outcome, text)
        except OSError as error:
            taken = replace(taken, detail=f"{taken.detail}; it could not be moved: {error.strerror}")
            self.again.append(NOT_MOVED_AGAIN_S)
        self.taken.append(taken)

    def _sweep(self, strays: Iterable[str]) -> None:
        """Put away files that no release names, among the refused, once they have lain there for long enough."""
        detail = "no signed release named it; a release is NAME.manifest.json, its .sig, and the data files that the manifest names"
        for name in sorted(strays):
            if (left := self._patience_left((name,))) > 0:
                self.again.append(left)
                self.strays.append(printable(name))
            elif not self._spent(self.terms.pass_s):
                self._put_away(
                    [name], name, Taken(manifest=printable(name), outcome=REFUSED, reason="stray", detail=detail)
                )


def _taken(delivery: Delivery, outcome: str, reason: str = "", detail: str = "", *, here: bool = False) -> Taken:
    """The outcome of a delivery."""
    return Taken(
        manifest=printable(delivery.name), outcome=outcome, list=delivery.list, serial=delivery.serial, reason=reason,
        detail=shown(detail), here=here,
    )  # fmt: skip


def _said(taken: Taken, places: Iterable[str], now: datetime) -> str:
    return f"""{taken.manifest} was refused at {utc_text(now)}.
Reason: {taken.reason}
{taken.detail}
List: {taken.list or "unknown"}; serial: {taken.serial or "unknown"}
Files: {", ".join(map(printable, places))}

The list in force is untouched. Deliver a corrected release, or put these files back to have them tried again.
"""
