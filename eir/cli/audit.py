"""Command that compares an EIR's answers with a list: by probes or by the record of checks."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from eir.checks.settings import Status
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, opened
from eir.cli.asking import TIMEOUT_S, Imsi, Timeout, probe_of
from eir.cli.output import EXIT_NO, EXIT_UNDECIDED, EXIT_USAGE, duration, fail, print_message, progress, show_one
from eir.cli.sightings import recorded
from eir.config import Config, load_to_ask
from eir.lists.changes.audit import (
    AT_LEAST,
    CONFIDENCE,
    SAMPLE_MAX,
    AuditReport,
    Check,
    ReleaseEntries,
    judge,
    load_entries,
    sample_size,
)
from eir.lists.changes.audit import audit as ask_about
from eir.lists.sources.acknowledgement import ENDS, acknowledged_entries

RATE = 100.0
NAMED_MAX = 10
"""Maximum number of exceptions in the text output; `--json` has all."""


def audit(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="LIST-SERIAL.manifest.json of the release that the EIR should have in force; or NODE.LIST.ack in a publisher's folder: what the node says it has.")],
    target: Annotated[str | None, typer.Argument(metavar="[URL]", help="The EIR to ask, as for eir probe.", show_default=False)] = None,
    sample: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of devices to ask about. If not given: as many as --at-least needs if all answers are right, and more until it is decided.", show_default=False)] = None,
    sample_max: Annotated[int | None, typer.Option(metavar="N", min=1, help=f"Largest number of devices to ask about until --at-least is decided. If not given: --sample, or else {SAMPLE_MAX}.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Ask about every entry.")] = False,
    rate: Annotated[float, typer.Option(metavar="N", min=0.001, help="Questions a second; each device takes three.")] = RATE,
    at_least: Annotated[str | None, typer.Option(metavar="SHARE", help="Share to be answered as listed, such as 0.999 or 99.9%. Exit status 0 if the interval is at or above it, 1 if the interval is below it, 3 (undecided) if the interval holds it.", show_default=False)] = None,
    confidence: Annotated[str, typer.Option(metavar="SHARE", help="Probability with which the interval holds the true share at every look, such as 95%.")] = f"{CONFIDENCE:.0%}",
    wanted: Annotated[Status | None, typer.Option(metavar="STATUS", help="What a listed device is to be answered; what the policy has for the list if not given, else blacklisted.", show_default=False)] = None,
    sightings: Annotated[bool, typer.Option("--sightings", help="Ask nobody: look at what this node has on record since the release was issued; a running one writes first what it has just seen.")] = False,
    since: Annotated[str | None, typer.Option(metavar="7d", help="With --sightings: how far back to look instead.", show_default=False)] = None,
    mme: Annotated[list[str] | None, typer.Option(metavar="HOST", help="With --sightings: an MME that ought to ask, besides the peers that the configuration names; may be given several times.", show_default=False)] = None,
    imsi: Imsi = None,
    timeout: Timeout = TIMEOUT_S,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Measure how many listed devices an EIR answers correctly.

    The command verifies the release, draws a random sample of its devices, and checks each in 14, 15 and 16 digits. A
    device counts as answered as listed if all three answers agree with the list. With --sightings no check is sent. Then
    the checks of listed devices that others sent count, by origin, and known MMEs without a check are reported. The configuration defines who may sign the list.

    The interval contains the true share with the given confidence, at every size of a growing sample. So --at-least
    checks more devices until the interval lies on one side of the share. With --sightings the share is
    evaluated once, and the interval counts each listed device once. Exit status 3 if too few devices were seen for a
    decision.
    """
    if (target is not None) == sightings:
        raise fail("either URL or --sightings is needed", EXIT_USAGE)
    floor = _share("--at-least", at_least)
    sure = _share("--confidence", confidence) or CONFIDENCE
    if not 0 < sure < 1:
        raise fail("--confidence: expected a share between 0 and 1, such as 95%", EXIT_USAGE)
    is_growing = target is not None and floor is not None and not everything
    if sample_max is not None and (not is_growing or sample_max < (sample or 0)):
        text = "--sample-max goes with URL and --at-least, not with --all, and is no smaller than --sample"
        raise fail(text, EXIT_USAGE)
    back = duration(since, "--since") if since else None
    checked, now = load_to_ask(config), datetime.now(UTC)
    asker = None if target is None else probe_of(target, timeout, checked.shown).asking(imsi=imsi)
    with progress() as advance:
        shown = advance or (lambda *_: None)
        if release.name.endswith(ENDS):
            listed = acknowledged_entries(release, checked.lists, now=now)
        else:
            listed = load_entries(release, checked.lists, now=now, memory_max=checked.load_memory, progress=shown)
        answer = str(wanted or _answer(checked, listed.manifest.list))
        if asker is not None:
            first, most = _sizes(len(listed), sample, sample_max, floor, sure, everything=everything)
            at_least_share = None if everything else floor
            asking = partial(
                ask_about,
                wanted=answer,
                rate=rate,
                confidence=sure,
                first=first,
                at_least=at_least_share,
                progress=shown,
            )
            report = asyncio.run(_ask(asker, listed, most, asking))
        else:
            checks = _recorded_checks(opened(checked), now - back if back else listed.manifest.issued)
            known = {peer.host for peer in checked.peers if peer.host and not peer.is_probe}
            known.update(mme or ())
            report = judge(listed, checks, wanted=answer, known=known, confidence=sure)
    _print_report(report, floor, as_json=as_json)


def _share(option: str, text: str | None) -> float | None:
    """Parse a share written as 0.999 or 99.9%."""
    if text is None:
        return None
    divisor = 100 if text.endswith("%") else 1
    try:
        number = Decimal(text.removesuffix("%"))  # a float would make 99.9% less than 999 of 1,000
        share = float(number / divisor)
    except ArithmeticError:
        share = math.nan
    if not 0 <= share <= 1:
        raise fail(f"{option} {text}: expected a share such as 0.999 or 99.9%", EXIT_USAGE)
    return share


def _sizes(
    entries: int,
    sample: int | None,
    sample_max: int | None,
    floor: float | None,
    confidence: float,
    *,
    everything: bool,
) -> tuple[int, int]:
    """Return the initial and the maximum number of devices in the sample."""
    if everything:
        return entries, entries
    share = AT_LEAST if floor is None else floor
    first = sample or sample_size(share, confidence, of=entries)
    if sample_max:
        return first, sample_max
    if sample or floor is None:
        return first, first
    return first, max(first, SAMPLE_MAX)


async def _ask(
    asker: AbstractAsyncContextManager[Callable[[str], Awaitable[str]]],
    listed: ReleaseEntries,
    size: int,
    about: Callable[..., Awaitable[AuditReport]],
) -> AuditReport:
    keys = listed.sample(size)
    async with asker as ask:
        return await about(listed, keys, ask)


def _recorded_checks(config: Config, since: datetime) -> list[Check]:
    from eir.sightings.seen import sum_checks  # noqa: PLC0415 - for --sightings alone

    return [Check(*row) for row in sum_checks(recorded(config).state, since)]


def _answer(config: Config, name: str) -> Status:
    """Return the answer of the first policy rule with this list; `blacklisted` if no rule has the list."""
    return next((rule.answer for rule in config.policy.rules if rule.list == name), Status.BLACKLISTED)


def _print_report(report: AuditReport, floor: float | None, *, as_json: bool) -> None:
    show_one(report.as_json(), _text(report), as_json=as_json)
    if report.fault:
        print_message(f"eir: {report.fault}")
    if report.share is None:
        print_message("eir: nothing was asked about any device of the list")
    if report.fault or (floor is None and report.share is None):
        raise typer.Exit(EXIT_NO)
    if floor is None:
        return
    low, high = report.interval
    verdict = report.verdict(floor)
    if verdict is None:
        more = "a larger --sample-max" if report.origins is None else "a longer record"
        share = f"between {low:.4%} and {high:.4%} are answered as listed"
        raise fail(f"undecided: {share}, {floor:.4%} is wanted; {more} decides", EXIT_UNDECIDED)
    if not verdict:
        raise fail(f"at most {high:.4%} are answered as listed, less than {floor:.4%}")


def _text(report: AuditReport) -> str:
    low, high = report.interval
    subject = "devices"
    if report.origins is not None:
        subject = f"checks of listed devices (different ones: {len(report.devices):,})"
    share = ""
    if report.share is not None:
        share = f": {report.share:.4%}, from {low:.4%} to {high:.4%} at {report.confidence:.0%} confidence"
    release = f"{report.list} {report.serial}, {report.entries:,} entries"
    lines = [f"{release}: {report.as_listed:,} of {report.asked:,} {subject} answered as listed{share}"]
    lines += [f"  {each.imei}: {each.got} instead of {each.wanted}" for each in report.exceptions[:NAMED_MAX]]
    more = len(report.exceptions) - NAMED_MAX
    if more > 0:
        lines.append(f"  {more:,} more; --json has all")
    for name, origin in (report.origins or {}).items():
        result = f"{origin.as_listed:,} of {origin.asked:,}" if origin.asked else "asked about no listed device"
        lines.append(f"{name or 'an unnamed origin'}: {result}")
    lines += [f"{name}: never asked" for name in report.never_asked]
    return "\n".join(lines)
