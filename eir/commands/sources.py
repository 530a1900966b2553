"""Commands about lists that are pulled from a publisher's folder."""

import asyncio
import os
from typing import Annotated

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, list_settings, who
from eir.commands.output import EXIT_NO, EXIT_USAGE, fail, print_json, say
from eir.commands.releases import starting
from eir.config import Config, load_config
from eir.operate.owner import as_owner_of
from eir.sources.pull import LOADED, UNCHANGED, Pulled


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

    checked = load_config(config)
    if list_name is not None and list_settings(checked, list_name).source is None:
        raise fail(f"list {list_name} has no source (lists.{list_name}.source)", EXIT_USAGE)
    names = [name for name, settings in checked.lists.items() if settings.source is not None] if list_name is None else [list_name]
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
        serials = f"serial {', '.join(map(str, each.loaded))} loaded" if each.loaded else f"{each.serial} is the newest" if each.outcome == UNCHANGED else ""
        say(": ".join(part for part in (*parts, serials) if part))
    if any(each.outcome not in {LOADED, UNCHANGED} for each in found):
        raise typer.Exit(EXIT_NO)
