"""Publisher of releases: writes data files, the manifest, and signatures over the manifest."""

import contextlib
import filecmp
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from eir.disk import errors_name, open_named, write_file
from eir.errors import ReleaseRefused
from eir.lists.log.change import utc_text
from eir.lists.record.reasons import OTHER_REASON, REASON_CHARS_MAX, REASONS_MAX, Reasons
from eir.lists.record.settings import KINDS, Layout, is_list_name
from eir.lists.releases import release
from eir.lists.releases.openssh import sign
from eir.lists.releases.release import ADDED, CHANGES, DELTA, ENTRIES, FULL, REMOVED, FileEntry, is_plain_name
from eir.lists.rows.delivered import CHUNK_BYTES, EXPANDED_RATIO_MAX, DataFile, Progress, open_folder, sum_progress
from eir.lists.rows.layout import LAYOUTS, find_layout, guess_layout, kinds_for, layout_fault, unknown_columns
from eir.lists.rows.listed_rows import ListedRows, check_sides
from eir.lists.rows.records import Frame

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

ROWS_MAX = 10**10
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
class Published:
    """Result of publishing a release: its files, and the counts of its rows."""

    manifest: Path
    rows: int
    entries: Mapping[str, int]
    """Number of identifiers and whole TACs by role: `entries` of a full release, `added` and `removed` of a delta."""
    duplicates: int
    """Number of entries that are listed again (ListedRows.count_repeats)."""
    conflicting: int
    """Number of duplicates with another reason, begin or end than before."""
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
        for name in ("manifest", "entries", "odd"):
            del counts[name]
        entries = {"entries": sum(self.entries.values()), **self.entries}
        return {"manifest": str(self.manifest), "signature": f"{self.manifest}.sig", **entries, **counts, **self.odd}

    def as_text(self) -> str:
        """Format the counts of the release in one line."""
        entries = ", ".join(f"{count:,} {role}" for role, count in self.entries.items())
        parts = [f"{self.rows:,} rows", entries]
        if self.duplicates:
            parts.append(f"{self.duplicates:,} duplicates, of which {self.conflicting:,} have another reason or end")
        if self.skipped:
            parts.append(f"{self.skipped:,} junk identifiers that an EIR skips")
        return "; ".join(parts)


def publish(
    files: Sequence[Path], *, list_name: str, serial: int, base: int | None = None, issued: datetime, expires: datetime,
    key: Path, more_keys: Sequence[Path] = (), layout: str | None = None, declared: Mapping[str, Layout] | None = None,
    out: Path | None = None, replace: bool = True, bad_rows_max: int = 0, progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _: None, strict: bool = False, each_bad: Callable[[str, int, str, bytes], None] | None = None,
) -> Published:  # fmt: skip
    """Write a signed release from data files or from zips of DIRBS. Rows are parsed as an EIR parses them.

    Args:
        files: data files. In a delta, the name of a file ends in `added` or `removed` or is a DIRBS delta name, or the
            rows have a code that adds or removes an entry.
        list_name: list of the release.
        serial: serial of the release.
        base: serial on which a delta builds; None for a full release.
        issued: start of validity.
        expires: end of validity.
        key: OpenSSH key, or the `.pub` file of an agent's key.
        more_keys: keys for further signatures, for lists with a threshold above 1.
        layout: layout of the files; None: guessed from each header.
        declared: layouts of the configuration.
        out: folder of the release; None: the folder of the files.
        replace: if False, reject this release if a release of the same serial has other data.
        bad_rows_max: maximum number of bad rows. Up to this number, bad rows are warnings.
        progress: receives the stages `extract` and `measure`, in bytes.
        strict: reject the release for any warning.
        each_bad: receives each bad row: file, line, fault and the row.
        warn: receives warnings, such as data that an EIR accepts but that is probably a mistake.

    Raises:
        ReleaseRefused: with the reason word of a load. The new data files are then deleted.
    """
    from eir.lists.rows.reader import ODD, Tally  # noqa: PLC0415  # its import takes a while, and the command line imports this module

    report = progress or (lambda *_: None)
    kind = FULL if base is None else DELTA
    _check_arguments(list_name, serial, base, issued, expires)
    if len(more_keys) >= release.SIGNATURES_MAX:
        raise ReleaseRefused("threshold", f"a release carries {release.SIGNATURES_MAX} signatures at most")
    if out is None and len({file.resolve().parent for file in files}) != 1:
        fault = "the data files are in several folders"
        raise ReleaseRefused("file_name", f"{fault}; name the folder for the release (--out)")
    folder = out or files[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    with _remove_on_failure() as new_files:
        names = [name for file in files for name in _place(file, folder, kind, report, new_files)]
        if len(set(names)) < len(names):
            raise ReleaseRefused("file_name", "two data files have the same name")
        tally = Tally(
            bad_rows_max=ROWS_MAX,
            range_tacs_max=ROWS_MAX,
            check_digits=True,
            dates=True,
            now_s=int(issued.timestamp()),
            complaints_max=BAD_ROWS_NAMED_MAX,
            each_bad=each_bad,
        )
        warnings: list[str] = []
        entries, rows = _describe_files(
            folder, names, kind, layout, declared or {}, tally=tally, warn=warnings.append, report=report
        )
        _check_bad(tally, bad_rows_max)
        manifest: dict[str, object] = {"format": release.FORMAT, "list": list_name, "kind": kind, "serial": serial}
        if base is not None:
            manifest["base"] = base
        manifest["issued"] = utc_text(issued)
        manifest["expires"] = utc_text(expires)
        manifest["files"] = [asdict(entry) for entry in entries]
        path = folder / f"{list_name}-{serial}.manifest.json"
        if not replace and _has_other_data(path, manifest):
            advice = "publish with a higher serial, or with --force"
            raise ReleaseRefused("file_exists", f"{path} is a release of this serial with other data; {advice}")
        repeats = [role_rows.count_repeats() for role_rows in rows.values()]
        listed = {role: role_rows.pop() for role, role_rows in rows.items()}
        if kind == DELTA:
            check_sides(listed[ADDED], listed[REMOVED])
        warnings += _warnings(entries, tally)
        _check_warnings(warnings, strict=strict)
    published = Published(
        manifest=path, rows=sum(entry.rows for entry in entries), entries={role: len(each) for role, each in listed.items()},
        duplicates=sum(repeated for repeated, _ in repeats), conflicting=sum(contradictions for _, contradictions in repeats),
        bad_rows=tally.bad, skipped=tally.skipped, wrong_check_digits=tally.wrong_check_digits,
        odd={kind: tally.odd[kind].count if kind in tally.odd else 0 for kind in ODD},
    )  # fmt: skip
    _write_signed(path, manifest, (key, *more_keys))
    for text in warnings:
        warn(text)
    return published


def _write_signed(path: Path, manifest: Mapping[str, object], keys: Sequence[Path]) -> None:
    """Write a manifest and sign it by each key. Earlier signatures are deleted."""
    signatures = [path.with_name(name) for name in release.signature_names(path.name)]
    for signature in signatures:
        signature.unlink(missing_ok=True)
    text = json.dumps(manifest, indent=1) + "\n"
    document = text.encode()
    write_file(path, document)
    contents = [sign(document, key) for key in keys]
    for signature, content in zip(signatures, contents, strict=False):
        write_file(signature, content)


def _check_bad(tally: "Tally", bad_rows_max: int) -> None:
    if tally.bad > bad_rows_max:
        fault = f"{tally.bad} bad rows; {bad_rows_max} are allowed (--bad-rows-max)"
        raise ReleaseRefused("bad_rows", "\n".join((fault, *tally.complaints)))


def _check_warnings(warnings: Sequence[str], *, strict: bool) -> None:
    if strict and warnings:
        fault = f"{len(warnings)} warnings; --strict allows none"
        raise ReleaseRefused("warnings", "\n".join((fault, *warnings)))


def _warnings(entries: Sequence[FileEntry], tally: "Tally") -> Iterator[str]:
    yield from (f"{entry.name} holds no row" for entry in entries if not entry.rows)
    yield from (f"a bad row, which nodes leave out: {complaint}" for complaint in tally.complaints)
    if tally.bad > len(tally.complaints):
        yield f"{tally.bad} bad rows in all"
    for kind, rows in tally.odd.items():
        yield from rows.named
        if rows.count > len(rows.named):
            yield f"{rows.count:,} rows {_ODD_IN_ALL[kind]}"
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


def _check_arguments(list_name: str, serial: int, base: int | None, issued: datetime, expires: datetime) -> None:
    if not is_list_name(list_name):
        raise ReleaseRefused("manifest", f"{list_name!r} is not a valid name of a list")
    if serial < 1 or (base is not None and not 0 <= base < serial):
        raise ReleaseRefused("manifest", "expected a serial above 0, and for a delta a base below its serial")
    if expires <= issued:
        raise ReleaseRefused("manifest", "expected an expiry after the time of issue")


@contextlib.contextmanager
def _remove_on_failure() -> Iterator[list[Path]]:
    """Yield an empty list, in which the caller collects the paths of new files. If the `with` block fails, delete these files."""
    new_files: list[Path] = []
    try:
        yield new_files
    except BaseException:
        for path in new_files:
            path.unlink(missing_ok=True)
        raise


def _place(file: Path, folder: Path, kind: str, report: Progress, new_files: list[Path]) -> Sequence[str]:
    """Copy a data file, or the data files in a zip, to the folder of the release; return the file names.

    The paths of new files are added to `new_files`.
    """
    if file.suffix.lower() == ".zip":
        return _extract(file, folder, kind, report, new_files)
    if not is_plain_name(file.name):
        raise ReleaseRefused("file_name", f"{file.name!r} is not a plain file name")
    if file.resolve().parent != folder.resolve():
        try:
            source = file.open("rb")
        except OSError as error:
            raise ReleaseRefused("file_missing", f"{file}: {error.strerror}") from None
        with source:
            size = os.fstat(source.fileno()).st_size
            _write_new(source, folder / file.name, size, new_files)
    return (file.name,)


def _extract(file: Path, folder: Path, kind: str, report: Progress, new_files: list[Path]) -> Sequence[str]:
    """Extract the CSV files for a full release or a delta (`kind`) from a zip to the folder of the release; return the file names."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = _select_members(archive.infolist(), file.name, kind)
            total = sum(member.file_size for member in members.values())
            done = sum_progress(report, "extract", total)
            for name, member in members.items():
                packed_size = max(member.compress_size, 1 << 10)
                if member.file_size > packed_size * EXPANDED_RATIO_MAX:
                    fault = f"{name} expands to more than {EXPANDED_RATIO_MAX} times its size"
                    raise ReleaseRefused("expanded", f"{file.name}: {fault}")
                with archive.open(member) as source:
                    _write_new(source, folder / name, member.file_size, new_files)
                done(member.file_size)
    except OSError as error:
        raise ReleaseRefused("file_missing", f"{file}: {error.strerror or error}") from None
    except (
        zipfile.BadZipFile,
        RuntimeError,
        NotImplementedError,
    ) as error:  # damaged, encrypted, unsupported compression
        raise ReleaseRefused("data", f"{file.name} cannot be unpacked: {error}") from None
    return tuple(members)


def _select_members(infos: Sequence[zipfile.ZipInfo], zip_name: str, kind: str) -> Mapping[str, zipfile.ZipInfo]:
    """Select the data files in a zip by name: in a DIRBS zip the full file or the deltas (`kind`), in another zip all CSV files.

    A DIRBS zip has the full file and the deltas of one run. DIRBS writes blacklist, notifications and exceptions to
    separate zips, one for each operator.
    """
    if len(infos) > ZIP_MEMBERS_MAX:
        raise ReleaseRefused("data", f"{zip_name} holds more than {ZIP_MEMBERS_MAX} files")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        name = path.name
        if info.is_dir() or not name.endswith((".csv", ".csv.gz", ".csv.zst")):
            continue
        if ".." in path.parts:
            raise ReleaseRefused("file_name", f"{zip_name}: {info.filename!r} leads out of its folder")
        if not is_plain_name(name) or name in members:
            raise ReleaseRefused("file_name", f"{zip_name}: {name!r} is not a plain file name, or occurs twice")
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


def _write_new(source: IO[bytes], target: Path, size: int, new_files: list[Path]) -> None:
    """Write `size` bytes of a stream to the file `target`. If it exists with other content, reject the release."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".eir-publish-") as folder:
        temporary = Path(folder) / target.name
        with open_named(temporary, target) as file:
            rest = size
            while data := source.read(min(CHUNK_BYTES, rest + 1)):
                rest -= len(data)
                if rest < 0:
                    raise ReleaseRefused("expanded", f"{target.name} is larger than the archive declares")
                file.write(data)
        if not os.path.lexists(target):
            with errors_name(target, temporary):
                temporary.replace(target)
            new_files.append(target)
        elif target.is_symlink() or not target.is_file() or not filecmp.cmp(target, temporary, shallow=False):
            raise ReleaseRefused("file_exists", f"{target} already exists with other content; remove it first")


def _describe_files(
    folder: Path, names: Sequence[str], kind: str, layout: str | None, declared: Mapping[str, Layout], *,
    tally: "Tally", warn: Callable[[str], None], report: Progress,
) -> tuple[Sequence[FileEntry], Mapping[str, ListedRows]]:  # fmt: skip
    """Read all data files; return their entries for the manifest, and their rows by role."""
    from eir.lists.rows.reader import Actions, read_rows  # noqa: PLC0415  # as above

    rows = {role: ListedRows() for role in release.ROLES[kind] if role != CHANGES}
    reasons = Reasons()
    actions = Actions()
    entries = []
    with open_folder(folder) as folder_fd:
        inspected = [_inspect(name, folder_fd, layout, declared) for name in names]
        holds = _kind_of_list(names, inspected)
        for name, (digest, file_layout, _, header) in zip(names, inspected, strict=True):
            role = _role(name, kind, file_layout)
            with DataFile(name, folder_fd) as file:
                chunks = file.chunks(ROWS_MAX, digest, sum_progress(report, "measure", file.size))
                count = read_rows(
                    chunks, name=name, layout=file_layout.name, kind=holds, rows=rows.get(role), reasons=reasons, tally=tally, declared=declared,
                    actions=actions,
                )  # fmt: skip
                if file.is_unended:
                    warn(f"{name} does not end with a newline: it may be truncated")
            entries.append(
                FileEntry(name=name, role=role, layout=file_layout.name, bytes=file.size, rows=count, sha256=digest)
            )
            for column in unknown_columns(header, file_layout):
                warn(f"{name}: unknown column without effect: {column}")
    actions.move_to(next(iter(rows.values())), rows.get(REMOVED))
    for text in _reason_warnings(reasons.texts):
        warn(text)
    return entries, rows


def _kind_of_list(names: Sequence[str], inspected: Sequence["_Inspected"]) -> str:
    """Return the first kind of list (such as devices) into which all data files fit."""
    kinds = list(KINDS)
    for name, inspection in zip(names, inspected, strict=True):
        kinds = [kind for kind in kinds if kind in inspection.kinds]
        if not kinds:
            file_kinds = " or ".join(inspection.kinds)
            fault = f"{name} is for lists of {file_kinds}, and a file before it is not; publish them apart"
            raise ReleaseRefused("layout", fault)
    return kinds[0]


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


class _Inspected(NamedTuple):
    """Properties of a data file, determined before its rows are read."""

    sha256: str
    layout: Layout
    kinds: Sequence[str]
    """Kinds of list into which the file can be loaded."""
    header: bytes
    """Line with the column names."""


def _inspect(name: str, folder_fd: int, layout: str | None, declared: Mapping[str, Layout]) -> _Inspected:
    with DataFile(name, folder_fd) as file:
        digest = file.sha256()
        chunks = file.chunks(ROWS_MAX, digest)
        begin = next(chunks, b"")
        header = begin.partition(b"\n")[0]
        layout_name = layout or guess_layout(header)
        if layout_name is None:
            fault = layout_fault(begin[:-1] if file.is_unended else begin)
            layouts = ", ".join((*LAYOUTS, *declared))
            raise ReleaseRefused("layout", f"{name}: {fault}; give one of {layouts} (--layout)")
    file_layout = find_layout(name, layout_name, declared)
    lines = Frame(name, file_layout).lines((begin,) if begin else ())
    header = next(iter(lines), b"").partition(b"\n")[0]
    return _Inspected(digest, file_layout, kinds_for(name, file_layout, header), header)


def _role(name: str, kind: str, layout: Layout) -> str:
    if kind == FULL:
        return ENTRIES
    if layout.added:
        return CHANGES
    dirbs_name = _DIRBS_NAME.fullmatch(name)
    if dirbs_name and dirbs_name["change"] in _DIRBS_ROLES:
        return _DIRBS_ROLES[dirbs_name["change"]]
    stem, _, _ = name.partition(".")
    word = _LAST_WORD.search(stem)
    if word:
        return word[1]
    detail = "in a delta the name must end in added or removed, such as x-added.csv"
    raise ReleaseRefused("file_name", f"{name}: {detail}")
