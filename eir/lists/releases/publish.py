"""Publisher of releases: it writes data files, the manifest, and signatures over the manifest."""

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

from eir.errors import ReleaseRefused
from eir.lists.pages.content import has_pairs
from eir.lists.pages.pages import Page
from eir.lists.pages.roaring import decode_keys
from eir.lists.record.reasons import OTHER_REASON, REASON_CHARS_MAX, REASONS_MAX, Reasons
from eir.lists.record.settings import KINDS, Layout, is_list_name
from eir.lists.record.store import utc_text
from eir.lists.releases import release
from eir.lists.releases.openssh import sign
from eir.lists.releases.release import ADDED, CHANGES, DELTA, ENTRIES, FULL, REMOVED, FileEntry, is_plain_name
from eir.lists.rows.build import Rows, build_pages
from eir.lists.rows.delivered import CHUNK_BYTES, EXPANDED_RATIO_MAX, DataFile, Progress, open_folder, sum_progress
from eir.lists.rows.layout import LAYOUTS, find_layout, guess_layout, kinds_for, separator_hint, unknown_columns
from eir.lists.rows.records import Frame

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

ROWS_MAX = 10**10
ZIP_MEMBERS_MAX = 1000
BAD_ROWS_NAMED_MAX = 20
REPLACED = "\ufffd"
"""Character in place of bytes that are not valid UTF-8."""

# D_blacklist.csv, D_notifications_{operator}.csv, D_exceptions_{operator}.csv and their deltas, D being YYYYmmdd_HHMMSS.
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
"""Kind of an odd row (reader.ODD) → end of the line with the number of such rows."""
_LAST_WORD = re.compile(r"(?:^|[-_.])(added|removed)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Release that was written, with the counts of its rows."""

    manifest: Path
    rows: int
    entries: Mapping[str, int]
    """Number of identifiers, TACs and ranges by role: `entries` of a full release, `added` and `removed` of a delta."""
    duplicates: int
    conflicting: int
    """Repeated entries, and those that conflict, as Rows.repeats counts them."""
    bad_rows: int
    skipped: int
    wrong_check_digits: int
    """Counts as in Tally."""
    odd: Mapping[str, int]
    """Number of rows that an EIR accepts but that are probably mistakes, by kind of `reader.ODD`."""

    def as_json(self) -> dict[str, Any]:
        """Return the release and its counts as a JSON document."""
        counts = {key: value for key, value in asdict(self).items() if key not in {"manifest", "entries", "odd"}}
        entries = {"entries": sum(self.entries.values()), **self.entries}
        return {"manifest": str(self.manifest), "signature": f"{self.manifest}.sig", **entries, **counts, **self.odd}

    def as_text(self) -> str:
        """Format the counts of the release in one line."""
        parts = {
            f"{self.rows:,} rows": True,
            ", ".join(f"{count:,} {role}" for role, count in self.entries.items()): True,
            f"{self.duplicates:,} duplicates, of which {self.conflicting:,} have another reason or end": self.duplicates,
            f"{self.skipped:,} junk identifiers that an EIR skips": self.skipped,
        }
        return "; ".join(text for text, holds in parts.items() if holds)


def publish(
    files: Sequence[Path], *, list_name: str, serial: int, base: int | None = None, issued: datetime, expires: datetime,
    key: Path, more_keys: Sequence[Path] = (), layout: str | None = None, declared: Mapping[str, Layout] | None = None,
    out: Path | None = None, replace: bool = True, bad_rows_max: int = 0, progress: Progress | None = None,
    warn: Callable[[str], None] = lambda _: None, strict: bool = False, each_bad: Callable[[str, int, str, bytes], None] | None = None,
) -> Published:  # fmt: skip
    """Write a signed release from data files (or from DIRBS zips).

    Rows are read as a load reads them.

    Args:
        files: data files.
        list_name: list of the release.
        serial: serial of the release.
        base: serial on which a delta builds. In a delta, a file's name ends in `added` or `removed` or is a DIRBS delta
            name,
            or its rows have a code for it.
        issued: start of validity.
        expires: end of validity.
        key: OpenSSH key, or the `.pub` file of an agent's key.
        more_keys: keys for further signatures, for lists that need several.
        layout: layout of the files; None: guessed from each header.
        declared: layouts of the configuration.
        out: folder of the release; None: the folder of the files.
        replace: if False, an existing release of this serial with other data stays, and this one is rejected.
        bad_rows_max: maximum number of bad rows; up to this number they are warnings.
        progress: receives the stages `extract` and `measure`, in bytes.
        strict: a warning rejects the release.
        each_bad: receives each bad row: file, line, fault and the row.
        warn: receives warnings, such as data that an EIR accepts but that is probably a mistake.

    Raises:
        ReleaseRefused: with the reason word of a load. Then neither a signature nor new data files remain in `out`.
    """
    from eir.lists.rows.reader import ODD, Tally  # noqa: PLC0415  # its import takes a while, and the command line imports this module

    report = progress or (lambda *_: None)
    kind = FULL if base is None else DELTA
    _check_arguments(list_name, serial, base, issued, expires)
    if len(more_keys) >= release.SIGNATURES_MAX:
        raise ReleaseRefused("threshold", f"a release carries {release.SIGNATURES_MAX} signatures at most")
    if out is None and len({file.resolve().parent for file in files}) != 1:
        raise ReleaseRefused(
            "file_name", "the data files are in several folders; name the folder for the release (--out)"
        )
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
            folder, names, kind, layout, declared or {}, tally=tally, say=warnings.append, report=report
        )
        _check_bad(tally, bad_rows_max)
        manifest = {
            "format": release.FORMAT, "list": list_name, "kind": kind, "serial": serial, **({} if base is None else {"base": base}),
            "issued": utc_text(issued), "expires": utc_text(expires), "files": [asdict(entry) for entry in entries],
        }  # fmt: skip
        path = folder / f"{list_name}-{serial}.manifest.json"
        if not replace and _has_other_data(path, manifest):
            advice = "publish with a higher serial, or with --force"
            raise ReleaseRefused("file_exists", f"{path} is a release of this serial with other data; {advice}")
        repeats = [each.repeats() for each in rows.values()]
        built = {role: build_pages(each) for role, each in rows.items()}
        if kind == DELTA and (both := _in_both(built[ADDED].pages, built[REMOVED].pages)):
            warnings.append(f"{both:,} identifiers are both added and removed: they stay in the list")
        warnings += _warnings(entries, tally)
        _check_warnings(warnings, strict=strict)
    published = Published(
        manifest=path, rows=sum(entry.rows for entry in entries), entries={role: each.entries for role, each in built.items()},
        duplicates=sum(repeated for repeated, _ in repeats), conflicting=sum(contradictions for _, contradictions in repeats),
        bad_rows=tally.bad, skipped=tally.skipped, wrong_check_digits=tally.wrong_check_digits,
        odd={kind: tally.odd[kind].count if kind in tally.odd else 0 for kind in ODD},
    )  # fmt: skip
    signatures = [folder / name for name in release.signature_names(path.name)]
    for signature in signatures:  # those of an earlier try are over other bytes
        signature.unlink(missing_ok=True)
    document = (json.dumps(manifest, indent=1) + "\n").encode()
    _write(path, document)
    signed = [sign(document, signing_key) for signing_key in (key, *more_keys)]
    for signature, content in zip(signatures, signed, strict=False):
        _write(signature, content)
    for text in warnings:
        warn(text)
    return published


def _check_bad(tally: "Tally", bad_rows_max: int) -> None:
    if tally.bad > bad_rows_max:
        more = f"{tally.bad} bad rows; {bad_rows_max} are allowed (--bad-rows-max)"
        raise ReleaseRefused("bad_rows", "\n".join((more, *tally.complaints)))


def _check_warnings(warnings: Sequence[str], *, strict: bool) -> None:
    if strict and warnings:
        raise ReleaseRefused("warnings", "\n".join((f"{len(warnings)} warnings; --strict allows none", *warnings)))


def _in_both(added: Sequence[Page], removed: Sequence[Page]) -> int:
    """Return the number of single identifiers that are in both `added` and `removed`; pairs are ignored."""
    removed_keys = {page.number: page.keys for page in removed if page.keys and not has_pairs(page)}
    both = [(page.keys, removed_keys[page.number]) for page in added if page.keys and page.number in removed_keys]
    return sum(
        decode_keys(added_part).intersection_cardinality(decode_keys(removed_part)) for added_part, removed_part in both
    )


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
    """Return True if a manifest exists at this path whose data differs from that of the new manifest.

    The same data may be signed again with a later end.
    """
    try:
        existing = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(existing, dict) or any(
        existing.get(key) != manifest.get(key) for key in ("kind", "base", "files")
    )


def _check_arguments(list_name: str, serial: int, base: int | None, issued: datetime, expires: datetime) -> None:
    if not is_list_name(list_name):
        raise ReleaseRefused("manifest", f"{list_name!r} is not a valid name of a list")
    if serial < 1 or (base is not None and not 0 <= base < serial):
        raise ReleaseRefused("manifest", "expected a serial above 0, and for a delta a base below its serial")
    if expires <= issued:
        raise ReleaseRefused("manifest", "expected an expiry after the time of issue")


@contextlib.contextmanager
def _remove_on_failure() -> Iterator[list[Path]]:
    """Yield a list to which paths of new files are added; delete these files if the block fails."""
    new_files: list[Path] = []
    try:
        yield new_files
    except BaseException:
        for each in new_files:
            each.unlink(missing_ok=True)
        raise


def _place(file: Path, folder: Path, kind: str, report: Progress, new_files: list[Path]) -> Sequence[str]:
    """Copy a data file, or the data files of a zip, to the folder of the release; return their names.

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
            _write_new(source, folder / file.name, os.fstat(source.fileno()).st_size, new_files)
    return (file.name,)


def _extract(file: Path, folder: Path, kind: str, report: Progress, new_files: list[Path]) -> Sequence[str]:
    """Extract from a zip the CSV files that belong to a release of this kind; return their names."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = _select_members(archive.infolist(), file.name, kind)
            done = sum_progress(report, "extract", sum(member.file_size for member in members.values()))
            for name, member in members.items():
                if member.file_size > max(member.compress_size, 1 << 10) * EXPANDED_RATIO_MAX:
                    raise ReleaseRefused(
                        "expanded", f"{file.name}: {name} expands to more than {EXPANDED_RATIO_MAX} times its size"
                    )
                with archive.open(member) as source:
                    _write_new(source, folder / name, member.file_size, new_files)
                done(member.file_size)
    except OSError as error:
        raise ReleaseRefused("file_missing", f"{file}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # damaged, encrypted, packed in a rare way
        raise ReleaseRefused("data", f"{file.name} cannot be unpacked: {error}") from None
    return tuple(members)


def _select_members(infos: Sequence[zipfile.ZipInfo], zip_name: str, kind: str) -> Mapping[str, zipfile.ZipInfo]:
    """Select the members of a zip by file name: the full file or the delta files of DIRBS, or else every CSV.

    A DIRBS zip has the full file and the deltas of the same run. Its blacklist, notifications and exceptions are in
    separate zips, one for each operator.
    """
    if len(infos) > ZIP_MEMBERS_MAX:
        raise ReleaseRefused("data", f"{zip_name} holds more than {ZIP_MEMBERS_MAX} files")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = PurePosixPath(info.filename).name
        if info.is_dir() or not name.endswith((".csv", ".csv.gz", ".csv.zst")):
            continue
        if info.filename != name and ".." in PurePosixPath(info.filename).parts:
            raise ReleaseRefused("file_name", f"{zip_name}: {info.filename!r} leads out of its folder")
        if not is_plain_name(name) or name in members:
            raise ReleaseRefused("file_name", f"{zip_name}: {name!r} is not a plain file name, or occurs twice")
        members[name] = info
    dirbs = {name: match for name in members if (match := _DIRBS_NAME.fullmatch(name))}
    if dirbs:
        selected = {name: match for name, match in dirbs.items() if (match["change"] is not None) == (kind == DELTA)}
        sources = {(match["what"], match["operator"]) for match in selected.values()}
        if len(sources) > 1:
            listed = ", ".join(sorted(" ".join(filter(None, source)) for source in sources))
            raise ReleaseRefused("layout", f"{zip_name} holds several lists ({listed}); publish them apart")
        members = {name: info for name, info in members.items() if name in selected}
    if not members:
        raise ReleaseRefused("layout", f"{zip_name} holds no CSV for a {kind} release")
    return members


def _write_new(source: IO[bytes], target: Path, size: int, new_files: list[Path]) -> None:
    """Write `size` bytes to a new file.

    If the file exists, it must have the same content; otherwise the release is rejected.
    """
    with _temporary(target) as temporary:
        with temporary.open("wb") as file:
            rest = size
            while data := source.read(min(CHUNK_BYTES, rest + 1)):
                rest -= len(data)
                if rest < 0:
                    raise ReleaseRefused("expanded", f"{target.name} is larger than the archive declares")
                file.write(data)
        if not os.path.lexists(target):
            temporary.replace(target)
            new_files.append(target)
        elif target.is_symlink() or not target.is_file() or not filecmp.cmp(target, temporary, shallow=False):
            raise ReleaseRefused("file_exists", f"{target} already exists with other content; remove it first")


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".eir-publish-") as folder:
        yield Path(folder) / target.name


def _write(target: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file, which then replaces the target."""
    with _temporary(target) as temporary:
        temporary.write_bytes(content)
        temporary.replace(target)


def _describe_files(
    folder: Path, names: Sequence[str], kind: str, layout: str | None, declared: Mapping[str, Layout], *,
    tally: "Tally", say: Callable[[str], None], report: Progress,
) -> tuple[Sequence[FileEntry], Mapping[str, Rows]]:  # fmt: skip
    """Read all data files; return their entries for the manifest, and their rows by role.

    Rows are read as a load reads them.
    """
    from eir.lists.rows.reader import Actions, read_rows  # noqa: PLC0415  # as above

    rows = {role: Rows() for role in release.ROLES[kind] if role != CHANGES}
    reasons, entries, actions = Reasons(), [], Actions()
    with open_folder(folder) as folder_fd:
        inspected = [_inspect(name, folder_fd, layout, declared) for name in names]
        kinds = list(KINDS)
        for name, inspection in zip(names, inspected, strict=True):
            kinds = [each for each in kinds if each in inspection.kinds]
            if not kinds:
                detail = f"{name} is for lists of {' or '.join(inspection.kinds)}, and a file before it is not; publish them apart"
                raise ReleaseRefused("layout", detail)
        for name, (digest, dialect, _, header) in zip(names, inspected, strict=True):
            role = _role(name, kind, dialect)
            with DataFile(name, folder_fd) as file:
                count = read_rows(
                    file.chunks(ROWS_MAX, digest, sum_progress(report, "measure", file.size)), name=name, layout=dialect.name,
                    kind=kinds[0], rows=rows.get(role), reasons=reasons, tally=tally, declared=declared, actions=actions,
                )  # fmt: skip
                if file.is_unended:
                    say(f"{name} does not end with a newline: it may be truncated")
            entries.append(
                FileEntry(name=name, role=role, layout=dialect.name, bytes=file.size, rows=count, sha256=digest)
            )
            for column in unknown_columns(header, dialect):
                say(f"{name}: unknown column without effect: {column}")
    actions.move_to(next(iter(rows.values())), rows.get(REMOVED))
    for text in _reason_warnings(reasons.texts):
        say(text)
    return entries, rows


def _reason_warnings(texts: Sequence[str]) -> Iterator[str]:
    """Yield warnings about reason texts that an EIR would store in changed form."""
    if (garbled := next((text for text in texts if REPLACED in text), None)) is not None:
        yield f"reasons are not in UTF-8, such as '{garbled}': save the file in UTF-8, or declare its encoding (layouts)"
    if (cut := next((text for text in texts if len(text) == REASON_CHARS_MAX), None)) is not None:
        yield f"an EIR keeps {REASON_CHARS_MAX} characters of a reason, as of '{cut[:20]}…'"
    if len(texts) > REASONS_MAX:
        yield f"an EIR keeps the first {REASONS_MAX - 1} different reasons; all others become '{OTHER_REASON}'"


class _Inspected(NamedTuple):
    """Digest, layout, kinds of list and header of a data file, which are read before its rows."""

    sha256: str
    layout: Layout
    kinds: Sequence[str]
    """Kinds of lists for which the file may be used."""
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
            advice = f"give one of {', '.join((*LAYOUTS, *declared))} (--layout)"
            hint = separator_hint(header) or " (no column is named imei, or as in another layout)"
            why = f"no layout fits its first line{hint}" if begin else "the file is empty"
            raise ReleaseRefused("layout", f"{name}: {why}; {advice}")
        dialect = find_layout(name, layout_name, declared)
        header = next(iter(Frame(name, dialect).lines((begin,) if begin else ())), b"").partition(b"\n")[0]
        return _Inspected(digest, dialect, kinds_for(name, dialect, header), header)


def _role(name: str, kind: str, layout: Layout) -> str:
    if kind == FULL:
        return ENTRIES
    if layout.added:
        return CHANGES
    if (dirbs := _DIRBS_NAME.fullmatch(name)) and dirbs["change"] in _DIRBS_ROLES:
        return _DIRBS_ROLES[dirbs["change"]]
    if word := _LAST_WORD.search(name.split(".", maxsplit=1)[0]):
        return word[1]
    detail = "in a delta the name must end in added or removed, such as x-added.csv"
    raise ReleaseRefused("file_name", f"{name}: {detail}")
