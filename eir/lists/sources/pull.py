"""Pull from a publisher's folder: fetches newer releases to a private folder, and loads them.

The index and each manifest are parsed only if a signer of the list has signed them. A data file is loaded only if it has the digest
of its manifest. Fetched files stay in a folder of the list until they are loaded, so that an interrupted download continues. If
several nodes share a store, one node fetches and loads a release.
"""

import asyncio
import hashlib
import json
import math
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eir.disk import write_file
from eir.errors import EirError, ReleaseRefused, StoreError
from eir.lists.log.change import Head, utc_text
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.record.settings import ListSettings, Source
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, verify_document
from eir.lists.releases.release import MANIFEST_BYTES_MAX, Manifest, signature_names
from eir.lists.rows.delivered import CHUNK_BYTES
from eir.lists.sources import folder
from eir.lists.sources.delivery import Delivery, verify_delivery
from eir.lists.sources.drop_folder import scan_folder
from eir.lists.sources.folder import INDEX, INDEX_BYTES_MAX, FolderIndex, Offer
from eir.lists.sources.inbox import WAITING, DeliveryOutcome, PassSettings, process_fetched
from eir.lists.sources.pull_http import SourceClient, Unreached

PULL_S = 900.0
"""Seconds for one pull with its downloads and loads; the next pull continues an interrupted download."""
NOTE, FOLDER_MODE = "note.json", 0o750
LOADED = "loaded"
"""Outcome of a pull that loaded a release. Further outcomes are those of a release, WAITING and REFUSED."""
UNCHANGED = "unchanged"
"""Outcome of a pull that found no newer release."""
UNREACHED = "unreached"
ELSEWHERE = "elsewhere"
"""Outcome of a pull that stopped, because another node is pulling the list."""
OFFERS_MAX = 100
"""Maximum number of offered serials whose time is stored. A further serial replaces the last one and gets its time."""
REMEMBERED_MAX = 20
"""Maximum number of rejected manifests that are remembered."""
NO_ROOM_BYTES = 64 << 20
"""Bytes of the disk that a download leaves free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """Result of one pull."""

    list: str
    outcome: str
    reason: str = ""
    """Reason word, as in ReleaseRefused and Unreached."""
    detail: str = ""
    loaded: tuple[int, ...] = ()
    """Serials that were put in force."""
    serial: int | None = None
    """Newest serial in the folder, if its index is valid."""
    reached: bool = False
    """True if a valid index was fetched."""
    bytes: int = 0
    """Number of fetched bytes."""
    rejected: int | None = None
    """Serial of the rejected release; None for an index."""
    in_force: int | None = None
    """Serial in force in the store, 0 without a list; None if the store was not read."""
    behind_since: str | None = None
    """Time at which the source first offered a serial above `in_force`; None if it offers no such serial."""

    def as_json(self) -> dict[str, Any]:
        """Return the result of the pull as a JSON document for scripts."""
        return asdict(self)


@dataclass(slots=True)
class _Note:
    """Data about a list's source that the node stores between two pulls."""

    etag: str | None = None
    """Entity tag of the stored index."""
    sha256: str | None = None
    """SHA-256 of the stored index. If the file has another digest, the index is fetched again."""
    written: str | None = None
    """Time of the newest valid index."""
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and detail of rejected releases by the SHA-256 of the manifest. These releases are not fetched again."""
    refused_at: float = 0.0
    """Unix seconds of the last rejection in `refused`. If the present time is earlier, the clock was wrong at the rejection."""
    settings: str | None = None
    """Digest of the list's settings at these rejections."""
    url: str | None = None
    """URL of the source to which `etag`, `sha256`, `written` and `offers` belong."""
    offers: list[tuple[int, float]] = field(default_factory=list)
    """Serials above the one in force, each with the Unix seconds at which it was first offered."""


async def pull(
    terms: PassSettings, alone: Callable[[], Awaitable[bool]], *, force: bool = False, until: float | None = None
) -> Pulled:
    """Load all newer releases from a list's source. A failure is returned in the result, not raised.

    Args:
        terms: settings with one list. The folder keeps files between pulls, and has a subfolder (spool) for each release.
        alone: claims the right to pull this list among all nodes on the store; returns False while another node has the
            right.
        force: fetch rejected releases again.
        until: time limit (time.monotonic); None: PULL_S from now.

    Raises:
        EirError: if the list has no source.
    """
    (settings,) = terms.lists.values()
    if settings.source is None:
        raise EirError(f"list {settings.name} has no source (lists.{settings.name}.source)")
    if until is None:
        until = time.monotonic() + PULL_S
    terms = replace(terms, is_spool=True, patience_s=math.inf)
    run = _Pull(terms, settings, settings.source, alone, force, until)
    try:
        result = await run.make()
    except Unreached as error:
        result = run.pulled(UNREACHED, error.reason, str(error))
    except ReleaseRefused as error:
        result = run.pulled(REFUSED, error.reason, error.detail)
    except StoreError as error:
        result = run.pulled(WAITING, error.cause, f"the store: {error}")
    except OSError as error:
        result = run.pulled(WAITING, "disk", str(error))
    with suppress(StoreError, OSError):
        in_force = await run.compare()
        result = replace(result, in_force=in_force)
        if run.note.offers:
            _, offered_at = run.note.offers[0]
            result = replace(result, behind_since=utc_text(datetime.fromtimestamp(offered_at, UTC)))
    return result


@dataclass(slots=True)
class _Pull:
    """One pull of a list from its source."""

    terms: PassSettings
    settings: ListSettings
    source: Source
    alone: Callable[[], Awaitable[bool]]
    force: bool
    until: float
    reached: bool = False
    serial: int | None = None
    under_way: int | None = None
    """Serial of the release that is being fetched or loaded."""
    loaded: list[int] = field(default_factory=list)
    server: SourceClient | None = None
    note: _Note = field(default_factory=_Note)

    def pulled(self, outcome: str, reason: str = "", detail: str = "") -> Pulled:
        """Build the result of this pull."""
        fetched = self.server.bytes if self.server is not None else 0
        rejected = self.under_way if outcome == REFUSED else None
        if self.loaded and outcome in {UNCHANGED, ELSEWHERE}:
            outcome = LOADED
        return Pulled(
            list=self.settings.name, outcome=outcome, reason=reason, detail=detail, loaded=tuple(self.loaded), serial=self.serial,
            reached=self.reached, bytes=fetched, rejected=rejected,
        )  # fmt: skip

    async def make(self) -> Pulled:
        """Run the pull: fetch the index of the source, then fetch and load the newer releases.

        Raises:
            Unreached: if the source cannot be reached.
            ReleaseRefused: if the index or a release is rejected.
            StoreError: if the store fails.
            OSError: if the disk fails.
        """
        self.terms.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._open_note()
        server = await asyncio.to_thread(SourceClient, self.source, self.until)
        self.server = server
        index = await asyncio.to_thread(self._index, server)
        self.reached = True
        self.serial = index.serial
        await self.compare()  # before the downloads and loads, during which the process may be killed
        if not await self._releases_to_load(index):
            return await self._nothing_to_load(index)
        if not await self.alone():
            return self.pulled(ELSEWHERE, detail="another node pulls it just now")
        for offer in await self._releases_to_load(index):  # again, because another node may have pulled meanwhile
            self.under_way = offer.serial
            rejection = self.note.refused.get(offer.sha256)
            if rejection is not None and not self.force:
                reason, detail = rejection
                return self.pulled(REFUSED, reason, detail)
            outcome = await self._process(server, offer)
            if outcome.outcome != ACCEPTED:
                return self.pulled(outcome.outcome, outcome.reason, outcome.detail)
            self.loaded.append(offer.serial)
        return self.pulled(UNCHANGED)

    def _open_note(self) -> None:
        """Load the stored data about the source, and clear fields that a change of the settings, the source or the clock made stale."""
        self.note = _read_note(self.terms.folder / NOTE)
        settings = _digest(self.settings)
        if settings != self.note.settings or self.terms.clock().timestamp() < self.note.refused_at:
            self.note = replace(self.note, refused={}, refused_at=0.0, settings=settings)
        if self.source.url != self.note.url:
            self.note = replace(self.note, etag=None, sha256=None, written=None, offers=[], url=self.source.url)

    async def _nothing_to_load(self, index: FolderIndex) -> Pulled:
        """Build the result of a pull without a release to load."""
        state, highest = await self._state_and_highest()
        if index.serial <= highest:
            return self.pulled(UNCHANGED)
        if self._differs(index, state):
            fault = f"what is in force is not what {INDEX} says of serial {state.serial}, so that no delta fits; it has no full release above"
        else:
            fault = f"{INDEX} has no deltas from there, and no full release above"
        in_force = f"serial {state.serial} is in force and {highest} is the highest accepted"
        return self.pulled(WAITING, "base", f"{in_force}: {fault}")

    async def compare(self) -> int:
        """Store the time at which the source first offered each serial above the serial in force; return the serial in force.

        Raises:
            StoreError: if the store fails.
            OSError: if the note cannot be written.
        """
        state, _ = await self._state_and_highest()
        now = self.terms.clock().timestamp()
        newest = self.serial
        offers = [(serial, min(offered_at, now)) for serial, offered_at in self.note.offers]
        if newest is not None:
            # A serial above the newest one is no longer offered, because it was wrong. The newest serial replaces it.
            offers = [(min(serial, newest), offered_at) for serial, offered_at in offers]
            if not offers or offers[-1][0] < newest:
                offered_at = now
                if len(offers) >= OFFERS_MAX:
                    _, offered_at = offers.pop()
                offers.append((newest, offered_at))
        offers = [(serial, offered_at) for serial, offered_at in offers if serial > state.serial]
        if offers != list(map(tuple, self.note.offers)):
            self.note = replace(self.note, offers=offers)
            self._write_note()
        return state.serial

    async def _releases_to_load(self, index: FolderIndex) -> Sequence[Offer]:
        """Return the releases to load: deltas if they continue the list in force, otherwise a full release.

        If one of the deltas was rejected, a full release is preferred. If the list in force has another content than the
        folder's list with the same serial (it may be another publisher's list), only a full release is possible: a delta
        would give a list that no signer has signed.
        """
        state, highest = await self._state_and_highest()
        from_full = folder.releases_to_load(index, None, highest)
        if state is Head() or self._differs(index, state):
            return from_full
        offers = folder.releases_to_load(index, state.serial, highest)
        has_rejected = any(offer.sha256 in self.note.refused for offer in offers)
        if has_rejected and not self.force:
            return from_full or offers
        return offers

    @staticmethod
    def _differs(index: FolderIndex, state: Head) -> bool:
        """Return True if the index contains the serial in force, but with another content digest than the list in force."""
        return index.content_of(state.serial) not in {None, state.content}

    async def _state_and_highest(self) -> tuple[Head, int]:
        """Return the state of the list in force, and the highest serial that this node has accepted.

        Raises:
            StoreError: if the store fails.
        """
        name = self.settings.name
        state = (await self.terms.store.heads()).get(name) or Head()
        marks = self.terms.marks or {}
        _, highest = max(marks.get(name, Head().mark), state.mark)
        return state, highest

    def _index(self, server: SourceClient) -> FolderIndex:
        """Return the verified index of the source: a new index, or the stored index if the source has no newer one.

        Raises:
            Unreached: if the index cannot be fetched.
            ReleaseRefused: if the index is not valid.
        """
        settings = self.settings
        now = self.terms.clock()
        if settings.signers is None:
            raise ReleaseRefused("signers_file", f"list {settings.name} has no signers")
        stored_file = self.terms.folder / INDEX
        etag = self.note.etag if _sha256_if(stored_file) == self.note.sha256 else None
        try:
            fetched = server.fetch(INDEX, INDEX_BYTES_MAX, etag)
        except Unreached:
            if etag is not None:  # the tag may cause the failure: the next pull sends none
                self.note = replace(self.note, etag=None)
                self._write_note()
            raise
        content = stored_file.read_bytes() if fetched is None else fetched.octets
        document, _ = verify_document(content, INDEX, settings.signers, now, revoked=settings.revoked)
        index = folder.parse_index(document)
        before = datetime.fromisoformat(self.note.written) if self.note.written else None
        folder.check_index(index, settings.name, settings.kind, now, before)
        if fetched is not None:
            sha256 = hashlib.sha256(content).hexdigest()
            self.note = replace(self.note, etag=fetched.etag, sha256=sha256, written=index.written.isoformat())
            write_file(stored_file, content)
            self._write_note()
        return index

    async def _process(self, server: SourceClient, offer: Offer) -> DeliveryOutcome:
        """Fetch one release to its private folder, and load it.

        Raises:
            Unreached: if a file of the release cannot be fetched.
            EirError: if the private folder cannot be used.
            OSError: if the disk fails.
        """
        spool = self.terms.folder / offer.folder
        delivery = await asyncio.to_thread(self._fetch, server, offer, spool)
        outcome = await process_fetched(replace(self.terms, folder=spool), delivery)
        if outcome.outcome == REFUSED:
            newest = list(self.note.refused.items())[1 - REMEMBERED_MAX :]
            refused = dict(newest) | {offer.sha256: (outcome.reason, outcome.detail)}
            self.note = replace(self.note, refused=refused, refused_at=self.terms.clock().timestamp())
            self._write_note()
        if outcome.outcome != WAITING:
            for path in self.terms.folder.iterdir():  # also folders of releases that earlier pulls have left
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
        return outcome

    def _fetch(self, server: SourceClient, offer: Offer, place: Path) -> Delivery:
        """Fetch the manifest of a release to the folder `place`, verify the manifest, and then fetch the data files.

        Raises:
            Unreached: if a file cannot be fetched.
            OSError: if the disk fails.
        """
        place.mkdir(mode=FOLDER_MODE, exist_ok=True)
        content = self._fetch_small(server, offer, offer.manifest, offer.sha256, MANIFEST_BYTES_MAX)
        write_file(place / offer.manifest, content)
        for name, digest in zip(signature_names(offer.manifest), offer.signatures, strict=False):
            content = self._fetch_small(server, offer, name, digest, SIGNATURE_BYTES_MAX)
            write_file(place / name, content)
        delivery = verify_delivery(offer.manifest, place, scan_folder(place), self.terms.lists, self.terms.clock())
        if delivery.refused is not None:
            delivery.refused.name_release(self.settings.name, offer.serial)
        if delivery.release is None:
            return delivery
        manifest = delivery.release.manifest
        if (manifest.serial, manifest.kind, manifest.base) != (offer.serial, offer.kind, offer.base):
            subject = f"{offer.manifest} is {manifest.kind} {manifest.serial}"
            mixed = ReleaseRefused("mixed", f"{subject}; {INDEX} calls it {offer.kind} {offer.serial}")
            mixed.name_release(self.settings.name, offer.serial)
            return replace(delivery, release=None, refused=mixed)
        self._fetch_data(server, offer, manifest, place)
        return delivery

    @staticmethod
    def _fetch_data(server: SourceClient, offer: Offer, manifest: Manifest, place: Path) -> None:
        """Fetch those data files of a release that are missing or damaged in the folder `place`.

        Raises:
            Unreached: if a file cannot be fetched.
            OSError: if the disk has too little space.
        """
        # A file of an earlier pull may be damaged, if the host failed before the file was on the disk.
        missing = [file for file in manifest.files if _sha256_if(place / file.name) != file.sha256]
        parts = [place / f"{file.name}.part" for file in missing]
        needed = sum(file.bytes for file in missing) - sum(map(_size, parts))
        free = shutil.disk_usage(place).free
        if needed > free - NO_ROOM_BYTES:
            raise OSError(f"{needed} bytes are to be fetched, and the disk of {place} has {free} bytes free")
        for file, part in zip(missing, parts, strict=True):
            server.download(f"{offer.folder}/{file.name}", part, file.bytes)
            if _sha256(part) != file.sha256:
                part.unlink()
                fault = f"{file.name} does not have the SHA-256 that its manifest says"
                raise Unreached("changed", f"{fault}: was it damaged on its way?")
            part.rename(place / file.name)

    @staticmethod
    def _fetch_small(server: SourceClient, offer: Offer, name: str, sha256: str, bytes_max: int) -> bytes:
        """Fetch a manifest or a signature.

        Raises:
            Unreached: if the file cannot be fetched, or has another SHA-256 than the index says.
        """
        fetched = server.fetch(f"{offer.folder}/{name}", bytes_max)
        if fetched is None or hashlib.sha256(fetched.octets).hexdigest() != sha256:
            fault = f"{name} is not the one that {INDEX} names"
            raise Unreached("changed", f"{fault}: was it damaged on its way, or the folder changed just now?")
        return fetched.octets

    def _write_note(self) -> None:
        write_file(self.terms.folder / NOTE, json.dumps(asdict(self.note)).encode())


def _digest(settings: ListSettings) -> str:
    """Return a digest of a list's settings and of the contents of its trust files."""

    def as_json(value: object) -> object:
        return sorted(value) if isinstance(value, frozenset) else str(value)

    document = asdict(replace(settings, source=None))
    text = json.dumps(document, default=as_json)
    digest = hashlib.sha256(text.encode())
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
