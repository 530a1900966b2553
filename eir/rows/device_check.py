"""Answers of GSMA Device Check as rows: of the actions that an answer tells of a device, the last one counts.

A file has an answer a line, a JSON object as the service gave it: `deviceid`, `responsestatus`, `blockliststatus`, and in `imeihistory` what
networks did, each with `action`, `date`, `reasoncode` and `reasoncodedesc`. Knows neither files nor lists.
"""

import csv
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

INSERT, REMOVE = "insert", "remove"
"""Codes of the rows: the device is blocked, or is no longer."""
_LISTS = {"block": True, "blacklist": True, "general": False, "greylist": False}
"""First word of an action: whether it is about the list of blocked devices. `Blacklist` is the word of older versions."""
_STATES = {"Yes": INSERT, "No": REMOVE}
_BAD_ROW = ("", "", "", "0")


def looks_like_answer(line: bytes) -> bool:
    """True if a file that begins with this line is one of answers."""
    return line.startswith(b"{") and b'"deviceid"' in line and b'"responsestatus"' in line


def rows_of(lines: bytes) -> bytes:
    """A row `device,code,reason,Unix seconds` for each line that is not blank.

    Without a device if the line is not a usable answer.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for line in lines.split(b"\n")[:-1]:
        if line.strip():
            writer.writerow(_row(line))
        else:
            out.write("\n")
    return out.getvalue().encode("utf-8", "replace")


def _row(line: bytes) -> tuple[str, ...]:
    try:
        answer = json.loads(line.decode("utf-8", "replace"))
        if (
            not isinstance(answer, dict)
            or answer.get("responsestatus") != "success"
            or not isinstance(answer.get("deviceid"), str)
        ):
            return _BAD_ROW
        return (_one_line(answer["deviceid"]), *_last(answer))
    except (ValueError, RecursionError):
        return _BAD_ROW


def _last(answer: Mapping[str, Any]) -> tuple[str, str, str]:
    """Code, reason and time of the answer that counts. Raises ValueError."""
    found, history = [], answer.get("imeihistory") or []
    if not isinstance(history, list):
        raise ValueError("no list of actions")  # noqa: TRY004 - as for what else is wrong in an answer
    for at, action in enumerate(history):
        which, _, what = str(action.get("action") if isinstance(action, dict) else "").lower().rpartition(" ")
        if what not in {INSERT, REMOVE} or which not in _LISTS:
            raise ValueError("an action that is not known")
        if _LISTS[which]:
            found.append(
                (_seconds(action.get("date")), at, what, action.get("reasoncodedesc") or action.get("reasoncode") or "")
            )
    if not found:  # a device of which nothing was ever told, or only what its status says
        return _STATES.get(str(answer.get("blockliststatus", answer.get("blackliststatus"))), ""), "", "0"
    seconds, _, what, reason = max(found)
    return what, _one_line(str(reason)), str(seconds)


def _seconds(date: Any) -> int:
    """Unix seconds of `2014-08-02 12:05:24.0`; the service does not say in which zone, so it is the same for all."""
    moment = datetime.fromisoformat(str(date).strip())
    return max(1, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


def _one_line(text: str) -> str:
    return " ".join(text.split())
