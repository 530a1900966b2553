"""The records of the contract as text, as all stores write them.

A record is a JSON object of its fields. Readers pass over fields that they do not know, so that nodes of two versions can
share a store while one after the other is upgraded.
"""

import json
from array import array
from collections.abc import Container, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, get_type_hints

from eir.errors import Report, StoreError
from eir.lists.pages.pages import NUMBER_BITS
from eir.lists.record.store import Change, Event, Ledger, ListState

FORM = 3
"""Version of the stored form (2 had no chain for the rows of feeds). A program changes nothing in a store of a higher version."""
OLDEST_FORM = 2
"""Lowest version that this program reads and brings to its own."""
VALUE_BYTES_MAX = 64 << 20
"""No page and no record of ours is longer: readers leave anything longer alone."""
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
    """The reason why data of this form are not changed.

    None if they may be: the form is known, or not written down, as in old data.
    """
    try:
        found = 0 if form is None else int(form)
    except ValueError:
        found = FORM + 1
    if found <= FORM:
        return None
    said = form.decode(errors="replace") if isinstance(form, bytes) else form
    return f"{where} was written by a newer eir (form {said}, this one knows {FORM}): it is read, and nothing in it is changed; upgrade eir"


def check_form(where: str, form: str | bytes | int | None) -> None:
    """Raise StoreError (schema) if data of this form must not be changed."""
    if (newer := newer_form(where, form)) is not None:
        raise StoreError("schema", newer)
    check_oldest(where, form)


def check_oldest(where: str, form: str | bytes | int | None) -> None:
    """Raise StoreError (schema) if this program reads no data of this form. None: a form that had no version yet."""
    found = 1 if form is None else int(form)
    if found < OLDEST_FORM:
        raise StoreError(
            "schema",
            f"{where} has form {found}, and this eir reads forms {OLDEST_FORM} to {FORM}: upgrade with an older eir first, or load the lists into an empty store",
        )


def log_upgrade(report: Report, where: str, form: str | bytes | int | None) -> None:
    """Log that the next write brings data of an older form to this program's form."""
    found = FORM if form is None else int(form)
    if found < FORM:
        detail = f"{where} has form {found}, and is brought to form {FORM} now: an older eir reads it from then on, if at all, and changes nothing"
        report("store_upgraded", level="warning", reason="older", detail=detail)


def encode(record: ListState | Event | Ledger) -> str:
    """A record as JSON."""
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))


def decode_state(record: str | bytes | dict[str, Any]) -> ListState:
    """The state out of its JSON, as text or read already. Raises StoreError (corrupt)."""
    fields = _known(_STATE_TYPES, record)
    try:
        for name in _STATE_TUPLES:
            fields[name] = tuple(fields.get(name, ()))
        state = ListState(**fields)
        wrong = _wrong_in(state)
    except (TypeError, ValueError) as error:
        raise StoreError("corrupt", f"a state in the store is not whole: {error}") from error
    if wrong:
        raise StoreError(
            "corrupt", f"a state in the store has another {wrong} than it may: {getattr(state, wrong)!r:.200}"
        )
    return state


def _wrong_in(state: ListState) -> str | None:
    """A field whose value is not of its type, out of range, or no time with a zone; JSON says nothing of these. Raises ValueError."""
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
    """The ledger from its JSON. Raises StoreError (corrupt)."""
    found = _known(_LEDGER_TYPES, text)
    wrong = [name for name, value in found.items() if not isinstance(value, _LEDGER_TYPES[name])]
    if wrong:
        raise StoreError(
            "corrupt", f"the ledger of the history has another {wrong[0]} than it may: {found[wrong[0]]!r:.200}"
        )
    return Ledger(**found)


def decode_event(text: str | bytes | dict[str, Any]) -> Event:
    """The event out of its JSON. Raises StoreError (corrupt)."""
    try:
        return Event(**_known(_EVENT_TYPES, text))
    except TypeError as error:
        raise StoreError("corrupt", f"an event in the store is not whole: {error}") from error


def encode_numbers(pages: Sequence[int] | None) -> bytes | None:
    """The numbers of the pages that a change touched, 8 bytes each, little-endian; None: all."""
    return None if pages is None else array("Q", pages).tobytes()


def decode_change(before: int, after: int, pages: bytes | None) -> Change:
    """The step from one generation to another, with page numbers as encoded above. Raises StoreError (corrupt)."""
    if type(before) is not int or type(after) is not int:
        raise StoreError("corrupt", f"a change in the store is from {before!r:.50} to {after!r:.50}")
    try:
        numbers = None if pages is None else tuple(array("Q", pages))
    except (TypeError, ValueError) as error:
        raise StoreError("corrupt", f"a change in the store names no pages: {error}") from error
    if numbers and max(numbers) >> NUMBER_BITS:
        raise StoreError("corrupt", f"a change in the store names the page {max(numbers)}, which cannot be")
    return Change(before, after, numbers)
