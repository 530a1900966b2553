"""over_sctp.py FOLDER EBIN: what test_over_sctp looks at, made in one run in a kernel that has SCTP and whose network is its own.

A node, and at once two of OTP's MMEs and two freeDiameters as agents, one of each over one path and over two. Each
asks 500 times and more, stays until it has had a watchdog, and leaves by DPR. FOLDER has then `capture.pcapng` and `found.json`.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from far import OURS, THEIRS, far, linked
from simulated.agent import DRA, DRA_REALM, EIR_REALM, relay
from simulated.node import LISTED, TRACKED, UNLISTED, Publisher, Site, until
from simulated.patience import PATIENCE_S
from simulated.wire import EIR, HOST, REALM, TGPP, Connection, avp, cer, ecr

from eir.node.observe.control import ask as control

PORT = 3868
NEAR = ("127.0.0.1", "127.0.0.2")
OTP = {"otp-one": ("mme1.otp.localdomain", NEAR[:1], ()), "otp-two": ("mme2.otp.localdomain", OURS[:1], THEIRS)}
"""Peers by the node's name for them: their host, the addresses that they connect to, and those that they are bound
to."""
AGENTS = {"agent-one": (DRA, NEAR[:1]), "agent-two": (f"two.{DRA_REALM}", OURS)}
IMEIS = [LISTED, TRACKED, *(f"352099001{n:05d}" for n in range(500))]
ALL_OF_IT = ("-B", "16", "-N", "100000", "-C", "100000000")
"""Buffers of dumpcap: MiB of the kernel for each interface, packets and bytes that wait for the disk."""
DPA = re.compile(rb"\x01\x00..[\x00-\x7f]\x00\x01\x1a\x00\x00\x00\x00.{8}", re.DOTALL)
"""With its identifiers: one that SCTP sent again is the same."""


def configure(site):
    peers = [{"name": name, "host": host, "realm": REALM} for name, (host, *_) in OTP.items()]
    peers += [{"name": name, "host": host, "realm": DRA_REALM} for name, (host, _) in AGENTS.items()]
    site.configure(
        listen=[f"sctp://{','.join(addresses)}:{PORT}" for addresses in (NEAR, OURS)],
        identity={"host": EIR, "realm": REALM, "realms": [EIR_REALM]},
        peers=[peer | {"watchdog_s": 6} for peer in peers] + [{"name": "probe", "realm": REALM, "connections": 4}],
    )  # fmt: skip
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")


def otp(ebin, label):
    host, there, own = OTP[label]
    where = ":".join(["sctp", str(PORT), there[0], *([",".join(own)] if own else [])])
    command = ["erl", "-noshell", "-pa", ebin, "-run", "mme", "main", "-extra", where, host, REALM, REALM, *IMEIS]
    command = ["ip", "netns", "exec", "far", *command] if own else command
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"MME_STAY": "1"}
    )


async def through(place, port):
    """(IMEI, result, status) of each, asked at once through an agent that listens at this port."""
    with place:
        client = Connection(*await asyncio.open_connection("127.0.0.1", port))
    await client.open(cer(HOST))
    await client.send(
        *(ecr(imei, to_realm=avp(283, EIR_REALM), ids=(number, number)) for number, imei in enumerate(IMEIS))
    )
    answers = {answer.hop_by_hop: answer for answer in [await client.read() for _ in IMEIS]}
    await client.close()
    return [
        (imei, str(answers[number].result), str(answers[number].number(1445, TGPP)))
        for number, imei in enumerate(IMEIS)
    ]


def main(folder, ebin):
    (folder / "publisher").mkdir()
    capture, said = folder / "capture.pcapng", folder / "capture.said"
    found = {"answers": {}}
    with ExitStack() as stack:
        stack.enter_context(linked())
        site = stack.enter_context(Site(folder / "site", Publisher(folder / "publisher")))
        configure(site)
        with said.open("w") as stream:
            capturing = subprocess.Popen(
                ["dumpcap", "-q", *ALL_OF_IT, "-i", "lo", "-i", "one", "-i", "two", "-f", "sctp", "-w", capture],
                stderr=stream,
                stdout=stream,
            )
        stack.callback(capturing.wait)
        stack.callback(capturing.send_signal, signal.SIGINT)
        node = site.start()
        until(lambda: capture.exists() and capture.stat().st_size)
        mmes = {label: stack.enter_context(otp(ebin, label)) for label in OTP}
        with ExitStack() as agents:
            for label, (name, there) in AGENTS.items():
                (folder / label).mkdir()
                with far() if there == OURS else nullcontext():
                    port = agents.enter_context(relay(folder / label, {EIR: node}, sctp=there, name=name, label=label))
                found["answers"][label] = asyncio.run(through(far() if there == OURS else nullcontext(), port))
            for label, mme in mmes.items():
                found["answers"][label] = [mme.stdout.readline().rstrip("\n").split(" ", 2) for _ in IMEIS]
            found["probe"] = site.json(
                "probe",
                f"s13://{','.join(NEAR)}:{PORT}?transport=sctp&origin_host={HOST}&origin_realm={REALM}",
                LISTED,
                UNLISTED,
            )
            found["peers"], found["listening"] = control(site.state, "peers"), node.status()["listening"]
            found["metrics"] = until(lambda: watched(node.metrics()), patience_s=PATIENCE_S)
        for mme in mmes.values():
            mme.stdin.close()
            mme.stdin = None
        found["ends"] = {label: mme.wait(PATIENCE_S) for label, mme in mmes.items()}
        until(lambda: not any(node.status()["peers"].values()))
        until(lambda: len(set(DPA.findall(capture.read_bytes()))) >= len(OTP) + len(AGENTS) + 1)  # and the probe
    (folder / "found.json").write_text(json.dumps(found))


def watched(metrics):
    """The metrics, once each peer has answered a DWR or sent one."""
    seen = dict.fromkeys((*OTP, *AGENTS), 0.0)
    for name, value in metrics.items():
        for label in seen:
            if (
                name.startswith("eir_diameter_messages_total{")
                and "command=Device-Watchdog" in name
                and f"peer={label}" in name
                and "kind=answer" in name
            ):
                seen[label] += value
    return metrics if all(seen.values()) else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
