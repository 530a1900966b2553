"""Commands that find devices with a tampered identity in the record of checks, and export them as rows."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from eir.checks.question import KEY_TESTS
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, acting_in, opened, record_event, who, with_store
from eir.cli.output import (  # fmt: skip
    EXIT_USAGE,
    duration,
    fail,
    moment,
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
from eir.lists.follow.list_reader import ListReader
from eir.lists.log.change import utc_text
from eir.lists.log.journal import JournalEvent
from eir.lists.log.reader import LoggedList
from eir.lists.log.store import LogStore
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import TYPES
from eir.lists.table.table import not_ended
from eir.sightings.cases import CLEARED, CONFIRMED, FORGOTTEN, add_decision, load_cases, load_decisions
from eir.sightings.conditions import Tac
from eir.sightings.engine import duck
from eir.sightings.judge import Engine, Judgement, judge
from eir.sightings.schema import FOLDER
from eir.sightings.sheet import is_imsi, other_sims, sheet
from eir.sightings.spark import spark

COLUMNS = ("imei", "rank", "score", "subscribers", "copies", "first_seen", "last_seen", "conditions", "evidence")
ROWS = ("tracked", "pairs", "devices")
"""Choices for the export: IMEIs to track, pairs of confirmed devices with named owners, confirmed IMEIs."""
SINCE, SINCE_MAX = "30d", timedelta(days=366)

Since = Annotated[str, typer.Option(metavar="30d", help="How far back to look: 30d, 36h; 366 days at most.")]
Until = Annotated[str, typer.Option(metavar="DATE", help="The day before which to look, as 2026-11-25.", show_default="now")]  # fmt: skip
Record = Annotated[str | None, typer.Option(metavar="PATTERN", help="Files to judge instead of this node's own, such as those of all nodes: s3a://eir/*/sightings/*/*.parquet.", show_default=False)]  # fmt: skip
OnSpark = Annotated[str | None, typer.Option("--spark", metavar="MASTER", help="Judge on a Spark cluster: spark://HOST:PORT or yarn; needs --work. See deploy/OPERATION.md.", show_default=False)]  # fmt: skip
Work = Annotated[str | None, typer.Option(metavar="FOLDER", help="With --spark: where tables of the run go; a path or URL that all of the cluster reaches.", show_default=False)]  # fmt: skip
Identifier = Annotated[str, typer.Argument(metavar="IMEI", help="The device.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why: what was found out, and by whom.")]
MinScore = Annotated[float | None, typer.Option("--min-score", metavar="S", min=0, max=1, help="Only devices of this score or more; tamper.report_min, or tamper.export_min, if not given.", show_default=False)]  # fmt: skip


def report(
    since: Since = SINCE, until: Until = "", min_score: MinScore = None,
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", min=1, help="Devices in the table at most.")] = 50,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all of them as CSV.")] = None,
    batches: Annotated[bool, typer.Option("--batches", help="List the IMEIs of modules with ten SIMs or more, instead of the findings.")] = False,
    record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Report phones with a tampered identity.

    The command reads the record of the section `sightings`, and lists the phones with the highest score first. The
    section `tamper` of the configuration and eir/sightings/README.md describe the conditions and the score. Devices that
    an operator cleared are left out. So are reports of distrusted origins and peers; a warning names these.
    """
    with judging(opened(load_config(config)), *_window(since, until), record, on_spark, work, min_score=min_score) as (_, found):  # fmt: skip
        pass
    if batches:
        modules = [{"imei": imei, "subscribers": sims} for imei, sims in found.batches]
        show(modules, ("imei", "subscribers"), as_json=as_json)
        return
    rows = [finding.as_json() for finding in found.findings]
    if csv_file is not None:
        with written_to(csv_file, private=True) as out:
            writer = csv.DictWriter(out, rows[0] if rows else (), lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, "conditions": "|".join(row["conditions"])} for row in rows)
    if as_json:
        print_json(rows)
        return
    if rows:
        show([{"rank": rank, **row} for rank, row in enumerate(rows[:limit], 1)], COLUMNS, as_json=False)
    else:
        print(f"Nothing found among {found.devices:,} devices in {found.sightings:,} checks.")
    if len(rows) > limit:
        print_message(f"{len(rows) - limit:,} more; -n shows more, --csv and --json have all")
    if not found.places:
        print_message("no two origins are known to be different places, so places are no evidence")
    if found.batches:
        print_message(f"{len(found.batches):,} IMEIs are used by ten modules or more, perhaps of one batch; --batches lists them")  # fmt: skip
    if found.malformed:
        checks, first_origin = sum(each[1] for each in found.malformed), found.malformed[0][0] or "an unnamed origin"
        print_message(f"malformed_imei: {checks:,} checks had a malformed identifier, most of them from {first_origin}")


def export(
    kind: Annotated[str, typer.Option("--rows", metavar="tracked|pairs|devices", help="tracked: IMEIs to watch; pairs: confirmed IMEIs with each SIM but the owner's, to block; devices: confirmed IMEIs, to block.")] = "tracked",
    since: Since = SINCE, until: Until = "", min_score: MinScore = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write; standard output if not given.")] = None,
    record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Export findings as rows that `eir publish` signs.

    `tracked` are IMEIs for a list that answers greylisted: devices with a score of tamper.export_min or more, and
    devices that an operator confirmed. SIM boxes are tracked only if an operator confirmed them. `pairs` are for a list
    of kind pairs that blocks: the IMEI of a device whose owner `eir tamper confirm --owner` named, and each other IMSI
    on record. They need `sightings.subscribers: full`. `devices` are confirmed IMEIs for a list that blocks the IMEI
    with every SIM, including the owner's. Devices that an operator cleared, and devices with a test TAC, are never
    exported. Exit status 1 if there is nothing to write.
    """
    if kind not in ROWS:
        raise fail(f"--rows {kind}: expected {', '.join(ROWS)}", EXIT_USAGE)
    checked = opened(load_config(config))
    least = checked.tamper.export_min if min_score is None else min_score
    begin, end = _window(since, until)
    confirmed = {device: case for device, case in load_cases(checked.state).items() if case["verdict"] == CONFIRMED}
    with judging(checked, begin, end, record, on_spark, work, min_score=least) as (engine, found):
        owners = {device: case["owners"] for device, case in confirmed.items() if "owners" in case}
        sims = other_sims(engine, owners) if kind == "pairs" else None
    chosen = {each.device: each.conditions[0] for each in found.findings if each.conditions and (each.confirmed or "sim_box" not in each.conditions)}  # fmt: skip
    # A decision counts, whether the device was seen in the period or not.
    chosen |= dict.fromkeys(sorted(confirmed.keys() - chosen.keys()), CONFIRMED)
    if kind != "tracked":
        chosen = {device: why for device, why in chosen.items() if device in confirmed}
    tests = {device for device in chosen if KEY_TESTS["test"](device)}
    if tests:
        print_message(f"{len(tests):,} devices with a TAC for tests are left out")
    # A list has at most 255 reasons, so a reason must not include values of a device.
    day, rows = f"{end:%Y%m%d}", list[tuple[str, ...]]()
    for device, why in chosen.items():
        if device not in tests:
            others = [()] if sims is None else [(imsi,) for imsi in sims.get(device, ())]
            rows += [(key_text(device), *imsi, f"tampered: {why}", day) for imsi in others]
    if not rows and kind == "pairs":
        raise fail("there is no pair, and no file was written: eir tamper confirm IMEI --owner IMSI names the owner of a device, and the record needs IMSIs (sightings.subscribers: full)")  # fmt: skip
    if not rows:
        raise fail("there is no such device, and no file was written; --rows devices has only confirmed devices")
    with written_to(out, private=True) as stream:
        columns = ("imei", "imsi", "reason", "date") if kind == "pairs" else ("imei", "reason", "date")
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    written = len({imei for imei, *_ in rows})
    command = f"eir publish --list L --serial N --expires 30d --key KEY {quote(str(out or 'FILE'))}"
    print_message(f"{written:,} devices are written; to sign them: {command}")


def show_one_device(
    identifier: Annotated[str, typer.Argument(metavar="IMEI", help="The device.")],
    since: Since = SINCE, until: Until = "", record: Record = None, on_spark: OnSpark = None, work: Work = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the evidence of a finding about one device.

    The sheet has the result of each condition, with times, SIMs, places and software versions, and the decisions of
    operators. Exit status 1 if the device is not on record in this period.
    """
    device = _device(identifier)
    checked = opened(load_config(config))
    begin, end = _window(since, until)
    with judging(checked, begin, end, record, on_spark, work, min_score=0) as (engine, found):
        evidence = sheet(engine, found, device, load_decisions(checked.state))
    if not evidence["subscribers"]:
        raise fail(f"{identifier} is not on record from {begin:%Y-%m-%d} to {end:%Y-%m-%d}")
    if as_json:
        print_json(evidence)
        return
    finding = evidence["finding"]
    result = "there is no evidence against it, or it was cleared"
    if finding:
        result = "confirmed" if finding["confirmed"] else f"score {finding['score']:.3f}, rank {evidence['rank']:,}"
    print_text(f"{evidence['imei']}: {result}")
    for rows in filter(None, (evidence[name] for name in ("says", "subscribers", "two_places", "checks"))):
        show(rows, tuple(rows[0]), as_json=False)
    for each in evidence["decisions"]:
        print_text(f"{each['time']} {each['verdict']} by {each['who']}: {each['reason']}")


def confirm(
    identifier: Identifier, reason: Reason,
    owner: Annotated[list[str] | None, typer.Option("--owner", metavar="IMSI", help="IMSI of the genuine device's owner; once for each SIM of the owner.")] = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Record the decision that a device is tampered with.

    From then on the device is reported and exported. With --owner, `eir tamper export --rows pairs` has a row for each
    other SIM of the device. A later decision replaces the owner's SIMs. The decision is recorded in the history,
    without IMSIs.
    """
    for imsi in owner or ():
        if not is_imsi(imsi):
            raise fail(f"--owner {imsi}: expected an IMSI of 14 or 15 digits", EXIT_USAGE)
    _decide(identifier, CONFIRMED, reason, config, as_json=as_json, owners=owner or ())


def clear(identifier: Identifier, reason: Reason, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Record the decision that a device is not tampered with.

    From then on the device is neither reported nor exported. The decision is recorded in the history.
    """
    _decide(identifier, CLEARED, reason, config, as_json=as_json)


def forget(identifier: Identifier, reason: Reason, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Withdraw the decision that a device is tampered with, or that it is not.

    From then on the device is judged as if there were no decision. Exit status 1 if there is no decision. The decision
    and the withdrawal stay in the history.
    """
    if _device(identifier) not in load_cases(opened(load_config(config)).state):
        raise fail(f"{identifier} has no decision to withdraw")
    _decide(identifier, FORGOTTEN, reason, config, as_json=as_json)


def _decide(identifier: str, verdict: str, reason: str, config: Path, *, as_json: bool, owners: Sequence[str] = ()) -> None:  # fmt: skip
    checked = opened(load_config(config))
    imei = key_text(_device(identifier))
    time, user = utc_text(datetime.now(UTC)), who()
    decision = {"time": time, "who": user, "imei": imei, "verdict": verdict, "reason": reason}
    stored = {**decision, "owners": sorted(owners)} if owners else decision
    event = JournalEvent(time=time, who=user, what=verdict, detail=f"{imei}: {reason}")
    if not checked.state.is_dir():
        raise EirError(f"the state folder {checked.state} (`state` in {checked.path}) does not exist; eir serve or eir load creates it")  # fmt: skip
    record_event(checked, event)
    with acting_in(checked.state):
        add_decision(checked.state, stored)
    show_one(decision, f"{imei} is {verdict}", as_json=as_json)


def _device(identifier: str) -> int:
    try:
        return device_key(identifier)
    except IdentifierError as e:
        raise fail(f"{identifier}: {e}", EXIT_USAGE) from None


@contextmanager
def judging(
    config: Config, begin: datetime, end: datetime, record: str | None = None, on_spark: str | None = None, work: str | None = None, *, min_score: float | None = None,
) -> Iterator[tuple[Engine, Judgement]]:  # fmt: skip
    """Analyse the record of a period by DuckDB or Spark, and yield the engine and its findings. `record`: pattern of files instead of the node's own."""
    if (on_spark is None) != (work is None):
        raise fail("--spark and --work go together", EXIT_USAGE)
    files = record or _recorded_files(config, begin, end)
    probes = [peer.label for peer in config.peers if peer.is_probe]
    settings = config.tamper if min_score is None else replace(config.tamper, report_min=min_score)
    cases = {device: case["verdict"] == CONFIRMED for device, case in load_cases(config.state).items()}
    opening: AbstractContextManager[Engine]
    if on_spark is not None and work is not None:
        opening = spark(files, since=begin, until=end, master=on_spark, work=work, without=probes)
    else:
        opening = duck(files, since=begin, until=end, memory=settings.memory, without=probes)
    with progress() as advance, opening as engine:
        shown = advance or (lambda *_: None)
        tacs = allocated_tacs(config)
        yield engine, judge(engine, settings, since=begin, until=end, tacs=tacs, cases=cases, warn=print_warning, progress=shown)  # fmt: skip


def _recorded_files(config: Config, begin: datetime, end: datetime) -> list[str]:
    """Return the files of this node's record of a period, after its buffered checks are written."""
    write_down(config)
    days = [(begin + timedelta(days=number)).date() for number in range(-1, (end - begin).days + 3)]
    files = [str(path) for day in days for path in sorted((config.state / FOLDER).glob(f"{day}/*.parquet"))]
    if not files:
        raise EirError(f"no sightings from {begin:%Y-%m-%d} to {end:%Y-%m-%d} in {config.state}; a node records checks if the configuration has the section `sightings`; --until selects an earlier time")  # fmt: skip
    return files


def allocated_tacs(config: Config) -> Iterator[Tac]:
    """Yield the TACs of all lists of kind device_types in the store. Raises StoreError."""
    now = int(datetime.now(UTC).timestamp())

    async def read(name: str, store: LogStore) -> LoggedList | None:
        return await ListReader(store).content(name)

    for name in [name for name, settings in config.lists.items() if settings.kind == TYPES]:
        content = with_store(config, partial(read, name), fresh=False, reads=True)
        if content is None:
            print_message(f"warning: list {name} was never loaded, so its TACs are unknown")
            continue
        for entry in entries_in(not_ended(content.table.rows(), now)):
            allocated = datetime.fromtimestamp(entry.date, UTC).date() if entry.date else None
            yield Tac(entry.key // SNR_KEYS, allocated, reason_at(content.head.reasons, entry.reason))


def _window(since: str, until: str) -> tuple[datetime, datetime]:
    """Return start and end of the period of `--since` and `--until`, in UTC without a time zone."""
    lasts = duration(since, "--since", most=SINCE_MAX)
    end = (moment(until, "--until") or datetime.now(UTC) + timedelta(seconds=1)).replace(tzinfo=None)
    return end - lasts, end
