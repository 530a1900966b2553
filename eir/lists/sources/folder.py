"""Publisher's folder: its index, and the choice of the releases that lead a node to the newest serial.

The folder is on any web server or object store. Each release has a folder of its own, and the index lists them: a full release
and deltas. The index and its signature share one file (eir.lists.releases.openssh), so that a reader never reads half of a
change. A signer of the list's releases signs it. The index grants no rights, because each release is verified by itself.
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
"""Maximum number of releases in an index, and of those that a publisher keeps in it."""
AHEAD_MAX = timedelta(minutes=5)
"""Time by which a publisher's clock may be ahead of ours."""
_FOLDER = re.compile(r"[0-9]{1,19}(?:-full)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_member = partial(member, reason="index")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Release that is offered in a publisher's folder, as its index lists it."""

    serial: int
    kind: str
    base: int | None
    """Serial on which a delta builds."""
    folder: str
    """Folder of its files."""
    manifest: str
    sha256: str
    """Digest of the manifest."""
    signatures: tuple[str, ...]
    """Digests of the signatures beside the manifest."""
    issued: str
    content: str
    """Digest of the list's content after the release (ListState.content_digest), with which a node's content is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderIndex:
    """Index of a publisher's folder: the list, the time, and the offered releases."""

    list: str
    holds: str
    """Kind of the list."""
    written: datetime
    """Time of the index; a reader rejects an index that is older than one that it has read."""
    releases: tuple[Offer, ...]
    """Releases by ascending serial, a delta before a full release of the same serial."""

    @property
    def serial(self) -> int:
        """Newest serial in the folder."""
        return self.releases[-1].serial

    @property
    def full(self) -> Offer:
        """Newest full release in the folder."""
        return next(offer for offer in reversed(self.releases) if offer.kind == FULL)

    def content_of(self, serial: int) -> str | None:
        """Return the digest of the list's content at a serial, or None if the folder does not have this release."""
        return next((offer.content for offer in self.releases if offer.serial == serial), None)


def encode_index(index: FolderIndex) -> bytes:
    """Encode an index as the JSON document that is then signed."""
    releases = [{name: value for name, value in asdict(offer).items() if value is not None} for offer in index.releases]
    document = {
        "format": FORMAT,
        "list": index.list,
        "holds": index.holds,
        "written": utc_text(index.written),
        "releases": releases,
    }
    return (json.dumps(document) + "\n").encode()


def parse_index(document: bytes) -> FolderIndex:
    """Parse the JSON document of an index whose signature is verified.

    Raises:
        ReleaseRefused: `index`, with the wrong member.
    """
    try:
        members = json.loads(document.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReleaseRefused("index", f"{INDEX} is not JSON: {error}") from None
    if not isinstance(members, dict) or members.get("format") != FORMAT:
        raise ReleaseRefused("index", f'the "format" of {INDEX} is not "{FORMAT}"')
    releases = _member(
        members,
        "releases",
        list,
        lambda found: 1 <= len(found) <= RELEASES_MAX,
        f"an array of 1 to {RELEASES_MAX} objects",
    )
    index = FolderIndex(
        list=_member(members, "list", str, is_list_name, "the name of a list"),
        holds=_member(members, "holds", str, KINDS.__contains__, " or ".join(KINDS)),
        written=_time(members, "written"), releases=tuple(map(_offer, releases)),
    )  # fmt: skip
    places = [(offer.serial, offer.kind != DELTA) for offer in index.releases]
    if places != sorted(set(places)) or not any(full for _, full in places):
        raise ReleaseRefused("index", f'the "releases" of {INDEX} do not rise, or none of them is a full one')
    return index


def check_index(index: FolderIndex, name: str, holds: str, now: datetime, before: datetime | None) -> None:
    """Reject an index that is of another list or kind, from the future, or older than one that was read before.

    `before`: time of the newest index that was read before.

    `before`: time of the newest index that was read.

    Raises:
        ReleaseRefused: `mixed`, `issued_in_future`, `replayed`.
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


def releases_to_load(index: FolderIndex, current: int | None, highest: int) -> Sequence[Offer]:
    """Return the releases to load, in order, to reach the newest serial.

    The result is empty if the newest serial is already loaded or cannot be reached. Deltas are preferred; otherwise the
    result is the newest full release and the deltas after it.
    """
    deltas = {offer.base: offer for offer in index.releases if offer.kind == DELTA}
    if index.serial <= highest:
        return ()
    if current is not None and (chain := _chain(deltas, current, highest)) and chain[-1].serial == index.serial:
        return chain
    full = index.full
    return (full, *_chain(deltas, full.serial, full.serial)) if full.serial > highest else ()


def _chain(deltas: dict[int | None, Offer], serial: int, highest: int) -> Sequence[Offer]:
    """Return the consecutive deltas after a serial.

    The result is empty if the serial of the first delta is not above `highest`.
    """
    chain: list[Offer] = []
    while (offer := deltas.get(serial)) is not None and (chain or offer.serial > highest):
        chain.append(offer)
        serial = offer.serial
    return chain


def trim_index(index: FolderIndex, until: datetime) -> FolderIndex:
    """Return the index without the releases that a node which was up to date at `until` does not need.

    These are older deltas, and all full releases but the newest.
    """
    full = index.full
    offers = [
        offer for offer in index.releases
        if offer is full or (offer.kind == DELTA and (offer.serial > full.serial or datetime.fromisoformat(offer.issued) >= until))
    ]  # fmt: skip
    return FolderIndex(list=index.list, holds=index.holds, written=index.written, releases=tuple(offers[-KEPT_MAX:]))


def sort_offers(offers: Iterable[Offer]) -> tuple[Offer, ...]:
    """Sort offers as an index lists them: by serial, and for the same serial the delta first."""
    return tuple(sorted(offers, key=lambda offer: (offer.serial, offer.kind != DELTA)))


def is_digest(text: str) -> bool:
    """Return True if a text is a SHA-256 in lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def _offer(members: Any) -> Offer:
    if not isinstance(members, dict):
        raise ReleaseRefused("index", f'a member of "releases" of {INDEX} is not an object')
    kind = _member(members, "kind", str, (FULL, DELTA).__contains__, f"{FULL} or {DELTA}")
    serial = _member(members, "serial", int, lambda number: 1 <= number <= SERIAL_MAX, "a serial")
    base = (
        None
        if kind == FULL
        else _member(members, "base", int, lambda number: 0 <= number < serial, "a serial below that of the release")
    )
    _time(members, "issued")
    return Offer(
        serial=serial, kind=kind, base=base, folder=_member(members, "folder", str, _FOLDER.fullmatch, "a folder such as 42 or 42-full"),
        manifest=_member(members, "manifest", str, is_plain_name, "a plain file name"), issued=members["issued"],
        signatures=_signatures(members),
        sha256=_member(members, "sha256", str, is_digest, "64 hexadecimal digits"),
        content=_member(members, "content", str, is_digest, "64 hexadecimal digits"),
    )  # fmt: skip


def _signatures(members: dict[str, Any]) -> tuple[str, ...]:
    def are_digests(found: list[Any]) -> bool:
        return 1 <= len(found) <= SIGNATURES_MAX and all(isinstance(each, str) and is_digest(each) for each in found)

    found: list[str] = _member(
        members, "signatures", list, are_digests, f"an array of 1 to {SIGNATURES_MAX} times 64 hexadecimal digits"
    )
    return tuple(found)


def _time(members: dict[str, Any], name: str) -> datetime:
    def is_time(text: str) -> bool:
        try:
            return utc_text(datetime.fromisoformat(text)) == text
        except ValueError:
            return False

    return datetime.fromisoformat(_member(members, name, str, is_time, "a time like 2026-11-24T00:00:00Z"))
