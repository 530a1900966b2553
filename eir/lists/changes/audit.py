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
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.device import MEID_BASE, SNR_KEYS, check_digit, key_text
from eir.errors import EirError
from eir.lists.changes.load import BUILD, VERIFY, read_release
from eir.lists.pages.content import Content, Keys, decode
from eir.lists.pages.pages import Page
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import DEVICES, LOAD_MEMORY, ListSettings
from eir.lists.releases.release import Manifest, about, verify_release
from eir.lists.rows.build import build_pages
from eir.lists.rows.delivered import Done, Progress, adding_up

ASK = "ask"
"""The last stage of an audit, behind those of a load."""
CONFIDENCE = 0.95
AT_LEAST = 0.999
"""Share that a sample is made to show, where no other is wanted."""
SAMPLE_MAX = 30_000
"""Devices that an audit asks about at most until the share is decided; at 100 questions per second they take 15 minutes."""
LOOK_MIN = 100
"""Devices between two looks at the share, or a tenth of those before if that is more."""
PRIOR = 1.0, 0.1
"""Parameters (a, b) of the beta-binomial prior of `interval`. They affect its width and not its validity. With these an audit
in which all answers are right takes as many devices as one with a fixed sample size."""
UNBOUNDED = 10**9
"""Population that stands for an unlimited one: all checks that phones may ever cause."""
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
    from eir.lists.rows.reader import Tally  # noqa: PLC0415  # for this alone, and polars takes long to import

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


def sample_size(at_least: float, confidence: float = CONFIDENCE, *, of: int) -> int:
    """Return the size of the smallest sample of `of` entries whose `interval` lies above `at_least` if all answers are right.

    All entries, if every one has to be right.
    """
    low, high = 1 if at_least < 1 else of, of
    while low < high:
        middle = (low + high) // 2
        if interval(middle, middle, confidence, of=of)[0] >= at_least:
            high = middle
        else:
            low = middle + 1
    return low


def looks(first: int, most: int) -> Iterator[int]:
    """Yield the numbers of devices after which an audit compares the share with the wanted one: `first`, …, `most`."""
    size = min(first, most)
    while size < most:
        yield size
        size = min(most, size + max(LOOK_MIN, size // 10))
    yield size


def interval(right: float, asked: int, confidence: float = CONFIDENCE, *, of: int = UNBOUNDED) -> tuple[float, float]:
    """Return an interval for the share of `of` entries that are right, if `right` of `asked` random ones are.

    The intervals of a growing sample form a confidence sequence: with probability `confidence` every one of them holds the
    true share, so that an audit may look at any time and stop at any look. Sampling is without replacement, and the interval
    of all entries is a point. Source: I. Waudby-Smith, A. Ramdas, Confidence sequences for sampling without replacement,
    NeurIPS 2020, section 2: a count of right entries is in the set as long as the ratio of its prior to its posterior
    probability is below 1/(1 - confidence). The prior is beta-binomial, so the set is an interval.

    An answer may be a fraction from 0 to 1 if the population is unbounded: the likelihood of its mean is convex in the answer,
    so that the ratio stays a supermartingale.
    """
    if not asked:
        return 0.0, 1.0
    a, b = PRIOR
    wrong = asked - right
    smallest = math.log(1 - confidence) + _log_beta(a + right, b + wrong) - _log_beta(a, b)

    def fits(count: int) -> bool:
        """True if the answers are likely enough with this count of right entries, of all."""
        return _log_choose(of - asked, count - right) - _log_choose(of, count) >= smallest

    def bound(outside: int) -> int:
        """The last count from the most likely one towards `outside` that fits; the likelihood has one maximum."""
        if fits(outside):
            return outside
        inside = likeliest
        while abs(inside - outside) > 1:
            middle = (inside + outside) // 2
            if fits(middle):
                inside = middle
            else:
                outside = middle
        return inside

    fewest, most = math.ceil(right), math.floor(of - wrong)
    likeliest = min(max(math.floor((of + 1) * right / asked), fewest), most)
    return bound(fewest) / of, bound(most) / of


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_choose(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# What came of it


class Mistake(NamedTuple):
    """An answer that is not what the list says; the keys of `--json`."""

    imei: str
    """As it was asked about."""
    wanted: str
    got: str


@dataclass(slots=True)
class Origin:
    """Answers to one MME about listed devices, or about one listed device."""

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
    devices: Mapping[int, Origin] = field(default_factory=dict)
    """Results by listed device, if `origins` is set."""
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

        If others asked, each listed device that they asked about is one draw from an unlimited number, and its answer is the
        share of its checks that were answered as the list says: a hundred checks of one phone show no more of the network than one.
        """
        if self.origins is None:
            return interval(self.as_listed, self.asked, self.confidence, of=self.entries)
        shares = sum(each.as_listed / each.asked for each in self.devices.values())
        return interval(shares, len(self.devices), self.confidence)

    def verdict(self, at_least: float) -> bool | None:
        """Return whether the true share is at least this one, by the interval; None if the interval does not decide it."""
        low, high = self.interval
        if low >= at_least:
            return True
        return False if high < at_least else None

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
            shown["devices"] = len(self.devices)
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
    progress: Progress
    size: int = 0
    """Devices that are to be asked about before the next look."""
    mistakes: list[Mistake] = field(default_factory=list)

    async def round(self, keys: Sequence[int], begun: int) -> None:
        """Ask about these devices, after `begun` others; return when all answers have come or nothing can be asked any more."""
        loop = asyncio.get_running_loop()
        room, due = asyncio.Semaphore(UNDER_WAY_MAX), loop.time()
        self.size = begun + len(keys)
        self.progress(ASK, self.report.asked, self.size)
        async with asyncio.TaskGroup() as tasks:
            for turn, key in enumerate(keys, begun):
                texts = forms(key, turn)
                if self.rate is None:
                    await self.about(texts, due)
                else:
                    await room.acquire()
                    due = max(due, loop.time())
                    await asyncio.sleep(due - loop.time())
                    tasks.create_task(self.about(texts, due)).add_done_callback(lambda _: room.release())
                    due += len(texts) / self.rate
                if self.report.fault:
                    break

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
        self.progress(ASK, self.report.asked, self.size)


async def audit(
    listed: Listed, keys: Sequence[int], ask: Ask, *, wanted: str, rate: float | None, confidence: float = CONFIDENCE,
    first: int | None = None, at_least: float | None = None, progress: Progress = lambda *_: None,
) -> Report:  # fmt: skip
    """Ask about each key in all its forms, until it is decided whether the share is `at_least`, or nothing can be asked any more.

    `keys` are a random sample in random order. `rate`: questions per second; None: the next question follows the answer to the
    one before. `first`: devices before the first look at the share; None: all. `at_least`: None: all devices are asked about.
    """
    report = Report(
        list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), confidence=confidence
    )
    asking, begun = _Asking(ask, wanted, rate, report, progress), 0
    for size in looks(len(keys) if first is None or at_least is None else first, len(keys)):
        await asking.round(keys[begun:size], begun)
        begun = size
        if report.fault:
            report.fault += f"; {report.asked:,} of {size:,} devices were asked about"
            break
        if at_least is not None and report.verdict(at_least) is not None:
            break
    report.exceptions = sorted(asking.mistakes)
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
    listed: Listed, checks: Iterable[Check], *, wanted: str, known: Collection[str], asking: Collection[str] = (),
    confidence: float = CONFIDENCE,
) -> Report:  # fmt: skip
    """Hold what others were answered against the list.

    `known`: Origin-Hosts of MMEs that ought to ask; `asking`: of those that have asked, whatever about, besides those in `checks`.
    """
    found = list(checks)
    origins = {name: Origin() for name in sorted({check.origin for check in found})}
    devices: dict[int, Origin] = {}
    report = Report(
        list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), confidence=confidence,
        origins=origins, devices=devices,
    )  # fmt: skip
    mistakes = set()
    for check, is_listed in zip(
        found, listed.holds(np.array([check.device for check in found], np.uint64)).tolist(), strict=True
    ):
        if is_listed:
            right = check.checks if check.got == wanted else 0
            for count in (report, origins[check.origin], devices.setdefault(check.device, Origin())):
                count.asked += check.checks
                count.as_listed += right
            if not right:
                mistakes.add(Mistake(check.imei, wanted, check.got))
    seen = {name.lower() for name in (*origins, *asking)}
    report.exceptions = sorted(mistakes)
    report.never_asked = sorted(name for name in known if name.lower() not in seen)
    return report
