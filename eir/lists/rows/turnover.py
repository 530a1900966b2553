"""Turnover: the numbers of devices that a change adds to a list and removes from it, and their limits.

The difference of sizes is not enough: two lists of the same size may have no device in common.
"""

from collections.abc import Collection, Iterable

from pyroaring import BitMap

from eir.lists.pages.content import decode, decode_pairs, has_pairs
from eir.lists.pages.pages import PAGE_KEYS, Page, TacEntry, decode_sections
from eir.lists.pages.roaring import decode_keys
from eir.lists.record.settings import SUBSCRIBERS, ListSettings

_WHOLE = BitMap(range(PAGE_KEYS))


def differences(before: Iterable[Page], after: Iterable[Page], now: float = 0.0) -> tuple[int, int]:
    """Return the number of identifiers added, and the number removed, between two states of a list.

    `before` and `after` may also be only the pages that changed.

    A whole TAC counts as 1,000,000. An identifier that a TAC covers before and after stays, whether it is listed singly
    or not. In a list of pairs a device comes if it gets a new IMSI, and goes if it loses one. A damaged page of
    `before` counts as empty, so that it can be replaced.

    Args:
        before: pages before the change.
        after: pages after it.
        now: Unix seconds; rows that ended before do not count. If 0, ends are ignored.
    """
    old = {page.number: page for page in before}
    come = gone = 0
    for page in after:
        was = old.pop(page.number, None) or Page(page.number, b"")
        if page != was:
            comes, goes = _count_changes(was, page, now)
            come, gone = come + comes, gone + goes
    return come, gone + sum(_count_changes(page, Page(page.number, b""), now)[1] for page in old.values())


def exceeded_limits(settings: ListSettings, devices: int, come: int, gone: int) -> dict[str, str]:
    """Return the limits that a change of a list exceeds (`shrink`, `growth`), each with a message.

    Args:
        settings: settings of the list.
        devices: identifiers in force.
        come: identifiers that come.
        gone: identifiers that go. A change below `change_min` exceeds no limit.
    """
    passed = {}
    for reason, verb, change, limit in (
        ("shrink", "go", gone, settings.shrink_max),
        ("growth", "come", come, settings.growth_max),
    ):
        most = max(settings.change_min - 1, int(round(limit * devices, 6)))
        if change > most:
            allowed = f"{most:,} may {verb} at most ({reason}_max {limit:.1%}, change_min {settings.change_min:,})"
            passed[reason] = f"{turnover(settings.kind, come, gone)}, and {devices:,} are in force: {allowed}"
    return passed


def turnover(kind: str, come: int, gone: int) -> str:
    """Format the numbers of added and removed devices (or subscribers) for a person."""
    return f"{come:,} {SUBSCRIBERS if kind == SUBSCRIBERS else 'devices'} come, {gone:,} go"


def force_text(lifted: Collection[str]) -> str:
    """Format the effect of `--force` for a person: the limits that it lifted."""
    return f"--force lifted the limit on {', '.join(lifted)}" if lifted else "--force, which lifted no limit"


def _listed_part(page: Page) -> tuple[object, ...]:
    """Return the parts of a page that determine which keys are listed, and until when."""
    sections = decode_sections(page.extra)
    return page.keys, page.tac and page.tac.until, sections.until, sections.imsis


def _count_changes(was: Page, page: Page, now: float) -> tuple[int, int]:
    try:
        if was.extra or page.extra:  # fast path: most of the hundreds of thousands of pages have keys only
            if _listed_part(was) == _listed_part(page):
                return 0, 0
            if has_pairs(was) or has_pairs(page):
                old_sims, new_sims = _sims(was, now), _sims(page, now)
                return _count_gains(old_sims, new_sims), _count_gains(new_sims, old_sims)
        before = _listed(was, now)
    except ValueError:
        before = BitMap()
    after = _listed(page, now)
    stay = before.intersection_cardinality(after)
    return len(after) - stay, len(before) - stay


def _count_gains(before: dict[int, set[int]], after: dict[int, set[int]]) -> int:
    """Return the number of devices with an IMSI in `after` that they do not have in `before`."""
    return sum(not sims <= before.get(low, set()) for low, sims in after.items())


def _listed(page: Page, now: float) -> BitMap:
    """Return the devices of a page that are listed at the time `now`, individually or by their TAC."""
    if page.tac is not None and _lasts(page.tac, now):
        return _WHOLE
    if not page.extra or not decode_sections(page.extra).until:
        return decode_keys(page.keys)
    if has_pairs(page):
        return BitMap(_sims(page, now))
    content = decode(page)
    return BitMap(content.low[(content.until == 0) | (content.until > now)])


def _lasts(entry: TacEntry, now: float) -> bool:
    return not entry.until or entry.until > now


def _sims(page: Page, now: float) -> dict[int, set[int]]:
    """Return the IMSIs of each device in a page of pairs at the time `now`.

    In any other page, each device has the same dummy IMSI.
    """
    if not has_pairs(page):
        return {low: {0} for low in _listed(page, now)}
    lasting = (
        (low, {imsi for imsi, end in paired.imsis.items() if not end or end > now})
        for low, paired in decode_pairs(page).items()
    )
    return {low: sims for low, sims in lasting if sims}
