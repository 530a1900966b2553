"""Results: of one release by `eir load`, the drop folder or a pull, and of one turn of a source.

A process that loads returns its result as JSON.
"""

import errno
import os
from collections.abc import Mapping, MutableSequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from eir.errors import ReleaseRefused, StoreError, escape_invalid, refused_by
from eir.lists.changes.release_load import LoadReport
from eir.lists.log.change import utc_text
from eir.lists.log.journal import ACCEPTED, CLAIMS, REFUSED, JournalEvent

WAITING = "waiting"
"""Outcome of a release that is neither accepted nor rejected yet."""
CRASH, KILLED = "crash", "killed"
LOADED, UNCHANGED, UNREACHED, ELSEWHERE = "loaded", "unchanged", "unreached", "elsewhere"
"""Outcomes of a turn, beside REFUSED and WAITING: a release was loaded, no release was there, the server was not reached, another process or node takes the releases."""
AGAIN_S = {WAITING: 30.0, ELSEWHERE: 10.0}
"""Seconds until a waiting release is tried again, and before another turn if another process or node has the right to load."""
OF_THE_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EILSEQ})
"""System errors that the name of a delivered file causes. This host causes all other system errors."""


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

    def end(self, outcome: str, reason: str, detail: str) -> None:
        """Set the outcome of the turn, and the time of the next turn if that depends on the outcome."""
        self.outcome, self.reason, self.detail = outcome, reason, detail
        if outcome in AGAIN_S:
            self.repeat_after(AGAIN_S[outcome])

    def repeat_after(self, seconds: float) -> None:
        """Start the next turn after this time at the latest."""
        self.again_s = seconds if self.again_s is None else min(seconds, self.again_s)

    def as_json(self) -> dict[str, Any]:
        """Return the result of the turn as a JSON document for scripts."""
        return asdict(self) | {"results": [each.as_json() for each in self.results], "loaded": self.loaded}


def turn_of(document: Mapping[str, Any]) -> Turn:
    """Return the result of a turn that another process has encoded as JSON."""
    return Turn(**{**document, "results": [result_of(each) for each in document["results"]]})
