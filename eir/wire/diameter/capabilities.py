"""Capabilities exchange: parser of a CER or CEA, lookup of its sender, and decision to accept it (RFC 6733 5.3).

No connection and no state.
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
"""Reason for which a CER or CEA without a common application is rejected."""
CEA_REFUSED, CEA_NOT_NOW = "cea_result", "cea_not_now"
"""Reasons for which an outgoing connection is not opened: the peer refuses the node, or refuses it for now."""
SOON_OVER = frozenset({result.TOO_BUSY, result.ELECTION_LOST, result.UNABLE_TO_COMPLY})
"""Result-Codes of a CEA after which a peer may accept the node soon: it is busy, or has another connection to the node."""


class Capabilities(NamedTuple):
    """Fields of a received CER or CEA that the node uses."""

    host: str
    realm: str
    origin_state_id: int | None
    applications: frozenset[int]
    inband_security: frozenset[int]
    """Empty if the AVP is absent."""


IdentifyPeer = Callable[[Capabilities], PeerSettings]
"""Function that returns the entry of the peer table for a CER or CEA; raises DiameterError 3010 if no entry matches."""


def capability_avps(identity: Identity, addresses: Iterable[str], application: Application) -> bytes:
    """Encode the AVPs after Origin-Realm in the node's CER and CEA (RFC 6733 5.3.1, 5.3.2).

    `addresses`: addresses of the connection's own socket. There is no Inband-Security-Id, because TLS begins before the CER or
    not at all.
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
    """Parse a CER or CEA without a grammar check; missing or unreadable fields stay empty."""
    # RFC 6733 6.11 requires exactly one id in a group; old stacks send both, and each of them names an application.
    groups = [avp for avp in message.avps if avp.key == avps.VENDOR_SPECIFIC_APPLICATION_ID]
    stated = [*message.avps, *(member for group in groups for member in message.members(group))]
    host, realm, state = (message.first.get(key) for key in (avps.ORIGIN_HOST, avps.ORIGIN_REALM, avps.ORIGIN_STATE_ID))
    return Capabilities(
        host.data.decode("ascii", "replace") if host else "", realm.data.decode("ascii", "replace") if realm else "",
        u32_or(state, None), _numbers(stated, avps.AUTH_APPLICATION_ID, avps.ACCT_APPLICATION_ID),
        _numbers(message.avps, avps.INBAND_SECURITY_ID),
    )  # fmt: skip


def _numbers(stated: Iterable[Avp], *keys: int) -> frozenset[int]:
    return frozenset(number for avp in stated if avp.key in keys and (number := u32_or(avp, None)) is not None)


def judge_cer(
    request: Request, capabilities: Capabilities, identify: IdentifyPeer, context: NodeContext, *, secure: bool
) -> PeerSettings:
    """Validate a CER, and return its sender's entry in the peer table.

    Raises:
        DiameterError: if the CER is invalid; 3010 only if the sender is unknown and the CER has no other fault.
    """
    entry: PeerSettings | DiameterError
    try:
        entry = identify(capabilities)
    except DiameterError as e:
        entry = e
    settings = entry if isinstance(entry, PeerSettings) else None
    try:
        check_header_bits(request)
        check_grammar(request, CER, settings, context)
        if isinstance(entry, DiameterError):
            raise entry
        _check_common(capabilities, entry, context.application.id, secure=secure)
    except DiameterError as e:
        if isinstance(entry, PeerSettings):
            e.name_entry(entry.label)
        else:
            e.name_entry(entry.entry, entry.nearest)
        raise
    return entry


def judge_cea(
    answer: Answer, settings: PeerSettings, identify: IdentifyPeer, context: NodeContext, *, secure: bool
) -> Capabilities:
    """Validate the CEA of a peer to which the node connected, and return the capabilities of this peer.

    Raises:
        DiameterError: if the CEA does not open the connection (RFC 6733 5.6).
    """
    capabilities = read_capabilities(answer)
    if answer.result_codes != [result.SUCCESS]:
        codes = ", ".join(map(str, answer.result_codes)) or "none"
        reason = CEA_NOT_NOW if answer.result_codes and SOON_OVER.issuperset(answer.result_codes) else CEA_REFUSED
        raise DiameterError(0, reason, f"its CEA has Result-Code {codes}")
    if settings.host is not None and capabilities.host.lower() != settings.host.lower():
        # 5.6: Process-CEA; this is not the configured peer.
        raise DiameterError(0, "cea_origin_host", f"its CEA has Origin-Host {capabilities.host}")
    identify(capabilities)
    _check_common(capabilities, settings, context.application.id, secure=secure)
    return capabilities


def has_common(capabilities: Capabilities, application_id: int) -> bool:
    """Return true if a peer offers the application or relays all applications (RFC 6733 5.3)."""
    return bool(capabilities.applications & {application_id, avps.RELAY})


def _check_common(capabilities: Capabilities, settings: PeerSettings, application_id: int, *, secure: bool) -> None:
    """Check that node and peer have a common application and common security (RFC 6733 5.3).

    Raises:
        DiameterError: 5010 or 5017.
    """
    if not has_common(capabilities, application_id) and APPLICATIONS not in settings.lenient:
        offered = sorted(capabilities.applications) or "no application"
        text = f"it offers {offered}, not {application_id}"
        raise DiameterError(result.NO_COMMON_APPLICATION, NO_APPLICATION, text)
    # RFC 6733 6.10: an absent AVP means NO_INBAND_SECURITY; inside TLS there is nothing to negotiate.
    if not secure and capabilities.inband_security and NO_INBAND_SECURITY not in capabilities.inband_security:
        raise DiameterError(result.NO_COMMON_SECURITY, "no_common_security", "it wants TLS on a connection without it")


def find_peer(
    peers: Sequence[PeerSettings], host: str, realm: str, source: IPv4Address | IPv6Address
) -> PeerSettings | None:
    """Return the first matching entry of the peer table. Names are compared without case (RFC 6733 4.3.1 and DNS)."""
    return next(
        (
            each
            for each in peers
            if _is(each.host, host) and _is(each.realm, realm) and is_from(each, source) and not each.is_titled
        ),
        None,
    )


def nearest_miss(
    peers: Sequence[PeerSettings], capabilities: Capabilities, source: IPv4Address | IPv6Address
) -> tuple[str | None, str]:
    """Return the entry of the peer table that almost matches the sender of a CER: exactly one of its keys `host`, `realm` and `from` differs.

    Returns:
        Label of the entry, and the key that does not match; None and an empty text without such an entry.
    """
    for settings in (each for each in peers if not each.is_titled):
        holds = {
            "host": _is(settings.host, capabilities.host),
            "realm": _is(settings.realm, capabilities.realm),
            "from": is_from(settings, source),
        }
        asked = {"host": settings.host is not None, "realm": settings.realm is not None, "from": bool(settings.sources)}
        wrong = [name for name, fits in holds.items() if not fits]
        if len(wrong) == 1 < sum(asked.values()):
            return settings.label, wrong[0]
    return None, ""


def _is(wanted: str | None, name: str) -> bool:
    return wanted is None or wanted.lower() == name.lower()


def certificate_fits(names: Sequence[str], capabilities: Capabilities, settings: PeerSettings) -> bool:
    """Return true if a certificate with these DNS names is valid for Origin-Host and Origin-Realm (RFC 6733 5.3, 13.1).

    Configured names decide alone. Without them, the certificate must name the Origin-Host. The Origin-Realm must be a suffix of
    the Origin-Host, or be in the certificate too.
    """
    if settings.tls_names:
        return any(holds(names, name) for name in settings.tls_names)
    host, realm = capabilities.host.lower(), capabilities.realm.lower()
    return holds(names, host) and (host == realm or host.endswith(f".{realm}") or holds(names, realm))
