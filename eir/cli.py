"""The commands. Thin: each reads its arguments, has a part do the work, and prints what came of it.

Exit status: 0 done; 1 refused or answered "no", with the reason on standard error; 2 wrong usage or configuration.
"""

import asyncio
import errno
import getpass
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from eir import __version__, check, control, probe
from eir.config import Config, Whereabouts, load_config, load_whereabouts, render, render_json
from eir.errors import ConfigError, EirError, IdentifierError, ReleaseRefused, StoreError
from eir.lists.layout import LAYOUTS, until_seconds
from eir.lists.load import is_about, load_release
from eir.lists.local import ADD, REMOVE, Edit, edit_list, parse_entries
from eir.lists.publish import publish as publish_release
from eir.lists.rollback import roll_back
from eir.lists.settings import ListSettings
from eir.lists.store import HISTORY_MAX, Event, ListState, ListStore
from eir.progress import progress_on
from eir.schema import did_you_mean
from eir.stores.open import SQLITE, highest_serials, open_store
from eir.table import minute, second, table

INBOX_NICE = 10
"""A node has this made beside it, and checks come first."""
EXIT_NO, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
DEFAULT_CONFIG = Path("config/eir.yaml")
DIAMETER_PORT = 3868
PROBE_REALM = "epc.mnc001.mcc001.3gppnetwork.org"
HISTORY_KEYS = ("time", "who", "what", "list", "serial", "digest", "detail")
NO_MANIFEST = (".csv", ".txt", ".gz", ".zst", ".zip", ".sig", ".pub")
"""How names of files end that lie beside manifests."""
MANIFESTS_NAMED_MAX = 3
TAKEN_OVER_S, TAKEN_OVER_EACH_S = 2.0, 0.05
"""How long a load waits for the node on its host to follow, and between two looks."""
DENIED = ("cannot_open", "readonly")
"""Causes of store errors that may be for want of permission."""
DURATION_UNITS = {"d": "days", "h": "hours", "m": "minutes"}

T = TypeVar("T")

app = typer.Typer(
    name="eir",
    help="An Equipment Identity Register: answers ME-Identity-Check over Diameter S13 from signed lists.",
    epilog="Each command reads -c FILE, else $EIR_CONFIG, else config/eir.yaml. 'eir COMMAND --help' says more.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
peer_app = typer.Typer(no_args_is_help=True, help="Take one peer out of service (DPR) or back in.")
app.add_typer(peer_app, name="peer")

ConfigFile = Annotated[Path, typer.Option("-c", "--config", envvar="EIR_CONFIG", metavar="FILE", help="The configuration.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for scripts.")]

err = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; errors become a message on standard error and an exit status."""
    try:
        try:
            app(prog_name="eir")
        finally:
            sys.stdout.flush()
    except ConfigError as e:
        for problem in e.problems:
            _say(str(problem))
        sys.exit(EXIT_USAGE)
    except ReleaseRefused as e:
        _say(f"refused ({e.reason}): {e.detail}")
        sys.exit(EXIT_NO)
    except EirError as e:
        _say(f"eir: {e}")
        sys.exit(EXIT_NO)
    except OSError as e:
        if e.errno != errno.EPIPE:  # who went away is not told
            _say(f"eir: {e.filename or 'the output'}: {e.strerror}")
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # the interpreter writes what is left when it ends
        sys.exit(EXIT_NO)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


@app.callback(invoke_without_command=True)
def _root(
    config: Annotated[Path | None, typer.Option("-c", "--config", metavar="FILE", help="The configuration; may stand behind COMMAND too.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if config is not None:
        os.environ["EIR_CONFIG"] = str(config)  # where each command looks next if it has no -c of its own
    if version:
        print(f"eir {__version__}")
        raise typer.Exit


# ---- the node ----


@app.command()
def serve(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Run the node in the foreground until SIGTERM; SIGHUP takes over a changed configuration.

    Logs go to standard error. Metrics and health are at the configured `http` address: /metrics /live /ready.
    """
    from eir import server, supervisor  # noqa: PLC0415 - the other commands need neither uvloop nor the node

    checked = load_config(config)  # its warnings go to the log
    raise typer.Exit(supervisor.run(checked) if checked.workers > 1 else server.run(checked))


@app.command()
def status(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Say in one line how the running node is. Exit status as Nagios wants it: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."""
    try:
        report = control.ask(_whereabouts(config).state, "status")
    except control.ControlDenied as e:
        report = {"state": "UNKNOWN", "code": 3, "summary": str(e)}
    except control.ControlError as e:
        report = {"state": "CRITICAL", "code": 2, "summary": str(e)}
    except ConfigError as e:
        report = {"state": "UNKNOWN", "code": 3, "summary": f"it is not known where to ask: {'; '.join(map(str, e.problems))}"}
    if as_json:
        _print_json(report)
    else:
        print(f"EIR {report['state']} - {report['summary']}")
    raise typer.Exit(report["code"])


@app.command()
def peers(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show who is connected to the running node, and whom it waits for."""
    found = control.ask(_whereabouts(config).state, "peers")
    columns = (
        "label", "host", "realm", "direction", "address", "state", "watchdog", "since", "last_seen", "requests", "answers", "last_error",
    )  # fmt: skip
    _show(found, columns, as_json=as_json)


@peer_app.command("disable")
def peer_disable(name: str, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Take a peer out of service: DPR to it, and no new connection, until `eir peer enable` or a restart."""
    print(control.ask(_whereabouts(config).state, "peer_disable", name=name))


@peer_app.command("enable")
def peer_enable(name: str, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Put a peer back in service."""
    print(control.ask(_whereabouts(config).state, "peer_enable", name=name))


@app.command()
def reload(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Have the running node take over the changed configuration (as SIGHUP does); a bad file changes nothing."""
    checked = _config(config)  # says what is wrong before the node is asked
    print(control.ask(checked.state, "reload"))


@app.command()
def drain(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Have the running node tell its peers to go elsewhere (DPR), answer what is under way, and end."""
    print(control.ask(_whereabouts(config).state, "drain"))


@app.command("config")
def config_(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Check the configuration and print what is in force, defaults filled in."""
    checked = _config(config)
    if as_json:
        _print_json(render_json(checked))
    else:
        print(render(checked), end="")


# ---- lists ----


@app.command("check")
def check_(
    imei: Annotated[str, typer.Argument(help="IMEI (14 or 15 digits), IMEISV (16) or MEID.")],
    imsi: Annotated[str, typer.Option(metavar="N", help="The subscriber that uses the device.")] = "",
    software_version: Annotated[str, typer.Option(metavar="NN", help="Software version, two digits.")] = "",
    origin_host: Annotated[str, typer.Option(metavar="HOST", help="Origin-Host of the request.")] = "",
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Origin-Realm of the request.")] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Say what would be answered for a device, and why: the rule, the list, its serial, the reason given there."""
    question = check.Question(imei, imsi, software_version, origin_host, origin_realm)
    if fault := check.fault_of(question):
        raise _fail(fault, EXIT_USAGE)
    checked = load_config(config)
    answer = _with_store(
        checked,
        lambda store: check.explain_answer(question, checked.policy, checked.lists, store, now=datetime.now(UTC)),
        fresh=False,
    )
    if as_json:
        _print_json(answer.as_json())
    else:
        print(answer.as_text())
    if answer.status is None:
        raise _fail(f"such a request gets an error answer: {answer.reason}")


@app.command()
def load(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST...", help="LIST-SERIAL.manifest.json; its .sig and data lie beside it.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and count, change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Lift the limits on growth, shrinkage and ranges, nothing else.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Verify signed releases and put them in force; running nodes follow within a second.

    A release that is refused changes nothing: the list in force stays, the reason is named here and in `eir history`.
    """
    checked = load_config(config)
    loaded: dict[str, int] = {}
    try:
        reports = _with_store(
            checked, lambda store: _load_all(store, checked, manifests, dry_run=dry_run, force=force, loaded=loaded)
        )
    except KeyboardInterrupt:
        said = "what is reported above stays in force" if loaded else "no release was reported as loaded"
        _say(f"interrupted; {said}; eir lists shows what is in force")
        raise
    if as_json:
        _print_json(reports)
    if loaded:
        _say(_taken_over(checked.state, loaded))
    if any(report["outcome"] == "refused" for report in reports):
        raise typer.Exit(EXIT_NO)


async def _load_all(
    store: ListStore, config: Config, manifests: list[Path], *, dry_run: bool, force: bool, loaded: dict[str, int]
) -> list[dict[str, Any]]:
    """Load one after the other; a refused one does not keep the next from being tried.

    `loaded` takes the generation of each list that was loaded.
    """
    reports: list[dict[str, Any]] = []
    marks = await highest_serials(config.store, config.state)
    for manifest in manifests:
        try:
            _must_be_manifest(manifest)
            with progress_on(err) as progress:
                report = await load_release(
                    manifest, config.lists, store, who=_who(), now=datetime.now(UTC), force=force, dry_run=dry_run,
                    marks=marks, progress=progress,
                )  # fmt: skip
        except ReleaseRefused as e:
            _say(f"{manifest}: refused ({e.reason}): {e.detail}")
            reports.append({"manifest": str(manifest), "outcome": "refused", "reason": e.reason, "detail": e.detail})
        else:
            outcome = "would load" if dry_run else "loaded"
            if report.state is not None:
                loaded[report.list] = report.state.generation
            _say(f"{manifest}: {outcome}: {report.as_text()}")
            reports.append({"manifest": str(manifest), "outcome": outcome, **report.as_json()})
    return reports


def _taken_over(state: Path, loaded: Mapping[str, int]) -> str:
    """Whether the node on this state folder answers by what was loaded (list → generation); waits for it a little."""
    end = time.monotonic() + TAKEN_OVER_S
    try:
        while True:
            report = control.ask(state, "status")
            behind = [name for name, of in loaded.items() if report["lists"].get(name, {"generation": 0})["generation"] < of]
            if not behind:
                return f"the node on this host (process {report['pid']}) has taken over {', '.join(loaded)}"
            if time.monotonic() > end:
                return f"the node on this host (process {report['pid']}) has not taken over {', '.join(behind)} yet; see eir status"
            time.sleep(TAKEN_OVER_EACH_S)
    except control.ControlDenied as e:
        return f"whether a node has taken it over is not known: {e}"
    except control.ControlError as e:
        return f"{e}; one that starts, or that follows the same store elsewhere, takes it over by itself"


def _must_be_manifest(path: Path) -> None:
    """Raise ReleaseRefused for what was given by mistake; it was no release, so it does not go into the history."""
    if not path.is_dir() and not path.name.lower().endswith(NO_MANIFEST):
        return
    folder = path if path.is_dir() else path.parent
    near = sorted(folder.glob("*.manifest.json"))[:MANIFESTS_NAMED_MAX]
    advice = f"did you mean {' or '.join(map(str, near))}?" if near else "a release has a LIST-SERIAL.manifest.json (eir publish makes it)"
    raise ReleaseRefused("no_manifest", f"that is no manifest; {advice}")


@app.command()
def inbox(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Load what has arrived in the drop folder, once; a running node does so by itself.

    Each release goes to `accepted/`, or to `refused/` with a text that says why; one that is not complete yet stays.
    """
    from eir.intake import make_pass  # noqa: PLC0415 - the other commands need no loader

    os.nice(INBOX_NICE)
    made = asyncio.run(make_pass(load_config(config), f"inbox of {_who()}"))
    if as_json:
        _print_json(made.as_json())
    for taken in made.taken:
        _say(": ".join(part for part in (taken.manifest, taken.outcome, taken.reason, taken.detail) if part))
    if any(taken.outcome == "refused" or not taken.manifest for taken in made.taken):
        raise typer.Exit(EXIT_NO)


@app.command()
def lists(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show each list: serial, entries, when issued, until when, who signed it, when it was loaded.

    `state` is `in force`, `expired` (and in force all the same), or `never loaded`; `digest` (with --json) is that of the
    content, the same for the same entries whatever release brought them.
    """
    checked = _whereabouts(config)

    async def found(store: ListStore) -> dict[str, ListState]:
        states = dict(await store.states())
        for name in checked.lists:  # one that the store does not name may be there: what names them is a key of its own in Redis
            if name not in states and (state := await store.state(name)) is not None:
                states[name] = state
        return states

    states = _with_store(checked, found, fresh=False)
    kinds = {name: settings.kind for name, settings in checked.lists.items()} or {name: state.kind for name, state in states.items()}
    rows = [_list_row(name, kind, states.get(name)) for name, kind in kinds.items()]
    if not as_json:  # what has no releases has changes
        rows = [{**row, "serial": f"change {states[row['list']].generation}"} if row["serial"] == 0 else row for row in rows]
    columns = ("list", "kind", "serial", "entries", "issued", "expires", "signers", "loaded", "state")
    _show(rows, columns, as_json=as_json)


def _list_row(name: str, kind: str, state: ListState | None) -> dict[str, Any]:
    if state is None:
        nothing = dict.fromkeys(("serial", "entries", "issued", "expires", "signers", "loaded", "digest"))
        return {"list": name, "kind": kind, **nothing, "signers": [], "state": "never loaded"}
    expired = state.expires is not None and datetime.fromisoformat(state.expires) <= datetime.now(UTC)
    return {
        "list": name,
        "kind": state.kind,
        "serial": state.serial,
        "entries": state.entries,
        "issued": state.issued,
        "expires": state.expires,
        "signers": list(state.signers),
        "loaded": state.loaded_at,
        "digest": state.content_digest,
        "state": "expired" if expired else "in force",
    }


@app.command()
def history(
    list_name: Annotated[str | None, typer.Argument(metavar="[LIST]", help="Of this list only.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", help="The newest N events.", min=1)] = 50,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show who did what to the lists, refused releases included, oldest first.

    A release that was refused before anyone vouched for its manifest has no list; that of which it claims to be shows it
    too. `digest` is the SHA-256 of the manifest; that of a list's content stands in `eir lists --json`.
    """
    checked = _whereabouts(config)

    async def found(store: ListStore) -> list[Event]:
        events = await store.history(None, limit if list_name is None else HISTORY_MAX)
        known = dict.fromkeys((*checked.lists, *await store.states()))
        of_list = [event for event in events if list_name is None or is_about(event, list_name)]
        if list_name is not None and list_name not in known and not any(event.list for event in of_list):
            raise _no_list(list_name, known, checked.path)
        return of_list[-limit:]

    rows = [{key: getattr(event, key) for key in HISTORY_KEYS} for event in _with_store(checked, found, fresh=False)]
    if not as_json:
        rows = [{**row, "detail": row["detail"].partition("\n")[0]} for row in rows]
    _show(rows, ("time", "who", "what", "list", "serial", "detail"), as_json=as_json)


@app.command()
def rollback(
    list_name: Annotated[str, typer.Argument(metavar="LIST")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be in force, change nothing.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Bring back the list as it was before its last release, or before the last change of a local list.

    A release that was undone is never accepted again.
    """
    checked = _whereabouts(config)
    local = not checked.lists or _list_settings(checked, list_name).local  # names cannot be read from a file that is no YAML
    state = _with_store(
        checked, lambda store: roll_back(list_name, store, who=_who(), now=datetime.now(UTC), dry_run=dry_run), fresh=False
    )
    if as_json:
        _print_json(_list_row(list_name, state.kind, state))
    elif dry_run:
        which = f"serial {state.serial}, issued {state.issued}, loaded {state.loaded_at}," if state.serial else "the list before the last change"
        print(f"{list_name}: {which} would be in force with {state.entries:,} entries; nothing was changed")
    elif local and not state.serial:
        print(f"{list_name}: the last change is undone; {state.entries:,} entries are in force")
    else:
        print(f"{list_name}: serial {state.serial} is in force again with {state.entries:,} entries;")
        print(f"the next release needs a serial above {state.highest_serial}")


Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; stands in `eir history`, and for added entries in `eir check`.")]
Imsi = Annotated[list[str] | None, typer.Option(metavar="N", help="List of pairs: the SIM that each device is listed with.")]
Tac = Annotated[bool, typer.Option("--tac", help="The identifiers are TACs (8 digits): all devices of a model, as one entry beside those of single devices.")]
Identifiers = Annotated[list[str], typer.Argument(metavar="IMEI...", help="IMEIs, IMEISVs or MEIDs; IMSIs for a list of subscribers.")]
LocalList = Annotated[str, typer.Argument(metavar="LIST", help="A list with `local: true`.")]


@app.command()
def add(
    list_name: LocalList,
    identifiers: Identifiers,
    reason: Reason,
    until: Annotated[str, typer.Option(metavar="TIME", help="When the entries end: 2026-12-31 (that day included), 2026-12-31T12:00:00Z, or 14d from now.")] = "",
    imsi: Imsi = None,
    tac: Tac = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give entries that are there the new reason and end.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Put entries into a local list; running nodes follow at once. All of them, or none if one is there already."""
    try:
        end = _until(until)
    except ValueError:
        raise _fail(f"--until {until}: expected 2026-12-31, 2026-12-31T12:00:00Z, or a time from now such as 14d", EXIT_USAGE) from None
    _edit(config, list_name, ADD, identifiers, imsi or [], tacs=tac, as_json=as_json, reason=reason, until=end, replace=replace)


@app.command()
def remove(
    list_name: LocalList,
    identifiers: Identifiers,
    reason: Reason,
    imsi: Imsi = None,
    tac: Tac = False,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take entries out of a local list; running nodes follow at once. All of them, or none if one is not there.

    A TAC that goes leaves the devices under it that are listed on their own, and a device that is listed only by its TAC
    cannot be taken out alone.
    """
    _edit(config, list_name, REMOVE, identifiers, imsi or [], tacs=tac, as_json=as_json, reason=reason)


def _edit(
    config: Path, list_name: str, what: str, identifiers: list[str], imsis: list[str], *, tacs: bool, as_json: bool, **details: Any
) -> None:
    checked = load_config(config)
    settings = _list_settings(checked, list_name)
    try:
        entries = parse_entries(settings.kind, identifiers, imsis=imsis, tacs=tacs)
    except IdentifierError as e:
        raise _fail(str(e), EXIT_USAGE) from None
    edit = Edit(what=what, entries=entries, **details)
    report = _with_store(checked, lambda store: edit_list(edit, settings, store, who=_who(), now=datetime.now(UTC)))
    if as_json:
        _print_json(asdict(report))
    else:
        print(report.as_text())


def _until(text: str) -> int:
    """Unix seconds of a time, or of a duration from now; 0 for an empty text. Raises ValueError."""
    if text[-1:] in DURATION_UNITS and text[:-1].isascii() and text[:-1].isdigit():
        return int((datetime.now(UTC) + timedelta(**{DURATION_UNITS[text[-1:]]: int(text[:-1])})).timestamp())
    return until_seconds(text)


def _list_settings(config: Config | Whereabouts, name: str) -> ListSettings:
    """The list's part of the configuration; ends the command with a usage error if there is none."""
    if name not in config.lists:
        raise _no_list(name, config.lists, config.path)
    return config.lists[name]


def _no_list(name: str, known: Iterable[str], path: Path) -> typer.Exit:
    names = list(known)
    advice = did_you_mean(name, names)
    return _fail(f"no list {name} in {path}; there are: {', '.join(names) or 'none'}{advice}", EXIT_USAGE)


# ---- the publisher's side, and the asking side ----


@app.command()
def publish(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Data files: CSV, plain or .gz or .zst, or a DIRBS zip.")],
    list_name: Annotated[str, typer.Option("--list", metavar="L", help="The list that the release is for.")],
    serial: Annotated[int, typer.Option(metavar="N", help="Above the serial of every release before.", min=1)],
    expires: Annotated[str, typer.Option(metavar="14d", help="How long it is meant to be in force: 14d, 36h.")],
    key: Annotated[Path, typer.Option(metavar="KEY", help="The OpenSSH key that signs; a .pub for one held by ssh-agent.")],
    base: Annotated[int | None, typer.Option(metavar="M", help="A delta: the serial that it builds on.", min=0)] = None,
    layout: Annotated[str | None, typer.Option(metavar="NAME", help=f"{', '.join(LAYOUTS)}; guessed if not given.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where the release goes; beside the data if not given.")] = None,
    bad_rows_max: Annotated[int, typer.Option(metavar="N", min=0, help="Rows that may be wrong; they are named, and an EIR leaves them out.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a release of the same serial with other data.")] = False,
    as_json: Json = False,
) -> None:
    """Make a signed release: writes LIST-SERIAL.manifest.json and its .sig beside the data files.

    The rows are read as `eir load` reads them, so that a bad one is named here, and not by those who get the release.
    Signing is OpenSSH's: `ssh-keygen -Y sign -n eir-release -f KEY MANIFEST` does the same for an existing manifest.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    with progress_on(err) as progress:
        manifest = publish_release(
            files, list_name=list_name, serial=serial, base=base, issued=now, expires=now + _duration(expires), key=key,
            layout=layout, out=folder, replace=force, bad_rows_max=bad_rows_max, progress=progress,
            warn=lambda text: _say(f"warning: {text}"),
        )  # fmt: skip
    if as_json:
        _print_json({"manifest": str(manifest), "signature": f"{manifest}.sig"})
    else:
        print(f"{manifest} and its .sig are written; on the EIR: eir load {manifest}")


def _duration(text: str) -> timedelta:
    """`14d`, `36h` or `90m` as a duration; ends the command with a usage error otherwise."""
    number, unit = text[:-1], DURATION_UNITS.get(text[-1:])
    if unit is None or not number.isascii() or not number.isdigit() or not int(number):
        raise _fail(f"--expires {text}: expected a number and a unit: 14d, 36h or 90m", EXIT_USAGE)
    return timedelta(**{unit: int(number)})


@app.command("probe")
def probe_(
    target: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="The EIR; port 3868 if not given, [::1]:3868 for IPv6.")],
    imeis: Annotated[list[str], typer.Argument(metavar="IMEI...", help="What to ask about; sent as it is, good or bad.")],
    imsi: Annotated[str | None, typer.Option(metavar="N", help="User-Name of each request.")] = None,
    software_version: Annotated[str | None, typer.Option(metavar="NN", help="Software-Version of each request.")] = None,
    origin_host: Annotated[str | None, typer.Option(metavar="HOST", help="Our Origin-Host; probe.REALM if not given.")] = None,
    origin_realm: Annotated[str, typer.Option(metavar="REALM", help="Our Origin-Realm; that of MCC 001, MNC 01 if not given.", show_default=False)] = PROBE_REALM,
    realm: Annotated[str | None, typer.Option(metavar="REALM", help="Destination-Realm; the EIR's own if not given.")] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for each answer.", min=0.001)] = 5.0,
    as_json: Json = False,
) -> None:
    """Ask an EIR over Diameter S13 as an MME would.

    Exit status 0 if every question was answered, also by an error; its name goes to standard error.
    """
    host, port = _host_and_port(target)
    asked = probe.Target(host, port, origin_host or f"probe.{origin_realm}", origin_realm, realm, timeout)
    findings = asyncio.run(probe.ask(asked, imeis, imsi=imsi, software_version=software_version))
    rows = [finding.as_json() for finding in findings]
    columns = ("imei", "imsi", "status", "result_code", "experimental_result_code", "round_trip_ms")
    _show(rows, columns, as_json=as_json)
    for finding in findings:
        if finding.fault:
            _say(f"eir: {finding.imei}: {finding.fault}")
        elif finding.error:
            _say(f"eir: {finding.imei}: answered by the error {finding.error}")
    if any(finding.round_trip_ms is None for finding in findings):
        raise typer.Exit(EXIT_NO)


def _host_and_port(target: str) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.startswith("[")) or port.endswith("]"):
        return target.strip("[]"), DIAMETER_PORT
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise _fail(f"{target}: expected HOST:PORT with a port from 1 to 65535", EXIT_USAGE)
    return host.strip("[]"), int(port)


# ---- what the commands share ----


def _config(path: Path) -> Config:
    """The configuration, for whoever just wrote it: what is probably not meant goes to standard error."""
    config = load_config(path)
    for warning in config.warnings:
        _say(f"warning: {warning}")
    if config.inbox is not None and not config.inbox.is_dir():
        _say(f"warning: the inbox {config.inbox} is not there; make it, owned by the user that the node runs as")
    return config


def _whereabouts(path: Path) -> Whereabouts:
    """Where node and store are. What is wrong in the file elsewhere keeps nobody from looking, or from steering the node."""
    found = load_whereabouts(path)
    for problem in found.problems:
        _say(f"warning: {problem}")
    return found


def _with_store(config: Config | Whereabouts, work: Callable[[ListStore], Awaitable[T]], *, fresh: bool = True) -> T:
    """Open the store, do the work, close it. Not `fresh`: work that a store on this host is needed for, not one made for it."""
    try:
        there = config.state.is_dir()
    except PermissionError as e:
        raise EirError(f"the state folder {config.state}: {e.strerror}{control.as_owner(config.state)}") from None
    if not fresh and config.store == SQLITE and not there:
        raise EirError(f"the state folder {config.state} is not there: no list was ever loaded into it (eir load makes it)")

    async def run() -> T:
        store = open_store(config.store, config.state, report=_warn)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except StoreError as e:
        if e.cause not in DENIED or not there or os.access(config.state, os.W_OK | os.X_OK):
            raise
        raise EirError(f"{e}{control.as_owner(config.state)}") from None
    finally:
        if not there and os.geteuid() == 0 and config.state.is_dir():
            _say(f"warning: {config.state} was made and belongs to root; if the node runs as USER: chown -R USER {config.state}")


def _who() -> str:
    """Who acts, for the history: the login behind sudo, and the host."""
    user = getpass.getuser()
    behind = os.environ.get("SUDO_USER")
    return f"{behind} as {user}@{socket.gethostname()}" if behind and behind != user else f"{user}@{socket.gethostname()}"


def _say(message: str) -> None:
    # What comes from the wire and from files is not to steer a terminal.
    err.print("".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in message), markup=False)


def _warn(event: str, *, reason: str | None = None, level: str = "warning", **fields: object) -> None:
    """What a store has to say besides errors."""
    _say(f"{level}: {fields.get('detail') or reason or event}")


def _fail(message: str, code: int = EXIT_NO) -> typer.Exit:
    _say(f"eir: {message}")
    return typer.Exit(code)


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2))


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool) -> None:
    """Rows as a JSON document, or as a table for people."""
    if as_json:
        _print_json(rows)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(rows, columns, width=width, forms=FORMS), end="")


def _principal(signer: str) -> str:
    """A signer without its key's fingerprint, which `--json` shows."""
    return signer.partition(" SHA256:")[0]


FORMS = {"time": second} | dict.fromkeys(("issued", "expires", "loaded", "since", "last_seen"), minute) | {"signers": _principal}
"""How columns are shown to people."""
