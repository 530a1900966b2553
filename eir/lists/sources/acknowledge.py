"""Acknowledgements: signed statements of nodes about their lists in force, and the evaluation of these statements by the publisher.

A statement includes the time from which the content is in force, and the release or index that the node rejected last.

The node signs with an OpenSSH key in its state folder, in the namespace `eir-acknowledgement`. The publisher has the public keys of
all nodes in an allowed_signers file, each with the node's Origin-Host.
"""

import asyncio
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.audit import ReleaseEntries
from eir.lists.log.change import utc_text
from eir.lists.record.settings import ListSettings, is_list_name
from eir.lists.releases.openssh import sign_document, verify_document
from eir.lists.releases.release import SERIAL_MAX, is_utc_text, member, parse_manifest, verify_release
from eir.lists.rows.delivered import open_folder, read_small
from eir.lists.sources.folder import AHEAD_MAX, FolderIndex, Offer, is_digest, releases_to_load
from eir.lists.sources.folder_writer import Contents, load_index

FORMAT, NAMESPACE = "eir-acknowledgement/1", "eir-acknowledgement"
KEY = "acknowledgement.key"
"""Name of the node's key in its state folder. The first acknowledgement creates the key."""
ACKNOWLEDGED = "acknowledgements"
"""Subfolder of a publisher's folder to which nodes upload their acknowledgements."""
ENDS = ".ack"
"""End of the file name of an acknowledgement."""
NODES = "nodes"
"""File of a publisher's folder with the nodes' public keys."""
BYTES_MAX = 1 << 16
SILENT = timedelta(days=2)
"""Age after which an acknowledgement is old. A node sends an acknowledgement each day, even without a change."""
IN_STEP = "in step"
LATE = "on its way"
BEHIND = "behind"
DIFFERS = "differs"
UNPROVEN = "unproven"
OLD = "silent"
NEVER = "never"
REJECTS = "rejects"
STATES = (IN_STEP, LATE, BEHIND, DIFFERS, UNPROVEN, OLD, NEVER, REJECTS)
_REASON = re.compile(r"[a-z0-9_]{1,40}")
_member = partial(member, reason="acknowledgement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Release or index that a node rejected.

    The rejection's detail is not included, because it may contain rows and paths of the node.
    """

    reason: str
    """Reason word, as in ReleaseRefused."""
    at: str
    """UTC time of the rejection, with a Z; of several equal rejections in succession, the time of the first."""
    serial: int | None = None
    """Serial of the rejected release; None for a rejected index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Statement of a node about the list that it has in force. Times are UTC texts that end with Z."""

    node: str
    """Origin-Host of the node."""
    list: str
    serial: int
    content: str
    """Digest of the list in force (Head.content)."""
    since: str
    """Time from which the content is in force."""
    made: str
    rejected: Rejection | None = None
    """Last rejection, if the node has accepted no release or index of the source since then. The document lacks this member if it is None."""

    @property
    def name(self) -> str:
        """File name of the acknowledgement."""
        return f"{self.node}.{self.list}{ENDS}"


def load_key(state: Path) -> Path:
    """Return the path of the node's key for acknowledgements; create the key if it does not exist.

    Raises:
        EirError: if the key cannot be created.
    """
    key = state / KEY
    if key.exists():
        return key
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "eir", "-f", str(key)]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise EirError(f"ssh-keygen cannot be run: {error}; install OpenSSH's client") from None
    if result.returncode and not key.exists():
        fault = result.stderr.decode(errors="replace").strip()
        raise EirError(f"the key {key} cannot be made: {fault}")
    return key


def signer_line(key: Path, node: str) -> str:
    """Return the line of an allowed_signers file by which a publisher trusts the node's key."""
    public_key = key.with_name(f"{key.name}.pub").read_text()
    kind, encoded = public_key.split()[:2]
    return f'{node} namespaces="{NAMESPACE}" {kind} {encoded}'


def sign_acknowledgement(acknowledgement: Acknowledgement, key: Path) -> bytes:
    """Encode an acknowledgement as JSON, sign the document, and return the document with its signature.

    Raises:
        ReleaseRefused: as openssh.sign.
    """
    document = {"format": FORMAT, **asdict(acknowledgement)}
    if acknowledgement.rejected is None:
        del document["rejected"]
    text = json.dumps(document, indent=1) + "\n"
    return sign_document(text.encode(), key, NAMESPACE)


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
        since=_member(members, "since", str, is_utc_text, "a time"), made=_member(members, "made", str, is_utc_text, "a time"),
        rejected=_rejection(members),
    )  # fmt: skip
    if acknowledgement.node not in signature.principals:
        signers = ", ".join(signature.principals)
        raise ReleaseRefused("acknowledgement", f"{name} is signed by {signers}, and speaks for {acknowledgement.node}")
    if datetime.fromisoformat(acknowledgement.made) > now + AHEAD_MAX:  # a time in the future would never be old
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
    reason = _member(rejected, "reason", str, _REASON.fullmatch, "a short word")
    at = _member(rejected, "at", str, is_utc_text, "a time")
    serial = rejected.get("serial")
    if serial is not None:
        serial = _member(rejected, "serial", int, lambda number: 1 <= number <= SERIAL_MAX, "a serial")
    return Rejection(reason=reason, at=at, serial=serial)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """Status of one node for a publisher: its acknowledgement compared with the releases in the folder."""

    node: str
    list: str
    state: str
    """One of STATES."""
    serial: int | None = None
    behind: int = 0
    """Number of releases that the node lacks."""
    late_s: int = 0
    """Seconds since the oldest of the missing releases was issued."""
    since: str | None = None
    acknowledged: str | None = None
    """Time of the last acknowledgement."""
    detail: str = ""
    known: bool = True
    """False for a stranger: a node that has uploaded an acknowledgement, and whose key the publisher does not have."""


def node_statuses(folder: Path, *, now: datetime, within: timedelta, nodes: Path | None = None) -> list[NodeStatus]:
    """Return the status of each node whose key is in the publisher's file, or that has uploaded an acknowledgement.

    Args:
        folder: publisher's folder.
        now: present time.
        within: time that a node may take to put a release in force.
        nodes: allowed_signers file with the keys of the nodes; None: file `nodes` in the folder.

    Raises:
        EirError: if the folder or the file of nodes cannot be read.
    """
    index = load_index(folder)
    if index is None:
        raise EirError(f"{folder} is no folder of `eir publish --to`: it has no index")
    keys = nodes or folder / NODES
    try:
        known = list(_hosts_in(keys.read_text()))
    except OSError as error:
        fault = f"the nodes' public keys {keys} cannot be read: {error.strerror}"
        raise EirError(f"{fault}; write there the output of `eir acknowledge --key` of each node") from None
    end = f".{index.list}{ENDS}"
    files = {path.name.removesuffix(end): path for path in (folder / ACKNOWLEDGED).glob(f"*{end}")}
    strangers = sorted(files.keys() - set(known))
    unproven = dict.fromkeys(strangers, f"it has no key in {keys}")
    acknowledgements: dict[str, Acknowledgement] = {}
    for node in files.keys() & set(known):
        try:
            acknowledgements[node] = _read_acknowledgement(files[node], node, index.list, keys, now)
        except (ReleaseRefused, OSError) as error:
            unproven[node] = str(error)
    index = load_index(folder) or index  # nodes may already have a release that was published meanwhile
    acknowledging = [node for node in known if node in acknowledgements]
    others = [node for node in dict.fromkeys([*known, *unproven]) if node not in acknowledgements]
    statuses = [node_status(index, acknowledgements[node], now, within) for node in acknowledging]
    statuses += [_unacknowledged(index, node, unproven.get(node), known=node in known) for node in others]
    return statuses


def _read_acknowledgement(file: Path, node: str, list_name: str, keys: Path, now: datetime) -> Acknowledgement:
    """Read, verify and parse a node's acknowledgement of a list.

    Raises:
        ReleaseRefused: if the acknowledgement is not valid.
        OSError: if the file cannot be read.
    """
    acknowledgement = verify_acknowledgement(_content(file), file.name, keys, now)
    if (acknowledgement.node, acknowledgement.list) != (node, list_name):
        fault = f"{file.name} is the acknowledgement of {acknowledgement.node} for {acknowledgement.list}"
        raise ReleaseRefused("acknowledgement", fault)
    return acknowledgement


def node_status(index: FolderIndex, acknowledgement: Acknowledgement, now: datetime, within: timedelta) -> NodeStatus:
    """Compare an acknowledgement with the releases in the publisher's folder; return the status of the node."""
    serial = acknowledgement.serial
    missing = [offer for offer in index.releases if offer.serial > serial]
    late = timedelta(0)
    if missing:
        oldest = min(missing, key=lambda offer: (offer.serial, offer.issued))
        late = now - datetime.fromisoformat(oldest.issued)
    state, detail = _node_state(index, acknowledgement, now)
    if state == IN_STEP and missing:
        state = BEHIND if late > within else LATE
    return NodeStatus(
        node=acknowledgement.node, list=acknowledgement.list, state=state, serial=serial, behind=len({offer.serial for offer in missing}),
        late_s=max(0, int(late.total_seconds())), since=acknowledgement.since, acknowledged=acknowledgement.made, detail=detail,
    )  # fmt: skip


def _node_state(index: FolderIndex, acknowledgement: Acknowledgement, now: datetime) -> tuple[str, str]:
    """Return the state of a node, and a text that explains the state. Releases that the node has not loaded yet are not considered."""
    serial = acknowledgement.serial
    if serial > index.serial:
        return DIFFERS, f"it has serial {serial}, and {index.serial} is the newest in the folder"
    content = index.content_of(serial)
    if content is not None and content != acknowledgement.content:
        return (
            DIFFERS,
            f"it has {acknowledgement.content[:12]} for serial {serial}, and the release makes {content[:12]}",
        )
    if now - datetime.fromisoformat(acknowledgement.made) > SILENT:
        return OLD, "it has not said for long what it has"
    rejected = acknowledgement.rejected
    if rejected is None or (rejected.serial is not None and rejected.serial <= serial):
        return IN_STEP, ""
    subject = "the index" if rejected.serial is None else f"serial {rejected.serial}"
    return REJECTS, f"it rejected {subject} at {rejected.at}: {rejected.reason}"


def acknowledged_entries(file: Path, lists: Mapping[str, ListSettings], *, now: datetime) -> ReleaseEntries:
    """Return the entries of a list in the version that a node acknowledges, rebuilt from the publisher's releases.

    The entries are computed from the releases in the publisher's folder that contains the acknowledgement.

    Raises:
        ReleaseRefused: if the acknowledgement or a release is not valid.
        EirError: if the folder no longer has the releases.
    """
    folder = file.resolve().parent.parent
    index = load_index(folder)
    acknowledgement = verify_acknowledgement(_content(file), file.name, folder / NODES, now)
    name = acknowledgement.list
    serial = acknowledgement.serial
    if index is None or index.list != name or name not in lists:
        raise EirError(f"{file} is about list {name}, and lies in no folder of that list that is configured here")
    chain = _chain_to(index, serial)
    if not chain or index.content_of(serial) is None:
        raise EirError(f"{folder} has no releases any more that lead to serial {serial}")
    paths = [folder / offer.folder / offer.manifest for offer in chain]
    manifests = [parse_manifest(path.read_bytes()) for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        verify_release(path, lists, now=manifest.issued)
    with tempfile.TemporaryDirectory(prefix="eir-audit-") as temporary:
        contents = Contents(folder, name, index.holds, Path(temporary))
        content = asyncio.run(contents.load(paths))
    if content.head.content != acknowledgement.content:
        fault = f"{acknowledgement.node} has {acknowledgement.content[:12]} in force, and release {serial} makes {content.head.content[:12]}"
        raise ReleaseRefused("acknowledgement", fault)
    return ReleaseEntries(manifests[-1], content.table, now)


def _chain_to(index: FolderIndex, serial: int) -> Sequence[Offer]:
    """Return the releases to load, in order, to reach a serial: the newest full release up to the serial, then the deltas after it."""
    offers = tuple(offer for offer in index.releases if offer.serial <= serial)
    if all(offer.base is not None for offer in offers):
        return ()
    return releases_to_load(replace(index, releases=offers), None, 0)


def _unacknowledged(index: FolderIndex, node: str, fault: str | None, *, known: bool) -> NodeStatus:
    """Return the status of a node that has no valid acknowledgement. `fault`: why its acknowledgement is invalid."""
    state = NEVER if fault is None else UNPROVEN
    serials = {offer.serial for offer in index.releases}
    return NodeStatus(node=node, list=index.list, state=state, behind=len(serials), detail=fault or "", known=known)


def _hosts_in(signers: str) -> Iterator[str]:
    """Yield the host names in the text of an allowed_signers file."""
    for line in signers.splitlines():
        if line.strip() and not line.startswith("#"):
            principals = line.split()[0]
            yield from principals.strip('"').split(",")


def _content(file: Path) -> bytes:
    """Read an uploaded acknowledgement safely: without following a link or blocking on a pipe."""
    with open_folder(file.parent) as folder:
        return read_small(file.name, folder, BYTES_MAX)


def as_rows(statuses: Sequence[NodeStatus]) -> list[dict[str, Any]]:
    """Convert the statuses of nodes to rows for tables and for JSON."""
    return [asdict(status) for status in statuses]
