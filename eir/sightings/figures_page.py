"""Page with the figures of a month: one HTML file with bar charts and tables, without scripts or external resources.

Each bar has its name and its number as text, so the charts can be read without colour, on paper and by a screen reader.
"""

from collections.abc import Sequence
from html import escape

from eir.sightings.figures import ATTEMPTS, BELOW, DEVICES, FEW, FIGURES, WITHHELD, Document, Figure, present_figures
from eir.sightings.page import bars, count_text, html_page, section

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


def figures_page(document: Document) -> str:
    """Render the page of a document (eir.sightings.figures.document or merge)."""
    figures = present_figures(document)
    totals = "".join(_total(FIGURES[name].title, part) for name, part in figures.items())
    missing = [f"{figure.title}{_covered(document, name)}" for name, figure in FIGURES.items() if name not in figures]
    absent = f"<p>No data: {escape('; '.join(missing))}.</p>" if missing else ""
    parts = "".join(_charts(FIGURES[name], part) for name, part in figures.items())
    notes = "".join(f"<p class=soft>{escape(note)}</p>" for note in NOTES)
    scope = f"{document['month']} (UTC)"
    if document["operators"] > 1:
        scope += f", {document['operators']:,} operators together: a device that two of them count is counted twice"
    body = f"<div class=figures>{totals}</div>{absent}{parts}{notes}"
    return html_page(f"Blocked devices, {document['month']}", scope, body)


def _covered(document: Document, name: str) -> str:
    days = document["covered"].get(name)
    return f" (only {days[0]} to {days[1]} are covered)" if days else ""


def _total(title: str, part: Document) -> str:
    attempts = f", in {count_text(part[ATTEMPTS])} attempts" if ATTEMPTS in part else ""
    return f"<div><b>{count_text(part[DEVICES])}</b>{escape(title)}{attempts}</div>"


def _charts(figure: Figure, part: Document) -> str:
    """Render one bar chart for each dimension of a figure that has rows. If the figure counts attempts, render also one table per chart."""
    charts, tables = "", ""
    for dimension, rows in part["by"].items():
        if rows:
            title = f"{figure.title} {TITLES[dimension]}"
            charts += bars(title, "devices", {row["name"]: row[DEVICES] for row in rows})
            if ATTEMPTS in part:
                tables += section(f"{title}, with attempts", _table(rows))
    return f"<div class=charts>{charts}</div>{tables}"


def _table(rows: Sequence[Document]) -> str:
    body = "".join(map(_row, rows))
    return f"<table><tr><th>Name<th class=n>Devices<th class=n>Attempts{body}</table>"


def _row(row: Document) -> str:
    return f"<tr><td>{escape(row['name'])}<td class=n>{count_text(row[DEVICES])}<td class=n>{count_text(row[ATTEMPTS])}"
