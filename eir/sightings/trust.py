"""Search for untrustworthy origins and peers. They report few ordinary phones, but many devices with SIMs that only they report.

A peer that may send checks can invent another SIM for a phone. A real MME also carries ordinary phones, and other MMEs report
many of them too; an attacker cannot invent these without knowing real phones and their SIMs. Data only.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

TOGETHER_MAX = 4
"""Maximum number of reporters (origins or peers) in a group that is distrusted together."""
ORDINARY_MIN, UNSEEN = 2, 50
"""A group with fewer ordinary phones that others report too, for each device that only the group makes suspicious, is distrusted. UNSEEN phones that only the group reports, such as those of a small operator, count as one, because they can be invented."""

LARGE = 10
"""A group that sends more than 1/10 of all checks is never distrusted: an operator whose phones no other reports may have so few MMEs."""
OFTEN = 5
"""A group is distrusted if it makes this many times as many devices suspicious for each ordinary phone as all peers together."""

Group = frozenset[str]
"""Names of reporters that report the same SIM or phone. The reporters of one search are either all origins or all peers."""


def find_distrusted(
    reports: Iterable[tuple[int, str, str]], ordinary: Iterable[Sequence[str]], *, share: int, sent: Mapping[str, int]
) -> set[str]:
    """Return the reporters (origins or peers) whose reports the analysis must ignore.

    Args:
        reports: device, subscriber and reporter of each report about a suspicious device.
        ordinary: reporters of each ordinary phone in the sample.
        share: one of `share` ordinary phones is in the sample.
        sent: number of checks of each reporter.
    """
    phones = Counter(frozenset(reporters) for reporters in ordinary if reporters)
    victims = _victims_by_group(reports)
    all_victims = set[int]().union(*victims.values())
    shared_phones = share * sum(count for reporters, count in phones.items() if len(reporters) > 1)
    usual = len(all_victims) / (shared_phones + 1)
    all_checks = sum(sent.values())
    candidates = {*victims, *(_with_accomplice(group, phones) for group in victims)}
    doubtful: list[tuple[Group, set[int], float]] = []
    for group in candidates:
        lies = set[int]().union(*(victims.get(part, ()) for part in _subgroups(group)))
        phones_carried = share * _ordinary_count(group, phones)
        is_small = sum(sent[reporter] for reporter in group) * LARGE <= all_checks
        is_idle = len(lies) * ORDINARY_MIN > phones_carried
        is_unusual = len(lies) > OFTEN * usual * phones_carried
        if is_small and is_idle and is_unusual:
            doubtful.append((group, lies, phones_carried))
    return _worst_first(doubtful)


def _victims_by_group(reports: Iterable[tuple[int, str, str]]) -> Mapping[Group, set[int]]:
    """Return for each group of reporters (origins or peers) the devices that are suspicious only because of this group's reports.

    Other reporters must report these devices too.
    """
    by_device: defaultdict[int, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for device, subscriber, reporter in reports:
        by_device[device][subscriber].add(reporter)
    victims: defaultdict[Group, set[int]] = defaultdict(set)
    for device, by_subscriber in by_device.items():
        groups = {frozenset(reporters) for reporters in by_subscriber.values()}
        for group in groups:
            is_beside_others = any(not other <= group for other in groups)
            if len(group) <= TOGETHER_MAX and is_beside_others:
                victims[group].add(device)
    return victims


def _worst_first(doubtful: Sequence[tuple[Group, set[int], float]]) -> set[str]:
    """Return the reporters (origins or peers) to distrust.

    In each step, distrust the group with the most suspicious devices per ordinary phone among the remaining groups.

    The suspicious devices that a selected group explains no longer count against the remaining groups.
    """
    distrusted, explained = set[str](), set[int]()

    def badness(candidate: tuple[Group, set[int], float]) -> tuple[float, list[str]]:
        group, lies, phones_carried = candidate
        return len(lies - explained) / (phones_carried + 1), sorted(group)

    left = list(doubtful)
    while left:
        worst, lies, _ = max(left, key=badness)
        distrusted |= worst
        explained |= lies
        left = [
            (group, lies, phones_carried)
            for group, lies, phones_carried in left
            if not group & distrusted and len(lies - explained) * ORDINARY_MIN > phones_carried
        ]
    return distrusted


def _subgroups(group: Group) -> Iterator[Group]:
    """Yield each non-empty subset of a group of reporters (origins or peers)."""
    for size in range(1, len(group) + 1):
        yield from map(frozenset, combinations(sorted(group), size))


def _ordinary_count(group: Group, phones: Mapping[Group, int]) -> float:
    """Return how many ordinary phones of the sample a group of reporters (origins or peers) reports.

    A phone that only this group reports counts 1/UNSEEN.
    """
    own = sum(count for reporters, count in phones.items() if reporters <= group)
    carried = sum(count for reporters, count in phones.items() if not reporters.isdisjoint(group))
    return carried - own + own / UNSEEN


def _with_accomplice(group: Group, phones: Mapping[Group, int]) -> Group:
    """Add a reporter (origin or peer) to a group: the reporter with the most ordinary phones in common with the group.

    The new group is returned. A group of TOGETHER_MAX reporters, or without such a reporter, stays unchanged.
    """
    if len(group) >= TOGETHER_MAX:
        return group
    others = Counter[str]()
    for reporters, count in phones.items():
        if not reporters.isdisjoint(group):
            others.update(dict.fromkeys(reporters - group, count))
    if not others:
        return group
    accomplice = min(others, key=lambda reporter: (-others[reporter], reporter))
    return group | {accomplice}
