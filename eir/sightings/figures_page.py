"""Page with the figures of a month: one HTML file with bar charts and tables, without scripts or external resources.

Each bar has its name and its number as text, so the charts can be read without colour, on paper and by a screen reader. The template is
`pages/figures.html`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from eir.sightings.figures import ATTEMPTS, BELOW, DEVICES, FEW, FIGURES, WITHHELD, Document, Figure, present_figures

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
BAR_PX, GAP_PX, LABEL_PX, WIDTH_PX = 18, 8, 330, 720
NAME_MAX = 48
"""Maximum number of characters of a name beside a bar."""


class NamedBar(NamedTuple):
    """Bar of a chart, which is also a row of the table of attempts."""

    name: str
    short: str
    """Name, shortened to the space beside the bar."""
    devices: str
    """Devices as a text; of a hidden count the text in its place."""
    width: float
    """Width in pixels; 0 for a hidden count."""
    attempts: str = ""


class BarChart(NamedTuple):
    """Bar chart of one dimension of a figure."""

    title: str
    label: str
    """Text alternative."""
    bars: Sequence[NamedBar]
    has_attempts: bool


def figures_page(document: Document) -> str:
    """Render the page of a document (eir.sightings.figures.document or merge)."""
    from eir.templates import page_templates  # noqa: PLC0415 - 0.1 s, only for this page

    figures = present_figures(document)
    totals = [
        {"devices": count_text(part[DEVICES]), "title": FIGURES[name].title, "attempts": count_text(part.get(ATTEMPTS, ""))}
        for name, part in figures.items()
    ]  # fmt: skip
    missing = [f"{figure.title}{_covered(document, name)}" for name, figure in FIGURES.items() if name not in figures]
    scope = f"{document['month']} (UTC)"
    if document["operators"] > 1:
        scope += f", {document['operators']:,} operators together: a device that two of them count is counted twice"
    return page_templates(__file__).get_template("pages/figures.html").render(
        title=f"Blocked devices, {document['month']}", scope=scope, totals=totals, missing="; ".join(missing), notes=NOTES,
        figures=[list(_charts(FIGURES[name], part)) for name, part in figures.items()], width_px=WIDTH_PX, label_px=LABEL_PX, bar_px=BAR_PX,
        row_px=BAR_PX + GAP_PX,
    )  # fmt: skip


def _covered(document: Document, name: str) -> str:
    days = document["covered"].get(name)
    return f" (only {days[0]} to {days[1]} are covered)" if days else ""


def _charts(figure: Figure, part: Document) -> Iterator[BarChart]:
    """Yield one bar chart for each dimension of a figure that has rows."""
    for dimension, rows in part["by"].items():
        if rows:
            yield _chart(f"{figure.title} {TITLES[dimension]}", rows, has_attempts=ATTEMPTS in part)


def _chart(title: str, rows: Sequence[Document], *, has_attempts: bool) -> BarChart:
    numbers = [row[DEVICES] if isinstance(row[DEVICES], int) else 0 for row in rows]
    most = max(numbers, default=0) or 1
    bars = [
        NamedBar(
            row["name"], row["name"] if len(row["name"]) <= NAME_MAX else f"{row['name'][: NAME_MAX - 1]}…", count_text(row[DEVICES]),
            number / most * (WIDTH_PX - LABEL_PX - 90), count_text(row[ATTEMPTS]) if has_attempts else "",
        )
        for row, number in zip(rows, numbers, strict=True)
    ]  # fmt: skip
    label = f"{title}: {'; '.join(f'{bar.name}: {bar.devices}' for bar in bars)}"
    return BarChart(title, label, bars, has_attempts)


def count_text(count: int | str) -> str:
    """Format a count of devices for a page. If the count is hidden, `count` is already a text, and is returned unchanged."""
    return count if isinstance(count, str) else f"{count:,}"
