"""Page with the figures of a month: one HTML file with bar charts and tables, without scripts or external resources.

Each bar has its name and its number as text, so the charts can be read without colour, on paper and by a screen reader.
"""

from collections.abc import Mapping, Sequence
from html import escape

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

STYLE = """
:root{color-scheme:light dark;--page:#fbfbf9;--card:#fff;--ink:#1c1e21;--soft:#5b6168;--line:#dcdfe3;--bar:#2563a8}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--card:#1e2125;--ink:#e8eaed;--soft:#a3abb4;--line:#363b42;--bar:#6ea8e6}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}
h2{font-size:17px;margin:0 0 12px}
p{margin:0 0 12px;max-width:75ch}
.soft,figcaption,th{color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.figures div,section,figure{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px;margin:0}
.figures b{display:block;font-size:24px;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:16px;margin:16px 0}
section{margin:16px 0;overflow-x:auto}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .soft{fill:var(--soft)}
svg .bar{fill:var(--bar)}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#000;--line:#777;--bar:#777}figure,tr{break-inside:avoid}svg .bar{stroke:#000}}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;font-weight:600;white-space:nowrap}
th,td{padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
"""


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


def section(title: str, content: str) -> str:
    """Render a section of a page. A table that is wider than the screen can be scrolled with keys."""
    return f'<section tabindex=0 aria-label="{escape(title)}"><h2>{escape(title)}</h2>{content}</section>'


def bars(title: str, caption: str, counts: Mapping[str, int | str]) -> str:
    """Render a bar chart as SVG with a text alternative. A hidden count, which is replaced by a text, has no bar."""
    numbers = {label: count if isinstance(count, int) else 0 for label, count in counts.items()}
    most = max(numbers.values(), default=0) or 1
    texts = {label: count_text(count) for label, count in counts.items()}
    drawn = []
    for number, (label, count) in enumerate(numbers.items()):
        top = number * (BAR_PX + GAP_PX)
        wide = count / most * (WIDTH_PX - LABEL_PX - 90)
        drawn.append(
            f'<text x="{LABEL_PX - 8}" y="{top + 14}" text-anchor="end">{escape(label if len(label) <= 48 else f"{label[:47]}…")}<title>{escape(label)}</title></text>'
            f'<rect class="bar" x="{LABEL_PX}" y="{top}" width="{wide:.1f}" height="{BAR_PX}" rx="2"/>'
            f'<text class="soft" x="{LABEL_PX + wide + 6:.1f}" y="{top + 14}">{escape(texts[label])}</text>'
        )
    high = max(len(counts), 1) * (BAR_PX + GAP_PX)
    read = "; ".join(f"{label}: {count}" for label, count in texts.items()) or "nothing"
    return f'<figure><h2>{escape(title)}</h2><svg viewBox="0 0 {WIDTH_PX} {high}" role="img" aria-label="{escape(f"{title}: {read}")}">{"".join(drawn)}</svg><figcaption>{escape(caption)}</figcaption></figure>'


def count_text(count: int | str) -> str:
    """Format a count of devices for a page. If the count is hidden, `count` is already a text, and is returned unchanged."""
    return count if isinstance(count, str) else f"{count:,}"


def html_page(title: str, time: str, body: str) -> str:
    """Render a whole HTML page. `time`: line below the title."""
    return f"""<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><meta name=referrer content=no-referrer>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'"><title>{escape(title)}</title><style>{STYLE}</style></head>
<body><main><h1>{escape(title)}</h1><p class=soft>{escape(time)}</p>{body}</main></body></html>
"""
