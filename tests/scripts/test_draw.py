"""scripts/draw: each drawing is that of its source, and can be read on light and dark screens, and by readers who do not see it."""

import re
import shutil
import subprocess
import tomllib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from colours import contrast

SCRIPTS = Path(__file__).parents[2] / "scripts"
SVG = "{http://www.w3.org/2000/svg}"
DRAWINGS = sorted((SCRIPTS / "drawings").glob("*.txt"))


@pytest.fixture
def draw(tmp_path):
    """Run a copy of the script over drawings of the test's own."""
    shutil.copy(SCRIPTS / "draw", tmp_path)
    (tmp_path / "drawings").mkdir()

    def run(source, *arguments):
        (tmp_path / "drawings" / "one.txt").write_text(source)
        done = subprocess.run([tmp_path / "draw", *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr, tmp_path / "drawings" / "one.svg"

    return run


def test_drawings_are_those_of_their_sources():
    assert DRAWINGS
    done = subprocess.run([SCRIPTS / "draw", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("source", DRAWINGS, ids=lambda path: path.stem)
def test_a_drawing_is_readable(source):
    text = source.with_suffix(".svg").read_text()
    palettes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in text.split("prefers-color-scheme: dark")]
    assert len(palettes) == 2
    for palette in palettes:
        for ground in ("page", "box", "group"):
            assert contrast(palette["ink"], palette[ground]) >= 4.5
            assert contrast(palette["soft"], palette[ground]) >= 4.5
            assert contrast(palette["line"], palette[ground]) >= 3
    drawing = ET.fromstring(text)
    described = drawing.find(f"{SVG}desc").text
    labels = [each.text for each in drawing.iter(f"{SVG}text") if each.get("class") == "label"]
    assert described.startswith("Boxes: ")
    assert all(label in described for label in labels)


@pytest.mark.parametrize("source", DRAWINGS, ids=lambda path: path.stem)
def test_texts_fit_into_their_boxes(source):
    drawing = ET.fromstring(source.with_suffix(".svg").read_text())
    width = None
    for element in drawing:
        if element.tag == f"{SVG}rect":
            width = float(element.get("width"))
        elif element.tag == f"{SVG}text" and not element.get("class"):
            assert 7.5 * len(element.text) < width, element.text
    lines = [each for each in drawing.iter(f"{SVG}text") if each.get("class") == "label"]
    for one, other in pairwise(sorted(lines, key=lambda each: (float(each.get("y")), float(each.get("x"))))):
        apart = float(other.get("x")) - float(one.get("x"))
        assert one.get("y") != other.get("y") or apart > 3.4 * (len(one.text) + len(other.text)), (one.text, other.text)


def test_a_changed_source_is_noticed(draw):
    source = "title T\nbox a 0 0 9 4 A\nbox b 0 9 9 4 B & C\na -> b goes\n"
    assert draw(source)[0] == 0
    assert draw(source, "--check")[0] == 0
    status, fault, _ = draw(source.replace("goes", "comes"), "--check")
    assert (status, fault) == (1, "one.svg: out of date: run scripts/draw\n")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a -> c goes", "line 4 is neither a title, a box nor an arrow between boxes: a -> c goes"),
        ("box c 0 0 9 A", "line 4 is neither a title, a box nor an arrow between boxes: box c 0 0 9 A"),
        ("a -> b goes", "A and B do not face each other"),
    ],
)
def test_a_faulty_source_is_refused(draw, line, fault):
    status, said, target = draw(f"title T\nbox a 0 0 9 4 A\nbox b 20 9 9 4 B\n{line}\n")
    assert (status, said) == (1, f"one.txt: {fault}\n")
    assert not target.exists()


def test_wings_are_drawn_as_the_import_contract_has_them():
    contracts = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {each["containers"][0]: each["layers"] for each in contracts if each["type"] == "layers"}
    drawn, rooms = defaultdict(list), {}
    for line in (SCRIPTS / "drawings" / "wings.txt").read_text().splitlines():
        if line.startswith("box "):
            _, name, _, y, _, _, text = line.split(" ", 6)
            drawn[int(y)].append(name)
            rooms[name] = set(re.findall(r"\w+", text.partition(":")[2]))
    expected = [sorted(layer.split(" | ")) for layer in layers.pop("eir") if layer != "__main__"]
    assert [sorted(names) for _, names in sorted(drawn.items())] == expected
    for container, of_it in layers.items():
        names = set(re.findall(r"\w+", " ".join(of_it))) - {"clients", "interface", "probing"}
        assert names == rooms[container.removeprefix("eir.")], container
