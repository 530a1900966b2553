"""One pull: what a publisher's folder offers beyond what is in force, fetched and handed to the trust that any delivery meets.

Nothing is parsed before its signature holds: first the index, by the list's own signers; then each manifest, by lists.release; then the data,
by their digests. What came is kept in a folder of the list's own until it is loaded, so that a download that broke goes on. Of several nodes
on one store one fetches and loads, and the others find it done.
"""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from eir.disk import put
from eir.errors import EirError, ReleaseRefused, StoreError
from eir.lists.changes.load import Loader, LoadReport
from eir.lists.record.settings import ListSettings, Source
from eir.lists.record.store import NO_LIST, ListState, ListStore, Mark, utc_text
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, document_in
from eir.lists.releases.release import MANIFEST_BYTES_MAX, Release, about, signature_names, verify_release
from eir.lists.rows.delivered import CHUNK_BYTES
from eir.lists.sources import folder
from eir.lists.sources.folder import INDEX, INDEX_BYTES_MAX, Index, Offer
from eir.lists.sources.inbox import KILLED, OURS, PATIENT, UNRECORDED
from eir.lists.sources.pull_http import Server, Unreached

PULL_S = 900.0
"""Seconds for one pull with its downloads and loads; a download that is cut off then goes on with the next pull."""
NOTE, FOLDER_MODE = "note.json", 0o750
LOADED, UNCHANGED, REFUSED, WAITING, UNREACHED, ELSEWHERE = OUTCOMES = (
    "loaded",
    "unchanged",
    "refused",
    "waiting",
    "unreached",
    "elsewhere",
)
"""The outcomes of a pull: UNCHANGED has nothing newer, WAITING has but cannot load it yet; with ELSEWHERE another node
is doing it."""
OFFERS_MAX = 100
"""Offered serials of which the time is kept; those that come later have the time of the last."""
REMEMBERED_MAX = 20
"""Manifests that were refused."""
NO_ROOM_BYTES = 64 << 20
"""Bytes of the disk that a download leaves free."""

AGAIN = OURS | PATIENT | {"conflict", KILLED}
"""Reasons for which a release is tried again: they say something about this host, or time may mend them."""

Load: TypeAlias = Callable[[Release, Path, Mapping[str, Mark]], Awaitable[LoadReport]]
"""Loads a release whose data lie in a folder, by the node's own marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """The result of one pull."""

    list: str
    outcome: str
    reason: str = ""
    """A short stable word, as ReleaseRefused and Unreached have it."""
    detail: str = ""
    loaded: tuple[int, ...] = ()
    """Serials that were put in force."""
    serial: int | None = None
    """The newest that the folder offers, if its index was believed."""
    reached: bool = False
    """The index came, and was believed."""
    bytes: int = 0
    """Bytes that were fetched."""
    rejected: int | None = None
    """Serial of the release that was refused; None for an index."""
    in_force: int | None = None
    """Serial in force in the store, 0 without a list; None if the store was not read."""
    behind_since: str | None = None
    """Time at which the source first offered a serial above `in_force`; None if it offers none."""

    def as_json(self) -> dict[str, Any]:
        """The result as a dictionary, for scripts."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The settings of a pull."""

    settings: ListSettings
    room: Path
    """Folder for the list's files that are kept from one pull to the next."""
    store: ListStore
    who: str
    clock: Callable[[], datetime]
    load: Load
    marks: Mapping[str, Mark]
    alone: Callable[[], Awaitable[bool]]
    """Takes the right to pull this list, among all nodes on the store; False while another has it."""
    force: bool = False
    """Fetch what was refused before once more."""


@dataclass(slots=True)
class _Note:
    """A note about a source, kept between pulls."""

    etag: str | None = None
    sha256: str | None = None
    """SHA-256 of the index that is kept; one that a fault of the disk has changed is fetched again."""
    written: str | None = None
    """The time of the newest index that was believed."""
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """SHA-256 of manifests that were refused for good → reason and detail: they are fetched once."""
    refused_at: float = 0.0
    """Unix seconds of the last of these refusals: a clock that is behind that now was wrong then."""
    settings: str | None = None
    """Digest of the list's settings by which they were."""
    url: str | None = None
    """The source that `etag`, `sha256`, `written` and `offers` are of: another one may be another publisher's."""
    offers: list[tuple[int, float]] = field(default_factory=list)
    """Serials above the one in force, each with the Unix seconds at which it was first offered."""


async def pull(terms: Terms, *, until: float | None = None) -> Pulled:
    """Bring the list in step with its source.

    The result names whatever prevents it. `until`: time.monotonic.
    """
    name, source = terms.settings.name, terms.settings.source
    if source is None:
        raise EirError(f"list {name} has no source (lists.{name}.source)")
    one = _Pull(terms, source, time.monotonic() + PULL_S if until is None else until)
    try:
        made = await one.make()
    except Unreached as e:
        made = one.pulled(UNREACHED, e.reason, str(e))
    except ReleaseRefused as e:
        made = one.pulled(WAITING if one.reached and e.reason in AGAIN else REFUSED, e.reason, e.detail)
    except StoreError as e:
        made = one.pulled(WAITING, e.cause, f"the store: {e}")
    except OSError as e:
        made = one.pulled(WAITING, "disk", str(e))
    with suppress(StoreError, OSError):
        in_force = await one.compare()
        offers = one.note.offers
        behind_since = utc_text(datetime.fromtimestamp(offers[0][1], UTC)) if offers else None
        return replace(made, in_force=in_force, behind_since=behind_since)
    return made


@dataclass(slots=True)
class _Pull:
    terms: Terms
    source: Source
    until: float
    reached: bool = False
    serial: int | None = None
    under_way: int | None = None
    """Serial of the release that is fetched and loaded."""
    loaded: list[int] = field(default_factory=list)
    server: Server | None = None
    note: _Note = field(default_factory=_Note)

    def pulled(self, outcome: str, reason: str = "", detail: str = "") -> Pulled:
        """The report."""
        fetched = self.server.bytes if self.server is not None else 0
        outcome = LOADED if self.loaded and outcome in {UNCHANGED, ELSEWHERE} else outcome
        return Pulled(
            list=self.terms.settings.name, outcome=outcome, reason=reason, detail=detail, loaded=tuple(self.loaded), serial=self.serial,
            reached=self.reached, bytes=fetched, rejected=self.under_way if outcome == REFUSED else None,
        )  # fmt: skip

    async def make(self) -> Pulled:
        """Raises Unreached, ReleaseRefused, StoreError, OSError."""
        self.terms.room.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self.note = _read_note(self.terms.room / NOTE)
        settings = _digest(self.terms.settings)
        if settings != self.note.settings or self.terms.clock().timestamp() < self.note.refused_at:  # they may be good
            self.note = replace(self.note, refused={}, refused_at=0.0, settings=settings)
        if self.source.url != self.note.url:
            self.note = replace(self.note, etag=None, sha256=None, written=None, offers=[], url=self.source.url)
        self.server = server = await asyncio.to_thread(Server, self.source, self.until)
        index = await asyncio.to_thread(self._index, server)
        self.reached, self.serial = True, index.serial
        await self.compare()  # before the downloads and loads, in which the process may be ended
        if not await self._steps(index):
            state, highest = await self._before()
            if index.serial <= highest:
                return self.pulled(UNCHANGED)
            has = f"{INDEX} has no deltas from there, and no full release above"
            if self._differs(index, state):
                has = f"what is in force is not what {INDEX} says of serial {state.serial}, so that no delta fits; it has no full release above"
            return self.pulled(
                WAITING, "base", f"serial {state.serial} is in force and {highest} is the highest accepted: {has}"
            )
        if not await self.terms.alone():
            return self.pulled(ELSEWHERE, detail="another node pulls it just now")
        for offer in await self._steps(index):  # once more, since another node may have pulled it before
            self.under_way = offer.serial
            if not self.terms.force and (said := self.note.refused.get(offer.sha256)):
                return self.pulled(REFUSED, *said)
            await self._take(server, offer)
            self.loaded.append(offer.serial)
        return self.pulled(UNCHANGED)

    async def compare(self) -> int:
        """Note when the serials above the one in force were first offered; return the serial in force. Raises StoreError, OSError."""
        state, _ = await self._before()
        now = self.terms.clock().timestamp()
        offers = [(serial, min(since, now)) for serial, since in self.note.offers]
        if (newest := self.serial) is not None:
            # A serial that is offered no more, such as one far too high, counts as the newest.
            offers = [(min(serial, newest), since) for serial, since in offers]
            if not offers or offers[-1][0] < newest:
                offers.append((newest, now if len(offers) < OFFERS_MAX else offers.pop()[1]))
        offers = [(serial, since) for serial, since in offers if serial > state.serial]
        if offers != list(map(tuple, self.note.offers)):
            self.note = replace(self.note, offers=offers)
            self._write_note()
        return state.serial

    async def _steps(self, index: Index) -> Sequence[Offer]:
        """The releases to load: deltas if they lead on from what is in force, else a full release.

        If a delta among them was refused, the full release, if one leads on. If what is in force is not what the folder has at that serial
        (of another publisher, say), the full release or nothing: with a delta it would be a list that nobody has signed.
        """
        state, highest = await self._before()
        if self._differs(index, state):
            return folder.steps(index, None, highest)
        found = folder.steps(index, None if state is NO_LIST else state.serial, highest)
        refused = any(offer.sha256 in self.note.refused for offer in found) and not self.terms.force
        return (folder.steps(index, None, highest) or found) if refused else found

    @staticmethod
    def _differs(index: Index, state: ListState) -> bool:
        """True if what is in force has another content than the folder has at its serial."""
        return index.content_of(state.serial) not in {None, state.content_digest}

    async def _before(self) -> tuple[ListState, int]:
        """The state in force, and the highest serial ever accepted. Raises StoreError."""
        name = self.terms.settings.name
        state = await self.terms.store.state(name) or NO_LIST
        return state, max(self.terms.marks.get(name, NO_LIST.mark), state.mark)[1]

    def _index(self, server: Server) -> Index:
        """The index, believed; the one of before if it has not changed. Raises Unreached, ReleaseRefused."""
        settings, kept, now = self.terms.settings, self.terms.room / INDEX, self.terms.clock()
        if settings.signers is None:
            raise ReleaseRefused("signers_file", f"list {settings.name} has no signers")
        etag = self.note.etag if _sha256_if(kept) == self.note.sha256 else None
        try:
            found = server.small(INDEX, INDEX_BYTES_MAX, etag)
        except Unreached:
            if etag is not None:  # the server may fail over the tag, and would each time
                self.note = replace(self.note, etag=None)
                self._write_note()
            raise
        content = kept.read_bytes() if found is None else found.octets
        document, _ = document_in(content, INDEX, settings.signers, now, revoked=settings.revoked)
        index = folder.read(document)
        before = datetime.fromisoformat(self.note.written) if self.note.written else None
        folder.check(index, settings.name, settings.kind, now, before)
        if found is not None:
            sha256 = hashlib.sha256(content).hexdigest()
            self.note = replace(self.note, etag=found.etag, sha256=sha256, written=index.written.isoformat())
            put(kept, content)
            self._write_note()
        return index

    async def _take(self, server: Server, offer: Offer) -> None:
        """Fetch one release and load it. Raises Unreached, ReleaseRefused, StoreError, OSError."""
        place = self.terms.room / offer.folder
        release: Release | None = None
        try:
            release = await asyncio.to_thread(self._fetched, server, offer, place)
            with about(release.manifest):
                await self.terms.load(release, place, self.terms.marks)
        except ReleaseRefused as refused:
            refused.list_name, refused.serial = self.terms.settings.name, offer.serial
            if release is None or refused.reason in UNRECORDED:
                loader = Loader(
                    {self.terms.settings.name: self.terms.settings},
                    self.terms.store,
                    self.terms.who,
                    self.terms.clock(),
                )
                await loader.record(refused, release.digest if release is not None else None)
            if refused.reason not in AGAIN:
                others = list(self.note.refused.items())[1 - REMEMBERED_MAX :]
                known = dict(others) | {offer.sha256: (refused.reason, refused.detail)}
                self.note = replace(self.note, refused=known, refused_at=self.terms.clock().timestamp())
                self._write_note()
                shutil.rmtree(place, ignore_errors=True)
            raise
        for each in self.terms.room.iterdir():  # of other releases too, which an earlier pull did not end
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)

    def _fetched(self, server: Server, offer: Offer, place: Path) -> Release:
        """A release that is whole and verified, in a folder. Raises Unreached, ReleaseRefused, OSError."""
        place.mkdir(mode=FOLDER_MODE, exist_ok=True)
        settings = self.terms.settings
        put(place / offer.manifest, self._small(server, offer, offer.manifest, offer.sha256, MANIFEST_BYTES_MAX))
        for name, digest in zip(signature_names(offer.manifest), offer.signatures, strict=False):
            put(place / name, self._small(server, offer, name, digest, SIGNATURE_BYTES_MAX))
        release = verify_release(place / offer.manifest, {settings.name: settings}, now=self.terms.clock())
        manifest = release.manifest
        if (manifest.serial, manifest.kind, manifest.base) != (offer.serial, offer.kind, offer.base):
            raise ReleaseRefused(
                "mixed",
                f"{offer.manifest} is {manifest.kind} {manifest.serial}; {INDEX} calls it {offer.kind} {offer.serial}",
            )
        # What an earlier pull left is whole, unless the host failed before it was on the disk.
        parts = [
            (file, place / f"{file.name}.part")
            for file in manifest.files
            if _sha256_if(place / file.name) != file.sha256
        ]
        free = shutil.disk_usage(place).free
        if (needed := sum(file.bytes - _size(part) for file, part in parts)) > free - NO_ROOM_BYTES:
            raise OSError(f"{needed} bytes are to be fetched, and the disk of {place} has {free} bytes free")
        for file, part in parts:
            server.into(f"{offer.folder}/{file.name}", part, file.bytes)
            if _sha256(part) != file.sha256:
                part.unlink()
                raise Unreached(
                    "changed",
                    f"{file.name} does not have the SHA-256 that its manifest says: was it damaged on its way?",
                )
            part.rename(place / file.name)
        return release

    @staticmethod
    def _small(server: Server, offer: Offer, name: str, sha256: str, most: int) -> bytes:
        found = server.small(f"{offer.folder}/{name}", most)
        if found is None or hashlib.sha256(found.octets).hexdigest() != sha256:
            raise Unreached(
                "changed",
                f"{name} is not the one that {INDEX} names: was it damaged on its way, or the folder changed just now?",
            )
        return found.octets

    def _write_note(self) -> None:
        put(self.terms.room / NOTE, json.dumps(asdict(self.note)).encode())


def _digest(settings: ListSettings) -> str:
    """A digest of settings, and of the files that they name."""
    said = asdict(replace(settings, source=None))
    digest = hashlib.sha256(
        json.dumps(said, default=lambda each: sorted(each) if isinstance(each, frozenset) else str(each)).encode()
    )
    for path in filter(None, (settings.signers, settings.revoked)):
        with suppress(OSError):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256_if(path: Path) -> str | None:
    return _sha256(path) if path.exists() else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _read_note(path: Path) -> _Note:
    with suppress(OSError, ValueError, TypeError):
        return _Note(**json.loads(path.read_text()))
    return _Note()
