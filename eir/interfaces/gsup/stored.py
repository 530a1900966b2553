"""Storage of IMEIs in the HLR: the node forwards each permitted check to the HLR, and waits for the HLR's answer.

The node answers the client when the HLR has answered, but at the latest after STORE_S.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from eir.interfaces.gsup.ipa import GSUP, HEADER_BYTES, OSMO
from eir.interfaces.gsup.message import CHECK_IMEI_ERROR, CHECK_IMEI_RESULT, TYPE_AT, elements, is_nack

STORE_S: Final = 2.0
"""Seconds that the HLR has to store an IMEI; the MSC waits 5 s for the answer."""
LATE_MAX: Final = 4096
"""Maximum number of missing answers of an HLR before its connection is dropped."""
_GSUP: Final = bytes((GSUP,))
_ANSWERS: Final = frozenset({bytes((CHECK_IMEI_ERROR,)), bytes((CHECK_IMEI_RESULT,))})


class StoredChecks:
    """Checks of one client that were forwarded to the HLR and wait for its answers.

    `answer` receives the IMSI, `permitted` and `by_hlr`. `owes` is called if too many answers of the HLR are missing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[..., None], owes: Callable[[], None]) -> None:
        self._loop, self._answer, self._owes = loop, answer, owes
        self._waiting: dict[bytes, deque[asyncio.TimerHandle | None]] = {}
        """Timers of checks by IMSI, in order; None: the check was answered without the HLR."""
        self._late = 0

    def add(self, imsi: bytes) -> None:
        """Add a check that was forwarded to the HLR, and start its timer."""
        self._waiting.setdefault(imsi, deque()).append(self._loop.call_later(STORE_S, self._is_late, imsi))

    def handle(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Handle the HLR's answers to forwarded checks. Return all other messages from the HLR; the caller sends them to the client."""
        return [each for each in messages if not self._is_answer(each)] if self._waiting else messages

    def settle(self, imsi: bytes, *, permitted: bool, by_hlr: bool = False) -> None:
        """Answer the oldest forwarded check of this IMSI with an ACK (`permitted`) or a NACK, and remove this check.

        If the client already has an answer, because the HLR was late, no second answer is sent.
        """
        waiting = self._waiting.get(imsi)
        if not waiting:
            return
        timer = waiting.popleft()
        if not waiting:
            del self._waiting[imsi]
        if timer is None:
            self._late -= 1
            return
        timer.cancel()
        self._answer(imsi, permitted=permitted, by_hlr=by_hlr)

    def answer_all(self) -> None:
        """Answer all waiting checks as permitted (ACK), because no more answers from the HLR can arrive."""
        stored, self._waiting, self._late = self._waiting, {}, 0
        for imsi, waiting in stored.items():
            for timer in waiting:
                if timer is not None:
                    timer.cancel()
                    self._answer(imsi, permitted=True)

    def _is_answer(self, message: bytes) -> bool:
        """Handle a message from the HLR. If it answers a waiting check, send this answer to the client and return true."""
        if (
            message[2] != OSMO
            or message[HEADER_BYTES:TYPE_AT] != _GSUP
            or message[TYPE_AT : TYPE_AT + 1] not in _ANSWERS
        ):
            return False
        imsi = elements(message).get(1, b"")
        if imsi not in self._waiting:
            return False
        self.settle(imsi, permitted=not is_nack(message), by_hlr=True)
        return True

    def _is_late(self, imsi: bytes) -> None:
        """Answer the oldest unanswered check of this IMSI as permitted (ACK), because the HLR has not answered for STORE_S."""
        waiting = self._waiting[imsi]
        waiting[waiting.index(next(timer for timer in waiting if timer is not None))] = None
        self._late += 1
        self._answer(imsi, permitted=True)
        if self._late > LATE_MAX:
            self._owes()
