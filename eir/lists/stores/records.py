"""Parts that all stores share: format version, decoding of records, the check of free room, and errors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from eir.errors import Report, StoreError
from eir.lists.log.change import Change, Head, RecordType, decode
from eir.lists.log.store import LogEntry, StoredHeads

LOG_FORM = 4
"""Version of the store's format. A program does not use a store of another format."""
RECORD_BYTES_MAX = 1 << 20
"""Maximum size in bytes of a head or a change; another program wrote a longer one."""

VALUE_BYTES_MAX = 64 << 20
"""Maximum size in bytes of the reply to one command of Redis; another program wrote a longer value."""
SMALL_BYTES = 1 << 20
"""Size in bytes up to which a write may use the reserve, such as an operator's entries or a rollback of few rows."""
_MB = 1 << 20


def check_room(cause: str, where: str, advice: str, *, needs: int, free: int, reserve: int) -> None:
    """Raise StoreError (`cause`) if a write needs more bytes than are free above the reserve.

    Args:
        cause: cause of the error.
        where: store, for the message.
        advice: remedy, for the message.
        needs: size of the write in bytes.
        free: free bytes.
        reserve: bytes that must stay free, unless the write is small (SMALL_BYTES).
    """
    if needs <= SMALL_BYTES or needs <= free - reserve:
        return
    needs_text = f"{-(-needs // _MB):,} MB"
    free_text = f"{free // _MB:,} MB are free, of which {reserve // _MB:,} MB are kept for small changes"
    raise StoreError(cause, f"{where}: this needs about {needs_text}, and {free_text}; nothing was changed: {advice}")


def other_form(where: str, form: object) -> str:
    """Return the message for a store of another format."""
    return (
        f"{where} has format {form}, and this program has format {LOG_FORM}: write the lists with `eir export` of the program that wrote it, "
        "and load them into an empty store with `eir load` or `eir add --file`"
    )


def decode_stored(kind: type[RecordType], octets: str | bytes, subject: str) -> RecordType:
    """Decode a stored record. `subject`: the record, for the error.

    Raises:
        StoreError: `corrupt`.
    """
    if len(octets) > RECORD_BYTES_MAX:
        raise StoreError("corrupt", f"{subject} has more than {RECORD_BYTES_MAX} bytes")
    try:
        return decode(kind, octets)
    except (ValueError, RecursionError) as error:
        raise StoreError("corrupt", f"{subject} is damaged: {error}") from error


def stored_heads(heads: Mapping[str, tuple[bytes | str | StoreError, str]]) -> StoredHeads:
    """Return the heads of lists from their stored form, or the error instead, and the digests of their newest changes."""

    def head(name: str) -> Head:
        octets = heads[name][0]
        if isinstance(octets, StoreError):
            raise octets
        return decode_stored(Head, octets, f"the head of list {name}")

    return StoredHeads(
        {name: partial(head, name) for name in heads}, {name: digest for name, (_, digest) in heads.items()}
    )


def stored_entries(records: Iterable[tuple[bytes | str, bytes | None]]) -> list[LogEntry]:
    """Decode changes with their rows; a damaged change is left out."""
    entries = list[LogEntry]()
    for octets, rows in records:
        with suppress(StoreError):
            entries.append(LogEntry(decode_stored(Change, octets, "a change"), rows))
    return entries


def part_counts(change: Change) -> Sequence[tuple[str, int]]:
    """Return ID and number of the parts that a change names."""
    counts = ((change.rows_id, change.rows_parts), (change.base_id, change.base_parts))
    return [(part_id, count) for part_id, count in counts if part_id]


def staging_lost(name: str) -> StoreError:
    """Return the error for a change whose staged parts are incomplete."""
    return StoreError(
        "staging_lost",
        f"staged parts of list {name} are no longer in the store (expired, flushed, evicted); nothing was written: try again",
    )


@contextmanager
def deletion(name: str, report: Report) -> Iterator[None]:
    """Report a fault of the `with` block, which deletes old rows after a change was written, because the change is valid."""
    try:
        yield
    except StoreError as error:
        detail = (
            f"list {name} was changed, but its old rows stay until the next change with a base deletes them: {error}"
        )
        report("store_not_trimmed", level="warning", list=name, detail=detail)
