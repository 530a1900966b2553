"""A million questions over Diameter S13, N5g-eir, MAP and GSUP: one policy gives the same verdict to an MME, an AMF and an MSC.

The devices are listed ones, their neighbours, and random ones; with 15 and 16 digits, each software version, and SIMs of the home and of
other networks. A device that is listed with one software version is found with every other. GSUP has no software version and two
answers: a blacklisted device is refused, each other is not.
"""

import argparse
import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from parts import report, seeded, site
from simulated.servers import free_port
from simulated.traffic import lists_of, write_list
from simulated.wire import HOST, REALM

from eir.interfaces import INTERFACES

BATCH, ENTRIES = 100, 100_000
"""Number of questions at one time, which one HTTP/2 connection may have; entries of the list."""
PARTS = 20
"""Number of parts; progress is printed after each."""
STATUSES = {"whitelisted", "blacklisted", "greylisted", "unknown"}


def main(arguments: list[str]) -> int:
    """Run the part `protocols` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak protocols", description=__doc__)
    parser.add_argument("--questions", type=int, default=1_000_000)
    options = seeded(parser, arguments)
    keys = [int(key) for key in lists_of(ENTRIES, options.seed)[0]]
    with site() as host:
        write_list(host.folder / "list.csv", keys)
        rules = [
            {"imsi": "26201", "answer": "unknown"}, {"list": "stolen", "answer": "blacklisted"},
            {"software_version": ["07", "77"], "answer": "greylisted"},
        ]  # fmt: skip
        s13, n5g, ss7, gsup = (free_port() for _ in range(4))
        host.configure(
            listen=[f"tcp://127.0.0.1:{s13}"], n5g={"listen": f"http://127.0.0.1:{n5g}"}, gsup={"listen": f"tcp://127.0.0.1:{gsup}"},
            ss7={"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{ss7}"]}, policy={"rules": rules},
        )  # fmt: skip
        host.load(host.folder / "list.csv")
        host.start()
        urls = {
            "s13": f"s13://127.0.0.1:{s13}?origin_host={HOST}&origin_realm={REALM}", "n5g": f"n5g://127.0.0.1:{n5g}",
            "map": f"map://127.0.0.1:{ss7}?point_code=1-1-3&to_point_code=1-1-2", "gsup": f"gsup://127.0.0.1:{gsup}",
        }  # fmt: skip
        answers, wrong = asyncio.run(_compare(urls, keys, options))
    print(f"{answers.total():,} questions over each protocol: {dict(answers)}")
    return report([*wrong, *(f"no answer was {status}" for status in STATUSES - answers.keys())])


async def _compare(
    urls: dict[str, str], keys: list[int], options: argparse.Namespace
) -> tuple[Counter[str], list[str]]:
    chance, answers, wrong, listed = random.Random(options.seed), Counter[str](), list[str](), set(keys)
    async with AsyncExitStack() as stack:
        asks: list[Any] = [
            await stack.enter_async_context(each.probe_of(urls[each.name], timeout_s=60).asking())
            for each in INTERFACES if each.name in urls
        ]  # fmt: skip
        names = [each.name for each in INTERFACES if each.name in urls]
        told = 0
        while answers.total() < options.questions:
            if answers.total() - told >= options.questions // PARTS:
                told = answers.total()
                print(f"{told:,} over each protocol; {len(wrong)} wrong", flush=True)
            asked = [_question(chance, keys) for _ in range(BATCH)]
            found = await asyncio.gather(*(asyncio.gather(*(ask(*each) for each in asked)) for ask in asks))
            for (digits, imsi), *verdicts in zip(asked, *found, strict=True):
                by = dict(zip(names, verdicts, strict=True))
                answers[by["s13"]] += 1
                passed = "blacklisted" if by["s13"] == "blacklisted" else "whitelisted"
                expected = int(digits[:14]) in listed and not imsi.startswith("26201")
                if (
                    not by["s13"] == by["n5g"] == by["map"]
                    or by["gsup"] != passed
                    or (passed == "blacklisted") is not expected
                ):
                    wrong.append(f"{digits} with {imsi}: {by}")
    return answers, wrong


def _question(chance: random.Random, keys: list[int]) -> tuple[str, str]:
    """Return digits and IMSI."""
    key = chance.choice(keys) if chance.random() < 0.7 else chance.randrange(10**14)
    if chance.random() < 0.4:
        key = (key + chance.choice((-1, 1, 10, 10**6))) % 10**14
    tail = f"{chance.randrange(10)}" if chance.random() < 0.5 else f"{chance.randrange(100):02d}"
    network = chance.choice(("00101", "00101", "00101", "26201", "26202"))
    return f"{key:014d}{tail}", f"{network}{chance.randrange(10**10):010d}"
