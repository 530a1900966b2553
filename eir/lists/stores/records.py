"""Encoding of list states, events, ledgers and changes as text, the same for all stores.

Each is encoded as a JSON object of its fields, except a change. Readers ignore unknown fields, so that nodes of two versions
can share a store during an upgrade.
"""

import json
from array import array
from collections.abc import Container, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, get_type_hints

from eir.errors import Report, StoreError
from eir.lists.pages.pages import NUMBER_BITS
from eir.lists.record.store import Event, Ledger, ListChange, ListState

FORM = 3
"""Version of the store's format. Version 2 had no chain for feeds. A program does not write to a store of a newer version."""
OLDEST_FORM = 2
"""Oldest format version that this program reads and upgrades."""
VALUE_BYTES_MAX = 64 << 20
"""Maximum size in bytes of a page or a record. Readers skip longer values, which another program must have written."""
INTEGER_MAX = (1 << 63) - 1
_STATE_TYPES = get_type_hints(ListState)
_EVENT_TYPES = get_type_hints(Event)
_LEDGER_TYPES = get_type_hints(Ledger)
_STATE_TUPLES = ("reasons", "signers")
_STATE_TIMES = ("issued", "expires", "loaded_at")


def _known_fields(names: Container[str], record: str | bytes | dict[str, Any]) -> dict[str, Any]:
    """Return only those fields of a stored record that this program knows. `record`: JSON text, or parsed JSON."""
    try:
        fields = json.loads(record) if isinstance(record, str | bytes) else record
    except (ValueError, RecursionError) as error:
        raise StoreError("corrupt", f"a record in the store is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise StoreError("corrupt", "a record in the store is not a JSON object")
    return {name: value for name, value in fields.items() if name in names}


def newer_form(where: str, form: str | bytes | int | None) -> str | None:
    """If stored data has a newer format than this program supports, return the message that it only reads the data; otherwise None.

    Data without a format version (`form` None) is old.
    """
    try:
        version = 0 if form is None else int(form)
    except ValueError:
        version = FORM + 1
    if version <= FORM:
        return None
    form_text = form.decode(errors="replace") if isinstance(form, bytes) else form
    return f"{where} was written by a newer eir (form {form_text}, this one knows {FORM}): this eir only reads it; upgrade eir"


def check_form(where: str, form: str | bytes | int | None) -> None:
    """Raise StoreError (`schema`) if the format of stored data is too new or too old for this program."""
    reason = newer_form(where, form)
    if reason is not None:
        raise StoreError("schema", reason)
    check_oldest(where, form)


def check_oldest(where: str, form: str | bytes | int | None) -> None:
    """Raise StoreError (`schema`) if the format of stored data is too old for this program.

    `form` None: the data has no format version.
    """
    version = 1 if form is None else int(form)
    if version < OLDEST_FORM:
        fault = f"{where} has form {version}, and this eir reads forms {OLDEST_FORM} to {FORM}"
        remedy = "upgrade with an older eir first, or load the lists into an empty store"
        raise StoreError("schema", f"{fault}: {remedy}")


def log_upgrade(report: Report, where: str, form: str | bytes | int | None) -> None:
    """Log that the next write upgrades data of an older format."""
    version = FORM if form is None else int(form)
    if version < FORM:
        detail = f"{where} has form {version}, and is converted to form {FORM}: an older eir can no longer change it"
        report("store_upgraded", level="warning", reason="older", detail=detail)


def encode(record: ListState | Event | Ledger) -> str:
    """Encode a state, an event or a ledger as JSON."""
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))


def decode_state(record: str | bytes | dict[str, Any]) -> ListState:
    """Decode a list's state from JSON text, or from parsed JSON.

    Raises:
        StoreError: `corrupt`.
    """
    fields = _known_fields(_STATE_TYPES, record)
    try:
        for name in _STATE_TUPLES:
            fields[name] = tuple(fields.get(name, ()))
        state = ListState(**fields)
        invalid = _invalid_field(state)
    except (TypeError, ValueError) as error:
        raise StoreError("corrupt", f"a state in the store is incomplete: {error}") from error
    if invalid is not None:
        value = getattr(state, invalid)
        raise StoreError("corrupt", f"a state in the store has an invalid {invalid}: {value!r:.200}")
    return state


def _invalid_field(state: ListState) -> str | None:
    """Return the name of an invalid field of a state; None if the state is valid.

    A field is invalid if it has a wrong type, a value out of range, or a time without a zone.

    Raises:
        ValueError: if a text cannot be parsed.
    """
    int(state.content_digest, 16)
    for name, kind in _STATE_TYPES.items():
        value = getattr(state, name)
        is_valid = all(isinstance(text, str) for text in value) if name in _STATE_TUPLES else isinstance(value, kind)
        if is_valid and kind is int:
            is_valid = 0 <= value <= INTEGER_MAX
        if is_valid and value and name in _STATE_TIMES:
            is_valid = datetime.fromisoformat(value).tzinfo is not None
        if not is_valid:
            return name
    return None


def decode_ledger(text: str | bytes) -> Ledger:
    """Decode JSON text to a ledger: size, newest number and digest of one chain of the history.

    Raises:
        StoreError: `corrupt`.
    """
    fields = _known_fields(_LEDGER_TYPES, text)
    for name, value in fields.items():
        if not isinstance(value, _LEDGER_TYPES[name]):
            raise StoreError("corrupt", f"the ledger of the history has an invalid {name}: {value!r:.200}")
    return Ledger(**fields)


def decode_event(text: str | bytes | dict[str, Any]) -> Event:
    """Decode an event of the history from JSON text, or from parsed JSON.

    Raises:
        StoreError: `corrupt`.
    """
    fields = _known_fields(_EVENT_TYPES, text)
    try:
        return Event(**fields)
    except TypeError as error:
        raise StoreError("corrupt", f"an event in the store is incomplete: {error}") from error


def encode_numbers(pages: Sequence[int] | None) -> bytes | None:
    """Encode the page numbers of a list change: 8 bytes for each number, little-endian. None (all pages) stays None."""
    return None if pages is None else array("Q", pages).tobytes()


def decode_change(before: int, after: int, pages: bytes | None) -> ListChange:
    """Decode one change of a list from the change log. `before`, `after`: generations of the list. `pages`: encoded page numbers.

    Raises:
        StoreError: `corrupt`.
    """
    if type(before) is not int or type(after) is not int:
        raise StoreError("corrupt", f"a change in the store is from {before!r:.50} to {after!r:.50}")
    try:
        numbers = None if pages is None else tuple(array("Q", pages))
    except (TypeError, ValueError) as error:
        raise StoreError("corrupt", f"a change in the store names no pages: {error}") from error
    highest = max(numbers or (0,))
    if highest >> NUMBER_BITS:
        raise StoreError("corrupt", f"a change in the store names the page {highest}, which is invalid")
    return ListChange(before, after, numbers)
