"""Acknowledgement: signed statement of a node about its lists in force, and the evaluation of these statements by the publisher.

A node has one document about all lists that it acknowledges on a server. The node signs with an OpenSSH key in its state folder, in
the namespace `eir-acknowledgement`. The publisher has the public keys of all nodes in an allowed_signers file, each with the node's
Origin-Host.
"""

import asyncio
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.audit import ReleaseEntries
from eir.lists.log.change import utc_text
from eir.lists.record.settings import ListSettings, is_list_name
from eir.lists.releases.document import (
    DIGEST,
    OBJECT,
    SERIAL,
    TEXT,
    TIME,
    Expected,
    integer,
    members,
    parse_document,
)
from eir.lists.releases.openssh import sign_document, verify_document
from eir.lists.releases.release import parse_manifest, verify_release
from eir.lists.rows.delivered import open_folder, read_small
from eir.lists.sources.folder_index import AHEAD_MAX, FolderIndex, Offer, releases_to_load
from eir.lists.sources.folder_writer import Contents, load_index

FORMAT, NAMESPACE = "eir-acknowledgement/2", "eir-acknowledgement"
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
_ACKNOWLEDGEMENT = {
    "node": TEXT, "made": TIME, "lists": Expected(dict, lambda lists: all(map(is_list_name, lists)), "an object with lists"),
}  # fmt: skip
_STATEMENT = {"serial": integer(0), "content": DIGEST, "since": TIME}
_OPTIONAL = {"release": DIGEST, "rejected": OBJECT}
_REJECTION = {"reason": Expected(str, re.compile(r"[a-z0-9_]{1,40}").fullmatch, "a short word"), "at": TIME}


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


@dataclass(frozen=True, slots=True)
class ListStatement:
    """Statement about one list in force. Times are UTC texts that end with Z."""

    serial: int
    release: str | None
    """SHA-256 of the manifest in force; None without one."""
    content: str
    """Digest of the list in force (Head.content)."""
    since: str
    """Time from which the content is in force."""
    rejected: Rejection | None = None
    """Last rejection, if the node has accepted no release or index of the source since then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Statement of a node about the lists that it has in force."""

    node: str
    """Origin-Host of the node."""
    made: str
    """UTC time of the statement, with a Z."""
    lists: Mapping[str, ListStatement]

    @property
    def name(self) -> str:
        """File name of the acknowledgement."""
        return f"{self.node}{ENDS}"


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
    text = json.dumps({"format": FORMAT, **asdict(acknowledgement)}, indent=1) + "\n"
    return sign_document(text.encode(), key, NAMESPACE)


def read_acknowledgement(file: Path, keys: Path, now: datetime) -> Acknowledgement:
    """Read an uploaded acknowledgement, without following a link or blocking on a pipe; verify its signature and parse it.

    `keys`: allowed_signers file with the keys of the nodes.

    Raises:
        ReleaseRefused: if the signature is not that of the node in the file's name, or a member is wrong.
        OSError: if the file cannot be read.
    """
    with open_folder(file.parent) as folder:
        content = read_small(file.name, folder, BYTES_MAX)
    document, signature = verify_document(content, file.name, keys, now, namespace=NAMESPACE)
    values = members(
        parse_document(document, FORMAT, file.name, "acknowledgement"), _ACKNOWLEDGEMENT, "acknowledgement"
    )
    acknowledgement = Acknowledgement(
        **values | {"lists": {name: _statement(each) for name, each in values["lists"].items()}}
    )
    node = acknowledgement.node
    if node not in signature.principals or file.name != acknowledgement.name:
        signers = ", ".join(signature.principals)
        raise ReleaseRefused("acknowledgement", f"{file.name} is signed by {signers}, and is the statement of {node}")
    if datetime.fromisoformat(acknowledgement.made) > now + AHEAD_MAX:  # a time in the future would never be old
        fault = f"{file.name} was made {acknowledgement.made}, and it is {utc_text(now)}"
        raise ReleaseRefused("acknowledgement", fault)
    return acknowledgement


def _statement(document: Any) -> ListStatement:
    """Return a statement about one list. Its members `release` and `rejected`, and the serial of a rejection, may be missing."""
    present = {
        name: value
        for name, value in _OPTIONAL.items()
        if isinstance(document, dict) and document.get(name) is not None
    }
    values = members(document, _STATEMENT | present, "acknowledgement", 'a member of "lists"')
    if "rejected" in present:
        serial = {} if values["rejected"].get("serial") is None else {"serial": SERIAL}
        values["rejected"] = Rejection(**members(values["rejected"], _REJECTION | serial, "acknowledgement"))
    return ListStatement(**{"release": None, **values})


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
    files = {path.name.removesuffix(ENDS): path for path in (folder / ACKNOWLEDGED).glob(f"*{ENDS}")}
    unproven = dict.fromkeys(sorted(files.keys() - set(known)), f"it has no key in {keys}")
    statements: dict[str, tuple[str, ListStatement]] = {}
    for node in files.keys() & set(known):
        try:
            acknowledgement = read_acknowledgement(files[node], keys, now)
            statements[node] = acknowledgement.made, acknowledgement.lists[index.list]
        except KeyError:
            unproven[node] = f"{files[node].name} has no statement about {index.list}"
        except (ReleaseRefused, OSError) as error:
            unproven[node] = str(error)
    index = load_index(folder) or index  # nodes may already have a release that was published meanwhile
    others = [node for node in dict.fromkeys([*known, *unproven]) if node not in statements]
    statuses = [node_status(index, node, *statements[node], now, within) for node in known if node in statements]
    statuses += [_unacknowledged(index, node, unproven.get(node), known=node in known) for node in others]
    return statuses


def node_status(  # noqa: PLR0917 - a row of a table
    index: FolderIndex, node: str, made: str, statement: ListStatement, now: datetime, within: timedelta
) -> NodeStatus:
    """Compare a node's statement of the time `made` with the releases in the publisher's folder; return the status of the node."""
    serial = statement.serial
    missing = [offer for offer in index.releases if offer.serial > serial]
    late = timedelta(0)
    if missing:
        oldest = min(missing, key=lambda offer: (offer.serial, offer.issued))
        late = now - datetime.fromisoformat(oldest.issued)
    state, detail = _node_state(index, statement, now - datetime.fromisoformat(made))
    if state == IN_STEP and missing:
        state = BEHIND if late > within else LATE
    return NodeStatus(
        node=node, list=index.list, state=state, serial=serial, behind=len({offer.serial for offer in missing}),
        late_s=max(0, int(late.total_seconds())), since=statement.since, acknowledged=made, detail=detail,
    )  # fmt: skip


def _node_state(index: FolderIndex, statement: ListStatement, age: timedelta) -> tuple[str, str]:
    """Return the state of a node, and a text that explains the state. Releases that the node has not loaded yet are not considered."""
    serial = statement.serial
    if serial > index.serial:
        return DIFFERS, f"it has serial {serial}, and {index.serial} is the newest in the folder"
    content = index.content_of(serial)
    if content is not None and content != statement.content:
        return DIFFERS, f"it has {statement.content[:12]} for serial {serial}, and the release makes {content[:12]}"
    if age > SILENT:
        return OLD, "its last statement is old"
    rejected = statement.rejected
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
    acknowledgement = read_acknowledgement(file, folder / NODES, now)
    if index is None or index.list not in acknowledgement.lists or index.list not in lists:
        raise EirError(f"{file} lies in no folder of a list that it is about and that is configured here")
    name, statement = index.list, acknowledgement.lists[index.list]
    chain = _chain_to(index, statement.serial)
    if not chain or index.content_of(statement.serial) is None:
        raise EirError(f"{folder} has no releases any more that lead to serial {statement.serial}")
    paths = [folder / offer.name for offer in chain]
    manifests = [parse_manifest(path.read_bytes()) for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        verify_release(path, lists, now=manifest.issued)
    with tempfile.TemporaryDirectory(prefix="eir-audit-") as temporary:
        contents = Contents(folder, name, index.holds, Path(temporary))
        content = asyncio.run(contents.load(paths))
    if content.head.content != statement.content:
        fault = f"{acknowledgement.node} has {statement.content[:12]} in force, and release {statement.serial} makes {content.head.content[:12]}"
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


def as_rows(statuses: Sequence[NodeStatus]) -> list[dict[str, Any]]:
    """Convert the statuses of nodes to rows for tables and for JSON."""
    return [asdict(status) for status in statuses]
