"""Sightings, which checks leave for the record: they are decided already, and nobody waits for what becomes of them.

Data only: the checker and a protocol's fast path hand them over, eir.daemon connects them to something
(eir.analysis.buffer).
"""

from collections.abc import Container, Sequence
from typing import NamedTuple, Protocol


class Decision(NamedTuple):
    """A verdict in plain words."""

    status: str
    """As in Verdict; `error`: the protocol's own error for a request that names no device."""
    rule: str
    """The rule's number from 1, or `default`, `override`, `no_identity`, `bad_identity`."""
    list: str | None
    is_plain: bool
    """Whitelisted, and not by an override: nobody needs to be told."""


class SightingKind(NamedTuple):
    """Properties that checks which are handed in together have in common."""

    decision: Decision
    protocol: str
    peer: str
    """Label of the peer that sent the request, which may be an agent: it is what the node knows, an Origin-Host is what a request claims."""
    observed: str
    """The rules under observation that held (eir.analysis.schema.COLUMNS)."""
    early: bool = False
    """The SIM was not authenticated before the check."""


TEXTS = 5
"""Number of texts of each check: Origin-Host, Origin-Realm, the identifier as it was sent, IMSI, software version;
empty where absent."""


class Sightings(Protocol):
    """Takes what was answered; synchronous, and never in the way."""

    @property
    def full(self) -> Container[str]:
        """Labels of peers whose plain checks are not taken now: they need not be handed in, but counted (`left_out`)."""

    def left_out(self, count: int, peer: str) -> None:
        """So many plain checks of a peer were answered for which there was no room."""

    def add(self, kinds: Sequence[SightingKind], numbers: bytes, texts: bytes) -> None:
        """Take checks of one peer that were answered just now; all of them are plain, or none.

        `numbers`: for each check the place of its kind, as the machine has a uint16. `texts`: TEXTS lines for each check, each with a line
        break behind it and none in it.
        """
