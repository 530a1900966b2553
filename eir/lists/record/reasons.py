"""Reasons of list entries. A list has one table of reason texts; each entry refers to its text by an index."""

from collections.abc import Sequence

from eir.errors import EntryRefused

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
        """Create a table of reasons; `known`: texts that the list has already (Head.reasons)."""
        self._texts = list(known) or [""]
        self._index = {text: index for index, text in enumerate(self._texts[:REASONS_MAX])}

    @property
    def texts(self) -> tuple[str, ...]:
        """Reason texts in the form of Head.reasons; empty if no entry of the list has a reason."""
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


def reason_at(texts: Sequence[str], index: int) -> str:
    """Return the reason text for an index in the reason table of a list; an empty text for index 0."""
    if not index:
        return ""
    return texts[index] if index < len(texts) else OTHER_REASON


def unknown_reasons(texts: Sequence[str], chosen: Sequence[str]) -> str:
    """Return a warning about chosen reasons that no entry of a list has; empty if the list has all."""
    unknown = [reason for reason in chosen if reason not in texts]
    expected = f"expected reasons of the list: {', '.join(texts[1:])}" if texts else "none of its entries has a reason"
    return f"no entry has the reason {', '.join(unknown)}; {expected}" if unknown else ""
