"""Signers counted by person: k of n signatures are of k persons, however a signers file writes their names.

A principal of an allowed_signers file may be a name or a pattern (`*@agency.example`), and OpenSSH tells upper from lower
case. Two that may be the same person count once: names that differ in case, and a pattern with whatever it fits.
Imports nothing of ours.
"""

from collections.abc import Mapping, Sequence

ANY, ONE = "*", "?"
"""Wildcards of a pattern, for any characters and for one (ssh-keygen(1), ALLOWED SIGNERS; ssh_config(5), PATTERNS)."""


def distinct_signers(keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A choice of keys (fingerprint → principals) such that each has a principal of its own, no two of which may be one person.

    One person with two keys counts once, and so does one key that two persons share. Of keys with names it is the largest
    choice; a key that has none left counts by a pattern, if that fits nobody who counts already.
    """
    owner: dict[str, tuple[str, str]] = {}  # name in lower case → key, and the name as the key has it

    def place(fingerprint: str, tried: set[str]) -> bool:
        for principal in keys[fingerprint]:
            name = principal.casefold()
            if name not in tried and not _is_pattern(name):
                tried.add(name)
                if name not in owner or place(owner[name][0], tried):
                    owner[name] = fingerprint, principal
                    return True
        return False

    for fingerprint in keys:
        place(fingerprint, set())
    chosen = dict(owner.values())
    for fingerprint in [key for key in keys if key not in chosen]:
        alone = (one for one in keys[fingerprint] if not any(may_be_one(one, other) for other in chosen.values()))
        if (principal := next(alone, None)) is not None:
            chosen[fingerprint] = principal
    return chosen


def may_be_one(first: str, second: str) -> bool:
    """True if some name fits both principals, in whatever case."""
    first, second = first.casefold(), second.casefold()
    seen, to_see = set(), [(0, 0)]
    while to_see:
        here = at, other = to_see.pop()
        if here in seen:
            continue
        seen.add(here)
        one, two = first[at : at + 1], second[other : other + 1]
        if not one and not two:
            return True
        if one == ANY:
            to_see += [(at + 1, other)] + ([(at, other + 1)] if two else [])
        if two == ANY:
            to_see += [(at, other + 1)] + ([(at + 1, other)] if one else [])
        if one and two and (one == two or ONE in {one, two}):
            to_see.append((at + 1, other + 1))
    return False


def _is_pattern(principal: str) -> bool:
    return ANY in principal or ONE in principal
