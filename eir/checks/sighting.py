"""What a check leaves behind for the record: who handed it in decided it already, and nobody waits for what becomes of it.

Data only: the checker and a protocol's fast path hand over, eir.daemon puts something behind it (eir.analysis.buffer).
"""

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt


class Decision(NamedTuple):
    """A verdict in plain words."""

    status: str
    """As in Verdict; `error`: the protocol's own error for a request that names no device."""
    rule: str
    """The rule's number from 1, or `default`, `override`, `no_identity`, `bad_identity`."""
    list: str | None
    is_plain: bool
    """Whitelisted, and not by an override: nobody needs to be told."""


Sighting: TypeAlias = tuple[Decision, str, str, str, str, list[bytes]]
"""Checks of one decision from one origin: decision, Origin-Host, Origin-Realm, protocol, rules under observation that held
(schema.COLUMNS), and for each check three texts: the identifier as it was sent, IMSI, software version; empty where there is none, and
without line breaks. A plain tuple and a flat list: what a check pays is three entries in it."""


class Sightings(Protocol):
    """Takes what was answered; synchronous, and never in the way."""

    @property
    def has_room(self) -> bool:
        """Whether plain checks are taken now; if not, they need not be handed in, but counted: `left_out`."""

    def left_out(self, count: int) -> None:
        """So many plain checks were answered for which there was no room."""

    def each(self, sightings: list[Sighting]) -> None:
        """Checks that were answered one by one, just now."""

    def alike(
        self, decision: Decision, origin: tuple[str, str, str], digits: npt.NDArray[np.uint8], widths: tuple[int, int, int],
        but: list[int],
    ) -> None:  # fmt: skip
        """Checks of one decision that were answered at once.

        `origin`: Origin-Host, Origin-Realm, protocol. `digits`: a row for each check: digits of IMEI, software version and IMSI,
        which take `widths` columns; kept, and not changed any more. `but`: rows that were handed in by `each`.
        """
