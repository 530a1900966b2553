"""A list of TACs, as registers hand it out. Imports nothing of ours."""

import re
from datetime import date, datetime
from pathlib import Path


def read_tacs(path: Path) -> list[tuple[int, date | None, int]]:
    """A list of TACs (pipe separated, with a header): TAC, when it was allocated, whether it has bands of 5G. Raises OSError, ValueError."""
    found = []
    with path.open(encoding="utf-8", errors="replace") as stream:
        names = [name.strip().lower() for name in stream.readline().rstrip("\r\n").split("|")]
        if "tac" not in names:
            raise ValueError(f"{path}: expected a header with TAC|Manufacturer|Model_Name|Bands|Allocation_Date|Device_Type, a bar between two columns")
        at = {name: number for number, name in enumerate(names)}
        for line in stream:
            fields = line.rstrip("\r\n").split("|")
            tac = fields[at["tac"]].strip()
            if re.fullmatch(r"[0-9]{8}", tac):
                bands = fields[at["bands"]] if "bands" in at and len(fields) > at["bands"] else "NR"
                found.append((int(tac), _day(fields[at["allocation_date"]]) if "allocation_date" in at and len(fields) > at["allocation_date"] else None, int(bool(re.search(r"\bn[0-9]+\b|NR|5G", bands)))))
    return found


def _day(text: str) -> date | None:
    for form in ("%d-%b-%Y", "%Y-%m-%d", "%Y%m%d"):
        try:
            return datetime.strptime(text.strip(), form).date()  # noqa: DTZ007 - a day has no zone
        except ValueError:
            continue
    return None
