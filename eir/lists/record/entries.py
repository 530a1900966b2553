"""Entry of a list as commands and data files show it, and the texts of its times."""

from datetime import UTC, datetime
from typing import NamedTuple

from eir.device import SNR_KEYS, TAC_DIGITS, imsi_text, key_text
from eir.lists.log.change import utc_text
from eir.lists.record.settings import SUBSCRIBERS


class ListEntry(NamedTuple):
    """Entry of a list: an identifier or a TAC with reason, expiry and date."""

    key: int
    """Key of the device or the subscriber; for a whole TAC its lowest key."""
    imsi: int = 0
    """Key of a pair's subscriber; 0 in other lists."""
    whole_tac: bool = False
    """True if the entry is a whole TAC, False if it is a single identifier."""
    reason: int = 0
    """Index of the reason in Head.reasons."""
    until: int = 0
    """Expiry in Unix seconds; 0 if the entry does not expire."""
    date: int = 0
    """Day in Unix seconds on which the entry was reported or, in a list of device types, the TAC was allocated; 0 if unknown."""
    begin: int = 0
    """Unix seconds from which the entry is in force; 0 for an entry without begin."""

    def text(self, kind: str) -> str:
        """Format the identifier or TAC of the entry, as a data file for this kind of list has it."""
        if kind == SUBSCRIBERS:
            return imsi_text(self.key)
        if self.whole_tac:
            return f"{self.key // SNR_KEYS:0{TAC_DIGITS}d}"
        return key_text(self.key)


def until_text(until: int) -> str:
    """Format the expiry of an entry as in data files; empty if the entry does not expire."""
    return utc_text(datetime.fromtimestamp(until, UTC)) if until else ""


def date_text(date: int) -> str:
    """Format the date of an entry as in data files; empty if the date is unknown."""
    return until_text(date)[: len("2026-12-31")]
