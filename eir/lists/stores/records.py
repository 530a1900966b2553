"""Encoding of states, events, ledgers and changes as text, the same for all stores.

A record is a JSON object of its fields. Readers ignore unknown fields, so that nodes of two versions can share a store during
an upgrade.
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
"""Version of the store's format (version 2 had no chain for feeds). A program does not write to a store of a newer version."""
OLDEST_FORM = 2
"""Oldest version that this program reads and upgrades."""
VALUE_BYTES_MAX = 64 << 20
"""Maximum size of a page or a record in bytes; readers skip longer values, because EIR never writes them."""
INTEGER_MAX = (1 << 63) - 1
_STATE_TYPES, _EVENT_TYPES, _LEDGER_TYPES = map(get_type_hints, (ListState, Event, Ledger))
_STATE_TUPLES = ("reasons", "signers")
_STATE_TIMES = ("issued", "expires", "loaded_at")


def _known(fields: Container[str], record: str | bytes | dict[str, Any]) -> dict[str, Any]:
    try:
        value = json.loads(record) if isinstance(record, str | bytes) else record
    except (ValueError, RecursionError) as error:
        raise StoreError("corrupt", f"a record in the store is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError("corrupt", "a record in the store is not a JSON object")
    return {name: each for name, each in value.items() if name in fields}


def newer_form(where: str, form: str | bytes | int | None) -> str | None:
    """Return the reason why data of a newer format must not be changed; None if this program knows the format.

    Data without a format version is old, so it may be changed.
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
    """Raise StoreError (`schema`) if this program must not change, or cannot read, data of this format."""
    if (newer := newer_form(where, form)) is not None:
        raise StoreError("schema", newer)
    check_oldest(where, form)


def check_oldest(where: str, form: str | bytes | int | None) -> None:
    """Raise StoreError (`schema`) if data has an older format than this program can read.

    `form` None: the data has no format version.
    """
    version = 1 if form is None else int(form)
    if version < OLDEST_FORM:
        raise StoreError(
            "schema",
            f"{where} has form {version}, and this eir reads forms {OLDEST_FORM} to {FORM}: upgrade with an older eir first, or load the lists into an empty store",
        )


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
    fields = _known(_STATE_TYPES, record)
    try:
        for name in _STATE_TUPLES:
            fields[name] = tuple(fields.get(name, ()))
        state = ListState(**fields)
        wrong = _invalid_field(state)
    except (TypeError, ValueError) as error:
        raise StoreError("corrupt", f"a state in the store is incomplete: {error}") from error
    if wrong:
        raise StoreError("corrupt", f"a state in the store has an invalid {wrong}: {getattr(state, wrong)!r:.200}")
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
        fits = all(isinstance(each, str) for each in value) if name in _STATE_TUPLES else isinstance(value, kind)
        out_of_range = kind is int and fits and not 0 <= value <= INTEGER_MAX
        if (
            not fits
            or out_of_range
            or (name in _STATE_TIMES and value and datetime.fromisoformat(value).tzinfo is None)
        ):
            return name
    return None


def decode_ledger(text: str | bytes) -> Ledger:
    """Decode a ledger of the history from JSON text.

    Raises:
        StoreError: `corrupt`.
    """
    fields = _known(_LEDGER_TYPES, text)
    wrong = [name for name, value in fields.items() if not isinstance(value, _LEDGER_TYPES[name])]
    if wrong:
        raise StoreError("corrupt", f"the ledger of the history has an invalid {wrong[0]}: {fields[wrong[0]]!r:.200}")
    return Ledger(**fields)


def decode_event(text: str | bytes | dict[str, Any]) -> Event:
    """Decode an event of the history from JSON text, or from parsed JSON.

    Raises:
        StoreError: `corrupt`.
    """
    try:
        return Event(**_known(_EVENT_TYPES, text))
    except TypeError as error:
        raise StoreError("corrupt", f"an event in the store is incomplete: {error}") from error


def encode_numbers(pages: Sequence[int] | None) -> bytes | None:
    """Encode the numbers of the changed pages, 8 bytes each in little-endian order; None for all pages."""
    return None if pages is None else array("Q", pages).tobytes()


def decode_change(before: int, after: int, pages: bytes | None) -> ListChange:
    """Decode a change of a list between two generations, with page numbers as `encode_numbers` encodes them.

    Raises:
        StoreError: `corrupt`.
    """
    if type(before) is not int or type(after) is not int:
        raise StoreError("corrupt", f"a change in the store is from {before!r:.50} to {after!r:.50}")
    try:
        numbers = None if pages is None else tuple(array("Q", pages))
    except (TypeError, ValueError) as error:
        raise StoreError("corrupt", f"a change in the store names no pages: {error}") from error
    if numbers and max(numbers) >> NUMBER_BITS:
        raise StoreError("corrupt", f"a change in the store names the page {max(numbers)}, which is invalid")
    return ListChange(before, after, numbers)
