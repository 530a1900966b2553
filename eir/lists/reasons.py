"""The reason that a list gives for an identifier, read from the store: it is not held in memory. Knows no particular store."""

from eir.errors import StoreError
from eir.lists.held import rank
from eir.lists.pages import PAGE_KEYS, REASONS, SUBSCRIBERS, UNTIL, Page, decode_keys, decode_sections
from eir.lists.store import ListStore


async def reason_of(store: ListStore, name: str, key: int, *, now: float = 0) -> str | None:
    """The reason that a list gives for a key, read from the store; None if the key is not listed or has no reason.

    That of the identifier's own row counts before that of its TAC, which is shown where there is no such row, or it has no
    reason, or it ended by `now` (Unix seconds; 0: ends do not matter). Raises StoreError.
    """
    state, pages = await store.some_pages(name, [key // PAGE_KEYS])
    if state is None or not pages:
        return None
    try:
        numbers = _reasons_in(pages[0], key % PAGE_KEYS, now)
    except (ValueError, IndexError) as error:
        raise StoreError("corrupt", f"page {pages[0].number} is damaged: {error}") from error
    texts = (state.reasons[number] if number < len(state.reasons) else "other" for number in numbers)
    return next((text for text in texts if text), None)  # the first text stands for rows without a reason


def _reasons_in(page: Page, remainder: int, now: float) -> list[int]:
    """The bytes of the reasons for which a page lists a key at that time, the narrower first."""
    singles, found = page.singles, []
    position = rank(decode_keys(singles.keys), remainder)
    if position >= 0:
        sections = decode_sections(singles.extra)
        reasons, ends = sections.get(REASONS, b""), sections.get(UNTIL, bytes(8))
        at = 8 * position if len(ends) > 8 else 0
        # The ends of pairs are those of SIMs; the reason is the device's.
        end = 0 if SUBSCRIBERS in sections else int.from_bytes(ends[at : at + 8], "little", signed=True)
        if reasons and (not end or end > now):
            found.append(reasons[0] if len(reasons) == 1 else reasons[position])
    if (tac := page.tac) is not None and tac.reason and (not tac.until or tac.until > now):
        found.append(tac.reason)
    return found
