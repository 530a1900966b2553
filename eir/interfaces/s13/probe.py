"""Probe for `eir probe` over S13: sends ECRs to any EIR like an MME, and reports the answers."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from eir.device import HEX_DIGITS, KEY_DIGITS, is_digits
from eir.errors import EirError, UsageError
from eir.interfaces.probing import Probe, ProbeFinding
from eir.interfaces.s13 import dictionary as s13
from eir.interfaces.s13.application import S13
from eir.interfaces.s13.service import EQUIPMENT_STATUSES
from eir.wire.diameter import dictionary as base
from eir.wire.diameter.application import application_id_avp
from eir.wire.diameter.avp import encode, encode_text, text
from eir.wire.diameter.capabilities import certificate_fits
from eir.wire.diameter.client import SERVER, Client, connect
from eir.wire.diameter.message import Answer
from eir.wire.diameter.result import NAMES, REDIRECT_INDICATION, SUCCESS, UNKNOWN_PEER
from eir.wire.peers.settings import holds
from eir.wire.transport.endpoint import PORTS, SCTP, TLS

PROBE_REALM = "epc.mnc001.mcc001.3gppnetwork.org"
STATUS_OF = {value.to_bytes(4): str(status) for status, value in EQUIPMENT_STATUSES.items()}


@asynccontextmanager
async def connected(probe: Probe) -> AsyncIterator["_Asker"]:
    """Connect to the EIR, and exchange CER and CEA. Raises EirError."""
    given, identity = probe.parameters, probe.configured.get("identity") or {}
    realm = given["origin_realm"] or identity.get("realm") or PROBE_REALM
    host = given["origin_host"] or f"probe.{realm}"
    tls = probe.tls()
    scheme = given["transport"] if tls is None else TLS
    if given["transport"] == SCTP:
        address, port = ",".join(probe.hosts), probe.port or PORTS[SCTP]
    else:
        address, port = probe.where(PORTS[scheme])
    if given["transport"] == SCTP and tls is not None:
        raise UsageError("DTLS over SCTP is not offered; ca, cert and key are for transport=tcp")
    try:
        client = await connect(
            address, port, S13, origin_host=host, origin_realm=realm, product_name="eir probe",
            timeout_s=probe.timeout_s, scheme=scheme, tls=None if tls is None else tls.connecting,
        )  # fmt: skip
    except EirError as e:
        raise EirError(_refused(host, realm, str(e))) from None
    try:
        peer, names = client.peer, client.certificate_names()
        if (
            peer is not None
            and names is not None
            and not (holds(names, address) or certificate_fits(names, peer, SERVER))
        ):
            raise EirError(
                f"its certificate is for {', '.join(names) or 'nobody'}, and it calls itself {peer.host} of realm {peer.realm}"
            )
        yield _Asker(client, probe, given["destination_realm"] or (peer.realm if peer is not None else ""))
    finally:
        await client.close()


def _refused(host: str, realm: str, fault: str) -> str:
    """Format the reason why an EIR refused the connection: name of the CEA's Result-Code, and advice."""
    code = re.search(r"Result-Code ([0-9]+)$", fault)
    if code is None:
        return fault
    reason = f"{fault[: code.start(1)]}{_name(int(code[1]))}"
    if int(code[1]) == UNKNOWN_PEER:
        reason += (
            f": the EIR has no peer that fits {host} of realm {realm} at this address; "
            "give names that it knows (origin_host, origin_realm), or put these under its `peers`"
        )
    return reason


class _Asker(NamedTuple):
    """Diameter connection to the EIR, and the Destination-Realm of requests."""

    client: Client
    probe: Probe
    realm: str

    @property
    def closed_by(self) -> str:
        return self.client.closed_by

    async def ask(self, imei: str, imsi: str | None, software_version: str | None) -> ProbeFinding:
        timeout_s, host = self.probe.timeout_s, self.probe.parameters["destination_host"]
        meid = len(imei) == KEY_DIGITS and HEX_DIGITS.issuperset(imei) and not is_digits(imei)
        avps = check_avps(self.realm, imei, imsi, software_version, meid=meid, host=host)
        asked = time.perf_counter()
        try:
            answer = await self.client.request(s13.ME_IDENTITY_CHECK, avps, timeout_s=timeout_s)
        except TimeoutError:
            return ProbeFinding(imei, imsi, fault=f"no answer within {timeout_s:g} s")
        except EirError as e:
            return ProbeFinding(imei, imsi, fault=f"no answer: {e}")
        return _finding(imei, imsi, answer, round((time.perf_counter() - asked) * 1000, 3))


def check_avps(
    realm: str,
    imei: str,
    imsi: str | None,
    software_version: str | None,
    *,
    meid: bool = False,
    host: str | None = None,
) -> bytes:
    """Encode the AVPs of an ECR that follow Origin-Realm (TS 29.272 7.2.19).

    `meid`: True if `imei` is a MEID.
    """
    to = (encode_text(base.DESTINATION_HOST, host) if host else b"") + encode_text(base.DESTINATION_REALM, realm)
    version = encode_text(s13.SOFTWARE_VERSION, software_version) if software_version else b""
    terminal = encode(s13.TERMINAL_INFORMATION, encode_text(s13.MEID if meid else s13.IMEI, imei) + version)
    user_name = encode_text(base.USER_NAME, imsi) if imsi else b""
    return application_id_avp(S13) + s13.NO_STATE + to + terminal + user_name


def _finding(imei: str, imsi: str | None, answer: Answer, round_trip_ms: float) -> ProbeFinding:
    codes, experimental = answer.result_codes, answer.experimental_results
    statuses = [avp.data for avp in answer.every(s13.EQUIPMENT_STATUS)]
    status = None
    if codes == [SUCCESS] and not experimental and len(statuses) == 1 and not answer.is_error:
        status = STATUS_OF.get(statuses[0])
    elif not codes and experimental == [(s13.VENDOR_3GPP, s13.ERROR_EQUIPMENT_UNKNOWN)] and not answer.is_error:
        status = "unknown"
    code = codes[0] if codes else None
    fault = None if status is not None else _fault(answer, codes, experimental, statuses)
    error = None
    if status is None and fault is None:
        error = _name(code) if code is not None else f"{experimental[0][1]} of vendor {experimental[0][0]}"
        messages = answer.every(base.ERROR_MESSAGE)
        error += "".join(f": {text(avp)}" for avp in messages[:1])
    return ProbeFinding(
        imei, imsi, status, code, experimental[0][1] if experimental else None, round_trip_ms, fault, error
    )


def _name(code: int) -> str:
    return f"{code} {NAMES[code]}" if code in NAMES else str(code)


def _fault(answer: Answer, codes: list[int], experimental: list[tuple[int, int]], statuses: list[bytes]) -> str | None:
    """Return the reason why an ECA has no valid Equipment-Status; None if the ECA is a plain error answer.

    A plain error answer has exactly one result, which is an error but not a redirect.
    """
    results = [*map(str, codes), *(f"{vendor}:{code}" for vendor, code in experimental)]
    if len(results) != 1:
        return f"{len(results)} results in one answer: {', '.join(results)}" if results else "no result in the answer"
    if codes == [REDIRECT_INDICATION]:
        hosts = ", ".join(text(avp) for avp in answer.every(base.REDIRECT_HOST))
        return f"redirected to {hosts or 'nobody'}; not followed"
    if codes != [SUCCESS]:
        return None
    if answer.is_error:
        return "the E bit is set beside 2001"
    if len(statuses) != 1:
        return f"{len(statuses) or 'no'} Equipment-Status{'es' if statuses else ''} beside 2001"
    return f"Equipment-Status {statuses[0].hex() or 'of no bytes'} is not one of 0, 1 and 2 (TS 29.272 7.3.51)"
