"""Nodes that follow one folder over HTTPS through a faulty server: after each change all have its content within a minute of recovery.

A publisher changes the folder again and again, by deltas that are folded at times. Before each recovery any request may be dropped, cut
off, stalled, corrupted, answered from an earlier state, redirected, or answered without end. No content without the publisher's
signature may ever be in force, and a node acknowledges only content that it has. A printed seed draws the faults.
"""

import argparse
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from simulated.certificates import Authority
from simulated.node import Publisher, Site
from simulated.publisher_folder import NAME, Register
from simulated.web_folder import FAULTS, Web, tls

from eir.errors import ReleaseRefused
from eir.lists.sources import acknowledgement
from eir.lists.sources.folder_writer import load_index

RECOVERED_S = 60.0
"""Maximum time from the end of the faults until every node has the folder's content and has acknowledged it."""
FAULTY = 0.6
"""Share of the requests with a fault, until the recovery."""
LOOK_S = 0.1
ROWS = 2000


def main(arguments: list[str]) -> int:
    """Run the part `sources` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak sources", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=60, help="number of changes of the folder")
    parser.add_argument(
        "--minute", type=float, default=6.0, help="seconds from one change to the recovery, in place of a minute"
    )
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="seed of the faults (default: random)")
    options = parser.parse_args(arguments)
    print(f"{options.changes} changes, {options.nodes} nodes, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        broken = _Soak(Path(name), options).run()
    for promise in broken[:50]:
        print(f"not kept: {promise}", file=sys.stderr)
    return 1 if broken else 0


class _Soak:
    """A publisher, its server, and the nodes of some operators."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.chance = random.Random(options.seed)
        (folder / "publisher").mkdir()
        self.publisher = Publisher(folder / "publisher")
        self.authority = Authority(folder / "tls")
        context = tls(self.authority, "localhost")
        self.register = Register(
            folder / "register", self.publisher.key, context=context, stall_s=options.minute / 2, methods=("POST",)
        )
        self.befell: Counter[str] = Counter()
        self.proven: dict[int, str] = {}
        """Serial → content, of all that was ever offered."""
        self.broken: list[str] = []
        self.took_s: list[float] = []

    @property
    def web(self) -> Web:
        """Return the web server of the register."""
        return self.register.web

    def run(self) -> list[str]:
        """Return the broken promises."""
        rows = [f"0010100600{number:04}" for number in range(ROWS)]
        self.register.publish(rows[:1000])
        with ExitStack() as stack:
            stack.enter_context(self.web)
            sites = [stack.enter_context(self._site(number)) for number in range(self.options.nodes)]
            self._offer()
            nodes = [site.start(ready=False) for site in sites]
            keys = [site.eir("acknowledge", "--key").stdout for site in sites]
            (self.register.folder / "nodes").write_text("".join(keys))
            self._recovered(nodes)
            for number in range(self.options.changes):
                self.web.remember()
                self.web.fault = self._fault
                self.register.publish(
                    added=rows[1000 + number : 1001 + number], keep=timedelta(seconds=10 * self.options.minute)
                )
                self._offer()
                self._watch(nodes, time.monotonic() + self.options.minute)
                self.web.fault = None
                self._recovered(nodes)
                if number % 10 == 9:
                    print(f"{number + 1} changes; slowest after a recovery {max(self.took_s):.1f} s", flush=True)
            self._refused(nodes)
            for node in nodes:
                node.end()
        index = load_index(self.register.folder)
        print(
            f"{sum(self.befell.values())} faults: {', '.join(f'{count} {what}' for what, count in sorted(self.befell.items()))}"
        )
        print(
            f"the folder offers {len(index.releases) if index else 0} releases, the newest full one {index.full.serial if index else 0} of {self.register.serial}"
        )
        print(
            f"all nodes in step {max(self.took_s):.1f} s after a recovery at most, {sorted(self.took_s)[len(self.took_s) // 2]:.1f} s in the middle"
        )
        return self.broken

    def _site(self, number: int) -> Site:
        site = Site(self.folder / f"operator-{number}", self.publisher)
        source = {"url": self.web.url, "ca": str(self.authority.pem), "every": "2s", "acknowledge": True}
        lists = {NAME: {"signers": "signers", "source": source}, "tracked": {"signers": "signers"}}
        site.configure(
            identity=site.settings["identity"] | {"host": f"eir{number}.operator{number}.example"}, lists=lists
        )
        return site

    def _offer(self) -> None:
        index = load_index(self.register.folder)
        if index is not None:
            self.proven |= {offer.serial: offer.content for offer in index.releases}

    def _fault(self, _: str) -> str | None:
        if self.chance.random() > FAULTY:
            return None
        fault = self.chance.choice(FAULTS)
        self.befell[fault] += 1
        return fault

    def _watch(self, nodes: list[Any], until: float) -> None:
        """Verify until this time that no unsigned content is in force."""
        while time.monotonic() < until:
            self._look(nodes)
            time.sleep(LOOK_S)

    def _look(self, nodes: list[Any]) -> list[int]:
        found = []
        for node in nodes:
            state = node.status()["lists"].get(NAME, {"serial": 0, "digest": None})
            found.append(state["serial"])
            if state["serial"] and self.proven.get(state["serial"]) != state["digest"]:
                self.broken.append(f"serial {state['serial']} is in force with {state['digest']}, which nobody signed")
        return found

    def _recovered(self, nodes: list[Any]) -> None:
        """Return true if all nodes have the offered content, and have acknowledged it, in time."""
        began, wanted = time.monotonic(), self.register.serial
        while time.monotonic() < began + RECOVERED_S:
            if set(self._look(nodes)) == {wanted} and self._acknowledged() == [wanted] * len(nodes):
                self.took_s.append(time.monotonic() - began)
                return
            time.sleep(LOOK_S)
        self.took_s.append(RECOVERED_S)
        self.broken.append(
            f"serial {wanted}: nodes have {self._look(nodes)} and say {self._acknowledged()} {RECOVERED_S:g} s after the recovery"
        )

    def _acknowledged(self) -> list[int]:
        """Return the serials that nodes acknowledged last, each with its content."""
        found = []
        folder = self.folder / "given"
        folder.mkdir(exist_ok=True)
        for path, content in sorted(self.web.given.items()):
            file = folder / Path(path).name
            file.write_bytes(content)
            try:
                nodes = self.register.folder / acknowledgement.NODES
                made = acknowledgement.read_acknowledgement(file, nodes, datetime.now(UTC))
            except ReleaseRefused as e:
                self.broken.append(f"{path} is not proved: {e}")
                continue
            said = made.lists[NAME]
            if self.proven.get(said.serial) != said.content:
                self.broken.append(f"{made.node} acknowledges other content for serial {said.serial}")
            found.append(said.serial)
        return found

    def _refused(self, nodes: list[Any]) -> None:
        """Return true if no release was refused because of a fault of the connection, and the program had no fault."""
        for node in nodes:
            events = node.site.json("history", NAME, "-n", 10**6)
            self.broken += [
                f"{event['what']} {event['serial']}: {event['detail']}" for event in events if event["what"] == "refuse"
            ]
            self.broken += [str(line) for line in node.lines("fault")]
