"""`eir probe`: an MME that asks an EIR, ours or any other, and reports what it was answered. Knows no list and no policy."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eir.diameter.avp import encode, encode_text, encode_u32, text
from eir.diameter.client import Client, connect
from eir.diameter.message import Answer
from eir.errors import EirError
from eir.s13 import service as s13

STATUS_OF = {value.to_bytes(4): str(status) for status, value in s13.EQUIPMENT_STATUSES.items()}
COMMAND_ECR = 324
APPLICATION_S13 = 16777252
VENDOR_ID, AUTH_APPLICATION_ID, VENDOR_SPECIFIC_APPLICATION_ID = 266, 258, 260
REDIRECT_HOST = 292
REDIRECT_INDICATION = 3006


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, and who to be."""

    host: str
    port: int
    origin_host: str
    origin_realm: str
    destination_realm: str | None = None
    """None: the realm that the EIR names in its CEA."""
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one question was answered; the keys of `--json`."""

    imei: str
    imsi: str | None
    status: str | None
    """One of the four statuses; None if the answer holds none that stands alone."""
    result_code: int | None
    experimental_result_code: int | None
    round_trip_ms: float | None
    """None: no answer."""
    fault: str | None = None
    """Why there is no answer, or what is wrong with it."""

    def as_json(self) -> dict[str, Any]:
        """The finding as a JSON object; the fault is for people."""
        return {key: value for key, value in asdict(self).items() if key != "fault"}


async def ask(
    target: Target, imeis: Sequence[str], *, imsi: str | None = None, software_version: str | None = None
) -> list[Finding]:
    """Connect, ask about each IMEI in turn, disconnect. Raises EirError if the connection or the CER fails."""
    client = await connect(
        target.host, target.port, origin_host=target.origin_host, origin_realm=target.origin_realm, timeout_s=target.timeout_s
    )
    try:
        realm = target.destination_realm or client.peer_realm
        findings = []
        for imei in imeis:
            avps = check_avps(realm, imei, imsi, software_version)
            findings.append(await _ask_one(client, avps, imei, imsi, target.timeout_s))
        return findings
    finally:
        await client.close()


async def _ask_one(client: Client, avps: bytes, imei: str, imsi: str | None, timeout_s: float) -> Finding:
    asked = time.perf_counter()
    try:
        answer = await client.request(COMMAND_ECR, APPLICATION_S13, avps, timeout_s=timeout_s)
    except TimeoutError:
        return Finding(imei, imsi, None, None, None, None, f"no answer within {timeout_s:g} s")
    except EirError as e:
        return Finding(imei, imsi, None, None, None, None, f"no answer: {e}")
    return _finding(imei, imsi, answer, round((time.perf_counter() - asked) * 1000, 3))


def check_avps(realm: str, imei: str, imsi: str | None, software_version: str | None) -> bytes:
    """What an ECR holds after Origin-Realm (TS 29.272 7.2.19)."""
    application = encode_u32(VENDOR_ID, s13.VENDOR_3GPP) + encode_u32(AUTH_APPLICATION_ID, APPLICATION_S13)
    terminal = encode_text(s13.IMEI, imei, s13.VENDOR_3GPP)
    if software_version:
        terminal += encode_text(s13.SOFTWARE_VERSION, software_version, s13.VENDOR_3GPP)
    avps = [
        encode(VENDOR_SPECIFIC_APPLICATION_ID, application),
        encode_u32(s13.AUTH_SESSION_STATE, s13.NO_STATE_MAINTAINED),
        encode_text(283, realm),
        encode(s13.TERMINAL_INFORMATION, terminal, s13.VENDOR_3GPP),
    ]
    if imsi:
        avps.append(encode_text(s13.USER_NAME, imsi))
    return b"".join(avps)


def _finding(imei: str, imsi: str | None, answer: Answer, round_trip_ms: float) -> Finding:
    """An answer as it came: two results, or an E bit with a status, are shown and not followed."""
    codes, experimental = answer.result_codes, answer.experimental_results
    statuses = [avp.data for avp in answer.every(s13.EQUIPMENT_STATUS, s13.VENDOR_3GPP)]
    status = None
    if codes == [s13.DIAMETER_SUCCESS] and not experimental and len(statuses) == 1 and not answer.is_error:
        status = STATUS_OF.get(statuses[0])
    elif not codes and experimental == [(s13.VENDOR_3GPP, s13.ERROR_EQUIPMENT_UNKNOWN)] and not answer.is_error:
        status = "unknown"
    code = codes[0] if codes else None
    fault = None if status is not None else _fault(answer, codes, experimental, statuses)
    return Finding(imei, imsi, status, code, experimental[0][1] if experimental else None, round_trip_ms, fault)


def _fault(answer: Answer, codes: list[int], experimental: list[tuple[int, int]], statuses: list[bytes]) -> str | None:
    """What is wrong with an answer that holds no status that counts; None for a plain error answer."""
    results = [*map(str, codes), *(f"{vendor}:{code}" for vendor, code in experimental)]
    if len(results) != 1:
        return f"{len(results)} results in one answer: {', '.join(results)}" if results else "no result in the answer"
    if codes == [REDIRECT_INDICATION]:
        hosts = ", ".join(text(avp) for avp in answer.every(REDIRECT_HOST))
        return f"redirected to {hosts or 'nobody'}; not followed"
    if codes != [s13.DIAMETER_SUCCESS]:
        return None
    if answer.is_error:
        return "the E bit is set beside 2001"
    if len(statuses) != 1:
        return f"{len(statuses) or 'no'} Equipment-Status{'es' if statuses else ''} beside 2001"
    return f"Equipment-Status {statuses[0].hex() or 'of no bytes'} is none (TS 29.272 7.3.51)"

