"""Probe for `eir probe n5g://…`: sends requests to a 5G EIR like an AMF, and reports the answers."""

import asyncio
import json
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import quote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

from eir.device import IMEI_LENGTHS, KEY_DIGITS, check_digit, is_digits
from eir.errors import EirError
from eir.interfaces.n5g.nrf import REDIRECTS
from eir.interfaces.n5g.service import RESOURCE
from eir.interfaces.probing import Probe, ProbeFinding
from eir.wire.transport.endpoint import HTTP_PORTS, address_text
from eir.wire.transport.stream import fault_text
from eir.wire.web.denials import authorization
from eir.wire.web.http2_client import BODY_BYTES_MAX, GoAway, Incoming

READ_BYTES = 65_536
STATUS_DIGITS = 3
UNAUTHORIZED = 401
STATUS_WORDS = {"WHITELISTED": "whitelisted", "BLACKLISTED": "blacklisted", "GREYLISTED": "greylisted"}
UNKNOWN_CAUSE = "ERROR_EQUIPMENT_UNKNOWN"


def pei_of(imei: str, software_version: str | None = None) -> str:
    """Return the PEI (TS 29.571 5.3.2) for an identifier that an operator typed.

    14 to 16 digits become `imei-` or `imeisv-`. A text with a hyphen stays the same.
    """
    if "-" in imei or not is_digits(imei) or len(imei) not in IMEI_LENGTHS:
        return imei if "-" in imei else f"imei-{imei}"
    first = imei[:KEY_DIGITS]
    if software_version:
        return f"imeisv-{first}{software_version}"
    return {14: f"imei-{first}{check_digit(first)}", 15: f"imei-{imei}"}.get(len(imei), f"imeisv-{imei}")


def path_of(pei: str, imsi: str | None) -> str:
    """Return path and query of the request about a PEI."""
    return f"{RESOURCE.decode()}?pei={quote(pei, safe='')}" + (f"&supi=imsi-{quote(imsi, safe='')}" if imsi else "")


@dataclass(slots=True)
class _Answer:
    """Partly received HTTP response."""

    done: asyncio.Future[None]
    status: int = 0
    location: str | None = None
    body: bytearray = field(default_factory=bytearray)


class _N5gClient:
    """Client of the probe: HTTP/2 connection to an EIR."""

    def __init__(self, probe: Probe, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._timeout_s, self._token = probe.timeout_s, probe.parameters["token"]
        self._is_secure = writer.get_extra_info("ssl_object") is not None
        self._authority = address_text(probe.hosts, port)
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._answers: dict[int, _Answer] = {}
        self.closed_by = ""
        """Reason for the connection's end; empty while it is open."""
        self._h2.initiate_connection()
        self._send()

    async def ask(self, imei: str, imsi: str | None, software_version: str | None) -> ProbeFinding:
        """Send one request to the EIR; return its answer as a ProbeFinding."""
        asked, pei = time.perf_counter(), pei_of(imei, software_version)
        if self.closed_by:
            return ProbeFinding(imei, imsi, fault=f"no answer: {self.closed_by}")
        answer = _Answer(asyncio.get_running_loop().create_future())
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "GET"), (":scheme", "https" if self._is_secure else "http"),
            (":authority", self._authority), (":path", path_of(pei, imsi)),
            ("user-agent", "AMF-eir-probe"), ("accept", "application/json, application/problem+json"),
            *([] if self._token is None else [authorization(self._token)]),
        ]  # fmt: skip
        self._answers[stream] = answer
        try:
            self._h2.send_headers(stream, headers, end_stream=True)
            self._send()
            async with asyncio.timeout(self._timeout_s):
                await answer.done
        except TimeoutError:
            return ProbeFinding(imei, imsi, fault=f"no answer within {self._timeout_s:g} s")
        except (EirError, ProtocolError) as e:
            return ProbeFinding(imei, imsi, fault=f"no answer: {e}")
        finally:
            del self._answers[stream]
        finding = _finding(imei, imsi, answer, round((time.perf_counter() - asked) * 1000, 3))
        if answer.status == UNAUTHORIZED and self._token is None:
            return replace(finding, error=f"{finding.error}; the EIR requires an access token: ?token=FILE")
        return finding

    async def listen(self) -> None:
        """Handle received bytes until the connection ends."""
        incoming = Incoming(self._h2)
        try:
            while data := await self._reader.read(READ_BYTES):
                for event in incoming.events(data):
                    self._sent_away(event) if isinstance(event, GoAway) else self._happened(event)
                self._send()
            self._over("the other end has closed the connection")
        except ProtocolError as e:
            self._over(f"what comes is not HTTP/2 ({e}); is this the port of another protocol?")
        except OSError as e:
            self._over(fault_text(e, secure=self._is_secure))

    def _happened(self, event: Event) -> None:
        if isinstance(event, DataReceived):  # also of a late answer, because the flow-control window is shared
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        answer = self._answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None or answer.done.done():
            return
        match event:
            case ResponseReceived():
                headers = dict(event.headers)
                status = headers.get(b":status", b"")
                answer.status = int(status) if status.isdigit() and len(status) == STATUS_DIGITS else 0
                answer.location = headers[b"location"].decode("latin-1") if b"location" in headers else None
            case DataReceived():
                answer.body += event.data
                if len(answer.body) > BODY_BYTES_MAX:
                    answer.done.set_exception(EirError(f"it is longer than {BODY_BYTES_MAX} bytes"))
            case StreamEnded():
                answer.done.set_result(None)
            case StreamReset():
                answer.done.set_exception(EirError(f"the request was reset (error {event.error_code})"))
            case _:
                pass

    def _sent_away(self, goaway: GoAway) -> None:
        """Handle a GOAWAY of the EIR: send no further requests on this connection.

        Pending requests are still answered, unless the GOAWAY excludes their streams.
        """
        self._over(f"it was sent away (GOAWAY, error {goaway.error})", after=0 if goaway.error else goaway.last)

    def _over(self, why: str, after: int = 0) -> None:
        """Fail the pending requests on streams above `after`, because the EIR will not answer them."""
        self.closed_by = self.closed_by or why
        for stream, answer in self._answers.items():
            if stream > after and not answer.done.done():
                answer.done.set_exception(EirError(why))

    def _send(self) -> None:
        self._writer.write(self._h2.data_to_send())


def connected(probe: Probe) -> AbstractAsyncContextManager[_N5gClient]:
    """Return a context manager that connects to the EIR over HTTP/2. Raises EirError if the connection fails."""
    tls = probe.tls()
    context = None if tls is None else tls.connecting
    port = probe.port or HTTP_PORTS["http" if tls is None else "https"]
    if context is not None:
        context.check_hostname = True  # only the certificate proves the server's identity
        context.set_alpn_protocols(["h2"])
    return probe.over_stream(port, partial(_N5gClient, probe, port), context)


def _finding(imei: str, imsi: str | None, answer: _Answer, round_trip_ms: float) -> ProbeFinding:
    """Convert an HTTP response to the result of a check (ProbeFinding; TS 29.511 6.1.3.2.3.1).

    `result_code` of the finding is the HTTP status.
    """
    try:
        document = json.loads(answer.body.decode()) if answer.body else {}
    except (ValueError, RecursionError):
        document = {}
    fields = document if isinstance(document, dict) else {}
    status = fault = error = None
    cause = fields.get("cause")
    if answer.status == 200:
        status = STATUS_WORDS.get(str(fields.get("status")))
        fault = None if status else "200 without a status that TS 29.511 knows"
    elif answer.status in REDIRECTS and answer.location:
        fault = f"redirected to {answer.location}; not followed"
    elif answer.status == 404 and cause == UNKNOWN_CAUSE:
        status = "unknown"
    elif not answer.status:
        fault = "no status in the answer"
    else:
        error = " ".join(
            str(part) for part in (answer.status, cause, fields.get("detail") or fields.get("title")) if part
        )
    return ProbeFinding(imei, imsi, status, answer.status or None, None, round_trip_ms, fault, error)
