"""Acknowledgements: a node's signed statement about the list in force, and its evaluation by the publisher.

A node signs with its own key. The statement includes the time from which the content is in force, and the release or index that
the node rejected last.

The key is an OpenSSH key in the node's state folder, and its signatures have a namespace of their own. The publisher has the
public keys of all nodes in an allowed_signers file, each with the node's Origin-Host.
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
from eir.lists.changes.audit import ReleaseEntries
from eir.lists.record.settings import ListSettings, is_list_name
from eir.lists.record.store import utc_text
from eir.lists.releases.openssh import sign_document, verify_document
from eir.lists.releases.release import SERIAL_MAX, member, parse_manifest, verify_release
from eir.lists.rows.delivered import open_folder, read_small
from eir.lists.sources.folder import AHEAD_MAX, FolderIndex, Offer, is_digest, releases_to_load
from eir.lists.sources.folder_writer import Contents, load_index

FORMAT, NAMESPACE = "eir-acknowledgement/1", "eir-acknowledgement"
KEY = "acknowledgement.key"
"""File in the state folder, created when it is first needed."""
ACKNOWLEDGED, ENDS, NODES = "acknowledgements", ".ack", "nodes"
"""Names in a publisher's folder: the folder of acknowledgements, the ending of their names, and the file with the nodes' public keys."""
BYTES_MAX = 1 << 16
SILENT = timedelta(days=2)
"""Age after which an acknowledgement is old; a node sends one each day, even without a change."""
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
    """Release or index that a node rejected.

    The detail of the rejection is left out, because it may contain rows and paths of the node.
    """

    reason: str
    """Reason word, as in ReleaseRefused."""
    at: str
    """Time of the first such rejection in a row, UTC with a Z."""
    serial: int | None = None
    """Serial of the release; None for an index, whose serials are not verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Statement of a node about the list that it has in force. Times are UTC texts that end with Z."""

    node: str
    """Origin-Host of the node."""
    list: str
    serial: int
    content: str
    """Digest of the list in force (ListState.content_digest)."""
    since: str
    """Time from which the content is in force."""
    made: str
    rejected: Rejection | None = None
    """Rejection after which nothing of the source was accepted; absent in the document without one."""

    @property
    def name(self) -> str:
        """Name of the file that contains the acknowledgement."""
        return f"{self.node}.{self.list}{ENDS}"


def load_key(state: Path) -> Path:
    """Return the path of the node's key for acknowledgements; create the key if it does not exist.

    Raises:
        EirError: if the key cannot be created.
    """
    key = state / KEY
    if not key.exists():
        try:
            done = subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "eir", "-f", key],  # noqa: S607 - found by the host's PATH
                stdin=subprocess.DEVNULL, capture_output=True, check=False,
            )  # fmt: skip
        except OSError as e:
            raise EirError(f"ssh-keygen cannot be run: {e}; install OpenSSH's client") from None
        if done.returncode and not key.exists():
            raise EirError(f"the key {key} cannot be made: {done.stderr.decode(errors='replace').strip()}")
    return key


def signer_line(key: Path, node: str) -> str:
    """Return the line for an allowed_signers file with which a publisher trusts the node's key."""
    kind, public = key.with_name(f"{key.name}.pub").read_text().split()[:2]
    return f'{node} namespaces="{NAMESPACE}" {kind} {public}'


def sign_acknowledgement(what: Acknowledgement, key: Path) -> bytes:
    """Encode an acknowledgement as JSON and sign it.

    Raises:
        ReleaseRefused: as openssh.sign.
    """
    members = {name: value for name, value in asdict(what).items() if name != "rejected" or value is not None}
    return sign_document((json.dumps({"format": FORMAT, **members}, indent=1) + "\n").encode(), key, NAMESPACE)


def verify_acknowledgement(content: bytes, name: str, nodes: Path, now: datetime) -> Acknowledgement:
    """Verify the signature of a node's acknowledgement and parse it.

    `nodes`: allowed_signers file with the keys of the nodes.

    Raises:
        ReleaseRefused: if the signature is not the node's, or a member is wrong.
    """
    document, signature = verify_document(content, name, nodes, now, namespace=NAMESPACE)
    try:
        members = json.loads(document)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict) or members.get("format") != FORMAT:
        raise ReleaseRefused("acknowledgement", f'the "format" of {name} is not "{FORMAT}"')
    acknowledgement = Acknowledgement(
        node=_member(members, "node", str, bool, "a host"), list=_member(members, "list", str, is_list_name, "the name of a list"),
        serial=_member(members, "serial", int, lambda serial: 0 <= serial <= SERIAL_MAX, "a serial"),
        content=_member(members, "content", str, is_digest, "64 hexadecimal digits"),
        since=_member(members, "since", str, _is_time, "a time"), made=_member(members, "made", str, _is_time, "a time"),
        rejected=_rejection(members),
    )  # fmt: skip
    if acknowledgement.node not in signature.principals:
        raise ReleaseRefused(
            "acknowledgement",
            f"{name} is signed by {', '.join(signature.principals)}, and speaks for {acknowledgement.node}",
        )
    if datetime.fromisoformat(acknowledgement.made) > now + AHEAD_MAX:  # it would never be old
        raise ReleaseRefused("acknowledgement", f"{name} was made {acknowledgement.made}, and it is {utc_text(now)}")
    return acknowledgement


def _rejection(members: Mapping[str, Any]) -> Rejection | None:
    """Return the rejection in an acknowledgement, or None if it contains no rejection.

    Raises:
        ReleaseRefused: if a member is wrong.
    """
    if members.get("rejected") is None:
        return None
    rejected: dict[str, Any] = _member(members, "rejected", dict, bool, "an object")
    serial = rejected.get("serial")
    return Rejection(
        reason=_member(rejected, "reason", str, _REASON.fullmatch, "a short word"),
        at=_member(rejected, "at", str, _is_time, "a time"),
        serial=None
        if serial is None
        else _member(rejected, "serial", int, lambda number: 1 <= number <= SERIAL_MAX, "a serial"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """State of a node, compared with the releases in a publisher's folder."""

    node: str
    list: str
    state: str
    """One of STATES."""
    serial: int | None = None
    behind: int = 0
    """Number of releases that the node lacks."""
    late_s: int = 0
    """Seconds since the first of these was issued."""
    since: str | None = None
    acknowledged: str | None = None
    """Time of the last acknowledgement."""
    detail: str = ""
    known: bool = True
    """False for a stranger, who has posted a file and has no key among the nodes'."""


def node_statuses(folder: Path, *, now: datetime, within: timedelta, nodes: Path | None = None) -> list[NodeStatus]:
    """Return the state of each node that has a key in the publisher's folder or has posted an acknowledgement.

    `within`: time that a node may take to put a release in force.

    `within`: time that a node may take for a release.

    Raises:
        EirError: if the folder or the file of nodes cannot be read.
    """
    index, keys = load_index(folder), nodes or folder / NODES
    if index is None:
        raise EirError(f"{folder} is no folder of `eir publish --to`: it has no index")
    try:
        known = list(_hosts_in(keys.read_text()))
    except OSError as e:
        raise EirError(
            f"the nodes' public keys {keys} cannot be read: {e.strerror}; `eir acknowledge --key` on a node says its line"
        ) from None
    room, end = folder / ACKNOWLEDGED, f".{index.list}{ENDS}"
    posted = {path.name.removesuffix(end) for path in room.glob(f"*{end}")}
    acknowledgements: dict[str, Acknowledgement] = {}
    unproven = dict.fromkeys(sorted(posted.difference(known)), f"it has no key in {keys}")
    for node in posted.intersection(known):  # without a key, an acknowledgement cannot be verified
        try:
            acknowledgements[node] = _of_node(room / f"{node}{end}", node, index.list, keys, now)
        except (ReleaseRefused, OSError) as e:
            unproven[node] = str(e)
    index = load_index(folder) or index  # nodes may already have a release that was published meanwhile
    rows = [node_status(index, acknowledgements[node], now, within) for node in known if node in acknowledgements]
    rows += [
        _unacknowledged(index, node, unproven.get(node), known=node in known)
        for node in dict.fromkeys([*known, *unproven])
        if node not in acknowledgements
    ]
    return rows


def _of_node(file: Path, node: str, list_name: str, keys: Path, now: datetime) -> Acknowledgement:
    """Read, verify and parse a node's acknowledgement of a list.

    Raises:
        ReleaseRefused: if it is not valid.
        OSError: if the file cannot be read.
    """
    acknowledgement = verify_acknowledgement(_content(file), file.name, keys, now)
    if (acknowledgement.node, acknowledgement.list) != (node, list_name):
        raise ReleaseRefused(
            "acknowledgement",
            f"{file.name} is the acknowledgement of {acknowledgement.node} for {acknowledgement.list}",
        )
    return acknowledgement


def node_status(index: FolderIndex, acknowledgement: Acknowledgement, now: datetime, within: timedelta) -> NodeStatus:
    """Compare a node's acknowledgement with the publisher's folder, and return the state of the node."""
    missed = sorted({(offer.serial, offer.issued) for offer in index.releases if offer.serial > acknowledgement.serial})
    late = now - datetime.fromisoformat(missed[0][1]) if missed else timedelta(0)
    content = index.content_of(acknowledgement.serial)
    state, detail = IN_STEP, ""
    if acknowledgement.serial > index.serial:
        state, detail = (
            DIFFERS,
            f"it has serial {acknowledgement.serial}, and {index.serial} is the newest in the folder",
        )
    elif content is not None and content != acknowledgement.content:
        state, detail = (
            DIFFERS,
            f"it has {acknowledgement.content[:12]} for serial {acknowledgement.serial}, and the release makes {content[:12]}",
        )
    elif now - datetime.fromisoformat(acknowledgement.made) > SILENT:
        state, detail = OLD, "it has not said for long what it has"
    elif (rejected := acknowledgement.rejected) is not None and (
        rejected.serial is None or rejected.serial > acknowledgement.serial
    ):
        subject = "the index" if rejected.serial is None else f"serial {rejected.serial}"
        state, detail = REJECTS, f"it rejected {subject} at {rejected.at}: {rejected.reason}"
    elif missed:
        state = BEHIND if late > within else LATE
    return NodeStatus(
        node=acknowledgement.node, list=acknowledgement.list, state=state, serial=acknowledgement.serial, behind=len({serial for serial, _ in missed}),
        late_s=max(0, int(late.total_seconds())), since=acknowledgement.since, acknowledged=acknowledgement.made, detail=detail,
    )  # fmt: skip


def acknowledged_entries(file: Path, lists: Mapping[str, ListSettings], *, now: datetime) -> ReleaseEntries:
    """Return the entries that a node has in force according to its acknowledgement.

    They are computed from the releases in the publisher's folder that contains the acknowledgement.

    Raises:
        ReleaseRefused: if the acknowledgement or a release is not valid.
        EirError: if the folder no longer has the releases.
    """
    folder = file.resolve().parent.parent
    index = load_index(folder)
    acknowledgement = verify_acknowledgement(_content(file), file.name, folder / NODES, now)
    if index is None or index.list != acknowledgement.list or acknowledgement.list not in lists:
        raise EirError(
            f"{file} is about list {acknowledgement.list}, and lies in no folder of that list that is configured here"
        )
    chain = _chain_to(index, acknowledgement.serial)
    if not chain or index.content_of(acknowledgement.serial) is None:
        raise EirError(f"{folder} has no releases any more that lead to serial {acknowledgement.serial}")
    manifests = [folder / offer.folder / offer.manifest for offer in chain]
    for path in manifests:
        issued = parse_manifest(path.read_bytes()).issued
        verify_release(path, lists, now=issued)
    with tempfile.TemporaryDirectory(prefix="eir-audit-") as room:
        contents = Contents(folder, acknowledgement.list, index.holds, lists[acknowledgement.list].layouts, Path(room))
        state, pages, _ = asyncio.run(contents.load(manifests))
    if state.content_digest != acknowledgement.content:
        raise ReleaseRefused(
            "acknowledgement",
            f"{acknowledgement.node} has {acknowledgement.content[:12]} in force, and release {acknowledgement.serial} makes {state.content_digest[:12]}",
        )
    return ReleaseEntries(parse_manifest(manifests[-1].read_bytes()), sorted(pages), now)


def _chain_to(index: FolderIndex, serial: int) -> Sequence[Offer]:
    """Return the releases to load for a serial: the newest full release up to it, then deltas."""
    offers = tuple(offer for offer in index.releases if offer.serial <= serial)
    if not any(offer.base is None for offer in offers):
        return ()
    return releases_to_load(
        FolderIndex(list=index.list, holds=index.holds, written=index.written, releases=offers), None, 0
    )


def _unacknowledged(index: FolderIndex, node: str, why: str | None, *, known: bool) -> NodeStatus:
    return NodeStatus(
        node=node,
        list=index.list,
        state=NEVER if why is None else UNPROVEN,
        behind=len({offer.serial for offer in index.releases}),
        detail=why or "",
        known=known,
    )


def _hosts_in(signers: str) -> Iterator[str]:
    """Yield the host names in the text of an allowed_signers file."""
    for line in signers.splitlines():
        if line.strip() and not line.startswith("#"):
            yield from line.split()[0].strip('"').split(",")


def _content(file: Path) -> bytes:
    """Read an acknowledgement, which any node may have written, without blocking on a pipe or following a link."""
    with open_folder(file.parent) as folder:
        return read_small(file.name, folder, BYTES_MAX)


def _is_time(text: str) -> bool:
    try:
        return utc_text(datetime.fromisoformat(text)) == text
    except ValueError:
        return False


def as_rows(found: Sequence[NodeStatus]) -> list[dict[str, Any]]:
    """Return the states of nodes as rows for tables and for JSON."""
    return [asdict(each) for each in found]
