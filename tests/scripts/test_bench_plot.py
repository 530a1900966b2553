"""scripts/benchmark/plot.py: what is measured stands in the picture as text and in its place, for everyone who looks at it."""

import json
import re
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from colours import contrast, luminance

SCRIPTS = Path(__file__).parents[2] / "scripts"
SVG = "{http://www.w3.org/2000/svg}"
NOTE = "scripts/bench part, 5 turns of 3 s; 2 x Fast & Co <1>, Python 3.13.0"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def peers():
    from bench_peers import picture

    def ratios(**found):
        return {name.replace("_", "-"): {"median": value, "turns": [value]} for name, value in found.items()}

    return picture({
        "answers_per_s_ratio": {"2 x 64 of 64 MMEs, 50% hits": ratios(floor=0.18, echo=0.114, otp=9.878, freediameter=11.6, python_diameter=1052.8)},
        "p50_ratio": ratios(floor=1.19, echo=1.291, otp=0.0, freediameter=0.65, python_diameter=0.25),
    })  # fmt: skip


def ecr():
    from bench_ecr import picture

    rows = [
        ("eir", "4 x 256", 397_110, 2301.4, 5655.0), ("eir", "4 at 20000/s", 20_000, 81.2, 283.0),
        ("floor", "4 x 256", 1_666_667, 420.5, 506.1), ("floor", "4 at 20000/s", 20_001, 48.04, 130.0),
        ("echo", "4 x 256", 2_100_300, 333.3, 444.4), ("echo", "4 at 20000/s", 20_002, 1.0, 2.0),
    ]  # fmt: skip
    return picture(
        [dict(zip(("server", "load", "answers_per_s", "p50_us", "p99_us"), row, strict=True)) for row in rows]
    )


def ecr_alone():
    from bench_ecr import picture

    return picture([{"server": "eir", "load": "1 x 1", "answers_per_s": 9_017, "p50_us": 58.0, "p99_us": 91.0}])


def sizes():
    from bench_sizes import picture

    rows = [(1_000, 714_891, 68.94, 20.3), (1_000_000, 518_141, 121.3, 56.9), (100_000_000, 394_315, 531.8, 265.4)]
    return picture(
        [dict(zip(("entries", "answers_per_s", "resident_mb", "node_mb"), row, strict=True)) for row in rows]
    )


def one_size():
    from bench_sizes import picture

    return picture([{"entries": 50_000, "answers_per_s": 200_000, "resident_mb": 50.0, "node_mb": 20.0}])


PICTURES = {
    peers: ["OTP's diameter", "freeDiameter", "C echo", "0.18", "0.11", "9.88", "11.6", "1,053", "1.19", "1.29", "0", "0.65", "0.25"],
    ecr: [
        "4 x 256", "4 at 20000/s", "397,110", "1,666,667", "2,100,300", "2,301", "5,655", "81.2", "283", "420", "506", "48.0", "130",
    ],
    ecr_alone: ["1 x 1", "9,017", "58.0", "91.0"],
    sizes: ["1,000", "1,000,000", "100,000,000", "714,891", "518,141", "394,315", "68.9", "121", "532", "20.3", "56.9", "265"],
    one_size: ["50,000", "200,000", "50.0", "20.0"],
}  # fmt: skip
"""What each has to say."""


def drawn(made):
    from benchmark.plot import svg

    return svg(made.title, NOTE, made.panels)


@pytest.fixture
def laid_out():
    """Lays a picture out as it is drawn: the figure, and where each of its texts is."""
    import matplotlib as mpl
    from benchmark import plot

    def laid_out(made):
        figure = plot.figure(made.title, NOTE, made.panels)
        figure.draw_without_rendering()
        ticks = [
            (axis, tick) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()
        ]
        beyond = {
            tick.label1
            for axis, tick in ticks
            if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        }
        texts = [
            text
            for text in figure.findobj(mpl.text.Text)
            if text.get_visible() and text.get_text() and text not in beyond
        ]
        return figure, [(text.get_text(), text.get_window_extent()) for text in texts]

    with mpl.rc_context(plot.STYLE):
        yield laid_out


@pytest.fixture(params=PICTURES, ids=lambda made: made.__name__)
def picture(request):
    return request.param, ET.fromstring(drawn(request.param()))


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def test_each_value_stands_in_it_and_in_its_description(picture):
    made, root = picture
    description = next(root.iter("{http://purl.org/dc/elements/1.1/}description")).text
    for value in PICTURES[made]:
        assert value in texts(root)
        assert re.search(rf"(?<![\d.,]){re.escape(value)}(?!\d|[.,]\d)", description), value
    assert root.find(f"{SVG}title").text in texts(root)
    assert NOTE in texts(root)
    assert description.endswith(NOTE)


def test_it_runs_nothing_fetches_nothing_and_is_small(picture):
    _, root = picture
    assert not {element.tag.removeprefix(SVG) for element in root.iter()} & {"script", "image", "foreignObject", "a"}
    links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert len(ET.tostring(root)) < 64_000


def test_the_same_values_give_the_same_bytes(picture):
    made, _ = picture
    assert drawn(made()) == drawn(made())


@pytest.mark.parametrize("made", PICTURES, ids=lambda made: made.__name__)
def test_all_texts_lie_within_the_frame_and_do_not_cover_each_other(made, laid_out):
    figure, boxes = laid_out(made())
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1 or text == NOTE, text
        assert figure.bbox.y0 <= box.y0, text
        assert box.y1 <= figure.bbox.y1, text
    for (one, box), (other, beside) in combinations(boxes, 2):
        assert not box.overlaps(beside), (one, other)


def test_ratios_lie_on_their_side_of_one(laid_out):
    """In the better half's colour on the side that is better."""
    from benchmark.plot import COLOURS
    from matplotlib.colors import to_hex

    figure, _ = laid_out(peers())
    faster, slower = (
        [(bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor())) for bar in axes.patches] for axes in figure.axes
    )
    good, bad = COLOURS[:2]
    assert [(x, x + width > 1, colour) for x, width, colour in faster] == [(1, True, good)] * 3 + [(1, False, bad)] * 2
    assert [width for _, width, _ in faster] == sorted((width for _, width, _ in faster[:3])) + [
        width for _, width, _ in faster[3:]
    ]
    assert [colour for *_, colour in slower] == [good, good, good, bad, bad]
    assert slower[0][1] == 0  # no ratio could be had


def test_curves_begin_at_zero(laid_out):
    figure, _ = laid_out(sizes())
    for axes in figure.axes:
        assert axes.get_ylim()[0] == 0
        assert axes.get_yscale() == "linear"


def test_contrast():
    """WCAG 2.1, 1.4.3 and 1.4.11: 4.5 for text, 3 for marks, which have a text beside them."""
    from benchmark import plot

    assert luminance(plot.GROUND) > 0.9
    for colour in (plot.TEXT, plot.SOFT, *plot.COLOURS):
        assert contrast(plot.GROUND, colour) >= 4.5, colour
    assert len(plot.COLOURS) == len(plot.SHAPES)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.114, "0.11"), (1, "1.00"), (9.878, "9.88"), (10, "10.0"), (714_891.4, "714,891")]
)
def test_values_as_people_read_them(value, text):
    from benchmark.plot import shown

    assert shown(value) == text


def test_finish_draws_to_the_given_file(tmp_path, capsys):
    import argparse

    from benchmark.measure import add_options, finish

    parser = argparse.ArgumentParser()
    add_options(parser, picture=True)
    file = tmp_path / "figures" / "peers.svg"
    options = parser.parse_args(["--quick", "--json", "--svg", str(file)])
    assert finish("peers", {}, [], options, "", picture=peers()) == 0
    assert any(
        text.startswith("scripts/bench peers --quick: no figures to believe; ")
        for text in texts(ET.parse(file).getroot())
    )
    out, said = capsys.readouterr()
    assert json.loads(out)["part"] == "peers"
    assert str(file) in said
    assert finish("peers", {}, [], parser.parse_args([]), "", picture=peers()) == 0
