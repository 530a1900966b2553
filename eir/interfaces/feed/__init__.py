"""Interface `feed`: a national register adds entries to local lists, or removes entries, by HTTP requests."""

import stat
from collections import Counter

from eir.device import SNR_KEYS
from eir.interfaces.feed.settings import FEED_SCOPE, NAME, TAC_ROLES, FeedLists, FeedSettings
from eir.interfaces.interface import LISTEN_HTTP, Interface, SharedSettings, token_keys
from eir.lists.record.settings import DEVICES
from eir.schema import (
    FILE,
    LIST_NAME,
    NETWORK,
    REQUIRED,
    Document,
    Family,
    Findings,
    Key,
    Section,
    did_you_mean,
    many,
)  # fmt: skip
from eir.wire.transport.endpoint import is_loopback
from eir.wire.web.denials import TokenSettings
from eir.wire.web.passwords import UsersError, read_users

KEYS = (
    Key("feed.listen", many(LISTEN_HTTP), (), "addresses for registers (HTTP/1.1): https with the certificates of `tls`, or http on a loopback address"),
    Key("feed.users", FILE, None, "file of users with hashed passwords, one line each, from `eir feed user NAME`"),
    Key("feed.from", many(NETWORK), (), "networks from which registers may connect; any if left out", field="sources"),
    Key("feed.lists.block", many(LIST_NAME), (), "local lists that receive rows sent to the HTTP path /eir/block; the row's kind selects the list"),
    Key("feed.lists.exception", many(LIST_NAME), (), "local lists that receive rows sent to /eir/exception; the row's kind selects the list"),
    Key("feed.lists.track", many(LIST_NAME), (), "local lists that receive rows sent to /eir/track; the row's kind selects the list"),
    Key("feed.lists.allowed-tac", many(LIST_NAME), (), "local list of kind devices that receives the TACs sent to /eir/allowed-tac", field="allowed_tac"),
    Key("feed.lists.blocked-tac", many(LIST_NAME), (), "local list of kind devices that receives the TACs sent to /eir/blocked-tac", field="blocked_tac"),
    *token_keys("feed.tokens", REQUIRED, f"the scope must be {FEED_SCOPE}"),
)  # fmt: skip
SECTIONS = (
    Section("feed", FeedSettings),
    Section("feed.lists", FeedLists),
    Section("feed.tokens", TokenSettings, optional=True),
)
FAMILIES = (
    Family("eir_feed_rows_total", "counter", ("user", "rows", "result"), "Rows from registers, by user, by HTTP path (`block` for /eir/block), and by HTTP status of the answer"),
    Family("eir_feed_transactions_total", "counter", (), "Store transactions with rows from registers"),
)  # fmt: skip


def _check(feed: FeedSettings, shared: SharedSettings, _: Document) -> Findings:
    if feed.users is not None:
        try:
            read_users(feed.users)
        except UsersError as e:
            yield str(e), ("feed", "users")
    for role, names in feed.lists.by_role.items():
        kinds = Counter(shared.lists[name].kind for name in names if name in shared.lists)
        for at, name in enumerate(names):
            spot = ("feed", "lists", role, at)
            if (settings := shared.lists.get(name)) is None:
                yield f"the list '{name}' is not under 'lists'{did_you_mean(name, shared.lists)}", spot
            elif not settings.local:
                yield f"{name} changes by signed releases; expected a list with local: true", spot
            elif role in TAC_ROLES and settings.kind != DEVICES:
                yield f"'{name}' is a list of {settings.kind}, which contains no TACs", spot
            elif kinds[settings.kind] > 1:
                yield f"two lists of {settings.kind} for {role}; expected at most one list of each kind", spot


def _warn(feed: FeedSettings, shared: SharedSettings, _: Document) -> Findings:
    if feed.users is not None and feed.users.stat().st_mode & stat.S_IROTH:
        yield f"{feed.users} is readable by everyone on this host: chmod o-r {feed.users}", ("feed", "users")
    if not feed.listen:
        return
    if feed.users is None and feed.tokens is None:
        yield "no register can send rows; expected 'users' or 'tokens'", ("feed",)
    if not any(feed.lists.by_role.values()):
        yield "no list accepts rows; expected 'lists'", ("feed",)
    for role in TAC_ROLES:
        for at, name in enumerate(feed.lists.by_role[role]):
            if shared.lists[name].change_min <= SNR_KEYS:
                most = f"a TAC is a million devices, and change_min of {name} is {shared.lists[name].change_min}"
                yield (
                    f"{most}: a row with a TAC is refused while the list is small; expected change_min above {SNR_KEYS}",
                    ("feed", "lists", role, at),
                )
    if not feed.sources and not all(map(is_loopback, feed.listen)):
        yield "any client of the listener can try passwords; restrict addresses by 'from'", ("feed",)


INTERFACE = Interface(
    name=NAME, section="feed", keys=KEYS, sections=SECTIONS, check=_check, warn=_warn, families=FAMILIES, service="eir.interfaces.feed.service:FeedService",
)  # fmt: skip
