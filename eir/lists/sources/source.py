"""Source of releases, and one loop for all sources: verify, load and put away each release that a source has.

eir.lists.releases.release and eir.lists.changes.release_load verify each release. If this host causes a failure (the store is
unreachable, the disk is full, a signers file cannot be read), the release stays where it is. A release whose fault may end by itself
waits for the time that its source gives. Any other fault rejects the release. No release can block those of others.
"""

import errno
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableSequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from eir.curl import Unreached
from eir.errors import ReleaseRefused, StoreError, escape_invalid, refused_by
from eir.lists.changes.release_load import NO_MARK, LoadReport, check_follows
from eir.lists.log.change import Head, SerialMark, utc_text
from eir.lists.log.journal import ACCEPTED, CLAIMS, REFUSED, JournalEvent
from eir.lists.log.store import LogStore
from eir.lists.record.settings import ListSettings
from eir.lists.releases.release import VerifiedRelease

WAITING = "waiting"
"""Outcome of a release that is neither accepted nor rejected yet."""
CRASH, KILLED = "crash", "killed"
LOADED, UNCHANGED, UNREACHED, ELSEWHERE = "loaded", "unchanged", "unreached", "elsewhere"
"""Outcomes of a turn, beside REFUSED and WAITING: a release was loaded, no release was there, the server was not reached, another process or node takes the releases."""
AGAIN_S = {WAITING: 30.0, ELSEWHERE: 10.0}
"""Seconds until a waiting release is tried again, and before another turn if another process or node has the right to load."""
OF_THE_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ})
"""System errors that the name of a delivered file causes. This host causes all other system errors."""
ATTEMPTS_MAX = 3
"""Number of processes killed while they loaded the same release, after which the release is rejected."""
ATTEMPTED_MAX = 100
"""Maximum number of releases that have a counter of killed processes."""
HOST = frozenset({"openssh", "signers_file", "revoked_file", "conflict", KILLED})
"""Reasons that this host causes. The release stays until the host is repaired, or another writer of the list has ended."""
AGED = frozenset({"expired", "signer_expired"})
"""Reasons for an old release. They count only while the clock is trusted."""
PATIENT = frozenset({
    "threshold", "issued_in_future", "timeout", "changed", "file_missing", "file_size", "signature_missing",
})  # fmt: skip
"""Reasons that may end by themselves, as Unfinished: files or signatures arrive, clocks converge."""


def printable(name: str) -> str:
    """Escape control characters, and bytes that are not valid UTF-8, in the name of a file."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    characters = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return "".join(characters)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseResult:
    """Result of one release, or of a file in the drop folder that belongs to no release."""

    manifest: str
    """File name of the manifest, or of the file that belongs to no release."""
    outcome: str
    """ACCEPTED, REFUSED or WAITING."""
    list: str | None = None
    serial: int | None = None
    digest: str | None = None
    """SHA-256 of the verified manifest."""
    reason: str = ""
    """Reason word, as in ReleaseRefused. For a waiting release also `incomplete` and the causes of StoreError."""
    detail: str = ""
    here: bool = False
    """True if the release waits because of this host: its store, its disk or its signers files."""
    claims: tuple[str, int] | None = None
    """List and serial in an unverified manifest, as in ReleaseRefused."""
    generation: int | None = None
    """Generation of the stored change; None if nothing was stored."""
    report: Mapping[str, Any] | None = None
    """Counts of a load or a dry run (LoadReport)."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON document for scripts, with the counts of the load as members."""
        document = asdict(self)
        for name in ("claims", "generation", "report"):
            del document[name]
        return document | dict(self.report or {})

    def rejection(self, who: str, now: datetime) -> JournalEvent:
        """Return the event of a rejected release for the journal."""
        claims = "" if self.claims is None else CLAIMS.format(*self.claims)
        return JournalEvent(
            time=utc_text(now), who=who, what="refuse", outcome=REFUSED, list=self.list, serial=self.serial,
            digest=self.digest, detail=f"{self.reason}: {self.detail}{claims}",
        )  # fmt: skip


def accepted(manifest: str, report: LoadReport) -> ReleaseResult:
    """Return the result of a release that was loaded, or that a dry run has verified."""
    change = report.change
    return ReleaseResult(
        manifest=manifest, outcome=ACCEPTED, list=report.list, serial=report.serial, detail=escape_invalid(report.as_text()),
        digest=None if change is None else change.release, generation=None if change is None else change.generation,
        report=report.as_json(),
    )  # fmt: skip


def failed(manifest: str, fault: Exception) -> ReleaseResult:
    """Return the result of a release whose verification or load raised an exception.

    If this host causes the failure (its store, its disk), the release waits until the host is repaired. Any other exception rejects the release.
    """
    if isinstance(fault, StoreError):
        return _waiting(manifest, fault.cause, f"the store: {fault}")
    if isinstance(fault, OSError) and fault.errno not in OF_THE_NAME:
        return _waiting(manifest, "disk", str(fault))
    refused = fault if isinstance(fault, ReleaseRefused) else refused_by(fault)
    return ReleaseResult(
        manifest=manifest, outcome=REFUSED, list=refused.list_name, serial=refused.serial, digest=refused.digest,
        reason=refused.reason, detail=refused.detail, claims=refused.claims,
    )  # fmt: skip


def _waiting(manifest: str, reason: str, detail: str) -> ReleaseResult:
    return ReleaseResult(manifest=manifest, outcome=WAITING, reason=reason, detail=escape_invalid(detail), here=True)


def result_of(document: Mapping[str, Any]) -> ReleaseResult:
    """Return the result of a release that another process has encoded as JSON."""
    claims = document["claims"]
    return ReleaseResult(**{**document, "claims": claims and tuple(claims)})


@dataclass(slots=True, kw_only=True)
class Turn:
    """Result of one turn of a source, in which all its releases are taken that can be loaded."""

    outcome: str = UNCHANGED
    reason: str = ""
    """Reason word, as in ReleaseRefused, StoreError and Unreached."""
    detail: str = ""
    results: MutableSequence[ReleaseResult] = field(default_factory=list)
    again_s: float | None = None
    """Seconds after which the next turn starts even without a change of the folder; None if only a change can have an effect."""
    strays: MutableSequence[str] = field(default_factory=list)
    """Files of the drop folder that no verified manifest names yet."""
    serial: int | None = None
    """Newest serial of the publisher's folder, if its index is valid."""
    reached: bool = False
    """True if a valid index was fetched."""
    bytes: int = 0
    """Number of fetched bytes."""
    rejected: int | None = None
    """Serial of the rejected release; None for an index."""
    in_force: int | None = None
    """Serial in force in the store, 0 without a list; None if the store was not read."""
    behind_since: str | None = None
    """Time at which the source first offered a serial above `in_force`; None if it offers no such serial."""
    list: str | None = None
    """List of a pull; None for the drop folder."""

    @property
    def loaded(self) -> tuple[int, ...]:
        """Serials of the loaded releases."""
        return tuple(each.serial or 0 for each in self.results if each.outcome == ACCEPTED)

    def end(self, outcome: str, reason: str, detail: str, *, rejected: int | None = None) -> None:
        """Set the outcome of the turn, and the time of the next turn if that depends on the outcome. `rejected`: serial of a rejected release."""
        self.outcome, self.reason, self.detail = outcome, reason, detail
        self.rejected = rejected if outcome == REFUSED else None
        if outcome in AGAIN_S:
            self.repeat_after(AGAIN_S[outcome])

    def add(self, result: ReleaseResult) -> None:
        """Add the result of a release."""
        self.results.append(result)
        if result.outcome == ACCEPTED:
            self.outcome = LOADED

    def repeat_after(self, seconds: float) -> None:
        """Start the next turn after this time at the latest."""
        self.again_s = seconds if self.again_s is None else min(seconds, self.again_s)

    def as_json(self) -> dict[str, Any]:
        """Return the result of the turn as a JSON document for scripts."""
        return asdict(self) | {"results": [each.as_json() for each in self.results], "loaded": self.loaded}


def turn_of(document: Mapping[str, Any]) -> Turn:
    """Return the result of a turn that another process has encoded as JSON."""
    return Turn(**{**document, "results": [result_of(each) for each in document["results"]]})


Load: TypeAlias = Callable[[VerifiedRelease, Path], Awaitable[ReleaseResult]]
"""Function that loads a verified release, whose data files are in the folder."""


class Unfinished(ReleaseRefused):
    """Error for a release that cannot be loaded yet, because its files or its base have not arrived."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Release of a source: manifest, signatures, and the result of their verification."""

    name: str
    """File name of the manifest."""
    signatures: tuple[str, ...]
    """File names of the signatures. `.sig` is the last one: a manifest counts as delivered while its `.sig` exists."""
    release: VerifiedRelease | None = None
    """Release, if the signatures are valid."""
    fault: Exception | None = None
    """Error of the verification."""

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the release's data files; empty if its manifest is not verified."""
        return () if self.release is None else tuple(file.name for file in self.release.manifest.files)

    @property
    def list(self) -> str | None:
        """Name of the release's list; None if its manifest is not verified."""
        return None if self.release is None else self.release.manifest.list

    @property
    def serial(self) -> int | None:
        """Serial of the release; None if its manifest is not verified."""
        return None if self.release is None else self.release.manifest.serial

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest; empty if the manifest is not verified."""
        return "" if self.release is None else self.release.digest


class Source(Protocol):
    """Source of releases: the drop folder, or a publisher's folder on a web server."""

    turn: Turn
    """Result of the present turn."""

    def candidates(self) -> AsyncIterator[Candidate]:
        """Yield the releases to load, in order. The iteration continues after `done`."""
        ...

    async def fetch(self, candidate: Candidate) -> Path:
        """Return the folder that has all files of a verified release.

        Raises:
            Unfinished: if files have not arrived yet.
            Unreached: if the files cannot be fetched.
        """
        ...

    def remaining_s(self, candidate: Candidate, *, is_patient: bool) -> float:
        """Return the seconds for which a faulty release waits before it is rejected. `is_patient`: the fault may end by itself."""
        ...

    async def done(self, candidate: Candidate, result: ReleaseResult) -> None:
        """Put away the files of an accepted or rejected release."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """Settings of a turn of a source."""

    lists: Mapping[str, ListSettings]
    store: LogStore
    clock: Callable[[], datetime]
    load: Load
    attempts: Path
    """File that counts the killed loads of each release."""
    claim: Callable[[], Awaitable[bool]]
    """Function that acquires the right to load for this process; it returns False while another process or node has the right."""
    is_held: Callable[[], bool] = lambda: True
    """Function that returns True while this process has the right to load."""
    emit: Callable[[ReleaseResult], object] = lambda _: None
    """Function that gets each result before the files of the release are moved."""
    believed: bool = True
    """False while the clock is not trusted after a jump: no release counts as too old."""
    marks: Mapping[str, SerialMark]
    """Highest mark of each list on this node, as for ReleaseLoader."""

    async def head_and_mark(self, name: str) -> tuple[Head, SerialMark]:
        """Return the head of a list in the store, and the highest mark of the list, in the store or on this node."""
        head = (await self.store.heads()).get(name) or Head()
        return head, max(self.marks.get(name, NO_MARK), head.mark)


async def process_source(source: Source, settings: TurnSettings) -> Turn:
    """Load all releases of a source that can be loaded now; return the result of the turn."""
    turn = source.turn
    try:
        await _process_all(source, settings)
    except Unreached as error:
        turn.end(UNREACHED, error.reason, str(error))
    except (ReleaseRefused, StoreError) as error:
        result = failed("", error)
        turn.end(result.outcome, result.reason, result.detail)
    except OSError as error:
        turn.end(WAITING, "disk", str(error))
    return turn


async def _process_all(source: Source, settings: TurnSettings) -> None:
    turn, stopped = source.turn, set[str]()
    async for candidate in source.candidates():
        if candidate.list in stopped:
            continue
        if not settings.is_held():
            turn.repeat_after(AGAIN_S[WAITING])
            return
        result = await _process(source, candidate, settings)
        if result.here and result.reason not in HOST | AGED:  # its store fails, or the disk
            stopped.add(candidate.list or "")
        settings.emit(result)
        turn.add(result)
        await source.done(candidate, result)


async def _process(source: Source, candidate: Candidate, settings: TurnSettings) -> ReleaseResult:
    """Load one release of a source; return its result. If the release waits, set the time of the next turn.

    Raises:
        Unreached: if its files cannot be fetched.
    """
    is_unfinished, wait_s = False, AGAIN_S[WAITING]
    try:
        result = await _load(source, candidate, settings)
    except Unreached:
        raise
    except Exception as fault:  # noqa: BLE001 - a bug with one release must not stop the others
        result, is_unfinished = failed("", fault), isinstance(fault, Unfinished)
    result = replace(result, manifest=printable(candidate.name))
    if candidate.release is not None:
        result = replace(result, list=candidate.list, serial=candidate.serial, digest=candidate.digest)
    if result.reason in AGED and not settings.believed:
        detail = f"{result.detail}; the clock has jumped by hours, and is not trusted yet"
        result = replace(result, outcome=WAITING, here=True, detail=detail)
    elif result.reason in HOST:
        result = replace(result, outcome=WAITING, here=True)
    elif result.outcome == REFUSED:
        wait_s = source.remaining_s(candidate, is_patient=is_unfinished or result.reason in PATIENT)
        if wait_s > 0:
            result = replace(result, outcome=WAITING)
    if result.outcome == WAITING:
        source.turn.repeat_after(min(wait_s, AGAIN_S[WAITING]))
    return result


async def _load(source: Source, candidate: Candidate, settings: TurnSettings) -> ReleaseResult:
    release = candidate.release
    if release is None:
        raise candidate.fault or ReleaseRefused("fault", "it was not verified")
    manifest = release.manifest
    head, mark = await settings.head_and_mark(manifest.list)
    if (head.serial, head.release) == (manifest.serial, release.digest):
        # An earlier turn has loaded the release but could not put its files away.
        return ReleaseResult(manifest=candidate.name, outcome=ACCEPTED, detail="it is in force already")
    _, highest = mark
    if manifest.base is not None and manifest.base > head.serial and manifest.serial > highest:
        present = f"serial {head.serial} is in force" if head.generation else "there is no list yet"
        raise Unfinished("base", f"it builds on serial {manifest.base}, and {present}")
    check_follows(manifest, settings.lists[manifest.list], head, mark)
    folder = await source.fetch(candidate)
    attempts = load_attempts(settings.attempts)
    before = attempts.pop(release.digest, 0)
    if before >= ATTEMPTS_MAX:
        _save_attempts(settings.attempts, attempts)
        fault = f"{before} loads were killed with the process that made them (memory?)"
        raise ReleaseRefused(CRASH, f"{fault}: try `eir load` by hand")
    _save_attempts(settings.attempts, {release.digest: before + 1} | attempts)
    try:
        result = await settings.load(release, folder)
    except BaseException:
        _save_attempts(settings.attempts, attempts)
        raise
    if result.reason != KILLED:
        _save_attempts(settings.attempts, attempts)
    return result


def load_attempts(path: Path) -> dict[str, int]:
    """Return the number of processes that were killed while they loaded a release, by the digest of the release."""
    with suppress(OSError, ValueError, AttributeError):
        return {str(digest): int(count) for digest, count in json.loads(path.read_text()).items()}
    return {}


def _save_attempts(path: Path, attempts: Mapping[str, int]) -> None:
    kept = list(attempts.items())[:ATTEMPTED_MAX]
    if kept:
        path.write_text(json.dumps(dict(kept)))
    else:
        path.unlink(missing_ok=True)
