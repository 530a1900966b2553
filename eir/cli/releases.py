"""Commands that load signed releases from files or folders, and exchange acknowledgements of releases."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eir.cli.access import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    acting_in,
    ask_node,
    list_settings,
    opened,
    record_event,
    recorded,
    who,
    with_store,
)
from eir.cli.in_force import taken_over
from eir.cli.output import EXIT_NO, EXIT_USAGE, duration, fail, print_json, print_message, progress, show, warn
from eir.config import Config, load_config
from eir.errors import EirError, ReleaseRefused
from eir.lists.changes.release_load import LoadReport, ReleaseLoader, rejection_event
from eir.lists.follow.list_copy import serial_marks
from eir.lists.log.change import Head, SerialMark, utc_text
from eir.lists.log.journal import REFUSED, JournalEvent
from eir.lists.log.store import LogStore
from eir.lists.record.in_force import save_mark
from eir.lists.releases.release import MANIFEST_ENDS, VerifiedRelease
from eir.lists.sources.inbox import WAITING, Pass
from eir.lists.sources.pull import LOADED, UNCHANGED, Pulled
from eir.lists.stores.open import open_store
from eir.node.processes.apart import load_apart, progress_over
from eir.node.processes.channel import Channel
from eir.node.processes.starter import Start, Starter
from eir.node.processes.state_folder import as_owner_of, prepare

if TYPE_CHECKING:
    from eir.lists.sources.acknowledge import Acknowledgement
    from eir.node.processes.loading import Load

NO_MANIFEST = (".csv", ".txt", ".gz", ".zst", ".zip", ".sig", ".pub")
"""Suffixes of files beside manifests."""
NO_RELEASE = "no_manifest"
"""Cause of the rejection of such a file, which is not recorded."""
MANIFESTS_NAMED_MAX = 3


def load(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="LIST-SERIAL.manifest.json; its .sig and data lie beside it.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and count, change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Lift the limits on growth, shrinkage and ranges, nothing else.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Verify signed releases and put them in force.

    Running nodes follow within one second. A refused release changes nothing: the list in force stays, and the reason
    is printed here and recorded in `eir history`.
    """
    checked = opened(load_config(config))
    loaded: dict[str, Head] = {}
    work = partial(_load_all, config=checked, manifests=manifests, loaded=loaded, dry_run=dry_run, force=force)
    try:
        reports = with_store(checked, work, reads=dry_run)
    except KeyboardInterrupt:
        result = "what is reported above stays in force" if loaded else "no release was reported as loaded"
        print_message(f"interrupted; {result}; eir lists shows what is in force")
        raise
    if as_json:
        print_json(reports)
    if loaded:
        print_message(taken_over(checked, loaded))
    if any(report["outcome"] == "refused" for report in reports):
        raise typer.Exit(EXIT_NO)


async def _load_all(
    store: LogStore,
    config: Config,
    manifests: list[Path],
    loaded: dict[str, Head],
    *,
    dry_run: bool,
    force: bool,
) -> list[dict[str, Any]]:
    """Load releases one after the other, and continue after a rejected release.

    `loaded` receives the head of each loaded list.
    """
    options = {"force": force, "dry_run": dry_run, "marks": serial_marks(config.state)}
    async with starting() as start:
        return [await _loaded(store, config, start, manifest, loaded, options) for manifest in manifests]


async def _loaded(
    store: LogStore,
    config: Config,
    start: Start,
    manifest: Path,
    loaded: dict[str, Head],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Load one release, print the result, and return the result as a JSON document."""
    try:
        _must_be_manifest(manifest)
        with progress() as advance:
            report: LoadReport = await load_apart(
                start, _load, config, manifest, options, memory_max=config.load_memory, progress=advance
            )
    except ReleaseRefused as e:
        if not options["dry_run"] and e.reason != NO_RELEASE:
            _record(config, rejection_event(e, who(), datetime.now(UTC)))
        print_message(f"{manifest}: refused ({e.reason}): {e.detail}")
        return {"manifest": str(manifest), "outcome": "refused", "reason": e.reason, "detail": e.detail}
    outcome = "would load" if options["dry_run"] else "loaded"
    if report.head is not None and report.change is not None:
        loaded[report.list] = report.head
        await recorded(config, store, report.list, report.change)
    print_message(f"{manifest}: {outcome}: {report.as_text()}")
    return {"manifest": str(manifest), "outcome": outcome, **report.as_json()}


async def _load(config: Config, manifest: Path, options: dict[str, Any], channel: Channel) -> LoadReport:
    """Load one release in a process of its own, which reports its progress over `channel`."""
    with as_owner_of(config.state):
        store = open_store(config.store, config.state, report=warn, creates=not options["dry_run"])
        save = partial(save_mark, config.state)
        try:
            loader = ReleaseLoader(
                config.lists, store, who(), datetime.now(UTC), save_mark=save, progress=progress_over(channel), memory_max=config.load_memory,
                **options,
            )  # fmt: skip
            return await loader.verify_and_load(manifest)
        finally:
            await store.close()


def _record(config: Config, event: JournalEvent) -> None:
    """Record a rejection in the journal of this host's node; print a warning if the journal fails."""
    try:
        record_event(config, event)
    except (EirError, OSError) as error:
        print_message(f"warning: the journal of this host does not have the rejection: {error}")


def _recording(config: Config, load: "Load") -> "Load":
    """Return a function that loads a release, then waits until the journal of this host's node has the change."""

    async def load_and_record(release: VerifiedRelease, folder: Path, marks: Mapping[str, SerialMark]) -> LoadReport:
        report = await load(release, folder, marks)
        if report.change is not None:
            store = open_store(config.store, config.state, report=warn)
            try:
                await recorded(config, store, report.list, report.change)
            finally:
                await store.close()
        return report

    return load_and_record


@asynccontextmanager
async def starting() -> AsyncIterator[Start]:
    """Run a helper process that starts load processes. Yield the function that requests a load process.

    The helper process ends with the `with` block.
    """
    starter = Starter(__name__, "eir.lists.rows.reader")
    try:
        yield starter.start
    finally:
        await starter.close()


def _must_be_manifest(path: Path) -> None:
    """Raise ReleaseRefused for a file that cannot be a manifest.

    Such a file is not a release, so the history does not record it.
    """
    if not path.is_dir() and not path.name.lower().endswith(NO_MANIFEST):
        return
    folder = path if path.is_dir() else path.parent
    manifests = sorted(folder.glob("*.manifest.json"))[:MANIFESTS_NAMED_MAX]
    advice = "a release has a LIST-SERIAL.manifest.json (eir publish makes it)"
    if manifests:
        advice = f"did you mean {' or '.join(map(str, manifests))}?"
    raise ReleaseRefused(NO_RELEASE, f"this is not a manifest; {advice}")


def inbox(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Load the releases in the drop folder, once.

    A running node does this by itself. Each release is moved to `accepted/`, or to `refused/` with a text file that
    gives the reason. An incomplete release stays. Files that wait are listed, with the reason.
    """
    from eir.node.processes.drop_folder import make_pass  # noqa: PLC0415 - for this command alone
    from eir.node.processes.loading import NICE, loading  # noqa: PLC0415 - for this command alone

    checked = opened(load_config(config))
    by = f"inbox of {who()}"

    async def run() -> Pass:
        async with starting() as start:
            load = _recording(checked, loading(start, checked, by))
            return await make_pass(checked, by, load, partial(_record, checked))

    os.nice(NICE)
    with as_owner_of(checked.state):
        result = asyncio.run(run())
    if as_json:
        print_json(result.as_json())
    for each in result.taken:
        _print_parts(each.manifest, each.outcome, each.reason, each.detail)
    for name in result.strays:
        reason = "no delivered release names it"
        if name.endswith(MANIFEST_ENDS):
            reason = f"its signature {name}.sig is not there"
        print_message(f"{name}: {WAITING}: {reason}")
    if result.elsewhere:
        print_message("another process is processing the drop folder; see eir history, or try again in a moment")
    elif not result.taken and not result.strays:
        print_message(f"nothing waits in {checked.inbox}")
    if any(each.outcome == REFUSED or each.here for each in result.taken):
        raise typer.Exit(EXIT_NO)


def _print_parts(*parts: str | None) -> None:
    """Print one message from several parts, separated by colons. Empty parts are left out."""
    print_message(": ".join(part for part in parts if part))


def pull(
    list_name: Annotated[str | None, typer.Argument(metavar="[LIST]", help="All lists that have a source, if not given.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch also what was refused before, and lift the limits on growth, shrinkage and ranges, nothing else.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Fetch and load new releases from the source of a list, once.

    A running node does this by itself. The command fetches the index and the releases that lead from the release in
    force to the newest one. They are loaded as by `eir load`, with the same signatures, limits and refusals.
    """
    from eir.node.processes.loading import NICE, loading  # noqa: PLC0415 - for this command alone
    from eir.node.processes.pulling import pull_once  # noqa: PLC0415 - for this command alone

    checked = opened(load_config(config))
    names = [name for name, settings in checked.lists.items() if settings.source is not None]
    if list_name is not None:
        if list_settings(checked, list_name).source is None:
            raise fail(f"list {list_name} has no source (lists.{list_name}.source)", EXIT_USAGE)
        names = [list_name]
    if not names:
        raise fail(f"no list in {checked.path} has a source (lists.*.source)", EXIT_USAGE)
    by = f"pull of {who()}"

    async def run() -> list[Pulled]:
        async with starting() as start:
            load = _recording(checked, loading(start, checked, by, force=force))
            record = partial(_record, checked)
            return [await pull_once(checked, name, by, load, record, force=force) for name in names]

    os.nice(NICE)
    with as_owner_of(checked.state):
        results = asyncio.run(run())
    if as_json:
        print_json([each.as_json() for each in results])
    for each in results:
        serials = ""
        if each.loaded:
            serials = f"serial {', '.join(map(str, each.loaded))} loaded"
        elif each.outcome == UNCHANGED:
            serials = f"{each.serial} is the newest"
        _print_parts(f"{each.list}: {each.outcome}", each.reason, each.detail, serials)
    if any(each.outcome not in {LOADED, UNCHANGED} for each in results):
        raise typer.Exit(EXIT_NO)


def acknowledge(
    list_name: Annotated[str | None, typer.Argument(metavar="[LIST]", help="All lists that are in force, if not given.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="Where the files go, for any other way to the publisher; posted to the lists' sources if not given.", show_default=False)] = None,
    key: Annotated[bool, typer.Option("--key", help="Only print this node's line for the publisher's file of nodes (allowed_signers).")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Send a signed statement about the lists that are in force.

    The acknowledgement contains the digest of the list's content, the time from which it is in force, and later
    rejections by the node. It is signed with the node's own key. A running node sends it by itself for lists with
    `source: {acknowledge: true}`.
    """
    from eir.lists.sources.acknowledge import Acknowledgement, Rejection, load_key, sign_acknowledgement, signer_line  # noqa: PLC0415 - for this command alone

    checked = opened(load_config(config))
    node = checked.identity.host
    with acting_in(checked.state):
        prepare(checked.state)
        own = load_key(checked.state)
        line = signer_line(own, node)
    if key:
        print(line)
        return
    in_force = ask_node(checked, "lists")
    if not in_force["in_step"]:
        raise fail("the workers of the node do not have the same lists yet; try again in a moment")
    since = in_force["since"]
    if list_name is not None:
        names = [list_settings(checked, list_name).name]
    elif out is not None:
        names = [*since]
    else:
        pulled = {name for name, settings in checked.lists.items() if settings.source is not None}
        names = [name for name in since if name in pulled]
    if not names:
        raise fail("no list in force has a source that accepts acknowledgements; --out FOLDER writes them to files")
    now = utc_text(datetime.now(UTC))
    rejections = in_force.get("rejected", {})
    are_accepted = []
    for name in names:
        if name not in since:
            raise fail(f"list {name} is not in force on the node")
        state = in_force["lists"][name]
        rejected = Rejection(**rejections[name]) if rejections.get(name) is not None else None
        statement = Acknowledgement(
            node=node, list=name, serial=state["serial"], content=state["content"], since=since[name], made=now, rejected=rejected
        )  # fmt: skip
        if out is None:
            are_accepted.append(_send(checked, statement))
            continue
        with as_owner_of(checked.state):
            content = sign_acknowledgement(statement, own)
        out.mkdir(parents=True, exist_ok=True)
        path = out / statement.name
        path.write_bytes(content)
        print_message(f"{path}: {name} {statement.serial} since {statement.since}")
    if not all(are_accepted):
        raise fail("send the other acknowledgements another way: eir acknowledge --out FOLDER writes them to files")


def _send(checked: Config, statement: "Acknowledgement") -> bool:
    """Send an acknowledgement to the source of its list, print the result, and return True if it was accepted."""
    from eir.node.processes.acknowledging import send_acknowledgement  # noqa: PLC0415 - for this command alone

    try:
        send_acknowledgement(checked, statement)
    except EirError as e:
        print_message(f"eir: {e}")
        return False
    print_message(f"{statement.list} {statement.serial} since {statement.since}: accepted by its source")
    return True


def show_acknowledged(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The publisher's folder (`eir publish --to`); acknowledgements lie in its acknowledgements/.")],
    nodes: Annotated[Path | None, typer.Option("--nodes", metavar="FILE", help="The nodes' public keys, an allowed_signers file; FOLDER/nodes if not given.", show_default=False)] = None,
    within: Annotated[str, typer.Option(metavar="1h", help="How long a node may take for a release.")] = "1h",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show which nodes have the newest release, and which do not.

    Each row rests on a statement that the node has signed: serial and digest of the content in force. They are compared
    with the releases in the folder. Exit status 1 if a node with a key is behind for longer than --within, rejects the
    offer of the folder, has other content, has no valid acknowledgement, or has posted none. A file from a node without
    a key is shown, but does not count.
    """
    from eir.lists.sources.acknowledge import IN_STEP, LATE, as_rows, node_statuses  # noqa: PLC0415 - for this command alone

    late = duration(within, "--within", least=timedelta(0))
    statuses = node_statuses(folder, now=datetime.now(UTC), within=late, nodes=nodes)
    columns = ("node", "list", "state", "serial", "behind", "late_s", "since", "acknowledged", "detail")
    show(as_rows(statuses), columns, as_json=as_json)
    states = [each.state for each in statuses if each.known]
    if not states:
        raise fail("no node has a key in the file of nodes")
    if not {IN_STEP, LATE}.issuperset(states):
        raise typer.Exit(EXIT_NO)
