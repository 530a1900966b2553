"""Parser of the identifiers in a command that changes a local list."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from eir.device import any_key, device_key, imsi_key, strip_separators
from eir.errors import IdentifierError
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES
from eir.lists.rows.layout import tac_key

ENTRIES_MAX = 1000
"""Maximum number of entries of one command, because the history names each; more entries need a release."""


class Entry(NamedTuple):
    """Entry of a local list: the identifier as the operator typed it, and the numeric keys by which the list stores it."""

    text: str  # as the operator wrote it
    key: int
    """Key of the device or the subscriber, or the lowest key of the TAC."""
    imsi: int = 0
    """Key of a pair's IMSI; 0 in other lists."""
    whole_tac: bool = False


def parse_entries(
    kind: str, identifiers: Sequence[str], *, imsis: Sequence[str] = (), tacs: bool = False, verbatim: bool = False
) -> list[Entry]:
    """Parse the identifiers in a command; return them as entries for a list of this kind. A repeated identifier gives one entry.

    Args:
        kind: kind of the list.
        identifiers: IMEIs, IMEISVs or MEIDs; for a list of subscribers, IMSIs.
        imsis: IMSIs; a list of pairs gets each device with each of them.
        tacs: the identifiers are TACs.
        verbatim: the identifiers may have any form.

    Raises:
        IdentifierError: with the identifier that is wrong.
    """
    _check_command(kind, imsis=imsis, tacs=tacs, verbatim=verbatim)
    key_of = device_key
    if kind == SUBSCRIBERS:
        key_of = imsi_key
    elif tacs:
        key_of = tac_key
    elif verbatim:
        key_of = any_key
    sims = [("", 0)]
    if imsis:
        digits = [strip_separators(imsi) for imsi in imsis]
        sims = [(f"+{imsi}", _parse_key(imsi_key, imsi)) for imsi in digits]
    distinct = dict[tuple[int, int, bool], Entry]()
    for identifier in identifiers:
        text = identifier if verbatim else strip_separators(identifier)
        key = _parse_key(key_of, text)
        for sim, subscriber in sims:
            entry = Entry(text + sim, key, subscriber, tacs)
            distinct[entry[1:]] = entry
    if len(distinct) > ENTRIES_MAX:
        raise IdentifierError(
            f"{len(distinct)} entries; the maximum for one command is {ENTRIES_MAX}; publish a release instead"
        )
    return list(distinct.values())


def _check_command(kind: str, *, imsis: Sequence[str], tacs: bool, verbatim: bool) -> None:
    """Raise IdentifierError if a command has entries that a list of this kind cannot contain, such as TACs for a list of pairs."""
    if kind == TYPES:
        raise IdentifierError("a list of device types changes only by releases: eir publish --layout tacs")
    if tacs and kind != DEVICES:
        raise IdentifierError(f"a list of {kind} contains no TACs")
    if verbatim and (tacs or kind == SUBSCRIBERS):
        raise IdentifierError(f"{'TACs' if tacs else 'subscribers'} have a fixed form; --verbatim is only for devices")
    if imsis and kind != PAIRS:
        raise IdentifierError(f"--imsi requires a list of pairs, and this is a list of {kind}")
    if kind == PAIRS and not imsis:
        raise IdentifierError("a list of pairs requires an IMSI for each device (--imsi)")


def _parse_key(key_of: Callable[[str], int], text: str) -> int:
    try:
        return key_of(text)
    except IdentifierError as error:
        raise IdentifierError(f"{text}: {error}") from None
