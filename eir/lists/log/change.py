"""Records of a list: its changes, which form a hash chain, and its head, the state in force."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

from eir.lists.table.digest import EMPTY_CONTENT

SerialMark: TypeAlias = tuple[int, int]
"""Number of serial resets, and highest serial accepted since then. The mark of a list never decreases."""
NO_CHANGE = "0" * 64
"""Digest that the first change of a list has as the digest of the change before it."""
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""Form of times in UTC."""
ROLLBACK = "rollback"
RELEASE_KINDS = frozenset({"load", ROLLBACK, "restore"})
"""Kinds of change after which another release is in force."""
HEAL = "heal"
"""Kind of a write-back: a node writes its content to a store that lost or damaged the list."""
LEARN = "learn"
"""Kind of the changes of a learned list that nodes write."""
FORGET = "forget"
"""Kind of a change that removes a person: it has a base, and the rows of all changes before it are deleted."""
NEVER_UNDONE = frozenset({"feed", LEARN, FORGET, HEAL, "restore", "apply-again", "abandon"})
"""Kinds of changes of a local list that no rollback undoes, nor a change before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseInForce:
    """Release that a list has in force after a change. Times are texts in UTC with a Z at the end, or None."""

    kind: str = ""
    """Kind of the list (eir.lists.record.settings)."""
    serial: int = 0
    """Serial of the release; 0 for a local list."""
    highest_serial: int = 0
    """Highest serial of all accepted releases."""
    serial_resets: int = 0
    """Number of times that an operator set the highest serial back."""
    release: str = ""
    """SHA-256 of the manifest."""
    issued: str | None = None
    expires: str | None = None
    signers: tuple[str, ...] = ()
    """Principals whose signatures count, each with its key's fingerprint: `name SHA256:…`."""
    registered: tuple[str, ...] = ()
    """In a record of first sightings: `LIST GENERATION DIGEST` of each list that registers devices, whose removed rows the record has."""

    @property
    def mark(self) -> SerialMark:
        """Number of serial resets, and highest accepted serial; the serial of the next release must be higher."""
        return self.serial_resets, self.highest_serial


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(ReleaseInForce):
    """Change of a list, with the release in force after it."""

    generation: int
    """Number of the change; a later change of the list has a higher one."""
    before: str = NO_CHANGE
    """Digest of the change before."""
    continues: str = ""
    """Digest of the change whose content this change continues: of another chain for a write-back, a restore or a re-application, of the same
    chain for a rollback."""
    time: str
    """Time in UTC, as `2026-12-02T08:00:00Z`."""
    who: str
    """User and host."""
    what: str
    """Kind: load, rollback, reset-serial, add, remove, feed, learn, import, undo, forget, heal, restore, apply-again, abandon."""
    reasons: tuple[str, ...] = ()
    """Reason texts by the index in the table, if they differ from those before or the change has a base; otherwise empty.

    A change with rows only appends texts, so that indexes keep their meaning.
    """
    rows: str = ""
    """SHA-256 of the encoded rows; empty if the change has only a base."""
    rows_id: str = ""
    """ID of the parts with the rows; empty if the log entry has them."""
    rows_parts: int = 0
    rows_bytes: int = 0
    """Size of the encoded rows."""
    base: str = ""
    """SHA-256 of the base that this change writes: the whole content after it. Empty without a base."""
    base_id: str = ""
    base_parts: int = 0
    base_bytes: int = 0
    last_base: str = NO_CHANGE
    """Digest of the newest change before this one that has a base."""
    content: str = EMPTY_CONTENT
    """Content digest of the list after the change."""
    added: int = 0
    """Number of rows that the list has only after the change."""
    removed: int = 0
    lifted: tuple[str, ...] = ()
    """Limits that the operator lifted."""
    detail: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded change, which the next change contains."""
        return hashlib.sha256(encode(self)).hexdigest()

    @property
    def part_ids(self) -> tuple[str, ...]:
        """IDs of the parts that this change needs: of its rows and of its base."""
        return tuple(part_id for part_id in (self.rows_id, self.base_id) if part_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head(ReleaseInForce):
    """State of a list in force."""

    generation: int = 0
    digest: str = NO_CHANGE
    """Digest of the newest change."""
    content: str = EMPTY_CONTENT
    """Content digest."""
    base: int = 0
    """Generation of the newest change that has a base."""
    base_digest: str = NO_CHANGE
    """Digest of that change."""
    entries: int = 0
    """Number of rows."""
    devices: int = 0
    """Number of listed identifiers; a whole TAC has a million."""
    reasons: tuple[str, ...] = ()
    """Reason texts by the index in the table; after 255 texts the last one is `other`."""
    loaded_at: str | None = None
    """Time of the change that put the release in force; of a local list that of its newest change."""
    releases: tuple[str, ...] = ()
    """Times of the newest releases, oldest first; at most RELEASE_TIMES_MAX."""


def utc_text(moment: datetime) -> str:
    """Format a time as in manifests, changes and events: UTC in whole seconds with a Z at the end."""
    return moment.astimezone(UTC).strftime(TIME_FORMAT)


RELEASE_TIMES_MAX = 8
RecordType = TypeVar("RecordType", Change, Head)


def release_of(record: ReleaseInForce) -> dict[str, Any]:
    """Return the fields of the release in force, from which a change and a head are built."""
    return {field.name: getattr(record, field.name) for field in fields(ReleaseInForce)}


def following(head: Head, change: Change, *, entries: int, devices: int) -> Head:
    """Return the head after a change. `entries` and `devices` are those of the table after it."""
    is_release, is_local = change.what in RELEASE_KINDS, not change.highest_serial
    return replace(
        head,
        generation=change.generation,
        digest=change.digest,
        content=change.content,
        base=change.generation if change.base_id else head.base,
        base_digest=change.digest if change.base_id else head.base_digest,
        entries=entries,
        devices=devices,
        reasons=change.reasons or head.reasons,
        loaded_at=change.time if is_release or is_local or head.loaded_at is None else head.loaded_at,
        releases=(*head.releases, *[change.time] * (change.what == "load"))[-RELEASE_TIMES_MAX:],
        **release_of(change),
    )


def encode(record: Change | Head) -> bytes:
    """Encode a record as JSON. Equal records have equal bytes."""
    return json.dumps(asdict(record), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")


def decode(kind: type[RecordType], octets: str | bytes) -> RecordType:
    """Decode a record. Every field must be there with its type, so that the decoded record has the digest of the encoded one.

    Raises:
        ValueError: if the record is damaged.
    """
    document: Any = json.loads(octets)
    expected = {field.name: field.type for field in fields(kind)}
    if not isinstance(document, dict) or document.keys() != expected.keys():
        raise ValueError(f"a {kind.__name__.lower()} must have the fields {', '.join(expected)}")
    values = {name: _value(value, str(expected[name]), name) for name, value in document.items()}
    return kind(**values)


def _value(value: Any, form: str, name: str) -> Any:
    """Return the value of a field if it has the field's type; a JSON array as a tuple of texts."""
    if "tuple[str" in form and isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(value)
    is_valid = (
        (value is None and "None" in form)
        or (type(value) is int and "int" in form and value >= 0)
        or (isinstance(value, str) and "str" in form and "tuple" not in form)
    )
    if not is_valid:
        raise ValueError(f"field {name} must have the type {form}")
    return value


def first_break(changes: Sequence[Change], before: str) -> Change | None:
    """Return the first change that does not name the digest of the change before it; None if all do. `before`: digest that the first one names."""
    for change in changes:
        if change.before != before:
            return change
        before = change.digest
    return None


def restorable_releases(changes: Sequence[Change]) -> list[Change]:
    """Return the changes whose content a rollback can restore, oldest first; the last one has the content in force.

    For a signed list they are the newest change of each release, for a local list all changes since the newest one of NEVER_UNDONE.
    A rollback removes the changes that it undid.

    Args:
        changes: chain of a list, oldest first.
    """
    releases: list[Change] = []
    for change in changes:
        is_local = not change.highest_serial
        if change.what == ROLLBACK and change.continues in (digests := [release.digest for release in releases]):
            del releases[digests.index(change.continues) + 1 :]
            if is_local:
                continue
        if not is_local and releases and (change.serial, change.release) == (releases[-1].serial, releases[-1].release):
            releases.pop()
        elif is_local and change.what in NEVER_UNDONE:
            releases.clear()
        releases.append(change)
    return releases


def digests_of(changes: Iterable[Change]) -> frozenset[str]:
    """Return the digests that a chain contains: those of its changes, of the changes before, and of the changes that these continue."""
    return frozenset(
        digest for change in changes for digest in (change.digest, change.before, change.continues, change.last_base)
    )
