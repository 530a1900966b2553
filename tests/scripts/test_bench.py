"""scripts/bench: each part runs and prints its table, whatever the figures; the generator sees every fault of an answer."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from benchmark import build, questions
from simulated.hostile import processes
from simulated.node import is_gone, until
from simulated.patience import PATIENCE_S, PROGRAM_S
from simulated.tcp_server import accepting
from simulated.wire import TGPP, Message, avp, message, u32

from eir.device import SNR_KEYS

SCRIPTS = Path(__file__).parents[2] / "scripts"
REALM = "mme.example"
UNKNOWN = "10415:5422"
PARTS = {
    "ecr": ("--connections", "2", "--windows", "1", "16", "--rates", "20000"),
    "peers": ("--peer", "otp", "--peer", "freediameter"),
    "sizes": ("--entries", "1000", "50000"),
} | dict.fromkeys(("n5g", "first-seen", "feed", "map", "follow", "load", "tamper"), ())
"""Arguments of each part's smallest form."""
FORMS = {part: (part, *more) for part, more in PARTS.items()} | {
    "sizes of pairs": ("sizes", "--pairs", *PARTS["sizes"]),
    "sizes in Redis": ("sizes", "--redis", *PARTS["sizes"]),
}
AT_ONCE = 3
"""Parts that run side by side: with more, a busy host leaves a part's server unheard for as long as its generator waits."""


@pytest.fixture(scope="module")
def running(request):
    """Parts whose tests run, some side by side: no time is of interest here."""
    wanted = [
        item.callspec.params["form"] for item in request.session.items
        if item.path == request.path and "running" in item.fixturenames
    ]  # fmt: skip

    def run(form):
        return subprocess.run(
            [sys.executable, SCRIPTS / "bench", *FORMS[form], "--quick"], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=PROGRAM_S,
        )  # fmt: skip

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {form: pool.submit(run, form) for form in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.long(short=["load"])
@pytest.mark.parametrize("form", FORMS)
def test_a_part_prints_its_table(running, form):
    """A part ends with status 1 if an answer was wrong."""
    done = running[form].result()
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines()[1:] if re.search(r"\d", line)], done.stdout


def command_line(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""  # it has ended meanwhile


@pytest.mark.long
def test_a_part_that_is_stopped_leaves_nothing_behind(tmp_path):
    command = [sys.executable, SCRIPTS / "bench", "sizes", "--quick", "--entries", "20000"]
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
    """A part that is not tried breaks with the first change of its subject."""
    parts = {path.stem.removeprefix("bench_").replace("_", "-") for path in SCRIPTS.glob("bench_*.py")}
    assert parts == PARTS.keys()


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


def test_questions_are_of_the_list_as_often_as_asked_for(tmp_path):
    listed = questions.scattered(5_000, 100)
    assert len(set(listed.keys.tolist())) == 5_000
    assert set((listed.keys // SNR_KEYS).tolist()) <= set(listed.tacs.tolist())
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
async def test_the_generator_sees_every_fault(tmp_path, fault):
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
            build.program("load"), f"port={port}", f"questions={tmp_path / 'questions'}", f"realm={REALM}",
            "window=4", "warmup=0", "seconds=0.2", f"patience={0.05 if 'unanswered' in expected else 20}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
    found = json.loads(out)
    assert process.returncode == 0
    assert {name for name, count in found["errors"].items() if count} == expected
    assert found["answered"] > 4
    assert (found["statuses"]["unknown"] > 0) == (fault == "unknown equipment")


async def test_a_server_that_ends_the_connection(tmp_path):
    (tmp_path / "questions").write_text("351234567890120\n")

    async def serve(reader, writer):
        request = Message(await reader.read(9999))
        writer.write(message(257, u32(268, 2001), 0, 0, (request.hop_by_hop, request.end_to_end)))
        await reader.read(9999)
        writer.close()
        await writer.wait_closed()

    async with accepting(serve) as (_, port):
        process = await asyncio.create_subprocess_exec(
            build.program("load"), f"port={port}", f"questions={tmp_path / 'questions'}",
            "patience=0.05", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
    found = json.loads(out)
    assert (found["answered"], found["errors"]["closed"], found["errors"]["unanswered"]) == (0, 1, 1)


def test_wrong_arguments():
    for words in (["prot=1"], ["port=x"], ["window=0"], ["questions=/nonexistent"]):
        done = subprocess.run([build.program("load"), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("load: ")
