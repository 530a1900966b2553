"""The capabilities exchange: what a CER or CEA says, who its sender is, and whether we talk to it (RFC 6733 5.3).

Knows no connection and no state.
"""

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from eir.errors import DiameterError
from eir.wire.diameter import dictionary as avps
from eir.wire.diameter import result
from eir.wire.diameter.application import CER, Application, application_id_avp
from eir.wire.diameter.avp import Avp, encode_address, encode_text, encode_u32, u32_or
from eir.wire.diameter.message import Answer, Message, Request
from eir.wire.diameter.serve import NodeContext, check_grammar, check_header_bits
from eir.wire.peers.settings import APPLICATIONS, Identity, PeerSettings, holds, is_from

NO_INBAND_SECURITY = 0
"""Inband-Security-Id (RFC 6733 6.10)."""
NO_APPLICATION = "no_common_application"
"""Reason why a CER or CEA is rejected whose sender offers none of our applications."""
CEA_REFUSED, CEA_NOT_NOW = "cea_result", "cea_not_now"
"""Reasons why a connection that we made is not opened: the peer refuses us, or refuses us for now."""
SOON_OVER = frozenset({result.TOO_BUSY, result.ELECTION_LOST, result.UNABLE_TO_COMPLY})
"""Result-Codes of a CEA by which a peer may take us soon: it is busy, it has another connection of ours."""


class Capabilities(NamedTuple):
    """The contents of a CER or CEA."""

    host: str
    realm: str
    origin_state_id: int | None
    applications: frozenset[int]
    inband_security: frozenset[int]
    """Empty if the AVP is absent."""


IdentifyPeer = Callable[[Capabilities], PeerSettings]
"""Says whose a CER or CEA is; raises DiameterError 3010 if no entry of the peer table fits."""


def capability_avps(identity: Identity, addresses: Iterable[str], application: Application) -> bytes:
    """The AVPs after Origin-Realm in our CER and CEA (RFC 6733 5.3.1, 5.3.2).

    `addresses`: those of the connection's own socket. No Inband-Security-Id: TLS comes before the CER, or not at all.
    """
    vendor, firmware = application.vendor, identity.firmware_revision
    return b"".join((
        *(encode_address(avps.HOST_IP_ADDRESS, address) for address in addresses),
        encode_u32(avps.VENDOR_ID, identity.vendor_id),
        encode_text(avps.PRODUCT_NAME, identity.product_name, flags=0),
        encode_u32(avps.ORIGIN_STATE_ID, identity.origin_state_id),
        encode_u32(avps.SUPPORTED_VENDOR_ID, vendor) if vendor else b"",
        application_id_avp(application),
        encode_u32(avps.FIRMWARE_REVISION, firmware, flags=0) if firmware is not None else b"",
    ))  # fmt: skip


def read_capabilities(message: Message) -> Capabilities:
    """Read a CER or CEA; missing or unreadable fields stay empty. Its grammar is checked elsewhere."""
    # RFC 6733 6.11 wants one id in a group; old stacks send both, and either shows what they can do.
    groups = [avp for avp in message.avps if avp.key == avps.VENDOR_SPECIFIC_APPLICATION_ID]
    stated = [*message.avps, *(member for group in groups for member in message.members(group))]
    host, realm, state = (message.first.get(key) for key in (avps.ORIGIN_HOST, avps.ORIGIN_REALM, avps.ORIGIN_STATE_ID))
    return Capabilities(
        host.data.decode("ascii", "replace") if host else "", realm.data.decode("ascii", "replace") if realm else "",
        u32_or(state, None), _numbers(stated, avps.AUTH_APPLICATION_ID, avps.ACCT_APPLICATION_ID),
        _numbers(message.avps, avps.INBAND_SECURITY_ID),
    )  # fmt: skip


def _numbers(found: Iterable[Avp], *keys: int) -> frozenset[int]:
    return frozenset(number for avp in found if avp.key in keys and (number := u32_or(avp, None)) is not None)


def judge_cer(
    request: Request, said: Capabilities, identify: IdentifyPeer, context: NodeContext, *, secure: bool
) -> PeerSettings:
    """The peer that a CER comes from. Raises DiameterError: 3010 where the sender is unknown and nothing else is wrong."""
    found: PeerSettings | DiameterError
    try:
        found = identify(said)
    except DiameterError as e:
        found = e
    settings = found if isinstance(found, PeerSettings) else None
    try:
        check_header_bits(request)
        check_grammar(request, CER, settings, context)
        if isinstance(found, DiameterError):
            raise found
        _check_common(said, found, context.application.id, secure=secure)
    except DiameterError as e:
        if isinstance(found, PeerSettings):
            e.name_entry(found.label)
        else:
            e.name_entry(found.entry, found.nearest)
        raise
    return found


def judge_cea(
    answer: Answer, settings: PeerSettings, identify: IdentifyPeer, context: NodeContext, *, secure: bool
) -> Capabilities:
    """The capabilities of the peer that we connected to.

    Raises DiameterError for a CEA that opens nothing (RFC 6733 5.6).
    """
    said = read_capabilities(answer)
    if answer.result_codes != [result.SUCCESS]:
        codes = ", ".join(map(str, answer.result_codes)) or "none"
        reason = CEA_NOT_NOW if answer.result_codes and SOON_OVER.issuperset(answer.result_codes) else CEA_REFUSED
        raise DiameterError(0, reason, f"its CEA has Result-Code {codes}")
    if settings.host is not None and said.host.lower() != settings.host.lower():
        # 5.6: Process-CEA; it is not the peer that was to be connected to.
        raise DiameterError(0, "cea_origin_host", f"its CEA has Origin-Host {said.host}")
    identify(said)
    _check_common(said, settings, context.application.id, secure=secure)
    return said


def has_common(said: Capabilities, application_id: int) -> bool:
    """True if a peer offers the application, or relays all of them (RFC 6733 5.3)."""
    return bool(said.applications & {application_id, avps.RELAY})


def _check_common(said: Capabilities, settings: PeerSettings, application_id: int, *, secure: bool) -> None:
    """Check that we have an application and security in common with a peer (RFC 6733 5.3).

    Raises DiameterError 5010 or 5017.
    """
    if not has_common(said, application_id) and APPLICATIONS not in settings.lenient:
        offered = sorted(said.applications) or "no application"
        text = f"it offers {offered}, not {application_id}"
        raise DiameterError(result.NO_COMMON_APPLICATION, NO_APPLICATION, text)
    # RFC 6733 6.10: an absent AVP means NO_INBAND_SECURITY; inside TLS there is nothing left to agree on.
    if not secure and said.inband_security and NO_INBAND_SECURITY not in said.inband_security:
        raise DiameterError(result.NO_COMMON_SECURITY, "no_common_security", "it wants TLS on a connection without it")


def find_peer(
    peers: Sequence[PeerSettings], host: str, realm: str, source: IPv4Address | IPv6Address
) -> PeerSettings | None:
    """The first entry that fits; names compare without case (RFC 6733 4.3.1 and DNS)."""
    return next(
        (
            each
            for each in peers
            if _is(each.host, host) and _is(each.realm, realm) and is_from(each, source) and not each.is_titled
        ),
        None,
    )


def nearest_miss(
    peers: Sequence[PeerSettings], said: Capabilities, source: IPv4Address | IPv6Address
) -> tuple[str | None, str]:
    """The label of the first entry that fits but for one thing, and that thing; None if no entry comes so close."""
    for settings in (each for each in peers if not each.is_titled):
        holds = {
            "host": _is(settings.host, said.host),
            "realm": _is(settings.realm, said.realm),
            "from": is_from(settings, source),
        }
        asked = {"host": settings.host is not None, "realm": settings.realm is not None, "from": bool(settings.sources)}
        wrong = [name for name, fits in holds.items() if not fits]
        if len(wrong) == 1 < sum(asked.values()):
            return settings.label, wrong[0]
    return None, ""


def _is(wanted: str | None, name: str) -> bool:
    return wanted is None or wanted.lower() == name.lower()


def certificate_fits(names: Sequence[str], said: Capabilities, settings: PeerSettings) -> bool:
    """True if a certificate with these DNS names may speak as Origin-Host in Origin-Realm (RFC 6733 5.3, 13.1).

    A configured name decides alone. Else the Origin-Host itself has to be there, and the Origin-Realm to be a part of
    it, or to be there too.
    """
    if settings.tls_names:
        return any(holds(names, name) for name in settings.tls_names)
    host, realm = said.host.lower(), said.realm.lower()
    return holds(names, host) and (host == realm or host.endswith(f".{realm}") or holds(names, realm))
