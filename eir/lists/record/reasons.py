"""Reasons of list entries. A list has one table of reason texts; each entry refers to its text by an index."""

from collections.abc import Iterable, Sequence

import numpy as np

from eir.errors import EntryRefused
from eir.lists.pages.content import as_corrupt, decode
from eir.lists.pages.dates import decode_page_days
from eir.lists.pages.pages import PAGE_KEYS, decode_sections
from eir.lists.record.dates import read_dates
from eir.lists.record.store import ListState, ListStore

REASON_CHARS_MAX = 200
"""Maximum number of characters of a reason."""
REASONS_MAX = 255
"""Number of texts with their own index; this index itself stands for all other texts."""
OTHER_REASON = "other"


def check_reason(text: str) -> None:
    """Raise EntryRefused unless the text is a valid reason: one line of at most REASON_CHARS_MAX characters."""
    if not text.strip() or not text.isprintable() or len(text) > REASON_CHARS_MAX:
        raise EntryRefused(f"a reason is needed: one line of at most {REASON_CHARS_MAX} characters")


class Reasons:
    """Table of a list's reason texts by index, in the order of first use. Index 0 means no reason."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        """Create a table of reasons; `known`: texts that the list has already (ListState.reasons)."""
        self._texts = list(known) or [""]
        self._index = {text: index for index, text in enumerate(self._texts[:REASONS_MAX])}

    @property
    def texts(self) -> tuple[str, ...]:
        """Reason texts in the form of ListState.reasons; empty if no entry of the list has a reason."""
        return tuple(self._texts) if len(self._texts) > 1 else ()

    @property
    def known(self) -> Sequence[str]:
        """Reason texts of the table that have their own index; later texts share the index of the text `other`."""
        return self._texts[:REASONS_MAX]

    def index(self, text: str) -> int:
        """Return the index of a reason text, and add a new text to the table. If the table is full, return the index of the text `other`."""
        if text not in self._index:
            if len(self._texts) < REASONS_MAX:
                self._index[text] = len(self._texts)
                self._texts.append(text)
            elif len(self._texts) == REASONS_MAX:
                self._texts.append(OTHER_REASON)
        return self._index.get(text, REASONS_MAX)


async def reason_bytes(
    texts: Iterable[str], state: ListState, store: ListStore, name: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the index of each reason text in the table of a list, and the whole table. Texts that the table lacks are added.

    A full release replaces all reasons, but the reasons of operators accumulate over the years. So if the table is full,
    the index of a reason that no entry has is reused. If another writer changes the list meanwhile, the store rejects
    the change that uses the index.

    Raises:
        StoreError: if the list cannot be read.
    """
    reasons = Reasons(state.reasons)
    indexes = {text: reasons.index(text) for text in texts}
    other_texts = [text for text, index in indexes.items() if index == REASONS_MAX]
    if not other_texts:
        return indexes, reasons.texts
    used = {0, REASONS_MAX, *indexes.values()}
    async for _, batch in store.pages(name):
        for page in batch:
            used.update(decode_sections(page.extra).reasons)
            if page.tac is not None:
                used.add(page.tac.reason)
    new_texts = list(reasons.texts)
    free = [index for index in range(REASONS_MAX) if index not in used]
    for text, index in zip(other_texts, free, strict=False):
        indexes[text] = index
        new_texts[index] = text
    if len(free) >= len(other_texts):
        del new_texts[max(len(state.reasons), REASONS_MAX) :]
    return indexes, tuple(new_texts)


def reason_at(texts: Sequence[str], index: int) -> str:
    """Return the reason text for an index in the reason table of a list; an empty text for index 0."""
    if not index:
        return ""
    return texts[index] if index < len(texts) else OTHER_REASON


def reason_text(state: ListState, byte: int) -> str:
    """Return the reason text of a list for an index in a page; an empty text for index 0."""
    return reason_at(state.reasons, byte)


async def reason_and_day(store: ListStore, name: str, key: int, *, now: float = 0) -> tuple[str | None, int]:
    """Read from the store the reason and the day that a list has for a key; None without a reason, 0 without a day.

    The result is the reason of the identifier's own row. If there is no such row, or if it has no reason, or if it has
    ended by `now`, the result is the reason of the whole TAC. The same holds for the day. `now` is in Unix seconds; with
    0 no row has ended.

    Raises:
        StoreError: if the list cannot be read.
    """
    number = key // PAGE_KEYS
    _, dates = await read_dates(store, name, [number])
    state, pages = await store.some_pages(name, [number])
    if state is None or not pages:
        return None, 0
    with as_corrupt(f"page {number} is damaged"):
        low, reasons, until, tac = decode(pages[0])
        page_days = decode_page_days(pages[0], dates.get(number))
    at = np.flatnonzero(low == key % PAGE_KEYS)
    rows = [*zip(reasons[at].tolist(), until[at].tolist(), page_days.days[at].tolist(), strict=True)]
    if tac is not None:
        rows.append((*tac, page_days.tac))
    in_force = [(byte, day) for byte, end, day in rows if not end or end > now]
    reason = next((reason_text(state, byte) for byte, _ in in_force if byte), None)
    return reason or None, next((day for _, day in in_force if day), 0)
