"""A year of a node's journal: loads, rollbacks and traces beside a register that feeds rows, and a flood of rejections. The clock is simulated."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eir.lists.log.journal import FEED, MAIN, REFUSED, REJECTED, SERIES, Journal, JournalEvent, paths_of, read_events
from eir.lists.log.journal_faults import journal_faults

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LOADS_PER_DAY, LISTS = 24, 10
YEAR_BYTES_MAX = 50_000_000
"""Size in bytes of the main series of a busy year: ten lists, one delta per hour and list."""
FEED_BYTES_OF_A_ROW = 300


def simulate(
    folder: Path, days: int, *, loads: int = LOADS_PER_DAY, rows: int = 1_200, rejections: int = 200, feed_max_bytes: int = 1 << 20
) -> Sequence[JournalEvent]:  # fmt: skip
    """Write days of a journal; return the events of the main series, which must all stay.

    Args:
        folder: folder of the journal.
        days: number of days.
        loads: loads per day.
        rows: rows of a register's feed per day. With `feed_max_bytes` they have the ratio of a register that feeds 1,200 rows/s.
        rejections: rejections per day, each by another sender.
        feed_max_bytes: size limit of the feed.
    """
    journal = Journal(
        folder,
        keep=timedelta(days=3650),
        max_bytes=256 << 20,
        feed_max_bytes=feed_max_bytes,
        report=lambda *_, **__: None,
    )
    expected: list[JournalEvent] = []
    generation = 0
    for day in range(days):
        now = BEGIN + timedelta(days=day)
        text = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        journal.open()  # each day after a restart of the node
        main = [
            JournalEvent(
                time=text, who="inbox of eir@host", what="load", list=f"list-{number % LISTS}", serial=day * loads + number + 1,
                digest=f"{day * loads + number:064x}", generation=day * loads + number + 1, change=f"{day * loads + number:064x}",
                content=f"{number:064x}", detail="62,000 entries; 120 devices come, 80 go",
            )
            for number in range(loads)
        ]  # fmt: skip
        main += [
            JournalEvent(time=text, who="operator@host", what=what, list="list-0", detail=f"{what} of day {day}")
            for what in ("rollback", "trace")
        ]
        journal.append(MAIN, *main[: loads // 2])
        fed = []
        for _ in range(rows):
            generation += 1
            row = {"effect": "added", "imei": f"{generation:014d}", "reason": "stolen"}
            fed.append(JournalEvent(time=text, who="agency", what=FEED, list="own", generation=generation, change=f"f{generation:063x}", rows=(row,)))  # fmt: skip
        for at in range(0, len(fed), 100):
            journal.append(FEED, *fed[at : at + 100])
        for number in range(rejections):
            journal.reject(JournalEvent(time=text, who=f"sender {number}", what="refuse", outcome=REFUSED, detail="signature: none is valid"))  # fmt: skip
        journal.append(MAIN, *main[loads // 2 :])
        journal.trim(now)
        journal.close()
        expected += main
    return expected


def faults_of(folder: Path, expected: Sequence[JournalEvent], *, feed_max_bytes: int = 1 << 20) -> list[str]:
    """Verify a simulated journal; return a message about each broken promise."""
    faults = [*journal_faults(folder)]
    if list(read_events(folder, series=[MAIN])) != list(expected):
        faults.append("events of the main series are missing")
    for series, limit in ((FEED, feed_max_bytes), (REJECTED, 16 << 20)):
        size = sum(path.stat().st_size for path in paths_of(folder, series))
        if size > limit + limit // 8:
            faults.append(f"the series {series} has {size:,} bytes, and its limit is {limit:,}")
    return faults


def sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each series."""
    return {series: sum(path.stat().st_size for path in paths_of(folder, series)) for series in SERIES}


def timed(folder: Path, days: int, **options: int) -> tuple[float, list[str]]:
    """Simulate days of a journal; return the duration in seconds, and the broken promises."""
    begun = time.monotonic()
    expected = simulate(folder, days, **options)
    return time.monotonic() - begun, faults_of(folder, expected, feed_max_bytes=options.get("feed_max_bytes", 1 << 20))
