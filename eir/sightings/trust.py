"""Search for distrusted origins and peers, which report SIMs in other peers' devices but few ordinary phones.

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
    """Return the distrusted origins or peers. Both are called voices here.

    Args:
        told: device, subscriber and voice of each suspicious device.
        ordinary: voices of each ordinary phone in the sample.
        share: one of `share` ordinary phones is in the sample.
        sent: number of checks of each voice.
    """
    devices: defaultdict[int, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for device, subscriber, voice in told:
        devices[device][subscriber].add(voice)
    phones = [frozenset(voices) for voices in ordinary if voices]
    carried: defaultdict[str, set[int]] = defaultdict(set)
    for number, voices in enumerate(phones):
        for voice in voices:
            carried[voice].add(number)
    spoken: defaultdict[Voices, set[int]] = defaultdict(set)
    for device, subscribers in devices.items():
        for group in set(map(frozenset, subscribers.values())):
            if len(group) <= TOGETHER_MAX and any(not voices <= group for voices in subscribers.values()):
                spoken[group].add(device)
    everything = sum(sent.values())
    usual = len(set[int]().union(*spoken.values())) / (share * sum(len(voices) > 1 for voices in phones) + 1)
    doubtful: list[tuple[Voices, set[int], float]] = []
    for group in {*spoken, *(_with_accomplice(narrow, carried, phones) for narrow in spoken)}:
        lies = set[int]().union(*(spoken.get(part, ()) for part in _subgroups(group)))
        seen = share * _ordinary_count(group, carried, phones)
        if (
            len(lies) * ORDINARY_MIN > seen
            and len(lies) > OFTEN * usual * seen
            and sum(sent[voice] for voice in group) * LARGE <= everything
        ):
            doubtful.append((group, lies, seen))
    distrusted, explained = set[str](), set[int]()
    while doubtful:  # the worst first: devices that it explains do not count against other groups
        group, lies, _ = max(doubtful, key=lambda each: (len(each[1] - explained) / (each[2] + 1), sorted(each[0])))
        distrusted |= group
        explained |= lies
        doubtful = [
            each for each in doubtful if not each[0] & distrusted and len(each[1] - explained) * ORDINARY_MIN > each[2]
        ]
    return distrusted


def _subgroups(group: Voices) -> Iterator[Voices]:
    """Yield each non-empty subset of a group."""
    for size in range(1, len(group) + 1):
        yield from map(frozenset, combinations(sorted(group), size))


def _shared(group: Voices, carried: Mapping[str, set[int]], phones: Sequence[Voices]) -> list[int]:
    """Return the ordinary phones that both the group and voices outside the group report."""
    return [
        number for number in set().union(*(carried.get(voice, ()) for voice in group)) if not phones[number] <= group
    ]


def _ordinary_count(group: Voices, carried: Mapping[str, set[int]], phones: Sequence[Voices]) -> float:
    """Return the number of ordinary phones that a group reports.

    A phone that only this group reports counts 1/UNSEEN.
    """
    mine = len(set[int]().union(*(carried.get(voice, ()) for voice in group)))
    shared = len(_shared(group, carried, phones))
    return shared + (mine - shared) / UNSEEN


def _with_accomplice(group: Voices, carried: Mapping[str, set[int]], phones: Sequence[Voices]) -> Voices:
    """Return the group with one more voice: the one that shares most of the group's phones, like an accomplice.

    A group of TOGETHER_MAX voices, or without such a voice, is returned unchanged.
    """
    candidates = Counter(voice for number in _shared(group, carried, phones) for voice in phones[number] - group)
    return (
        group | {min(candidates, key=lambda voice: (-candidates[voice], voice))}
        if candidates and len(group) < TOGETHER_MAX
        else group
    )
