"""A million questions over Diameter S13, N5g-eir, MAP and GSUP: one policy gives the same verdict to an MME, an AMF and an MSC.

The devices are listed ones, their neighbours, and random ones; with 14, 15 and 16 digits, each software version, and SIMs of the home and of
other networks. A device that is listed with one software version is found with every other. GSUP has no software version and two
answers: a blacklisted device is refused, each other is not.
"""

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from simulated import http2_wire
from simulated.node import Publisher, Site
from simulated.servers import free_port
from simulated.traffic import connect, lists_of, write_list
from simulated.wire import HOST, TGPP, avp, ecr

from eir.interfaces.gsup import INTERFACE as GSUP
from eir.interfaces.map import INTERFACE as MAP

BATCH = 500
ENTRIES = 100_000
PARTS = 20
"""Number of parts; progress is printed after each."""
WORDS = {"WHITELISTED": 0, "BLACKLISTED": 1, "GREYLISTED": 2}
UNKNOWN = 3
Ask: TypeAlias = Callable[..., Awaitable[str]]


def main(arguments: list[str]) -> int:
    """Run the part `protocols` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak protocols", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of the questions (default: random)"
    )
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        (folder / "publisher").mkdir()
        keys, _ = lists_of(ENTRIES, options.seed)
        write_list(folder / "list.csv", keys)
        with Site(folder / "site", Publisher(folder / "publisher")) as site:
            rules = [
                {"imsi": "26201", "answer": "unknown"}, {"list": "stolen", "answer": "blacklisted"},
                {"software_version": ["07", "77"], "answer": "greylisted"},
            ]  # fmt: skip
            ports = [free_port(), free_port()]
            ss7 = {"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{ports[0]}"]}
            site.configure(
                n5g={"listen": "http://127.0.0.1:0"}, ss7=ss7, gsup={"listen": f"tcp://127.0.0.1:{ports[1]}"}, policy={"rules": rules},
            )  # fmt: skip
            site.load(folder / "list.csv")
            answers, wrong = asyncio.run(_soak(site.start(), ports, [int(key) for key in keys], options))
    print(f"{sum(answers.values()):,} questions over each protocol: {dict(answers)}; {len(wrong)} answered differently")
    for each in wrong[:10]:
        print(f"not kept: {each}", file=sys.stderr)
    return 1 if wrong or not all(answers[word] for word in (*WORDS, "UNKNOWN")) else 0


async def _soak(
    node: Any, ports: list[int], keys: list[int], options: argparse.Namespace
) -> tuple[Counter[str], list[str]]:
    by_map = MAP.probe_of(f"map://127.0.0.1:{ports[0]}?point_code=1-1-3&to_point_code=1-1-2", timeout_s=60)
    by_gsup = GSUP.probe_of(f"gsup://127.0.0.1:{ports[1]}", timeout_s=60)
    async with by_map.asking() as ask_map, by_gsup.asking() as ask_gsup:
        return await _compare(node, keys, options, ask_map, ask_gsup)


async def _compare(
    node: Any, keys: list[int], options: argparse.Namespace, ask_map: Ask, ask_gsup: Ask
) -> tuple[Counter[str], list[str]]:
    chance, answers, wrong = random.Random(options.seed), Counter[str](), list[str]()
    listed, words = set(keys), [*WORDS, "UNKNOWN"]
    mme = await connect(node, HOST)
    url = next(url for url in node.status()["listening"] if url.startswith("http:"))
    host, _, port = url.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(http2_wire.HELLO + http2_wire.frame(http2_wire.WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4)))
    stream, told = 1, 0
    while (done := sum(answers.values())) < options.questions:
        if done - told >= options.questions // PARTS:
            told = done
            print(f"{done:,} over each protocol; {len(wrong)} answered differently", flush=True)
        asked = [_question(chance, keys) for _ in range(BATCH)]
        await mme.send(*(
            ecr(terminal=_terminal(digits), user=avp(1, imsi), ids=(n, n), session=avp(263, f"{HOST};{stream};{n}")) for n, (digits, imsi) in enumerate(asked)
        ))  # fmt: skip
        by_mme = []
        for _ in asked:
            answer = await mme.read()
            status = answer.number(1445, TGPP)
            by_mme.append(UNKNOWN if status is None else status)
        kinds = {15: "imei", 16: "imeisv"}
        octets = [
            http2_wire.get(stream + 2 * n, f"{http2_wire.RESOURCE}?pei={kinds[len(digits)]}-{digits}&supi=imsi-{imsi}")
            for n, (digits, imsi) in enumerate(asked)
        ]
        by_amf = await _answers(reader, writer, octets, stream)
        by_msc = await asyncio.gather(*(ask_map(*each) for each in asked))
        by_osmo = await asyncio.gather(*(ask_gsup(*each) for each in asked))
        for (digits, imsi), mine, theirs, said, passed in zip(asked, by_mme, by_amf, by_msc, by_osmo, strict=True):
            answers[words[mine]] += 1
            black = mine == WORDS["BLACKLISTED"]
            same = (
                mine == theirs and words[mine].lower() == said and passed == ("blacklisted" if black else "whitelisted")
            )
            if not same or black != (int(digits[:14]) in listed and not imsi.startswith("26201")):
                wrong.append(
                    f"{digits} with {imsi}: {words[mine]} over S13, {words[theirs]} over N5g-eir, {said} over MAP, {passed} over GSUP"
                )
        stream += 2 * BATCH
    await mme.close()
    writer.transport.abort()
    return answers, wrong


def _terminal(digits: str) -> bytes:
    """Return Terminal-Information as MMEs fill it: a software version accompanies 14 digits."""
    version = avp(1403, digits[14:], TGPP) if len(digits) == 16 else b""
    return bytes(avp(1401, avp(1402, digits[:14] if version else digits, TGPP) + version, TGPP))


def _question(chance: random.Random, keys: list[int]) -> tuple[str, str]:
    """Return digits and IMSI."""
    key = chance.choice(keys) if chance.random() < 0.7 else chance.randrange(10**14)
    if chance.random() < 0.4:
        key = (key + chance.choice((-1, 1, 10, 10**6))) % 10**14
    tail = f"{chance.randrange(10)}" if chance.random() < 0.5 else f"{chance.randrange(100):02d}"
    return (
        f"{key:014d}{tail}",
        f"{chance.choice(('00101', '00101', '00101', '26201', '26202'))}{chance.randrange(10**10):010d}",
    )


async def _answers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, octets: list[bytes], first: int
) -> list[int]:
    """Return the verdict of each request, in order."""
    rest, found, sent = b"", {}, 0
    while len(found) < len(octets):
        if sent < len(octets) and sent - len(found) < BATCH // 5:
            writer.write(b"".join(octets[sent : sent + BATCH // 10]))
            sent += BATCH // 10
        frames, rest = http2_wire.frames(rest + await reader.read(1 << 16))
        for stream, body in http2_wire.bodies(frames).items():
            document = json.loads(body)
            found[stream] = WORDS.get(document["status"], UNKNOWN)
    return [found[first + 2 * n] for n in range(len(octets))]
