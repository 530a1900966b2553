"""Publisher of releases: reads data files, which may have foreign layouts, and writes data files in the layout `eir`, the manifest and its signatures."""

import hashlib
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import zstandard

from eir.device import SNR_KEYS
from eir.disk import open_named, write_file
from eir.errors import ReleaseRefused
from eir.lists.log.change import utc_text
from eir.lists.record.reasons import OTHER_REASON, REASON_CHARS_MAX, REASONS_MAX, Reasons
from eir.lists.record.settings import DEVICES, KINDS, Layout, is_list_name
from eir.lists.releases.foreign import add_latest, find_layout, kinds_for, read_file, unknown_columns
from eir.lists.releases.openssh import sign
from eir.lists.releases.records import decode
from eir.lists.releases.release import (
    ADDED,
    DELTA,
    ENTRIES,
    FORMAT,
    FULL,
    MANIFEST_ENDS,
    REMOVED,
    ROLES,
    SIGNATURES_MAX,
    signature_names,
)
from eir.lists.rows.delivered import EXPANDED_RATIO_MAX, Progress, read_lines, sum_progress
from eir.lists.rows.layout import EIR
from eir.lists.rows.listed_rows import DataRows, ListedRows, check_sides
from eir.lists.table.columns import Numbers, TableRows

if TYPE_CHECKING:
    from eir.lists.rows.reader import RowPart, Tally

ZIP_MEMBERS_MAX = 1000
BAD_ROWS_NAMED_MAX = 20
REPLACED = "\ufffd"
"""Character that replaces bytes that are not valid UTF-8."""

# With D as YYYYmmdd_HHMMSS: D_blacklist.csv, D_notifications_{operator}.csv, D_exceptions_{operator}.csv, and their deltas.
_DIRBS_NAME = re.compile(
    r"\d{8}_\d{6}_(?P<what>blacklist|notifications|exceptions)(?:_(?P<operator>.+?))??"
    r"(?:_delta_(?P<base>-?\d+)_(?P<run>\d+)_(?P<change>[a-z_]+))?\.csv(?:\.gz|\.zst)?"
)
_DIRBS_ROLES = {
    **dict.fromkeys(("blocked", "new", "changed", "added"), ADDED),
    **dict.fromkeys(("unblocked", "resolved", "blacklisted", "no_longer_seen", "removed"), REMOVED),
}
_ODD_IN_ALL = {
    "wrong_dates": "have an invalid date", "ended": "have expired", "zeros": "have an IMEI of zeros",
    "future_dates": "have a date more than a year ahead", "long_rows": "have more fields than the header",
}  # fmt: skip
"""End of the warning with the number of odd rows, by their kind (reader.ODD)."""
_LAST_WORD = re.compile(r"(?:^|[-_.])(added|removed)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSpec:
    """Release that a publisher orders, and the data files for it."""

    list: str
    serial: int
    base: int | None = None
    """Serial on which a delta builds; None for a full release."""
    issued: datetime
    expires: datetime
    keys: Sequence[Path]
    """OpenSSH keys that sign, or the `.pub` files of an agent's keys. The first one also signs the index of a publisher's folder."""
    files: Sequence[Path] = ()
    """Data files, or zips of DIRBS. In a delta, the name of a file ends in `added` or `removed` or is a DIRBS delta name, or the rows have a code that adds or removes an entry."""
    kind: str | None = None
    """Kind of the list; None: the only kind into which the data files fit."""
    layout: str | None = None
    """Layout of the files; None: guessed from each header."""
    declared: Mapping[str, Layout] = field(default_factory=dict)
    """Layouts of the configuration by name."""
    bad_rows_max: int = 0
    """Maximum number of bad rows. Up to this number, bad rows are warnings, and left out of the release."""
    strict: bool = False
    """Reject the release for any warning."""

    @property
    def release_kind(self) -> str:
        """Kind of the release: FULL or DELTA."""
        return FULL if self.base is None else DELTA

    def check(self) -> None:
        """Raise ReleaseRefused for a release that no EIR would accept."""
        if not is_list_name(self.list):
            raise ReleaseRefused("manifest", f"{self.list!r} is not a valid name of a list")
        if self.serial < 1 or (self.base is not None and not 0 <= self.base < self.serial):
            raise ReleaseRefused("manifest", "expected a serial above 0, and for a delta a base below its serial")
        if self.expires <= self.issued:
            raise ReleaseRefused("manifest", "expected an expiry after the time of issue")
        if len(self.keys) > SIGNATURES_MAX:
            raise ReleaseRefused("threshold", f"a release carries {SIGNATURES_MAX} signatures at most")

    def manifest(self, files: Sequence[Mapping[str, Any]]) -> Mapping[str, object]:
        """Return the JSON document of the manifest with these data files."""
        base = {} if self.base is None else {"base": self.base}
        return {
            "format": FORMAT, "list": self.list, "kind": self.release_kind, "serial": self.serial, **base,
            "issued": utc_text(self.issued), "expires": utc_text(self.expires), "files": files,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Result of publishing a release: its files, and the counts of its rows."""

    manifest: Path
    kind: str
    """Kind of the list."""
    rows: int
    entries: Mapping[str, int]
    """Number of identifiers and whole TACs by role: `entries` of a full release, `added` and `removed` of a delta."""
    duplicates: int
    """Number of entries that are listed again (ListedRows.count_repeats)."""
    conflicting: int
    """Number of duplicates with another reason, begin or end than before."""
    other_reasons: int
    """Number of rows whose entry has a reason that is earlier in the `reasons` of the layouts."""
    bad_rows: int
    skipped: int
    """Number of junk identifiers, as in Tally."""
    wrong_check_digits: int
    """Number of IMEIs with a wrong check digit, as in Tally."""
    odd: Mapping[str, int]
    """Number of odd rows, which an EIR accepts but which are probably mistakes, by kind (reader.ODD)."""

    def as_json(self) -> dict[str, Any]:
        """Return the release and its counts as a JSON document."""
        counts = asdict(self)
        for name in ("manifest", "kind", "entries", "odd"):
            del counts[name]
        entries = {"entries": sum(self.entries.values()), **self.entries}
        return {"manifest": str(self.manifest), "signature": f"{self.manifest}.sig", **entries, **counts, **self.odd}

    def as_text(self) -> str:
        """Format the counts of the release in one line."""
        entries = ", ".join(f"{count:,} {role}" for role, count in self.entries.items())
        parts = [f"{self.rows:,} rows", entries]
        if self.duplicates:
            parts.append(f"{self.duplicates:,} duplicates, of which {self.conflicting:,} have another reason or end")
        if self.other_reasons:
            parts.append(f"{self.other_reasons:,} rows got the earlier reason of their entry")
        if self.skipped:
            parts.append(f"{self.skipped:,} junk identifiers skipped")
        return "; ".join(parts)


class ReleaseContent(NamedTuple):
    """Rows of a release."""

    kind: str
    """Kind of the list."""
    data: Mapping[str, DataRows]
    """Rows by their role."""
    reasons: Sequence[str]
    """Reason texts by index."""


class _Input(NamedTuple):
    """Data file of a publisher."""

    path: Path
    layout: Layout
    header: bytes
    """Line with the column names."""


def publish(
    spec: ReleaseSpec, folder: Path | None = None, *, replace: bool = True, progress: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None, each_bad: Callable[[str, int, str, bytes], None] | None = None,
) -> Published:  # fmt: skip
    """Write a signed release in the layout `eir` from the data files of a publisher, which may have other layouts.

    Args:
        spec: release.
        folder: folder of the release; None: the folder of the data files.
        replace: if False, reject this release if a release of the same serial has other data.
        progress: receives the stage `read`, in bytes.
        warn: receives warnings, such as data that an EIR accepts but that is probably a mistake.
        each_bad: receives each bad row: file, line, fault and the row.

    Raises:
        ReleaseRefused: with the reason word of a load. Nothing is written then.
    """
    from eir.lists.rows.reader import ODD, Tally  # noqa: PLC0415  # its import takes a while, and the command line imports this module

    spec.check()
    folders = {file.absolute().parent for file in spec.files}
    if folder is None and len(folders) != 1:
        raise ReleaseRefused(
            "file_name", "the data files are in several folders; name the folder for the release (--out)"
        )
    folder = folder or spec.files[0].parent
    tally = Tally(
        bad_rows_max=sys.maxsize, range_tacs_max=sys.maxsize // SNR_KEYS, check_digits=True, dates=True, now_s=int(spec.issued.timestamp()),
        complaints_max=BAD_ROWS_NAMED_MAX, each_bad=each_bad,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="eir-publish-") as temporary:
        paths = [path for file in spec.files for path in _unpacked(file, Path(temporary), spec.release_kind)]
        inputs = [_inspect(path, spec) for path in paths]
        kind = spec.kind or _kind_of_list(inputs)
        rows, texts, count, warnings = _read(inputs, kind, spec.release_kind, tally, progress)
    if tally.bad > spec.bad_rows_max:
        fault = f"{tally.bad} bad rows; {spec.bad_rows_max} are allowed (--bad-rows-max)"
        raise ReleaseRefused("bad_rows", "\n".join((fault, *tally.complaints)))
    repeats = [listed.count_repeats() for listed in rows.values()]
    is_ordered = any(each.layout.reasons for each in inputs)
    other_reasons = sum(listed.unite_reasons() for listed in rows.values()) if is_ordered else 0
    warnings += [*_reason_warnings(texts), *_warnings(tally)]
    content = ReleaseContent(kind, {role: listed.data_rows() for role, listed in rows.items()}, texts)
    entries = {role: rows[role].pop() if len(part.ranges) else part.singles for role, part in content.data.items()}
    if spec.base is not None:
        check_sides(entries[ADDED], entries[REMOVED])
    if spec.strict and warnings:
        fault = f"{len(warnings)} warnings; --strict allows none"
        raise ReleaseRefused("warnings", "\n".join((fault, *warnings)))
    manifest = write_release(spec, folder, content, replace=replace)
    for text in warnings:
        warn(text)
    return Published(
        manifest=manifest, kind=kind, rows=count, entries={role: len(each) for role, each in entries.items()},
        duplicates=sum(repeated for repeated, _ in repeats), conflicting=sum(contradictions for _, contradictions in repeats),
        other_reasons=other_reasons,
        bad_rows=tally.bad, skipped=tally.skipped, wrong_check_digits=tally.wrong_check_digits, odd={kind: tally.rows[kind].count for kind in ODD},
    )  # fmt: skip


def write_release(spec: ReleaseSpec, folder: Path, content: ReleaseContent, *, replace: bool = True) -> Path:
    """Write a signed release to a folder: its data files, the manifest, and last the signatures; return the path of the manifest.

    Args:
        spec: release. Its data files are not read.
        folder: folder of the release, which is created.
        content: rows of the release.
        replace: as for `publish`.

    Raises:
        ReleaseRefused: `file_exists`, `signing`, `openssh`. Nothing is written then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.list}-{spec.serial}{MANIFEST_ENDS}"
    signatures = [path.with_name(name) for name in signature_names(path.name)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".eir-publish-") as temporary:
        entries = []
        for name, role, rows, lasts in _data_files(f"{spec.list}-{spec.serial}", content.data):
            members = _write_data(Path(temporary) / name, folder / name, content, rows, lasts)
            entries.append({"name": name, "role": role, **members})
        manifest = spec.manifest(entries)
        if any(file.absolute() == (folder / entry["name"]).absolute() for file in spec.files for entry in entries):
            raise ReleaseRefused(
                "file_exists",
                "a data file has the name of a file of the release; name another folder for the release (--out)",
            )
        if not replace and _has_other_data(path, manifest):
            raise ReleaseRefused(
                "file_exists",
                f"{path} is a release of this serial with other data; publish with a higher serial, or with --force",
            )
        document = f"{json.dumps(manifest, indent=1)}\n".encode()
        signed = [sign(document, key) for key in spec.keys]
        for signature in signatures:
            signature.unlink(missing_ok=True)
        for entry in entries:
            (Path(temporary) / entry["name"]).replace(folder / entry["name"])
    write_file(path, document)
    for signature, signature_content in zip(signatures, signed, strict=False):
        write_file(signature, signature_content)
    return path


def _unpacked(file: Path, folder: Path, kind: str) -> Sequence[Path]:
    """Return the path of a data file; of a zip, those of the extracted data files for a full release or a delta (`kind`)."""
    if file.suffix.lower() != ".zip":
        return (file,)
    paths = []
    try:
        with zipfile.ZipFile(file) as archive:
            for name, member in _select_members(archive.infolist(), file.name, kind).items():
                if member.file_size > max(member.compress_size, 1 << 10) * EXPANDED_RATIO_MAX:
                    fault = f"{name} expands to more than {EXPANDED_RATIO_MAX} times its size"
                    raise ReleaseRefused("expanded", f"{file.name}: {fault}")
                paths.append(folder / name)
                with archive.open(member) as source, paths[-1].open("xb") as target:
                    shutil.copyfileobj(source, target)
    except FileExistsError:
        raise ReleaseRefused("file_name", f"two data files have the name {paths[-1].name}") from None
    except OSError as error:
        raise ReleaseRefused("file_missing", f"{file}: {error.strerror or error}") from None
    except (
        zipfile.BadZipFile,
        RuntimeError,
        NotImplementedError,
    ) as error:  # damaged, encrypted, unsupported compression
        raise ReleaseRefused("data", f"{file.name} cannot be unpacked: {error}") from None
    return paths


def _inspect(path: Path, spec: ReleaseSpec) -> _Input:
    """Read the begin of a data file, and determine its layout."""
    if path.exists() and not path.is_file():
        raise ReleaseRefused("not_a_file", f"{path} is not a regular file")
    try:
        with path.open("rb") as stream:
            begin = read_lines(path.name, stream, path.stat().st_size).begin()
    except OSError as error:
        raise ReleaseRefused("file_missing", f"{path}: {error.strerror}") from None
    layout = find_layout(path.name, begin, spec.layout, spec.declared)
    lines = decode(begin, layout.encoding).split(b"\n")
    return _Input(path, layout, b"".join(lines[layout.lines_before : layout.lines_before + 1]))


def _kind_of_list(inputs: Sequence[_Input]) -> str:
    """Return the only kind of list (such as devices) into which all data files fit.

    Raises:
        ReleaseRefused: `layout`, unless exactly one kind fits.
    """
    kinds = list(KINDS)
    for path, layout, header in inputs:
        file_kinds = kinds_for(path.name, layout, header)
        kinds = [kind for kind in kinds if kind in file_kinds]
        if not kinds:
            fault = f"{path.name} is for lists of {' or '.join(file_kinds)}, and a file before it is not; publish them apart"
            raise ReleaseRefused("layout", fault)
    if len(kinds) > 1:
        fault = f"layout {layout.name} is for lists of {' or '.join(kinds)}; give one of them (--kind)"
        raise ReleaseRefused("layout", f"{path.name}: {fault}")
    return kinds[0]


def _read(
    inputs: Sequence[_Input], kind: str, release_kind: str, tally: "Tally", progress: Progress
) -> tuple[Mapping[str, ListedRows], Sequence[str], int, list[str]]:
    """Read all data files; return their rows by role, the reason texts, the number of rows, and warnings."""
    ordered = dict.fromkeys(reason for each in inputs for reason in each.layout.reasons.values())
    reasons = Reasons(("", *ordered))
    rows = {role: ListedRows() for role in ROLES[release_kind]}
    coded: list[RowPart] = []
    count, warnings = 0, []
    for path, layout, header in inputs:
        role, before, size = _role(path.name, release_kind, kind, layout), count, path.stat().st_size
        with path.open("rb") as stream:
            lines = read_lines(path.name, stream, size, sum_progress(progress, "read", size))
            for part in read_file(lines, name=path.name, layout=layout, kind=kind, reasons=reasons, tally=tally):
                count += part.row_count
                if part.removes is None:
                    rows[role].add(part.rows, part.lasts)
                else:
                    coded.append(part)
        if lines.is_unended:
            warnings.append(f"{path.name} does not end with a newline: it may be truncated")
        warnings += [
            f"{path.name}: unknown column without effect: {column}" for column in unknown_columns(header, layout)
        ]
        if count == before:
            warnings.append(f"{path.name} holds no row")
    if coded:
        add_latest(coded, rows)
    return rows, reasons.texts, count, warnings


def _data_files(stem: str, data: Mapping[str, DataRows]) -> Iterator[tuple[str, str, TableRows, Numbers | None]]:
    """Yield name, role, rows and last keys of each data file of a release: one file for single keys, and one for ranges.

    A file without rows is omitted, unless the release has no rows at all.
    """
    is_empty = not any(len(singles) or len(ranges) for singles, ranges, _ in data.values())
    for role, (singles, ranges, lasts) in data.items():
        name = stem if role == ENTRIES else f"{stem}-{role}"
        if len(singles) or is_empty:
            yield f"{name}.csv.zst", role, singles, None
        if len(ranges):
            yield f"{name}-ranges.csv.zst", role, ranges, lasts


def _write_data(
    path: Path, target: Path, content: ReleaseContent, rows: TableRows, lasts: Numbers | None
) -> Mapping[str, Any]:
    """Write a data file to `path`, and return its members of the manifest. `target`: later path, for errors."""
    from eir.lists.rows.row_writer import csv_text, frames_of  # noqa: PLC0415 - its import takes a while, and the command line imports this module

    with open_named(path, target) as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as packed:
        for number, frame in enumerate(frames_of(content.kind, rows, content.reasons, lasts)):
            packed.write(csv_text(frame, header=not number).encode())
    with path.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return {"layout": EIR.name, "bytes": path.stat().st_size, "rows": len(rows), "sha256": digest}


def _warnings(tally: "Tally") -> Iterator[str]:
    yield from (f"a bad row, left out of the release: {complaint}" for complaint in tally.complaints)
    if tally.bad > len(tally.complaints):
        yield f"{tally.bad} bad rows in all"
    for kind, text in _ODD_IN_ALL.items():
        rows = tally.rows[kind]
        yield from rows.named
        if rows.count > len(rows.named):
            yield f"{rows.count:,} rows {text}"
    if tally.wrong_check_digits:
        yield f"{tally.wrong_check_digits:,} IMEIs of 15 digits end in a wrong check digit"


def _has_other_data(path: Path, manifest: Mapping[str, object]) -> bool:
    """Return True if a manifest already exists at this path and its data differ from the data of the new manifest.

    The same data may be signed again with a later expiry.
    """
    try:
        existing = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    if not isinstance(existing, dict):
        return True
    return any(existing.get(name) != manifest.get(name) for name in ("kind", "base", "files"))


def _select_members(infos: Sequence[zipfile.ZipInfo], zip_name: str, kind: str) -> Mapping[str, zipfile.ZipInfo]:
    """Select the data files in a zip by name: in a DIRBS zip the full file or the deltas (`kind`), in another zip all CSV files.

    A DIRBS zip has the full file and the deltas of one run. DIRBS writes blacklist, notifications and exceptions to
    separate zips, one for each operator.
    """
    if len(infos) > ZIP_MEMBERS_MAX:
        raise ReleaseRefused("data", f"{zip_name} holds more than {ZIP_MEMBERS_MAX} files")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = PurePosixPath(info.filename).name
        if info.is_dir() or not name.endswith((".csv", ".csv.gz", ".csv.zst")):
            continue
        if name in members:
            raise ReleaseRefused("file_name", f"{zip_name}: the file name {name!r} occurs twice")
        members[name] = info
    dirbs_names = [match for match in map(_DIRBS_NAME.fullmatch, members) if match is not None]
    if dirbs_names:
        selected = [match for match in dirbs_names if (match["change"] is not None) == (kind == DELTA)]
        sources = {(match["what"], match["operator"]) for match in selected}
        if len(sources) > 1:
            labels = sorted(" ".join(filter(None, source)) for source in sources)
            raise ReleaseRefused("layout", f"{zip_name} holds several lists ({', '.join(labels)}); publish them apart")
        members = {match[0]: members[match[0]] for match in selected}
    if not members:
        raise ReleaseRefused("layout", f"{zip_name} holds no CSV for a {kind} release")
    return members


def _reason_warnings(texts: Sequence[str]) -> Iterator[str]:
    """Yield warnings about reason texts that an EIR shortens or replaces."""
    garbled = next((text for text in texts if REPLACED in text), None)
    if garbled is not None:
        yield f"reasons are not in UTF-8, such as '{garbled}': save the file in UTF-8, or declare its encoding (layouts)"
    truncated = next((text for text in texts if len(text) == REASON_CHARS_MAX), None)
    if truncated is not None:
        yield f"an EIR keeps {REASON_CHARS_MAX} characters of a reason, as of '{truncated[:20]}…'"
    if len(texts) > REASONS_MAX:
        yield f"an EIR keeps the first {REASONS_MAX - 1} different reasons; all others become '{OTHER_REASON}'"


def _role(name: str, release_kind: str, kind: str, layout: Layout) -> str:
    """Return the role of the rows of a data file. In a layout with codes each row has a role of its own.

    Raises:
        ReleaseRefused: `file_name`, if the name of a delta's file has no role; `layout`, if the role does not fit the layout.
    """
    if release_kind == FULL:
        return ENTRIES
    if layout.added:
        return ADDED
    dirbs_name = _DIRBS_NAME.fullmatch(name)
    word = _LAST_WORD.search(name.partition(".")[0])
    role = _DIRBS_ROLES.get(dirbs_name["change"]) if dirbs_name else word and word[1]
    if not role:
        detail = "in a delta the name must end in added or removed, such as x-added.csv"
        raise ReleaseRefused("file_name", f"{name}: {detail}")
    if layout.by_pair and role == REMOVED and kind == DEVICES:
        detail = f"layout {layout.name} has a row for each device with one of its SIMs, so a removed row may leave the device listed with another SIM"
        raise ReleaseRefused("layout", f"{name}: {detail}; for a list of {DEVICES} publish a full release")
    return role
