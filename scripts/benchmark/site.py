"""Host with an EIR for benches: a folder with a publisher's key, releases, configuration and state, and its node as a server."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from eir.errors import StoreError
from eir.lists.follow.list_copy import copied_heads
from eir.lists.record.settings import DEVICES, PAIRS, TYPES
from eir.lists.releases.publish import ReleaseSpec, publish
from eir.lists.stores.open import COPIES, SQLITE, open_store

from .questions import QUICK_QUESTIONS, Keys, scattered, write_list, write_questions
from .servers import REALM, Server, on_cores

LIST = "stolen"
ASKED = {PAIRS: "device_bound_elsewhere", TYPES: "device_type"}
"""Kind of list → rule condition for it, if that is not `list`. A device type is any word."""
ENTRIES, TACS = 100_000, 20_000
"""Number of devices of the list in most parts, and number of their TACs."""
REST_S, LOOK_S = 120, 0.1
EIR = [sys.executable, "-P", "-m", "eir"]


class Site:
    """Folder of a host; no process runs in it until `server` is entered."""

    def __init__(
        self,
        folder: Path,
        *,
        loader_cores: set[int] | None = None,
        store: str = SQLITE,
        kind: str = DEVICES,
    ) -> None:
        self.folder = folder
        self._kind = kind
        self.state = folder / "var"
        self.store = store
        self._loader_cores = loader_cores or os.sched_getaffinity(0)
        folder.mkdir(parents=True, exist_ok=True)
        self._key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        (folder / "signers").write_text(f"bench {self._key.with_suffix('.pub').read_text()}")

    def configure(self, port: int, **more: Any) -> Path:
        """Write the configuration; return its path."""
        path = self.folder / f"eir-{port}.yaml"
        settings: dict[str, Any] = {
            "identity": {"host": f"eir.{REALM}", "realm": REALM},
            "listen": [f"tcp://127.0.0.1:{port}"],
            "peers": [{"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"]}],
            "lists": {LIST: {"signers": "signers", "kind": self._kind}},
            "policy": {"rules": [{ASKED.get(self._kind, "list"): LIST, "answer": "blacklisted"}]},
            "http": "127.0.0.1:0",
            "store": self.store,
            "limits": {"load_memory": "16GB"},
        }
        path.write_text(yaml.safe_dump(settings | more, sort_keys=False))
        return path

    def release(self, data: Keys | Path, serial: int = 1, name: str = LIST) -> Path:
        """Make a signed release of the list, from keys or from a data file in the folder; return its manifest."""
        if not isinstance(data, Path):
            keys, data = data, self.folder / f"{name}-{serial}.csv"
            write_list(data, keys, with_imsi=self._kind == PAIRS)
        issued = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
        spec = ReleaseSpec(
            list=name,
            serial=serial,
            issued=issued,
            expires=issued + timedelta(days=30),
            keys=(self._key,),
            files=(data,),
        )
        return publish(spec, self.folder).manifest

    def load(self, manifest: Path, **more: Any) -> float:
        """Run `eir load` on the loader's cores; return its duration in seconds."""
        began = time.perf_counter()
        with on_cores(self._loader_cores):
            subprocess.run(
                [*EIR, "load", "--force", "-c", self.configure(0, **more), "--json", manifest],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return time.perf_counter() - began

    def server(self, name: str, port: int, *, cores: set[int], **more: Any) -> Server:
        """Run `eir serve` on this host."""
        path = self.configure(port, **more)
        return Server(
            name,
            [*EIR, "serve", "-c", path],
            port,
            log=self.folder / f"{name}.log",
            cores=cores,
            lists=True,
        )

    def eir(self, port: int, *arguments: str) -> Any:
        """Return the JSON output of another command."""
        done = subprocess.run(
            [*EIR, *arguments, "-c", self.folder / f"eir-{port}.yaml", "--json"],
            check=True,
            stdout=subprocess.PIPE,
        )
        return json.loads(done.stdout)


class Loaded(NamedTuple):
    """Host whose list is in force, and questions about the list."""

    site: Site
    release: Path
    """Manifest of the list's release."""
    questions: Path
    """File of questions; 1 % are about listed devices."""


def loaded(
    folder: Path, options: argparse.Namespace, *, entries: int = ENTRIES, tacs: int = TACS, questions: int
) -> Loaded:
    """Make host, list and questions in a folder: the beginning of most parts."""
    site, listed = Site(folder / "site"), scattered(entries, tacs)
    release = site.release(listed.keys)
    site.load(release)
    asked = folder / "questions"
    write_questions(asked, listed, count=QUICK_QUESTIONS if options.quick else questions, hits=0.01)
    return Loaded(site, release, asked)


async def at_rest(store: str, state: Path, name: str = LIST) -> None:
    """Wait until a node has written its copy of a list: in operation, changes are hours apart, and full releases days.

    Raises TimeoutError.
    """
    there = open_store(store, state)
    try:
        wanted = (await there.heads())[name]
        async with asyncio.timeout(REST_S):
            while _copied_digest(state, name) != wanted.digest:  # noqa: ASYNC110  # another process makes it true
                await asyncio.sleep(LOOK_S)
    finally:
        await there.close()


def _copied_digest(state: Path, name: str) -> str:
    """Return the digest of the newest change in a node's copy of a list; empty while the node writes it."""
    with suppress(StoreError, FileNotFoundError):
        if (head := copied_heads(state / COPIES).get(name)) is not None:
            return head.digest
    return ""
