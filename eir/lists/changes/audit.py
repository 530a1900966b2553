"""Audit: it tests if an EIR answers as a signed release lists, with a random sample or recorded answers.

Independent of protocols: the caller passes a function that asks, or recorded answers.
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
from eir.lists.releases.release import Manifest, naming_release, verify_release
from eir.lists.rows.build import build_pages
from eir.lists.rows.delivered import Done, Progress, sum_progress

ASK = "ask"
"""Last stage of an audit, after those of a load."""
CONFIDENCE = 0.95
AT_LEAST = 0.999
"""Default for the share that a sample must be able to show."""
SAMPLE_MAX = 30_000
"""Default maximum number of devices that an audit asks about until the share is decided: 15 minutes at 100 questions per second."""
INTERIM_MIN = 100
"""Devices between two evaluations of the share, or a tenth of those before if that is more."""
PRIOR = 1.0, 0.1
"""Parameters (a, b) of the beta-binomial prior of `interval`. They change its width but not its validity. With these values an audit with only right answers needs as many devices as one with a fixed sample size."""
UNBOUNDED = 10**9
"""Size of an unlimited population: all checks that phones may ever cause."""
UNDER_WAY_MAX = 256
"""Maximum number of devices with open questions at any rate; further devices wait."""

Ask: TypeAlias = Callable[[str], Awaitable[str]]
"""Function that asks about an identifier and returns the status or another answer. It raises EirError if no further question is possible."""


# Entries of a release


class ReleaseEntries:
    """Entries of a release that are in force at a given time: single identifiers and whole TACs."""

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
        """Return the rows of a page that have not expired."""
        low, reasons, until, tac = decode(self._pages[number])
        in_force = (until == 0) | (until > self._now)
        return Content(
            low[in_force],
            reasons[in_force],
            until[in_force],
            None if tac is not None and 0 < tac.until <= self._now else tac,
        )

    def sample(self, count: int) -> list[int]:
        """Return the device keys of `count` random entries in random order, or of all entries if there are fewer.

        For the entry of a whole TAC, the key of a random device of this TAC is returned.
        """
        chance = secrets.SystemRandom()  # the operator of the EIR must not be able to predict the sample
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
        """Return a mask that is True for each device key that the release lists."""
        numbers, mask = keys // np.uint64(SNR_KEYS), np.zeros(len(keys), bool)
        order = np.argsort(numbers, kind="stable")
        starts = np.flatnonzero(np.diff(numbers[order])) + 1
        for of_page in np.split(order, starts) if len(keys) else ():
            if (number := int(numbers[of_page[0]])) in self._pages:
                content = self._content(number)
                mask[of_page] = content.tac is not None or np.isin(keys[of_page] % np.uint64(SNR_KEYS), content.low)
        return mask


def load_entries(
    manifest: Path,
    lists: Mapping[str, ListSettings],
    *,
    now: datetime,
    memory_max: int = LOAD_MEMORY,
    progress: Progress = lambda *_: None,
) -> ReleaseEntries:
    """Verify a signed release and load its entries; of a delta, load the entries that it adds.

    Raises:
        ReleaseRefused: if the release cannot be verified.
        EirError: if it is not a list of devices.
    """
    from eir.lists.rows.reader import Tally  # noqa: PLC0415  # only needed here, and polars takes long to import

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Done]:
        yield sum_progress(progress, name, total)
        progress(name, total, total)

    with stage(VERIFY, 1):
        release = verify_release(manifest, lists, now=now)
    settings = lists[release.manifest.list]
    if settings.kind != DEVICES:
        raise EirError(f"{settings.name} is a list of {settings.kind}; expected a list of {DEVICES}")
    tally = Tally(bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max)
    with naming_release(release.manifest):
        rows = next(
            iter(
                read_release(
                    release.manifest, manifest.parent, settings, Reasons(), tally, stage=stage, memory_max=memory_max
                )
            )
        )
        with stage(BUILD, 1):
            return ReleaseEntries(release.manifest, build_pages(rows).pages, now)


# Sample size and confidence interval


def sample_size(at_least: float, confidence: float = CONFIDENCE, *, of: int) -> int:
    """Return the smallest sample that can prove a share of `at_least` if all its answers are right.

    `of` is the number of entries from which the sample is drawn. "Prove" means that the lower bound of `interval` is at
    least this share.

    If `at_least` is 1, the sample is all entries.
    """
    low, high = 1 if at_least < 1 else of, of
    while low < high:
        middle = (low + high) // 2
        if interval(middle, middle, confidence, of=of)[0] >= at_least:
            high = middle
        else:
            low = middle + 1
    return low


def interim_sizes(first: int, most: int) -> Iterator[int]:
    """Yield the numbers of checked devices at which an audit evaluates the share, from `first` to `most`."""
    size = min(first, most)
    while size < most:
        yield size
        size = min(most, size + max(INTERIM_MIN, size // 10))
    yield size


def interval(right: float, asked: int, confidence: float = CONFIDENCE, *, of: int = UNBOUNDED) -> tuple[float, float]:
    """Return a confidence interval for the share of right entries among `of` entries.

    `right` of `asked` randomly drawn entries were right.

    The intervals of a growing sample are a confidence sequence: with probability `confidence` all of them contain the
    true share. So an audit may evaluate the share at any time and stop then. Sampling is without replacement, and the
    interval of all entries is a point. Source: I. Waudby-Smith, A. Ramdas, Confidence sequences for sampling without
    replacement, NeurIPS 2020, section 2: a count of right entries is in the set as long as the ratio of its prior to
    its posterior probability is below 1/(1 - confidence). The prior is beta-binomial, so the set is an interval.

    If the population is unbounded, an answer may be a fraction from 0 to 1: the likelihood of its mean is convex in the
    answer, so the ratio stays a supermartingale.
    """
    if not asked:
        return 0.0, 1.0
    a, b = PRIOR
    wrong = asked - right
    smallest = math.log(1 - confidence) + _log_beta(a + right, b + wrong) - _log_beta(a, b)

    def fits(count: int) -> bool:
        """Return True if `count` right entries among all entries are plausible, given these answers."""
        return _log_choose(of - asked, count - right) - _log_choose(of, count) >= smallest

    def bound(outside: int) -> int:
        """Return the last plausible count between the most likely count and `outside`.

        The likelihood has one maximum, so a binary search finds it.
        """
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


# Results


class Mistake(NamedTuple):
    """Answer that differs from the list. The names of the fields are the keys of `--json`."""

    imei: str
    """Identifier as it was sent."""
    wanted: str
    got: str


@dataclass(slots=True)
class Origin:
    """Counts of answers about listed devices, either to one MME or about one device."""

    asked: int = 0
    as_listed: int = 0

    def count(self, asked: int, as_listed: int) -> None:
        """Add to the counts a number of answers, and the number of those that agreed with the list."""
        self.asked += asked
        self.as_listed += as_listed


@dataclass(slots=True, kw_only=True)
class AuditReport:
    """Result of an audit.

    An audit that sends checks counts devices, each checked in all its forms. An audit of recorded answers counts
    checks.
    """

    list: str
    serial: int
    entries: int
    asked: int = 0
    as_listed: int = 0
    confidence: float = CONFIDENCE
    exceptions: Sequence[Mistake] = ()
    origins: Mapping[str, Origin] | None = None
    """Results by Origin-Host of recorded checks; None if the audit itself asked."""
    devices: Mapping[int, Origin] = field(default_factory=dict)
    """Results by listed device, if `origins` is set."""
    never_asked: Sequence[str] = ()
    """Known MMEs without a check."""
    fault: str | None = None
    """Reason why the audit ended early."""

    def count(self, asked: int, as_listed: int) -> None:
        """Add to the totals a number of answers, and the number of those that agreed with the list."""
        self.asked += asked
        self.as_listed += as_listed

    @property
    def share(self) -> float | None:
        """Share of devices, or of checks, that were answered as listed; None if there were no answers."""
        return self.as_listed / self.asked if self.asked else None

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the true share, which hold with the probability `confidence`.

        In recorded checks, each listed device is one draw from an unlimited number, and its answer is the share of its
        checks that were answered as listed: a hundred checks of one phone show no more of the network than one.
        """
        if self.origins is None:
            return interval(self.as_listed, self.asked, self.confidence, of=self.entries)
        shares = sum(each.as_listed / each.asked for each in self.devices.values())
        return interval(shares, len(self.devices), self.confidence)

    def verdict(self, at_least: float) -> bool | None:
        """Return True if the share of right answers is at least `at_least`; None if the interval is too wide."""
        low, high = self.interval
        if low >= at_least:
            return True
        return False if high < at_least else None

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON document for scripts."""
        document: dict[str, Any] = {
            "list": self.list, "serial": self.serial, "asked": self.asked, "as_listed": self.as_listed, "share": self.share,
            "interval": [round(bound, 6) for bound in self.interval], "exceptions": [each._asdict() for each in self.exceptions],
        }  # fmt: skip
        if self.origins is not None:
            document["origins"] = [
                {
                    "origin_host": name,
                    "asked": each.asked,
                    "as_listed": each.as_listed,
                    "share": each.as_listed / each.asked if each.asked else None,
                }
                for name, each in self.origins.items()
            ]
            document["devices"] = len(self.devices)
            document["never_asked"] = list(self.never_asked)
        return document


def forms(key: int, turn: int) -> list[str]:
    """Return all forms of an identifier that MMEs send.

    These are 14 digits, 15 digits and 16 digits with a software version (TS 23.003 6.2.1). The 15th digit is
    alternately the check digit or a spare 0, by `turn`.
    """
    text = key_text(key)
    if key >= MEID_BASE:
        return [text]
    return [text, f"{text}{check_digit(text) if turn % 2 else 0}", f"{text}01"]


@dataclass(slots=True)
class _Inquiry:
    """Checks of an audit, sent at a given rate, and their results so far."""

    ask: Ask
    wanted: str
    rate: float | None
    report: AuditReport
    progress: Progress
    size: int = 0
    """Number of devices to ask about before the next evaluation."""
    mistakes: list[Mistake] = field(default_factory=list)

    async def round(self, keys: Sequence[int], begun: int) -> None:
        """Send checks of these devices, and return after all answers or after a fault.

        `begun` is the number of devices that were checked before.
        """
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
        """Send checks of one device in all its forms, the first at `begins` on the loop's clock."""
        wrong: list[Mistake] = []
        for number, text in enumerate(texts):
            if self.rate is not None:
                await asyncio.sleep(max(0.0, begins + number / self.rate - asyncio.get_running_loop().time()))
            try:
                answer = await self.ask(text)
            except EirError as e:
                self.report.fault = self.report.fault or str(e)
                return
            if answer != self.wanted:
                wrong.append(Mistake(text, self.wanted, answer))
        self.report.count(1, int(not wrong))
        self.mistakes += wrong
        self.progress(ASK, self.report.asked, self.size)


async def audit(
    listed: ReleaseEntries, keys: Sequence[int], ask: Ask, *, wanted: str, rate: float | None, confidence: float = CONFIDENCE,
    first: int | None = None, at_least: float | None = None, progress: Progress = lambda *_: None,
) -> AuditReport:  # fmt: skip
    """Check each key in all its forms, until the share is decided or no further check is possible.

    Args:
        listed: entries of the release.
        keys: random sample in random order.
        ask: function that asks.
        wanted: expected answer.
        rate: questions per second; None: each question follows the previous answer.
        confidence: probability that the interval contains the true share.
        first: devices before the first evaluation of the share; None: all.
        at_least: share to decide; None: ask about all devices.
        progress: receives the number of devices done.
    """
    report = AuditReport(
        list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), confidence=confidence
    )
    asking, begun = _Inquiry(ask, wanted, rate, report, progress), 0
    for size in interim_sizes(len(keys) if first is None or at_least is None else first, len(keys)):
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
    """Recorded checks with equal identifier, device, Origin-Host and answer, and their number."""

    imei: str
    device: int
    """Key of the device."""
    origin: str
    got: str
    checks: int


def judge(
    listed: ReleaseEntries, checks: Iterable[Check], *, wanted: str, known: Collection[str], asking: Collection[str] = (),
    confidence: float = CONFIDENCE,
) -> AuditReport:  # fmt: skip
    """Compare recorded answers with the list.

    Args:
        listed: entries of the release.
        checks: recorded checks.
        wanted: expected answer.
        known: Origin-Hosts of MMEs that should ask.
        asking: further Origin-Hosts that have asked, about any device.
        confidence: probability that the interval contains the true share.
    """
    recorded = list(checks)
    origins = {name: Origin() for name in sorted({check.origin for check in recorded})}
    devices: dict[int, Origin] = {}
    report = AuditReport(
        list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), confidence=confidence,
        origins=origins, devices=devices,
    )  # fmt: skip
    mistakes = set()
    for check, is_listed in zip(
        recorded, listed.holds(np.array([check.device for check in recorded], np.uint64)).tolist(), strict=True
    ):
        if is_listed:
            right = check.checks if check.got == wanted else 0
            for count in (report, origins[check.origin], devices.setdefault(check.device, Origin())):
                count.count(check.checks, right)
            if not right:
                mistakes.add(Mistake(check.imei, wanted, check.got))
    seen = {name.lower() for name in (*origins, *asking)}
    report.exceptions = sorted(mistakes)
    report.never_asked = sorted(name for name in known if name.lower() not in seen)
    return report
