"""Audit: compares an EIR's answers with a signed release. The answers come from checks of randomly chosen devices, or from records.

The audit is independent of protocols: the caller passes a function that sends a check, or recorded answers.
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
from eir.lists.changes.data_files import BUILD, VERIFY, read_release
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import DEVICES, LOAD_MEMORY, ListSettings
from eir.lists.releases.release import Manifest, naming_release, verify_release
from eir.lists.rows.delivered import Done, Progress, sum_progress
from eir.lists.table.columns import WHOLE, Numbers
from eir.lists.table.table import Table, in_force, table_of

ASK = "ask"
"""Last stage of an audit, after those of a load."""
CONFIDENCE = 0.95
AT_LEAST = 0.999
"""Default of the share of right answers that a sample must be able to prove."""
SAMPLE_MAX = 30_000
"""Default maximum number of devices that an audit checks until the share is decided: 15 minutes at 100 checks per second."""
INTERIM_MIN = 100
"""Minimum number of devices between two evaluations of the share; after 1,000 devices, a tenth of those checked so far."""
PRIOR = 1.0, 0.1
"""Parameters (a, b) of the beta-binomial prior of `interval`. They change the width of the interval, but not its validity. With these values, an audit with only right answers needs as many devices as an audit with a fixed sample size."""
UNBOUNDED = 10**9
"""Size of an unlimited population: all checks that phones may ever cause."""
UNDER_WAY_MAX = 256
"""Maximum number of devices with unanswered checks, independent of the rate; further devices wait."""

Ask: TypeAlias = Callable[[str], Awaitable[str]]
"""Function that sends a check of an identifier and returns the status or another answer. It raises EirError if no further check is possible."""


# Entries of a release


class ReleaseEntries:
    """Entries of a signed release (single identifiers and whole TACs) that are in force at a given time."""

    def __init__(self, manifest: Manifest, table: Table, now: datetime) -> None:
        self.manifest = manifest
        self._keys: Numbers = in_force(table.rows(), int(now.timestamp())).keys

    def __len__(self) -> int:
        return len(self._keys)

    def sample(self, count: int) -> list[int]:
        """Choose `count` random entries of the release (all entries if it has fewer); return their device keys in random order.

        For the entry of a whole TAC, the key of a random device of this TAC is returned.
        """
        random = secrets.SystemRandom()  # the operator of the EIR must not be able to predict the sample
        chosen = self._keys[random.sample(range(len(self)), min(count, len(self)))].tolist()
        return [key if key < WHOLE else (key - WHOLE) * SNR_KEYS + random.randrange(SNR_KEYS) for key in chosen]

    def holds(self, keys: Numbers) -> NDArray[np.bool_]:
        """Return a mask that is True for each device key that the release lists."""
        tacs = keys // np.uint64(SNR_KEYS) | np.uint64(WHOLE)
        return np.isin(keys, self._keys) | np.isin(tacs, self._keys)


def load_entries(
    manifest: Path,
    lists: Mapping[str, ListSettings],
    *,
    now: datetime,
    memory_max: int = LOAD_MEMORY,
    progress: Progress = lambda *_: None,
) -> ReleaseEntries:
    """Verify a signed release and load its entries; for a delta, load only the entries that it adds.

    Raises:
        ReleaseRefused: if the release cannot be verified.
        EirError: if the release is not of a list of devices.
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
        rows_by_role = read_release(
            release.manifest,
            manifest.parent,
            settings,
            Reasons(),
            tally,
            stage=stage,
            memory_max=memory_max,
        )
        rows = next(iter(rows_by_role))
        with stage(BUILD, 1):
            return ReleaseEntries(release.manifest, table_of(rows.pop()), now)


# Sample size and confidence interval


def sample_size(at_least: float, confidence: float = CONFIDENCE, *, of: int) -> int:
    """Return the smallest sample size whose answers, if all are right, prove that the share of right entries is at least `at_least`.

    A sample proves a share if the lower bound of `interval` is at least this share. If `at_least` is 1, the sample must
    have all entries. `of`: number of entries from which the sample is drawn.
    """
    low = 1 if at_least < 1 else of
    high = of
    while low < high:
        middle = (low + high) // 2
        lower_bound, _ = interval(middle, middle, confidence, of=of)
        if lower_bound >= at_least:
            high = middle
        else:
            low = middle + 1
    return low


def interim_sizes(first: int, most: int) -> Iterator[int]:
    """Yield increasing sample sizes from `first` to `most`. After each of them, an audit computes the share of right answers again."""
    size = min(first, most)
    while size < most:
        yield size
        step = max(INTERIM_MIN, size // 10)
        size = min(most, size + step)
    yield size


def interval(right: float, asked: int, confidence: float = CONFIDENCE, *, of: int = UNBOUNDED) -> tuple[float, float]:
    """Return the lower and the upper bound for the share of right entries in a whole list, computed from the answers for a sample.

    The answers for `right` of `asked` randomly drawn entries were right.

    The intervals of a growing sample are a confidence sequence: with probability `confidence`, all of them contain the
    true share. So an audit may evaluate the share at any time and then stop. Sampling is without replacement; a sample
    of all entries has an interval of one point. Source: I. Waudby-Smith, A. Ramdas, Confidence sequences for sampling
    without replacement, NeurIPS 2020, section 2: a count of right entries is plausible as long as the ratio of its prior
    to its posterior probability is below 1/(1 - confidence). The prior is beta-binomial, so the plausible counts are an
    interval.

    If the population is unbounded, an answer may be a fraction from 0 to 1: the likelihood of the mean is convex in the
    answer, so the ratio stays a supermartingale.
    """
    if not asked:
        return 0.0, 1.0
    a, b = PRIOR
    wrong = asked - right
    smallest = math.log(1 - confidence) + _log_beta(a + right, b + wrong) - _log_beta(a, b)

    def is_plausible(count: int) -> bool:
        """Return True if the answers for the sample are consistent with exactly `count` right entries in the whole list."""
        return _log_choose(of - asked, count - right) - _log_choose(of, count) >= smallest

    def last_plausible(outside: int) -> int:
        """Search from the most likely number of right entries towards `outside`; return the last plausible number.

        The likelihood has only one maximum, so a binary search finds this count.
        """
        if is_plausible(outside):
            return outside
        inside = likeliest
        while abs(inside - outside) > 1:
            middle = (inside + outside) // 2
            if is_plausible(middle):
                inside = middle
            else:
                outside = middle
        return inside

    fewest = math.ceil(right)
    most = math.floor(of - wrong)
    mode = math.floor((of + 1) * right / asked)
    likeliest = min(max(mode, fewest), most)
    return last_plausible(fewest) / of, last_plausible(most) / of


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_choose(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# Results


class Mistake(NamedTuple):
    """Wrong answer of an EIR: the audited release requires another answer. Each field is a key in the JSON report of the audit."""

    imei: str
    """Identifier as it was sent."""
    wanted: str
    got: str


@dataclass(slots=True)
class AnswerCounts:
    """Number of answers about listed devices, and how many of them were right: in a whole audit, for one MME, or for one device."""

    asked: int = 0
    as_listed: int = 0
    """Number of answers that agreed with the list."""

    def count(self, asked: int, as_listed: int) -> None:
        """Add answers to the counts: `asked` answers in total, and `as_listed` answers that agreed with the release."""
        self.asked += asked
        self.as_listed += as_listed

    @property
    def share(self) -> float | None:
        """Share of the answers that agreed with the release; None without answers."""
        return self.as_listed / self.asked if self.asked else None


@dataclass(slots=True, kw_only=True)
class AuditReport(AnswerCounts):
    """Result of an audit.

    An audit that sends checks counts devices, each checked in all its forms. An audit of recorded answers counts
    checks.
    """

    list: str
    serial: int
    entries: int
    confidence: float = CONFIDENCE
    exceptions: Sequence[Mistake] = ()
    origins: Mapping[str, AnswerCounts] | None = None
    """Counts of recorded answers by Origin-Host; None if the audit sent the checks itself."""
    devices: Mapping[int, AnswerCounts] = field(default_factory=dict)
    """Counts of recorded answers by listed device."""
    never_asked: Sequence[str] = ()
    """Origin-Hosts of known MMEs that sent no check."""
    fault: str | None = None
    """Reason why the audit ended early."""

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound that contain the true share of right answers with the probability `confidence`.

        In an audit of recorded checks, each listed device is one draw from an unlimited number. Its answer is the share
        of its checks that were answered as listed: a hundred checks of one phone prove no more about the network than
        one check.
        """
        if self.origins is None:
            return interval(self.as_listed, self.asked, self.confidence, of=self.entries)
        right = sum(counts.as_listed / counts.asked for counts in self.devices.values())
        return interval(right, len(self.devices), self.confidence)

    def verdict(self, at_least: float) -> bool | None:
        """Return True if the share of right answers is at least `at_least`, False if it is lower; None if this is undecided."""
        low, high = self.interval
        if low >= at_least:
            return True
        return False if high < at_least else None

    def as_json(self) -> dict[str, Any]:
        """Return the report of the audit as a JSON document for scripts."""
        document: dict[str, Any] = {
            "list": self.list, "serial": self.serial, "asked": self.asked, "as_listed": self.as_listed, "share": self.share,
            "interval": [round(bound, 6) for bound in self.interval], "exceptions": [each._asdict() for each in self.exceptions],
        }  # fmt: skip
        if self.origins is not None:
            document["origins"] = [
                {"origin_host": name, "asked": counts.asked, "as_listed": counts.as_listed, "share": counts.share}
                for name, counts in self.origins.items()
            ]
            document["devices"] = len(self.devices)
            document["never_asked"] = list(self.never_asked)
        return document


def forms(key: int, turn: int) -> list[str]:
    """Return the identifier of a device in all forms that MMEs send, for example an IMEI with 14, 15 and 16 digits.

    An IMEI has 14 digits, 15 digits, or 16 digits with a software version (TS 23.003 6.2.1). The 15th digit is the check
    digit if `turn` is odd, otherwise a spare 0.
    """
    text = key_text(key)
    if key >= MEID_BASE:
        return [text]
    last_digit = check_digit(text) if turn % 2 else 0
    return [text, f"{text}{last_digit}", f"{text}01"]


@dataclass(slots=True)
class _Inquiry:
    """Checks that an audit sends at a given rate, and their results so far."""

    ask: Ask
    wanted: str
    """Expected answer."""
    rate: float | None
    """Checks per second; None: each check follows the previous answer."""
    report: AuditReport
    progress: Progress
    size: int = 0
    """Number of devices to check before the next evaluation."""
    mistakes: list[Mistake] = field(default_factory=list)

    async def check_devices(self, keys: Sequence[int], begun: int) -> None:
        """Send checks of these devices, and return after all answers or after a fault.

        `begun`: number of devices that were checked before.
        """
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(UNDER_WAY_MAX)
        due = loop.time()
        self.size = begun + len(keys)
        self.progress(ASK, self.report.asked, self.size)
        async with asyncio.TaskGroup() as tasks:
            for turn, key in enumerate(keys, begun):
                texts = forms(key, turn)
                if self.rate is None:
                    await self._check_device(texts, due)
                else:
                    await room.acquire()
                    due = max(due, loop.time())
                    await asyncio.sleep(due - loop.time())
                    task = tasks.create_task(self._check_device(texts, due))
                    task.add_done_callback(lambda _: room.release())
                    due += len(texts) / self.rate
                if self.report.fault:
                    break

    async def _check_device(self, texts: Sequence[str], begin: float) -> None:
        """Send one check for each form of a device's identifier. `begin`: time of the event loop's clock for the first check."""
        loop = asyncio.get_running_loop()
        wrong: list[Mistake] = []
        for number, text in enumerate(texts):
            if self.rate is not None:
                due = begin + number / self.rate
                await asyncio.sleep(max(0.0, due - loop.time()))
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
    """Check devices of a release in all forms of their identifiers, and return the report of the audit.

    The audit stops early if the answers prove that the share of right answers is at least `at_least`, or that it is lower. It
    also stops if `ask` raises EirError.

    Args:
        listed: entries of the release.
        keys: random sample in random order.
        ask: function that sends a check.
        wanted: expected answer.
        rate: checks per second; None: each check follows the previous answer.
        confidence: probability that the interval contains the true share.
        first: number of devices before the first evaluation of the share; None: all devices.
        at_least: share to decide; None: check all devices.
        progress: receives the number of devices done.
    """
    report = AuditReport(
        list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), confidence=confidence
    )
    inquiry = _Inquiry(ask, wanted, rate, report, progress)
    first_size = len(keys) if first is None or at_least is None else first
    begun = 0
    for size in interim_sizes(first_size, len(keys)):
        await inquiry.check_devices(keys[begun:size], begun)
        begun = size
        if report.fault:
            report.fault += f"; {report.asked:,} of {size:,} devices were asked about"
            break
        if at_least is not None and report.verdict(at_least) is not None:
            break
    report.exceptions = sorted(inquiry.mistakes)
    return report


class Check(NamedTuple):
    """Group of recorded checks with the same identifier, device, Origin-Host and answer, and the number of checks in the group."""

    imei: str
    device: int
    """Key of the device."""
    origin: str
    got: str
    checks: int


def judge(
    listed: ReleaseEntries, checks: Iterable[Check], *, wanted: str, known: Collection[str],
    confidence: float = CONFIDENCE,
) -> AuditReport:  # fmt: skip
    """Compare recorded answers with the entries of a release, and return the report of the audit.

    Args:
        listed: entries of the release.
        checks: recorded checks.
        wanted: expected answer.
        known: Origin-Hosts of MMEs that should ask.
        confidence: probability that the interval contains the true share.
    """
    recorded = list(checks)
    origin_hosts = {check.origin for check in recorded}
    origins = {name: AnswerCounts() for name in sorted(origin_hosts)}
    devices: dict[int, AnswerCounts] = {}
    report = AuditReport(
        list=listed.manifest.list, serial=listed.manifest.serial, entries=len(listed), confidence=confidence,
        origins=origins, devices=devices,
    )  # fmt: skip
    mistakes: set[Mistake] = set()
    keys = np.array([check.device for check in recorded], np.uint64)
    for check, is_listed in zip(recorded, listed.holds(keys).tolist(), strict=True):
        if not is_listed:
            continue
        right = check.checks if check.got == wanted else 0
        device = devices.setdefault(check.device, AnswerCounts())
        for counts in (report, origins[check.origin], device):
            counts.count(check.checks, right)
        if not right:
            mistakes.add(Mistake(check.imei, wanted, check.got))
    seen = {name.lower() for name in origins}
    report.exceptions = sorted(mistakes)
    report.never_asked = sorted(name for name in known if name.lower() not in seen)
    return report
