"""Index of a publisher's folder: the releases that it offers, and those that a node must load to reach the newest serial.

The folder is on any web server or object store, with a subfolder for each release. The index and its signature are in one file
(eir.lists.releases.openssh), so that a reader always gets a matching signature. A signer of the list's releases signs the index. The
index grants no rights: each release is verified by its own signatures.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from eir.errors import ReleaseRefused
from eir.lists.log.change import utc_text
from eir.lists.releases.document import (
    DIGEST,
    KIND_OF_LIST,
    LIST_NAME,
    SERIAL,
    TIME,
    Expected,
    array,
    integer,
    is_digest,
    members,
    parse_document,
    word,
)
from eir.lists.releases.release import DELTA, FULL, MANIFEST_BYTES_MAX, SIGNATURES_MAX, is_plain_name

FORMAT = "eir-index/2"
INDEX = "index.signed"
INDEX_BYTES_MAX = 1 << 20
RELEASES_MAX = 2000
"""Maximum number of releases in an index that a node accepts."""
KEPT_MAX = 1000
"""Maximum number of releases in an index that a publisher writes."""
AHEAD_MAX = timedelta(minutes=5)
"""Maximum time by which another host's clock may be ahead of the clock of this host."""
_NAME = re.compile(r"[0-9]{1,19}(?:-full)?/([^/]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Release that the index of a publisher's folder lists."""

    name: str
    """Path of the manifest in the folder, such as `42/stolen-42.manifest.json`."""
    serial: int
    kind: str
    base: int | None
    """Serial on which a delta builds."""
    size: int
    """Size of the manifest in bytes."""
    sha256: str
    """SHA-256 of the manifest, hexadecimal."""
    signatures: tuple[str, ...]
    """SHA-256 of each signature beside the manifest."""
    issued: str
    content: str
    """Content digest of the list after the release (Head.content). It is compared with that of a node."""

    @property
    def folder(self) -> str:
        """Name of the subfolder with the files of the release."""
        return self.name.partition("/")[0]

    @property
    def manifest(self) -> str:
        """File name of the manifest."""
        return self.name.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderIndex:
    """Index of a publisher's folder: the releases that nodes can load."""

    list: str
    holds: str
    """Kind of the list."""
    issued: datetime
    """Time of the index. A node rejects an index that is older than the newest index that the node has fetched."""
    releases: tuple[Offer, ...]
    """Offered releases by ascending serial, a delta before a full release of the same serial."""

    @property
    def serial(self) -> int:
        """Serial of the newest release in the publisher's folder."""
        return self.releases[-1].serial

    @property
    def full(self) -> Offer:
        """Newest full release in the folder."""
        return next(offer for offer in reversed(self.releases) if offer.kind == FULL)

    def content_of(self, serial: int) -> str | None:
        """Return the content digest of the list at a serial, or None if the folder does not have this release."""
        return next((offer.content for offer in self.releases if offer.serial == serial), None)


def encode_index(index: FolderIndex) -> bytes:
    """Encode an index as a JSON document, without a signature."""
    releases = [{name: value for name, value in asdict(offer).items() if value is not None} for offer in index.releases]
    document = {
        "format": FORMAT, "list": index.list, "holds": index.holds, "serial": index.serial, "issued": utc_text(index.issued),
        "releases": releases,
    }  # fmt: skip
    return (json.dumps(document) + "\n").encode()


def parse_index(content: bytes) -> FolderIndex:
    """Parse the JSON document of an index whose signature is verified.

    Raises:
        ReleaseRefused: `index`, with the wrong member.
    """
    document = parse_document(content, FORMAT, INDEX, "index")
    values = members(document, _INDEX, "index")
    index = FolderIndex(
        list=values["list"], holds=values["holds"], issued=datetime.fromisoformat(values["issued"]), releases=tuple(map(_offer, values["releases"]))
    )  # fmt: skip
    order = list(map(_position, index.releases))
    has_full_release = any(offer.kind == FULL for offer in index.releases)
    if order != sorted(set(order)) or not has_full_release:
        raise ReleaseRefused("index", f'the "releases" of {INDEX} do not rise, or none of them is a full one')
    if values["serial"] != index.serial:
        raise ReleaseRefused("index", f'the "serial" of {INDEX} is not that of its newest release')
    return index


def check_index(index: FolderIndex, name: str, holds: str, now: datetime, before: datetime | None) -> None:
    """Reject an index that has the wrong list or kind, has a time in the future, or is older than the time `before`.

    Args:
        index: index whose signature is verified.
        name: name of the list.
        holds: kind of the list.
        now: present time.
        before: time of the newest index that was fetched before; None for none.

    Raises:
        ReleaseRefused: `mixed`, `issued_in_future`, `replayed`.
    """
    if index.list != name:
        raise ReleaseRefused("mixed", f"the folder is one of {index.list}, and this is the source of {name}")
    if index.holds != holds:
        raise ReleaseRefused("mixed", f"the folder is one of {index.holds}, and {name} is a list of {holds}")
    issued = f"{INDEX} was issued {utc_text(index.issued)}"
    if index.issued > now + AHEAD_MAX:
        raise ReleaseRefused("issued_in_future", f"{issued}, and it is {utc_text(now)}")
    if before is not None and index.issued < before:
        raise ReleaseRefused("replayed", f"{issued}; one of {utc_text(before)} has been seen")


def releases_to_load(index: FolderIndex, current: int | None, highest: int) -> Sequence[Offer]:
    """Return the releases that a node must load, in order, to reach the newest serial; empty if none is needed or possible.

    If deltas lead from `current` to the newest serial, they are the result. Otherwise the result is the newest full
    release and the deltas after it.

    Args:
        index: index of the folder.
        current: serial in force; None without a list.
        highest: highest serial that the node has accepted. Only higher serials can be loaded.
    """
    if index.serial <= highest:
        return ()
    deltas = {offer.base: offer for offer in index.releases if offer.kind == DELTA}
    if current is not None:
        chain = _chain(deltas, current, highest)
        if chain and chain[-1].serial == index.serial:
            return chain
    full = index.full
    if full.serial <= highest:
        return ()
    return (full, *_chain(deltas, full.serial, full.serial))


def _chain(deltas: dict[int | None, Offer], serial: int, highest: int) -> Sequence[Offer]:
    """Return the consecutive deltas from the base `serial` on; empty if the first delta's own serial is at most `highest`.

    `deltas`: delta by base.
    """
    chain: list[Offer] = []
    offer = deltas.get(serial)
    if offer is None or offer.serial <= highest:
        return chain
    while offer is not None:
        chain.append(offer)
        offer = deltas.get(offer.serial)
    return chain


def trim_index(index: FolderIndex, until: datetime) -> FolderIndex:
    """Return the index without old releases: the newest full release, its deltas, and the deltas issued after `until` remain.

    A node that was up to date at `until` can still load the newest serial by deltas.
    """
    full = index.full

    def is_needed(offer: Offer) -> bool:
        return offer.serial > full.serial or datetime.fromisoformat(offer.issued) >= until

    deltas = [offer for offer in index.releases if offer.kind == DELTA and is_needed(offer)]
    return replace(index, releases=sort_offers([full, *deltas])[-KEPT_MAX:])


def sort_offers(offers: Iterable[Offer]) -> tuple[Offer, ...]:
    """Sort releases in the order of an index: by serial, a delta before a full release of the same serial."""
    return tuple(sorted(offers, key=_position))


def _position(offer: Offer) -> tuple[int, bool]:
    return offer.serial, offer.kind != DELTA


def _offer(document: Any) -> Offer:
    values = members(document, _OFFER, "index", f'a member of "releases" of {INDEX}')
    base = {"base": integer(0, values["serial"] - 1)} if values["kind"] == DELTA else {}
    values = {"base": None, **values, **members(document, base, "index")}
    return Offer(**values | {"signatures": tuple(values["signatures"])})


def _is_path(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and is_plain_name(match[1])


_INDEX = {"list": LIST_NAME, "holds": KIND_OF_LIST, "serial": SERIAL, "issued": TIME, "releases": array(RELEASES_MAX)}
_OFFER = {
    "name": Expected(str, _is_path, "a path such as 42/LIST-42.manifest.json"), "serial": SERIAL, "kind": word(FULL, DELTA),
    "size": integer(1, MANIFEST_BYTES_MAX), "sha256": DIGEST, "signatures": array(SIGNATURES_MAX, "times 64 hexadecimal digits", is_digest),
    "issued": TIME, "content": DIGEST,
}  # fmt: skip
