"""scripts/bench: each part runs and says what it says, whatever the figures; and the generator sees every fault of an answer."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from accepting import accepting
from hostile import processes
from in_kernel import has_sctp
from node import is_gone, until
from patience import PATIENCE_S, PROGRAM_S
from wire import TGPP, Message, avp, message, u32

from eir.interfaces.s13.lane import COMPILED
from eir.lists.pages.pages import PAGE_KEYS

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENTRY = {
    "server",
    "load",
    "answers_per_s",
    "p50_us",
    "p99_us",
    "cpu_us_per_answer",
    "server_share",
    "generator_share",
    "errors",
}
REALM = "mme.example"
UNKNOWN = "10415:5422"


@pytest.fixture(scope="module")
def benchmark():
    """What the parts share, as a module."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import benchmark.build
        import benchmark.questions

        yield benchmark
    finally:
        sys.path.remove(str(SCRIPTS))


PARTS = {
    "ecr": ("--connections", "2", "--windows", "1", "16", "--rates", "20000"),
    "peers": ("--peer", "otp", "--peer", "freediameter"),
    "workers": ("--workers", "1", "2"),
    "sizes": ("--entries", "1000", "50000"),
    "switch": ("--entries", "20000", "--rate", "2000"),
    "odd": (),
    "profile": (),
    "sightings": (),
    "listed": (),
    "trace": (),
    "first-seen": (),
    "n5g": ("--no-application",),
    "feed": (),
    "device-authenticity": (),
    "gsup": (),
    "map": (),
}


AT_ONCE = 3
"""Parts that run side by side: with more, a busy host leaves a part's server unheard for as long as its generator waits."""
AGENTS = "2 x 64 of 64 MMEs, 50% hits"
APART = ("follow", "index", "load", "redis-memory", "tamper")
"""Parts whose documents are their own."""
DRAWN = {
    "ecr": lambda document: [f"{row['answers_per_s']:,}" for row in document["measured"] if "at" not in row["load"]],
    "peers": lambda document: [
        f"{found['median']:,.{shown(found['median'])}f}" for found in document["answers_per_s_ratio"][AGENTS].values()
    ],
    "sizes": lambda document: [f"{row['answers_per_s']:,}" for row in document["measured"]],
}
"""Parts that have a picture, and what is in it as text."""


def part_of(test):
    """The part that a test is named for."""
    return test.removeprefix("test_").replace("_", "-")


def shown(value):
    """How many digits of it stand behind the point."""
    return 0 if value >= 100 else 1 if value >= 10 else 2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where they go."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def running(pictures, request):
    """All parts whose tests run, in their shortest form, some side by side: no time is of interest here."""
    tried = {part_of(item.originalname) for item in request.session.items if item.path == request.path}
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    parts = {
        part: (*more, "--svg", pictures / f"{part}.svg") if part in DRAWN else more for part, more in PARTS.items()
    }
    parts |= dict.fromkeys(APART, ())
    if has_sctp() or shutil.which("linux.uml"):
        parts["ecr-over-sctp"] = ("--transport", "sctp", "--windows", "8", "--only")

    def run(part):
        command = [SCRIPTS / "bench", part.partition("-over-")[0], *parts[part], "--quick", "--json"]
        return subprocess.run(
            [sys.executable, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
            check=False, timeout=PROGRAM_S,
        )  # fmt: skip

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {part: pool.submit(run, part) for part in parts if part in tried}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def printed(running, request):
    """The document of the part that the test is named for."""
    if (name := part_of(request.function.__name__)) not in running:
        pytest.skip("no SCTP in this kernel, and no user-mode-linux to run it in")
    done = running[name].result()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def found(printed, request, pictures):
    """The same, where it has what most parts have."""
    part, document = part_of(request.function.__name__), printed
    assert document["part"] == part
    assert document["quick"] is True
    assert document["machine"]["processors"] == os.cpu_count()
    assert document["wrong_answers"] == 0
    if part in DRAWN:
        picture = ET.parse(pictures / f"{part}.svg")
        texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
        assert texts.issuperset(DRAWN[part](document))
    return document


def measured(document):
    """Its rows by server; in each of them something was answered, by a server that did something."""
    for row in document["measured"]:
        assert row.keys() == ENTRY
        assert row["answers_per_s"] > 0
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert 0 < row["generator_share"] < 1.5
    return {(row["server"], row["load"]): row for row in document["measured"]}


@pytest.mark.long
def test_ecr(found):
    assert set(measured(found)) == {
        (server, load) for server in ("eir", "floor", "echo") for load in ("2 x 1", "2 x 16", "4 at 20000/s")
    }
    assert all(ratio["median"] > 0 for ratio in found["of_floor"].values())
    assert [target["what"] for target in found["targets"]] == ["p99 at 20,000/s above the floor's"]


@pytest.mark.long
def test_ecr_over_sctp(printed):
    answers = {
        (row["server"], row["load"]): row["answers_per_s"] for row in printed["measured"]
    }  # shares are of a clock too coarse for this
    assert answers.keys() == {("eir", "1 x 8"), ("eir, TCP", "1 x 8")}
    assert all(answers.values())
    assert printed["wrong_answers"] == 0
    calls = printed["system_calls"]["1 x 8"]
    assert calls["sendto"] == pytest.approx(1, abs=0.1), "one for each message"
    assert {target["what"] for target in printed["targets"]} == {
        "receives for each answer, 1 x 8",
        "sends for each answer, 1 x 8",
    }


@pytest.mark.long
def test_peers(found):
    assert found["missing"] == {}
    rows = measured(found)
    servers = {"eir", "floor", "echo", "otp", "freediameter"}
    assert set(rows) == {
        (server, load) for server in servers for load in ("4 x 256", "4 x 256, 50% hits", "1 x 1", AGENTS)
    }
    assert all(row["errors"] == 0 for row in rows.values())
    assert set(found["answers_per_s_ratio"]) == {"4 x 256", "4 x 256, 50% hits", AGENTS}
    assert set(found["answers_per_s_ratio"][AGENTS]) == set(found["p50_ratio"]) == servers - {"eir"}
    assert len(found["targets"]) == 7


@pytest.mark.long
def test_gsup(found):
    assert {(row["server"], row["under way"]) for row in found["measured"]} == {
        (server, window) for server in ("eir", "echo") for window in (1, 64)
    }
    assert all(row["cpu_us"] > 0 for row in found["measured"])


@pytest.mark.long
def test_map(found):
    assert found["answers_per_cpu_second"].keys() == {"this node", "echo", "pycrate"}
    assert min(found["answers_per_cpu_second"].values()) > 0


@pytest.mark.long
def test_n5g(found):
    assert {row["server"] for row in found["measured"]} == {"eir", "bare"}
    assert found["diameter_p99"]["beside_us"] > 0
    assert len(found["targets"]) == 2


@pytest.mark.long
def test_workers(found):
    assert set(measured(found)) == {("workers: 1", "4 x 256"), ("workers: 2", "4 x 256")}
    assert found["connections_by_worker"] == {"workers: 1": [4], "workers: 2": [2, 2]}
    assert found["cost_ratio"]["1"]["median"] == 1


@pytest.mark.long
def test_sizes(found):
    small, large = found["measured"]
    assert (small["entries"], large["entries"]) == (1000, 50000)
    assert small["of_smallest"] == 1
    for row in (small, large):
        assert row["load_s"] > 0 < row["ready_s"] < 60
        assert 0 < row["own_mb"] < row["resident_mb"] < row["node_mb"]
    assert large["store_mb"] > small["store_mb"]
    assert small["with_hits_of_smallest"] == 1
    assert len(found["targets"]) == 5


@pytest.mark.long
def test_sizes_of_pairs():
    document = finished("sizes", "--pairs", *PARTS["sizes"])
    assert document["wrong_answers"] == 0
    small, large = document["measured"]
    assert (small["entries"], large["entries"]) == (1000, 50000)
    assert large["with_hits_of_smallest"] > 0
    assert document["targets"] == []


def finished(part, *more):
    """The document of a part that runs on its own."""
    command = [sys.executable, SCRIPTS / "bench", part, *more, "--quick", "--json"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROGRAM_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_switch(found):
    assert set(measured(found)) == {("quiet", "4 at 2000/s"), ("during the switch", "4 at 2000/s")}
    assert found["entries"] == 20000
    assert len(found["p99_times_quiet"]) == len(found["followed_s"]) == len(found["generator_late_us_p99"]) == 1


@pytest.mark.long
def test_odd(found):
    beside = ["beside odd requests", "beside 11 odd requests at once"]
    assert set(measured(found)) == {(name, "64 at 20000/s") for name in ("alone", *beside)}
    assert [len(found["p99_times_alone"][name]["turns"]) for name in beside] == [1, 1]
    assert found["wrong_answers"] == 0


@pytest.mark.long
def test_switch_with_redis():
    document = finished("switch", "--redis", *PARTS["switch"])
    assert set(measured(document)) == {("quiet", "4 at 2000/s"), ("during the switch", "4 at 2000/s")}
    assert document["wrong_answers"] == 0


@pytest.mark.long
def test_sightings(found):
    loads = ("4 x 256", "4 x 16", "1 x 1", "4 at 20000/s")
    assert set(measured(found)) == {(server, load) for server in ("with sightings", "without") for load in loads}
    assert set(found["throughput_ratio"]) == set(loads[:3])
    assert len(found["targets"]) == 4
    assert found["checks"]["total"] > 1000


@pytest.mark.long
def test_listed(found):
    assert set(measured(found)) == {
        (server, "4 at 20000/s") for server in ("quiet", "beside a loop", "beside the search", "beside the events")
    }
    assert found["devices"] == 2000
    assert len(found["first_event_s"]) == 1 <= found["events"][0]


@pytest.mark.long
def test_trace(found):
    loads = ("4 x 256", "4 at 50000/s")
    assert set(measured(found)) == {(server, load) for server in ("with a trace", "without") for load in loads}
    assert found["told"] > 0
    assert [target["wanted"] for target in found["targets"]] == ["at least 0.95", "at most 1.2"]


@pytest.mark.long
def test_first_seen(found):
    servers = ("with the record", "with a plain list", "without")
    assert set(measured(found)) == {(server, load) for server in servers for load in ("4 x 256", "4 at 20000/s")}
    assert found["on_record"] > found["entries"]  # the new devices too
    assert found["bytes_more"] > 0 < found["turn_ms"]["all"]
    wanted = ["at least 0.97", "at most 1.2", "at most 3"]
    assert [target["wanted"] for target in found["targets"]] == wanted


@pytest.mark.long
def test_feed(found):
    assert all(row["rows_per_s"] > 0 for row in found["measured"])
    assert (list(found["answered"]), found["wrong_answers"]) == (["201"], 0)
    assert found["diameter_p99"]["beside_us"] > 0
    assert [target["wanted"] for target in found["targets"]] == ["at least 5000", "at most 1.5"]


@pytest.mark.long
def test_device_authenticity(found):
    assert all(row["answers_per_s"] > 0 for row in found["measured"])
    assert (list(found["answered"]), found["wrong_answers"]) == (["200"], 0)
    assert found["diameter_p99"]["beside_us"] > 0
    assert [target["wanted"] for target in found["targets"]] == ["at most 2"]


@pytest.mark.long
def test_profile(found):
    stages = {row["stage"]: row["us"] for row in found["stages"]}
    assert {"read and poll", "write", "lane" if COMPILED else "general path"} <= set(stages)
    assert sum(stages.values()) == pytest.approx(found["us_per_check"], abs=0.05)
    assert stages.get("other", 0) < found["us_per_check"] / 4
    assert found["floor_us"] > 0


@pytest.mark.long
def test_follow(printed):
    assert printed["entries"] == 100_000
    waited = {what: turns for what, turns in printed["turns"].items() if "processor" not in what}
    assert (len(waited), len(printed["medians"])) == (4, 6)
    assert all(seconds > 0 for turns in waited.values() for seconds in turns)
    assert all(
        seconds >= 0 for turns in printed["turns"].values() for seconds in turns
    )  # clock ticks: so few pages may take none


@pytest.mark.long
def test_index(printed):
    (row,) = printed
    assert row["entries"] == 100_000
    assert all(row[name] > 0 for name in ("ready_s", "hot_ns", "hit_ns", "miss_ns", "longest_slice_ms", "image_mb"))
    assert row["follow_s"] >= 0


def test_load(printed):
    assert [row["shape"] for row in printed] == ["50k", "250k", "50k-reasons"]
    assert all(19_000 < row["entries"] <= row["rows"] == 20_000 for row in printed)
    assert all(row["load_s"] > 0 < row["csv_s"] for row in printed)


@pytest.mark.long
def test_tamper(printed):
    assert {row["kind"] for row in printed["measured"]} >= {
        "clone, 2 copies",
        "clone, 3 copies",
        "box",
        "box, a number for two checks",
        "taken",
        "never_allocated",
        "free",
        "zero",
    }
    assert all(row["planted"] and 0 <= row["recall"] <= 1 and 0 <= row["dirbs"] <= 1 for row in printed["measured"])
    assert len(printed["precision"]) == 2
    assert {"recall: clone, 2 copies", "recall: box", "precision"} <= {target["what"] for target in printed["targets"]}
    assert 0 <= printed["high"]["share"] <= 1


@pytest.mark.long
def test_redis_memory(printed):
    (row,) = printed
    assert 0 < row["pages of bitmaps"] < row["one plain set"] < row["one key each"]


def command_line(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""  # it has ended meanwhile


@pytest.mark.long
def test_a_part_that_is_stopped_leaves_nothing_behind(tmp_path):
    command = [sys.executable, SCRIPTS / "bench", "switch", "--quick", "--entries", "20000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            serving = until(lambda: [pid for pid in processes(process.pid) if b"serve" in command_line(pid)])
        finally:
            process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert all(until(lambda pid=pid: is_gone(pid)) for pid in serving)
    assert list(tmp_path.iterdir()) == []


def test_every_part_has_a_short_form_that_is_run_here():
    """A part that is not tried breaks with the first change of what it measures."""
    assert {path.stem.removeprefix("bench_").replace("_", "-") for path in SCRIPTS.glob("bench_*.py")} == {
        *PARTS,
        *APART,
    }


PRINT_HELP = """
import contextlib, importlib, sys
for part in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        importlib.import_module(part).main(["--help"])
"""


def test_every_part_prints_its_usage():
    """All parts of bench and soak, in one process: argparse formats the help of an option only when it prints it."""
    parts = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem.startswith(("bench_", "soak_")))
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HELP, *parts], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(parts)


UPGRADE_HERE = """
import sys
from pathlib import Path
import soak_upgrade
soak_upgrade.ROOT = Path(sys.argv[1])
sys.exit(soak_upgrade.main([]))
"""


def test_soak_upgrade_in_a_clone_without_tags_names_the_option_that_it_needs(tmp_path):
    git = ["git", "-C", tmp_path, "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git[:3], "init", "-q"], check=True)
    for text in ("first", "second"):
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", text], check=True)
    done = subprocess.run(
        [sys.executable, "-c", UPGRADE_HERE, tmp_path], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "soak upgrade: error: this clone has no tag before its commit: name the earlier program with --from COMMIT"
    )


# ---- the questions ----


def test_questions_are_of_the_list_as_often_as_asked_for(benchmark, tmp_path):
    questions = benchmark.questions
    listed = questions.scattered(5_000, 100)
    assert len(set(listed.keys.tolist())) == 5_000
    assert set((listed.keys // PAGE_KEYS).tolist()) <= set(listed.tacs.tolist())
    questions.write_questions(tmp_path / "q", listed, count=20_000, hits=0.01)
    rows = (tmp_path / "q").read_text().splitlines()
    keys = set(listed.keys.tolist())
    assert all((row[14] == "1") == (int(row[:14]) in keys) for row in rows)
    assert 100 < sum(row[14] == "1" for row in rows) < 400
    tacs = sorted((sum(row.startswith(f"{tac:08d}") for row in rows) for tac in listed.tacs), reverse=True)
    assert tacs[0] > 1.5 * tacs[1] > 2 * tacs[9]  # Zipf: 1, 1/2, … 1/10
    questions.write_list(tmp_path / "l", listed.keys)
    header, *entries = (tmp_path / "l").read_text().splitlines()
    assert header == "imei"
    assert set(map(int, entries)) == keys


# ---- the generator ----


def eca(
    request, *, hop_by_hop=None, command=324, flags=0x40, session=None, status=0, result=2001, origin=True, extra=b""
):
    """An answer to an ECR, right or wrong in one way."""
    parts = [avp(263, request.data(263) if session is None else session)]
    parts += [u32(268, result)] if result != UNKNOWN else [avp(297, u32(266, TGPP) + u32(298, 5422))]
    parts += [u32(277, 1), avp(264, "eir.example"), avp(296, REALM)] if origin else [u32(277, 1)]
    parts += [] if status is None else [u32(1445, status, TGPP)]
    ids = (request.hop_by_hop if hop_by_hop is None else hop_by_hop, request.end_to_end)
    return message(command, b"".join(parts) + extra, flags, request.app, ids)


FAULTS = {
    "none": ({}, set()),
    "unknown equipment": ({"result": UNKNOWN, "status": None}, set()),
    "another session": ({"session": "another"}, {"session"}),
    "session of the same length": ({"session": "x" * 40}, {"session"}),
    "another status": ({"status": 1}, {"status"}),
    "a status that does not exist": ({"status": 3}, {"result"}),
    "no status": ({"status": None}, {"result"}),
    "an error": ({"result": 5012, "status": None}, {"result"}),
    "two results": ({"extra": u32(268, 2001)}, {"result"}),
    "a status beside 5422": ({"result": UNKNOWN}, {"result"}),
    "no origin": ({"origin": False}, {"origin"}),
    "two origins": ({"extra": avp(264, "eir.example")}, {"origin"}),
    "the E bit": ({"flags": 0x60}, {"flags"}),
    "another hop-by-hop id": ({"hop_by_hop": 0x7FFF_FFFF}, {"unasked", "unanswered"}),
    "another command": ({"command": 323}, {"unasked", "unanswered"}),
    "an AVP that is too long": ({"extra": avp(1, b"x", length=400)}, {"malformed"}),
    "an AVP that is too short": ({"extra": avp(1, b"x", length=7)}, {"malformed"}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_generator_sees_every_fault(benchmark, tmp_path, fault):
    """Every fourth answer has the fault."""
    put, expected = FAULTS[fault]
    (tmp_path / "questions").write_text(
        "351234567890120\n" * 3 + f"35123456789012{'u' if put.get('result') == UNKNOWN else 0}\n"
    )

    async def serve(reader, writer):
        count = 0
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(4)
                request = Message(head + await reader.readexactly(int.from_bytes(head[1:]) - 4))
                if request.command == 324:
                    count += 1
                    writer.write(eca(request, **(put if count % 4 == 0 else {})))
                else:
                    writer.write(
                        message(request.command, u32(268, 2001), 0, 0, (request.hop_by_hop, request.end_to_end))
                    )
        writer.close()
        await writer.wait_closed()

    async with accepting(serve) as (_, port):
        process = await asyncio.create_subprocess_exec(
            benchmark.build.program("load"), f"port={port}", f"questions={tmp_path / 'questions'}", f"realm={REALM}",
            "window=4", "warmup=0", "seconds=0.2", f"patience={0.05 if 'unanswered' in expected else 20}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
    found = json.loads(out)
    assert process.returncode == 0
    assert {name for name, count in found["errors"].items() if count} == expected
    assert found["answered"] > 4
    assert (found["statuses"]["unknown"] > 0) == (fault == "unknown equipment")


async def test_a_server_that_ends_the_connection(benchmark, tmp_path):
    (tmp_path / "questions").write_text("351234567890120\n")

    async def serve(reader, writer):
        request = Message(await reader.read(9999))
        writer.write(message(257, u32(268, 2001), 0, 0, (request.hop_by_hop, request.end_to_end)))
        await reader.read(9999)
        writer.close()
        await writer.wait_closed()

    async with accepting(serve) as (_, port):
        process = await asyncio.create_subprocess_exec(
            benchmark.build.program("load"), f"port={port}", f"questions={tmp_path / 'questions'}",
            "patience=0.05", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
    found = json.loads(out)
    assert (found["answered"], found["errors"]["closed"], found["errors"]["unanswered"]) == (0, 1, 1)


def test_wrong_arguments(benchmark):
    for words in (["prot=1"], ["port=x"], ["window=0"], ["questions=/nonexistent"]):
        done = subprocess.run([benchmark.build.program("load"), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("load: ")


class TestProgramOfAnotherTree:
    @pytest.fixture(autouse=True)
    def scripts(self, monkeypatch):
        monkeypatch.syspath_prepend(str(SCRIPTS))

    def tree(self, folder, *, has_program):
        """A tree whose Python is this one; with a program of its own, that is what this Python imports there."""
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        if has_program:
            (folder / "eir").mkdir()
            (folder / "eir" / "__init__.py").touch()
        return folder

    def test_is_its_own(self, tmp_path):
        from benchmark.site import program_of

        python, *module = program_of(self.tree(tmp_path, has_program=True))
        assert python == str(tmp_path / ".venv" / "bin" / "python")
        assert module == ["-P", "-m", "eir"]

    def test_is_missing_without_an_environment_of_its_own(self, tmp_path):
        from benchmark.site import Missing, program_of

        for tree in (tmp_path / "none", self.tree(tmp_path / "other", has_program=False)):
            with pytest.raises(Missing, match="scripts/setup"):
                program_of(tree)
