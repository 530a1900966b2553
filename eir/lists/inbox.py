"""One pass over the drop folder: which releases in it are loaded, in which order, and what becomes of each.

Nothing is believed but what lists.release and lists.load believe, and each release is verified once; one that is not whole
waits; one that is finished goes to `accepted/` or, with a text that says why, to `refused/`. What is not the release's fault
(a store that is away, a full disk, a signers file that cannot be read) leaves it where it is. A pass loads on the calling
thread, so it belongs in a process of its own. May import lists and eir.errors.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from eir.errors import ReleaseRefused, StoreError
from eir.lists.delivered import read_small
from eir.lists.drop_folder import AGAIN_S, ITEMS_MAX, SETTLED_S, Rooms, delivered, lacking, look, open_rooms, settled
from eir.lists.load import Loader
from eir.lists.openssh import SIGNATURE_BYTES_MAX
from eir.lists.release import MANIFEST_BYTES_MAX, Release, about, signature_names, verify_release
from eir.lists.settings import ListSettings
from eir.lists.store import ACCEPTED, REFUSED, ListStore, Mark, utc_text

WAITING = "waiting"
"""What became of a release that is neither accepted nor refused."""
CRASH = "crash"

ATTEMPTS_MAX = 3
"""Times that a load may end with the process, before its release counts as the reason."""
NOT_MOVED_AGAIN_S = 600.0

OURS = frozenset({"openssh", "signers_file", "revoked_file"})
"""Refusals that say something about this host, not about the release: it stays until that is mended."""
PATIENT = frozenset({"threshold", "issued_in_future", "timeout"})
"""Refusals that time may mend: further signatures come, clocks come nearer."""
MOVED_UNDER_US = PATIENT | {"conflict", "changed", "file_missing", "file_size", "signature_missing"}
"""Refusals of a release that was whole when it was looked at: files or list changed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of one release, or of a file that belongs to none."""

    manifest: str
    outcome: str  # ACCEPTED, REFUSED or WAITING
    list: str | None = None
    serial: int | None = None
    reason: str = ""
    """A short stable word, as ReleaseRefused has it; `incomplete`, `base` and others for those that wait."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass did."""

    taken: tuple[Taken, ...] = ()
    again_s: float | None = None
    """When to look again although no file changes; None: then there is nothing to look for."""

    def as_json(self) -> dict[str, object]:
        """The pass for scripts, and for the node that had it made."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Attempts:
    """A note, in a file, of the load that is going on: a release that takes the process with it is not tried for ever."""

    _path: Path

    @contextmanager
    def one(self, digest: str) -> Iterator[None]:
        """Around one load of the release with this digest. Raises ReleaseRefused (`crash`) after ATTEMPTS_MAX without an end."""
        before = 0
        with suppress(OSError, ValueError):
            noted, count = self._path.read_text().split()
            before = int(count) if noted == digest else 0
        if before >= ATTEMPTS_MAX:
            self.forget()
            raise ReleaseRefused(CRASH, f"{before} loads ended with the process that made them (memory?): try `eir load` by hand")
        self._path.write_text(f"{digest} {before + 1}\n")
        try:
            yield
        finally:
            self.forget()

    def forget(self) -> None:
        """The load ends for a reason of its own, or because somebody wants it to."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A manifest whose signature is there, and what verification says of it."""

    name: str
    signatures: tuple[str, ...]
    """By name; the first one stands last, since a release is there as long as that one is."""
    release: Release | None
    """Once its signatures hold."""
    refused: ReleaseRefused | None

    @property
    def data(self) -> tuple[str, ...]:
        """Its data files, by name; none as long as its manifest is not believed."""
        return () if self.release is None else tuple(file.name for file in self.release.manifest.files)

    @property
    def order(self) -> tuple[str, int, str]:
        """By list, then by serial; what cannot be told apart so, by name."""
        return (self.release.manifest.list, self.release.manifest.serial, self.name) if self.release else ("", 0, self.name)

    def taken(self, outcome: str, reason: str = "", detail: str = "") -> Taken:
        """What became of it."""
        list_name, serial, _ = self.order if self.release else (None, None, "")
        return Taken(manifest=self.name, outcome=outcome, list=list_name, serial=serial, reason=reason, detail=detail)


class _Delay(NamedTuple):
    """Why a release cannot be taken yet; `bounded`: past the patience that counts as final."""

    reason: str
    detail: str
    bounded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSettings:
    """What a pass goes by."""

    folder: Path
    lists: Mapping[str, ListSettings]
    store: ListStore
    who: str
    clock: Callable[[], datetime]
    patience_s: float
    """How long after the last change of its files an incomplete release may wait, and a file that no release names may lie."""
    attempts: Attempts
    marks: Mapping[str, Mark] | None = None  # as for load_release
    ours: Callable[[], bool] = lambda: True
    """Asked before each load: whether the right to load is still held."""


async def take_in(terms: PassSettings) -> Pass:
    """Load each whole release, by serial, and move those that are finished. Raises EirError if the folder cannot be used.

    A store or a disk that fails ends the pass and leaves the releases where they are.
    """
    with open_rooms(terms.folder) as rooms:
        turn = _Turn(terms, rooms)
        try:
            await turn.make()
        except (StoreError, OSError) as error:  # a store that is away, a disk that is full, a folder that went away
            what, detail = (error.cause, f"the store: {error}") if isinstance(error, StoreError) else ("disk", str(error))
            turn.taken.append(Taken(manifest="", outcome=WAITING, reason=what, detail=detail))
            turn.again.append(AGAIN_S)
        return Pass(taken=tuple(turn.taken), again_s=min(turn.again, default=None))


class _Turn:
    """One pass: the folder as it was found, open, and what became of what lay there."""

    def __init__(self, terms: PassSettings, rooms: Rooms) -> None:
        self.terms = terms
        self.taken: list[Taken] = []
        self.again: list[float] = []
        self._rooms = rooms
        self._listing = look(rooms.drop)

    async def make(self) -> None:
        """Each release, then what belongs to none."""
        if len(self._listing) >= ITEMS_MAX:
            self.again.append(SETTLED_S)
        pending = sorted(map(self._verified, delivered(self._listing)), key=lambda delivery: delivery.order)
        gone = self._rooms.moved
        for delivery in pending:
            if not self.terms.ours():
                self.again.append(AGAIN_S)
                return
            others = {name for other in pending if other is not delivery and other.name not in gone for name in other.data}
            await self._take(delivery, others)
        if not any(delivery.release is None and delivery.name not in gone for delivery in pending):
            # Else what seems to belong to none may belong to a manifest that is not believed yet.
            kept = {name for delivery in pending for name in (delivery.name, *delivery.signatures, *delivery.data)}
            self._sweep(self._listing.keys() - kept)
        self._rooms.prune()

    def _verified(self, name: str) -> _Delivery:
        """The delivery, and what its signatures are worth at this moment; nothing is recorded yet."""
        first, *further = (signature for signature in signature_names(name) if signature in self._listing)
        try:
            release = verify_release(self.terms.folder / name, self.terms.lists, now=self.terms.clock())
        except ReleaseRefused as refused:
            return _Delivery(name, (*further, first), None, refused)
        return _Delivery(name, (*further, first), release, None)

    async def _take(self, delivery: _Delivery, others: set[str]) -> None:
        """Load one release, refuse it, or let it wait. `others`: files that further releases need as well."""
        if (delay := await self._delay(delivery)) is not None:
            left = self._patience_left((delivery.name, *delivery.signatures, *delivery.data))
            if not delay.bounded or left > 0:
                self._waits(delivery, delay, min(left, AGAIN_S) if delay.bounded else AGAIN_S)
                return
        refused = delivery.refused if delivery.release is None else await self._load(delivery, delivery.release, others)
        if refused is None:
            return
        if refused.reason in OURS or (refused.reason in MOVED_UNDER_US and delay is None):
            self._waits(delivery, _Delay(refused.reason, refused.detail), SETTLED_S)
            return
        if delivery.release is None:
            await self._loader().record(refused)
        self._move(delivery, others, delivery.taken(REFUSED, refused.reason, refused.detail))

    async def _load(self, delivery: _Delivery, release: Release, others: set[str]) -> ReleaseRefused | None:
        """Load a release and put it away; returns why it was refused, which the history says then."""
        manifest, loader = release.manifest, self._loader()
        state = await loader.store.state(manifest.list)
        if state is not None and (state.serial, state.release_digest) == (manifest.serial, release.digest):
            # It was loaded by a pass that could not move it any more.
            self._move(delivery, others, delivery.taken(ACCEPTED, detail="it is in force already"))
            return None
        try:
            with about(manifest), self.terms.attempts.one(release.digest):
                report = await loader.load(release, self.terms.folder)
        except ReleaseRefused as refused:
            if refused.reason == CRASH:
                await loader.record(refused, release.digest)
            return refused
        self._move(delivery, others, delivery.taken(ACCEPTED, detail=report.as_text()))
        return None

    def _loader(self) -> Loader:
        terms = self.terms
        return Loader(terms.lists, terms.store, terms.who, terms.clock(), terms.marks or {})

    async def _delay(self, delivery: _Delivery) -> _Delay | None:
        """Why the release cannot be taken yet; None if it can be, or can be refused."""
        now, refused = self.terms.clock().timestamp(), delivery.refused
        if refused is not None:
            if refused.reason in OURS:
                return _Delay(refused.reason, refused.detail, bounded=False)
            if half := self._half(delivery, now):
                return _Delay("incomplete", half)
            return _Delay(refused.reason, refused.detail) if refused.reason in PATIENT else None
        if delivery.release is None:
            return None
        manifest = delivery.release.manifest
        if lack := lacking(manifest, self._listing, now):
            return _Delay("incomplete", lack)
        state, base = await self.terms.store.state(manifest.list), manifest.base
        # The base of a delta may still come: releases arrive in any order.
        comes = base is not None and (state is None or (base > state.serial and manifest.serial > state.highest_serial))
        there = "there is no list yet" if state is None else f"serial {state.serial} is in force"
        return _Delay("base", f"it builds on serial {base}, and {there}") if comes else None

    def _half(self, delivery: _Delivery, now: float) -> str:
        """What shows that manifest and signatures are not all there yet, without reading any meaning into them."""
        signatures = ((name, SIGNATURE_BYTES_MAX, b"-----END SSH SIGNATURE-----") for name in delivery.signatures)
        for name, limit, ends in ((delivery.name, MANIFEST_BYTES_MAX, b"}"), *signatures):
            with suppress(ReleaseRefused, FileNotFoundError):
                changed = os.stat(name, dir_fd=self._rooms.drop, follow_symlinks=False).st_ctime
                if changed != self._listing[name].changed or not settled(self._listing[name], now):
                    return f"{name} was changed just now"
                if not read_small(name, self._rooms.drop, limit).rstrip().endswith(ends):
                    return f"{name} ends in the middle"
        return ""

    def _waits(self, delivery: _Delivery, delay: _Delay, again_s: float) -> None:
        self.taken.append(delivery.taken(WAITING, delay.reason, delay.detail))
        self.again.append(max(again_s, SETTLED_S))

    def _patience_left(self, names: Iterable[str]) -> float:
        """Seconds until files that do not change any more have waited long enough."""
        changed = max((self._listing[name].changed for name in names if name in self._listing), default=0.0)
        return changed + self.terms.patience_s - self.terms.clock().timestamp()

    def _move(self, delivery: _Delivery, others: set[str], taken: Taken) -> None:
        """To where it belongs, its data first: as long as its signature is there, a later pass ends what this one began."""
        names = [name for name in delivery.data if name not in others and name in self._listing]
        self._put_away([*names, *delivery.signatures[:-1], delivery.name, delivery.signatures[-1]], taken)

    def _put_away(self, names: Sequence[str], taken: Taken) -> None:
        text = (f"{taken.manifest}.txt", _said(taken, names, self.terms.clock())) if taken.outcome == REFUSED else None
        try:
            self._rooms.put_away(names, taken.outcome, text)
        except OSError as error:
            taken = replace(taken, detail=f"{taken.detail}; it could not be moved: {error}")
            self.again.append(NOT_MOVED_AGAIN_S)
        self.taken.append(taken)

    def _sweep(self, strays: Iterable[str]) -> None:
        """What no release names goes to the refused once it has lain there for long enough."""
        detail = "no signed release named it; a release is a manifest, its .sig and the data files that it names"
        for name in sorted(strays):
            if (left := self._patience_left((name,))) > 0:
                self.again.append(left)
            else:
                self._put_away([name], Taken(manifest=name, outcome=REFUSED, reason="stray", detail=detail))


def _said(taken: Taken, names: Sequence[str], now: datetime) -> str:
    return f"""{taken.manifest} was refused at {utc_text(now)}.
Reason: {taken.reason}
{taken.detail}
List: {taken.list or "unknown"}; serial: {taken.serial or "unknown"}
Files: {", ".join(names)}

The list in force is untouched. Deliver a corrected release, or put these files back to have them tried again.
"""
