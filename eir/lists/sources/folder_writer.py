"""The publisher's side of a folder: put a release in, write the index last, and remove what nobody needs any more.

Every now and then the deltas are folded: a full release of the same content joins the last of them, so that a reader who is far behind has
one to begin with, and old deltas can go. What the list holds at each serial is found by loading the releases of the folder, as an EIR does,
into a store that lives as long as that takes.
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

from eir.disk import put, sync
from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.load import Loader
from eir.lists.pages.pages import Page
from eir.lists.record.settings import DEVICES, Layout, ListSettings
from eir.lists.record.store import ListState, utc_text
from eir.lists.releases.openssh import BEGINS, key_in, keys_of, names_one_of, signed
from eir.lists.releases.publish import Published, publish
from eir.lists.releases.release import Release, parse_manifest, signature_names
from eir.lists.rows.export import export
from eir.lists.sources.folder import AHEAD_MAX, INDEX, Index, Offer, in_order, read, steps, without, written
from eir.lists.stores.sqlite import SqliteStore

KEEP = timedelta(days=7)
"""The time that a reader may be behind and still catch up by deltas."""
DELTAS_MAX = 100
"""Deltas after a full release, after which it is time for another one."""
MODE = 0o644
ROOM = ".eir-publish-"
"""Begin of the names of folders in which releases are made."""
MEMORY_MAX = 1 << 44
SIGNERS = "signers"
"""File in the folder with the keys that nodes trust, an allowed_signers file of the publisher's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The folder after a release was put into it."""

    published: Published
    index: Index
    folded: bool
    """A full release was made of the deltas."""


def publish_into(
    folder: Path, files: Sequence[Path], *, list_name: str, serial: int, base: int | None, issued: datetime, expires: datetime, key: Path,
    holds: str | None = None, keep: timedelta = KEEP, layout: str | None = None, declared: Mapping[str, Layout] | None = None,
    bad_rows_max: int = 0, progress: Callable[[str, int, int], None] | None = None, warn: Callable[[str], None] = lambda _: None,
    more_keys: Sequence[Path] = (), new_key: bool = False,
) -> Placed:  # fmt: skip
    """Make a signed release of data files, as lists.publish, and put it into the folder.

    `holds`: the list's kind; None: as the folder says already, devices in a new one. `keep`: how long deltas stay. `key` signs the index;
    it and `more_keys` sign each release, and the full one that deltas are folded into. `new_key`: accept keys that the folder
    does not know. Raises ReleaseRefused, and the index offers what it offered before then; EirError if somebody else publishes
    into the folder at this moment.
    """
    with _alone(folder):
        before = index_in(folder)
        kind = holds or (DEVICES if before is None else before.holds)
        _check(before, folder, list_name=list_name, serial=serial, base=base, holds=kind)
        with tempfile.TemporaryDirectory(dir=folder, prefix=ROOM) as name:
            staged = Path(name) / str(serial)
            published = publish(
                files, list_name=list_name, serial=serial, base=base, issued=issued, expires=expires, key=key, out=staged, layout=layout,
                declared=declared, bad_rows_max=bad_rows_max, progress=progress, warn=warn, more_keys=more_keys,
            )  # fmt: skip
            if not new_key:
                _check_keys(folder, before, _signatures_of(published.manifest))
            here = Contents(folder, list_name, kind, declared or {}, Path(name))
            offers = list(before.releases) if before is not None else []
            chain = steps(before, None, 0) if before is not None and base is not None else ()
            offer = _offer(published.manifest)
            state, pages = asyncio.run(
                here.loaded([*((folder / each.folder / each.manifest) for each in chain), published.manifest])
            )
            offer = replace(offer, content=state.content_digest)
            made = [_put(offer, staged, folder)]
            time = _time(before, issued, warn)
            index = Index(list=list_name, holds=kind, written=time, releases=in_order([*offers, *made]))
            if folds := base is not None and _is_time(index, folder, issued - keep, issued + (expires - issued) / 2):
                full = here.folded(state, pages, serial=serial, issued=issued, expires=expires, keys=(key, *more_keys))
                made.append(_put(full, Path(name) / full.folder, folder))
                index = replace(index, releases=in_order([*offers, *made]))
        index = without(index, issued - keep)
        put(folder / INDEX, signed(written(index), key), mode=MODE, durable=True)  # after all that it names
        _clear(folder, before, index)
    manifest = folder / made[0].folder / made[0].manifest
    return Placed(published=replace(published, manifest=manifest), index=index, folded=folds)


def offer_release(
    folder: Path, manifest: Path, *, key: Path, now: datetime, holds: str | None = None, keep: timedelta = KEEP,
    declared: Mapping[str, Layout] | None = None, warn: Callable[[str], None] = lambda _: None, deltas_max: int = DELTAS_MAX,
    new_key: bool = False,
) -> Index:  # fmt: skip
    """Put a release that is signed already into the folder, with all its signatures; return the index, which `key` signs.

    No deltas are folded, since whoever has to sign the full release is not here. Raises as `publish_into`.
    """
    said = parse_manifest(_content(manifest))
    with _alone(folder):
        before = index_in(folder)
        kind = holds or (DEVICES if before is None else before.holds)
        _check(before, folder, list_name=said.list, serial=said.serial, base=said.base, holds=kind)
        with tempfile.TemporaryDirectory(dir=folder, prefix=ROOM) as name:
            staged = Path(name) / str(said.serial)
            staged.mkdir()
            for each in (manifest.name, *_signatures(manifest), *(file.name for file in said.files)):
                _copy(manifest.with_name(each), staged / each)
            here = Contents(folder, said.list, kind, declared or {}, Path(name))
            chain = steps(before, None, 0) if before is not None and said.base is not None else ()
            manifests = [*((folder / each.folder / each.manifest) for each in chain), staged / manifest.name]
            state, _ = asyncio.run(here.loaded(manifests))
            offer = replace(_offer(staged / manifest.name), content=state.content_digest)
            offers = [] if before is None else before.releases
            time = _time(before, now, warn)
            index = Index(list=said.list, holds=kind, written=time, releases=in_order([*offers, offer]))
            if len([each for each in index.releases if each.serial > index.full.serial]) > deltas_max:
                detail = f"{deltas_max} deltas stand behind serial {index.full.serial}: a full release is needed now"
                raise ReleaseRefused("base", detail)
            index = without(index, now - keep)
            content = signed(written(index), key)
            if not new_key:
                signatures = [*_signatures_of(staged / manifest.name), content[content.rfind(BEGINS) :]]
                _check_keys(folder, before, signatures)
            _put(offer, staged, folder)
        put(folder / INDEX, content, mode=MODE, durable=True)  # after all that it names
        _clear(folder, before, index)
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
    found = [name for name in signature_names(manifest.name) if manifest.with_name(name).exists()]
    if not found:
        raise ReleaseRefused("signature_missing", f"{manifest} has no signature beside it")
    return found


def _check(before: Index | None, folder: Path, *, list_name: str, serial: int, base: int | None, holds: str) -> None:
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


def _check_keys(folder: Path, before: Index | None, signatures: Sequence[bytes]) -> None:
    """Refuse signatures by a key that nodes may not trust: it has signed no release in the folder and is not in its `signers`.

    The first release of a folder without `signers` may have any key. Raises ReleaseRefused (`untrusted_signer`).
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
        if not names_one_of(known, signature):
            fingerprint = base64.b64encode(hashlib.sha256(key_in(signature)).digest()).decode().rstrip("=")
            raise ReleaseRefused(
                "untrusted_signer",
                f"the key SHA256:{fingerprint} has signed no release in {folder} and is not in {file}: nodes that do not trust it would"
                " keep the release before. Sign with another key; if the nodes trust this one, add it to that file or give --new-key",
            )


def _time(before: Index | None, now: datetime, warn: Callable[[str], None]) -> datetime:
    """The time of the next index: readers take none that is older than one before it, by a clock that was set back a little either."""
    if before is None or now >= before.written:
        return now
    if before.written <= now + AHEAD_MAX:
        return before.written
    late = f"it is {utc_text(now)} here, and {INDEX} was written {utc_text(before.written)}"
    warn(f"{late}: who has seen that takes no older one; is the clock of this host right?")
    return now


def _is_time(index: Index, folder: Path, until: datetime, ends: datetime) -> bool:
    """True if the deltas behind the newest full release are to be folded.

    They are if there are many, if the first is older than the time that deltas are kept (`until`), or if the full release expires before
    `ends`: a node that begins with it takes none that has expired.
    """
    if parse_manifest((folder / index.full.folder / index.full.manifest).read_bytes()).expires < ends:
        return True
    behind = [offer for offer in index.releases if offer.serial > index.full.serial]
    return len(behind) >= DELTAS_MAX or any(datetime.fromisoformat(offer.issued) < until for offer in behind)


class Contents:
    """The list that the folder's releases make. `room`: a folder for the store that it takes for a while."""

    def __init__(self, folder: Path, name: str, kind: str, declared: Mapping[str, Layout], room: Path) -> None:
        # They are the publisher's own: no limit on changes holds here, and no signature is asked for.
        self._settings = ListSettings(
            name=name, kind=kind, shrink_max=1.0, growth_max=1e9, range_tacs_max=10**8, bad_rows_max=10**9,
            serial_step_max=1 << 63, layouts=declared, keep=1,
        )  # fmt: skip
        self._folder, self._room = folder, room

    async def loaded(self, manifests: Sequence[Path]) -> tuple[ListState, Sequence[Page]]:
        """The list after these releases, one after the other. Raises ReleaseRefused."""
        name = self._settings.name
        pages: list[Page] = []
        store = SqliteStore(self._room / "lists.sqlite")
        try:
            for path in manifests:
                content = path.read_bytes()
                manifest = parse_manifest(content)
                release = Release(manifest=manifest, digest=hashlib.sha256(content).hexdigest(), signers=())
                loader = Loader(
                    {name: self._settings}, store, "publisher", manifest.issued, force=True, memory_max=MEMORY_MAX
                )
                await loader.load(release, path.parent)
            state = await store.state(name)
            async for _, batch in store.pages(name):
                pages += batch
        finally:
            await store.close()
            for file in self._room.glob("lists.sqlite*"):
                file.unlink()
        if state is None:
            raise ReleaseRefused("fault", f"{self._folder} has no releases")
        return state, pages

    def folded(
        self,
        state: ListState,
        pages: Sequence[Page],
        *,
        serial: int,
        issued: datetime,
        expires: datetime,
        keys: Sequence[Path],
    ) -> Offer:
        """Make a full release of the present list, signed by each of `keys`.

        Raises ReleaseRefused if it would not be the same list.
        """
        staged = self._room / f"{serial}-full"
        staged.mkdir()
        files = [
            self._written(state, pages, staged / f"{state.serial}-{what}.csv.zst", only)
            for what, only in self._parts(pages)
        ]
        published = publish(
            files, list_name=self._settings.name, serial=serial, issued=issued, expires=expires, key=keys[0], more_keys=keys[1:], layout="eir"
        )  # fmt: skip
        again, _ = asyncio.run(self.loaded([published.manifest]))
        if again.content_digest != state.content_digest:
            raise ReleaseRefused(
                "fault", "the full release that the deltas were folded into is not the same list; report this"
            )
        return replace(_offer(published.manifest), folder=staged.name, content=state.content_digest)

    def _parts(self, pages: Sequence[Page]) -> Sequence[tuple[str, bool | None]]:
        both = self._settings.kind == DEVICES and any(page.tac for page in pages) and any(page.keys for page in pages)
        return (("imei", False), ("tac", True)) if both else (("all", None),)

    @staticmethod
    def _written(state: ListState, pages: Sequence[Page], path: Path, only_tacs: bool | None) -> Path:
        with (
            path.open("wb") as file,
            zstandard.ZstdCompressor().stream_writer(file) as packed,
            io.TextIOWrapper(packed, "utf-8", newline="") as out,
        ):
            export(state, pages, "eir", out, only_tacs=only_tacs)
        return path


def _offer(manifest: Path) -> Offer:
    content = manifest.read_bytes()
    said = parse_manifest(content)
    beside = [manifest.with_name(name) for name in _signatures(manifest)]
    return Offer(
        serial=said.serial, kind=said.kind, base=said.base, folder=str(said.serial), manifest=manifest.name, signatures=tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in beside),
        sha256=hashlib.sha256(content).hexdigest(), issued=utc_text(said.issued), content="",
    )  # fmt: skip


def _put(offer: Offer, staged: Path, folder: Path) -> Offer:
    """Into its place in the folder; what an earlier try left there, and no index names, goes."""
    place = folder / offer.folder
    shutil.rmtree(place, ignore_errors=True)
    staged.chmod(0o755)
    for file in staged.iterdir():
        with file.open("rb") as content:
            os.fsync(content.fileno())
        file.chmod(MODE)
    sync(staged)
    staged.rename(place)
    sync(folder)
    return offer


def index_in(folder: Path) -> Index | None:
    """The index that is there. It is our own: its signature is the readers' matter. Raises ReleaseRefused if it cannot be read."""
    try:
        content = (folder / INDEX).read_bytes()
    except FileNotFoundError:
        return None
    return read(content[: content.rfind(BEGINS)])


def _clear(folder: Path, before: Index | None, now: Index) -> None:
    """Delete what neither this index names nor the one before it, by which somebody may be reading."""
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
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EirError(f"somebody else publishes into {folder} just now") from None
        for left in (*folder.glob(f"{ROOM}*"), *folder.glob(f".{INDEX}.*")):  # by one that was cut off
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield
