"""ME-Identity-Check (TS 29.272 6.2, 7.2.19, 7.2.20): parses ECRs, and answers them by the rules of the policy.

eir.checks validates identifiers and decides. The node has verified the ECR by its grammar. The path from request to reply is
synchronous.
"""

import re
from collections.abc import Iterable, Mapping

from eir.checks.checker import Checker
from eir.checks.question import Question
from eir.checks.settings import NoDevice, Status, answers_by_peer
from eir.checks.trace import Tracer
from eir.device import IMSI_LENGTHS, KEY_DIGITS, MSISDN_LENGTHS, is_digits
from eir.errors import DiameterError
from eir.interfaces.s13 import dictionary as s13
from eir.wire.diameter.avp import Avp, encode, encode_text, encode_u32
from eir.wire.diameter.dictionary import USER_NAME
from eir.wire.diameter.message import Answer, Reply, Request, result_label
from eir.wire.diameter.result import INVALID_AVP_VALUE, MISSING_AVP, SUCCESS
from eir.wire.peers.settings import PeerSettings

PROTOCOL = "s13"
"""Name of the protocol in metrics."""

EQUIPMENT_STATUSES = {Status.WHITELISTED: 0, Status.BLACKLISTED: 1, Status.GREYLISTED: 2}
"""Values of Equipment-Status (TS 29.272 7.3.51)."""

REPLIES: dict[Status, Reply] = {
    status: Reply(SUCCESS, avps=s13.NO_STATE + encode_u32(s13.EQUIPMENT_STATUS, value))
    for status, value in EQUIPMENT_STATUSES.items()
}
"""Reply to each verdict, encoded once."""
# TS 29.272 7.4.3.4: the answer for an unknown device has an Experimental-Result instead of Result-Code and Equipment-Status.
REPLIES[Status.UNKNOWN] = Reply(experimental=(s13.VENDOR_3GPP, s13.ERROR_EQUIPMENT_UNKNOWN), avps=s13.NO_STATE)

_NO_IMEI = encode(s13.TERMINAL_INFORMATION, encode_text(s13.IMEI, "0" * KEY_DIGITS))
"""Example of the missing AVP: zeros of the minimum valid length (RFC 6733 7.1.5, TS 29.272 7.3.4)."""


_ROOT_NAI = re.compile(
    r"([0-9]{6,16})(?:@(?:[a-z0-9-]+\.)+mnc[0-9]{2,3}\.mcc([0-9]{3})\.3gppnetwork\.org)?", re.IGNORECASE
)
"""User-Name by TS 23.003 19.3.2 or 13.3: digits, and the MCC of the realm."""


class S13Service:
    """Service that answers ECRs by the status that the policy (Checker) gives to the device."""

    def __init__(self, checker: Checker, peers: Iterable[PeerSettings] = (), tracer: Tracer | None = None) -> None:
        self._checker = checker
        self._tracer = tracer
        self.apply(peers)

    def apply(self, peers: Iterable[PeerSettings]) -> None:
        """Apply `answers` of the peer table: for each peer, the statuses to send in place of the policy's statuses."""
        self._replies = {
            label: REPLIES | {verdict: REPLIES[answer] for verdict, answer in answers.items()}
            for label, answers in answers_by_peer(peers).items()
        }

    def replies(self, peer: str) -> Mapping[Status, Reply]:
        """Return a map from each status of the policy to the reply for this peer. `peer`: label of the peer."""
        return self._replies.get(peer, REPLIES)

    def answer(self, request: Request) -> Reply:
        """Return the reply to an ECR.

        Raises DiameterError if the request names no valid device and the policy requires an error.
        """
        info, inside = _terminal(request)
        verdict = self._checker.check(_question(request, inside))
        if not isinstance(verdict, NoDevice):
            return self.replies(request.peer)[verdict.status]
        if info is not None and (bad := inside.get(s13.IMEI) or inside.get(s13.MEID)) is not None:
            detail = "the IMEI or MEID is not valid (policy.bad_identity: error)"
            raise DiameterError(INVALID_AVP_VALUE, verdict.value, detail, failed_avp=request.failed(bad, info))
        detail = "neither IMEI nor MEID (policy.no_identity: error)"
        raise DiameterError(MISSING_AVP, verdict.value, detail, failed_avp=_NO_IMEI)

    def observe(self, request: Request, answer: bytes) -> None:
        """Pass the bytes of an ECR and of its answer to the trace, if a trace runs and the ECR matches its filter.

        The ECR may violate the grammar; AVPs that cannot be read are left out.
        """
        tracer = self._tracer
        if tracer is None or tracer.filter is None or request.command != s13.ME_IDENTITY_CHECK:
            return
        question = _question(request, _terminal(request)[1])
        if tracer.filter.matches(question):
            read = Answer(answer, len(answer))
            result = result_label(next(iter(read.result_codes), 0), next(iter(read.experimental_results), None))
            tracer.wire(question, request.buffer, answer, result)


def _terminal(request: Request) -> tuple[Avp | None, Mapping[int, Avp]]:
    """Return the AVP Terminal-Information of an ECR, and the members of this AVP by key."""
    info = request.first.get(s13.TERMINAL_INFORMATION)
    return info, {} if info is None else {avp.key: avp for avp in request.members(info)}


def _question(request: Request, inside: Mapping[int, Avp]) -> Question:
    imei, meid = inside.get(s13.IMEI), inside.get(s13.MEID)
    return Question(
        imei=None if imei is None else _text(imei),
        meid=None if meid is None else meid_text(meid.data),
        imsi=user_name_imsi(request.first[USER_NAME].data) if USER_NAME in request.first else "",
        msisdn=msisdn_text(request.first[s13.MSISDN].data) if s13.MSISDN in request.first else "",
        software_version=_text(inside.get(s13.SOFTWARE_VERSION)),
        origin_host=request.origin_host, origin_realm=request.origin_realm, protocol=PROTOCOL, peer=request.peer,
    )  # fmt: skip


def user_name_imsi(octets: bytes) -> str:
    """Return the IMSI in a User-Name. The User-Name may be plain digits, a root NAI or a private identity.

    Any other text is returned unchanged. A root NAI has 0 (EAP-AKA) or 6 (EAP-AKA') before the IMSI (TS 23.003 19.3.2). An IMSI
    may begin with either digit, so the digit is removed only if 15 digits follow, or the MCC of the realm.
    """
    text = octets.decode("ascii", "replace")
    if len(text) <= IMSI_LENGTHS[-1] or (match := _ROOT_NAI.fullmatch(text)) is None:
        return text
    digits, mcc = match.groups()
    has_prefix = digits[0] in "06" and (len(digits) > IMSI_LENGTHS[-1] or digits[1:4] == mcc)
    return digits[1:] if has_prefix else digits


def msisdn_text(octets: bytes) -> str:
    """Decode an MSISDN AVP (TBCD, TS 29.329 6.3.2) to digits; return an empty text if the AVP has another form."""
    digits = "".join(f"{octet & 0xF:x}{octet >> 4:x}" for octet in octets[: MSISDN_LENGTHS.stop]).removesuffix("f")
    return digits if len(digits) in MSISDN_LENGTHS and is_digits(digits) else ""


def meid_text(octets: bytes) -> str:
    """Decode the MEID in a 3GPP2-MEID AVP. TS 29.272 7.3.6 refers to 3GPP2 A.S0022 for the encoding.

    Accepted are 14 characters, 7 octets of two digits each, and the 8 octets of the A.S0022 mobile identity. The first of these
    8 octets holds digit 1 and the type, and the last one ends with a filler. Other octets return a text that is not a MEID.
    """
    if len(octets) == 14:
        return octets.decode("ascii", "replace")
    if len(octets) == 8 and octets[0] & 0x07 == 1 and octets[7] >> 4 == 0xF:
        # The lower half of each octet is the earlier digit; that of the first octet is the type.
        return "".join(f"{octet & 0xF:x}{octet >> 4:x}" for octet in octets)[1:15]
    return octets.hex()


def _text(avp: Avp | None) -> str:
    return "" if avp is None else avp.data.decode("ascii", "replace")
