"""Page with the figures of a month: one file with bar charts and tables, without scripts or external resources.

Each bar has its name and its number as text, so the charts can be read without colour, on paper and by a screen reader.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eir.sightings.figures import ATTEMPTS, BELOW, DEVICES, FEW, FIGURES, WITHHELD, Figure
from eir.sightings.page import bars, html_page, section

TITLES = {
    "list": "by list",
    "reason": "by reason",
    "maker": "by maker or model (TAC)",
    "peer": "by peer",
    "condition": "by evidence",
}
NOTES = (
    f"Counts below {BELOW} devices are not given ({FEW}). Further counts are {WITHHELD} if a count below {BELOW} could be computed from them.",
    "All numbers are rounded to tens, so rows may not add up to a total.",
    "A whole TAC on a list counts as 1,000,000 devices. A device on two lists counts once in a total, and in the row of each list.",
)


def figures_page(document: Mapping[str, Any]) -> str:
    """Render the page of a document (eir.sightings.figures.document or merge)."""
    figures = {name: part for name in FIGURES if (part := document["figures"].get(name)) is not None}
    totals = "".join(
        f"<div><b>{_text(part[DEVICES])}</b>{escape(FIGURES[name].title)}{_attempts(part)}</div>"
        for name, part in figures.items()
    )
    missing = [FIGURES[name].title for name in FIGURES if name not in figures]
    absent = f"<p>No data: {escape('; '.join(missing))}.</p>" if missing else ""
    parts = "".join(_figure(FIGURES[name], part) for name, part in figures.items())
    notes = "".join(f"<p class=soft>{escape(note)}</p>" for note in NOTES)
    operators = document["operators"]
    scope = (
        f", {operators:,} operators together: a device that two of them count is counted twice" if operators > 1 else ""
    )
    return html_page(
        f"Blocked devices, {document['month']}",
        f"{document['month']} (UTC){scope}",
        f"<div class=figures>{totals}</div>{absent}{parts}{notes}",
    )


def _figure(figure: Figure, part: Mapping[str, Any]) -> str:
    """Render a chart and a table for each dimension of a figure that has rows."""
    charts, tables = "", ""
    for dimension in figure.dimensions:
        if rows := part["by"][dimension]:
            title = f"{figure.title} {TITLES[dimension]}"
            charts += bars(title, "devices", {row["name"]: row[DEVICES] for row in rows})
            if figure.has_attempts:
                tables += section(f"{title}, with attempts", _table(rows))
    return f"<div class=charts>{charts}</div>{tables}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{escape(row['name'])}<td class=n>{_text(row[DEVICES])}<td class=n>{_text(row[ATTEMPTS])}"
        for row in rows
    )
    return f"<table><tr><th>Name<th class=n>Devices<th class=n>Attempts{body}</table>"


def _attempts(part: Mapping[str, Any]) -> str:
    return f", in {_text(part[ATTEMPTS])} attempts" if ATTEMPTS in part else ""


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
