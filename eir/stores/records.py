"""How stores write the records of the contract as text. Imports only eir.lists.

A record is a JSON object of its fields. Readers pass over fields that they do not know, so that nodes of two versions can
share a store while one after the other is upgraded.
"""

import dataclasses
import json
from typing import Any

from eir.errors import StoreError
from eir.lists.store import Event, ListState

_STATE_FIELDS = frozenset(field.name for field in dataclasses.fields(ListState))
_EVENT_FIELDS = frozenset(field.name for field in dataclasses.fields(Event))
_STATE_TUPLES = ("reasons", "signers")


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StoreError("corrupt", f"a record in the store is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError("corrupt", "a record in the store is no JSON object")
    return value


def encode(record: ListState | Event) -> str:
    """A state or an event as JSON."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, separators=(",", ":"))


def decode_state(text: str | bytes) -> ListState:
    """The state out of its JSON. Raises StoreError (corrupt)."""
    fields = {name: value for name, value in _object(text).items() if name in _STATE_FIELDS}
    for name in _STATE_TUPLES:
        fields[name] = tuple(fields.get(name, ()))
    try:
        return ListState(**fields)
    except TypeError as error:
        raise StoreError("corrupt", f"a state in the store is not whole: {error}") from error


def decode_event(text: str | bytes) -> Event:
    """The event out of its JSON. Raises StoreError (corrupt)."""
    try:
        return Event(**{name: value for name, value in _object(text).items() if name in _EVENT_FIELDS})
    except TypeError as error:
        raise StoreError("corrupt", f"an event in the store is not whole: {error}") from error
