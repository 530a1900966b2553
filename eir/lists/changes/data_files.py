"""Reader of the data files of a release: verifies layout, size and digest of all files before it reads the first row."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from eir.errors import ReleaseRefused
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import LOAD_MEMORY, ListSettings
from eir.lists.releases.release import ROLES, Manifest
from eir.lists.rows.delivered import DataFile, Done, open_folder
from eir.lists.rows.layout import EIR
from eir.lists.rows.listed_rows import ListedRows

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

STAGES = VERIFY, DIGEST, READ, BUILD, WRITE = "verify", "digest", "read", "build", "write"
"""Stages of a load in their order. At its begin, each stage reports that nothing is done."""

ROW_BYTES = 20
"""Minimum memory in bytes that a load needs for each row: its key twice, and its place in the table."""
Stage: TypeAlias = Callable[[str, int], AbstractContextManager[Done]]
"""Context manager of a stage, from the stage's name and size. It yields a function that receives the amount just done."""


def read_release(
    manifest: Manifest, folder: Path, settings: ListSettings, reasons: Reasons, tally: "Tally", *,
    stage: Stage, memory_max: int = LOAD_MEMORY,
) -> Iterable[ListedRows]:  # fmt: skip
    """Verify layout, size and digest of every data file, then read all rows; return the rows by their role in the release.

    Added rows come before removed rows. `manifest` is the result of `verify_release`.
    """
    from eir.lists.rows.reader import read_rows  # noqa: PLC0415  # as above

    files = manifest.files
    for entry in files:
        if entry.layout != EIR.name:
            advice = f"nodes load the layout {EIR.name} only: the publisher has to convert the file by eir publish --layout {entry.layout}"
            raise ReleaseRefused("layout", f"{entry.name} has the layout {entry.layout}; {advice}")
    _check_rows(sum(file.rows for file in files), memory_max)
    rows = {role: ListedRows() for role in ROLES[manifest.kind]}
    total = sum(entry.bytes for entry in files)
    with ExitStack() as stack:
        folder_fd = stack.enter_context(open_folder(folder))
        opened = [(entry, stack.enter_context(DataFile(entry.name, folder_fd))) for entry in files]
        for entry, file in opened:
            if file.size != entry.bytes:
                raise ReleaseRefused(
                    "file_size", f"{entry.name} has {file.size} bytes; the manifest says {entry.bytes}"
                )
        with stage(DIGEST, total) as done:
            for entry, file in opened:
                digest = file.sha256(done)
                if digest != entry.sha256:
                    raise ReleaseRefused("digest", f"{entry.name} does not have the SHA-256 that the manifest says")
        with stage(READ, total) as done:
            for entry, file in opened:
                chunks, count = file.chunks(entry.rows, entry.sha256, done), 0
                for part in read_rows(
                    chunks, name=entry.name, kind=settings.kind, reasons=reasons, tally=tally, rows_max=entry.rows
                ):
                    count += part.row_count
                    rows[entry.role].add(part.rows, part.lasts)
                if count != entry.rows:
                    raise ReleaseRefused("rows", f"{entry.name} has {count} rows; the manifest says {entry.rows}")
    return rows.values()


def _check_rows(rows: int, memory_max: int) -> None:
    """Reject a release (`too_large`) if the number of rows in its manifest needs more memory than allowed."""
    needed = rows * ROW_BYTES
    if needed > memory_max:
        advice = f"limits.load_memory is {memory_max}: raise it if the host has that much, or split the release into a full one and deltas"
        raise ReleaseRefused("too_large", f"its {rows} rows take {needed} bytes of memory at least; {advice}")
