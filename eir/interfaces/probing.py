"""Common code of all probes: sends checks to an EIR over any protocol, and summarizes the answers."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from eir.errors import EirError, UsageError
from eir.wire.transport.endpoint import address_text
from eir.wire.transport.stream import connected, fault_text

if TYPE_CHECKING:
    from eir.wire.transport.tls import Tls


NO_ANSWER = "none"
"""Stands for a status where no answer came."""


@dataclass(frozen=True, slots=True)
class ProbeFinding:
    """Result of one check that a probe has sent. Its fields are the keys of the JSON output (`--json`)."""

    imei: str
    imsi: str | None
    status: str | None = None
    """One of the four statuses; None if the answer holds none that stands alone."""
    result_code: int | None = None
    experimental_result_code: int | None = None
    round_trip_ms: float | None = None
    """None: no answer."""
    fault: str | None = None
    """Reason why there is no answer, or what is wrong with it."""
    error: str | None = None
    """A plain error answer in words: the name of its result, and its Error-Message."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON object, without `fault` and `error`, which are texts for people."""
        return {key: value for key, value in asdict(self).items() if key not in {"fault", "error"}}

    @property
    def result(self) -> str:
        """Result of the check as text: equipment status; if it is missing, the (experimental) result code; if both are missing, `none`."""
        code = self.result_code if self.result_code is not None else self.experimental_result_code
        return self.status or (NO_ANSWER if code is None else str(code))


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of the answers to many checks of a probe. Its fields are the keys of the JSON output (`--json`)."""

    asked: int
    answered: int
    answers: Mapping[str, int]
    """Number of answers by status, or by result where an answer holds no status; `none` counts those that did not
    come."""
    round_trip_ms: Mapping[str, float]
    """Least, median, 99th percentile and greatest (`min`, `median`, `p99`, `max`); empty if there was no answer."""
    seconds: float
    a_second: float
    fault: str | None = None
    """Fault of the first faulty answer, or why it did not come."""

    def as_json(self) -> dict[str, Any]:
        """Return the summary as a JSON object."""
        return asdict(self)

    def as_text(self) -> str:
        """Format the summary as a text of a few lines."""
        lines = [
            f"{self.asked:,} asked in {self.seconds:.3g} s ({self.a_second:,.4g} a second), {self.answered:,} answered"
        ]
        lines += [f"{count:>12,}  {answer}" for answer, count in self.answers.items()]
        times = ", ".join(f"{name} {value:,.3g}" for name, value in self.round_trip_ms.items())
        return "\n".join([*lines, f"round trips in ms: {times}"] if times else lines)


async def many(
    ask: Callable[[str], Awaitable[ProbeFinding]],
    imeis: Sequence[str],
    *,
    count: int,
    rate: float | None,
    closed_by: Callable[[], str],
) -> Summary:
    """Send `count` checks, which cycle through the IMEIs; return a summary of the answers.

    The checks stop early if `closed_by` returns the cause of the connection's end. `rate`: checks per second, whether or not
    answers have arrived; None: each check follows the answer to the previous one.
    """
    loop, tally, times = asyncio.get_running_loop(), Counter[str](), list[float]()
    faults: list[str] = []

    async def one(imei: str) -> None:
        finding = await ask(imei)
        if finding.round_trip_ms is not None:
            times.append(finding.round_trip_ms)
        result = finding.result_code if finding.result_code is not None else finding.experimental_result_code
        tally[finding.status or ("none" if finding.round_trip_ms is None else str(result))] += 1
        faults.extend([finding.fault] if finding.fault and not faults else [])

    began, waiting = loop.time(), set[asyncio.Task[None]]()
    for number in range(count):
        if rate is not None:
            await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        if closed_by():
            break
        asking = one(imeis[number % len(imeis)])
        if rate is None:
            await asking
            continue
        task = asyncio.create_task(asking)
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    seconds = max(loop.time() - began, 1e-6)
    asked = tally.total()
    if asked < count:
        faults.append(f"the connection was closed ({closed_by()}): {count - asked:,} were not asked about")
    times.sort()
    places = (
        {"min": 0, "median": len(times) // 2, "p99": len(times) * 99 // 100, "max": len(times) - 1} if times else {}
    )
    return Summary(
        asked=asked, answered=len(times), answers=dict(tally.most_common()), round_trip_ms={name: times[at] for name, at in places.items()},
        seconds=round(seconds, 3), a_second=round(asked / seconds, 3), fault="; ".join(faults) or None,
    )  # fmt: skip


class ProbeClient(Protocol):
    """Client of a probe: connection to an EIR on which several checks can be pending."""

    @property
    def closed_by(self) -> str:
        """Reason for the end of the connection; empty while the connection is open."""

    async def ask(self, imei: str, imsi: str | None, software_version: str | None) -> ProbeFinding:
        """Send one check to the EIR; return its answer, or the reason for a missing answer, as a ProbeFinding."""


class StreamClient(ProbeClient, Protocol):
    """Client on a TCP or TLS connection. A task of its own reads the connection (`listen`)."""

    async def listen(self) -> None:
        """Read and handle received bytes until the connection ends."""


C = TypeVar("C", bound=StreamClient)


@dataclass(frozen=True, slots=True)
class Probe:
    """EIR to probe, and parameters of the probe, as parsed from a URL by eir.interfaces.interface.Interface.probe_of."""

    connect: "Callable[[Probe], AbstractAsyncContextManager[ProbeClient]]"
    """Function of the protocol that connects to the EIR. Raises EirError."""
    hosts: tuple[str, ...]
    port: int | None
    """Port; None: the default port of the protocol."""
    parameters: Mapping[str, Any] = field(repr=False)
    """Values by the names of the interface's `probe_keys`."""
    timeout_s: float
    configured: Mapping[str, Any] = field(repr=False)
    """Configuration of this host as `eir config` shows it; empty without one."""

    def where(self, port: int) -> tuple[str, int]:
        """Return host and port of the EIR in the URL; `port` is the default. Raises UsageError if the URL has several hosts."""
        if len(self.hosts) > 1:
            raise UsageError(f"expected one host, got {', '.join(self.hosts)}")
        return self.hosts[0], self.port or port

    def tls(self) -> "Tls | None":
        """Build the TLS settings from the URL's parameters `ca`, `cert` and `key`; None without these.

        Raises UsageError if only some of them are given.
        """
        ca, cert, key = (self.parameters[name] for name in ("ca", "cert", "key"))
        if ca is cert is key is None:
            return None
        if ca is None or cert is None or key is None:
            raise UsageError("TLS is mutual here: ca, cert and key are needed, all three")
        from eir.wire.transport.settings import TlsSettings  # noqa: PLC0415 - only a probe over TLS needs it
        from eir.wire.transport.tls import load_tls, read_tls  # noqa: PLC0415 - as above

        return load_tls(read_tls(TlsSettings(certificate=cert, key=key, ca=ca)))

    async def ask(
        self, imeis: Sequence[str], *, imsi: str | None = None, software_version: str | None = None
    ) -> list[ProbeFinding]:
        """Send one check for each IMEI in turn on one connection; return the results (ProbeFinding).

        If the connection ends, the remaining IMEIs are not asked about. Raises EirError if no connection can be made.
        """
        findings: list[ProbeFinding] = []
        async with self.connect(self) as client:
            for at, imei in enumerate(imeis, 1):
                findings.append(await client.ask(imei, imsi, software_version))
                if findings[-1].round_trip_ms is None and client.closed_by and (left := imeis[at:]):
                    fault = f"{findings[-1].fault}; not asked about the {len(left)} after it"
                    findings[-1] = replace(findings[-1], fault=fault)
                    return [*findings, *(ProbeFinding(other, imsi) for other in left)]
        return findings

    async def ask_many(
        self, imeis: Sequence[str], *, count: int, rate: float | None, imsi: str | None = None, software_version: str | None = None
    ) -> Summary:  # fmt: skip
        """Connect to the EIR, and send `count` checks, which cycle through the IMEIs; return a summary of the answers.

        Raises EirError if no connection can be made.
        """
        async with self.connect(self) as client:
            return await many(
                lambda imei: client.ask(imei, imsi, software_version),
                imeis,
                count=count,
                rate=rate,
                closed_by=lambda: client.closed_by,
            )

    @asynccontextmanager
    async def asking(self, *, imsi: str | None = None) -> AsyncIterator[Callable[..., Awaitable[str]]]:
        """Connect to the EIR, and yield a function that sends a check of an IMEI or IMEISV and returns its result (ProbeFinding.result).

        Its second argument is an IMSI that replaces `imsi`. The function may be called concurrently. Raises EirError if there
        is no connection; the function raises it if the connection has ended.
        """
        async with self.connect(self) as client:

            async def ask_about(identifier: str, subscriber: str | None = imsi) -> str:
                if client.closed_by:
                    raise EirError(f"the connection was closed ({client.closed_by})")
                return (await client.ask(identifier, subscriber, None)).result

            yield ask_about

    @asynccontextmanager
    async def over_stream(
        self, port: int, client: Callable[[asyncio.StreamReader, asyncio.StreamWriter], C], tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[C]:  # fmt: skip
        """Connect to the EIR over TCP, or over TLS with `tls`, and yield a client. Raises EirError.

        Args:
            port: default port.
            client: creates the client.
            tls: context of the handshake.
        """
        host, port = self.where(port)
        try:
            async with asyncio.timeout(self.timeout_s):
                reader, writer = await asyncio.open_connection(
                    sock=await connected(host, port), ssl=tls, server_hostname=host if tls else None
                )
        except OSError as e:
            late = isinstance(e, TimeoutError)
            why = f"no connection within {self.timeout_s:g} s" if late else fault_text(e, secure=tls is not None)
            raise EirError(f"cannot connect to {address_text([host], port)}: {why}") from None
        made = client(reader, writer)
        listening = asyncio.create_task(made.listen())
        try:
            yield made
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
