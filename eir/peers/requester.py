"""The requester: the one place that decides a client's name and its entry of the peer table.

Without TLS nobody has shown a name, so that the address alone decides. With TLS the name is the certificate's.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from eir.peers.settings import PeerSettings, holds, is_from

CORE = "5gc.mnc"
"""The beginning of the domain of an operator's 5G core (TS 23.003 28.2)."""


class Requester(NamedTuple):
    """The requester, as a question names it."""

    label: str
    """Label of its entry of the peer table."""
    host: str = ""
    """Its name; empty: it has shown none."""
    realm: str = ""


def requester(
    peers: Sequence[PeerSettings], names: Sequence[str] | None, source: IPv4Address | IPv6Address
) -> tuple[PeerSettings, Requester] | None:
    """The entry of a client, and who it is, by the names of its certificate (None: there is no TLS); None: there is no entry for it.

    Without TLS the first entry for the address that wants no name is preferred to one that does.
    """
    there = [settings for settings in peers if is_from(settings, source) and not settings.is_titled]
    if names is None:
        nameless = [settings for settings in there if settings.host is None and settings.realm is None]
        found = next(iter((*nameless, *there)), None)
        return None if found is None else (found, Requester(found.label))
    for settings in there:
        if (name := _name(settings, names)) is not None:
            return settings, Requester(settings.label, name, realm_of(name))
    return None


def realm_of(name: str) -> str:
    """The realm of a host of this name: its operator's 5G core, or its parent domain."""
    core = name.lower().find(CORE)
    return name[core:] if core >= 0 else name.partition(".")[2]


def _name(settings: PeerSettings, names: Sequence[str]) -> str | None:
    """The name of a client that an entry fits; None: the certificate is not one that the entry allows."""
    own = names[0] if names else ""
    if settings.tls_names:
        allowed = any(holds(names, name) for name in settings.tls_names)
        return (settings.host or own) if allowed else None
    if settings.host is not None:
        return settings.host if holds(names, settings.host) else None
    if settings.realm is not None:
        realm = settings.realm.lower()
        return next((name for name in names if name.lower() == realm or name.lower().endswith(f".{realm}")), None)
    return own
