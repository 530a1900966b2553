"""Pull from a publisher's folder: it fetches newer releases to a private folder, and loads them like any delivery.

Each document is parsed only after its signature was verified: first the index, with the list's signers; then each manifest
(eir.lists.releases.release); then the data files, by their digests. Files are kept in a folder of the list until they are loaded,
so that an interrupted download continues. If several nodes share a store, one node fetches and loads a release.
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
from eir.lists.record.settings import ListSettings, Source
from eir.lists.record.store import ACCEPTED, NO_LIST, REFUSED, ListState, utc_text
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, verify_document
from eir.lists.releases.release import MANIFEST_BYTES_MAX, signature_names
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
LOADED, UNCHANGED, UNREACHED, ELSEWHERE = "loaded", "unchanged", "unreached", "elsewhere"
"""Outcomes of a pull beside WAITING and REFUSED, which are those of a release. UNCHANGED: no newer release; ELSEWHERE: another node is pulling."""
OFFERS_MAX = 100
"""Maximum number of offered serials whose time is stored; later serials get the time of the last one."""
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
    """Time at which the source first offered a serial above `in_force`; None if it offers none."""

    def as_json(self) -> dict[str, Any]:
        """Return the result of the pull as a JSON document for scripts."""
        return asdict(self)


@dataclass(slots=True)
class _Note:
    """State of a source that is stored between pulls."""

    etag: str | None = None
    sha256: str | None = None
    """SHA-256 of the stored index; an index that the disk has corrupted is fetched again."""
    written: str | None = None
    """Time of the newest valid index."""
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """SHA-256 of finally rejected manifests → reason and detail, so that they are fetched only once."""
    refused_at: float = 0.0
    """Unix seconds of the last of these refusals; if the clock is behind it now, the clock was wrong then."""
    settings: str | None = None
    """Digest of the list's settings at these refusals."""
    url: str | None = None
    """Source of `etag`, `sha256`, `written` and `offers`; another source may be another publisher's."""
    offers: list[tuple[int, float]] = field(default_factory=list)
    """Serials above the one in force, each with the Unix seconds at which it was first offered."""


async def pull(
    terms: PassSettings, alone: Callable[[], Awaitable[bool]], *, force: bool = False, until: float | None = None
) -> Pulled:
    """Load all newer releases of a list's source; a failure is part of the result.

    Args:
        terms: settings with one list; the folder keeps its files between pulls, and has a spool for each release.
        alone: claims the right to pull this list among all nodes on the store; returns False while another node has it.
        force: fetch releases again that were rejected before.
        until: time limit (time.monotonic).

    Raises:
        EirError: if the list has no source.
    """
    (settings,) = terms.lists.values()
    if settings.source is None:
        raise EirError(f"list {settings.name} has no source (lists.{settings.name}.source)")
    terms = replace(terms, is_spool=True, patience_s=math.inf)
    run = _Pull(terms, settings, settings.source, alone, force, time.monotonic() + PULL_S if until is None else until)
    try:
        result = await run.make()
    except Unreached as e:
        result = run.pulled(UNREACHED, e.reason, str(e))
    except ReleaseRefused as e:
        result = run.pulled(REFUSED, e.reason, e.detail)
    except StoreError as e:
        result = run.pulled(WAITING, e.cause, f"the store: {e}")
    except OSError as e:
        result = run.pulled(WAITING, "disk", str(e))
    with suppress(StoreError, OSError):
        in_force = await run.compare()
        offers = run.note.offers
        behind_since = utc_text(datetime.fromtimestamp(offers[0][1], UTC)) if offers else None
        return replace(result, in_force=in_force, behind_since=behind_since)
    return result


@dataclass(slots=True)
class _Pull:
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
        """Build the result of the pull."""
        fetched = self.server.bytes if self.server is not None else 0
        outcome = LOADED if self.loaded and outcome in {UNCHANGED, ELSEWHERE} else outcome
        return Pulled(
            list=self.settings.name, outcome=outcome, reason=reason, detail=detail, loaded=tuple(self.loaded), serial=self.serial,
            reached=self.reached, bytes=fetched, rejected=self.under_way if outcome == REFUSED else None,
        )  # fmt: skip

    async def make(self) -> Pulled:
        """Fetch the index of the source, and fetch and load the newer releases.

        Raises:
            Unreached: if the source cannot be reached.
            ReleaseRefused: if the index or a release is rejected.
            StoreError: if the store fails.
            OSError: if the disk fails.
        """
        self.terms.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self.note = _read_note(self.terms.folder / NOTE)
        settings = _digest(self.settings)
        if settings != self.note.settings or self.terms.clock().timestamp() < self.note.refused_at:  # retry all
            self.note = replace(self.note, refused={}, refused_at=0.0, settings=settings)
        if self.source.url != self.note.url:
            self.note = replace(self.note, etag=None, sha256=None, written=None, offers=[], url=self.source.url)
        self.server = server = await asyncio.to_thread(SourceClient, self.source, self.until)
        index = await asyncio.to_thread(self._index, server)
        self.reached, self.serial = True, index.serial
        await self.compare()  # before the downloads and loads, during which the process may be killed
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
        if not await self.alone():
            return self.pulled(ELSEWHERE, detail="another node pulls it just now")
        for offer in await self._steps(index):  # again, because another node may have pulled meanwhile
            self.under_way = offer.serial
            if not self.force and (refusal := self.note.refused.get(offer.sha256)):
                return self.pulled(REFUSED, *refusal)
            outcome = await self._process(server, offer)
            if outcome.outcome != ACCEPTED:
                return self.pulled(outcome.outcome, outcome.reason, outcome.detail)
            self.loaded.append(offer.serial)
        return self.pulled(UNCHANGED)

    async def compare(self) -> int:
        """Compare the offered serials with the serial of the list in force, and return the latter.

        For each higher offered serial, the time of its first offer is stored.

        Raises:
            StoreError: if the store fails.
            OSError: if the note cannot be written.
        """
        state, _ = await self._before()
        now = self.terms.clock().timestamp()
        offers = [(serial, min(since, now)) for serial, since in self.note.offers]
        if (newest := self.serial) is not None:
            # A serial that is no longer offered, such as one far too high, counts as the newest.
            offers = [(min(serial, newest), since) for serial, since in offers]
            if not offers or offers[-1][0] < newest:
                offers.append((newest, now if len(offers) < OFFERS_MAX else offers.pop()[1]))
        offers = [(serial, since) for serial, since in offers if serial > state.serial]
        if offers != list(map(tuple, self.note.offers)):
            self.note = replace(self.note, offers=offers)
            self._write_note()
        return state.serial

    async def _steps(self, index: FolderIndex) -> Sequence[Offer]:
        """Return the releases to load: deltas if they fit the list in force, else a full release.

        If a delta among them was rejected, a usable full release is preferred. If the list in force differs from the
        folder's list with the same serial (it may be another publisher's), only a full release is possible: a delta
        would give a list that no signer signed.
        """
        state, highest = await self._before()
        if self._differs(index, state):
            return folder.releases_to_load(index, None, highest)
        offers = folder.releases_to_load(index, None if state is NO_LIST else state.serial, highest)
        refused = any(offer.sha256 in self.note.refused for offer in offers) and not self.force
        return (folder.releases_to_load(index, None, highest) or offers) if refused else offers

    @staticmethod
    def _differs(index: FolderIndex, state: ListState) -> bool:
        """Return True if the list in force differs from the content that the folder has for the same serial."""
        return index.content_of(state.serial) not in {None, state.content_digest}

    async def _before(self) -> tuple[ListState, int]:
        """Return the state of the list in force, and the highest serial that this node has ever accepted.

        Raises:
            StoreError: if the store fails.
        """
        name = self.settings.name
        state = await self.terms.store.state(name) or NO_LIST
        return state, max((self.terms.marks or {}).get(name, NO_LIST.mark), state.mark)[1]

    def _index(self, server: SourceClient) -> FolderIndex:
        """Return the verified index of the source: a new index, or the stored one if it has not changed.

        Raises:
            Unreached: if it cannot be fetched.
            ReleaseRefused: if it is not valid.
        """
        settings, stored_file, now = self.settings, self.terms.folder / INDEX, self.terms.clock()
        if settings.signers is None:
            raise ReleaseRefused("signers_file", f"list {settings.name} has no signers")
        etag = self.note.etag if _sha256_if(stored_file) == self.note.sha256 else None
        try:
            fetched = server.fetch(INDEX, INDEX_BYTES_MAX, etag)
        except Unreached:
            if etag is not None:  # the tag may be the cause, and would be each time
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
            Unreached: if it cannot be fetched.
            EirError: if the spool cannot be used.
            OSError: if the disk fails.
        """
        spool = self.terms.folder / offer.folder
        delivery = await asyncio.to_thread(self._fetch, server, offer, spool)
        outcome = await process_fetched(replace(self.terms, folder=spool), delivery)
        if outcome.outcome == REFUSED:
            remembered = list(self.note.refused.items())[1 - REMEMBERED_MAX :]
            known = dict(remembered) | {offer.sha256: (outcome.reason, outcome.detail)}
            self.note = replace(self.note, refused=known, refused_at=self.terms.clock().timestamp())
            self._write_note()
        if outcome.outcome != WAITING:
            for each in self.terms.folder.iterdir():  # also folders of other releases that earlier pulls left
                if each.is_dir():
                    shutil.rmtree(each, ignore_errors=True)
        return outcome

    def _fetch(self, server: SourceClient, offer: Offer, place: Path) -> Delivery:
        """Fetch the manifest of a release to the folder `place`, verify it, and then fetch the data files.

        Raises:
            Unreached: if it cannot be fetched.
            OSError: if the disk fails.
        """
        place.mkdir(mode=FOLDER_MODE, exist_ok=True)
        write_file(place / offer.manifest, self._small(server, offer, offer.manifest, offer.sha256, MANIFEST_BYTES_MAX))
        for name, digest in zip(signature_names(offer.manifest), offer.signatures, strict=False):
            write_file(place / name, self._small(server, offer, name, digest, SIGNATURE_BYTES_MAX))
        delivery = verify_delivery(offer.manifest, place, scan_folder(place), self.terms.lists, self.terms.clock())
        if delivery.refused is not None:
            delivery.refused.name_release(self.settings.name, offer.serial)
        if delivery.release is None:
            return delivery
        manifest = delivery.release.manifest
        if (manifest.serial, manifest.kind, manifest.base) != (offer.serial, offer.kind, offer.base):
            detail = (
                f"{offer.manifest} is {manifest.kind} {manifest.serial}; {INDEX} calls it {offer.kind} {offer.serial}"
            )
            mixed = ReleaseRefused("mixed", detail)
            mixed.name_release(self.settings.name, offer.serial)
            return replace(delivery, release=None, refused=mixed)
        # Files of an earlier pull are complete unless the host failed before they were on the disk.
        parts = [
            (file, place / f"{file.name}.part")
            for file in manifest.files
            if _sha256_if(place / file.name) != file.sha256
        ]
        free = shutil.disk_usage(place).free
        if (needed := sum(file.bytes - _size(part) for file, part in parts)) > free - NO_ROOM_BYTES:
            raise OSError(f"{needed} bytes are to be fetched, and the disk of {place} has {free} bytes free")
        for file, part in parts:
            server.download(f"{offer.folder}/{file.name}", part, file.bytes)
            if _sha256(part) != file.sha256:
                part.unlink()
                raise Unreached(
                    "changed",
                    f"{file.name} does not have the SHA-256 that its manifest says: was it damaged on its way?",
                )
            part.rename(place / file.name)
        return delivery

    @staticmethod
    def _small(server: SourceClient, offer: Offer, name: str, sha256: str, most: int) -> bytes:
        fetched = server.fetch(f"{offer.folder}/{name}", most)
        if fetched is None or hashlib.sha256(fetched.octets).hexdigest() != sha256:
            raise Unreached(
                "changed",
                f"{name} is not the one that {INDEX} names: was it damaged on its way, or the folder changed just now?",
            )
        return fetched.octets

    def _write_note(self) -> None:
        write_file(self.terms.folder / NOTE, json.dumps(asdict(self.note)).encode())


def _digest(settings: ListSettings) -> str:
    """Return a digest of a list's settings and of the contents of its trust files."""
    document = asdict(replace(settings, source=None))
    digest = hashlib.sha256(
        json.dumps(document, default=lambda each: sorted(each) if isinstance(each, frozenset) else str(each)).encode()
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
