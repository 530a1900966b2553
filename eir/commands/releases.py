"""Commands that put signed releases in force."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from eir.changes.load import Loader, LoadReport
from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, opened, who, with_store
from eir.commands.output import EXIT_NO, print_json, progress, say, warn
from eir.config import Config, load_config
from eir.daemon.apart import Start, load_apart, progress_over
from eir.daemon.channel import Channel
from eir.daemon.starter import Starter
from eir.errors import ReleaseRefused
from eir.inbox.inbox import UNRECORDED, WAITING, Pass
from eir.operate import control
from eir.operate.owner import as_owner_of
from eir.record.store import REFUSED, ListStore
from eir.releases.release import MANIFEST_ENDS
from eir.stores.open import open_store, serial_marks

NO_MANIFEST = (".csv", ".txt", ".gz", ".zst", ".zip", ".sig", ".pub")
"""Endings of the names of files that lie beside manifests."""
MANIFESTS_NAMED_MAX = 3
TAKEN_OVER_S, TAKEN_OVER_EACH_S = 2.0, 0.05
"""Time that a load waits for the node on its host to follow, and interval between two looks."""


def load(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="LIST-SERIAL.manifest.json; its .sig and data lie beside it.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and count, change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Lift the limits on growth, shrinkage and ranges, nothing else.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Verify signed releases and put them in force.

    Running nodes follow within a second. A release that is refused changes nothing: the list in force stays, and the reason is
    given here and in `eir history`.
    """
    checked = opened(load_config(config))
    loaded: dict[str, str] = {}
    try:
        reports = with_store(
            checked, lambda store: _load_all(store, checked, manifests, loaded, dry_run=dry_run, force=force)
        )
    except KeyboardInterrupt:
        said = "what is reported above stays in force" if loaded else "no release was reported as loaded"
        say(f"interrupted; {said}; eir lists shows what is in force")
        raise
    if as_json:
        print_json(reports)
    if loaded:
        say(_taken_over(checked.state, loaded))
    if any(report["outcome"] == "refused" for report in reports):
        raise typer.Exit(EXIT_NO)


async def _load_all(
    store: ListStore,
    config: Config,
    manifests: list[Path],
    loaded: dict[str, str],
    *,
    dry_run: bool,
    force: bool,
) -> list[dict[str, Any]]:
    """Load one after the other; a refused one does not stop the next. `loaded` takes the content of each list that was loaded."""
    options = {"force": force, "dry_run": dry_run, "marks": await serial_marks(config.store, config.state)}
    async with starting() as start:
        return [await _loaded(store, config, start, manifest, loaded, options) for manifest in manifests]


async def _loaded(
    store: ListStore, config: Config, start: Start, manifest: Path, loaded: dict[str, str], options: dict[str, Any]
) -> dict[str, Any]:
    """Load one; what came of it, said and as a document."""
    try:
        _must_be_manifest(manifest)
        with progress() as advance:
            report: LoadReport = await load_apart(
                start, _load, config, manifest, options, memory_max=config.load_memory, progress=advance
            )
    except ReleaseRefused as e:
        if e.reason in UNRECORDED:
            await Loader(config.lists, store, who(), datetime.now(UTC), dry_run=options["dry_run"]).record(e)
        say(f"{manifest}: refused ({e.reason}): {e.detail}")
        return {"manifest": str(manifest), "outcome": "refused", "reason": e.reason, "detail": e.detail}
    outcome = "would load" if options["dry_run"] else "loaded"
    if report.state is not None:
        loaded[report.list] = report.state.content_digest
    say(f"{manifest}: {outcome}: {report.as_text()}")
    return {"manifest": str(manifest), "outcome": outcome, **report.as_json()}


async def _load(config: Config, manifest: Path, options: dict[str, Any], channel: Channel) -> LoadReport:
    """One load, in its own process."""
    with as_owner_of(config.state):
        store = open_store(config.store, config.state, report=warn)
        try:
            progress = progress_over(channel)
            loader = Loader(
                config.lists,
                store,
                who(),
                datetime.now(UTC),
                progress=progress,
                memory_max=config.load_memory,
                **options,
            )
            return await loader.verify_and_load(manifest)
        finally:
            await store.close()


@asynccontextmanager
async def starting() -> AsyncIterator[Start]:
    """Starts processes that load, with the modules for that."""
    starter = Starter(__name__, "eir.rows.reader")
    try:
        yield starter.start
    finally:
        await starter.close()


def _taken_over(state: Path, loaded: Mapping[str, str]) -> str:
    """Say whether the node on this state folder answers by what was loaded (list → digest of its content).

    Waits a little for it.
    """
    end = time.monotonic() + TAKEN_OVER_S
    try:
        while True:
            report = control.ask(state, "status")
            behind = [name for name, digest in loaded.items() if report["lists"].get(name, {}).get("digest") != digest]
            node = f"the node on this host (process {report['pid']})"
            if not behind:
                return f"{node} has taken over {', '.join(loaded)}"
            if time.monotonic() > end:
                return f"{node} has not taken over {', '.join(behind)} yet; see eir status"
            time.sleep(TAKEN_OVER_EACH_S)
    except control.ControlDenied as e:
        return f"cannot tell whether a node has taken it over: {e}"
    except control.ControlError as e:
        return f"{e}; a node that starts later, or follows the same store elsewhere, takes it over by itself"


def _must_be_manifest(path: Path) -> None:
    """Raise ReleaseRefused for what was given by mistake; since it is not a release, it does not go into the history."""
    if not path.is_dir() and not path.name.lower().endswith(NO_MANIFEST):
        return
    folder = path if path.is_dir() else path.parent
    near = sorted(folder.glob("*.manifest.json"))[:MANIFESTS_NAMED_MAX]
    advice = (
        f"did you mean {' or '.join(map(str, near))}?"
        if near
        else "a release has a LIST-SERIAL.manifest.json (eir publish makes it)"
    )
    raise ReleaseRefused("no_manifest", f"this is not a manifest; {advice}")


def inbox(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Load what has arrived in the drop folder, once.

    A running node does so by itself. Each release goes to `accepted/`, or to `refused/` with a text that gives the reason; one that
    is not complete yet stays. What waits, and for what, is said each time.
    """
    from eir.daemon.drop_folder import NICE, loading, make_pass  # noqa: PLC0415 - for this command alone

    checked, by = opened(load_config(config)), f"inbox of {who()}"

    async def make() -> Pass:
        async with starting() as start:
            return await make_pass(checked, by, loading(start, checked, by))

    os.nice(NICE)
    with as_owner_of(checked.state):
        made = asyncio.run(make())
    if as_json:
        print_json(made.as_json())
    for taken in made.taken:
        say(": ".join(part for part in (taken.manifest, taken.outcome, taken.reason, taken.detail) if part))
    for name in made.strays:
        unsigned = f"its signature {name}.sig is not there" if name.endswith(MANIFEST_ENDS) else ""
        say(f"{name}: {WAITING}: {unsigned or 'no release that is here names it'}")
    if made.elsewhere:
        say("another process makes a pass over the drop folder just now; see eir history, or ask again in a moment")
    elif not made.taken and not made.strays:
        say(f"nothing waits in {checked.inbox}")
    if any(taken.outcome == REFUSED or taken.here for taken in made.taken):
        raise typer.Exit(EXIT_NO)
