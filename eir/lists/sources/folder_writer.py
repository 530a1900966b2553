"""Writer of a publisher's folder: adds a release, writes the index, then deletes unused releases.

If the deltas are many or old, they are folded: a full release with the serial and the content of the last delta is added. A node
that is far behind loads this release, and old deltas are deleted. The content of the list at a serial is computed as in an EIR:
the releases of the folder are loaded into a temporary store.
"""

import asyncio
import base64
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eir.device import SNR_KEYS
from eir.disk import sync_folder, write_file
from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.log.change import Head, utc_text
from eir.lists.log.reader import LoggedList, read_content
from eir.lists.record.listed_entries import first_keys, is_whole
from eir.lists.record.settings import BOUND, DEVICES, ListSettings
from eir.lists.releases.openssh import BEGINS, claims_one_of, key_in, keys_of, sign_document
from eir.lists.releases.publish import Published, ReleaseContent, ReleaseSpec, publish, write_release
from eir.lists.releases.release import ENTRIES, VerifiedRelease, parse_manifest, signature_names
from eir.lists.rows.delivered import Progress
from eir.lists.rows.listed_rows import DataRows
from eir.lists.sources.folder_index import (
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
from eir.lists.table.columns import TableRows

KEEP = timedelta(days=7)
"""Default time for which deltas are kept. A node that is behind for a shorter time loads only deltas."""
DELTAS_MAX = 100
"""Maximum number of deltas after a full release before the next full release."""
MODE = 0o644
ROOM = ".eir-publish-"
"""Prefix of the names of temporary folders in which releases are built."""
MEMORY_MAX = 1 << 44
SIGNERS = "signers"
"""Name of the publisher's allowed_signers file in the folder, with the keys that nodes trust."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Result of adding a release to a publisher's folder."""

    published: Published
    index: FolderIndex
    folded: bool
    """True if the deltas were folded into a full release."""


class _Room(NamedTuple):
    """Publisher's folder to which a release is added."""

    folder: Path
    before: FolderIndex | None
    """Present index."""
    path: Path
    """Temporary folder, whose subfolders have the files of new releases."""

    @property
    def offers(self) -> Sequence[Offer]:
        """Releases in the present index."""
        return () if self.before is None else self.before.releases


def publish_into(
    folder: Path, spec: ReleaseSpec, *, keep: timedelta = KEEP, new_key: bool = False, progress: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None, each_bad: Callable[[str, int, str, bytes], None] | None = None,
) -> Placed:  # fmt: skip
    """Create a signed release from data files (eir.lists.releases.publish), and add it to the publisher's folder.

    An error leaves the index unchanged.

    Args:
        folder: publisher's folder.
        spec: release. Without a kind, the list has the kind of the folder's list.
        keep: time for which deltas are kept.
        new_key: skip the check of the keys by `_check_keys`.
        progress: as for `publish`.
        warn: receives warnings.
        each_bad: as for `publish`.

    Raises:
        ReleaseRefused: if the release is rejected.
        EirError: if another process is publishing into the folder.
    """
    with _open_room(folder) as room:
        spec = replace(spec, kind=spec.kind or (None if room.before is None else room.before.holds))
        _check(room, list_name=spec.list, serial=spec.serial, base=spec.base, holds=spec.kind)
        published = publish(spec, room.path / str(spec.serial), progress=progress, warn=warn, each_bad=each_bad)
        index, folded = _add(
            room, published.manifest, kind=published.kind, now=spec.issued, keep=keep, key=spec.keys[0], new_key=new_key, warn=warn,
            spec=spec,
        )  # fmt: skip
    manifest = folder / str(spec.serial) / published.manifest.name
    return Placed(published=replace(published, manifest=manifest), index=index, folded=folded)


def offer_release(
    folder: Path, manifest: Path, *, key: Path, now: datetime, holds: str | None = None, keep: timedelta = KEEP, warn: Callable[[str], None] = lambda _: None, deltas_max: int = DELTAS_MAX,
    new_key: bool = False,
) -> FolderIndex:  # fmt: skip
    """Add a signed release with its files to the publisher's folder; write and return the new index, signed with `key`.

    Deltas are not folded, because a full release may need signatures of absent signers. Raises as `publish_into`.
    """
    with _open_room(folder) as room:
        kind = holds or (DEVICES if room.before is None else room.before.holds)
        try:
            release = parse_manifest(manifest.read_bytes())
            _check(room, list_name=release.list, serial=release.serial, base=release.base, holds=kind)
            staged = room.path / str(release.serial)
            staged.mkdir()
            for name in (manifest.name, *_signatures(manifest), *(file.name for file in release.files)):
                shutil.copyfile(manifest.with_name(name), staged / name)
        except OSError as error:
            raise ReleaseRefused("file_missing", f"{error.filename}: {error.strerror}") from None
        index, _ = _add(
            room, staged / manifest.name, kind=kind, now=now, keep=keep, key=key, new_key=new_key, warn=warn,
            deltas_max=deltas_max,
        )  # fmt: skip
    return index


def _add(
    room: _Room, manifest: Path, *, kind: str, now: datetime, keep: timedelta, key: Path,
    new_key: bool, warn: Callable[[str], None], spec: ReleaseSpec | None = None, deltas_max: int = DELTAS_MAX,
) -> tuple[FolderIndex, bool]:  # fmt: skip
    """Add a staged release to a publisher's folder; return the new index, and True if the deltas were folded.

    Args:
        room: publisher's folder.
        manifest: manifest in a subfolder of the temporary folder, with signatures and data files beside it.
        kind: kind of the list.
        now: time of the new index.
        keep: time for which deltas are kept.
        key: key that signs the index.
        new_key: skip the check of the keys by `_check_keys`.
        warn: receives warnings.
        spec: order of the release, with whose keys the deltas are folded.
        deltas_max: maximum number of deltas that are not folded.

    Raises:
        ReleaseRefused: if the release is rejected.
    """
    release = parse_manifest(manifest.read_bytes())
    folder, offers = room.folder, room.offers
    earlier = () if room.before is None or release.base is None else releases_to_load(room.before, None, 0)
    contents = Contents(folder, release.list, kind, room.path)
    content = asyncio.run(contents.load([*(folder / offer.name for offer in earlier), manifest]))
    added = [_offer(manifest, content.head)]
    issued = _next_index_time(room.before, now, warn)
    index = FolderIndex(list=release.list, holds=kind, issued=issued, releases=sort_offers([*offers, *added]))
    if spec is not None and release.base is not None and _needs_full_release(index, folder, spec, now - keep):
        added.append(contents.fold(content, spec))
        index = replace(index, releases=sort_offers([*offers, *added]))
    elif spec is None and len(_deltas_after_full(index)) > deltas_max:
        detail = f"{deltas_max} deltas stand behind serial {index.full.serial}: a full release is needed now"
        raise ReleaseRefused("base", detail)
    index = trim_index(index, now - keep)
    document = sign_document(encode_index(index), key)
    if not new_key:
        _check_keys(room, [*_signatures_of(manifest), document[document.rfind(BEGINS) :]])
    for offer in added:
        _place_release(offer, room.path / offer.folder, folder)
    write_file(folder / INDEX, document, mode=MODE, durable=True)
    _delete_unused(folder, {offer.folder for offer in (*offers, *index.releases)})
    return index, len(added) > 1


def _deltas_after_full(index: FolderIndex) -> list[Offer]:
    """Return the deltas that follow the newest full release in the index."""
    return [offer for offer in index.releases if offer.serial > index.full.serial]


def _signatures(manifest: Path) -> list[str]:
    names = [name for name in signature_names(manifest.name) if manifest.with_name(name).exists()]
    if not names:
        raise ReleaseRefused("signature_missing", f"{manifest} has no signature beside it")
    return names


def _check(room: _Room, *, list_name: str, serial: int, base: int | None, holds: str | None) -> None:
    """Reject a release that does not fit the present index of the publisher's folder."""
    folder, before = room.folder, room.before
    if before is None:
        if base is not None:
            raise ReleaseRefused("base", f"{folder} has no release yet: a full one is needed first")
        return
    if (before.list, before.holds) != (list_name, holds):
        present = f"{folder} is the folder of {before.list}, a list of {before.holds}"
        raise ReleaseRefused("mixed", f"{present}; give {list_name} one of its own")
    if serial <= before.serial:
        raise ReleaseRefused("serial", f"serial {serial} is not above {before.serial}, the newest in {folder}")
    if base is not None and base != before.serial:
        newest = f"{before.serial} is the newest in {folder}"
        raise ReleaseRefused("base", f"the delta builds on serial {base}, and {newest}")


def _signatures_of(manifest: Path) -> list[bytes]:
    return [manifest.with_name(name).read_bytes() for name in _signatures(manifest)]


def _check_keys(room: _Room, signatures: Sequence[bytes]) -> None:
    """Reject signatures by an unknown key. The known keys are in the folder's file `signers`, or have signed a release in the folder.

    Nodes may not trust an unknown key. The first release of a folder without `signers` may have any key.

    Raises:
        ReleaseRefused: `untrusted_signer`.
        EirError: if the file `signers` cannot be read.
    """
    folder = room.folder
    file = folder / SIGNERS
    try:
        known = keys_of(file.read_bytes()) if file.exists() else set()
    except OSError as error:
        raise EirError(f"the keys that nodes trust {file} cannot be read: {error.strerror}") from None
    if room.before is None and not known:
        return
    for offer in room.offers:
        paths = [folder / offer.folder / name for name in signature_names(offer.manifest)]
        known.update(key_in(path.read_bytes()) for path in paths if path.exists())
    for signature in signatures:
        if not claims_one_of(known, signature):
            digest = hashlib.sha256(key_in(signature)).digest()
            fingerprint = base64.b64encode(digest).decode().rstrip("=")
            raise ReleaseRefused(
                "untrusted_signer",
                f"the key SHA256:{fingerprint} has signed no release in {folder} and is not in {file}: nodes that do not trust it would"
                " keep the release before. Sign with another key; if the nodes trust this one, add it to that file or give --new-key",
            )


def _next_index_time(before: FolderIndex | None, now: datetime, warn: Callable[[str], None]) -> datetime:
    """Return the time of the next index: the present time, or the time of the last index if that is later.

    Nodes reject an index that is older than the last one. If the last index is later by more than AHEAD_MAX, the present
    time is returned with a warning.
    """
    if before is None or now >= before.issued:
        return now
    if before.issued <= now + AHEAD_MAX:
        return before.issued
    late = f"it is {utc_text(now)} here, and {INDEX} was issued {utc_text(before.issued)}"
    warn(f"{late}: who has seen that takes no older one; is the clock of this host right?")
    return now


def _needs_full_release(index: FolderIndex, folder: Path, spec: ReleaseSpec, until: datetime) -> bool:
    """Return True if a new full release must replace the deltas after the newest full release.

    This is the case if there are at least DELTAS_MAX deltas, if one of them was issued before `until`, or if the full
    release expires before half of the new release's time. A new node cannot load an expired release.
    """
    full = parse_manifest((folder / index.full.name).read_bytes())
    deltas = _deltas_after_full(index)
    is_old = any(datetime.fromisoformat(delta.issued) < until for delta in deltas)
    return is_old or len(deltas) >= DELTAS_MAX or full.expires < spec.issued + (spec.expires - spec.issued) / 2


class Contents:
    """Content of a list, rebuilt from the releases in a publisher's folder.

    `room`: folder for a temporary store.
    """

    def __init__(self, folder: Path, name: str, kind: str, room: Path) -> None:
        # The releases are the publisher's own: no limits on changes and no signature checks.
        self._settings = ListSettings(
            name=name, kind=kind, shrink_max=1.0, growth_max=1e9, range_tacs_max=10**8, bad_rows_max=10**9,
            serial_step_max=1 << 63, keep=1, dates=kind not in BOUND,
        )  # fmt: skip
        self._folder = folder
        self._room = room

    async def load(self, manifests: Sequence[Path]) -> LoggedList:
        """Load releases in order into a temporary store, and return the content of the list.

        Raises:
            ReleaseRefused: if a release cannot be loaded.
        """
        name = self._settings.name
        store = SqliteStore(self._room / "lists.sqlite")
        try:
            for path in manifests:
                content = path.read_bytes()
                manifest = parse_manifest(content)
                digest = hashlib.sha256(content).hexdigest()
                release = VerifiedRelease(manifest=manifest, digest=digest, signers=())
                loader = ReleaseLoader(
                    {name: self._settings}, store, "publisher", manifest.issued, force=True, memory_max=MEMORY_MAX
                )
                await loader.load(release, path.parent)
            head = (await store.heads()).get(name)
            if head is None:
                raise ReleaseRefused("fault", f"{self._folder} has no releases")
            return await read_content(store, name, head)
        finally:
            await store.close()
            for file in self._room.glob("lists.sqlite*"):
                file.unlink()

    def fold(self, content: LoggedList, spec: ReleaseSpec) -> Offer:
        """Write the rebuilt content of the list as a full release with serial, times and keys of `spec`; return its row for the index.

        Raises:
            ReleaseRefused: if a load of the release would give another content.
        """
        rows = content.table.rows()
        whole = is_whole(rows)
        tacs = rows.select(whole)
        firsts = first_keys(tacs)
        data = DataRows(rows.select(~whole), TableRows(firsts, tacs.columns), firsts + np.uint64(SNR_KEYS - 1))
        staged = self._room / f"{spec.serial}-full"
        full = ReleaseContent(self._settings.kind, {ENTRIES: data}, content.head.reasons)
        manifest = write_release(replace(spec, base=None, files=()), staged, full)
        loaded = asyncio.run(self.load([manifest]))
        if loaded.head.content != content.head.content:
            fault = "the full release that the deltas were folded into is not the same list; report this"
            raise ReleaseRefused("fault", fault)
        return _offer(manifest, content.head)


def _offer(manifest: Path, head: Head) -> Offer:
    """Return the index row of a signed release. `head`: head of the list after the release."""
    content = manifest.read_bytes()
    release = parse_manifest(content)
    signatures = [hashlib.sha256(signature).hexdigest() for signature in _signatures_of(manifest)]
    return Offer(
        name=f"{manifest.parent.name}/{manifest.name}", serial=release.serial, kind=release.kind, base=release.base,
        size=len(content), sha256=hashlib.sha256(content).hexdigest(), signatures=tuple(signatures), issued=utc_text(release.issued), content=head.content,
    )  # fmt: skip


def _place_release(offer: Offer, staged: Path, folder: Path) -> None:
    """Move a complete release to its subfolder of the publisher's folder; files of an interrupted attempt are replaced."""
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


def load_index(folder: Path) -> FolderIndex | None:
    """Load the present index of a publisher's folder without a check of its signature; return None if the folder has no index."""
    try:
        content = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        return None
    return parse_index(content[: content.rfind(BEGINS)])


def _delete_unused(folder: Path, listed: Collection[str]) -> None:
    """Delete the subfolders of releases that neither the new nor the previous index lists. A node may still be using the previous index.

    `listed`: subfolders of the releases in both indexes.
    """
    for place in folder.iterdir():
        is_release = place.name.removesuffix("-full").isdigit()
        if is_release and place.name not in listed and place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _open_room(folder: Path) -> Iterator[_Room]:
    """Lock a publisher's folder, and yield it with a temporary folder. What an interrupted process has left is deleted.

    Raises:
        EirError: if another process is publishing into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EirError(f"somebody else publishes into {folder} just now") from None
        interrupted = [*folder.glob(f"{ROOM}*"), *folder.glob(f".{INDEX}.*")]
        for path in interrupted:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=ROOM) as temporary:
            yield _Room(folder, load_index(folder), Path(temporary))
