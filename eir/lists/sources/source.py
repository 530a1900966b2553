"""Source of releases, and one loop for all sources: verify, load and put away each release that a source has.

eir.lists.releases.release and eir.lists.changes.release_load verify each release. If this host causes a failure (the store is
unreachable, the disk is full, a signers file cannot be read), the release stays where it is. A release whose fault may end by itself
waits for the time that its source gives. Any other fault rejects the release. No release can block those of others.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeAlias

from eir.curl import Unreached
from eir.errors import ReleaseRefused, StoreError
from eir.lists.changes.release_load import NO_MARK, check_follows
from eir.lists.log.change import Head, SerialMark
from eir.lists.log.journal import ACCEPTED, REFUSED
from eir.lists.log.store import LogStore
from eir.lists.record.settings import ListSettings
from eir.lists.releases.release import VerifiedRelease
from eir.lists.sources.release_result import (
    AGAIN_S,
    CRASH,
    KILLED,
    LOADED,
    UNREACHED,
    WAITING,
    ReleaseResult,
    Turn,
    failed,
    printable,
)

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

    async def head(self, name: str) -> Head:
        """Return the head of a list in the store."""
        return (await self.store.heads()).get(name) or Head()

    def mark(self, name: str, head: Head) -> SerialMark:
        """Return the highest mark of a list, in the store or on this node."""
        return max(self.marks.get(name, NO_MARK), head.mark)


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
        if result.outcome == ACCEPTED:
            turn.outcome = LOADED
        settings.emit(result)
        turn.results.append(result)
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
    head = await settings.head(manifest.list)
    if (head.serial, head.release) == (manifest.serial, release.digest):
        # An earlier turn has loaded the release but could not put its files away.
        return ReleaseResult(manifest=candidate.name, outcome=ACCEPTED, detail="it is in force already")
    _, highest = settings.mark(manifest.list, head)
    if manifest.base is not None and manifest.base > head.serial and manifest.serial > highest:
        present = f"serial {head.serial} is in force" if head.generation else "there is no list yet"
        raise Unfinished("base", f"it builds on serial {manifest.base}, and {present}")
    check_follows(manifest, settings.lists[manifest.list], head, settings.mark(manifest.list, head))
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
