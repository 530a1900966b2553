"""Commands about lists that are pulled from a publisher's folder, and about what nodes say that they have in force."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, list_settings, opened, who
from eir.commands.forms import duration
from eir.commands.output import EXIT_NO, EXIT_USAGE, fail, print_json, say, show
from eir.commands.releases import starting
from eir.config import Config, load_config
from eir.errors import EirError
from eir.operate import control
from eir.operate.owner import as_owner_of
from eir.record.store import utc_text
from eir.sources.pull import LOADED, UNCHANGED, Pulled

if TYPE_CHECKING:
    from eir.sources.acknowledge import Acknowledgement


def pull(
    list_name: Annotated[str | None, typer.Argument(metavar="[LIST]", help="All lists that have a source, if not given.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch also what was refused before, and lift the limits on growth, shrinkage and ranges, nothing else.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Pull what the source of a list has that is new, once.

    A running node does so by itself. The index is fetched, what leads from the release in force to the newest one, and loaded as by `eir
    load`: signatures, limits and refusals are the same.
    """
    from eir.daemon.drop_folder import NICE, loading  # noqa: PLC0415 - for this command alone
    from eir.daemon.pulling import pull_once  # noqa: PLC0415 - as above

    checked = opened(load_config(config))
    if list_name is not None and list_settings(checked, list_name).source is None:
        raise fail(f"list {list_name} has no source (lists.{list_name}.source)", EXIT_USAGE)
    names = (
        [name for name, settings in checked.lists.items() if settings.source is not None]
        if list_name is None
        else [list_name]
    )
    if not names:
        raise fail(f"no list in {checked.path} has a source (lists.*.source)", EXIT_USAGE)

    async def make(checked: Config) -> list[Pulled]:
        async with starting() as start:
            load = loading(start, checked, by, force=force)
            return [await pull_once(checked, name, by, load, force=force) for name in names]

    by = f"pull of {who()}"
    os.nice(NICE)
    with as_owner_of(checked.state):
        found = asyncio.run(make(checked))
    if as_json:
        print_json([each.as_json() for each in found])
    for each in found:
        parts = [f"{each.list}: {each.outcome}", each.reason, each.detail]
        serials = (
            f"serial {', '.join(map(str, each.loaded))} loaded"
            if each.loaded
            else f"{each.serial} is the newest"
            if each.outcome == UNCHANGED
            else ""
        )
        say(": ".join(part for part in (*parts, serials) if part))
    if any(each.outcome not in {LOADED, UNCHANGED} for each in found):
        raise typer.Exit(EXIT_NO)


def acknowledge(
    list_name: Annotated[str | None, typer.Argument(metavar="[LIST]", help="All lists that are in force, if not given.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="Where the files go, for any other way to the publisher; posted to the lists' sources if not given.", show_default=False)] = None,
    key: Annotated[bool, typer.Option("--key", help="Only print the line by which a publisher knows this node's key (allowed_signers).")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Say, signed, which release of each list is in force here.

    With the digest of its content and since when. The key is the node's own. A running node does so by itself for lists with `source: {acknowledge: true}`.
    """
    from eir.sources.acknowledge import Acknowledgement, acknowledged, key_of, signer_line  # noqa: PLC0415 - as above

    checked = opened(load_config(config))
    node = checked.identity.host
    with as_owner_of(checked.state):
        own = key_of(checked.state)
        line = signer_line(own, node)
    if key:
        print(line)
        return
    said = control.ask(checked.state, "lists")
    if not said["in_step"]:
        raise fail("the workers of the node have not all taken over the same lists yet: ask again in a moment")
    having = {name for name, settings in checked.lists.items() if settings.source is not None}
    told = [name for name in said["since"] if out is not None or name in having]
    names = told if list_name is None else [list_settings(checked, list_name).name]
    if not names:
        raise fail("no list in force here has a source to be told; --out FOLDER writes what can go another way")
    now, given = utc_text(datetime.now(UTC)), list[bool]()
    for name in names:
        if name not in said["since"]:
            raise fail(f"list {name} is not in force on the node")
        state = said["lists"][name]
        what = Acknowledgement(
            node=node, list=name, serial=state["serial"], content=state["content_digest"], since=said["since"][name], made=now,
        )  # fmt: skip
        if out is not None:
            with as_owner_of(checked.state):
                content = acknowledged(what, own)
            out.mkdir(parents=True, exist_ok=True)
            (out / what.name).write_bytes(content)
            say(f"{out / what.name}: {name} {what.serial} since {what.since}")
        else:
            given.append(_given(checked, what))
    if not all(given):
        raise fail("what was not given can go another way: eir acknowledge --out FOLDER")


def _given(checked: Config, what: "Acknowledgement") -> bool:
    """True if the source of the list has taken it; says so, or why not."""
    from eir.daemon.acknowledging import give  # noqa: PLC0415 - for this command alone

    try:
        give(checked, what)
    except EirError as e:
        say(f"eir: {e}")
        return False
    say(f"{what.list} {what.serial} since {what.since}: given to its source")
    return True


def show_acknowledged(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The publisher's folder (`eir publish --to`); acknowledgements lie in its acknowledgements/.")],
    nodes: Annotated[Path | None, typer.Option("--nodes", metavar="FILE", help="The nodes' public keys, an allowed_signers file; FOLDER/nodes if not given.", show_default=False)] = None,
    within: Annotated[str, typer.Option(metavar="1h", help="How long a node may take for a release.")] = "1h",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show which nodes have what a folder offers, who is late.

    Each row rests on what the node has signed: serial and digest of the content in force, compared with what the releases make. Exit
    status 1 if a node is behind for longer than --within, has other content, has not proved what it says, or says nothing.
    """
    from eir.sources.acknowledge import IN_STEP, LATE, as_rows, standings  # noqa: PLC0415 - for this command alone

    late = duration(within)
    if late is None or late < timedelta(0):
        raise fail(f"--within {within}: expected a number and a unit: 1h, 15m or 2d", EXIT_USAGE)
    found = standings(folder, now=datetime.now(UTC), within=late, nodes=nodes)
    show(
        as_rows(found),
        ("node", "list", "state", "serial", "behind", "late_s", "since", "acknowledged", "detail"),
        as_json=as_json,
    )
    if not found:
        raise fail("no node has a key there")
    if any(each.state not in {IN_STEP, LATE} for each in found):
        raise typer.Exit(EXIT_NO)
