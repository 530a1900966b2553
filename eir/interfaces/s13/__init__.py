"""The S13 application (3GPP TS 29.272 clause 6): from an ECR to a question, and from a verdict to an ECA.

`application` is what the Diameter node is handed, `dictionary` and `grammar` its AVPs, `service` what answers, `lane` and
`compiled` the shortcut, `server` the node in a worker, `probe` the asking side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eir.checks.settings import Status
from eir.errors import EirError, UsageError
from eir.interfaces.interface import Interface, SharedSettings
from eir.schema import Family, Key, many, url
from eir.wire.transport.endpoint import PORTS, TCP, TLS, endpoint

if TYPE_CHECKING:
    from eir.interfaces.probing import Captured, Wanted

DEFAULT = ("tcp://127.0.0.1:3868",)
KEYS = (
    Key("listen", many(url(PORTS, "tcp://0.0.0.0:3868 or tls://[::]:5868")), DEFAULT, "addresses on which the node accepts peers; default port 3868, with tls 5868; sctp may have several addresses, separated by commas", live=False),
)  # fmt: skip
FAMILIES = (
    Family("eir_diameter_messages_total", "counter", ("peer", "command", "kind", "direction"), "Diameter messages"),
    Family("eir_diameter_answers_total", "counter", ("peer", "result"), "Answers sent, by Result-Code or vendor:experimental code"),
    Family("eir_diameter_errors_total", "counter", ("reason",), "Faults in messages and connections"),
    Family("eir_diameter_drops_total", "counter", ("reason",), "Messages without an answer"),
)  # fmt: skip


def _words(status: Status) -> str:
    return "Experimental-Result 5422" if status is Status.UNKNOWN else f"2001, Equipment-Status {status.upper()}"


def _probe(wanted: "Wanted") -> tuple[Any, Any]:
    from eir.interfaces.s13 import probe  # noqa: PLC0415 - for a probe alone

    tls, names = wanted.tls, wanted.names
    host, port, scheme = _where(wanted.target, with_tls=tls is not None)
    return probe, probe.S13Target(
        host, port, names.origin_host, names.origin_realm, names.destination_realm, wanted.timeout_s, scheme,
        None if tls is None else tls.connecting, names.destination_host,
    )  # fmt: skip


def _where(target: str, *, with_tls: bool) -> tuple[str, int, str]:
    """Parse the target into host (over SCTP several, separated by commas), port and transport. Raises UsageError."""
    from eir.interfaces.probing import host_and_port  # noqa: PLC0415 - as above

    if "://" not in target:
        scheme = TLS if with_tls else TCP
        return *host_and_port(target, PORTS[scheme]), scheme
    try:
        to = endpoint(target)
    except EirError as e:
        raise UsageError(str(e)) from None
    if (to.scheme == TLS) != with_tls:
        raise UsageError(f"{target}: --ca, --cert and --key are for tls://, and tls:// needs all three")
    return ",".join(to.hosts), to.port, to.scheme


def _capture(capture: Path, ports: Sequence[int], _: SharedSettings) -> "Captured":
    from eir.interfaces.s13.capture import PORT, read  # noqa: PLC0415 - for `eir audit` alone

    return read(capture, ports or (PORT,))


INTERFACE = Interface(
    name="s13", keys=KEYS, families=FAMILIES, server="eir.interfaces.s13.server:S13Server", client="an MME", words=_words, schemes=tuple(PORTS),
    probe=_probe, capture=_capture,
)  # fmt: skip
