"""Commands for the first setup: configuration, signers files and systemd unit of a node; users of feed and desk.

Existing files are never overwritten. The files are validated like `eir serve` reads them.
"""

import grp
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from shlex import quote
from typing import Annotated, NamedTuple

import typer

from eir.cli.access import SYSTEM_CONFIG
from eir.cli.output import EXIT_USAGE, fail, print_message
from eir.config import load_config
from eir.errors import ConfigError
from eir.lists.releases.openssh import NAMESPACE, keys_of
from eir.schema import IDENTITY, Kind, Unexpected, url
from eir.wire.transport.endpoint import PORTS
from eir.wire.web.passwords import CHANGE, VIEW, UsersError, check_name, user_line

SYSTEM_STATE, STATE = "/var/lib/eir", "var"
"""State folder of a configuration in /etc/eir, and of any other."""
GROUP = "eir"
"""Group of the service's system user, who reads the configuration."""
LISTEN = "tcp://0.0.0.0:3868"
LISTENER = url(PORTS, LISTEN)
KEY_BYTES_MAX = 64 << 10
UNIT = Path(__file__).with_name("eir.service")


class FirstPeer(NamedTuple):
    """Peer entry in the configuration that `eir init` writes."""

    host: str | None
    """Origin-Host of the peer; None: any host of the node's realm."""
    networks: Sequence[str]
    """Networks from which the peer connects."""


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the configuration goes.")] = SYSTEM_CONFIG.parent,
    realm: Annotated[str, typer.Option(metavar="REALM", help="The node's Diameter realm, such as epc.mnc001.mcc001.3gppnetwork.org.")] = "",
    host: Annotated[str, typer.Option(metavar="HOST", help="Its own name, as peers have it in their configuration; eir1.REALM if not given. One without a dot is one of REALM.")] = "",
    listen: Annotated[list[str] | None, typer.Option(metavar="URL", help="Where peers connect to: tcp://ADDRESS:PORT, or sctp://.", show_default=LISTEN)] = None,
    peer: Annotated[list[str] | None, typer.Option(metavar="PEER", help="Who may ask: HOST@ADDRESS, HOST@NETWORK,NETWORK, or a NETWORK alone for all of the realm in it. A HOST without a dot is one of REALM. May be given several times.")] = None,
    list_name: Annotated[str, typer.Option("--list", metavar="LIST", help="What the publisher's list is called.")] = "stolen",
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The publisher's public key, as ssh-keygen writes it (.pub). Without one there is only a list that is changed by hand.")] = None,
    signer: Annotated[str, typer.Option(metavar="NAME", help="What to call who holds the key; the comment in it if not given.")] = "",
    state: Annotated[str, typer.Option(metavar="FOLDER", help="The state folder.", show_default=f"{SYSTEM_STATE} for a configuration in {SYSTEM_CONFIG.parent}, else {STATE} beside it")] = "",
) -> None:  # fmt: skip
    """Create the first configuration of a node.

    On a terminal, the command asks for values that no option gives. It writes to FOLDER: eir.yaml with comments, the
    publisher's key in signers/, and eir.service, the unit for systemd. Existing files are not overwritten: exit status
    1 if one of them exists.
    """
    _check_option("--realm", check_identity, [realm])
    _check_option("--host", check_identity, [host])
    _check_option("--listen", check_listen, listen or [])
    _check_option("--peer", parse_peer, peer or [])
    signers = None if key is None else _signers_of_option(key, signer)
    if sys.stdin.isatty():
        realm = realm or _ask("Realm of the node (epc.mncMNC.mccMCC.3gppnetwork.org)", check_identity)
        host = host or _ask("Its host name", check_identity, default=f"eir1.{realm}")
        listen = listen or [_ask("Where peers connect to", check_listen, default=LISTEN)]
        peer = peer or _asked_peers()
        signers = signers or _asked_signers(signer)
    if not realm or not peer:
        raise fail(
            "without a terminal, options answer the questions: realm of the node: --realm REALM (required); its host name: --host HOST"
            f" (default eir1.REALM); where peers connect to: --listen URL (default {LISTEN}); peers that may send checks:"
            " --peer HOST@ADDRESS or --peer NETWORK (required); file of the publisher's public key: --key FILE (default none)",
            EXIT_USAGE,
        )
    peers = [parse_peer(text, realm) for text in peer]
    is_system = folder.absolute() == SYSTEM_CONFIG.parent
    state_folder = state or (SYSTEM_STATE if is_system else STATE)
    names = {"host": _whole(host or "eir1", realm), "realm": realm}
    signed_list = None if signers is None else list_name
    text = configuration(names, listen or [LISTEN], peers, signed_list, state_folder)
    files = {Path("eir.yaml"): text, Path("eir.service"): unit(folder.absolute(), state_folder)}
    if signers is not None:
        files[Path("signers") / list_name] = signers
    _check(files)
    _write(folder, files)
    for name in files:
        print(f"{folder / name} is written")
    option = "" if is_system else f" -c {quote(str(folder / 'eir.yaml'))}"
    load = f"eir add{option} blocked-here IMEI --reason TEXT"
    if signers:
        load = f"eir load{option} {list_name}-1.manifest.json"
    print(
        f"next: eir config{option}; {load}; eir serve{option}, or install eir.service. Settings of the peers: deploy/CONNECT.md"
    )


def _ask(question: str, check: Callable[[str], object], default: str | None = None) -> str:
    """Prompt until `check` accepts the answer; return the answer. `check` rejects an answer with a ValueError."""

    def value(answer: str) -> str:
        try:
            check(answer)
        except ValueError as e:
            raise typer.BadParameter(str(e)) from None
        return answer

    return str(typer.prompt(question, default=default, show_default=bool(default), value_proc=value))


def _check_option(option: str, check: Callable[[str], object], texts: Sequence[str]) -> None:
    """End the command with a usage error if `check` rejects one of the values of an option."""
    for text in filter(None, texts):
        try:
            check(text)
        except ValueError as e:
            raise fail(f"{option} {e}", EXIT_USAGE) from None


def _asked_peers() -> list[str]:
    """Prompt for peers until the user enters an empty line; return them."""
    peers = [_ask("Peers that may send checks (HOST@ADDRESS, or a network)", parse_peer)]
    while text := _ask("Further peer (empty: none)", lambda text: text and parse_peer(text), default=""):
        peers.append(text)
    return peers


def _asked_signers(signer: str) -> str | None:
    """Prompt for the publisher's public key; return its line for a signers file, or None."""
    question = "File of the publisher's public key (nothing: none yet)"
    text = _ask(question, lambda text: text and parse_signers(Path(text), signer), default="")
    return parse_signers(Path(text), signer) if text else None


def _signers_of_option(key: Path, signer: str) -> str:
    try:
        return parse_signers(key, signer)
    except ValueError as e:
        raise fail(str(e), EXIT_USAGE) from None


def check_identity(text: str) -> None:
    """Raise ValueError if a realm or the name of a host is not a domain name."""
    _check_kind(text, IDENTITY)


def check_listen(text: str) -> None:
    """Raise ValueError unless the text is the URL of a Diameter listener."""
    _check_kind(text, LISTENER)


def _check_kind(text: str, kind: Kind) -> None:
    try:
        kind.read(text)
    except Unexpected as e:
        raise ValueError(f"{text}: {e}") from None
    except ValueError:
        raise ValueError(f"{text}: expected {kind.expected}") from None


def _whole(host: str, realm: str) -> str:
    """Return the fully qualified name of a host (RFC 6733 4.3.1): append the realm if the name contains no dot."""
    return host if "." in host else f"{host}.{realm}"


def parse_peer(text: str, realm: str = "") -> FirstPeer:
    """Parse a value of `--peer`: HOST@NETWORKS, or NETWORKS alone. Raises ValueError."""
    host, at, list_text = text.rpartition("@")
    networks = [each.strip() for each in list_text.split(",")]
    try:
        for each in networks:
            ip_network(each)
    except ValueError as e:
        raise ValueError(f"{text}: {e}; expected HOST@ADDRESS, or a network such as 10.20.0.0/24") from None
    if at and not host:
        raise ValueError(f"{text}: the host before the @ is missing")
    if not host:
        return FirstPeer(None, networks)
    check_identity(host)
    return FirstPeer(_whole(host, realm), networks)


def parse_signers(key: Path, signer: str) -> str:
    """Read a public key from a file and return its line for a signers file. Raises ValueError."""
    try:
        with key.open("rb") as file:
            content = file.read(KEY_BYTES_MAX)
    except OSError as e:
        raise ValueError(f"{key}: {e.strerror}") from None
    words = content.decode("utf-8", "replace").split()
    if len(words) < 2 or "PRIVATE" in words or not keys_of(words[1].encode()):
        raise ValueError(f"{key} is not an OpenSSH public key; expected the .pub file that ssh-keygen writes")
    comment = words[2] if len(words) > 2 else "publisher"
    name = signer or comment
    if not name.isascii() or not set(' "#,*?!').isdisjoint(name):
        raise ValueError(f"--signer {name}: expected one name, such as register@agency.example")
    return f'{name} namespaces="{NAMESPACE}" {words[0]} {words[1]}\n'


def configuration(
    names: Mapping[str, str], listen: Sequence[str], peers: Sequence[FirstPeer], list_name: str | None, state: str
) -> str:
    """Render a configuration as YAML with comments.

    `names`: host and realm. `list_name`: name of the publisher's signed list; None for no such list.
    """
    lines = []
    for peer in peers:
        name = f"host: {_y(peer.host)}" if peer.host else f"realm: {_y(names['realm'])}"
        lines.append(f"  - {{{name}, from: {_y(list(peer.networks))}}}")
    entries = "\n".join(lines)
    signed = rule = ""
    if list_name is not None:
        signed = f"  {_y(list_name)}: {{signers: {_y(f'signers/{list_name}')}}}\n"
        rule = f"    - {{list: {_y(list_name)}, answer: blacklisted}}\n"
    return f"""# Configuration of an Equipment Identity Register, as `eir init` wrote it. `eir config` checks it and prints all that is in force;
# `eir reload` has a running node take it over. `eir config --reference` prints every key, with its default and what it is for.
# Relative paths start at this file's folder.

# The node's own names: what peers have as the EIR's host and realm.
identity:
  host: {_y(names["host"])}
  realm: {_y(names["realm"])}

# Where peers connect to. Also tls://ADDRESS:5868 (with the section tls) and sctp://ADDRESS,ADDRESS:3868.
listen: {_y(list(listen))}

# Who may connect: the first entry that fits Origin-Host, Origin-Realm and address. The log names address and setting of who fits none.
# `lenient: [applications, destination]` for an MME that shows S6a only, or names the HSS as Destination-Host.
peers:
{entries}

# Lists, last good copies and the control socket. 0750: who is in the group of this folder may steer the node.
state: {_y(state)}

# Lists by the name that their releases carry. A signed list takes releases of the keys in its signers file alone; a local one is
# changed by `eir add` and `eir remove`.
lists:
{signed}  blocked-here: {{local: true}}

# How a check is answered: by the first rule that holds, else by `default`. A rule with `observe: true` only counts what it would have
# answered: try a new list so before it blocks anyone.
policy:
  rules:
    - {{list: blocked-here, answer: blacklisted}}
{rule}  default: whitelisted

# /metrics for Prometheus, /live and /ready.
http: 127.0.0.1:9868
"""


def _y(value: object) -> str:
    """Encode a value as JSON on one line, which is valid YAML."""
    return json.dumps(value, ensure_ascii=False)


def unit(folder: Path, state: str) -> str:
    """Render the systemd unit that starts this program with the configuration in `folder`."""
    program = Path(sys.executable).with_name("eir")
    file = folder / "eir.yaml"
    text = UNIT.read_text(encoding="utf-8")
    text = text.replace(f"EIR_CONFIG={SYSTEM_CONFIG}", _word(f"EIR_CONFIG={file}"))
    text = text.replace(str(SYSTEM_CONFIG), str(file))
    if program.exists() and not Path("/opt/eir/bin/eir").exists():
        text = text.replace("/opt/eir/bin/eir", _word(str(program)))
    if state == SYSTEM_STATE:
        return text
    state_folder = (folder / state).absolute()
    writable = f"ReadWritePaths={_word(str(state_folder))}\n"
    return text.replace("StateDirectory=eir\nStateDirectoryMode=0750\n", writable)


def _word(text: str) -> str:
    """Quote a text as one argument in a systemd unit, and escape `%` (systemd.syntax, systemd.unit: specifiers)."""
    text = text.replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _check(files: Mapping[Path, str]) -> None:
    """Validate the new configuration in a temporary folder, before the files are written."""
    with tempfile.TemporaryDirectory(prefix="eir-init-") as name:
        folder = Path(name)
        for file, text in files.items():
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        try:
            load_config(folder / "eir.yaml")
        except ConfigError as e:
            problems = "; ".join(problem.text for problem in e.problems)
            raise fail(problems, EXIT_USAGE) from None


def _write(folder: Path, files: Mapping[Path, str]) -> None:
    """Write the new files; if one of them exists already, end the command and write no file."""
    existing = [str(folder / name) for name in files if os.path.lexists(folder / name)]
    if existing:
        raise fail(f"nothing is written: there is {', '.join(existing)} already")
    group = None
    if os.geteuid() == 0:
        with suppress(KeyError):
            group = grp.getgrnam(GROUP).gr_gid
    for name, text in files.items():
        path = folder / name
        new_folders = [each for each in (path.parent, folder) if not each.exists()]
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        path.chmod(0o640)
        if group is not None:
            for each in (path, *new_folders):
                shutil.chown(each, group=group)


PASSWORD_BYTES = 24
FILE_CHARS_MAX = 1024


UserName = Annotated[str, typer.Argument(metavar="NAME", help="The user, as history and metrics call it.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="Holds the password, on its first line. One is made up and shown on standard error if left out.",
    ),
]


def user(name: UserName, password_file: PasswordFile = None) -> None:
    """Print a user's line for the file that `feed.users` names.

    The line has a hash of the password, not the password itself. A running node applies the changed file within one
    second.
    """
    _print_user(name, password_file)


def desk_user(
    name: UserName,
    role: Annotated[str, typer.Option(metavar="view|change", help="view: search and read; change: also change the lists of --list.")] = VIEW,
    list_names: Annotated[list[str] | None, typer.Option("--list", metavar="LIST", help="Local list that the user may change. May be given several times.")] = None,
    password_file: PasswordFile = None,
) -> None:  # fmt: skip
    """Print a user's line for the file that `desk.users` names.

    The line has a hash of the password, not the password itself. Others must not be able to read the file: chmod o-r. A
    running node applies the changed file within one second.
    """
    if role not in {VIEW, CHANGE}:
        raise fail(f"--role {role}: expected {VIEW} or {CHANGE}", EXIT_USAGE)
    if (role == CHANGE) != bool(list_names):
        raise fail("--role change requires --list, and --role view has none", EXIT_USAGE)
    _print_user(name, password_file, role, list_names or ())


def _print_user(name: str, password_file: Path | None, role: str = "", lists: Sequence[str] = ()) -> None:
    """Print the line of a user for a file of users."""
    try:
        check_name(name)
        password = secrets.token_urlsafe(PASSWORD_BYTES) if password_file is None else _first_line(password_file)
        line = user_line(name, password, role, lists)
    except UsersError as e:
        raise fail(str(e), EXIT_USAGE) from None
    if password_file is None:
        print_message(f"the password of {name}: {password}")
    sys.stdout.write(f"{line}\n")


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as stream:
            line = stream.readline(FILE_CHARS_MAX)
    except OSError as e:
        raise UsersError(f"{file} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise UsersError(f"{file} is not UTF-8") from None
    return line.rstrip("\r\n")
