"""Rows/s of a register; latency of Diameter.

The node and its feed have one core, a SQLite store in the temporary folder, a list of 100,000 devices, and a second list
that the register feeds. Each row is about another device, from 10,000 TACs. Status 201 means that the row is on disk.
"""

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark import feeder
from benchmark.beside import Clients, Latency, clients_report, latency_report
from benchmark.measure import at_least, begin, finish, say
from benchmark.servers import free_port
from benchmark.site import LIST, loaded

from eir.wire.web.passwords import user_line

QUESTIONS = 100_000
CONNECTIONS, RATE = 256, 5000.0
P99_TIMES = 1.5


def main(arguments: Sequence[str]) -> int:
    """Run the part `feed` of scripts/bench."""
    options, on, how = begin("feed", __doc__, arguments, seconds=5, turns=3)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, release, questions = loaded(folder, options, questions=QUESTIONS)
        (site.folder / "users").write_text(user_line(feeder.USER, feeder.PASSWORD))
        fed: list[dict[str, Any]] = []
        latency: list[Latency] = []
        for turn in range(how.turns):
            register = Clients(f"http://127.0.0.1:{free_port()}", CONNECTIONS, folder / "fed", on.generator)
            shutil.rmtree(site.state, ignore_errors=True)  # each turn begins with an empty list
            site.load(release)
            lists = {LIST: {"signers": "signers"}, "fed": {"local": True}}
            rules = [{"list": name, "answer": "blacklisted"} for name in lists]
            feed = {"listen": register.url, "users": "users", "from": "127.0.0.0/8", "lists": {"block": "fed"}}
            with site.server(
                "eir", free_port(), cores=on.server, lists=lists, policy={"rules": rules}, feed=feed
            ) as eir:
                latency.append(Latency(eir, questions, how, on.generator))
                p99_text = latency[-1].measure(register.asking(RATE, how))
                fed.append(register.answered(0, how.seconds))
            say(f"turn {turn + 1}: {fed[-1]['answers_per_s']:,.0f} rows/s; {p99_text}")
    most = statistics.median(turn["answers_per_s"] for turn in fed)
    p99, p99_target, p99_text = latency_report(latency, f"{RATE:,.0f} rows a second", P99_TIMES)
    targets = [
        at_least("rows a second that are taken, on the core of the answering process", RATE, round(most)),
        p99_target,
    ]
    document, rows_text = clients_report(fed, "rows", "201")
    return finish("feed", {**document, "diameter_p99": p99}, targets, options, rows_text + p99_text)
