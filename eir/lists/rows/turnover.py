"""Turnover: the devices that a change adds to a list and removes from it, and the list's limits on both.

Two lists of the same size may have nothing in common: what counts is what comes and what goes, never the difference of sizes.
"""

from collections.abc import Collection, Iterable

from pyroaring import BitMap

from eir.lists.pages.content import decode, decode_pairs, has_pairs
from eir.lists.pages.pages import PAGE_KEYS, Page, TacEntry, decode_sections
from eir.lists.pages.roaring import decode_keys
from eir.lists.record.settings import SUBSCRIBERS, ListSettings

_WHOLE = BitMap(range(PAGE_KEYS))


def differences(before: Iterable[Page], after: Iterable[Page], now: float = 0.0) -> tuple[int, int]:
    """Identifiers that come and that go between two lists (or the touched pages of one), a TAC counted as a million.

    One that a TAC covers before and after stays, whether it is listed on its own or not. In a list of pairs a device comes
    if it has a SIM that it was not listed with, and goes if it loses one. `now`: Unix seconds; a row that has ended by then
    lists nothing. 0: ends do not count. A page of `before` that is damaged lists nothing, so that it can be replaced.
    """
    old = {page.number: page for page in before}
    come = gone = 0
    for page in after:
        was = old.pop(page.number, None) or Page(page.number, b"")
        if page != was:
            comes, goes = _between(was, page, now)
            come, gone = come + comes, gone + goes
    return come, gone + sum(_between(page, Page(page.number, b""), now)[1] for page in old.values())


def past_limits(settings: ListSettings, devices: int, come: int, gone: int) -> dict[str, str]:
    """The size limits of a list that a change passes: `shrink`, `growth` → what was found, for a person.

    `devices`: identifiers in force. A change of fewer than `change_min` passes none.
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
    """The turnover of a list of this kind, for a person."""
    return f"{come:,} {SUBSCRIBERS if kind == SUBSCRIBERS else 'devices'} come, {gone:,} go"


def by_force(lifted: Collection[str]) -> str:
    """The effect of --force, for a person: the limits that it lifted, if any."""
    return f"--force lifted the limit on {', '.join(lifted)}" if lifted else "--force, which lifted no limit"


def _but_reasons(page: Page) -> tuple[object, ...]:
    """The part of a page that says who is listed, and until when."""
    said = decode_sections(page.extra)
    return page.keys, page.tac and page.tac.until, said.until, said.imsis


def _between(was: Page, page: Page, now: float) -> tuple[int, int]:
    try:
        if was.extra or page.extra:  # most pages have keys only, and this is asked of hundreds of thousands
            if _but_reasons(was) == _but_reasons(page):
                return 0, 0
            if has_pairs(was) or has_pairs(page):
                had, has = _sims(was, now), _sims(page, now)
                return _more(had, has), _more(has, had)
        before = _listed(was, now)
    except ValueError:
        before = BitMap()
    after = _listed(page, now)
    stay = before.intersection_cardinality(after)
    return len(after) - stay, len(before) - stay


def _more(before: dict[int, set[int]], after: dict[int, set[int]]) -> int:
    """Devices that have after what they did not have before."""
    return sum(not sims <= before.get(low, set()) for low, sims in after.items())


def _listed(page: Page, now: float) -> BitMap:
    """The devices listed, singly or by their TAC."""
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
    """The SIMs of each device in a page of pairs; of another page one and the same for all."""
    if not has_pairs(page):
        return {low: {0} for low in _listed(page, now)}
    lasting = (
        (low, {imsi for imsi, end in paired.imsis.items() if not end or end > now})
        for low, paired in decode_pairs(page).items()
    )
    return {low: sims for low, sims in lasting if sims}
