"""Commands that judge what checks have shown: phones whose identity was tampered with, for people, for scripts and as rows of a list."""

import csv
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json
from eir.commands.forms import duration
from eir.commands.output import EXIT_USAGE, fail, print_json, progress, say, show
from eir.config import Config, load_config
from eir.errors import EirError

if TYPE_CHECKING:
    from eir.analysis.engine import Engine
    from eir.analysis.judge import Finding, Judgement

COLUMNS = ("imei", "score", "sure", "subscribers", "copies", "first_seen", "last_seen", "conditions", "evidence")
SINCE = "30d"

Since = Annotated[str, typer.Option(metavar="30d", help="How far back to look: 30d, 36h; 62 days at most.")]
Until = Annotated[str | None, typer.Option(metavar="DATE", help="The day before which to look, as 2026-11-25; now if not given.", show_default=False)]
Record = Annotated[str | None, typer.Option(metavar="PATTERN", help="Files to judge instead of this node's own, such as those of all nodes: s3a://eir/*/sightings/*/*.parquet.", show_default=False)]
OnSpark = Annotated[str | None, typer.Option("--spark", metavar="MASTER", help="Judge on a Spark cluster: spark://HOST:PORT or yarn; needs --work. deploy/README.md says how.", show_default=False)]
Work = Annotated[str | None, typer.Option(metavar="FOLDER", help="With --spark: where tables of the run go; a path or URL that all of the cluster reaches.", show_default=False)]
MinScore = Annotated[float | None, typer.Option("--min-score", metavar="S", min=0, max=1, help="Only devices of this score or more; tamper.report_min if not given.", show_default=False)]


def report(
    since: Since = SINCE, until: Until = None, min_score: MinScore = None,
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", min=1, help="Devices in the table at most.")] = 50,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all of them as CSV.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts, in one file.")] = None,
    public_file: Annotated[Path | None, typer.Option("--public", metavar="FILE", help="Write a page for the public: no identifiers, no counts below ten.")] = None,
    record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Report phones with a tampered identity.

    The likeliest stand first. Reads the record that the section `sightings` keeps. What is looked for, and how the score comes about, is in the section
    `tamper` of the configuration and in eir/analysis/README.md. The score is the chance that at least one of the conditions is right.
    """
    found = _judged(load_config(config), since, until, min_score, _Where(record, on_spark, work))
    if csv_file is not None:
        with _written(csv_file) as out:
            _write_csv(found.findings, out)
    if html_file is not None or public_file is not None:
        from eir.analysis.page import page, public_page  # noqa: PLC0415 - for those who want one

        for path, make in ((html_file, page), (public_file, public_page)):
            if path is not None:
                with _written(path) as out:
                    out.write(make(found))
    rows = [finding.as_json() for finding in found.findings]
    if as_json:
        print_json(rows)
        return
    if not rows:
        print(f"Nothing found among {found.devices:,} devices in {found.sightings:,} checks.")
        return
    show([{**row, "conditions": list(row["conditions"])} for row in rows[:limit]], COLUMNS, as_json=False)
    if len(rows) > limit:
        say(f"{len(rows) - limit:,} more; -n shows more, --csv and --json have all")
    if malformed := sum(seen for _, seen, _ in found.malformed):
        say(f"malformed_imei: {malformed:,} checks named no device at all, most of them from {found.malformed[0][0] or 'an unnamed origin'}")


def export(
    layout: Annotated[str, typer.Option("--as", metavar="eir|dirbs-notifications", help="The form of the rows.")] = "eir",
    since: Since = SINCE, until: Until = None, min_score: MinScore = None,
    condition: Annotated[list[str] | None, typer.Option("--condition", metavar="NAME", help="Only devices for which this condition holds; may be given several times.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write; standard output if not given.")] = None,
    record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Write findings as rows that `eir publish` signs.

    A row blocks every phone that shows the identity, the genuine one too: the report says which that is. dirbs-notifications has a row
    for each copy with its IMSI where the record holds IMSIs (`sightings.subscribers: full`), and one for each device elsewhere. Exit
    status 1 if there is nothing to write.
    """
    from eir.analysis.conditions import CONDITIONS  # noqa: PLC0415 - for this command alone
    from eir.analysis.export import EXPORTS, rows  # noqa: PLC0415 - as above

    if layout not in EXPORTS:
        raise fail(f"--as {layout}: expected {' or '.join(EXPORTS)}", EXIT_USAGE)
    if unknown := [name for name in condition or () if name not in CONDITIONS]:
        raise fail(f"--condition {unknown[0]}: no such condition; there are: {', '.join(CONDITIONS)}", EXIT_USAGE)
    checked = load_config(config)
    wanted = frozenset(condition or ())
    found = _judged(checked, since, until, min_score, _Where(record, on_spark, work), keep_users=layout == "dirbs-notifications")
    chosen = [finding for finding in found.findings if not wanted or wanted & set(finding.conditions)]
    if not chosen:
        raise fail("nothing found; nothing is written")
    with _written(out) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows(rows(chosen, layout, found.until))
    say(f"{len(chosen):,} devices are written; to sign them: eir publish --list L --serial N --expires 30d --key KEY {out or 'FILE'}")


class _Where(NamedTuple):
    """Which files are judged, and by what."""

    record: str | None
    spark: str | None
    work: str | None


def _judged(config: Config, since: str, until: str | None, min_score: float | None, where: _Where, *, keep_users: bool = False) -> "Judgement":
    """The findings in the record of a time."""
    from dataclasses import replace  # noqa: PLC0415 - for these commands alone

    from eir.analysis.judge import DAYS_MAX, judge  # noqa: PLC0415 - as above

    lasts = duration(since)
    if not lasts or lasts > timedelta(days=DAYS_MAX - 1):
        raise fail(f"--since {since}: expected a number and a unit, up to {DAYS_MAX - 1}d: 30d or 36h", EXIT_USAGE)
    if (where.spark is None) != (where.work is None):
        raise fail("--spark and --work go together", EXIT_USAGE)
    try:
        end = (datetime.fromisoformat(until) if until else datetime.now(UTC)).replace(tzinfo=None) + timedelta(seconds=0 if until else 1)
    except ValueError:
        raise fail(f"--until {until}: expected a day such as 2026-11-25", EXIT_USAGE) from None
    begin = end - lasts
    settings = config.tamper if min_score is None else replace(config.tamper, report_min=min_score)
    with progress() as advance, _engine(config, begin, end, where) as engine:
        return judge(engine, settings, since=begin, until=end, warn=lambda text: say(f"warning: {text}"), progress=advance or (lambda *_: None), keep_users=keep_users)


def _engine(config: Config, begin: datetime, end: datetime, where: _Where) -> "AbstractContextManager[Engine]":
    """What does the work, over the files of the time."""
    from eir.analysis.schema import files  # noqa: PLC0415 - for these commands alone

    there: str | list[str] = where.record or []
    if not where.record:
        days = ((begin + timedelta(days=number)).date() for number in range(-1, (end - begin).days + 3))
        there = [path for day in days for path in sorted(map(str, Path(files(config.state)).parent.parent.glob(f"{day}/*.parquet")))]
    if not there:
        raise EirError(f"no sightings from {begin:%Y-%m-%d} to {end:%Y-%m-%d} in {config.state}: the section `sightings` of the configuration has a node keep them; --until looks at an earlier time")
    if where.spark is not None and where.work is not None:
        from eir.analysis.spark import spark  # noqa: PLC0415 - for those who have a cluster

        return spark(there, since=begin, until=end, master=where.spark, work=where.work)
    from eir.analysis.duck import duck  # noqa: PLC0415 - for those who have none

    return duck(there, since=begin, until=end, memory=config.tamper.memory)


def _write_csv(findings: "Iterable[Finding]", out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    columns: list[str] = []
    for finding in findings:
        row: dict[str, Any] = finding.as_json()
        genuine = row.pop("genuine") or {}
        row |= {"conditions": "|".join(row["conditions"]), "genuine": genuine.get("subscriber", ""), "genuine_why": genuine.get("why", "")}
        if not columns:
            columns = list(row)
            writer.writerow(columns)
        writer.writerow(row[column] for column in columns)


@contextmanager
def _written(path: Path | None) -> Iterator[TextIO]:
    """A file that only its owner may read, since it holds identifiers; standard output for None."""
    if path is None:
        yield sys.stdout
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", newline="") as out:  # noqa: PTH123 - of a descriptor, for its mode
        yield out
