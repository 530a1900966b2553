"""Fuzzing in its everyday form: the kept corpus, and mutations by hypothesis; the long form of sessions is `scripts/soak fuzz`.

What is held while a message is read, a session goes on or a release is read stands in fuzz/codec.py, fuzz/session.py and fuzz/releases.py.
"""

import importlib.util
import subprocess
import sys

import pytest
from fuzz import codec, releases, session
from fuzz.collect import CORPUS
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.mutations import Mutator, good_messages
from simulated.patience import PROGRAM_S
from simulated.wire import cer

FILES = sorted(CORPUS.iterdir())
HARNESSES = sorted(CORPUS.parent.glob("fuzz_*.py"))
MESSAGES = [path.read_bytes() for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_corpus(path):
    octets = path.read_bytes()
    codec.run(octets)
    session.run(octets)
    if path.name.startswith("message"):
        session.run(session.script(cer(), octets, octets * 2))


def test_the_corpus_has_every_good_message():
    assert {path.read_bytes() for path in FILES if path.name.startswith("message")} == set(good_messages())


mutations = st.builds(lambda seed: Mutator(seed).message(), st.integers(0, 2**32))
scattered = st.builds(
    lambda octets, at, new: octets[: at % (len(octets) + 1)] + new + octets[at % (len(octets) + 1) + len(new) :],
    st.sampled_from(MESSAGES), st.integers(0, 5000), st.binary(min_size=1, max_size=8),
)  # fmt: skip
streams = st.builds(lambda seed: Mutator(seed).stream(), st.integers(0, 2**32))
steps = st.lists(
    st.one_of(streams, mutations, scattered, st.sampled_from([session.SECOND, session.MINUTE, session.END])), max_size=6
)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=300), mutations, scattered))
def test_messages(octets):
    codec.run(octets)


@settings(max_examples=150)
@given(steps, st.sampled_from([b"\0", b"\1", b"\2"]), st.booleans())
def test_sessions(steps, rate, begins):
    session.run(rate + session.script(*([cer()] if begins else []), *steps)[1:])


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_scripts_of_any_bytes(octets):
    session.run(octets)


def test_releases():
    """By seeds, so that what fails can be run again; between them they end in every way that a reader knows."""
    assert {releases.run(seed) for seed in range(400)} >= {
        "read",
        "manifest",
        "layout",
        "bad_rows",
        "rows",
        "range",
    }


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda path: path.stem)
def test_harnesses_of_atheris(harness, tmp_path):
    """A thousand runs where atheris is installed (extra `fuzz`); elsewhere, that it is all that they lack."""
    done = subprocess.run(
        [sys.executable, "-B", harness, "-runs=1000", f"-artifact_prefix={tmp_path}/", CORPUS],
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_S,
    )
    if importlib.util.find_spec("atheris"):
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        assert done.stderr.rstrip().endswith("No module named 'atheris'")


def test_mutations_are_by_their_seed_and_reach_everything():
    first, again = Mutator(5), Mutator(5)
    made = [first.message() for _ in range(2000)]
    assert made == [again.message() for _ in range(2000)]
    assert len(set(made)) > 1800
    framed = sum(
        octets[0] == 1 and int.from_bytes(octets[1:4]) == len(octets) and len(octets) % 4 == 0 for octets in made
    )
    assert framed > 1850, "most get past the frame"
    results = set()
    for octets in made:
        side = session.run(session.script(cer(), octets))[0]
        results |= {result for _, result in side.counts.answers}
    assert results >= {
        "2001",
        "10415:5422",
        "3001",
        "3002",
        "3003",
        "3007",
        "3008",
        "5001",
        "5004",
        "5005",
        "5009",
        "5012",
        "5014",
    }
