"""Settings of the feed."""

from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from eir.wire.web.denials import TokenSettings

NAME: Final = "feed"
"""Name of the interface and of its process."""
FEED_SCOPE: Final = "eir-feed"
"""The scope that an access token has to have; also the realm of passwords."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedLists:
    """Into which lists the rows of each kind go; of several the one whose kind fits what the row names."""

    block: tuple[str, ...] = ()
    exception: tuple[str, ...] = ()
    track: tuple[str, ...] = ()
    allowed_tac: tuple[str, ...] = ()
    blocked_tac: tuple[str, ...] = ()

    @property
    def by_role(self) -> dict[str, tuple[str, ...]]:
        """The same by the word in the path of a request."""
        return {each.name.replace("_", "-"): getattr(self, each.name) for each in fields(self)}


TAC_ROLES: Final = frozenset({"allowed-tac", "blocked-tac"})
"""The words whose rows name TACs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """The section `feed`."""

    listen: tuple[str, ...] = ()
    """`http://host:port` or `https://host:port`, each with its port; empty: there is no feed."""
    users: Path | None = None
    """The file of eir.interfaces.feed.feed_users."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may connect; empty: any."""
    lists: FeedLists = field(default_factory=FeedLists)
    tokens: TokenSettings | None = None
    """None: access tokens are no way in."""
