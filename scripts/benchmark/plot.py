"""Plot of results: SVG by matplotlib on a light background. Each value is written beside its mark and in the description.

The module gets values and labels only. matplotlib is imported when a plot is drawn, so that a bench without a plot runs without it
(`scripts/setup --bench` installs it). The same values give the same bytes.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

WIDTH, ROW, CURVES, BESIDE = 8.3, 0.24, 2.2, 1.1
"""Sizes in inches: the picture, a row of marks, a panel with curves, and the space above and below the marks of a panel."""
TITLE_MAX = 95
"""Maximum number of characters in a line of a panel's title."""
CHARACTER = 0.083
"""Width in inches of a character in a column of values."""
TICKS = {2.2: (1, 2, 5), 2.7: (1, 3), 99: (1,)}
"""Maximum number of decades on a logarithmic axis → multiples of powers of ten that have ticks."""
GROUND, TEXT, SOFT, GRID = "#ffffff", "#1f2328", "#59636e", "#d1d9e0"
COLOURS, SHAPES = ("#0b5cad", "#a84a00", "#6e4aa0", "#1f6f43"), "osD^"
"""Colours and shapes of the series. Text and marks have a contrast of at least 4.5 to the background (WCAG 1.4.3)."""
FILLED, OPEN = "●■◆▲", "○□◇△"
"""The same shapes as characters, before a series' name."""
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "sans-serif"], "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "eir", "figure.facecolor": GROUND,
    "axes.facecolor": GROUND, "text.color": TEXT, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": TEXT, "axes.edgecolor": GRID,
    "grid.color": GRID, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "ytick.left": False, "axes.axisbelow": True,
}  # fmt: skip


class Series(NamedTuple):
    """One value in each row or at each point."""

    name: str
    mark: int
    """Index of shape and colour."""
    is_open: bool = False
    """True: the mark is an outline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Bars of ratios from 1, on a logarithmic axis."""

    title: str
    axis: str
    bars: Sequence[tuple[str, float]]
    """Name and ratio; a ratio that is not above 0 has no bar."""
    better: str
    """The better end of the axis: `more` or `less`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Marks on a logarithmic axis: a row for each name, and in it a mark for each series."""

    title: str
    axis: str
    series: Sequence[Series]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    """Name and a value for each series, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Lines over a logarithmic axis, from 0 upwards, and below it a table of the values."""

    title: str
    axis: str
    x_axis: str
    series: Sequence[Series]
    points: Sequence[tuple[float, Sequence[float]]]
    """Positions on the axis, each with a value for each series."""


Panel: TypeAlias = Ratios | Rows | Curves


def svg(title: str, note: str, panels: Sequence[Panel]) -> str:
    """Return the picture as a file: panels from top to bottom, and below them the note with command and machine."""
    import matplotlib as mpl  # noqa: PLC0415 - see above

    described = " ".join([*map(_in_words, panels), note])
    with mpl.rc_context(STYLE), StringIO() as file:
        figure(title, note, panels).savefig(
            file, format="svg", metadata={"Title": title, "Description": described, "Date": None, "Creator": None}
        )
        return file.getvalue()


def figure(title: str, note: str, panels: Sequence[Panel]) -> "Figure":
    """Return the same picture as a figure, to be drawn with STYLE."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above

    heights = [
        BESIDE
        + (CURVES if isinstance(panel, Curves) else ROW * len(panel.bars if isinstance(panel, Ratios) else panel.rows))
        for panel in panels
    ]
    made = Figure(figsize=(WIDTH, sum(heights) + 3 * ROW), layout="constrained")
    made.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr]  # it was just given one
    made.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    made.supxlabel(note, x=0.01, ha="left", fontsize=8, color=SOFT)
    for part, panel in zip(made.add_gridspec(len(panels), 1, height_ratios=heights), panels, strict=True):
        if isinstance(panel, Rows):
            _rows(part, panel)
        elif isinstance(panel, Ratios):
            _ratios(made.add_subplot(part), panel)
        else:
            _curves(made.add_subplot(part), panel)
    return made


def shown(value: float) -> str:
    """Return a value for people: all digits before the point, and up to two behind it if it is small."""
    return f"{value:,.{0 if not value or value >= 100 else 1 if value >= 10 else 2}f}"


def _in_words(panel: Panel) -> str:
    """Return the content of a panel as sentences."""

    def values(series: Sequence[Series], row: Sequence[float | None]) -> str:
        return ", ".join(
            f"{each.name} {shown(value)}" for each, value in zip(series, row, strict=True) if value is not None
        )

    if isinstance(panel, Ratios):
        said = [f"{name} {shown(value)}" for name, value in panel.bars]
    elif isinstance(panel, Rows):
        said = [f"{name}: {values(panel.series, row)}" for name, row in panel.rows]
    else:
        said = [f"at {shown(at)}: {values(panel.series, row)}" for at, row in panel.points]
    return f"{panel.title} ({panel.axis}): {'; '.join(said)}."


def _ratios(axes: "Axes", panel: Ratios) -> None:
    names, values = [name for name, _ in panel.bars], [value for _, value in panel.bars]
    _logarithmic(axes, [0.5, 2, *values], beyond=0.1)
    _named_rows(axes, panel.title, names)
    axes.set_xlabel(f"{panel.axis} ({'right' if panel.better == 'more' else 'left'} of 1 is better)")
    axes.axvline(1, color=TEXT, linewidth=0.8)
    for at, value in enumerate(values):
        end, good = value if value > 0 else 1, (value > 1) == (panel.better == "more")
        axes.barh(at, end - 1, left=1, height=0.6, color=COLOURS[not good])
        beyond = 4 if end >= 1 else -4
        axes.annotate(
            shown(value),
            (end, at),
            (beyond, 0),
            textcoords="offset points",
            va="center",
            ha="left" if end >= 1 else "right",
        )


def _rows(part: "SubplotSpec", panel: Rows) -> None:
    columns = [list(column) for column in zip(*(row for _, row in panel.rows), strict=True)]
    wide = [
        CHARACTER * (3 + max(len(series.name), *(len(shown(value or 0)) for value in column)))
        for series, column in zip(panel.series, columns, strict=True)
    ]
    axes, beside = part.subgridspec(1, 2, width_ratios=(WIDTH - 1 - sum(wide), sum(wide)), wspace=0).subplots()
    _logarithmic(axes, [value for column in columns for value in column if value], beyond=0.03)
    _named_rows(axes, panel.title, [name for name, _ in panel.rows])
    axes.set_title(axes.get_title(loc="left"), pad=20)
    axes.set_xlabel(panel.axis)
    axes.grid(axis="y")
    beside.set_axis_off()
    beside.set(xlim=(0, sum(wide)), ylim=axes.get_ylim())
    for number, (series, column) in enumerate(zip(panel.series, columns, strict=True)):
        right = sum(wide[: number + 1])
        beside.text(right, -0.9, _called(series), ha="right", va="center", color=COLOURS[series.mark])
        for at, value in enumerate(column):
            if value is not None:
                beside.text(right, at, shown(value), ha="right", va="center")
            if value:
                axes.plot([value], [at], **_mark(series))


def _curves(axes: "Axes", panel: Curves) -> None:
    at = [x for x, _ in panel.points]
    _logarithmic(axes, at, beyond=0.09)
    axes.set_title(textwrap.fill(f"{panel.title} ({panel.axis})", TITLE_MAX))
    axes.set_xticks(at, [shown(x) for x in at])
    axes.tick_params(axis="x", pad=5)
    axes.yaxis.set_major_formatter(lambda value, _: shown(value))
    axes.grid(axis="y")
    below = axes.get_xaxis_transform()
    axes.annotate(
        panel.x_axis,
        (0, 0),
        (-6, -12),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="center",
        color=SOFT,
    )
    for number, series in enumerate(panel.series):
        values = [row[number] for _, row in panel.points]
        axes.plot(at, values, **_mark(series) | {"linestyle": "-", "linewidth": 1.6})
        down = -12 - 15 * (number + 1)
        left: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "center"}
        axes.annotate(_called(series), (0, 0), (-6, down), color=COLOURS[series.mark], **left)
        for x, value in zip(at, values, strict=True):
            axes.annotate(
                shown(value), (x, 0), (0, down), xycoords=below, textcoords="offset points", ha="center", va="center"
            )
    axes.set_ylim(bottom=0, top=1.1 * max(value for _, row in panel.points for value in row))


def _logarithmic(axes: "Axes", values: Sequence[float], *, beyond: float) -> None:
    """Make a logarithmic axis for all values above 0, with a margin on both sides."""
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415 - see above

    above = [value for value in values if value > 0] or [1.0]
    low, high = (min(above), max(above)) if len(set(above)) > 1 else (above[0] / 2, above[0] * 2)
    decades = math.log10(high / low)
    axes.set_xscale("log")
    axes.set_xlim(low / 10 ** (decades * beyond), high * 10 ** (decades * beyond))
    axes.xaxis.set_major_locator(
        LogLocator(subs=next(subs for most, subs in TICKS.items() if decades <= most), numticks=20)
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.12g}")
    axes.grid(axis="x")


def _named_rows(axes: "Axes", title: str, names: Sequence[str]) -> None:
    axes.set_title(textwrap.fill(title, TITLE_MAX))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _called(series: Series) -> str:
    return f"{(OPEN if series.is_open else FILLED)[series.mark]} {series.name}"


def _mark(series: Series) -> dict[str, Any]:
    colour = COLOURS[series.mark]
    return {
        "marker": SHAPES[series.mark], "markersize": 6, "color": colour, "markerfacecolor": GROUND if series.is_open else colour, "linestyle": "none",
    }  # fmt: skip
