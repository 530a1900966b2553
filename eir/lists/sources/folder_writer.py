"""Writer of a publisher's folder: it adds a release, then writes the index, then deletes unused releases.

From time to time the deltas are folded: a full release with the same content is added for the last delta. A reader that is far
behind starts with it, and old deltas can be deleted. The content of the list at a serial is computed as in an EIR: the releases
of the folder are loaded into a temporary store.
"""

import asyncio
import base64
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import zstandard

from eir.disk import sync_folder, write_file
from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.load import Loader
from eir.lists.pages.pages import Page
from eir.lists.record.dates import read_dates
from eir.lists.record.settings import BOUND, DEVICES, Layout, ListSettings
from eir.lists.record.store import ListState, utc_text
from eir.lists.releases.openssh import BEGINS, claims_one_of, key_in, keys_of, sign_document
from eir.lists.releases.publish import Published, publish
from eir.lists.releases.release import VerifiedRelease, parse_manifest, signature_names
from eir.lists.rows.export import export
from eir.lists.sources.folder import (
    AHEAD_MAX,
    INDEX,
    FolderIndex,
    Offer,
    encode_index,
    parse_index,
    releases_to_load,
    sort_offers,
    trim_index,
)
from eir.lists.stores.sqlite import SqliteStore

KEEP = timedelta(days=7)
"""Default time for which a reader may be behind and still catch up by deltas."""
DELTAS_MAX = 100
"""Maximum number of deltas after a full release before the next full release."""
MODE = 0o644
ROOM = ".eir-publish-"
"""Prefix of the names of folders in which releases are built."""
MEMORY_MAX = 1 << 44
SIGNERS = "signers"
"""File in the folder with the keys that nodes trust: an allowed_signers file of the publisher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Result of adding a release to a publisher's folder."""

    published: Published
    index: FolderIndex
    folded: bool
    """True if the deltas were folded into a full release."""


def publish_into(
    folder: Path, files: Sequence[Path], *, list_name: str, serial: int, base: int | None, issued: datetime, expires: datetime, key: Path,
    holds: str | None = None, keep: timedelta = KEEP, layout: str | None = None, declared: Mapping[str, Layout] | None = None,
    bad_rows_max: int = 0, progress: Callable[[str, int, int], None] | None = None, warn: Callable[[str], None] = lambda _: None,
    more_keys: Sequence[Path] = (), new_key: bool = False, strict: bool = False, each_bad: Callable[[str, int, str, bytes], None] | None = None,
) -> Placed:  # fmt: skip
    """Write a signed release from data files, as in eir.lists.releases.publish, and add it to the folder.

    If it fails, the index stays as it was.

    Args:
        folder: publisher's folder.
        files: data files.
        list_name: list of the release.
        serial: serial of the release.
        base: serial on which a delta builds.
        issued: start of validity.
        expires: end of validity.
        key: key that signs the index and the releases.
        holds: kind of the list; None: that of the folder, `devices` in a new one.
        keep: time for which deltas are kept.
        layout: layout of the files; None: guessed.
        declared: layouts of the configuration.
        bad_rows_max: maximum number of bad rows.
        progress: receives stages of the publishing.
        warn: receives warnings.
        more_keys: further keys that sign each release, also a full release of folded deltas.
        new_key: accept keys that the folder does not know.
        strict: a warning rejects the release.
        each_bad: receives each bad row: file, line, fault and the row.

    Raises:
        ReleaseRefused: if the release is rejected.
        EirError: if another process is publishing into the folder.
    """
    with _publish_lock(folder):
        before = load_index(folder)
        kind = holds or (DEVICES if before is None else before.holds)
        _check(before, folder, list_name=list_name, serial=serial, base=base, holds=kind)
        with tempfile.TemporaryDirectory(dir=folder, prefix=ROOM) as name:
            staged = Path(name) / str(serial)
            published = publish(
                files, list_name=list_name, serial=serial, base=base, issued=issued, expires=expires, key=key, out=staged, layout=layout,
                declared=declared, bad_rows_max=bad_rows_max, progress=progress, warn=warn, more_keys=more_keys, strict=strict, each_bad=each_bad,
            )  # fmt: skip
            if not new_key:
                _check_keys(folder, before, _signatures_of(published.manifest))
            here = Contents(folder, list_name, kind, declared or {}, Path(name))
            offers = list(before.releases) if before is not None else []
            chain = releases_to_load(before, None, 0) if before is not None and base is not None else ()
            offer = _offer(published.manifest)
            state, pages, dates = asyncio.run(
                here.load([*((folder / each.folder / each.manifest) for each in chain), published.manifest])
            )
            offer = replace(offer, content=state.content_digest)
            placed = [_place_release(offer, staged, folder)]
            time = _next_index_time(before, issued, warn)
            index = FolderIndex(list=list_name, holds=kind, written=time, releases=sort_offers([*offers, *placed]))
            if folds := base is not None and _needs_full_release(
                index, folder, issued - keep, issued + (expires - issued) / 2
            ):
                full = here.fold(
                    state, pages, dates, serial=serial, issued=issued, expires=expires, keys=(key, *more_keys)
                )
                placed.append(_place_release(full, Path(name) / full.folder, folder))
                index = replace(index, releases=sort_offers([*offers, *placed]))
        index = trim_index(index, issued - keep)
        # The index is written after all files that it lists.
        write_file(folder / INDEX, sign_document(encode_index(index), key), mode=MODE, durable=True)
        _delete_unused(folder, before, index)
    manifest = folder / placed[0].folder / placed[0].manifest
    return Placed(published=replace(published, manifest=manifest), index=index, folded=folds)


def offer_release(
    folder: Path, manifest: Path, *, key: Path, now: datetime, holds: str | None = None, keep: timedelta = KEEP,
    declared: Mapping[str, Layout] | None = None, warn: Callable[[str], None] = lambda _: None, deltas_max: int = DELTAS_MAX,
    new_key: bool = False,
) -> FolderIndex:  # fmt: skip
    """Add a signed release with its files to the folder, sign the new index with `key`, and return this index.

    Deltas are not folded, because the signers of a full release may be absent. Raises as `publish_into`.
    """
    release = parse_manifest(_content(manifest))
    with _publish_lock(folder):
        before = load_index(folder)
        kind = holds or (DEVICES if before is None else before.holds)
        _check(before, folder, list_name=release.list, serial=release.serial, base=release.base, holds=kind)
        with tempfile.TemporaryDirectory(dir=folder, prefix=ROOM) as name:
            staged = Path(name) / str(release.serial)
            staged.mkdir()
            for each in (manifest.name, *_signatures(manifest), *(file.name for file in release.files)):
                _copy(manifest.with_name(each), staged / each)
            here = Contents(folder, release.list, kind, declared or {}, Path(name))
            chain = releases_to_load(before, None, 0) if before is not None and release.base is not None else ()
            manifests = [*((folder / each.folder / each.manifest) for each in chain), staged / manifest.name]
            state, *_ = asyncio.run(here.load(manifests))
            offer = replace(_offer(staged / manifest.name), content=state.content_digest)
            offers = [] if before is None else before.releases
            time = _next_index_time(before, now, warn)
            index = FolderIndex(list=release.list, holds=kind, written=time, releases=sort_offers([*offers, offer]))
            if len([each for each in index.releases if each.serial > index.full.serial]) > deltas_max:
                detail = f"{deltas_max} deltas stand behind serial {index.full.serial}: a full release is needed now"
                raise ReleaseRefused("base", detail)
            index = trim_index(index, now - keep)
            content = sign_document(encode_index(index), key)
            if not new_key:
                signatures = [*_signatures_of(staged / manifest.name), content[content.rfind(BEGINS) :]]
                _check_keys(folder, before, signatures)
            _place_release(offer, staged, folder)
        write_file(folder / INDEX, content, mode=MODE, durable=True)  # after all files that it lists
        _delete_unused(folder, before, index)
    return index


def _content(manifest: Path) -> bytes:
    try:
        return manifest.read_bytes()
    except OSError as e:
        raise ReleaseRefused("file_missing", f"{manifest}: {e.strerror}") from None


def _copy(path: Path, to: Path) -> None:
    try:
        shutil.copyfile(path, to)
    except OSError as e:
        raise ReleaseRefused("file_missing", f"{path}: {e.strerror}") from None


def _signatures(manifest: Path) -> list[str]:
    names = [name for name in signature_names(manifest.name) if manifest.with_name(name).exists()]
    if not names:
        raise ReleaseRefused("signature_missing", f"{manifest} has no signature beside it")
    return names


def _check(
    before: FolderIndex | None, folder: Path, *, list_name: str, serial: int, base: int | None, holds: str
) -> None:
    if before is None:
        if base is not None:
            raise ReleaseRefused("base", f"{folder} has no release yet: a full one is needed first")
        return
    if (before.list, before.holds) != (list_name, holds):
        raise ReleaseRefused(
            "mixed",
            f"{folder} is the folder of {before.list}, a list of {before.holds}; give {list_name} one of its own",
        )
    if serial <= before.serial:
        raise ReleaseRefused("serial", f"serial {serial} is not above {before.serial}, the newest in {folder}")
    if base is not None and base != before.serial:
        raise ReleaseRefused(
            "base", f"the delta builds on serial {base}, and {before.serial} is the newest in {folder}"
        )


def _signatures_of(manifest: Path) -> list[bytes]:
    return [manifest.with_name(name).read_bytes() for name in _signatures(manifest)]


def _check_keys(folder: Path, before: FolderIndex | None, signatures: Sequence[bytes]) -> None:
    """Reject signatures by a key that nodes may not trust.

    Such a key has signed no release in the folder and is not in the file `signers` of the folder.

    The first release of a folder without `signers` may have any key.

    Raises:
        ReleaseRefused: `untrusted_signer`.
    """
    file = folder / SIGNERS
    try:
        known = keys_of(file.read_bytes()) if file.exists() else set()
    except OSError as e:
        raise EirError(f"the keys that nodes trust {file} cannot be read: {e.strerror}") from None
    if before is None and not known:
        return
    for offer in () if before is None else before.releases:
        paths = [folder / offer.folder / name for name in signature_names(offer.manifest)]
        known.update(key_in(path.read_bytes()) for path in paths if path.exists())
    for signature in signatures:
        if not claims_one_of(known, signature):
            fingerprint = base64.b64encode(hashlib.sha256(key_in(signature)).digest()).decode().rstrip("=")
            raise ReleaseRefused(
                "untrusted_signer",
                f"the key SHA256:{fingerprint} has signed no release in {folder} and is not in {file}: nodes that do not trust it would"
                " keep the release before. Sign with another key; if the nodes trust this one, add it to that file or give --new-key",
            )


def _next_index_time(before: FolderIndex | None, now: datetime, warn: Callable[[str], None]) -> datetime:
    """Return the time for the next index, which must not be before that of the last index.

    Readers would reject an earlier time. If the clock of this host is late by more than AHEAD_MAX, the present time is
    returned with a warning.
    """
    if before is None or now >= before.written:
        return now
    if before.written <= now + AHEAD_MAX:
        return before.written
    late = f"it is {utc_text(now)} here, and {INDEX} was written {utc_text(before.written)}"
    warn(f"{late}: who has seen that takes no older one; is the clock of this host right?")
    return now


def _needs_full_release(index: FolderIndex, folder: Path, until: datetime, ends: datetime) -> bool:
    """Return True if the deltas after the newest full release must be folded to a new full release.

    The reasons are: there are many deltas; the first one is older than `until`; or the full release expires before
    `ends`, after which a new node cannot load it.
    """
    if parse_manifest((folder / index.full.folder / index.full.manifest).read_bytes()).expires < ends:
        return True
    behind = [offer for offer in index.releases if offer.serial > index.full.serial]
    return len(behind) >= DELTAS_MAX or any(datetime.fromisoformat(offer.issued) < until for offer in behind)


class Contents:
    """Computation of a list's content from the releases in a publisher's folder.

    `room`: folder for a temporary store.
    """

    def __init__(self, folder: Path, name: str, kind: str, declared: Mapping[str, Layout], room: Path) -> None:
        # The releases are the publisher's own, so there are no limits on changes and no signature checks.
        self._settings = ListSettings(
            name=name, kind=kind, shrink_max=1.0, growth_max=1e9, range_tacs_max=10**8, bad_rows_max=10**9,
            serial_step_max=1 << 63, layouts=declared, keep=1, dates=kind not in BOUND,
        )  # fmt: skip
        self._folder, self._room = folder, room

    async def load(self, manifests: Sequence[Path]) -> tuple[ListState, Sequence[Page], Mapping[int, Page]]:
        """Load releases one after the other into a temporary store; return state, pages and dates of the list.

        Dates are pages by number.

        Raises:
            ReleaseRefused: if one cannot be loaded.
        """
        name = self._settings.name
        pages: list[Page] = []
        store = SqliteStore(self._room / "lists.sqlite")
        try:
            for path in manifests:
                content = path.read_bytes()
                manifest = parse_manifest(content)
                release = VerifiedRelease(manifest=manifest, digest=hashlib.sha256(content).hexdigest(), signers=())
                loader = Loader(
                    {name: self._settings}, store, "publisher", manifest.issued, force=True, memory_max=MEMORY_MAX
                )
                await loader.load(release, path.parent)
            state = await store.state(name)
            async for _, batch in store.pages(name):
                pages += batch
            dates = await read_dates(store, name, [page.number for page in pages])
        finally:
            await store.close()
            for file in self._room.glob("lists.sqlite*"):
                file.unlink()
        if state is None:
            raise ReleaseRefused("fault", f"{self._folder} has no releases")
        return state, pages, dates

    def fold(
        self,
        state: ListState,
        pages: Sequence[Page],
        dates: Mapping[int, Page],
        *,
        serial: int,
        issued: datetime,
        expires: datetime,
        keys: Sequence[Path],
    ) -> Offer:
        """Write a full release with the list's present content, signed by each of `keys`, and return it.

        Raises:
            ReleaseRefused: if its content would differ.
        """
        staged = self._room / f"{serial}-full"
        staged.mkdir()
        files = [
            self._write_rows(state, pages, dates, staged / f"{state.serial}-{what}.csv.zst", only)
            for what, only in self._parts(pages)
        ]
        published = publish(
            files, list_name=self._settings.name, serial=serial, issued=issued, expires=expires, key=keys[0], more_keys=keys[1:], layout="eir"
        )  # fmt: skip
        again, *_ = asyncio.run(self.load([published.manifest]))
        if again.content_digest != state.content_digest:
            raise ReleaseRefused(
                "fault", "the full release that the deltas were folded into is not the same list; report this"
            )
        return replace(_offer(published.manifest), folder=staged.name, content=state.content_digest)

    def _parts(self, pages: Sequence[Page]) -> Sequence[tuple[str, bool | None]]:
        both = self._settings.kind == DEVICES and any(page.tac for page in pages) and any(page.keys for page in pages)
        return (("imei", False), ("tac", True)) if both else (("all", None),)

    @staticmethod
    def _write_rows(
        state: ListState, pages: Sequence[Page], dates: Mapping[int, Page], path: Path, only_tacs: bool | None
    ) -> Path:
        with (
            path.open("wb") as file,
            zstandard.ZstdCompressor().stream_writer(file) as packed,
            io.TextIOWrapper(packed, "utf-8", newline="") as out,
        ):
            export(state, pages, "eir", out, dates=dates, only_tacs=only_tacs)
        return path


def _offer(manifest: Path) -> Offer:
    content = manifest.read_bytes()
    release = parse_manifest(content)
    beside = [manifest.with_name(name) for name in _signatures(manifest)]
    return Offer(
        serial=release.serial, kind=release.kind, base=release.base, folder=str(release.serial), manifest=manifest.name, signatures=tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in beside),
        sha256=hashlib.sha256(content).hexdigest(), issued=utc_text(release.issued), content="",
    )  # fmt: skip


def _place_release(offer: Offer, staged: Path, folder: Path) -> Offer:
    """Move a complete release to its folder, and replace the files of an earlier attempt, which no index lists."""
    place = folder / offer.folder
    shutil.rmtree(place, ignore_errors=True)
    staged.chmod(0o755)
    for file in staged.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())
        file.chmod(MODE)
    sync_folder(staged)
    staged.rename(place)
    sync_folder(folder)
    return offer


def load_index(folder: Path) -> FolderIndex | None:
    """Load the present index of the folder; None if there is no index.

    Its signature is not verified, because the publisher has written it.
    """
    try:
        content = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        return None
    return parse_index(content[: content.rfind(BEGINS)])


def _delete_unused(folder: Path, before: FolderIndex | None, now: FolderIndex) -> None:
    """Delete release folders that neither the new index nor the previous one lists.

    A reader may still be using the previous index.
    """
    named = {offer.folder for index in (before, now) if index is not None for offer in index.releases}
    for place in folder.iterdir():
        if (
            place.name not in named
            and place.name.removesuffix("-full").isdigit()
            and place.is_dir()
            and not place.is_symlink()
        ):
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _publish_lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EirError(f"somebody else publishes into {folder} just now") from None
        for path in (*folder.glob(f"{ROOM}*"), *folder.glob(f".{INDEX}.*")):  # of an interrupted attempt
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        yield
