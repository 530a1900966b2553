"""Commands of publishers: create and offer signed releases of data files."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, optional_config
from eir.cli.output import EXIT_USAGE, duration, fail, print_warning, progress, show_one
from eir.config import load_layouts
from eir.lists.record.settings import KINDS
from eir.lists.releases.foreign import LAYOUTS
from eir.lists.sources.folder_index import INDEX, FolderIndex

if TYPE_CHECKING:
    from eir.lists.releases.publish import ReleaseSpec


def publish(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Data files: CSV, plain or .gz or .zst, or a DIRBS zip. With --base their names end in -added or -removed, as in x-added.csv.")],
    list_name: Annotated[str, typer.Option("--list", metavar="L", help="The list that the release is for.")],
    serial: Annotated[int, typer.Option(metavar="N", help="Above the serial of every earlier release.", min=1)],
    expires: Annotated[str, typer.Option(metavar="14d", help="How long it is meant to be in force: 14d, 36h.")],
    keys: Annotated[list[Path], typer.Option("--key", metavar="KEY", help="The OpenSSH key that signs; a .pub for one held by ssh-agent. Once for each signature that the list wants (lists.*.threshold).")],
    base: Annotated[int | None, typer.Option(metavar="M", help="Of a delta: the serial that it builds on.", min=0)] = None,
    layout: Annotated[str | None, typer.Option(metavar="NAME", help=f"{', '.join(LAYOUTS)}, or one that the configuration declares; guessed among the first if not given.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where the release goes; beside the data files if not given.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Instead of --out: a folder with an index, for a web server, which nodes pull from (lists.*.source).")] = None,
    holds: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="What the list holds: devices, pairs, subscribers or device_types; needed only if the files fit several, as DIRBS notifications do.", show_default=False)] = None,
    keep: Annotated[str, typer.Option(metavar="7d", help="With --to: how far behind a node may be and catch up by deltas. Older ones are folded into a full release.")] = "7d",
    bad_rows_max: Annotated[int, typer.Option(metavar="N", min=0, help="Rows that may be wrong; they are named, and left out of the release.")] = 0,
    bad_rows: Annotated[Path | None, typer.Option("--bad-rows", metavar="FILE", help="Write all bad rows to FILE, as CSV: file, line, problem, row.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A warning refuses the release, such as of a row that has ended or an IMEI of zeros.")] = False,
    new_key: Annotated[bool, typer.Option("--new-key", help="With --to: sign with a key that has signed no release in FOLDER and is not in FOLDER/signers. Nodes have to trust it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a release of the same serial with other data.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Create a signed release from data files.

    Rows of any layout are read, and written in the layout `eir`, which nodes load: LIST-SERIAL.csv.zst (of a delta -added and -removed; -ranges for
    whole TACs and ranges), LIST-SERIAL.manifest.json and its .sig, and .sig.2 for a second --key. A bad row is named to the publisher, and not in the
    release. The configuration is read only for a layout that it declares. OpenSSH creates the signatures. For an existing manifest, this command does
    the same:

    \b
    ssh-keygen -Y sign -n eir-release -f KEY MANIFEST

    With --to the release is written to its own folder in FOLDER, and is added to the index from which nodes pull. A key that has signed no
    release in FOLDER and is not in FOLDER/signers is rejected, because nodes that do not trust it would keep the previous release.
    """  # noqa: D301 - for typer: the command is not to be wrapped
    from eir.lists.releases.publish import ReleaseSpec  # noqa: PLC0415 - for this command alone
    from eir.lists.releases.publish import publish as publish_release  # noqa: PLC0415 - for this command alone

    now = datetime.now(UTC).replace(microsecond=0)
    optional_config(config)
    declared = load_layouts(config) if layout and layout not in LAYOUTS else {}
    _check_kind(holds)
    spec = ReleaseSpec(
        list=list_name, serial=serial, base=base, issued=now, expires=now + duration(expires, "--expires"), keys=keys, files=files, kind=holds,
        layout=layout, declared=declared, bad_rows_max=bad_rows_max, strict=strict,
    )  # fmt: skip
    if to is not None:
        kept = duration(keep, "--keep")
        if folder is not None or force:
            text = "--to cannot be combined with --out or --force, because nodes may have read the index"
            raise fail(text, EXIT_USAGE)
        _publish_into(to, spec, bad_rows, keep=kept, new_key=new_key, as_json=as_json)
        return
    with progress() as advance, _bad_rows_to(bad_rows, files) as each_bad:
        published = publish_release(
            spec, folder, replace=force, progress=advance or (lambda *_: None), warn=print_warning, each_bad=each_bad
        )
    written = f"{published.manifest} and its .sig are written; on the EIR: eir load {quote(str(published.manifest))}"
    show_one(published.as_json(), f"{published.as_text()}\n{written}", as_json=as_json)


def _check_kind(kind: str | None) -> None:
    if kind not in {None, *KINDS}:
        raise fail(f"--kind {kind}: expected {' or '.join(KINDS)}", EXIT_USAGE)


def offer(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Of a release with its signatures and data files beside it.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder with an index that nodes pull from (lists.*.source).")],
    key: Annotated[Path, typer.Option(metavar="KEY", help="The OpenSSH key that signs the index: one of the list's signers'; a .pub for one held by ssh-agent.")],
    holds: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="The kind of the list: devices, pairs or subscribers; as the folder says, else devices.", show_default=False)] = None,
    keep: Annotated[str, typer.Option(metavar="7d", help="How far behind a node may be and catch up by deltas.")] = "7d",
    new_key: Annotated[bool, typer.Option("--new-key", help="Offer what a key signed that has signed no release in the folder and is not in its `signers`. Nodes have to trust it.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Offer a signed release in a folder that nodes pull from.

    This command is for lists that people on several hosts sign: one of them runs `eir publish --out`, each of the
    others signs the manifest, and one offers the release. Deltas are not folded into full releases here, so a full
    release must be published from time to time.
    """
    from eir.lists.sources.folder_writer import offer_release  # noqa: PLC0415 - for this command alone

    kept = duration(keep, "--keep")
    _check_kind(holds)
    optional_config(config)
    now = datetime.now(UTC).replace(microsecond=0)
    index = offer_release(to, manifest, key=key, now=now, holds=holds, keep=kept, warn=print_warning, new_key=new_key)
    document = {"list": index.list, "serial": index.serial, **_index_document(to, index)}
    show_one(document, _index_text(to, index), as_json=as_json)


def _index_document(folder: Path, index: FolderIndex) -> dict[str, Any]:
    return {"releases": len(index.releases), "full": index.full.serial, "index": str(folder / INDEX)}


def _index_text(folder: Path, index: FolderIndex) -> str:
    releases = f"{len(index.releases)} releases, the newest full one {index.full.serial}"
    return f"{folder} offers {index.list} {index.serial} ({releases})"


@contextmanager
def _bad_rows_to(path: Path | None, files: Sequence[Path]) -> Iterator[Callable[[str, int, str, bytes], None] | None]:
    """Yield a function that writes a bad row to the new CSV file `path`; yield None without a `path`.

    Only its owner can read the file.
    """
    if path is None:
        yield None
        return
    if path.resolve() in {each.resolve() for each in files}:
        raise fail(f"--bad-rows {path} is a data file of the release; name another file", EXIT_USAGE)
    with open(path, "w", encoding="utf-8", newline="", opener=partial(os.open, mode=0o600)) as stream:
        out = csv.writer(stream)
        out.writerow(("file", "line", "problem", "row"))

        def write(name: str, line: int, problem: str, row: bytes) -> None:
            text = row.decode("utf-8", "replace")
            out.writerow((name, line, problem, text))

        yield write


def _publish_into(
    folder: Path, spec: "ReleaseSpec", bad_rows: Path | None, *, keep: timedelta, new_key: bool, as_json: bool
) -> None:
    from eir.lists.sources.folder_writer import publish_into  # noqa: PLC0415 - for --to alone

    with progress() as advance, _bad_rows_to(bad_rows, spec.files) as each_bad:
        placed = publish_into(
            folder, spec, keep=keep, new_key=new_key, progress=advance or (lambda *_: None), warn=print_warning, each_bad=each_bad
        )  # fmt: skip
    text = f"{placed.published.as_text()}\n{_index_text(folder, placed.index)}"
    if placed.folded:
        text += "; its deltas were folded into a full release"
    document = placed.published.as_json() | _index_document(folder, placed.index)
    document["folded"] = placed.folded
    show_one(document, text, as_json=as_json)
