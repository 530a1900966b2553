"""scripts/benchmark/plot.py: each kind of plot is drawn, and needs nothing else."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

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


PICTURES = (peers, ecr, ecr_alone, sizes, one_size)


def drawn(made):
    from benchmark.plot import svg

    return svg(made.title, NOTE, made.panels)


@pytest.fixture(params=PICTURES, ids=lambda made: made.__name__)
def picture(request):
    return ET.fromstring(drawn(request.param()))


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def test_it_runs_nothing_fetches_nothing_and_is_small(picture):
    assert not {element.tag.removeprefix(SVG) for element in picture.iter()} & {"script", "image", "foreignObject", "a"}
    links = [value for element in picture.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert len(ET.tostring(picture)) < 64_000


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
