"""Commands that load signed releases from files or folders, and exchange acknowledgements of releases."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from eir.lists.log.change import Head
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.log.store import LogStore
from eir.lists.releases.release import MANIFEST_ENDS
from eir.lists.sources.release_result import LOADED, UNCHANGED, WAITING, ReleaseResult, Turn, failed
from eir.lists.stores.open import open_store
from eir.node.processes.loading import NICE, load_apart, load_process, process_once
from eir.node.processes.state_folder import as_owner_of, prepare

if TYPE_CHECKING:
    from eir.lists.sources.acknowledgement import ListStatement

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
    """Load releases one after the other, print the results, and continue after a rejected release; return the results as JSON.

    `loaded` receives the head of each loaded list.
    """
    documents, process = [], load_process(config)
    for manifest in manifests:
        try:
            _must_be_manifest(manifest)
            with progress() as advance:
                result = await load_apart(
                    process, config, who(), manifest, manifest.parent, force=force, dry_run=dry_run, progress=advance, report=warn,
                )  # fmt: skip
        except ReleaseRefused as refused:
            result = failed("", refused)
        result = replace(result, manifest=str(manifest))
        if result.outcome == WAITING:
            raise EirError(result.detail)
        if result.outcome == REFUSED:
            if not dry_run and result.reason != NO_RELEASE:
                _record(config, result)
            print_message(f"{manifest}: refused ({result.reason}): {result.detail}")
        else:
            print_message(f"{manifest}: {'would load' if dry_run else 'loaded'}: {result.detail}")
        head = await _journalled(config, store, result)
        if head is not None and result.list is not None:
            loaded[result.list] = head
        documents.append(
            result.as_json() | ({"outcome": "would load"} if dry_run and result.outcome == ACCEPTED else {})
        )
    await process.close()
    return documents


async def _journalled(config: Config, store: LogStore, result: ReleaseResult) -> Head | None:
    """Wait until the journal of this host's node has the change of a load; return the head of the list, or None without a change."""
    if result.generation is None or result.list is None:
        return None
    entries = await store.log(result.list, result.generation - 1)
    if entries and entries[0].change.generation == result.generation:
        await recorded(config, store, result.list, entries[0].change)
    return (await store.heads()).get(result.list)


def _record(config: Config, result: ReleaseResult) -> None:
    """Record a rejection in the journal of this host's node; print a warning if the journal fails."""
    if result.outcome != REFUSED:
        return
    try:
        record_event(config, result.rejection(who(), datetime.now(UTC)))
    except (EirError, OSError) as error:
        print_message(f"warning: the journal of this host does not have the rejection: {error}")


def _run_turns(config: Config, names: Sequence[str | None], by: str, *, force: bool = False) -> list[Turn]:
    """Take a turn of each source. `names`: lists; None for the drop folder."""

    async def loaded(result: ReleaseResult) -> None:
        store = open_store(config.store, config.state, report=warn)
        try:
            await _journalled(config, store, result)
        finally:
            await store.close()

    async def run() -> list[Turn]:
        emit = partial(_record, config)
        return [await process_once(config, name, by, emit=emit, force=force, loaded=loaded) for name in names]

    os.nice(NICE)
    with as_owner_of(config.state):
        return asyncio.run(run())


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
    checked = opened(load_config(config))
    (turn,) = _run_turns(checked, [None], f"inbox of {who()}")
    if as_json:
        print_json(turn.as_json())
    for each in turn.results:
        _print_parts(each.manifest, each.outcome, each.reason, each.detail)
    for name in turn.strays:
        reason = "no delivered release names it"
        if name.endswith(MANIFEST_ENDS):
            reason = f"its signature {name}.sig is missing"
        print_message(f"{name}: {WAITING}: {reason}")
    if turn.detail:
        _print_parts(turn.outcome, turn.reason, turn.detail)
    elif not turn.results and not turn.strays:
        print_message(f"nothing waits in {checked.inbox}")
    if turn.reason or any(each.outcome == REFUSED or each.here for each in turn.results):
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
    checked = opened(load_config(config))
    names = [name for name, settings in checked.lists.items() if settings.source is not None]
    if list_name is not None:
        if list_settings(checked, list_name).source is None:
            raise fail(f"list {list_name} has no source (lists.{list_name}.source)", EXIT_USAGE)
        names = [list_name]
    if not names:
        raise fail(f"no list in {checked.path} has a source (lists.*.source)", EXIT_USAGE)
    turns = _run_turns(checked, names, f"pull of {who()}", force=force)
    if as_json:
        print_json([each.as_json() for each in turns])
    for each in turns:
        serials = ""
        if each.loaded:
            serials = f"serial {', '.join(map(str, each.loaded))} loaded"
        elif each.outcome == UNCHANGED:
            serials = f"{each.serial} is the newest"
        _print_parts(f"{each.list}: {each.outcome}", each.reason, each.detail, serials)
    if any(each.outcome not in {LOADED, UNCHANGED} for each in turns):
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
    from eir.lists.sources.acknowledgement import load_key, signer_line  # noqa: PLC0415 - for this command alone
    from eir.node.processes.acknowledging import signed_statements  # noqa: PLC0415 - as above

    checked = opened(load_config(config))
    with acting_in(checked.state):
        prepare(checked.state)
        line = signer_line(load_key(checked.state), checked.identity.host)
    if key:
        print(line)
        return
    in_force = ask_node(checked, "lists")
    if not in_force["in_step"]:
        raise fail("the workers of the node do not have the same lists yet; try again in a moment")
    if list_name is not None and list_settings(checked, list_name).name not in in_force["since"]:
        raise fail(f"list {list_name} is not in force on the node")
    statements = _statements(in_force, list_name)
    if out is None:
        _send_statements(checked, statements)
        return
    with as_owner_of(checked.state):
        name, content = signed_statements(checked, statements)
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(content)
    lists = ", ".join(f"{name} {each.serial} since {each.since}" for name, each in statements.items())
    print_message(f"{out / name}: {lists}")


def _statements(in_force: Mapping[str, Any], list_name: str | None) -> dict[str, "ListStatement"]:
    """Return the statements about the lists in force, or about one list. `in_force`: answer of the node."""
    from eir.lists.sources.acknowledgement import ListStatement, Rejection  # noqa: PLC0415 - for this command alone

    statements = {}
    for name, since in in_force["since"].items():
        if list_name in {None, name}:
            head, rejection = in_force["lists"][name], in_force["rejected"].get(name)
            rejected_last = None if rejection is None else Rejection(**rejection)
            statements[name] = ListStatement(
                head["serial"], head["release"] or None, head["content"], since, rejected_last
            )
    return statements


def _send_statements(checked: Config, statements: Mapping[str, "ListStatement"]) -> None:
    """Send an acknowledgement to the source of each list, and print the results."""
    from eir.node.processes.acknowledging import send_statements, statements_for  # noqa: PLC0415 - for this command alone

    sources = {name: checked.lists[name].source for name in statements if name in checked.lists}
    advice = "--out FOLDER writes them to a file, for any other way to the publisher"
    if not any(sources.values()):
        raise fail(f"no list in force has a source that accepts acknowledgements; {advice}")
    is_failed = False
    for name, source in sources.items():
        if source is None:
            continue
        try:
            with as_owner_of(checked.state):
                asyncio.run(send_statements(checked, source, statements_for(checked, source, statements)))
        except EirError as e:
            is_failed = True
            print_message(f"eir: {e}")
        else:
            print_message(f"{name} {statements[name].serial} since {statements[name].since}: accepted by its source")
    if is_failed:
        raise fail(f"not all acknowledgements were accepted; eir acknowledge {advice}")


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
    from eir.lists.sources.acknowledgement import IN_STEP, LATE, as_rows, node_statuses  # noqa: PLC0415 - for this command alone

    late = duration(within, "--within", least=timedelta(0))
    statuses = node_statuses(folder, now=datetime.now(UTC), within=late, nodes=nodes)
    columns = ("node", "list", "state", "serial", "behind", "late_s", "since", "acknowledged", "detail")
    show(as_rows(statuses), columns, as_json=as_json)
    states = [each.state for each in statuses if each.known]
    if not states:
        raise fail("no node has a key in the file of nodes")
    if not {IN_STEP, LATE}.issuperset(states):
        raise typer.Exit(EXIT_NO)
