"""Publisher's folder as a source of releases: the signed index, then the releases that lead to its newest serial.

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
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from eir.curl import Unreached
from eir.disk import write_file
from eir.errors import EirError, ReleaseRefused, StoreError
from eir.lists.log.change import Head, utc_text
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.record.settings import ListSettings, SourceSettings
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, verify_document
from eir.lists.releases.release import Manifest, signature_names, verify_release
from eir.lists.rows.delivered import CHUNK_BYTES
from eir.lists.sources import folder_index
from eir.lists.sources.folder_index import INDEX, INDEX_BYTES_MAX, FolderIndex, Offer
from eir.lists.sources.release_result import ELSEWHERE, WAITING, ReleaseResult, Turn
from eir.lists.sources.source import Candidate, TurnSettings, process_source
from eir.lists.sources.source_client import SourceClient, size_of

PULL_S = 900.0
"""Seconds for one turn with its downloads and loads; the next turn continues an interrupted download."""
NOTE, FOLDER_MODE = "note.json", 0o750
OFFERS_MAX = 100
"""Maximum number of offered serials whose time is stored. A further serial replaces the last one and gets its time."""
REMEMBERED_MAX = 20
"""Maximum number of rejected manifests that are remembered."""
NO_ROOM_BYTES = 64 << 20
"""Bytes of the disk that a download leaves free."""


@dataclass(slots=True)
class _Note:
    """Data about a list's source that the node stores between two turns."""

    etag: str | None = None
    """Entity tag of the stored index."""
    sha256: str | None = None
    """SHA-256 of the stored index. If the file has another digest, the index is fetched again."""
    issued: str | None = None
    """Time of the newest valid index."""
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and detail of rejected releases by the SHA-256 of the manifest. These releases are not fetched again."""
    refused_at: float = 0.0
    """Unix seconds of the last rejection in `refused`. If the present time is earlier, the clock was wrong at the rejection."""
    settings: str | None = None
    """Digest of the list's settings at these rejections."""
    url: str | None = None
    """URL of the source to which `etag`, `sha256`, `issued` and `offers` belong."""
    offers: dict[str, float] = field(default_factory=dict)
    """Unix seconds at which a serial above the one in force was first offered."""


async def load_published(
    settings: TurnSettings, name: str, folder: Path, *, force: bool = False, until: float | None = None
) -> Turn:
    """Load all newer releases from the source of a list. A failure is in the result, not raised.

    Args:
        settings: settings of the turn.
        name: list with a source.
        folder: private folder of the list, which keeps files between turns.
        force: fetch rejected releases again.
        until: time limit (time.monotonic); None: PULL_S from now.

    Raises:
        EirError: if the list has no source.
    """
    own = settings.lists[name]
    if own.source is None:
        raise EirError(f"list {name} has no source (lists.{name}.source)")
    client = SourceClient(own.source, time.monotonic() + PULL_S if until is None else until)
    source = PublisherFolderSource(settings, own, own.source, folder, client, force=force)
    turn = await process_source(source, settings)
    turn.bytes = client.bytes
    with suppress(StoreError, OSError):
        await source.compare()
    return turn


class PublisherFolderSource:
    """Publisher's folder on a web server as the source of a list."""

    def __init__(
        self, settings: TurnSettings, own: ListSettings, source: SourceSettings, folder: Path, client: SourceClient, *,
        force: bool,
    ) -> None:  # fmt: skip
        """Create the source. `own`: settings of the list. `folder`, `force`: as for `load_published`."""
        self.turn = Turn(list=own.name)
        self._settings, self._own, self._folder, self._client, self._force = settings, own, folder, client, force
        self._note = self._read_note(source.url)
        self._offers: dict[str, Offer] = {}
        """Offer of each candidate, by the file name of its manifest."""

    async def candidates(self) -> AsyncIterator[Candidate]:
        """Yield the releases that lead to the newest serial, until one of them is not accepted.

        Raises:
            Unreached: if the source cannot be reached.
            ReleaseRefused: if the index is rejected.
        """
        turn = self.turn
        index = await self._index()
        turn.reached, turn.serial = True, index.serial
        await self.compare()  # before the downloads and loads, during which the process may be killed
        if not await self._releases_to_load(index):
            await self._explain(index)
            return
        if not await self._settings.claim():
            turn.end(ELSEWHERE, "", "another node pulls it just now")
            return
        for offer in await self._releases_to_load(index):  # again, because another node may have pulled meanwhile
            rejection = self._note.refused.get(offer.sha256)
            if rejection is not None and not self._force:
                turn.end(REFUSED, *rejection)
                turn.rejected = offer.serial
                return
            yield await self._fetch_manifest(offer)
            if turn.results[-1].outcome != ACCEPTED:
                return

    async def fetch(self, candidate: Candidate) -> Path:
        """Fetch the data files of a release to its private folder, and return the folder.

        Raises:
            Unreached: if a file cannot be fetched.
            OSError: if the disk has too little space.
        """
        offer = self._offers[candidate.name]
        place = self._folder / offer.folder
        if candidate.release is not None:
            await self._fetch_data(offer.folder, candidate.release.manifest, place)
        return place

    def remaining_s(self, candidate: Candidate, *, is_patient: bool) -> float:  # noqa: ARG002 - as in Source
        """Return the seconds for which a faulty release waits: without end, if the fault may end by itself."""
        return math.inf if is_patient else 0.0

    async def done(self, candidate: Candidate, result: ReleaseResult) -> None:
        """Remember a rejected release, and delete the fetched files of an accepted or rejected one."""
        if result.outcome != ACCEPTED:
            self.turn.end(result.outcome, result.reason, result.detail)
        if result.outcome == WAITING:
            return
        if result.outcome == REFUSED:
            self.turn.rejected = result.serial
            newest = list(self._note.refused.items())[1 - REMEMBERED_MAX :]
            self._note.refused = dict(newest) | {self._offers[candidate.name].sha256: (result.reason, result.detail)}
            self._note.refused_at = self._settings.clock().timestamp()
            self._write_note()
        for path in self._folder.iterdir():  # also folders of releases that earlier turns have left
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    async def compare(self) -> None:
        """Store the time at which the source first offered each serial above the serial in force.

        Raises:
            StoreError: if the store fails.
            OSError: if the note cannot be written.
        """
        turn = self.turn
        turn.in_force = (await self._settings.head(self._own.name)).serial
        now, newest = self._settings.clock().timestamp(), turn.serial
        offers = {
            serial: min(offered_at, now)
            for serial, offered_at in self._note.offers.items()
            if turn.in_force
            < int(serial)
            <= (newest or int(serial))  # a higher serial was wrong, and is no longer offered
        }
        if newest is not None and newest > turn.in_force and str(newest) not in offers:
            offers[str(newest)] = offers.popitem()[1] if len(offers) >= OFFERS_MAX else now
        if offers != self._note.offers:
            self._note.offers = offers
            self._write_note()
        turn.behind_since = utc_text(datetime.fromtimestamp(min(offers.values()), UTC)) if offers else None

    async def _releases_to_load(self, index: FolderIndex) -> Sequence[Offer]:
        """Return the releases to load: deltas if they continue the list in force, otherwise a full release.

        If one of the deltas was rejected, a full release is preferred. If the list in force has another content than the
        folder's list with the same serial (it may be another publisher's list), only a full release is possible: a delta
        would give a list that no signer has signed.
        """
        head, highest = await self._head_and_highest()
        from_full = folder_index.releases_to_load(index, None, highest)
        if head == Head() or _differs(index, head):
            return from_full
        offers = folder_index.releases_to_load(index, head.serial, highest)
        if any(offer.sha256 in self._note.refused for offer in offers) and not self._force:
            return from_full or offers
        return offers

    async def _explain(self, index: FolderIndex) -> None:
        """Set the result of a turn without a release to load."""
        head, highest = await self._head_and_highest()
        if index.serial <= highest:
            return
        if _differs(index, head):
            fault = f"the list in force differs from serial {head.serial} of {INDEX}, so that no delta fits; it has no full release above"
        else:
            fault = f"{INDEX} has no deltas from there, and no full release above"
        in_force = f"serial {head.serial} is in force and {highest} is the highest accepted"
        self.turn.end(WAITING, "base", f"{in_force}: {fault}")

    async def _head_and_highest(self) -> tuple[Head, int]:
        """Return the head of the list in force, and the highest serial that this node has accepted."""
        head = await self._settings.head(self._own.name)
        _, highest = self._settings.mark(self._own.name, head)
        return head, highest

    async def _index(self) -> FolderIndex:
        """Return the verified index of the source: a new index, or the stored index if the source has no newer one.

        Raises:
            Unreached: if the index cannot be fetched.
            ReleaseRefused: if the index is not valid.
        """
        own, note, now = self._own, self._note, self._settings.clock()
        if own.signers is None:
            raise ReleaseRefused("signers_file", f"list {own.name} has no signers")
        stored = self._folder / INDEX
        etag = note.etag if _sha256_if(stored) == note.sha256 else None
        try:
            fetched = await self._client.fetch(INDEX, INDEX_BYTES_MAX, etag)
        except Unreached:
            if etag is not None:  # the tag may cause the failure: the next turn sends none
                note.etag = None
                self._write_note()
            raise
        content = stored.read_bytes() if fetched is None else fetched.octets
        document, _ = await asyncio.to_thread(verify_document, content, INDEX, own.signers, now, revoked=own.revoked)
        index = folder_index.parse_index(document)
        before = datetime.fromisoformat(note.issued) if note.issued else None
        folder_index.check_index(index, own.name, own.kind, now, before)
        if fetched is not None:
            note.etag, note.sha256 = fetched.etag, hashlib.sha256(content).hexdigest()
            note.issued = index.issued.isoformat()
            write_file(stored, content)
            self._write_note()
        return index

    async def _fetch_manifest(self, offer: Offer) -> Candidate:
        """Fetch the manifest of a release and its signatures to the private folder of the release, and verify them.

        Raises:
            Unreached: if a file cannot be fetched.
            OSError: if the disk fails.
        """
        self._offers[offer.manifest] = offer
        place = self._folder / offer.folder
        place.mkdir(mode=FOLDER_MODE, exist_ok=True)
        names = signature_names(offer.manifest)[: len(offer.signatures)]
        files = [(offer.manifest, offer.sha256, offer.size)]
        files += [(name, digest, SIGNATURE_BYTES_MAX) for name, digest in zip(names, offer.signatures, strict=False)]
        for name, sha256, bytes_max in files:
            fetched = await self._client.fetch(f"{offer.folder}/{name}", bytes_max)
            if fetched is None or hashlib.sha256(fetched.octets).hexdigest() != sha256:
                fault = f"{name} is not the one that {INDEX} names"
                raise Unreached(
                    "changed", self._own.name, f"{fault}: was it damaged on its way, or the folder changed just now?"
                )
            write_file(place / name, fetched.octets)
        try:
            lists = {self._own.name: self._own}
            release = await asyncio.to_thread(verify_release, place / offer.manifest, lists, now=self._settings.clock())
        except ReleaseRefused as refused:
            return self._rejected(offer, refused)
        manifest = release.manifest
        if (manifest.serial, manifest.kind, manifest.base) != (offer.serial, offer.kind, offer.base):
            subject = f"{offer.manifest} is {manifest.kind} {manifest.serial}"
            mixed = ReleaseRefused("mixed", f"{subject}; {INDEX} calls it {offer.kind} {offer.serial}")
            return self._rejected(offer, mixed)
        return Candidate(offer.manifest, (), release)

    def _rejected(self, offer: Offer, refused: ReleaseRefused) -> Candidate:
        refused.name_release(self._own.name, offer.serial)
        return Candidate(offer.manifest, (), fault=refused)

    async def _fetch_data(self, folder: str, manifest: Manifest, place: Path) -> None:
        """Fetch those data files of a release that are missing or damaged in the folder `place`.

        Raises:
            Unreached: if a file cannot be fetched.
            OSError: if the disk has too little space.
        """
        # A file of an earlier turn may be damaged, if the host failed before the file was on the disk.
        missing = [
            file for file in manifest.files if await asyncio.to_thread(_sha256_if, place / file.name) != file.sha256
        ]
        parts = [place / f"{file.name}.part" for file in missing]
        needed = sum(file.bytes for file in missing) - sum(map(size_of, parts))
        free = shutil.disk_usage(place).free
        if needed > free - NO_ROOM_BYTES:
            raise OSError(f"{needed} bytes are to be fetched, and the disk of {place} has {free} bytes free")
        for file, part in zip(missing, parts, strict=True):
            await self._client.download(f"{folder}/{file.name}", part, file.bytes)
            if await asyncio.to_thread(_sha256_if, part) != file.sha256:
                part.unlink()
                fault = f"{file.name} does not have the SHA-256 of its manifest"
                raise Unreached("changed", self._own.name, f"{fault}: was it damaged on its way?")
            part.rename(place / file.name)

    def _read_note(self, url: str) -> _Note:
        """Load the stored data about the source, without what a change of the settings, the source or the clock made stale."""
        self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        note = _Note()
        with suppress(OSError, ValueError, TypeError):
            note = _Note(**json.loads((self._folder / NOTE).read_text()))
        settings = _digest(self._own)
        if settings != note.settings or self._settings.clock().timestamp() < note.refused_at:
            note = replace(note, refused={}, refused_at=0.0, settings=settings)
        if url != note.url:
            note = replace(note, etag=None, sha256=None, issued=None, offers={}, url=url)
        return note

    def _write_note(self) -> None:
        write_file(self._folder / NOTE, json.dumps(asdict(self._note)).encode())


def _differs(index: FolderIndex, head: Head) -> bool:
    """Return True if the index contains the serial in force, but with another content digest than the list in force."""
    return index.content_of(head.serial) not in {None, head.content}


def _digest(settings: ListSettings) -> str:
    """Return a digest of a list's settings and of the contents of its trust files."""

    def as_json(value: object) -> object:
        return sorted(value) if isinstance(value, frozenset) else str(value)

    text = json.dumps(asdict(replace(settings, source=None)), default=as_json)
    digest = hashlib.sha256(text.encode())
    for path in filter(None, (settings.signers, settings.revoked)):
        with suppress(OSError):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _sha256_if(path: Path) -> str | None:
    """Return the SHA-256 of a file; None for a missing one."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
