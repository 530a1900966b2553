"""Verification of a node's journal: its chains of lines, and the files that lines of MAIN record."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path

from eir.lists.log.journal import (
    BEGIN,
    IMPORT,
    MAIN,
    SERIES,
    TRIMMED,
    decode_line,
    first_number,
    lines_of,
    paths_of,
    readable_lines,
    witness_path,
)


def journal_faults(folder: Path) -> Iterator[str]:
    """Verify all series; yield a message about each fault, with file and line.

    The removal of the newest lines of MAIN shows only in a comparison with the store or with another node's journal.
    """
    proofs: dict[str, dict[int, str]] = {series: {} for series in SERIES}
    """Digests of lines by their number, as events of MAIN record them."""
    oldest = dict.fromkeys(SERIES, 1)
    witnesses: dict[str, bool] = {}
    """Digests of witness files by the events of MAIN; False for a deleted one."""
    yield from _chain_faults(folder, MAIN, {}, None)
    for path in paths_of(folder, MAIN):
        for line in readable_lines(path):
            event = line.event
            if event.what in {IMPORT, TRIMMED} and event.series is None:
                witnesses[event.digest or ""] = event.what == IMPORT
            if event.series in proofs and event.number is not None:
                proofs[event.series][event.number] = event.digest or ""
                oldest[event.series] = event.oldest or oldest[event.series]
    for series in SERIES:
        paths = paths_of(folder, series)
        if paths and (first := first_number(paths[0])) > oldest[series]:
            yield f"{paths[0].name}: lines {oldest[series]} to {first - 1} before this file are missing"
        if series != MAIN:
            yield from _chain_faults(folder, series, proofs[series], max(proofs[series], default=0))
    yield from _witness_faults(folder, [digest for digest, is_kept in witnesses.items() if is_kept])


def _witness_faults(folder: Path, digests: Sequence[str]) -> Iterator[str]:
    """Verify the witness files with these SHA-256."""
    for digest in digests:
        path = witness_path(folder, digest)
        try:
            with path.open("rb") as file:
                found = file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            yield f"{path.name}: the file is missing"
        else:
            if found != digest:
                yield f"{path.name}: the file was changed"


def _chain_faults(folder: Path, series: str, proofs: Mapping[int, str], newest: int | None) -> Iterator[str]:
    """Verify that each line of a series follows the line before, and has the digest in `proofs`. `newest`: number of its newest proved line."""
    number, digest = 0, None
    for path in paths_of(folder, series):
        first = first_number(path)
        if number and first != number + 1:
            yield f"{path.name}: lines {number + 1} to {first - 1} before this file are missing"
            digest = None
        number = first - 1
        for at, octets in enumerate(lines_of(path), 1):
            try:
                line, before = decode_line(octets)
            except (ValueError, RecursionError) as error:
                yield f"{path.name}:{at}: the line was changed: {error}"
                number, digest = number + 1, None
                continue
            if line.number != number + 1:
                yield f"{path.name}:{at}: line {line.number} is where line {number + 1} was"
            elif before != (digest or before):
                yield f"{path.name}:{at}: the line before, {number}, was changed"
            elif number == 0 and before != BEGIN:
                yield f"{path.name}:{at}: the first line does not begin a journal"
            number, digest = line.number, sha256(octets).hexdigest()
            if proofs.get(number, digest) != digest:
                yield f"{path.name}:{at}: the line is not the one that the series {MAIN} records"
    if newest is not None and newest > number:
        yield f"lines {number + 1} to {newest} of the series {series} are missing"
