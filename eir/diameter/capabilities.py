"""The capabilities exchange: what a CER or CEA says, who its sender is, and whether we talk to it (RFC 6733 5.3).

Imports the codec, the dictionary and settings. Knows no connection and no state.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from eir.diameter.avp import Avp, encode, encode_address, encode_text, encode_u32, u32_or
from eir.diameter.dictionary import (
    ACCT_APPLICATION_ID,
    AUTH_APPLICATION_ID,
    FIRMWARE_REVISION,
    HOST_IP_ADDRESS,
    INBAND_SECURITY_ID,
    ORIGIN_HOST,
    ORIGIN_REALM,
    ORIGIN_STATE_ID,
    PRODUCT_NAME,
    RELAY,
    SUPPORTED_VENDOR_ID,
    TGPP,
    VENDOR_ID,
    VENDOR_SPECIFIC_APPLICATION_ID,
)
from eir.diameter.message import Message
from eir.diameter.settings import APPLICATIONS, Identity, PeerSettings
from eir.errors import DiameterError

UNKNOWN_PEER = 3010
NO_COMMON_APPLICATION = 5010
NO_COMMON_SECURITY = 5017

NO_INBAND_SECURITY = 0


class Capabilities(NamedTuple):
    """What a CER or CEA says."""

    host: str
    realm: str
    origin_state_id: int | None
    applications: frozenset[int]
    inband_security: frozenset[int]
    """Empty if the AVP is absent."""


def origin_avps(host: str, realm: str) -> bytes:
    """Origin-Host and Origin-Realm, encoded."""
    return encode_text(ORIGIN_HOST, host) + encode_text(ORIGIN_REALM, realm)


def capability_avps(identity: Identity, addresses: Iterable[str], application_id: int) -> bytes:
    """What follows Origin-Realm in our CER and CEA (RFC 6733 5.3.1, 5.3.2).

    `addresses`: those of the connection's own socket. No Inband-Security-Id: TLS comes before the CER, or not at all.
    """
    parts = [encode_address(HOST_IP_ADDRESS, address) for address in addresses]
    parts += (
        encode_u32(VENDOR_ID, identity.vendor_id),
        encode_text(PRODUCT_NAME, identity.product_name, flags=0),
        encode_u32(ORIGIN_STATE_ID, identity.origin_state_id),
        encode_u32(SUPPORTED_VENDOR_ID, TGPP),
        encode(
            VENDOR_SPECIFIC_APPLICATION_ID,
            encode_u32(VENDOR_ID, TGPP) + encode_u32(AUTH_APPLICATION_ID, application_id),
        ),
    )
    if identity.firmware_revision is not None:
        parts.append(encode_u32(FIRMWARE_REVISION, identity.firmware_revision, flags=0))
    return b"".join(parts)


def read_capabilities(message: Message) -> Capabilities:
    """What a CER or CEA says; of what is missing or unreadable, nothing. Its grammar is checked elsewhere."""
    # RFC 6733 6.11 wants one id in a group; old stacks send both, and either shows what they can do.
    groups = [avp for avp in message.avps if avp.key == VENDOR_SPECIFIC_APPLICATION_ID]
    stated = [*message.avps, *(member for group in groups for member in message.members(group))]
    host, realm, state = (message.first.get(key) for key in (ORIGIN_HOST, ORIGIN_REALM, ORIGIN_STATE_ID))
    return Capabilities(
        host.data.decode("ascii", "replace") if host else "",
        realm.data.decode("ascii", "replace") if realm else "",
        u32_or(state, None),
        _numbers(stated, AUTH_APPLICATION_ID, ACCT_APPLICATION_ID),
        _numbers(message.avps, INBAND_SECURITY_ID),
    )


def _numbers(avps: Iterable[Avp], *keys: int) -> frozenset[int]:
    return frozenset(number for avp in avps if avp.key in keys and (number := u32_or(avp, None)) is not None)


def check_capabilities(said: Capabilities, settings: PeerSettings, application_id: int, *, secure: bool) -> None:
    """Whether we have anything in common with a peer (RFC 6733 5.3); `secure`: the connection is inside TLS.

    Raises DiameterError 5010 or 5017.
    """
    if not said.applications & {application_id, RELAY} and APPLICATIONS not in settings.lenient:
        raise DiameterError(
            NO_COMMON_APPLICATION,
            "no_common_application",
            f"it offers {sorted(said.applications) or 'no application'}, not {application_id}",
        )
    # RFC 6733 6.10: an absent AVP means NO_INBAND_SECURITY; inside TLS there is nothing left to agree on.
    if not secure and said.inband_security and NO_INBAND_SECURITY not in said.inband_security:
        raise DiameterError(NO_COMMON_SECURITY, "no_common_security", "it wants TLS on a connection without it")


def source_address(text: str) -> IPv4Address | IPv6Address:
    """A socket's address; one that a dual-stack socket shows as IPv6 is the IPv4 address that it stands for."""
    address = ip_address(text.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def may_connect(peers: Sequence[PeerSettings], source: IPv4Address | IPv6Address) -> bool:
    """Whether any entry of the peer table takes connections from there."""
    return any(_from(settings, source) for settings in peers)


def find_peer(
    peers: Sequence[PeerSettings], host: str, realm: str, source: IPv4Address | IPv6Address
) -> PeerSettings | None:
    """The first entry that fits; names compare without case (RFC 6733 4.3.1 and DNS)."""
    for settings in peers:
        if (
            (settings.host is None or settings.host.lower() == host.lower())
            and (settings.realm is None or settings.realm.lower() == realm.lower())
            and _from(settings, source)
        ):
            return settings
    return None


def _from(settings: PeerSettings, source: IPv4Address | IPv6Address) -> bool:
    return not settings.sources or any(source in network for network in settings.sources)


def certificate_fits(names: Sequence[str], said: Capabilities, settings: PeerSettings) -> bool:
    """Whether a certificate with these DNS names may speak as Origin-Host in Origin-Realm (RFC 6733 5.3, 13.1).

    A configured name decides alone. Else the Origin-Host itself has to be there, and the Origin-Realm to be a part of
    it, or to be there too.
    """
    if settings.tls_names:
        return any(holds(names, name) for name in settings.tls_names)
    host, realm = said.host.lower(), said.realm.lower()
    return holds(names, host) and (host == realm or host.endswith(f".{realm}") or holds(names, realm))


def holds(names: Sequence[str], wanted: str) -> bool:
    """Whether one of a certificate's names is the wanted one, as RFC 6125 6.4 compares them.

    Without case; a star stands for the whole first label and for nothing else.
    """
    name = wanted.lower()
    beyond_first = name.partition(".")[2]
    return any(held.lower() == name or (bool(beyond_first) and held.lower() == f"*.{beyond_first}") for held in names)
