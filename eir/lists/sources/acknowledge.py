"""Acknowledgements: a node's signed word on the content of a list that it has in force, and a publisher's view of it.

A node signs with a key of its own, and says since when the content is in force, and the release or index that it rejected last.

The key is an OpenSSH one in the node's state folder, its signatures have a namespace of their own, and whoever wants proof has the public
keys of all nodes in an allowed_signers file, each under the node's Origin-Host.
"""

import asyncio
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.audit import Listed
from eir.lists.record.settings import ListSettings, is_list_name
from eir.lists.record.store import utc_text
from eir.lists.releases.openssh import document_in, signed
from eir.lists.releases.release import SERIAL_MAX, member, parse_manifest, verify_release
from eir.lists.rows.delivered import open_folder, read_small
from eir.lists.sources.folder import AHEAD_MAX, Index, Offer, is_digest, steps
from eir.lists.sources.folder_writer import Contents, index_in

FORMAT, NAMESPACE = "eir-acknowledgement/1", "eir-acknowledgement"
KEY = "acknowledgement.key"
"""A file in the state folder; made when it is first needed."""
ACKNOWLEDGED, ENDS, NODES = "acknowledgements", ".ack", "nodes"
"""In a publisher's folder: the folder of acknowledgements, the end of their names, and the file with the nodes' public
keys."""
BYTES_MAX = 1 << 16
SILENT = timedelta(days=2)
"""A node says once a day what it has, whether that has changed or not."""
IN_STEP, LATE, BEHIND, DIFFERS, UNPROVEN, OLD, NEVER, REJECTS = STATES = (
    "in step",
    "on its way",
    "behind",
    "differs",
    "unproven",
    "silent",
    "never",
    "rejects",
)
_REASON = re.compile(r"[a-z0-9_]{1,40}")
_member = partial(member, reason="acknowledgement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A release or an index of the source that a node rejected. Without its detail, which may hold rows and the node's paths."""

    reason: str
    """A short stable word, as ReleaseRefused has it."""
    at: str
    """Time of the first such rejection in a row, UTC with a Z."""
    serial: int | None = None
    """Serial of the release; None for an index, whose serials are not believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """A node's statement on a list. Times are UTC with a Z."""

    node: str
    """Its Origin-Host."""
    list: str
    serial: int
    content: str
    """Digest of the list in force (ListState.content_digest)."""
    since: str
    """The time when the node put it in force."""
    made: str
    rejected: Rejection | None = None
    """The rejection after which nothing of the source was accepted; absent in the document if nothing was rejected."""

    @property
    def name(self) -> str:
        """The name of the file that it goes into."""
        return f"{self.node}.{self.list}{ENDS}"


def key_of(state: Path) -> Path:
    """The node's key, made if it does not exist yet. Raises EirError."""
    key = state / KEY
    if not key.exists():
        try:
            made = subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "eir", "-f", key],  # noqa: S607 - OpenSSH stands where the host's PATH has it
                stdin=subprocess.DEVNULL, capture_output=True, check=False,
            )  # fmt: skip
        except OSError as e:
            raise EirError(f"ssh-keygen cannot be run: {e}; install OpenSSH's client") from None
        if made.returncode and not key.exists():
            raise EirError(f"the key {key} cannot be made: {made.stderr.decode(errors='replace').strip()}")
    return key


def signer_line(key: Path, node: str) -> str:
    """The line by which an allowed_signers file knows the node."""
    kind, public = key.with_name(f"{key.name}.pub").read_text().split()[:2]
    return f'{node} namespaces="{NAMESPACE}" {kind} {public}'


def acknowledged(what: Acknowledgement, key: Path) -> bytes:
    """The acknowledgement, signed. Raises ReleaseRefused as openssh.sign."""
    members = {name: value for name, value in asdict(what).items() if name != "rejected" or value is not None}
    return signed((json.dumps({"format": FORMAT, **members}, indent=1) + "\n").encode(), key, NAMESPACE)


def read(content: bytes, name: str, nodes: Path, now: datetime) -> Acknowledgement:
    """The acknowledgement in a file, proved to be the node's own. `nodes`: the allowed_signers file. Raises ReleaseRefused."""
    document, signature = document_in(content, name, nodes, now, namespace=NAMESPACE)
    try:
        said = json.loads(document)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ReleaseRefused("acknowledgement", f'the "format" of {name} is not "{FORMAT}"')
    found = Acknowledgement(
        node=_member(said, "node", str, bool, "a host"), list=_member(said, "list", str, is_list_name, "the name of a list"),
        serial=_member(said, "serial", int, lambda serial: 0 <= serial <= SERIAL_MAX, "a serial"),
        content=_member(said, "content", str, is_digest, "64 hexadecimal digits"),
        since=_member(said, "since", str, _is_time, "a time"), made=_member(said, "made", str, _is_time, "a time"),
        rejected=_rejection(said),
    )  # fmt: skip
    if found.node not in signature.principals:
        raise ReleaseRefused(
            "acknowledgement", f"{name} is signed by {', '.join(signature.principals)}, and speaks for {found.node}"
        )
    if datetime.fromisoformat(found.made) > now + AHEAD_MAX:  # it would never be old
        raise ReleaseRefused("acknowledgement", f"{name} was made {found.made}, and it is {utc_text(now)}")
    return found


def _rejection(said: Mapping[str, Any]) -> Rejection | None:
    """Return the rejection in an acknowledgement, if there is one. Raises ReleaseRefused."""
    if said.get("rejected") is None:
        return None
    rejected: dict[str, Any] = _member(said, "rejected", dict, bool, "an object")
    serial = rejected.get("serial")
    return Rejection(
        reason=_member(rejected, "reason", str, _REASON.fullmatch, "a short word"),
        at=_member(rejected, "at", str, _is_time, "a time"),
        serial=None
        if serial is None
        else _member(rejected, "serial", int, lambda number: 1 <= number <= SERIAL_MAX, "a serial"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The standing of a node with a publisher's folder."""

    node: str
    list: str
    state: str
    """One of STATES."""
    serial: int | None = None
    behind: int = 0
    """Releases that it has not."""
    late_s: int = 0
    """Seconds for which the first of these has been there."""
    since: str | None = None
    acknowledged: str | None = None
    """The time when the node last said so."""
    detail: str = ""


def standings(folder: Path, *, now: datetime, within: timedelta, nodes: Path | None = None) -> list[Standing]:
    """The standing of each node that has a key in the folder's `nodes`.

    `within`: the time that a node may take for a release.

    Raises EirError if the folder or the file of nodes cannot be read.
    """
    index, keys = index_in(folder), nodes or folder / NODES
    if index is None:
        raise EirError(f"{folder} is no folder of `eir publish --to`: it has no index")
    try:
        known = list(_named(keys.read_text()))
    except OSError as e:
        raise EirError(
            f"the nodes' public keys {keys} cannot be read: {e.strerror}; `eir acknowledge --key` on a node says its line"
        ) from None
    room, end = folder / ACKNOWLEDGED, f".{index.list}{ENDS}"
    posted = {path.name.removesuffix(end) for path in room.glob(f"*{end}")}
    acknowledgements: dict[str, Acknowledgement] = {}
    unproven = dict.fromkeys(sorted(posted.difference(known)), f"it has no key in {keys}")
    for node in posted.intersection(known):  # files of others are not read: that takes time, and proves nothing
        try:
            acknowledgements[node] = _of_node(room / f"{node}{end}", node, index.list, keys, now)
        except (ReleaseRefused, OSError) as e:
            unproven[node] = str(e)
    index = index_in(folder) or index  # a release that came meanwhile may be in force already
    rows = [standing(index, acknowledgements[node], now, within) for node in known if node in acknowledgements]
    rows += [
        _without(index, node, unproven.get(node))
        for node in dict.fromkeys([*known, *unproven])
        if node not in acknowledgements
    ]
    return rows


def _of_node(file: Path, node: str, list_name: str, keys: Path, now: datetime) -> Acknowledgement:
    """Return a node's acknowledgement of a list. Raises ReleaseRefused, OSError."""
    found = read(_content(file), file.name, keys, now)
    if (found.node, found.list) != (node, list_name):
        raise ReleaseRefused("acknowledgement", f"{file.name} is the acknowledgement of {found.node} for {found.list}")
    return found


def standing(index: Index, said: Acknowledgement, now: datetime, within: timedelta) -> Standing:
    """The standing of one node."""
    missed = sorted({(offer.serial, offer.issued) for offer in index.releases if offer.serial > said.serial})
    late = now - datetime.fromisoformat(missed[0][1]) if missed else timedelta(0)
    content = index.content_of(said.serial)
    state, detail = IN_STEP, ""
    if said.serial > index.serial:
        state, detail = DIFFERS, f"it has serial {said.serial}, and {index.serial} is the newest in the folder"
    elif content is not None and content != said.content:
        state, detail = (
            DIFFERS,
            f"it has {said.content[:12]} for serial {said.serial}, and the release makes {content[:12]}",
        )
    elif now - datetime.fromisoformat(said.made) > SILENT:
        state, detail = OLD, "it has not said for long what it has"
    elif (rejected := said.rejected) is not None and (rejected.serial is None or rejected.serial > said.serial):
        what = "the index" if rejected.serial is None else f"serial {rejected.serial}"
        state, detail = REJECTS, f"it rejected {what} at {rejected.at}: {rejected.reason}"
    elif missed:
        state = BEHIND if late > within else LATE
    return Standing(
        node=said.node, list=said.list, state=state, serial=said.serial, behind=len({serial for serial, _ in missed}),
        late_s=max(0, int(late.total_seconds())), since=said.since, acknowledged=said.made, detail=detail,
    )  # fmt: skip


def listed_by(file: Path, lists: Mapping[str, ListSettings], *, now: datetime) -> Listed:
    """The entries that a node says are in force, by the releases of the folder that its acknowledgement lies in.

    Raises ReleaseRefused for what is not to be believed, EirError if the folder has no such list any more.
    """
    folder = file.resolve().parent.parent
    index = index_in(folder)
    said = read(_content(file), file.name, folder / NODES, now)
    if index is None or index.list != said.list or said.list not in lists:
        raise EirError(f"{file} is about list {said.list}, and lies in no folder of that list that is configured here")
    chain = _chain_to(index, said.serial)
    if not chain or index.content_of(said.serial) is None:
        raise EirError(f"{folder} has no releases any more that lead to serial {said.serial}")
    manifests = [folder / offer.folder / offer.manifest for offer in chain]
    for path in manifests:
        issued = parse_manifest(path.read_bytes()).issued
        verify_release(path, lists, now=issued)
    with tempfile.TemporaryDirectory(prefix="eir-audit-") as room:
        contents = Contents(folder, said.list, index.holds, lists[said.list].layouts, Path(room))
        state, pages = asyncio.run(contents.loaded(manifests))
    if state.content_digest != said.content:
        raise ReleaseRefused(
            "acknowledgement",
            f"{said.node} has {said.content[:12]} in force, and release {said.serial} makes {state.content_digest[:12]}",
        )
    return Listed(parse_manifest(manifests[-1].read_bytes()), sorted(pages), now)


def _chain_to(index: Index, serial: int) -> Sequence[Offer]:
    """The releases that lead to a serial, from the newest full one at or below it."""
    offers = tuple(offer for offer in index.releases if offer.serial <= serial)
    if not any(offer.base is None for offer in offers):
        return ()
    return steps(Index(list=index.list, holds=index.holds, written=index.written, releases=offers), None, 0)


def _without(index: Index, node: str, why: str | None) -> Standing:
    return Standing(
        node=node,
        list=index.list,
        state=NEVER if why is None else UNPROVEN,
        behind=len({offer.serial for offer in index.releases}),
        detail=why or "",
    )


def _named(signers: str) -> Iterator[str]:
    """Hosts in an allowed_signers file."""
    for line in signers.splitlines():
        if line.strip() and not line.startswith("#"):
            yield from line.split()[0].strip('"').split(",")


def _content(file: Path) -> bytes:
    """The content of a file that a node has put there, or somebody else: no pipe holds the reader, and no link leads elsewhere."""
    with open_folder(file.parent) as folder:
        return read_small(file.name, folder, BYTES_MAX)


def _is_time(text: str) -> bool:
    try:
        return utc_text(datetime.fromisoformat(text)) == text
    except ValueError:
        return False


def as_rows(found: Sequence[Standing]) -> list[dict[str, Any]]:
    """Rows for tables and scripts."""
    return [asdict(each) for each in found]
