"""Commands that find devices with a tampered identity in the record of checks, and export them as rows."""

import csv
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

from eir.checks.question import KEY_TESTS
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, acting_in, opened, who, with_store
from eir.cli.output import (
    EXIT_USAGE,
    duration,
    fail,
    print_json,
    print_message,
    print_text,
    print_warning,
    progress,
    show,
    show_one,
    written_to,
)
from eir.cli.sightings import write_down
from eir.config import Config, load_config
from eir.device import SNR_KEYS, device_key, key_text
from eir.errors import EirError, IdentifierError
from eir.lists.record.entries import entries_of, read_pages
from eir.lists.record.reasons import reason_text
from eir.lists.record.settings import TYPES
from eir.lists.record.store import Event, utc_text
from eir.sightings.cases import CLEARED, CONFIRMED, FORGOTTEN, add_decision, load_cases, load_decisions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from eir.sightings.conditions import Tac
    from eir.sightings.engine import Engine
    from eir.sightings.judge import Finding, Judgement

COLUMNS = (
    "imei",
    "score",
    "sure",
    "subscribers",
    "copies",
    "first_seen",
    "last_seen",
    "conditions",
    "evidence",
    "honest",
)
SINCE = "30d"

Since = Annotated[str, typer.Option(metavar="30d", help="How far back to look: 30d, 36h; 62 days at most.")]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="DATE", help="The day before which to look, as 2026-11-25; now if not given.", show_default=False
    ),
]
Record = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Files to judge instead of this node's own, such as those of all nodes: s3a://eir/*/sightings/*/*.parquet.",
        show_default=False,
    ),
]
OnSpark = Annotated[
    str | None,
    typer.Option(
        "--spark",
        metavar="MASTER",
        help="Judge on a Spark cluster: spark://HOST:PORT or yarn; needs --work. deploy/OPERATION.md says how.",
        show_default=False,
    ),
]
Work = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="With --spark: where tables of the run go; a path or URL that all of the cluster reaches.",
        show_default=False,
    ),
]
Identifier = Annotated[str, typer.Argument(metavar="IMEI", help="The device.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why: what was found out, and by whom.")]
MinScore = Annotated[
    float | None,
    typer.Option(
        "--min-score",
        metavar="S",
        min=0,
        max=1,
        help="Only devices of this score or more; tamper.report_min, or tamper.export_min, if not given.",
        show_default=False,
    ),
]


def report(
    since: Since = SINCE, until: Until = None, min_score: MinScore = None,
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", min=1, help="Devices in the table at most.")] = 50,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all of them as CSV.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts, in one file.")] = None,
    public_file: Annotated[Path | None, typer.Option("--public", metavar="FILE", help="Write a page for the public: no identifiers, no counts below ten.")] = None,
    untrusted: Annotated[bool, typer.Option("--distrusted", help="List the devices that rest on the word of distrusted origins and peers, instead of the findings.")] = False,
    record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Report phones with a tampered identity.

    The command reads the record of the section `sightings`, and lists the phones with the highest score first. The
    section `tamper` of the configuration and eir/sightings/README.md describe the conditions and the score. The score
    is the estimated share of devices with this score that are tampered with. The estimate comes from simulated networks
    and from the operators' decisions. Devices that an operator cleared are left out. Findings that depend on distrusted
    origins and peers alone are listed separately, with --distrusted.
    """
    checked = opened(load_config(config))
    found = _judged(checked, since, until, min_score, EngineChoice(record, on_spark, work))
    findings = found.doubted if untrusted else found.findings
    if csv_file is not None:
        with written_to(csv_file, private=True) as out:
            _write_csv(findings, out)
    if html_file is not None or public_file is not None:
        from eir.sightings.page import page, public_page  # noqa: PLC0415 - only for a page

        for path, render in ((html_file, page), (public_file, public_page)):
            if path is not None:
                with written_to(path, private=True) as out:
                    out.write(render(found))
    rows = [finding.as_json() for finding in findings]
    if as_json:
        print_json(rows)
        return
    if not rows:
        print(f"Nothing found among {found.devices:,} devices in {found.sightings:,} checks.")
        _notes(found)
        return
    shown = [{**row, "conditions": list(row["conditions"])} for row in rows[:limit]]
    show(shown, COLUMNS, as_json=False)
    if len(rows) > limit:
        print_message(f"{len(rows) - limit:,} more; -n shows more, --csv and --json have all")
    _notes(found)


def _notes(found: "Judgement") -> None:
    """Print notes about the findings to standard error, such as devices that were left out."""
    if found.doubted:
        origins = ", ".join(found.left_out)
        print_message(
            f"{len(found.doubted):,} more devices depend on reports of {origins}, which is distrusted; --distrusted lists them"
        )
    if not found.places:
        print_message(
            "no two origins are known to be different places, so places are no evidence; see eir/sightings/README.md"
        )
    if found.batches:
        print_message(f"{len(found.batches):,} IMEIs are used by several modules, probably of one batch: no findings")
    malformed = sum(checks for _, checks, _ in found.malformed)
    if malformed:
        first_origin = found.malformed[0][0] or "an unnamed origin"
        print_message(
            f"malformed_imei: {malformed:,} checks had a malformed identifier, most of them from {first_origin}"
        )


def export(
    layout: Annotated[str, typer.Option("--as", metavar="eir|dirbs-notifications", help="The form of the rows.")] = "eir",
    kind: Annotated[str, typer.Option("--rows", metavar="pairs|tracked|devices", help="pairs: copies of confirmed devices, to block; tracked: IMEIs to watch; devices: confirmed IMEIs, to block.")] = "pairs",
    since: Since = SINCE, until: Until = None, min_score: MinScore = None,
    condition: Annotated[list[str] | None, typer.Option("--condition", metavar="NAME", help="Only devices for which this condition holds; may be given several times.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write; standard output if not given.")] = None,
    record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Export findings as rows that `eir publish` signs.

    Devices that an operator cleared, devices with a test TAC, and findings that depend on distrusted peers are never
    exported.

    `pairs` are for a list of kind pairs that blocks: of each device that an operator confirmed, the IMEI, and the IMSI of
    each subscriber who certainly holds a copy, but never of a subscriber who may be the owner. They need
    `sightings.subscribers: full`; without IMSIs, only confirmed devices are written. `tracked` are IMEIs of findings with a score of tamper.export_min or more, for a list that answers greylisted. `devices` are for a list that
    blocks the IMEI with every SIM, including the owner's, so only confirmed devices are written. SIM boxes are exported
    only if an operator confirmed them. Exit status 1 if there is nothing to write.
    """
    from eir.sightings.conditions import CONDITIONS  # noqa: PLC0415 - for this command alone
    from eir.sightings.page import EXPORTS, ROWS, export_rows  # noqa: PLC0415 - for this command alone

    if layout not in EXPORTS:
        raise fail(f"--as {layout}: expected {' or '.join(EXPORTS)}", EXIT_USAGE)
    if kind not in ROWS or (kind == "tracked" and layout != "eir"):
        raise fail(f"--rows {kind}: expected {', '.join(ROWS)}; tracked only --as eir", EXIT_USAGE)
    wanted = frozenset(condition or ())
    for name in condition or ():
        if name not in CONDITIONS:
            raise fail(f"--condition {name}: no such condition; there are: {', '.join(CONDITIONS)}", EXIT_USAGE)
    checked = opened(load_config(config))
    least = checked.tamper.export_min if min_score is None else min_score
    found = _judged(checked, since, until, least, EngineChoice(record, on_spark, work), keep_users=kind == "pairs")
    if kind == "pairs" and not found.has_imsis:
        print_message(
            "the record holds no IMSIs (sightings.subscribers is hashed or off), so no pair of IMEI and IMSI can be written, only confirmed devices; --rows tracked writes IMEIs to watch"
        )
        kind = "devices"
    chosen = [finding for finding in found.findings if _is_exportable(finding, wanted)]
    others = set[int]()
    if not wanted:  # a decision counts, whether the device was seen in the period or not
        decisions = load_cases(checked.state)
        others = {device for device, is_confirmed in decisions.items() if is_confirmed}
    others -= {finding.device for finding in chosen}
    is_test = KEY_TESTS["test"]
    devices = len(chosen) + len(others)
    chosen = [finding for finding in chosen if not is_test(finding.device)]
    others = {device for device in others if not is_test(device)}
    left_out = devices - len(chosen) - len(others)
    if left_out:
        print_message(f"{left_out:,} devices with a TAC for tests are left out")
    confirmed = map(key_text, sorted(others))
    head, *rows = export_rows(chosen, layout, found.until, confirmed, kind=kind)
    if not rows and chosen:
        reasons = "none of these is confirmed (`eir tamper confirm IMEI`), or no subscriber certainly holds a copy"
        raise fail(
            f"{len(chosen):,} devices were found, but none can be written as {kind}: {reasons}; --rows tracked writes them"
        )
    if not rows:
        raise fail("there is no finding, and no file was written")
    with written_to(out, private=True) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([head, *rows])
    written = len({row[0] for row in rows})
    file = quote(str(out or "FILE"))
    command = f"eir publish --list L --serial N --expires 30d --key KEY {file}"
    print_message(f"{written:,} devices are written; to sign them: {command}")


def _is_exportable(finding: "Finding", wanted: frozenset[str]) -> bool:
    """Return True if a finding has a wanted condition; a SIM box must also be confirmed by an operator.

    An empty `wanted` accepts every condition.
    """
    if wanted and wanted.isdisjoint(finding.conditions):
        return False
    return finding.confirmed or "sim_box" not in finding.conditions


def show_one_device(
    identifier: Annotated[str, typer.Argument(metavar="IMEI", help="The device.")],
    since: Since = SINCE, until: Until = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the sheet as a page, in one file.")] = None,
    record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the evidence of a finding about one device.

    The sheet has the result of each condition, with times, SIMs, places and software versions, the reasons for an
    honest explanation, and the decisions of operators. Exit status 1 if the device is not on record in this period.
    """
    from eir.sightings.page import sheet, sheet_page  # noqa: PLC0415 - for this command alone

    device = _device(identifier)
    checked = opened(load_config(config))
    begin, end = _window(since, until)
    with judging(checked, begin, end, EngineChoice(record, on_spark, work), min_score=0) as (engine, found):
        evidence = sheet(engine, found, device, load_decisions(checked.state))
    if not evidence["subscribers"]:
        raise fail(f"{identifier} is not on record from {begin:%Y-%m-%d} to {end:%Y-%m-%d}")
    if html_file is not None:
        with written_to(html_file, private=True) as out:
            out.write(sheet_page(evidence))
    if as_json:
        print_json(evidence)
        return
    finding = evidence["finding"]
    result = "there is no evidence against it, or it was cleared"
    if finding:
        result = f"{finding['score']:.3f}, {finding['sure']}"
    print_text(f"{evidence['imei']}: {result}")
    show(evidence["says"], ("condition", "log_odds", "evidence"), as_json=False)
    for text in evidence["against"]:
        print_text(f"for an honest explanation: {text}")
    show(evidence["subscribers"], ("subscriber", "home", "checks", "days", "first_seen", "last_seen"), as_json=False)
    for each in evidence["decisions"]:
        print_text(f"{each['time']} {each['verdict']} by {each['who']}: {each['reason']}")


def confirm(identifier: Identifier, reason: Reason, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Record the decision that a device is tampered with.

    From then on the device is reported, and exported with every SIM. The decision calibrates the scores of the device's
    condition, and is recorded in the history.
    """
    _decide(identifier, CONFIRMED, reason, config, as_json=as_json)


def clear(identifier: Identifier, reason: Reason, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Record the decision that a device is not tampered with.

    From then on the device is neither reported nor exported. The decision calibrates the scores of the device's
    condition, and is recorded in the history.
    """
    _decide(identifier, CLEARED, reason, config, as_json=as_json)


def forget(identifier: Identifier, reason: Reason, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Withdraw the decision that a device is tampered with, or that it is not.

    From then on the device is judged as if there were no decision, and the decision does not calibrate scores. Exit status 1 if there is no decision.
    The decision and the withdrawal stay in the history.
    """
    decisions = load_cases(opened(load_config(config)).state)
    if _device(identifier) not in decisions:
        raise fail(f"{identifier} has no decision to withdraw")
    _decide(identifier, FORGOTTEN, reason, config, as_json=as_json)


def _decide(identifier: str, verdict: str, reason: str, config: Path, *, as_json: bool) -> None:
    checked = opened(load_config(config))
    imei = key_text(_device(identifier))
    time, user = utc_text(datetime.now(UTC)), who()
    decision = {"time": time, "who": user, "imei": imei, "verdict": verdict, "reason": reason}
    event = Event(time=time, who=user, what=verdict, outcome="accepted", detail=f"{imei}: {reason}")
    if not checked.state.is_dir():
        raise EirError(
            f"the state folder {checked.state} (`state` in {checked.path}) does not exist; eir serve or eir load creates it"
        )
    with_store(checked, lambda store: store.record(event))
    with acting_in(checked.state):
        add_decision(checked.state, decision)
    show_one(decision, f"{imei} is {verdict}", as_json=as_json)


def _device(identifier: str) -> int:
    try:
        return device_key(identifier)
    except IdentifierError as e:
        raise fail(f"{identifier}: {e}", EXIT_USAGE) from None


class EngineChoice(NamedTuple):
    """Files to analyse, and the engine that analyses them."""

    record: str | None
    spark: str | None
    work: str | None


def _judged(
    config: Config,
    since: str,
    until: str | None,
    min_score: float | None,
    where: EngineChoice,
    *,
    keep_users: bool = False,
) -> "Judgement":
    """Analyse the record of checks of a period, and return the findings."""
    begin, end = _window(since, until)
    with judging(config, begin, end, where, min_score=min_score, keep_users=keep_users) as (_, found):
        return found


@contextmanager
def judging(
    config: Config,
    begin: datetime,
    end: datetime,
    where: EngineChoice,
    *,
    min_score: float | None,
    keep_users: bool = False,
) -> "Iterator[tuple[Engine, Judgement]]":
    """Open the engine, analyse the record of a period, and yield the engine with its findings."""
    from dataclasses import replace  # noqa: PLC0415 - for these commands alone

    from eir.sightings.judge import judge  # noqa: PLC0415 - for this command alone

    settings = config.tamper if min_score is None else replace(config.tamper, report_min=min_score)
    with progress() as advance, _engine(config, begin, end, where) as engine:
        shown = advance or (lambda *_: None)
        found = judge(
            engine, settings, since=begin, until=end, tacs=allocated_tacs(config), cases=load_cases(config.state), keep_users=keep_users,
            warn=print_warning, progress=shown,
        )  # fmt: skip
        yield engine, found


def allocated_tacs(config: Config) -> "Iterator[Tac]":
    """Yield the TACs of all lists of kind device_types in the store. Raises StoreError."""
    from eir.sightings.conditions import Tac  # noqa: PLC0415 - for these commands alone

    now = datetime.now(UTC).timestamp()
    names = [name for name, settings in config.lists.items() if settings.kind == TYPES]
    for name in names:
        state, pages = with_store(config, partial(read_pages, name=name), fresh=False, reads=True)
        if state is None:
            print_message(f"warning: list {name} was never loaded, so its TACs are unknown")
            continue
        for entry in entries_of(pages):
            if not 0 < entry.until <= now:
                allocated = datetime.fromtimestamp(entry.date, UTC).date() if entry.date else None
                device_type = reason_text(state, entry.reason)
                yield Tac(entry.key // SNR_KEYS, allocated, device_type)


def _window(since: str, until: str | None) -> tuple[datetime, datetime]:
    """Parse `--since` and `--until`; return start and end of the period, in UTC without a time zone."""
    from eir.sightings.judge import DAYS_MAX  # noqa: PLC0415 - for these commands alone

    lasts = duration(since, "--since", most=timedelta(days=DAYS_MAX - 1))
    if not until:
        end = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=1)
        return end - lasts, end
    try:
        end = datetime.fromisoformat(until).replace(tzinfo=None)
    except ValueError:
        raise fail(f"--until {until}: expected a day such as 2026-11-25", EXIT_USAGE) from None
    return end - lasts, end


def _engine(config: Config, begin: datetime, end: datetime, where: EngineChoice) -> "AbstractContextManager[Engine]":
    """Open the engine (DuckDB or Spark) for the recorded files of a period."""
    from eir.sightings.schema import FOLDER  # noqa: PLC0415 - for these commands alone

    if (where.spark is None) != (where.work is None):
        raise fail("--spark and --work go together", EXIT_USAGE)
    files: str | list[str] = where.record or []
    if not where.record:
        write_down(config)
        days = [(begin + timedelta(days=number)).date() for number in range(-1, (end - begin).days + 3)]
        paths = [path for day in days for path in sorted((config.state / FOLDER).glob(f"{day}/*.parquet"))]
        files = [*map(str, paths)]
    if not files:
        period = f"from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
        raise EirError(
            f"no sightings {period} in {config.state}; a node records checks if the configuration has the section `sightings`; --until selects an earlier time"
        )
    probes = [peer.label for peer in config.peers if peer.is_probe]
    if where.spark is not None and where.work is not None:
        from eir.sightings.spark import spark  # noqa: PLC0415 - for --spark alone

        return spark(files, since=begin, until=end, master=where.spark, work=where.work, without=probes)
    from eir.sightings.engine import duck  # noqa: PLC0415 - for analyses without Spark

    return duck(files, since=begin, until=end, memory=config.tamper.memory, without=probes)


def _write_csv(findings: "Iterable[Finding]", out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    columns: list[str] = []
    for finding in findings:
        row: dict[str, Any] = finding.as_json()
        row["conditions"] = "|".join(row["conditions"])
        if not columns:
            columns = list(row)
            writer.writerow(columns)
        writer.writerow(row[column] for column in columns)
