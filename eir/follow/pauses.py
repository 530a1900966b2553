"""The times by which a follower and its copy wait and try again. Imports eir.record."""

from dataclasses import dataclass

from eir.record.patience import STORE_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds; the defaults are a node's."""

    wait_s: float = 1.0
    """The states are read at least this often, whatever the store tells by itself."""
    answer_s: float = STORE_TIMEOUT_S
    """One answer of the store may take so long."""
    retry_s: float = 1.0
    """Before the store, or a copy, is tried again after a fault."""
    unproved_s: float = 1.0
    """Before a list that could not be taken over is read again; it doubles."""
    unproved_max_s: float = 60.0
    unreadable_s: float = 5.0
    """Before a state that is damaged is read again: it may be long."""
    full_s: float = 60.0
    """Before a list for which the disk had no room is copied again: each try writes until it finds that."""


PAUSES = Pauses()
