"""Findings as the rows of a list: in layouts that `eir publish` signs and a register takes in. May import eir.device and eir.errors."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from eir.analysis.cases import CONFIRMED
from eir.analysis.judge import Finding

EXPORTS = ("eir", "dirbs-notifications")
REASON_CHARS_MAX = 60
IMSI_DIGITS = range(14, 16)


def rows(
    findings: Iterable[Finding], layout: str, made: datetime, confirmed: Iterable[str] = ()
) -> Iterator[Sequence[str]]:
    """The header, and a row for each device; in `dirbs-notifications` one for each copy that came back, where its IMSI is known.

    `confirmed`: further devices, of which an operator's word is all there is. A reason is the condition that speaks loudest: lists hold 255 texts, and a device's own numbers would be as many as devices.
    """
    day = f"{made:%Y%m%d}"
    if layout == "eir":
        yield "imei", "reason", "date"
    else:
        yield "imei", "imsi", "msisdn", "block_date", "reasons"
    for finding in findings:
        reason = f"tampered: {(*finding.conditions, CONFIRMED)[0]}"[:REASON_CHARS_MAX]
        if layout == "eir":
            yield finding.imei, reason, day
        else:
            copies = [imsi for imsi in finding.users if imsi.isdigit() and len(imsi) in IMSI_DIGITS]
            for imsi in copies or [""]:
                yield finding.imei, imsi, "", day, reason
    for imei in confirmed:
        reason = f"tampered: {CONFIRMED}"
        yield (imei, reason, day) if layout == "eir" else (imei, "", "", day, reason)
