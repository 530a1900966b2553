"""ME-Identity-Check: what an ECR asks about, what the policy says, and what the ECA carries (TS 29.272 6.2, 7.2.19, 7.2.20).

Synchronous from request to reply. The node has checked the ECR against its grammar; what only the policy can tell (an ECR
without an identifier, or with one that is none) is decided here.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from eir.checks.policy import Policy, Status, Verdict
from eir.device import imei_key, is_digits, key_text, meid_key_from_octets
from eir.diameter.answer import Reply
from eir.diameter.avp import Avp, encode_u32
from eir.diameter.dictionary import USER_NAME
from eir.diameter.message import Request
from eir.diameter.result import INVALID_AVP_VALUE, MISSING_AVP, SUCCESS
from eir.errors import DiameterError, IdentifierError
from eir.s13.dictionary import (
    DICTIONARY,
    EQUIPMENT_STATUS,
    ERROR_EQUIPMENT_UNKNOWN,
    IMEI,
    MEID,
    NO_STATE,
    SOFTWARE_VERSION,
    TERMINAL_INFORMATION,
    VENDOR_3GPP,
)

SOFTWARE_VERSION_DIGITS = 2

EQUIPMENT_STATUSES = {Status.WHITELISTED: 0, Status.BLACKLISTED: 1, Status.GREYLISTED: 2}
"""TS 29.272 7.3.51."""

REPLIES: dict[Status, Reply] = {
    status: Reply(SUCCESS, avps=NO_STATE + encode_u32(EQUIPMENT_STATUS, value))
    for status, value in EQUIPMENT_STATUSES.items()
}
"""The answer to each verdict, encoded once."""
# TS 29.272 7.4.3.4: an unknown device is an Experimental-Result, and then neither Result-Code nor Equipment-Status is sent.
REPLIES[Status.UNKNOWN] = Reply(experimental=(VENDOR_3GPP, ERROR_EQUIPMENT_UNKNOWN), avps=NO_STATE)

Note = Callable[[Verdict, str, str, str], None]
"""Told of each check that did not end in `whitelisted`: verdict, peer label, IMEI, IMSI (empty where there was none)."""


class S13Service:
    """Answers ECRs by the policy that it holds; `policy` may be replaced between two requests."""

    def __init__(self, policy: Policy, *, note: Note) -> None:
        self.policy = policy
        self.checks: Counter[tuple[str, str]] = Counter()
        """(status, list that decided or empty) → checks answered."""
        self.identity_errors: Counter[tuple[str, str]] = Counter()
        """(`none` or `bad`, peer label) → requests without a usable identifier."""
        self.note = note

    def answer(self, request: Request) -> Reply:
        """The reply to an ECR. Raises DiameterError where policy wants an error for a request without a usable identifier."""
        info = request.find(TERMINAL_INFORMATION)
        imei = meid = version = None
        if info is not None:
            imei = request.find_in(info, IMEI)
            meid = request.find_in(info, MEID)
            version = request.find_in(info, SOFTWARE_VERSION)
        user_name = request.find(USER_NAME)
        imsi = _digits(user_name)
        if imei is None and meid is None:
            return self._without_identity(request, info, imsi)
        key = _key(imei, meid)
        if key is None:
            return self._with_bad_identity(request, info, imei or meid, imsi)
        verdict = self.policy.decide(key, imsi, _version(imei, version), request.origin_host, request.origin_realm)
        return self._reply(verdict, request.peer, key_text(key), imsi)

    def _reply(self, verdict: Verdict, peer: str, imei: str, imsi: str) -> Reply:
        status = verdict.status
        self.checks[status, verdict.list or ""] += 1
        if status is not Status.WHITELISTED:
            self.note(verdict, peer, imei, imsi)
        return REPLIES[status]

    def _without_identity(self, request: Request, info: Avp | None, imsi: str) -> Reply:
        self.identity_errors["none", request.peer] += 1
        verdict = self.policy.no_identity
        if verdict is not None:
            return self._reply(verdict, request.peer, "", imsi)
        if info is None:
            example = DICTIONARY.example(TERMINAL_INFORMATION)
        else:
            example = DICTIONARY.example(IMEI, groups=(TERMINAL_INFORMATION,))
        raise DiameterError(MISSING_AVP, "no_identity", "neither IMEI nor MEID (policy.no_identity: error)", failed_avp=example)

    def _with_bad_identity(self, request: Request, info: Avp | None, bad: Avp | None, imsi: str) -> Reply:
        self.identity_errors["bad", request.peer] += 1
        verdict = self.policy.bad_identity
        if verdict is not None:
            return self._reply(verdict, request.peer, "", imsi)
        failed = request.failed(bad, info) if bad is not None and info is not None else b""
        raise DiameterError(
            INVALID_AVP_VALUE, "bad_identity", "the IMEI is none (policy.bad_identity: error)", failed_avp=failed
        )


def _key(imei: Avp | None, meid: Avp | None) -> int | None:
    """The device's key by its IMEI if it sent a good one, else by its MEID; None if neither is one."""
    if imei is not None:
        with suppress(IdentifierError):
            return imei_key(imei.data.decode("ascii", "replace"))
    if meid is not None:
        with suppress(IdentifierError):
            return meid_key_from_octets(meid.data)
    return None


def _version(imei: Avp | None, version: Avp | None) -> str:
    """The two digits of Software-Version; those at the end of an IMEISV where the AVP is missing; else empty."""
    text = _digits(version)
    if not text and imei is not None and len(imei.data) == 16:
        text = imei.data[14:].decode("ascii", "replace")
    return text if len(text) == SOFTWARE_VERSION_DIGITS else ""


def _digits(avp: Avp | None) -> str:
    """The text of an AVP if it is digits; else empty: an IMSI or a version that is none decides nothing."""
    text = "" if avp is None else avp.data.decode("ascii", "replace")
    return text if is_digits(text) else ""
