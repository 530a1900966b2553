"""Search for untrustworthy origins and peers. They report other SIMs for many devices, but few ordinary phones.

A peer that may send checks can invent another SIM for a phone. A real MME also carries ordinary phones, and other MMEs report
many of them too; an attacker cannot invent these without knowing real phones and their SIMs. Data only.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

TOGETHER_MAX = 4
"""Maximum number of voices (origins or peers) of a group that is distrusted together."""
ORDINARY_MIN, UNSEEN = 2, 50
"""A group with fewer ordinary phones that others report too, for each device that only the group makes suspicious, is distrusted. UNSEEN phones that only the group reports, such as those of a small operator, count as one, because they can be invented."""

LARGE = 10
"""A group that sends more than 1/10 of all checks is never distrusted: an operator whose phones no other reports may have so few MMEs."""
OFTEN = 5
"""A group is distrusted if it makes this many times as many devices suspicious for each ordinary phone as all peers together."""

Voices = frozenset[str]


def find_distrusted(
    told: Iterable[tuple[int, str, str]], ordinary: Iterable[Sequence[str]], *, share: int, sent: Mapping[str, int]
) -> set[str]:
    """Return the origins or peers (both called voices) whose reports the analysis must ignore.

    Args:
        told: device, subscriber and voice of each suspicious device.
        ordinary: voices of each ordinary phone in the sample.
        share: one of `share` ordinary phones is in the sample.
        sent: number of checks of each voice.
    """
    phones = Counter(frozenset(voices) for voices in ordinary if voices)
    victims = _victims_by_group(told)
    all_victims = set[int]().union(*victims.values())
    shared_phones = share * sum(count for voices, count in phones.items() if len(voices) > 1)
    usual = len(all_victims) / (shared_phones + 1)
    all_checks = sum(sent.values())
    candidates = {*victims, *(_with_accomplice(group, phones) for group in victims)}
    doubtful: list[tuple[Voices, set[int], float]] = []
    for group in candidates:
        lies = set[int]().union(*(victims.get(part, ()) for part in _subgroups(group)))
        phones_carried = share * _ordinary_count(group, phones)
        is_small = sum(sent[voice] for voice in group) * LARGE <= all_checks
        is_idle = len(lies) * ORDINARY_MIN > phones_carried
        is_unusual = len(lies) > OFTEN * usual * phones_carried
        if is_small and is_idle and is_unusual:
            doubtful.append((group, lies, phones_carried))
    return _worst_first(doubtful)


def _victims_by_group(told: Iterable[tuple[int, str, str]]) -> Mapping[Voices, set[int]]:
    """Return for each group of origins or peers (voices) the devices that are suspicious only because of this group's reports.

    Other voices must report these devices too.
    """
    reporters: defaultdict[int, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for device, subscriber, voice in told:
        reporters[device][subscriber].add(voice)
    victims: defaultdict[Voices, set[int]] = defaultdict(set)
    for device, voices_by_subscriber in reporters.items():
        groups = {frozenset(voices) for voices in voices_by_subscriber.values()}
        for group in groups:
            is_beside_others = any(not voices <= group for voices in groups)
            if len(group) <= TOGETHER_MAX and is_beside_others:
                victims[group].add(device)
    return victims


def _worst_first(doubtful: Sequence[tuple[Voices, set[int], float]]) -> set[str]:
    """Choose the origins or peers (voices) to distrust, and begin with the worst group.

    The suspicious devices that a selected group explains no longer count against the remaining groups.
    """
    distrusted, explained = set[str](), set[int]()

    def badness(candidate: tuple[Voices, set[int], float]) -> tuple[float, list[str]]:
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


def _subgroups(group: Voices) -> Iterator[Voices]:
    """Yield each non-empty subset of a group of voices (origins or peers)."""
    for size in range(1, len(group) + 1):
        yield from map(frozenset, combinations(sorted(group), size))


def _ordinary_count(group: Voices, phones: Mapping[Voices, int]) -> float:
    """Return how many ordinary phones of the sample a group of voices (origins or peers) reports.

    A phone that only this group reports counts 1/UNSEEN.
    """
    own = sum(count for voices, count in phones.items() if voices <= group)
    carried = sum(count for voices, count in phones.items() if not voices.isdisjoint(group))
    return carried - own + own / UNSEEN


def _with_accomplice(group: Voices, phones: Mapping[Voices, int]) -> Voices:
    """Add to a group of voices (origins or peers) the voice that shares most ordinary phones with the group. Return the new group.

    A group of TOGETHER_MAX voices, or without such a voice, is returned unchanged.
    """
    if len(group) >= TOGETHER_MAX:
        return group
    others = Counter[str]()
    for voices, count in phones.items():
        if not voices.isdisjoint(group):
            others.update(dict.fromkeys(voices - group, count))
    if not others:
        return group
    accomplice = min(others, key=lambda voice: (-others[voice], voice))
    return group | {accomplice}
