"""Results as a picture: SVG, drawn here, to be read on light and dark pages, with and without colours, by eye and by screen reader.

Values in, text out; knows nothing of what was measured, and imports the standard library only. The same values give the same
bytes. Every value stands beside its mark as text, and all of them in the picture's description.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias
from xml.etree import ElementTree as ET

WIDTH, MARGIN, GAP = 800.0, 16.0, 12.0
LINE, ROW = 20.0, 22.0
"""Heights of a line of text and of a row of marks."""
CHARACTER = 7.6
"""Width that is set aside for a character: the font is the reader's."""
CURVES_HEIGHT, BAR, MARK = 190.0, 14.0, 4.0
TICKS = 5
STEPS = ((1, 2, 5), (1, 3), (1,))
"""Of which powers of ten a logarithmic axis has ticks: the first that there is room for."""
SANS = "system-ui,-apple-system,'Segoe UI','Liberation Sans','DejaVu Sans',sans-serif"


class Scheme(NamedTuple):
    """Colours of the light or of the dark picture.

    Text and marks have a contrast of at least 4.5 to the ground (WCAG 1.4.3). A picture in a page follows the reader's system
    and not the page's own switch, so it brings its ground along.
    """

    ground: str
    text: str
    soft: str
    grid: str
    marks: tuple[str, ...]
    """One for each of SHAPES."""


LIGHT = Scheme("#ffffff", "#1f2328", "#59636e", "#d1d9e0", ("#0b5cad", "#a84a00", "#6e4aa0", "#1f6f43"))
DARK = Scheme("#0d1117", "#e6edf3", "#9198a1", "#3d444d", ("#6cb6ff", "#ffa657", "#d2b3ff", "#7ee2a8"))
SHAPES = ("M-1,0a1,1 0 1 0 2,0a1,1 0 1 0 -2,0", "M-.9,-.9h1.8v1.8h-1.8z", "M0,-1.3L1.3,0L0,1.3L-1.3,0z", "M0,-1.2L1.2,.9H-1.2z")
"""Marks, as paths of size 1: circle, square, diamond, triangle."""


class Series(NamedTuple):
    """What has one value in each row or at each point."""

    name: str
    mark: int
    """Which shape and colour."""
    is_open: bool = False
    """An outline only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Bars from 1, on a logarithmic axis: how many times something is."""

    title: str
    axis: str
    bars: Sequence[tuple[str, float]]
    """Name and ratio; a ratio that is not above 0 has no bar."""
    better: str
    """Which end of the axis is the better one: `more` or `less`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Marks on a logarithmic axis, a row for each name and a mark in it for each series."""

    title: str
    axis: str
    series: Sequence[Series]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    """Name and a value for each series; None: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Lines over a logarithmic axis, from 0 upwards, and below it a table of the values."""

    title: str
    axis: str
    x_axis: str
    series: Sequence[Series]
    points: Sequence[tuple[float, Sequence[float]]]
    """Where on the axis, and a value for each series."""


Panel: TypeAlias = Ratios | Rows | Curves


def svg(title: str, note: str, panels: Sequence[Panel]) -> str:
    """The picture: panels from top to bottom, and below them the note, which says how and where it was measured."""
    top = MARGIN + 2 * LINE
    drawn = []
    for panel in panels:
        group, height = _DRAW[type(panel)](panel, top)
        drawn.append(group)
        top += height + LINE
    height = top + LINE
    root = ET.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_n(WIDTH)} {_n(height)}", "width": _n(WIDTH), "height": _n(height),
        "role": "img", "aria-labelledby": "title desc",
    })  # fmt: skip
    ET.SubElement(root, "title", id="title").text = title
    ET.SubElement(root, "desc", id="desc").text = " ".join([*map(_in_words, panels), note])
    ET.SubElement(root, "style").text = _style(LIGHT) + f"@media(prefers-color-scheme:dark){{{_style(DARK)}}}"
    ET.SubElement(root, "rect", {"class": "ground", "width": "100%", "height": "100%", "rx": "6", "fill": LIGHT.ground})
    _text(root, MARGIN, MARGIN + 14, title, "title")
    root.extend(drawn)
    _text(root, MARGIN, height - MARGIN, note, "soft")
    return ET.tostring(root, encoding="unicode") + "\n"


def shown(value: float) -> str:
    """A value as people read it: all its digits before the point, and up to two behind it where it is small."""
    return f"{value:,.{0 if not value or value >= 100 else 1 if value >= 10 else 2}f}"


def _in_words(panel: Panel) -> str:
    """All that the panel shows, as sentences."""
    if isinstance(panel, Ratios):
        said = [f"{name} {shown(value)}" for name, value in panel.bars]
    elif isinstance(panel, Rows):
        said = [
            f"{name}: " + ", ".join(f"{series.name} {shown(value)}" for series, value in zip(panel.series, values, strict=True) if value is not None)
            for name, values in panel.rows
        ]
    else:
        said = [
            f"at {shown(at)}: " + ", ".join(f"{series.name} {shown(value)}" for series, value in zip(panel.series, values, strict=True))
            for at, values in panel.points
        ]
    return f"{panel.title} ({panel.axis}): {'; '.join(said)}."


# ---- panels; each gives its group and its height ----


def _ratios(panel: Ratios, top: float) -> tuple[ET.Element, float]:
    group = _group(panel.title, top)
    left = MARGIN + GAP + _wide(name for name, _ in panel.bars)
    room = _wide(shown(value) for _, value in panel.bars)
    values = [value for _, value in panel.bars if value > 0]
    scale = _Log(min([0.5, *values]), max([2.0, *values]), left + room, WIDTH - MARGIN - room)
    floor = top + LINE + ROW * len(panel.bars)
    side = "right" if panel.better == "more" else "left"
    _ticks(group, scale, top + LINE, floor, f"{panel.axis} ({side} of 1 is better)")
    for row, (name, value) in enumerate(panel.bars):
        middle = top + LINE + ROW * (row + 0.5)
        _text(group, left - GAP, middle + 4, name, end=True)
        one, end = scale.at(1), scale.at(value) if value > 0 else scale.at(1)
        good = (value > 1) == (panel.better == "more")
        ET.SubElement(group, "rect", {
            "class": f"m{int(not good)}", "x": _n(min(one, end)), "y": _n(middle - BAR / 2), "width": _n(abs(end - one)), "height": _n(BAR),
        })  # fmt: skip
        _text(group, end + (6 if end >= one else -6), middle + 4, shown(value), end=end < one)
    _line(group, "one", (scale.at(1), top + LINE), (scale.at(1), floor))
    return group, floor + 2 * LINE - top


def _rows(panel: Rows, top: float) -> tuple[ET.Element, float]:
    group = _group(panel.title, top)
    left = MARGIN + GAP + _wide(name for name, _ in panel.rows)
    columns = [
        max(_wide([series.name]) + 2 * GAP, _wide(shown(value) for _, values in panel.rows if (value := values[at]) is not None) + GAP)
        for at, series in enumerate(panel.series)
    ]
    ends = [WIDTH - MARGIN - sum(columns[at + 1 :]) for at in range(len(columns))]
    values = [value for _, row in panel.rows for value in row if value is not None and value > 0]
    scale = _Log(min(values, default=1), max(values, default=1), left + GAP, WIDTH - MARGIN - sum(columns) - GAP)
    floor = top + 2 * LINE + ROW * len(panel.rows)
    _ticks(group, scale, top + 2 * LINE, floor, panel.axis)
    for series, end in zip(panel.series, ends, strict=True):
        _text(group, end, top + 2 * LINE - 6, series.name, end=True)
        _mark(group, end - _wide([series.name]) - 9, top + 2 * LINE - 10, series)
    for number, (name, row) in enumerate(panel.rows):
        middle = top + 2 * LINE + ROW * (number + 0.5)
        _text(group, left - GAP, middle + 4, name, end=True)
        _line(group, "grid", (left, middle), (WIDTH - MARGIN - sum(columns), middle))
        for at, value in enumerate(row):
            if value is not None:
                _text(group, ends[at], middle + 4, shown(value), end=True)
                if value > 0:
                    _mark(group, scale.at(value), middle, panel.series[at])
    return group, floor + 2 * LINE - top


def _curves(panel: Curves, top: float) -> tuple[ET.Element, float]:
    group = _group(f"{panel.title} ({panel.axis})", top)
    highest, step = _round_up(max((value for _, values in panel.points for value in values), default=1))
    count = round(highest / step)
    left = MARGIN + 3 * GAP + _wide([panel.x_axis, *(series.name for series in panel.series), shown(highest)])
    edge = CHARACTER * max((len(shown(at)) for at, _ in panel.points), default=1) / 2
    scale = _Log(min(at for at, _ in panel.points), max(at for at, _ in panel.points), left + edge, WIDTH - MARGIN - edge)
    ceiling = top + 1.5 * LINE
    floor = ceiling + CURVES_HEIGHT
    for tick in range(count + 1):
        y = floor - CURVES_HEIGHT * tick / count
        _line(group, "grid", (left, y), (WIDTH - MARGIN, y))
        _text(group, left - GAP, y + 4, shown(tick * step), "soft", end=True)
    _text(group, left - GAP, floor + LINE + 4, panel.x_axis, "soft", end=True)
    for x, _ in panel.points:
        _line(group, "grid", (scale.at(x), ceiling), (scale.at(x), floor + 5))
        _text(group, scale.at(x), floor + LINE + 4, shown(x), "soft", anchor="middle")
    for at, series in enumerate(panel.series):
        below = floor + LINE * (at + 2) + 4
        _text(group, left - GAP, below, series.name, end=True)
        _mark(group, left - GAP - _wide([series.name]) - 9, below - 4, series)
        way = [(scale.at(x), floor - CURVES_HEIGHT * values[at] / highest) for x, values in panel.points]
        _line(group, f"way m{series.mark}", *way)
        for (x, y), (_, values) in zip(way, panel.points, strict=True):
            _mark(group, x, y, series)
            _text(group, x, below, shown(values[at]), anchor="middle")
    return group, floor + LINE * (len(panel.series) + 2) - top


_DRAW: dict[type[Panel], Callable[..., tuple[ET.Element, float]]] = {Ratios: _ratios, Rows: _rows, Curves: _curves}


# ---- axes ----


class _Log:
    """A logarithmic axis: values from `low` to `high` go from `left` to `right`."""

    def __init__(self, low: float, high: float, left: float, right: float) -> None:
        if low == high:
            low, high = low / 2, high * 2
        self.low, self.high = low, high
        self._from, self._by = math.log(low), (right - left) / math.log(high / low)
        self._left = left

    def at(self, value: float) -> float:
        return self._left + (math.log(value) - self._from) * self._by

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten on it; the powers alone if the others' names have no room beside each other."""
        powers = [10.0**power for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)]
        for steps in STEPS:
            found = [step * power for power in powers for step in steps if self.low <= step * power <= self.high]
            if all(self.at(b) - self.at(a) > (_wide([_tick(a)]) + _wide([_tick(b)])) / 2 for a, b in pairwise(found)):
                break
        return found


def _round_up(most: float) -> tuple[float, float]:
    """The end of an axis from 0 that holds `most`, and the step between its ticks: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(most / TICKS)) if most > 0 else 1.0
    step = next(step * power for step in (1, 2, 5, 10) if step * power * TICKS >= most)
    return step * max(1, math.ceil(most / step)), step


def _ticks(group: ET.Element, scale: _Log, top: float, floor: float, axis: str) -> None:
    for tick in scale.ticks():
        _line(group, "grid", (scale.at(tick), top), (scale.at(tick), floor + 4))
        _text(group, scale.at(tick), floor + LINE - 2, _tick(tick), "soft", anchor="middle")
    _text(group, (scale.at(scale.low) + scale.at(scale.high)) / 2, floor + 2 * LINE - 4, axis, "soft", anchor="middle")


def _tick(value: float) -> str:
    return f"{value:,.12g}"


# ---- elements ----


def _style(scheme: Scheme) -> str:
    rules = [
        f".ground{{fill:{scheme.ground}}}", f"text{{font:13px {SANS};font-variant-numeric:tabular-nums;fill:{scheme.text}}}",
        f".soft{{fill:{scheme.soft}}}", f".grid{{stroke:{scheme.grid}}}", f".one{{stroke:{scheme.text}}}",
        *(f".m{at}{{fill:{colour};stroke:{colour}}}" for at, colour in enumerate(scheme.marks)),
        ".title{font-size:16px;font-weight:600}.panel{font-weight:600}.way{fill:none;stroke-width:2}",
        f".open{{fill:{scheme.ground}}}",
    ]  # fmt: skip
    return "".join(rules)


def _group(title: str, top: float) -> ET.Element:
    group = ET.Element("g")
    _text(group, MARGIN, top + 8, title, "panel")
    return group


def _text(parent: ET.Element, x: float, y: float, text: str, kind: str = "", *, end: bool = False, anchor: str = "") -> None:
    words = {"x": _n(x), "y": _n(y), "class": kind, "text-anchor": "end" if end else anchor}
    ET.SubElement(parent, "text", {name: word for name, word in words.items() if word}).text = text


def _line(parent: ET.Element, kind: str, *points: tuple[float, float]) -> None:
    ET.SubElement(parent, "path", {"class": kind, "d": "M" + "L".join(f"{_n(x)},{_n(y)}" for x, y in points)})


def _mark(parent: ET.Element, x: float, y: float, series: Series) -> None:
    ET.SubElement(parent, "path", {
        "class": f"m{series.mark}{' open' * series.is_open}", "d": SHAPES[series.mark],
        "transform": f"translate({_n(x)},{_n(y)})scale({_n(MARK)})", "stroke-width": "0.4",
    })  # fmt: skip


def _wide(texts: Iterable[str]) -> float:
    """Room for the longest of them."""
    return CHARACTER * max(map(len, texts), default=0)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
