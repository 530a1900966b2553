"""The drop folder: which releases in it are whole, in which order they are loaded, and where they go then.

Whoever delivers may write the folder: files come in any order and in halves, change while they are read, or are links. So
nothing is believed but what lists.release and lists.load believe; a release that is not whole waits; what is done with is
moved through descriptors that no link leads astray, to `accepted/` or, with a text that says why, to `refused/`. What is
not the release's fault (a store that is away, a full disk, a signers file that cannot be read) leaves it where it is.

`take_in` makes one pass; it loads on the calling thread, so it belongs in a process of its own. `Watch` tells when a pass is
worth making. May import lists, eir.errors and the standard library; the store and the clock come as arguments.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from eir.errors import EirError, ReleaseRefused, StoreError
from eir.lists.delivered import read_small
from eir.lists.load import ListSettings, load_release
from eir.lists.release import (
    DELTA,
    MANIFEST_BYTES_MAX,
    SIGNATURE_BYTES_MAX,
    SIGNATURES_MAX,
    Manifest,
    Release,
    Trust,
    utc_text,
    verify_release,
)
from eir.lists.store import REFUSED as REFUSED_OUTCOME
from eir.lists.store import Event, ListState, ListStore

ACCEPTED, REFUSED, WAITING = "accepted", "refused", "waiting"
"""What became of a release; the first two are also the folders that they go to."""
SIGNATURE = ".sig"
FOLDER_MODE, TEXT_MODE = 0o750, 0o640

SETTLED_S = 1.0
"""A file that was changed less than this ago may still be on its way."""
ITEMS_MAX = 3000
"""Files of the folder that are looked at; the rest waits until these have gone."""
REFUSED_FILES_MAX, REFUSED_BYTES_MAX = 1000, 1 << 30
"""What `refused/` keeps: the oldest files go first, those of the latest release never."""
ATTEMPTS_MAX = 3
"""Times that a load may end with the process, before its release counts as the reason."""
OURS_AGAIN_S, NOT_MOVED_AGAIN_S = 30.0, 600.0
CHANGED_AGAIN_S = 10.0
"""A pass while files only grow: not more often than this."""

OURS = frozenset({"openssh", "signers_file", "revoked_file"})
"""Refusals that say something about this host, not about the release: it stays until that is mended."""
PATIENT = frozenset({"threshold", "issued_in_future", "timeout"})
"""Refusals that time may mend: further signatures come, clocks come nearer."""
MOVED_UNDER_US = PATIENT | {"conflict", "changed", "file_missing", "file_size", "signature_missing"}
"""Refusals of a release that was whole when it was looked at: files or list changed since."""


class Item(NamedTuple):
    """One name in the folder."""

    size: int
    changed: float
    """Unix seconds of the last change, of content or name (ctime)."""
    regular: bool


Listing = Mapping[str, Item]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of one release, or of a file that belongs to none."""

    manifest: str
    outcome: str
    """ACCEPTED, REFUSED or WAITING."""
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
        return {"taken": [asdict(taken) for taken in self.taken], "again_s": self.again_s}


# ---- what is there ----


def look(folder: Path) -> Listing:
    """The names in the folder that may belong to releases: no folders, nothing hidden. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _listed(descriptor)
    finally:
        os.close(descriptor)


def _listed(folder_fd: int) -> dict[str, Item]:
    found: dict[str, Item] = {}
    with os.scandir(folder_fd) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    found[entry.name] = Item(status.st_size, status.st_ctime, stat.S_ISREG(status.st_mode))
            if len(found) >= ITEMS_MAX:
                break
    return found


def delivered(listing: Listing) -> list[str]:
    """Manifests whose signature has arrived, by name."""
    names = (name.removesuffix(SIGNATURE) for name in listing if name.endswith(SIGNATURE))
    return sorted(name for name in names if name in listing)


def lacking(manifest: Manifest, listing: Listing, now: float) -> str:
    """What keeps a release's data files from being whole; empty if nothing does."""
    for file in manifest.files:
        item = listing.get(file.name)
        if item is None:
            return f"{file.name} is not there"
        if item.size != file.bytes:
            return f"{file.name} has {item.size} of {file.bytes} bytes"
        if not settled(item, now):
            return f"{file.name} was changed just now"
    return ""


def settled(item: Item, now: float) -> bool:
    """Nobody changed it of late. A time that is yet to come is another host's clock, and says nothing."""
    return not now - SETTLED_S < item.changed <= now


# ---- when to look closer ----


class Watch:
    """Decides from one look at the folder after another when a pass is worth making. `patience_s` as in Terms."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._seen: Listing = {}
        """As the last pass found it."""
        self._again_at = 0.0
        self._passed_at = -float("inf")

    def due(self, listing: Listing, now: float) -> bool:
        """Whether there may be something to do. `now` in Unix seconds, like the times of the files."""
        if not listing:
            return False
        if now >= self._again_at:
            return True
        since = now - self._passed_at
        if since >= OURS_AGAIN_S and min(item.changed for item in listing.values()) + self._patience_s <= now:
            return True
        fresh = [item for name, item in listing.items() if self._seen.get(name) != item]
        if not fresh or not any(name.endswith(SIGNATURE) for name in listing):
            return False
        return since >= CHANGED_AGAIN_S or all(settled(item, now) for item in fresh)

    def passed(self, listing: Listing, again_s: float | None, now: float) -> None:
        """A pass was made of what `listing` shows."""
        self._seen = listing
        self._passed_at = now
        self._again_at = float("inf") if again_s is None else now + again_s


# ---- one pass ----


class _TooManyAttempts(EirError):
    """A load that ended with its process each time."""


class Attempts:
    """A note, in a file, of the load that is going on: a release that takes the process with it is not tried for ever."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def one(self, digest: str) -> Iterator[None]:
        """Around one load of the release with this digest; raises _TooManyAttempts after ATTEMPTS_MAX without an end."""
        before = self._count(digest)
        if before >= ATTEMPTS_MAX:
            self.forget()
            raise _TooManyAttempts(f"{before} loads ended with the process that made them (memory?): try `eir load` by hand")
        self._path.write_text(f"{digest} {before + 1}\n")
        try:
            yield
        finally:
            self.forget()

    def forget(self) -> None:
        """The load ends for a reason of its own, or because somebody wants it to."""
        self._path.unlink(missing_ok=True)

    def _count(self, digest: str) -> int:
        try:
            noted, count = self._path.read_text().split()
            return int(count) if noted == digest else 0
        except (OSError, ValueError):
            return 0


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A manifest whose signature is there, and what verification says of it."""

    name: str
    signatures: tuple[str, ...]
    """By name; the first one stands last, since a release is there as long as that one is."""
    release: Release | None
    refused: ReleaseRefused | None = None

    @property
    def manifest(self) -> Manifest | None:
        """What it promises, once its signatures hold."""
        return None if self.release is None else self.release.manifest

    @property
    def data(self) -> tuple[str, ...]:
        """Its data files, by name; none as long as its manifest is not believed."""
        return () if self.manifest is None else tuple(file.name for file in self.manifest.files)

    @property
    def order(self) -> tuple[str, int, str]:
        """By list, then by serial; what cannot be told apart so, by name."""
        return (self.manifest.list, self.manifest.serial, self.name) if self.manifest else ("", 0, self.name)

    def taken(self, outcome: str, reason: str = "", detail: str = "") -> Taken:
        """What became of it."""
        about = (self.manifest.list, self.manifest.serial) if self.manifest else (None, None)
        return Taken(manifest=self.name, outcome=outcome, list=about[0], serial=about[1], reason=reason, detail=detail)


class _Delay(NamedTuple):
    """Why a release cannot be taken yet."""

    reason: str
    detail: str
    bounded: bool = True
    """Past the patience it counts as final."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a pass goes by."""

    folder: Path
    lists: Mapping[str, ListSettings]
    store: ListStore
    who: str
    clock: Callable[[], datetime]
    patience_s: float
    """How long after the last change of its files a release that is not whole may wait, and a file that no release names
    may lie."""
    attempts: Attempts
    marks: Mapping[str, int] | None = None
    """As for load_release."""
    ours: Callable[[], bool] = lambda: True
    """Asked before each load: whether the right to load is still held."""


async def take_in(terms: Terms) -> Pass:
    """Load each whole release, by serial, and move what is done with.

    Raises EirError if the folder cannot be used. A store or a disk that fails ends the pass and leaves the releases where
    they are.
    """
    with ExitStack() as stack:
        turn = _Turn(terms, stack)
        try:
            await turn.make()
        except StoreError as error:
            turn.fails(error.cause, f"the store: {error}")
        except OSError as error:  # a disk that is full, a folder that went away
            turn.fails("disk", str(error))
        return Pass(taken=tuple(turn.taken), again_s=min(turn.again, default=None))


class _Turn:
    """One pass: the folder as it was found, open, and what became of what lay there."""

    def __init__(self, terms: Terms, stack: ExitStack) -> None:
        self.terms = terms
        self.taken: list[Taken] = []
        self.again: list[float] = []
        self._inbox = _opened(terms.folder, None, stack)
        self._folders = {name: _opened(Path(name), self._inbox, stack) for name in (ACCEPTED, REFUSED)}
        self._listing = _listed(self._inbox)
        self._gone: set[str] = set()

    async def make(self) -> None:
        """Each release, then what belongs to none."""
        if len(self._listing) >= ITEMS_MAX:
            self.again.append(SETTLED_S)
        pending = sorted(map(self._verified, delivered(self._listing)), key=lambda delivery: delivery.order)
        for delivery in pending:
            if not self.terms.ours():
                self.again.append(OURS_AGAIN_S)
                return
            others = {name for other in pending if other is not delivery and other.name not in self._gone for name in other.data}
            await self._take(delivery, others)
        if not any(delivery.manifest is None and delivery.name not in self._gone for delivery in pending):
            # Else what seems to belong to none may belong to a manifest that is not believed yet.
            kept = {name for delivery in pending for name in (delivery.name, *delivery.signatures, *delivery.data)}
            self._sweep(self._listing.keys() - kept)
        _prune(self._folders[REFUSED], self._gone)

    def fails(self, reason: str, detail: str) -> None:
        """The rest of the pass cannot be made, through no fault of a release."""
        self.taken.append(Taken(manifest="", outcome=WAITING, reason=reason, detail=detail))
        self.again.append(OURS_AGAIN_S)

    def _now(self) -> float:
        return self.terms.clock().timestamp()

    def _verified(self, name: str) -> _Delivery:
        """The delivery, and what its signatures are worth at this moment; nothing is recorded yet."""
        further = [f"{name}{SIGNATURE}.{number}" for number in range(2, SIGNATURES_MAX + 1)]
        signatures = (*(signature for signature in further if signature in self._listing), f"{name}{SIGNATURE}")
        try:
            release = verify_release(self.terms.folder / name, trusts_of(self.terms.lists), now=self.terms.clock())
        except ReleaseRefused as refused:
            return _Delivery(name, signatures, None, refused)
        return _Delivery(name, signatures, release)

    async def _take(self, delivery: _Delivery, others: set[str]) -> None:
        """Load one release, refuse it, or let it wait. `others`: files that further releases need as well."""
        delay = await self._delay(delivery)
        if delay is not None:
            left = self._patience_left((delivery.name, *delivery.signatures, *delivery.data))
            if not delay.bounded or left > 0:
                self._waits(delivery, delay, min(left, OURS_AGAIN_S) if delay.bounded else OURS_AGAIN_S)
                return
        if delivery.release is not None and await self._is_in_force(delivery.release):
            self._move(delivery, others, delivery.taken(ACCEPTED, detail="it is in force already"))
            return
        terms = self.terms
        try:
            with terms.attempts.one("" if delivery.release is None else delivery.release.digest):
                report = await load_release(
                    terms.folder / delivery.name, terms.lists, terms.store,
                    who=terms.who, now=terms.clock(), marks=terms.marks,
                )  # fmt: skip
        except ReleaseRefused as refused:
            if refused.reason in OURS or (refused.reason in MOVED_UNDER_US and delay is None):
                self._waits(delivery, _Delay(refused.reason, refused.detail), SETTLED_S)
                return
            self._move(delivery, others, delivery.taken(REFUSED, refused.reason, refused.detail))
        except _TooManyAttempts as error:
            await self._record_crash(delivery, str(error))
            self._move(delivery, others, delivery.taken(REFUSED, "crash", str(error)))
        else:
            self._move(delivery, others, delivery.taken(ACCEPTED, detail=report.as_text()))

    async def _delay(self, delivery: _Delivery) -> _Delay | None:
        """Why the release cannot be taken yet; None if it can be, or can be refused."""
        now = self._now()
        if delivery.refused is not None:
            if delivery.refused.reason in OURS:
                return _Delay(delivery.refused.reason, delivery.refused.detail, bounded=False)
            if half := self._half(delivery, now):
                return _Delay("incomplete", half)
            if delivery.refused.reason in PATIENT:
                return _Delay(delivery.refused.reason, delivery.refused.detail)
        if delivery.manifest is None:
            return None
        if lack := lacking(delivery.manifest, self._listing, now):
            return _Delay("incomplete", lack)
        state = await self.terms.store.state(delivery.manifest.list)
        return _waits_for_base(delivery.manifest, state)

    def _half(self, delivery: _Delivery, now: float) -> str:
        """What shows that manifest and signatures are not all there yet, without reading any meaning into them."""
        for name, limit, ends in (
            (delivery.name, MANIFEST_BYTES_MAX, b"}"),
            *((name, SIGNATURE_BYTES_MAX, b"-----END SSH SIGNATURE-----") for name in delivery.signatures),
        ):
            if not settled(self._listing[name], now):
                return f"{name} was changed just now"
            with suppress(ReleaseRefused):
                if not read_small(name, self._inbox, limit).rstrip().endswith(ends):
                    return f"{name} ends in the middle"
        return ""

    async def _is_in_force(self, release: Release) -> bool:
        """It was loaded by a pass that could not move it any more."""
        state = await self.terms.store.state(release.manifest.list)
        return state is not None and (state.serial, state.release_digest) == (release.manifest.serial, release.digest)

    async def _record_crash(self, delivery: _Delivery, detail: str) -> None:
        taken = delivery.taken(REFUSED)
        await self.terms.store.record(
            Event(
                time=utc_text(self.terms.clock()), who=self.terms.who, what="refuse", list=taken.list, serial=taken.serial,
                digest=None if delivery.release is None else delivery.release.digest,
                outcome=REFUSED_OUTCOME, detail=f"crash: {detail}",
            )
        )  # fmt: skip

    def _waits(self, delivery: _Delivery, delay: _Delay, again_s: float) -> None:
        self.taken.append(delivery.taken(WAITING, delay.reason, delay.detail))
        self.again.append(max(again_s, SETTLED_S))

    def _patience_left(self, names: Iterable[str]) -> float:
        """Seconds until files that do not change any more have waited long enough."""
        changed = max((self._listing[name].changed for name in names if name in self._listing), default=0.0)
        return changed + self.terms.patience_s - self._now()

    # Moving

    def _move(self, delivery: _Delivery, others: set[str], taken: Taken) -> None:
        """To where it belongs, its data first: as long as its signature is there, a later pass ends what this one began."""
        names = [name for name in delivery.data if name not in others and name in self._listing]
        self._put_away([*names, *delivery.signatures[:-1], delivery.name, delivery.signatures[-1]], taken)

    def _put_away(self, names: Sequence[str], taken: Taken) -> None:
        target = self._folders[taken.outcome]
        try:
            if taken.outcome == REFUSED:
                _write_text(f"{taken.manifest}.txt", _said(taken, names, self.terms.clock()), target)
                self._gone.add(f"{taken.manifest}.txt")
            for name in names:
                with suppress(FileNotFoundError):  # whoever delivered it took it back
                    os.rename(name, name, src_dir_fd=self._inbox, dst_dir_fd=target)
        except OSError as error:
            taken = replace(taken, detail=f"{taken.detail}; it could not be moved: {error}")
            self.again.append(NOT_MOVED_AGAIN_S)
        self._gone.update(names)
        self.taken.append(taken)

    def _sweep(self, strays: Iterable[str]) -> None:
        """What no release names goes to the refused once it has lain there for long enough."""
        for name in sorted(strays):
            left = self._patience_left((name,))
            if left > 0:
                self.again.append(left)
                continue
            detail = "no signed release named it; a release is a manifest, its .sig and the data files that it names"
            self._put_away([name], Taken(manifest=name, outcome=REFUSED, reason="stray", detail=detail))


def trusts_of(lists: Mapping[str, ListSettings]) -> dict[str, Trust]:
    """For each list that releases may change, by whom."""
    return {
        name: Trust(signers=settings.signers, revoked=settings.revoked, threshold=settings.threshold)
        for name, settings in lists.items()
        if settings.signers is not None and not settings.local
    }


def _waits_for_base(manifest: Manifest, state: ListState | None) -> _Delay | None:
    """A delta whose base may still come: releases arrive in any order."""
    if manifest.kind != DELTA or manifest.base is None:
        return None
    if state is None:
        return _Delay("base", f"it builds on serial {manifest.base}, and there is no list yet")
    if manifest.base > state.serial and manifest.serial > state.highest_serial:
        return _Delay("base", f"it builds on serial {manifest.base}, and serial {state.serial} is in force")
    return None


def _opened(folder: Path, inside: int | None, stack: ExitStack) -> int:
    """A descriptor of the folder, or of one inside another, which is made if need be and is no link. Raises EirError."""
    try:
        if inside is not None:
            with suppress(FileExistsError):
                os.mkdir(folder, FOLDER_MODE, dir_fd=inside)
        descriptor = os.open(
            folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if inside is not None else 0), dir_fd=inside
        )
        stack.callback(os.close, descriptor)
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor):
            raise EirError(f"the drop folder cannot be used: {folder} is not writable for user {os.getuid()}")
    except OSError as error:
        raise EirError(f"the drop folder cannot be used: {folder}: {error.strerror}") from None
    return descriptor


def _write_text(name: str, text: str, folder_fd: int) -> None:
    """A new file in place of whatever has the name."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(name, flags, TEXT_MODE, dir_fd=folder_fd), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # A release that may not stay in the folder goes without its text; log and history say the same.


def _said(taken: Taken, names: Sequence[str], now: datetime) -> str:
    lines = [
        f"{taken.manifest} was refused at {utc_text(now)}.",
        f"Reason: {taken.reason}",
        taken.detail,
        f"List: {taken.list or 'unknown'}; serial: {taken.serial or 'unknown'}",
        f"Files: {', '.join(names)}",
        "",
        "The list in force is untouched. Deliver a corrected release, or put these files back to have them tried again.",
    ]
    return "\n".join(lines) + "\n"


def _prune(refused_fd: int, keep: set[str]) -> None:
    """Delete the oldest refused files past what is kept of them."""
    found = sorted(_listed(refused_fd).items(), key=lambda named: named[1].changed, reverse=True)
    files = size = 0
    for name, item in found:
        files, size = files + 1, size + item.size
        if name not in keep and (files > REFUSED_FILES_MAX or size > REFUSED_BYTES_MAX):
            with suppress(OSError):
                os.unlink(name, dir_fd=refused_fd)
