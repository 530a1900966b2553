"""Interface `desk`: persons search devices and change local lists on a page, and programs do the same in JSON."""

from collections.abc import Mapping

from eir.interfaces.desk.settings import DESK_SCOPE, NAME, DeskSettings
from eir.interfaces.interface import LISTEN_HTTP, Interface, SharedSettings, token_keys
from eir.schema import (
    FILE,
    NETWORK,
    REQUIRED,
    Document,
    Family,
    Findings,
    Key,
    Section,
    did_you_mean,
    domain_name,
    many,
    text,
)
from eir.wire.transport.endpoint import is_loopback, is_secure
from eir.wire.web.denials import TokenSettings
from eir.wire.web.passwords import DESK_USER, Hashed, UsersError, read_users

NAME_AND_USER = text(
    "a name in a certificate, an equals sign and a user, such as alice.ops.example.org=alice", r"([^=]{1,253})=([A-Za-z0-9][A-Za-z0-9._-]{0,63})",
    lambda match: (domain_name(match[1]), match[2]), show="=".join,
)  # fmt: skip
KEYS = (
    Key("desk.listen", many(LISTEN_HTTP), (), "addresses of the page /desk and of the JSON interface /v1/ (HTTP/1.1): https with the certificates of `tls`, or http on a loopback address"),
    Key("desk.users", FILE, None, "file of users with hashed passwords, roles and lists, one line each, from `eir desk user NAME`"),
    Key("desk.from", many(NETWORK), (), "networks from which clients may connect; any if left out", field="sources"),
    Key("desk.tls_names", many(NAME_AND_USER), (), "names in client certificates of the authorities in `tls.ca`, each with the user whom it identifies without a password"),
    *token_keys("desk.tokens", REQUIRED, f"the scope must be {DESK_SCOPE}, and the claim `sub` a user of `users`"),
)  # fmt: skip
SECTIONS = (Section("desk", DeskSettings), Section("desk.tokens", TokenSettings, optional=True))
FAMILIES = (
    Family("eir_desk_requests_total", "counter", ("user", "action", "result"), "Requests of the desk, by user, by action, and by HTTP status of the answer"),
)  # fmt: skip


def _check(desk: DeskSettings, shared: SharedSettings, _: Document) -> Findings:
    for at, url in enumerate(desk.listen):
        if not is_secure(url) and not is_loopback(url):
            yield (
                f"{url}: passwords need TLS; expected https://, or http:// on a loopback address",
                ("desk", "listen", at),
            )
    if desk.users is not None:
        try:
            yield from _check_users(desk, shared, read_users(desk.users, DESK_USER))
        except UsersError as e:
            yield str(e), ("desk", "users")


def _check_users(desk: DeskSettings, shared: SharedSettings, users: Mapping[str, Hashed]) -> Findings:
    for user, hashed in users.items():
        for name in hashed.lists:
            if name not in shared.lists:
                yield (
                    f"{desk.users}: the list '{name}' of {user} is not under 'lists'{did_you_mean(name, shared.lists)}",
                    ("desk", "users"),
                )
            elif not shared.lists[name].local:
                yield (
                    f"{desk.users}: the list {name} of {user} changes by signed releases; expected a list with local: true",
                    ("desk", "users"),
                )
    for at, (name, user) in enumerate(desk.tls_names):
        if user not in users:
            yield (
                f"{name}={user}: {desk.users} has no user {user}{did_you_mean(user, users)}",
                ("desk", "tls_names", at),
            )


def _warn(desk: DeskSettings, _: SharedSettings, _document: Document) -> Findings:
    if desk.listen and desk.users is None:
        yield "the desk has no users; expected 'users', whose lines `eir desk user NAME` prints", ("desk",)
    if desk.listen and not desk.sources and not all(map(is_loopback, desk.listen)):
        yield "any client of the listener can try passwords; restrict addresses by 'from'", ("desk",)


INTERFACE = Interface(
    name=NAME, section="desk", keys=KEYS, sections=SECTIONS, check=_check, warn=_warn, families=FAMILIES, service="eir.interfaces.desk.service:DeskService",
)  # fmt: skip
