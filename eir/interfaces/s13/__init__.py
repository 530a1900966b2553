"""Interface S13 (3GPP TS 29.272 clause 6): answers the ECRs of MMEs and SGSNs by the rules of the policy.

`application` describes S13 for the Diameter node, `dictionary` and `grammar` its AVPs. `service` converts an ECR to a question for the
policy, and the verdict to an ECA; `lane` answers the usual ECRs by C code. `server` is the node in the answering process, `probe` a client.
"""

from eir.checks.settings import Status
from eir.interfaces.interface import TLS_KEYS, Interface
from eir.schema import IDENTITY, Family, Key, many, url, word
from eir.wire.transport.endpoint import PORTS, SCTP, TCP

DEFAULT = ("tcp://127.0.0.1:3868",)
KEYS = (
    Key("listen", many(url(PORTS, "tcp://0.0.0.0:3868 or tls://[::]:5868")), DEFAULT, "addresses on which the node accepts peers; default port 3868, with tls 5868; sctp may have several addresses, separated by commas"),
)  # fmt: skip
PROBE_KEYS = (
    Key("origin_host", IDENTITY, None, "Origin-Host of the probe; probe.REALM if left out"),
    Key("origin_realm", IDENTITY, None, "Origin-Realm of the probe; if left out identity.realm of the configuration, or else that of MCC 001, MNC 01"),
    Key("destination_host", IDENTITY, None, "Destination-Host, for an EIR behind an agent; not sent if left out"),
    Key("destination_realm", IDENTITY, None, "Destination-Realm; the EIR's own if left out"),
    Key("transport", word(TCP, SCTP), TCP, "transport; over sctp, HOST may be several addresses separated by commas"),
    *TLS_KEYS,
)  # fmt: skip
FAMILIES = (
    Family("eir_diameter_messages_total", "counter", ("peer", "command", "kind", "direction"), "Diameter messages"),
    Family("eir_diameter_answers_total", "counter", ("peer", "result"), "Answers sent, by Result-Code or vendor:experimental code"),
    Family("eir_diameter_errors_total", "counter", ("reason",), "Faults in messages and connections"),
    Family("eir_diameter_drops_total", "counter", ("reason",), "Messages without an answer"),
)  # fmt: skip


def _words(status: Status) -> str:
    return "Experimental-Result 5422" if status is Status.UNKNOWN else f"2001, Equipment-Status {status.upper()}"


INTERFACE = Interface(
    name="s13", keys=KEYS, families=FAMILIES, server="eir.interfaces.s13.server:S13Server", client="an MME", words=_words,
    probe="eir.interfaces.s13.probe:connected", probe_keys=PROBE_KEYS,
)  # fmt: skip
