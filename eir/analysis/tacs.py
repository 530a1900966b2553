"""A list of TACs, as registers hand it out. Imports nothing of ours."""

import re
from datetime import date, datetime
from pathlib import Path

MODULES = re.compile(r"module|iot|m2m|modem|vehicle|router|dongle", re.IGNORECASE)
"""Device types of which whole batches were given one IMEI, as registers have found."""


def read_tacs(path: Path) -> list[tuple[int, date | None, int]]:
    """A list of TACs (pipe separated, with a header): TAC, when it was allocated, whether it is a module's (1) by its device type. Raises OSError, ValueError."""
    found = []
    with path.open(encoding="utf-8", errors="replace") as stream:
        names = [name.strip().lower() for name in stream.readline().rstrip("\r\n").split("|")]
        if "tac" not in names:
            raise ValueError(
                f"{path}: expected a header with TAC|Manufacturer|Model_Name|Bands|Allocation_Date|Device_Type, a bar between two columns"
            )
        at = {name: place for place, name in enumerate(names)}
        for number, line in enumerate(stream, 2):
            fields = line.rstrip("\r\n").split("|")
            if len(fields) <= at["tac"]:
                if line.strip():
                    raise ValueError(f"{path}:{number}: expected the {len(names)} columns of the header")
                continue
            tac = fields[at["tac"]].strip()
            if re.fullmatch(r"[0-9]{8}", tac):
                of = {name: fields[place].strip() for name, place in at.items() if place < len(fields)}
                found.append(
                    (
                        int(tac),
                        _day(of.get("allocation_date", "")),
                        int(bool(MODULES.search(of.get("device_type", "")))),
                    )
                )
    return found


def _day(text: str) -> date | None:
    for form in ("%d-%b-%Y", "%Y-%m-%d", "%Y%m%d"):
        try:
            return datetime.strptime(text.strip(), form).date()  # noqa: DTZ007 - a day has no zone
        except ValueError:
            continue
    return None
