"""Settings of the section `feed`."""

from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from eir.wire.web.denials import TokenSettings

NAME: Final = "feed"
"""Name of the interface and of its process."""
FEED_SCOPE: Final = "eir-feed"
"""Required scope of an access token; also the realm of passwords."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedLists:
    """Names of the local lists that the feed changes, by role. The role is a word in the path of a request, such as `allowed-tac`.

    If a role has several lists, the feed uses the list whose kind fits the row.
    """

    block: tuple[str, ...] = ()
    exception: tuple[str, ...] = ()
    track: tuple[str, ...] = ()
    allowed_tac: tuple[str, ...] = ()
    blocked_tac: tuple[str, ...] = ()

    @property
    def by_role(self) -> dict[str, tuple[str, ...]]:
        """Map from each role, such as `allowed-tac`, to the names of its lists. The role is a word in the path of a request."""
        return {each.name.replace("_", "-"): getattr(self, each.name) for each in fields(self)}


TAC_ROLES: Final = frozenset({"allowed-tac", "blocked-tac"})
"""Roles whose rows name TACs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """Settings of the section `feed`."""

    listen: tuple[str, ...] = ()
    """URLs `http://host:port` or `https://host:port`, each with its port; empty: the feed is disabled."""
    users: Path | None = None
    """File of users (eir.wire.web.passwords)."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may connect; empty: any."""
    lists: FeedLists = field(default_factory=FeedLists)
    tokens: TokenSettings | None = None
    """Rules for access tokens; None: not accepted."""
