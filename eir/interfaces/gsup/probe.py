"""Probe for `eir probe gsup://…`: sends CHECK-IMEI like an MSC to this EIR or an OsmoHLR, and reports the answers."""

import asyncio
import time
from collections import deque
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

from eir.device import KEY_DIGITS
from eir.errors import EirError
from eir.interfaces.gsup import ipa
from eir.interfaces.gsup.ipa import CCM, GSUP, HEADER_BYTES, OSMO, Ccm, Frames, FrameTooLong
from eir.interfaces.gsup.message import (
    CHECK_IMEI_ERROR,
    CHECK_IMEI_RESULT,
    TYPE_AT,
    Ie,
    check_imei,
    digits,
    elements,
    is_nack,
)
from eir.interfaces.gsup.settings import PORT
from eir.interfaces.probing import Probe, ProbeFinding
from eir.wire.transport.stream import fault_text

READ_BYTES: Final = 65_536
LONGEST: Final = 1 << 17
TEST_IMSI: Final = "001010000000000"
"""IMSI of a request without one, because a request without an IMSI receives no answer."""


class _GsupClient:
    """GSUP connection to an EIR.

    Answers arrive in the order of the requests, and only the IMSI matches them.
    """

    def __init__(self, probe: Probe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._probe, self._reader, self._writer = probe, reader, writer
        self._asked: dict[str, deque[asyncio.Future[bytes]]] = {}
        self.closed_by = ""
        """Reason for the connection's end; empty while it is open."""

    async def ask(self, imei: str, imsi: str | None, software_version: str | None) -> ProbeFinding:  # noqa: ARG002 - GSUP carries none
        """Send one CHECK-IMEI; return its answer, or the reason for a missing answer, as a ProbeFinding."""
        subscriber = imsi or TEST_IMSI
        try:
            question = check_imei(subscriber, imei[:KEY_DIGITS] if len(imei) > KEY_DIGITS and imei.isdigit() else imei)
        except ValueError:
            return ProbeFinding(imei, imsi, fault="GSUP carries digits alone: it was not asked about")
        if self.closed_by:
            return ProbeFinding(imei, imsi, fault=f"no answer: {self.closed_by}")
        asked, answer = time.perf_counter(), asyncio.get_running_loop().create_future()
        self._asked.setdefault(subscriber, deque()).append(answer)
        self._writer.write(question)
        try:
            async with asyncio.timeout(self._probe.timeout_s):
                frame = await asyncio.shield(answer)
        except TimeoutError:
            return ProbeFinding(imei, imsi, fault=f"no answer within {self._probe.timeout_s:g} s")
        except EirError as e:
            return ProbeFinding(imei, imsi, fault=f"no answer: {e}")
        return _finding(imei, imsi, frame, round((time.perf_counter() - asked) * 1000, 3))

    async def listen(self) -> None:
        """Handle received bytes until the connection ends."""
        frames = Frames(LONGEST)
        try:
            while data := await self._reader.read(READ_BYTES):
                frames.feed(data)
                for frame in frames.whole():
                    self._handle(frame)
            self._over("the other end has closed the connection")
        except FrameTooLong as e:
            self._over(f"what comes is not GSUP ({e}); is this the port of another protocol?")
        except OSError as e:
            self._over(fault_text(e, secure=False))

    def _handle(self, frame: bytes) -> None:
        if frame[2] == CCM and len(frame) > HEADER_BYTES:
            if frame[HEADER_BYTES] == Ccm.ID_GET:
                self._writer.write(ipa.id_resp(self._probe.parameters["name"]) + ipa.ID_ACK)
            elif frame[HEADER_BYTES] == Ccm.PING:
                self._writer.write(ipa.PONG)
        elif frame[2:TYPE_AT] == bytes((OSMO, GSUP)) and frame[TYPE_AT : TYPE_AT + 1] in {
            bytes((CHECK_IMEI_ERROR,)),
            bytes((CHECK_IMEI_RESULT,)),
        }:
            waiting = self._asked.get(digits(elements(frame).get(Ie.IMSI, b"")))
            if waiting:
                waiting.popleft().set_result(frame)

    def _over(self, why: str) -> None:
        self.closed_by = self.closed_by or why
        for waiting in self._asked.values():
            for answer in waiting:
                if not answer.done():
                    answer.set_exception(EirError(why))
                    answer.exception()  # mark it as retrieved, because a request that timed out does not await it
            waiting.clear()


def connected(probe: Probe) -> AbstractAsyncContextManager[_GsupClient]:
    """Return a context manager that connects to the EIR over TCP, and yields a client. Raises EirError."""
    return probe.over_stream(PORT, partial(_GsupClient, probe))


def _finding(imei: str, imsi: str | None, frame: bytes, round_trip_ms: float) -> ProbeFinding:
    values = elements(frame)
    if frame[TYPE_AT] == CHECK_IMEI_ERROR:
        cause = int.from_bytes(values.get(Ie.CAUSE, b""))
        return ProbeFinding(
            imei, imsi, None, cause, None, round_trip_ms, None, f"cause {cause}; the phone takes itself for illegal"
        )
    if not values.get(Ie.IMEI_RESULT):
        return ProbeFinding(imei, imsi, None, None, None, round_trip_ms, "a result that says neither ACK nor NACK")
    return ProbeFinding(imei, imsi, "blacklisted" if is_nack(frame) else "whitelisted", None, None, round_trip_ms)
