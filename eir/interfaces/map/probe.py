"""Probe for `eir probe map://…`: sends checkIMEI over SIGTRAN like an MSC, and reports the answers.

The probe is an ASP of the gateway, or an IPSP of the EIR. It opens a dialogue of version 3, and falls back to 2 and 1 if a
version is refused (TS 29.002 25.6.1).
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from eir.errors import EirError, UsageError
from eir.interfaces.map import checkimei as codec
from eir.interfaces.map.link import CARRIED
from eir.interfaces.map.settings import PORT, SSN_EIR
from eir.interfaces.probing import Probe, ProbeFinding
from eir.wire.ss7 import sccp, tcap
from eir.wire.ss7.asp import Association, AssociationState
from eir.wire.ss7.ber import BerError
from eir.wire.ss7.m3ua import Transfer
from eir.wire.ss7.sccp import ITU, SccpFault, point_code, point_code_text
from eir.wire.ss7.tcap import OperationOutcome, TcapFault, TcapMessage
from eir.wire.transport import sctp, stream
from eir.wire.transport.endpoint import SCTP, Endpoint
from eir.wire.transport.sctp_options import is_supported
from eir.wire.transport.settings import SctpSettings
from eir.wire.transport.stream import fault_text

SSN_MSC = 8
TICK_S = 0.2
STATUSES = {0: "whitelisted", 1: "blacklisted", 2: "greylisted"}
ERRORS = {codec.SYSTEM_FAILURE: "systemFailure", codec.DATA_MISSING: "dataMissing"}
REFUSED = "refused"
"""Error of a finding: the EIR does not serve the dialogue's version."""


def _point_codes(probe: Probe, variant: str) -> tuple[int, int]:
    """Return the point codes of the probe and of the EIR, from the URL or the configuration. Raises UsageError."""
    own, eir = probe.parameters["point_code"], probe.parameters["to_point_code"]
    eir = eir or (probe.configured.get("ss7") or {}).get("point_code")
    if eir is None:
        raise UsageError("whom to ask: to_point_code=N-N-N, or ss7.point_code of the configuration")
    try:
        return point_code(own, variant), point_code(str(eir), variant)
    except ValueError as e:
        most = point_code_text(-1, variant)
        raise UsageError(f"{e} is no point code of the variant {variant}: expected {most} at most") from None


class _MapClient(asyncio.Protocol):
    """MAP client of the probe: M3UA association with a signalling gateway or an EIR."""

    def __init__(self, probe: Probe) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s, self._routing_context = probe.timeout_s, probe.parameters["routing_context"]
        self._transport: asyncio.Transport | None = None
        self._association: Association | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}
        self._version = codec.VERSIONS[0]
        variant, gt = (probe.configured.get("ss7") or {}).get("variant") or ITU, probe.parameters["gt"]
        self._variant, self._point_codes = variant, _point_codes(probe, variant)
        own, eir = self._point_codes
        kind, title = sccp.e164(gt, variant) if gt else (0, b"")
        self._calling = sccp.encoded_address(
            variant, pc=None if gt else own, ssn=SSN_MSC, kind=kind, title=title, by_ssn=not gt
        )
        self._called = sccp.encoded_address(variant, pc=eir, ssn=SSN_EIR)
        self.active: asyncio.Future[None] = self._loop.create_future()
        self.closed_by = ""
        """Reason for the association's end; empty while it is up."""

    # asyncio.Protocol, sctp.SctpProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to bring the M3UA association up."""
        self._transport = cast("asyncio.Transport", transport)
        self._association = Association(self._loop.time(), dials=True, routing_context=self._routing_context)
        self._tick()

    def data_received(self, data: bytes) -> None:
        """Handle received bytes."""
        if self._association is not None:
            for each in self._association.receive(data, self._loop.time()):
                self._handle(each)
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all pending requests, because the connection has ended."""
        self._over("the other end has closed the connection" if exc is None else fault_text(exc, secure=False))

    def restarted(self) -> None:
        """Fail all pending requests, because the other end has restarted the association."""
        self._over("the other end began again")

    def path_changed(self, address: str, *, up: bool) -> None:
        """Ignore the failure or recovery of one of several SCTP paths."""

    # questions

    async def ask(self, imei: str, imsi: str | None, software_version: str | None) -> ProbeFinding:
        """Send one checkIMEI in the latest version that the EIR serves; return its answer as a ProbeFinding."""
        asked = time.perf_counter()
        number = imei[:14] + software_version if software_version else imei
        try:
            while True:
                version = self._version
                octets = await self._answer(codec.context_of(version), version, codec.argument(version, number, imsi))
                finding = finding_of(imei, imsi, octets, version, round((time.perf_counter() - asked) * 1000, 3))
                if finding.error != REFUSED or version == codec.VERSIONS[-1]:
                    return finding
                self._version = min(self._version, version - 1)
        except ValueError:
            return ProbeFinding(imei, imsi, fault="no number that TBCD can carry")
        except TimeoutError:
            return ProbeFinding(imei, imsi, fault=f"no answer within {self._timeout_s:g} s")
        except EirError as e:
            return ProbeFinding(imei, imsi, fault=f"no answer: {e}")

    async def _answer(self, context: bytes, version: int, argument: bytes) -> bytes:
        if self._association is None or self.closed_by:
            raise EirError(self.closed_by)
        otid = (next(self._numbers) & 0xFFFFFFFF).to_bytes(4)
        data = tcap.begin(
            otid, tcap.request(context) if version > 1 else b"", tcap.invoke(b"\1", codec.CHECK_IMEI, argument)
        )
        own, eir = self._point_codes
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._answers[otid] = answer
        self._association.send(Transfer(
            own, eir, otid[-1] & 0x0F, sccp.encoded(sccp.UDT, sccp.RETURN_ON_ERROR, self._called, self._calling, data),
            context=self._association.context,
        ))  # fmt: skip
        self._flush()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        finally:
            del self._answers[otid]

    def _handle(self, transfer: Transfer) -> None:
        """Handle an answer of the EIR, or a request that the network has returned as undeliverable (Q.713 UDTS).

        The data of a returned request begin with the request's own transaction id.
        """
        payload = transfer.payload
        with suppress(SccpFault, TcapFault):
            if payload[:1] == bytes((sccp.UDTS,)):
                back = sccp.unitdata(bytes((sccp.UDT, 0)) + payload[2:], self._variant)
                answer = self._answers.get(tcap.read(back.data).otid)
                if answer is not None and not answer.done():
                    answer.set_exception(EirError(f"it came back from the network (return cause {payload[1]})"))
                return
            data = sccp.unitdata(payload, self._variant).data
            answer = self._answers.get(tcap.read(data).dtid)
            if answer is not None and not answer.done():
                answer.set_result(data)

    # inside

    def _tick(self) -> None:
        if self._association is not None and not self.closed_by:
            due = self._association.deadline()
            if due is not None and due <= self._loop.time():
                self._association.timer(self._loop.time())
            self._flush()
            self._loop.call_later(TICK_S, self._tick)

    def _flush(self) -> None:
        association = self._association
        if association is None or self._transport is None:
            return
        if out := association.messages_to_send():
            self._transport.write(b"".join(out))
        refused = [each.reason for each in association.events if each.event == "m3ua_error"]
        association.events.clear()
        if association.state == AssociationState.ACTIVE and not self.active.done():
            self.active.set_result(None)
        if refused and not self.active.done():
            self.active.set_exception(EirError(f"the other end refuses the association ({refused[0]})"))
        if association.over:
            self._over(association.over)

    def _over(self, why: str) -> None:
        self.closed_by = self.closed_by or why
        waiting: list[asyncio.Future[Any]] = [self.active, *self._answers.values()]
        for each in waiting:
            if not each.done():
                each.set_exception(EirError(why))
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.closed_by = self.closed_by or "closed"
        if self._transport is not None:
            self._transport.close()


@asynccontextmanager
async def connected(probe: Probe) -> AsyncIterator[_MapClient]:
    """Connect to the signalling gateway or the EIR, and wait until the association is active. Raises EirError."""
    client, to = _MapClient(probe), Endpoint(SCTP, probe.hosts, probe.port or PORT)
    try:
        async with asyncio.timeout(probe.timeout_s):
            try:
                await _connect(client, to)
            except OSError as e:
                raise EirError(fault_text(e, secure=False)) from None
            await client.active
    except TimeoutError:
        client.close()
        raise EirError(f"cannot connect to {to.where}: no association within {probe.timeout_s:g} s") from None
    except EirError as e:
        client.close()
        raise EirError(f"cannot connect to {to.where}: {e}") from None
    try:
        yield client
    finally:
        client.close()


async def _connect(client: _MapClient, to: Endpoint) -> None:
    """Connect to the EIR over SCTP, or over TCP if SCTP is impossible.

    TCP is used if the kernel has no SCTP, or the other end has no SCTP listener.

    Raises:
        OSError: if the connection fails.
    """
    if is_supported():
        with suppress(ConnectionRefusedError):
            await sctp.connect(client, to, SctpSettings(), CARRIED)
            return
    await stream.connect(client, to.hosts[0], to.port)


def finding_of(imei: str, imsi: str | None, octets: bytes, version: int, round_trip_ms: float) -> ProbeFinding:
    """Convert the TCAP message that answers a checkIMEI to the result of the check (ProbeFinding).

    `result_code` is the code of a MAP error. `error` is REFUSED if a request of an earlier version may succeed.
    """
    try:
        message = tcap.read(octets)
        if message.kind == tcap.ABORT:
            return ProbeFinding(imei, imsi, None, None, None, round_trip_ms, None, _aborted(octets, message))
        outcomes = [] if message.components is None else tcap.outcomes(octets, message.components)
        if not outcomes:
            return ProbeFinding(imei, imsi, round_trip_ms=round_trip_ms, fault="an End without a result")
        return _outcome(imei, imsi, octets, version, outcomes[0], round_trip_ms)
    except (TcapFault, BerError) as e:
        return ProbeFinding(imei, imsi, round_trip_ms=round_trip_ms, fault=f"an answer that cannot be read ({e})")


def _aborted(octets: bytes, message: TcapMessage) -> str:
    if message.cause is not None:
        return f"Abort, cause {message.cause}"
    apdu = None if message.dialogue is None else tcap.apdu(octets, message.dialogue)
    return REFUSED if apdu is not None and apdu.kind == tcap.AARE else "Abort"


def _outcome(  # noqa: PLR0917 - fields of a Finding
    imei: str, imsi: str | None, octets: bytes, version: int, outcome: OperationOutcome, round_trip_ms: float
) -> ProbeFinding:
    if outcome.problem is not None:
        return ProbeFinding(
            imei,
            imsi,
            None,
            None,
            None,
            round_trip_ms,
            None,
            f"Reject, problem {outcome.problem.tag & 3}.{outcome.problem.code}",
        )
    if outcome.error == codec.UNKNOWN_EQUIPMENT:
        return ProbeFinding(imei, imsi, "unknown", None, None, round_trip_ms)
    if outcome.error is not None:
        return ProbeFinding(
            imei,
            imsi,
            None,
            outcome.error,
            None,
            round_trip_ms,
            None,
            f"{outcome.error} {ERRORS.get(outcome.error, '')}".strip(),
        )
    value = codec.status_of(octets, version, outcome.parameters)
    status = None if value is None else STATUSES.get(value)
    return ProbeFinding(imei, imsi, status, None, None, round_trip_ms, None if status else "a result without a status")
