"""Interface GSUP: answers the CHECK-IMEI of an OsmoMSC, and forwards all other messages to the HLR.

ipa.py has frames and identification (IPA, CCM); message.py the operation CHECK-IMEI and the errors of others; link.py the
connection of a client; hlr.py its connection to the HLR; stored.py the checks that wait for the HLR; server.py the conversion
and all clients; probe.py a client.
"""

from eir.checks.settings import Status
from eir.interfaces.gsup.settings import PORT, GsupSettings
from eir.interfaces.interface import Interface, SharedSettings
from eir.schema import FLAG, Document, Family, Findings, Key, Section, many, text, url
from eir.wire.transport.endpoint import ANY, TCP, endpoint, is_loopback

PORTS = {TCP: PORT}
LISTEN_GSUP = url(PORTS, f"tcp://127.0.0.1:{PORT}")
HLR = url(PORTS, "tcp://127.0.0.1:4223", connects=True)
KEYS = (
    Key("gsup.listen", many(LISTEN_GSUP), (), "addresses for OsmoMSCs that use the node as their HLR (GSUP); default port 4222"),
    Key("gsup.hlr", HLR, None, "address of the OsmoHLR, which gets all messages except CHECK-IMEI; if left out, these messages get an error"),
    Key("gsup.store", FLAG, False, "whether the node forwards the CHECK-IMEI of an accepted device to the OsmoHLR (`store-imei` there); a NACK from the OsmoHLR rejects the device"),
)  # fmt: skip
PROBE_KEYS = (Key("name", text("a name without blanks", r"\S{1,255}"), "eir-probe", "name of the probe (ipa-name)"),)
FAMILIES = (
    Family("eir_gsup_answers_total", "counter", ("peer", "result"), "Answers to CHECK-IMEIs: ack, nack, or none for a request without an IMSI"),
    Family("eir_gsup_passed_total", "counter", ("peer", "direction"), "Forwarded messages, `out` to the HLR and `in` from it"),
    Family("eir_gsup_not_passed_total", "counter", ("peer", "reason"), "Messages not forwarded to the HLR: no_hlr (not configured), hlr_away, hlr_slow"),
    Family("eir_gsup_errors_total", "counter", ("reason",), "GSUP connections closed for a fault"),
    Family("eir_gsup_hlr_up", "gauge", ("peer",), "1 if the node has a connection to the OsmoHLR for each connection of the peer", "min"),
)  # fmt: skip


def _check(settings: GsupSettings, _: SharedSettings, document: Document) -> Findings:
    """Report a configuration in which the HLR is the node itself.

    Otherwise each message would circulate until no connection is left.
    """
    if settings.hlr is None or document.faulty("gsup"):
        return
    hlr = endpoint(settings.hlr)
    for listener in settings.listen:
        ours = endpoint(listener)
        to_itself = hlr.hosts == ours.hosts or (ours.hosts[0] in ANY and is_loopback(settings.hlr))
        if hlr.port == ours.port and to_itself:
            yield f"the node itself listens at {listener}; expected the OsmoHLR's own address", ("gsup", "hlr")


def _words(status: Status) -> str:
    return "NACK" if status is Status.BLACKLISTED else "ACK"


INTERFACE = Interface(
    name="gsup", section="gsup", keys=KEYS, sections=(Section("gsup", GsupSettings),), check=_check, families=FAMILIES,
    server="eir.interfaces.gsup.server:GsupServer", client="an OsmoMSC", words=_words,
    probe="eir.interfaces.gsup.probe:connected", probe_keys=PROBE_KEYS,
)  # fmt: skip
