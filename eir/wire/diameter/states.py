"""The states of one connection as a table (RFC 6733 5.6): (state, input) → (action, next state). Data only.

The RFC's table is for a peer, with up to two connections; this one is for a connection. A responder's is Closed until its
CER, an initiator's Wait-I-CEA from the start. What concerns two connections at once (election, one too many) is decided
by the node in between: WAIT_ADMISSION, the RFC's Wait-Returns. What the actions do stands in peer.
"""

from enum import IntEnum
from typing import NamedTuple

from eir.wire.diameter.dictionary import CAPABILITIES_EXCHANGE, DEVICE_WATCHDOG, DISCONNECT_PEER


class State(IntEnum):
    """The state of one connection; the names of RFC 6733 5.6 stand beside them."""

    WAIT_CER = 0
    """Accepted, no CER yet (Closed)."""
    WAIT_ADMISSION = 1
    """The CER is good, the node has not said yet whether this connection is wanted (Wait-Returns)."""
    WAIT_CEA = 2
    """We connected and sent our CER (Wait-I-CEA)."""
    OPEN = 3
    """R-Open, I-Open."""
    CLOSING = 4
    """Our DPR is out (Closing)."""
    LEAVING = 5
    """The peer's DPR is answered; it may still ask until the connection is gone (Closing)."""
    CLOSED = 6


class Input(IntEnum):
    """An input to the state machine of a connection."""

    CER = 0
    CEA = 1
    DWR = 2
    DWA = 3
    DPR = 4
    DPA = 5
    REQUEST = 6
    ANSWER = 7
    ADMIT = 8
    """The node wants this connection (Win-Election)."""
    REFUSE = 9
    """The node does not want it (R-Reject)."""
    STOP = 10
    """The node wants to end it in order."""
    TIMEOUT = 11
    """A timer ran out: of the handshake, the watchdog, or the disconnection."""
    END = 12
    """The transport is gone (R-Peer-Disc, I-Peer-Disc)."""


class Action(IntEnum):
    """The action that follows."""

    NOTHING = 0
    PROCESS_CER = 1
    SEND_CEA = 2
    REJECT = 3
    """A CEA with the node's reason, then the end."""
    PROCESS_CEA = 4
    SEND_DWA = 5
    PROCESS_DWA = 6
    SEND_DPA = 7
    SEND_DPR = 8
    SERVE = 9
    """Answer the request."""
    TAKE = 10
    """Hand an answer to the one that asked; drop it if nobody did (6.2.1)."""
    CER_AGAIN = 11
    DROP = 12
    DISCARD = 13
    """A message that must not stand here: drop it, and close."""
    DISCONNECT = 14


class Transition(NamedTuple):
    """One cell of the table; an action may end in CLOSED instead, when the message turns out to be bad."""

    action: Action
    state: State


def _row(otherwise: Transition, **cells: tuple[Action, State]) -> tuple[Transition, ...]:
    return tuple(Transition(*cells[what.name]) if what.name in cells else otherwise for what in Input)


_A, _S = Action, State
_END = dict.fromkeys(("TIMEOUT", "END"), (_A.DISCONNECT, _S.CLOSED))
_UNOPENED = dict.fromkeys(("REFUSE", "STOP"), (_A.DISCONNECT, _S.CLOSED))


def _talking(state: State, **cells: tuple[Action, State]) -> tuple[Transition, ...]:
    """A state in which requests are answered; `cells` are those in which it differs from the others of its kind."""
    same = {
        "CER": _A.CER_AGAIN, "CEA": _A.DROP, "DWR": _A.SEND_DWA, "DWA": _A.PROCESS_DWA, "DPA": _A.DROP,
        "REQUEST": _A.SERVE, "ANSWER": _A.TAKE,
    }  # fmt: skip
    return _row(
        Transition(_A.NOTHING, state), **{**_END, **{what: (action, state) for what, action in same.items()}, **cells}
    )


# fmt: off
TABLE: dict[State, tuple[Transition, ...]] = {
    # RFC 6733 5.6, row by row. The first message of a connection is a CER, else it is closed (5.6.1).
    State.WAIT_CER: _row(
        Transition(_A.DISCARD, _S.CLOSED), **_END, **_UNOPENED,
        CER=(_A.PROCESS_CER, _S.WAIT_ADMISSION),
        ADMIT=(_A.NOTHING, _S.WAIT_CER),
    ),
    State.WAIT_ADMISSION: _row(
        Transition(_A.DISCARD, _S.CLOSED), **_END,
        ADMIT=(_A.SEND_CEA, _S.OPEN),
        REFUSE=(_A.REJECT, _S.CLOSED),
        STOP=(_A.DISCONNECT, _S.CLOSED),
    ),
    State.WAIT_CEA: _row(
        Transition(_A.DISCARD, _S.CLOSED), **_END, **_UNOPENED,
        CEA=(_A.PROCESS_CEA, _S.OPEN),
        ADMIT=(_A.NOTHING, _S.WAIT_CEA),
    ),
    State.OPEN: _talking(_S.OPEN, DPR=(_A.SEND_DPA, _S.LEAVING), STOP=(_A.SEND_DPR, _S.CLOSING)),
    # 5.4: the sender of the DPR closes when the DPA is there. Until then, and until the peer closes after its own DPR,
    # requests are answered: a phone waits for each.
    State.CLOSING: _talking(_S.CLOSING, DPR=(_A.SEND_DPA, _S.CLOSING), DPA=(_A.DISCONNECT, _S.CLOSED)),
    State.LEAVING: _talking(_S.LEAVING, DPR=(_A.SEND_DPA, _S.LEAVING)),
    State.CLOSED: _row(Transition(_A.NOTHING, _S.CLOSED)),
}
# fmt: on

REQUESTS = {CAPABILITIES_EXCHANGE: Input.CER, DEVICE_WATCHDOG: Input.DWR, DISCONNECT_PEER: Input.DPR}
ANSWERS = {CAPABILITIES_EXCHANGE: Input.CEA, DEVICE_WATCHDOG: Input.DWA, DISCONNECT_PEER: Input.DPA}
"""Command of the base application → input."""
