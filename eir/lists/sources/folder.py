"""A publisher's folder: what its index says, and which of its releases lead a reader from where it is to the newest one.

The folder lies on any web server or object store. Each release has a folder of its own in it, and the index names them: a full one, and
deltas. The index is one file with its signature (lists.signed), so that no reader sees half of a change. It is signed by whoever signs the
list's releases; it grants nothing that these do not, and is only the way to them.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from eir.errors import ReleaseRefused
from eir.lists.record.settings import KINDS, is_list_name
from eir.lists.record.store import utc_text
from eir.lists.releases.release import DELTA, FULL, SERIAL_MAX, SIGNATURES_MAX, is_plain_name, member

FORMAT = "eir-folder/1"
INDEX = "index.signed"
INDEX_BYTES_MAX = 1 << 20
RELEASES_MAX, KEPT_MAX = 2000, 1000
"""Releases that fit into an index, and those that a publisher leaves in it."""
AHEAD_MAX = timedelta(minutes=5)
"""The most by which a publisher's clock may be ahead of ours."""
_FOLDER = re.compile(r"[0-9]{1,19}(?:-full)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_member = partial(member, reason="index")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A release in the folder."""

    serial: int
    kind: str
    base: int | None
    """The serial that a delta builds on."""
    folder: str
    """The folder of its files."""
    manifest: str
    sha256: str
    """Digest of the manifest."""
    signatures: tuple[str, ...]
    """Digests of the signatures beside it."""
    issued: str
    content: str
    """Digest of the list's content once it is loaded (ListState.content_digest); what a node has in force is compared with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The offer of the folder."""

    list: str
    holds: str
    """The list's kind."""
    written: datetime
    """When; a reader takes none that is older than one which it has seen."""
    releases: tuple[Offer, ...]
    """Releases by rising serial, a delta before a full release of the same serial."""

    @property
    def serial(self) -> int:
        """The newest one."""
        return self.releases[-1].serial

    @property
    def full(self) -> Offer:
        """The newest full release."""
        return next(offer for offer in reversed(self.releases) if offer.kind == FULL)

    def content_of(self, serial: int) -> str | None:
        """The digest of the list's content at a serial, if the folder still knows it."""
        return next((offer.content for offer in self.releases if offer.serial == serial), None)


def written(index: Index) -> bytes:
    """The document to sign."""
    releases = [{name: value for name, value in asdict(offer).items() if value is not None} for offer in index.releases]
    said = {
        "format": FORMAT,
        "list": index.list,
        "holds": index.holds,
        "written": utc_text(index.written),
        "releases": releases,
    }
    return (json.dumps(said) + "\n").encode()


def read(document: bytes) -> Index:
    """The index in a document whose signature holds. Raises ReleaseRefused (`index`) and says which member is wrong."""
    try:
        said = json.loads(document.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReleaseRefused("index", f"{INDEX} is not JSON: {error}") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ReleaseRefused("index", f'the "format" of {INDEX} is not "{FORMAT}"')
    releases = _member(
        said,
        "releases",
        list,
        lambda found: 1 <= len(found) <= RELEASES_MAX,
        f"an array of 1 to {RELEASES_MAX} objects",
    )
    index = Index(
        list=_member(said, "list", str, is_list_name, "the name of a list"),
        holds=_member(said, "holds", str, KINDS.__contains__, " or ".join(KINDS)),
        written=_time(said, "written"), releases=tuple(map(_offer, releases)),
    )  # fmt: skip
    places = [(offer.serial, offer.kind != DELTA) for offer in index.releases]
    if places != sorted(set(places)) or not any(full for _, full in places):
        raise ReleaseRefused("index", f'the "releases" of {INDEX} do not rise, or none of them is a full one')
    return index


def check(index: Index, name: str, holds: str, now: datetime, before: datetime | None) -> None:
    """Refuse an index that is not the next one of this list.

    `before`: when the newest one that was seen was written. Raises ReleaseRefused: `mixed`, `issued_in_future`, `replayed`.
    """
    if index.list != name:
        raise ReleaseRefused("mixed", f"the folder is one of {index.list}, and this is the source of {name}")
    if index.holds != holds:
        raise ReleaseRefused("mixed", f"the folder is one of {index.holds}, and {name} is a list of {holds}")
    if index.written > now + AHEAD_MAX:
        raise ReleaseRefused(
            "issued_in_future", f"{INDEX} was written {utc_text(index.written)}, and it is {utc_text(now)}"
        )
    if before is not None and index.written < before:
        raise ReleaseRefused(
            "replayed", f"{INDEX} was written {utc_text(index.written)}; one of {utc_text(before)} has been seen"
        )


def steps(index: Index, current: int | None, highest: int) -> Sequence[Offer]:
    """The releases that lead to the newest one, in order.

    Empty if it is there already, or nothing in the folder leads there.

    `current`: the serial in force (None: no list yet); `highest`: the highest ever accepted. Deltas alone if they do; otherwise the newest
    full release, and the deltas behind it.
    """
    deltas = {offer.base: offer for offer in index.releases if offer.kind == DELTA}
    if index.serial <= highest:
        return ()
    if current is not None and (chain := _chain(deltas, current, highest)) and chain[-1].serial == index.serial:
        return chain
    full = index.full
    return (full, *_chain(deltas, full.serial, full.serial)) if full.serial > highest else ()


def _chain(deltas: dict[int | None, Offer], serial: int, highest: int) -> Sequence[Offer]:
    """The deltas behind a serial, one after the other; none if the first of them is not above `highest`."""
    chain: list[Offer] = []
    while (offer := deltas.get(serial)) is not None and (chain or offer.serial > highest):
        chain.append(offer)
        serial = offer.serial
    return chain


def without(index: Index, until: datetime) -> Index:
    """The index without what nobody needs who was in step at that time: deltas of before it, and full releases but the newest one."""
    full = index.full
    kept = [
        offer for offer in index.releases
        if offer is full or (offer.kind == DELTA and (offer.serial > full.serial or datetime.fromisoformat(offer.issued) >= until))
    ]  # fmt: skip
    return Index(list=index.list, holds=index.holds, written=index.written, releases=tuple(kept[-KEPT_MAX:]))


def in_order(offers: Iterable[Offer]) -> tuple[Offer, ...]:
    """Offers in the order of an index."""
    return tuple(sorted(offers, key=lambda offer: (offer.serial, offer.kind != DELTA)))


def is_digest(text: str) -> bool:
    """True for a SHA-256 in hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def _offer(said: Any) -> Offer:
    if not isinstance(said, dict):
        raise ReleaseRefused("index", f'a member of "releases" of {INDEX} is not an object')
    kind = _member(said, "kind", str, (FULL, DELTA).__contains__, f"{FULL} or {DELTA}")
    serial = _member(said, "serial", int, lambda number: 1 <= number <= SERIAL_MAX, "a serial")
    base = (
        None
        if kind == FULL
        else _member(said, "base", int, lambda number: 0 <= number < serial, "a serial below that of the release")
    )
    _time(said, "issued")
    return Offer(
        serial=serial, kind=kind, base=base, folder=_member(said, "folder", str, _FOLDER.fullmatch, "a folder such as 42 or 42-full"),
        manifest=_member(said, "manifest", str, is_plain_name, "a plain file name"), issued=said["issued"],
        signatures=_signatures(said),
        sha256=_member(said, "sha256", str, is_digest, "64 hexadecimal digits"),
        content=_member(said, "content", str, is_digest, "64 hexadecimal digits"),
    )  # fmt: skip


def _signatures(said: dict[str, Any]) -> tuple[str, ...]:
    def are_digests(found: list[Any]) -> bool:
        return 1 <= len(found) <= SIGNATURES_MAX and all(isinstance(each, str) and is_digest(each) for each in found)

    found: list[str] = _member(
        said, "signatures", list, are_digests, f"an array of 1 to {SIGNATURES_MAX} times 64 hexadecimal digits"
    )
    return tuple(found)


def _time(said: dict[str, Any], name: str) -> datetime:
    def is_time(text: str) -> bool:
        try:
            return utc_text(datetime.fromisoformat(text)) == text
        except ValueError:
            return False

    return datetime.fromisoformat(_member(said, name, str, is_time, "a time like 2026-11-24T00:00:00Z"))
