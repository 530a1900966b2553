"""Reasons of entries: the table of texts whose indexes are stored in pages."""

from collections.abc import Iterable, Sequence

import numpy as np

from eir.errors import EntryRefused
from eir.lists.pages.content import as_corrupt, decode
from eir.lists.pages.pages import PAGE_KEYS, decode_sections
from eir.lists.record.store import ListState, ListStore

REASON_CHARS_MAX = 200
REASONS_MAX = 255
OTHER_REASON = "other"


def check_reason(text: str) -> None:
    """Raise EntryRefused unless the text is a valid reason: one line of at most REASON_CHARS_MAX characters."""
    if not text.strip() or not text.isprintable() or len(text) > REASON_CHARS_MAX:
        raise EntryRefused(f"a reason is needed: one line of at most {REASON_CHARS_MAX} characters")


class Reasons:
    """Table of reason texts by index, in the order of their first use. Index 0 is the empty text: no reason."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        """Create a table of reasons; `known` has the texts whose indexes the pages of the list already use."""
        self._texts = list(known) or [""]
        self._index = {text: index for index, text in enumerate(self._texts[:REASONS_MAX])}

    @property
    def texts(self) -> tuple[str, ...]:
        """All reason texts in the form of ListState.reasons; empty if no row has a reason."""
        return tuple(self._texts) if len(self._texts) > 1 else ()

    @property
    def known(self) -> Sequence[str]:
        """Reason texts that have their own index. Later texts share the index of `other`."""
        return self._texts[:REASONS_MAX]

    def index(self, text: str) -> int:
        """Return the index of a reason text; after 255 texts, new texts become `other`.

        A text has at most REASON_CHARS_MAX characters.
        """
        if text not in self._index and len(self._texts) < REASONS_MAX:
            self._index[text] = len(self._texts)
            self._texts.append(text)
        elif text not in self._index and len(self._texts) == REASONS_MAX:
            self._texts.append(OTHER_REASON)
        return self._index.get(text, REASONS_MAX)


async def reason_bytes(
    texts: Iterable[str], state: ListState, store: ListStore, name: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the indexes of `texts` in a list's reasons, and all reasons of the list including new ones.

    Each full release brings all its reasons, but the reasons of operators accumulate over the years. So the index of a
    reason that no entry has any more is reused. If the list changes meanwhile, the store rejects the change that uses
    the index.

    Raises:
        StoreError: if the list cannot be read.
    """
    known = Reasons(state.reasons)
    indexes = {text: known.index(text) for text in texts}
    if REASONS_MAX not in indexes.values():
        return indexes, known.texts
    used = {0, REASONS_MAX, *indexes.values()}
    async for _, batch in store.pages(name):
        for page in batch:
            used.update(decode_sections(page.extra).reasons)
            if page.tac is not None:
                used.add(page.tac.reason)
    free = (byte for byte in range(REASONS_MAX) if byte not in used)
    new_texts = list(known.texts)
    for text in [text for text, byte in indexes.items() if byte == REASONS_MAX]:
        indexes[text] = next(free, REASONS_MAX)
        if indexes[text] < REASONS_MAX:
            new_texts[indexes[text]] = text
    if REASONS_MAX not in indexes.values():
        del new_texts[max(len(state.reasons), REASONS_MAX) :]
    return indexes, tuple(new_texts)


def reason_text(state: ListState, byte: int) -> str:
    """Return the text of a reason index of a list; an empty text for index 0."""
    if not byte:
        return ""
    return state.reasons[byte] if byte < len(state.reasons) else OTHER_REASON


async def reason_of(store: ListStore, name: str, key: int, *, now: float = 0) -> str | None:
    """Read from the store the reason that a list has for a key; None if the key has no row or no reason.

    The reason of the identifier's own row has priority. The reason of its TAC counts if there is no such row, if the
    row has no reason, or if the row has ended by `now` (Unix seconds; 0: ends are ignored).

    Raises:
        StoreError: if the list cannot be read.
    """
    state, pages = await store.some_pages(name, [key // PAGE_KEYS])
    if state is None or not pages:
        return None
    with as_corrupt(f"page {pages[0].number} is damaged"):
        low, reasons, until, tac = decode(pages[0])
    entries = [(int(reasons[at]), until[at]) for at in np.flatnonzero(low == key % PAGE_KEYS)]
    if tac is not None:
        entries.append(tac)
    byte = next((reason for reason, end in entries if reason and (not end or end > now)), 0)
    return reason_text(state, byte) or None
