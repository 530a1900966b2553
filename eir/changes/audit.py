"""Does an EIR answer as a list says: what a signed release lists, a random sample of it, and what came of asking about that.

Knows no protocol: it is handed a function that asks, or what others were answered.
"""

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.changes.load import BUILD, VERIFY, read_release
from eir.device import MEID_BASE, SNR_KEYS, check_digit, key_text
from eir.errors import EirError
from eir.pages.content import Content, Keys, decode
from eir.pages.pages import Page
from eir.record.reasons import Reasons
from eir.record.settings import DEVICES, LOAD_MEMORY, ListSettings
from eir.releases.release import Manifest, about, verify_release
from eir.rows.build import build_pages
from eir.rows.delivered import Done, Progress, adding_up

ASK = "ask"
"""The last stage of an audit, behind those of a load."""
CONFIDENCE = 0.95
AT_LEAST = 0.999
"""Share that a sample is made to show, where no other is wanted."""
UNDER_WAY_MAX = 256
"""Devices that are being asked about; more wait, whatever the rate."""

Ask: TypeAlias = Callable[[str], Awaitable[str]]
"""Asks about an identifier and returns the status, or what came instead. Raises EirError once nothing can be asked any more."""


# What a release lists


class Listed:
    """The entries of a release that are in force at some time: identifiers on their own, and whole TACs."""

    def __init__(self, manifest: Manifest, pages: Sequence[Page], now: datetime) -> None:
        self.manifest = manifest
        self._now = now.timestamp()
        self._pages = {page.number: page for page in pages}
        self._numbers = list(self._pages)
        sizes = [len(content.low) + (content.tac is not None) for content in map(self._content, self._numbers)]
        self._ends = np.cumsum(np.array(sizes, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _content(self, number: int) -> Content:
        """A page without what has ended."""
        low, reasons, until, tac = decode(self._pages[number])
        left = (until == 0) | (until > self._now)
        return Content(
            low[left], reasons[left], until[left], None if tac is not None and 0 < tac.until <= self._now else tac
        )

    def sample(self, count: int) -> list[int]:
        """Return the keys of `count` entries, at random and in no order.

        They are those of all if there are no more; for a TAC, that of some device.
        """
        chance = secrets.SystemRandom()  # whoever runs the EIR must not know what will be asked
        chosen = np.array(sorted(chance.sample(range(len(self)), min(count, len(self)))), np.int64)
        of_page = np.searchsorted(self._ends, chosen, side="right")
        keys = []
        for page in np.unique(of_page).tolist():
            number, begins = self._numbers[page], int(self._ends[page - 1]) if page else 0
            low = self._content(number).low
            places = (chosen[of_page == page] - begins).tolist()
            keys += [
                number * SNR_KEYS + (int(low[at]) if at < len(low) else chance.randrange(SNR_KEYS)) for at in places
            ]
        chance.shuffle(keys)
        return keys

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which of these devices are listed, as a mask."""
        numbers, found = keys // np.uint64(SNR_KEYS), np.zeros(len(keys), bool)
        order = np.argsort(numbers, kind="stable")
        starts = np.flatnonzero(np.diff(numbers[order])) + 1
        for of_page in np.split(order, starts) if len(keys) else ():
            if (number := int(numbers[of_page[0]])) in self._pages:
                content = self._content(number)
                found[of_page] = content.tac is not None or np.isin(keys[of_page] % np.uint64(SNR_KEYS), content.low)
        return found


def listed_in(
    manifest: Path,
    lists: Mapping[str, ListSettings],
    *,
    now: datetime,
    memory_max: int = LOAD_MEMORY,
    progress: Progress = lambda *_: None,
) -> Listed:
    """Return what a signed release lists; for a delta, what it adds.

    Raises ReleaseRefused if the release is not to be trusted, EirError if it is not about devices.
    """
    from eir.rows.reader import Tally  # noqa: PLC0415  # for this alone, and polars takes long to import

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Done]:
        yield adding_up(progress, name, total)
        progress(name, total, total)

    with stage(VERIFY, 1):
        release = verify_release(manifest, lists, now=now)
    settings = lists[release.manifest.list]
    if settings.kind != DEVICES:
        raise EirError(f"{settings.name} is a list of {settings.kind}; what can be audited is a list of {DEVICES}")
    tally = Tally(bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max)
    with about(release.manifest):
        rows = next(
            iter(
                read_release(
                    release.manifest, manifest.parent, settings, Reasons(), tally, stage=stage, memory_max=memory_max
                )
            )
        )
        with stage(BUILD, 1):
            return Listed(release.manifest, build_pages(rows).pages, now)


# How many, and how sure


def sample_size(at_least: float, confidence: float = CONFIDENCE) -> int | None:
    """Return the size of a sample whose `interval` lies above `at_least` if all answers are right.

    None: ask about all.
    """
    z = _z(confidence)
    return math.ceil(z * z * at_least / (1 - at_least)) or 1 if at_least < 1 else None


def interval(right: int, asked: int, confidence: float = CONFIDENCE, *, of: int | None = None) -> tuple[float, float]:
    """Wilson's interval for a share of which `right` of `asked` are a random sample; `of` all there are: all of them leave no doubt."""
    if not asked:
        return 0.0, 1.0
    share = right / asked
    if asked == of:
        return share, share
    z2 = _z(confidence) ** 2
    middle = (share + z2 / (2 * asked)) / (1 + z2 / asked)
    half = math.sqrt(z2 * (share * (1 - share) / asked + z2 / (4 * asked * asked))) / (1 + z2 / asked)
    return (0.0 if not right else middle - half), (1.0 if right == asked else middle + half)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


# What came of it


class Mistake(NamedTuple):
    """An answer that is not what the list says; the keys of `--json`."""

    imei: str
    """As it was asked about."""
    wanted: str
    got: str


@dataclass(slots=True)
class Origin:
    """Answers to one MME about listed devices."""

    asked: int = 0
    as_listed: int = 0


@dataclass(slots=True, kw_only=True)
class Report:
    """Results of an audit.

    One that asks counts devices, each asked about in all its forms; one that only looks counts checks.
    """

    list: str
    serial: int
    entries: int
    asked: int = 0
    as_listed: int = 0
    confidence: float = CONFIDENCE
    exceptions: Sequence[Mistake] = ()
    origins: Mapping[str, Origin] | None = None
    """Results by Origin-Host; None: it was we who asked."""
    never_asked: Sequence[str] = ()
    """MMEs that are known, and from which no check came."""
    fault: str | None = None
    """Reason why it ended early."""

    @property
    def share(self) -> float | None:
        """Return the share of devices, or checks, that were answered as the list says; None if nothing was asked."""
        return self.as_listed / self.asked if self.asked else None

    @property
    def interval(self) -> tuple[float, float]:
        """Return the bounds of the true share, with this confidence.

        What was only looked at is all there was, and no sample.
        """
        return interval(
            self.as_listed, self.asked, self.confidence, of=self.entries if self.origins is None else self.asked
        )

    def as_json(self) -> dict[str, Any]:
        """The report for scripts."""
        shown: dict[str, Any] = {
            "list": self.list, "serial": self.serial, "asked": self.asked, "as_listed": self.as_listed, "share": self.share,
            "interval": [round(bound, 6) for bound in self.interval], "exceptions": [each._asdict() for each in self.exceptions],
        }  # fmt: skip
        if self.origins is not None:
            shown["origins"] = [
                {
                    "origin_host": name,
                    "asked": each.asked,
                    "as_listed": each.as_listed,
                    "share": each.as_listed / each.asked if each.asked else None,
                }
                for name, each in self.origins.items()
            ]
            shown["never_asked"] = list(self.never_asked)
        return shown


def forms(key: int, turn: int) -> list[str]:
    """An identifier as MMEs send it: 14 digits, 15 with the check digit or a spare 0 in turn (TS 23.003 6.2.1), 16 with a software version."""
    text = key_text(key)
    if key >= MEID_BASE:
        return [text]
    return [text, f"{text}{check_digit(text) if turn % 2 else 0}", f"{text}01"]


@dataclass(slots=True)
class _Asking:
    """Questions that go out at a rate, and what has come of them so far."""

    ask: Ask
    wanted: str
    rate: float | None
    report: Report
    done: Done
    mistakes: list[Mistake] = field(default_factory=list)

    async def about(self, texts: Sequence[str], begins: float) -> None:
        """Ask about a device in all its forms, the first one at `begins` on the loop's clock."""
        wrong: list[Mistake] = []
        for number, text in enumerate(texts):
            if self.rate is not None:
                await asyncio.sleep(max(0.0, begins + number / self.rate - asyncio.get_running_loop().time()))
            try:
                got = await self.ask(text)
            except EirError as e:
                self.report.fault = self.report.fault or str(e)
                return
            if got != self.wanted:
                wrong.append(Mistake(text, self.wanted, got))
        self.report.asked += 1
        self.report.as_listed += not wrong
        self.mistakes += wrong
        self.done(1)


async def audit(
    listed: Listed, keys: Sequence[int], ask: Ask, *, wanted: str, rate: float | None, confidence: float = CONFIDENCE,
    progress: Progress = lambda *_: None,
) -> Report:  # fmt: skip
    """Ask about each key in all its forms until all is asked or nothing can be asked any more.

    `rate`: questions a second; None: the next one once one is answered.
    """
    report = Report(
        list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), confidence=confidence
    )
    loop, asking = asyncio.get_running_loop(), _Asking(ask, wanted, rate, report, adding_up(progress, ASK, len(keys)))
    room, due = asyncio.Semaphore(UNDER_WAY_MAX), loop.time()
    async with asyncio.TaskGroup() as tasks:
        for turn, key in enumerate(keys):
            texts = forms(key, turn)
            if rate is None:
                await asking.about(texts, due)
            else:
                await room.acquire()
                due = max(due, loop.time())
                await asyncio.sleep(due - loop.time())
                tasks.create_task(asking.about(texts, due)).add_done_callback(lambda _: room.release())
                due += len(texts) / rate
            if report.fault:
                break
    report.exceptions = sorted(asking.mistakes)
    if report.fault:
        report.fault += f"; {report.asked:,} of {len(keys):,} devices were asked about"
    return report


class Check(NamedTuple):
    """Checks of others, alike."""

    imei: str
    device: int
    """Key of the device."""
    origin: str
    got: str
    checks: int


def judge(
    listed: Listed, checks: Iterable[Check], *, wanted: str, known: Collection[str], asking: Collection[str] = ()
) -> Report:
    """Hold what others were answered against the list.

    `known`: Origin-Hosts of MMEs that ought to ask; `asking`: of those that have asked, whatever about, besides those in `checks`.
    """
    found = list(checks)
    origins = {name: Origin() for name in sorted({check.origin for check in found})}
    report = Report(list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), origins=origins)
    mistakes = set()
    for check, is_listed in zip(
        found, listed.holds(np.array([check.device for check in found], np.uint64)).tolist(), strict=True
    ):
        if is_listed:
            right = check.checks if check.got == wanted else 0
            for count in (report, origins[check.origin]):
                count.asked += check.checks
                count.as_listed += right
            if not right:
                mistakes.add(Mistake(check.imei, wanted, check.got))
    seen = {name.lower() for name in (*origins, *asking)}
    report.exceptions = sorted(mistakes)
    report.never_asked = sorted(name for name in known if name.lower() not in seen)
    return report
