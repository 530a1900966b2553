"""State table of one connection (RFC 6733 5.6): (state, input) → (action, next state). Data without code.

The RFC's table is for a peer with up to two connections; this one is for one connection. A responder is in Closed until its
CER, an initiator in Wait-I-CEA from the start. The node decides about two connections together (election, too many connections)
while a connection is in WAIT_ADMISSION, the RFC's Wait-Returns. The actions are in peer.
"""

from enum import IntEnum
from typing import NamedTuple

from eir.wire.diameter.dictionary import CAPABILITIES_EXCHANGE, DEVICE_WATCHDOG, DISCONNECT_PEER


class State(IntEnum):
    """State of one connection, with the names of RFC 6733 5.6."""

    WAIT_CER = 0
    """Accepted, before the CER (Closed)."""
    WAIT_ADMISSION = 1
    """The CER is valid, and the node has not decided on the connection (Wait-Returns)."""
    WAIT_CEA = 2
    """Connected, and the CER sent (Wait-I-CEA)."""
    OPEN = 3
    """R-Open, I-Open."""
    CLOSING = 4
    """DPR sent (Closing)."""
    LEAVING = 5
    """DPR received and answered; the peer may still send requests until the connection closes (Closing)."""
    CLOSED = 6


class Input(IntEnum):
    """Input of the state machine: a kind of message, an order of the node, a timer, or the end of the transport."""

    CER = 0
    CEA = 1
    DWR = 2
    DWA = 3
    DPR = 4
    DPA = 5
    REQUEST = 6
    ANSWER = 7
    ADMIT = 8
    """The node admits the connection (Win-Election)."""
    REFUSE = 9
    """The node refuses the connection (R-Reject)."""
    STOP = 10
    """The node ends the connection in order."""
    TIMEOUT = 11
    """A timer expired: handshake, watchdog or disconnection."""
    END = 12
    """The transport is closed (R-Peer-Disc, I-Peer-Disc)."""


class Action(IntEnum):
    """Action that the state machine executes at a transition."""

    NOTHING = 0
    PROCESS_CER = 1
    SEND_CEA = 2
    REJECT = 3
    """Send a CEA with the node's reason, then close."""
    PROCESS_CEA = 4
    SEND_DWA = 5
    PROCESS_DWA = 6
    SEND_DPA = 7
    SEND_DPR = 8
    SERVE = 9
    """Answer the request."""
    PROCESS_ANSWER = 10
    """Pass an answer to the sender of the request; drop it without a pending request (6.2.1)."""
    CER_AGAIN = 11
    DROP = 12
    DISCARD = 13
    """Drop a message that is invalid in this state, and close."""
    DISCONNECT = 14


class Transition(NamedTuple):
    """Cell of the state table: action and next state.

    If the message is invalid, the action may return CLOSED instead.
    """

    action: Action
    state: State


def _row(otherwise: Transition, **cells: tuple[Action, State]) -> tuple[Transition, ...]:
    return tuple(Transition(*cells[what.name]) if what.name in cells else otherwise for what in Input)


_A, _S = Action, State
_END = dict.fromkeys(("TIMEOUT", "END"), (_A.DISCONNECT, _S.CLOSED))
_UNOPENED = dict.fromkeys(("REFUSE", "STOP"), (_A.DISCONNECT, _S.CLOSED))


def _talking(state: State, **cells: tuple[Action, State]) -> tuple[Transition, ...]:
    """Return the table row of a state in which the node answers requests. `cells` replace default cells of the row."""
    same = {
        "CER": _A.CER_AGAIN, "CEA": _A.DROP, "DWR": _A.SEND_DWA, "DWA": _A.PROCESS_DWA, "DPA": _A.DROP,
        "REQUEST": _A.SERVE, "ANSWER": _A.PROCESS_ANSWER,
    }  # fmt: skip
    return _row(
        Transition(_A.NOTHING, state), **{**_END, **{what: (action, state) for what, action in same.items()}, **cells}
    )


# fmt: off
TABLE: dict[State, tuple[Transition, ...]] = {
    # RFC 6733 5.6, row by row. The first message of a connection must be a CER, otherwise it is closed (5.6.1).
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
    # 5.4: the sender of the DPR closes when the DPA arrives. Until then, and until the peer closes after its own DPR,
    # requests are answered, because a phone waits for each.
    State.CLOSING: _talking(_S.CLOSING, DPR=(_A.SEND_DPA, _S.CLOSING), DPA=(_A.DISCONNECT, _S.CLOSED)),
    State.LEAVING: _talking(_S.LEAVING, DPR=(_A.SEND_DPA, _S.LEAVING)),
    State.CLOSED: _row(Transition(_A.NOTHING, _S.CLOSED)),
}
# fmt: on

REQUESTS = {CAPABILITIES_EXCHANGE: Input.CER, DEVICE_WATCHDOG: Input.DWR, DISCONNECT_PEER: Input.DPR}
ANSWERS = {CAPABILITIES_EXCHANGE: Input.CEA, DEVICE_WATCHDOG: Input.DWA, DISCONNECT_PEER: Input.DPA}
"""Inputs by command code of the base application."""
