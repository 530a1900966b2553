"""Rows/s of a register; latency of Diameter.

The node has one worker and its feed on one core, over SQLite on the disk of the folder for temporary files, and a list of 100,000
devices beside the one that is fed. Each row is about another device, over 10,000 TACs, and 201 says that it is durable.
"""

import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark import feeder
from benchmark.beside import DIAMETER, Clients, p99_beside_us, p99_us
from benchmark.measure import Target, at_least, at_most, begin, finish, say
from benchmark.servers import free_port
from benchmark.site import LIST, loaded

from eir.cli.table import table
from eir.interfaces.feed.feed_users import user_line

QUESTIONS = 100_000
CONNECTIONS, RATE = 256, 5000.0
P99_TIMES = 1.5


def main(arguments: Sequence[str]) -> int:
    """The part `feed` of scripts/bench."""
    options, on, how = begin("feed", __doc__, arguments, seconds=5, turns=3)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, release, questions = loaded(folder, options, questions=QUESTIONS)
        (site.folder / "users").write_text(user_line(feeder.USER, feeder.PASSWORD))
        fed: list[dict[str, Any]] = []
        alone, beside = [], []
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
                alone.append(p99_us(eir, questions, how, on.generator))
                beside.append(p99_beside_us(eir, questions, how, register, RATE))
                fed.append(register.answered(0, how.seconds))
            say(
                f"turn {turn + 1}: {fed[-1]['answers_per_s']:,.0f} rows/s; p99 of checks {alone[-1]:,.0f} us alone, {beside[-1]:,.0f} us beside {RATE:,.0f} rows/s"
            )
    answered = sum((Counter(found["answers"]) for found in fed), Counter[str]())
    most = statistics.median(found["answers_per_s"] for found in fed)
    p99 = {"alone_us": round(statistics.median(alone), 1), "beside_us": round(statistics.median(beside), 1)}
    targets: list[Target] = [
        at_least("rows a second that are taken, on the core of the worker", RATE, round(most)),
        at_most(
            f"p99 of Diameter beside {RATE:,.0f} rows a second, times its own",
            P99_TIMES,
            round(p99["beside_us"] / p99["alone_us"], 2),
        ),
    ]
    rows = [
        {
            "rows_per_s": round(found["answers_per_s"]),
            "p50_ms": round(found["p50_ms"], 1),
            "p99_ms": round(found["p99_ms"], 1),
        }
        for found in fed
    ]
    text = table(rows, ("rows_per_s", "p50_ms", "p99_ms"), width=None)
    text += f"Diameter at {DIAMETER.rate:,.0f}/s: p99 {p99['alone_us']:,.0f} us alone, {p99['beside_us']:,.0f} us beside {RATE:,.0f} rows a second\n"
    document = {
        "measured": rows,
        "diameter_p99": p99,
        "wrong_answers": answered.total() - answered["201"],
        "answered": dict(answered),
    }
    return finish("feed", document, targets, options, text)
