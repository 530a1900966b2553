"""Turnover of a list change: numbers of added and of removed devices, and the limits on them.

The difference of the sizes is not enough: two lists of the same size may have no device in common.
"""

from collections.abc import Collection, Iterable

from pyroaring import BitMap

from eir.lists.pages.content import decode, decode_pairs, has_pairs
from eir.lists.pages.pages import PAGE_KEYS, Page, decode_sections
from eir.lists.pages.roaring import decode_keys
from eir.lists.record.settings import SUBSCRIBERS, ListSettings

_WHOLE = BitMap(range(PAGE_KEYS))


def differences(before: Iterable[Page], after: Iterable[Page], now: float = 0.0) -> tuple[int, int]:
    """Return the number of identifiers added, and the number removed, between two states of a list.

    A whole TAC counts as 1,000,000 identifiers. An identifier that is covered by its TAC before and after is unchanged,
    also if its own entry is added or removed. In a list of pairs, a device counts as added if it gets a new IMSI, and as
    removed if it loses an IMSI. A damaged page of `before` counts as empty, so that a change can replace it.

    Args:
        before: pages before the change, all or only the changed ones.
        after: pages after the change, all or only the changed ones.
        now: time in Unix seconds; entries with an earlier expiry do not count. If 0, expiries are ignored.
    """
    old_pages = {page.number: page for page in before}
    added = removed = 0
    for page in after:
        old = old_pages.pop(page.number, None) or Page(page.number, b"")
        if page != old:
            page_added, page_removed = _count_changes(old, page, now)
            added += page_added
            removed += page_removed
    for old in old_pages.values():
        _, page_removed = _count_changes(old, Page(old.number, b""), now)
        removed += page_removed
    return added, removed


def exceeded_limits(settings: ListSettings, devices: int, come: int, gone: int) -> dict[str, str]:
    """Return the limits (`shrink`, `growth`) that a change of a list exceeds, each with a message.

    Args:
        settings: settings of the list.
        devices: number of listed identifiers before the change.
        come: number of added identifiers.
        gone: number of removed identifiers.

    A number below `change_min` exceeds no limit.
    """
    excesses = {}
    limits = (("shrink", "go", gone, settings.shrink_max), ("growth", "come", come, settings.growth_max))
    for reason, verb, count, share_max in limits:
        share_most = int(round(share_max * devices, 6))
        most = max(settings.change_min - 1, share_most)
        if count > most:
            allowed = f"{most:,} may {verb} at most ({reason}_max {share_max:.1%}, change_min {settings.change_min:,})"
            excesses[reason] = f"{turnover(settings.kind, come, gone)}, and {devices:,} are in force: {allowed}"
    return excesses


def turnover(kind: str, come: int, gone: int) -> str:
    """Format the number of added and the number of removed devices (or subscribers) as a text for operators."""
    noun = SUBSCRIBERS if kind == SUBSCRIBERS else "devices"
    return f"{come:,} {noun} come, {gone:,} go"


def force_text(lifted: Collection[str]) -> str:
    """Return a text for operators that names the limits that `--force` lifted."""
    if not lifted:
        return "--force, which lifted no limit"
    return f"--force lifted the limit on {', '.join(lifted)}"


def _listed_part(page: Page) -> tuple[object, ...]:
    """Return the content of a page without reasons and dates: identifiers, IMSIs and expiries."""
    sections = decode_sections(page.extra)
    return page.keys, page.tac and page.tac.until, sections.until, sections.imsis


def _count_changes(old: Page, page: Page, now: float) -> tuple[int, int]:
    try:
        if old.extra or page.extra:  # most of the hundreds of thousands of pages have keys only
            if _listed_part(old) == _listed_part(page):
                return 0, 0
            if has_pairs(old) or has_pairs(page):
                old_imsis = _imsis(old, now)
                new_imsis = _imsis(page, now)
                return _count_gains(old_imsis, new_imsis), _count_gains(new_imsis, old_imsis)
        before = _listed(old, now)
    except ValueError:
        before = BitMap()
    after = _listed(page, now)
    unchanged = before.intersection_cardinality(after)
    return len(after) - unchanged, len(before) - unchanged


def _count_gains(before: dict[int, set[int]], after: dict[int, set[int]]) -> int:
    """Count the devices that gained an IMSI between the states `before` and `after` of a page of pairs."""
    return sum(not imsis <= before.get(low, set()) for low, imsis in after.items())


def _listed(page: Page, now: float) -> BitMap:
    """Return the devices that a page lists at the time `now`, individually or by the whole TAC."""
    if page.tac is not None and _is_in_force(page.tac.until, now):
        return _WHOLE
    if not page.extra or not decode_sections(page.extra).until:
        return decode_keys(page.keys)
    if has_pairs(page):
        return BitMap(_imsis(page, now))
    content = decode(page)
    in_force = (content.until == 0) | (content.until > now)
    return BitMap(content.low[in_force])


def _is_in_force(until: int, now: float) -> bool:
    return not until or until > now


def _imsis(page: Page, now: float) -> dict[int, set[int]]:
    """Return the IMSIs of each device in a page of pairs at the time `now`.

    In a page without pairs, each device has the same dummy IMSI.
    """
    if not has_pairs(page):
        return {low: {0} for low in _listed(page, now)}
    imsis_of = {}
    for low, paired in decode_pairs(page).items():
        imsis = {imsi for imsi, until in paired.imsis.items() if _is_in_force(until, now)}
        if imsis:
            imsis_of[low] = imsis
    return imsis_of
