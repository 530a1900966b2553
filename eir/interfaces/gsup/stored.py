"""Checks that went to the HLR too, which stores the IMEI: each waits for the HLR's answer, for a short time."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from eir.interfaces.gsup.ipa import GSUP, HEADER_BYTES, OSMO
from eir.interfaces.gsup.message import CHECK_IMEI_ERROR, CHECK_IMEI_RESULT, TYPE_AT, elements, says_no

STORE_S: Final = 2.0
"""Time that the HLR has to store an IMEI; its MSC waits 5 s for the answer."""
LATE_MAX: Final = 4096
"""Answers that an HLR may owe; one that owes more is not taken for one that answers."""
_GSUP: Final = bytes((GSUP,))
_ANSWERS: Final = frozenset({bytes((CHECK_IMEI_ERROR,)), bytes((CHECK_IMEI_RESULT,))})


class StoredChecks:
    """Checks of one connection that wait for the HLR. `answer` gets the IMSI, `permitted` and `by_hlr`; `owes`: the HLR owes too many answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[..., None], owes: Callable[[], None]) -> None:
        self._loop, self._answer, self._owes = loop, answer, owes
        self._waiting: dict[bytes, deque[asyncio.TimerHandle | None]] = {}
        """IMSI → checks in order; None: it was answered without the HLR."""
        self._late = 0

    def add(self, imsi: bytes) -> None:
        """A check was passed on."""
        self._waiting.setdefault(imsi, deque()).append(self._loop.call_later(STORE_S, self._is_late, imsi))

    def handle(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Return the messages of the HLR that answer no check; those that do are the answers of the checks."""
        return [each for each in messages if not self._is_answer(each)] if self._waiting else messages

    def settle(self, imsi: bytes, *, permitted: bool, by_hlr: bool = False) -> None:
        """Answer the oldest check of this IMSI, if that was not done before."""
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
        """Answer all checks: the HLR will say nothing any more."""
        stored, self._waiting, self._late = self._waiting, {}, 0
        for imsi, waiting in stored.items():
            for timer in waiting:
                if timer is not None:
                    timer.cancel()
                    self._answer(imsi, permitted=True)

    def _is_answer(self, message: bytes) -> bool:
        """Return whether a message answers a check; its client is answered, if it was not before."""
        if (
            message[2] != OSMO
            or message[HEADER_BYTES:TYPE_AT] != _GSUP
            or message[TYPE_AT : TYPE_AT + 1] not in _ANSWERS
        ):
            return False
        imsi = elements(message).get(1, b"")
        if imsi not in self._waiting:
            return False
        self.settle(imsi, permitted=not says_no(message), by_hlr=True)
        return True

    def _is_late(self, imsi: bytes) -> None:
        """The HLR takes too long over a check: it is answered now, and the HLR's answer is known when it comes."""
        waiting = self._waiting[imsi]
        waiting[waiting.index(next(timer for timer in waiting if timer is not None))] = None
        self._late += 1
        self._answer(imsi, permitted=True)
        if self._late > LATE_MAX:
            self._owes()
