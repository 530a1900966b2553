"""Origins and peers whose word makes honest phones suspicious: they vouch for subscribers of other peers' devices, and carry little ordinary traffic.

Anybody who may send checks can invent a SIM beside a phone's own. An MME that serves phones carries ordinary phones too, many of which other MMEs
see as well; that cannot be invented without knowledge of real phones and their SIMs. Data only; imports nothing of ours.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

TOGETHER_MAX = 4
"""Size of the largest group of voices that is distrusted together."""
ORDINARY_MIN, UNSEEN = 2, 50
"""Ordinary phones that others see too, for each device that a group alone makes suspicious: with fewer the group is distrusted. Number of phones that nobody else sees,
such as those of a small operator, that count as much as one that others see: they can be invented."""

LARGE = 10
"""A group that sends more than this part (a tenth) of all checks is never distrusted: an operator whose phones nobody else sees may have so few MMEs."""
OFTEN = 5
"""A group is distrusted if it makes so many times as many devices suspicious for its ordinary phones as all peers together do."""

Voices = frozenset[str]


def distrusted(
    told: Iterable[tuple[int, str, str]], ordinary: Iterable[Sequence[str]], *, share: int, sent: Mapping[str, int]
) -> set[str]:
    """Return the voices (origins, or peers) whose word does not count.

    Args:
        told: Device, subscriber and voice of each suspicious device.
        ordinary: Voices of each ordinary phone in the sample.
        share: One of so many ordinary phones is in the sample.
        sent: Voice → all its checks.

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
    for group in {*spoken, *(_wider(narrow, carried, phones) for narrow in spoken)}:
        lies = set[int]().union(*(spoken.get(part, ()) for part in _parts(group)))
        seen = share * _seen(group, carried, phones)
        if (
            len(lies) * ORDINARY_MIN > seen
            and len(lies) > OFTEN * usual * seen
            and sum(sent[voice] for voice in group) * LARGE <= everything
        ):
            doubtful.append((group, lies, seen))
    found, explained = set[str](), set[int]()
    while doubtful:  # the worst first: the devices that it explains say nothing against others
        group, lies, _ = max(doubtful, key=lambda each: (len(each[1] - explained) / (each[2] + 1), sorted(each[0])))
        found |= group
        explained |= lies
        doubtful = [
            each for each in doubtful if not each[0] & found and len(each[1] - explained) * ORDINARY_MIN > each[2]
        ]
    return found


def _parts(group: Voices) -> Iterator[Voices]:
    """Yield each part of a group that is not empty."""
    for size in range(1, len(group) + 1):
        yield from map(frozenset, combinations(sorted(group), size))


def _shared(group: Voices, carried: Mapping[str, set[int]], phones: Sequence[Voices]) -> list[int]:
    """Return the ordinary phones that a group carries and others too."""
    return [
        number for number in set().union(*(carried.get(voice, ()) for voice in group)) if not phones[number] <= group
    ]


def _seen(group: Voices, carried: Mapping[str, set[int]], phones: Sequence[Voices]) -> float:
    """Return the number of ordinary phones that a group carries, as far as they count."""
    mine = len(set[int]().union(*(carried.get(voice, ()) for voice in group)))
    shared = len(_shared(group, carried, phones))
    return shared + (mine - shared) / UNSEEN


def _wider(group: Voices, carried: Mapping[str, set[int]], phones: Sequence[Voices]) -> Voices:
    """Return the group with the voice that confirms most of its phones, as an accomplice does; the group itself if it is large already."""
    others = Counter(voice for number in _shared(group, carried, phones) for voice in phones[number] - group)
    return (
        group | {min(others, key=lambda voice: (-others[voice], voice))}
        if others and len(group) < TOGETHER_MAX
        else group
    )
