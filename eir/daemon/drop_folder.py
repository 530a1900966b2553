"""The drop folder at work: a node watches it and has passes made in a process beside it, never on the loop that answers.

`make_pass` is what that process does (`eir inbox`): it holds the right to load in the store while it works, so that of
several nodes one loads, and another when that one died. `DropFolder` is the front's part.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from eir.config import Config
from eir.daemon.loader import Loads
from eir.errors import EirError, Report, StoreError
from eir.lists.delivered import Progress
from eir.lists.drop_folder import AGAIN_S, Listing, Watch, look
from eir.lists.inbox import WAITING, Attempts, Pass, PassSettings, Taken, take_in
from eir.lists.load import Loader, LoadReport
from eir.lists.release import Release
from eir.lists.store import ACCEPTED, ListStore, Mark
from eir.operate.owner import as_owner_of
from eir.stores.open import open_store, serial_marks

POLL_S = 1.0
CLAIM, CLAIM_S = "inbox", 30.0
"""The right to load from the drop folder, and how long it outlives a process that died."""
ATTEMPTS_FILE = "inbox.attempt"
KILL_AFTER_S = 5.0
FAILED_AGAIN_S, FAILED_AGAIN_MAX_S = 5.0, 600.0
"""Pause after a pass that failed as a whole; it doubles."""
SAID_BYTES_MAX = 2000
"""Of what a failed process said."""

LEVELS = {ACCEPTED: "info", WAITING: "info"}
"""Of the log lines; others are warnings."""


async def make_pass(config: Config, who: str) -> Pass:
    """Make one pass over the drop folder, if no other node is at it.

    The loads run in processes of their own, while this one keeps the right to load. Raises EirError if there is no drop folder
    or it cannot be used.
    """
    if config.inbox is None:
        raise EirError(f"{config.path} names no drop folder (inbox)")
    with Loads(partial(_load, config, who), config.load_memory) as loads:
        attempts = Attempts(config.state / ATTEMPTS_FILE)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _leave, number, attempts)
        store = open_store(config.store, config.state)
        holder = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
        try:
            if not await store.claim(CLAIM, holder, CLAIM_S):
                return Pass(again_s=CLAIM_S / 3)
            lease = _Lease(store, holder, time.monotonic() + CLAIM_S)
            keeping = asyncio.create_task(lease.keep())
            try:
                marks = await serial_marks(config.store, config.state)
                return await take_in(
                    PassSettings(
                        folder=config.inbox, lists=config.lists, store=store, who=who, clock=lambda: datetime.now(UTC), marks=marks,
                        patience_s=config.inbox_patience_s, attempts=attempts, ours=lease.held,
                        load=lambda release, folder: loads.make((release, folder, marks)),
                    )
                )  # fmt: skip
            finally:
                keeping.cancel()
                with suppress(StoreError):
                    await store.claim(CLAIM, holder, 0)
        except StoreError as error:
            away = Taken(manifest="", outcome=WAITING, reason=error.cause, detail=f"the store: {error}", here=True)
            return Pass(taken=(away,), again_s=AGAIN_S)
        finally:
            await store.close()


async def _load(config: Config, who: str, job: tuple[Release, Path, Mapping[str, Mark]], progress: Progress) -> LoadReport:
    """One load, in its own process."""
    release, folder, marks = job
    with as_owner_of(config.state):
        store = open_store(config.store, config.state)
        try:
            loader = Loader(config.lists, store, who, datetime.now(UTC), marks, progress=progress, memory_max=config.load_memory)
            return await loader.load(release, folder)
        finally:
            await store.close()


def _leave(number: int, attempts: Attempts) -> None:
    """End at once, and the load with it: the store takes one that ends in the middle."""
    attempts.forget()
    os._exit(128 + number)


@dataclass(slots=True)
class _Lease:
    """The right to load, kept for as long as the store says so."""

    store: ListStore
    holder: str
    until: float
    """When it ends (time.monotonic)."""

    def held(self) -> bool:
        """Nobody else can have it yet."""
        return time.monotonic() < self.until

    async def keep(self) -> None:
        """Renew it, well before it ends, until cancelled."""
        while True:
            await asyncio.sleep(CLAIM_S / 3)
            asked = time.monotonic()
            with suppress(StoreError):
                self.until = asked + CLAIM_S if await self.store.claim(CLAIM, self.holder, CLAIM_S) else 0.0


class DropFolder:
    """Watches the drop folder of a node, and has passes made while something is to be done."""

    def __init__(self, config: Config, *, report: Report) -> None:
        self._folder = config.inbox
        self._command = (sys.executable, "-m", "eir", "inbox", "--json", "-c", str(config.path))
        self._report = report
        self._watch = Watch(config.inbox_patience_s)
        self._failures = 0
        self._said: dict[str, tuple[str, str]] = {}
        """Manifest → what was last said of it."""
        self._readable = True
        self.waiting: int | None = None if config.inbox is None else 0
        """Releases that wait; None without a drop folder."""

    @property
    def usable(self) -> bool:
        """Whether it can be read, and the last pass over it did not fail."""
        return self._readable and not self._failures

    async def run(self) -> None:
        """Watch until cancelled; returns at once if there is no drop folder."""
        while self._folder is not None:
            try:
                listing = await asyncio.to_thread(look, self._folder)
            except OSError as error:
                self._readable = False
                self._report("inbox_unusable", level="error", reason="folder", folder=self._folder, detail=error.strerror)
            else:
                self._readable = True
                if not listing:
                    self.waiting = 0
                if self._watch.due(listing, time.time()):
                    await self._pass(listing)
            await asyncio.sleep(POLL_S)

    async def _pass(self, listing: Listing) -> None:
        result = await self._made()
        if result is None:
            self._failures += 1
            again_s: float | None = min(FAILED_AGAIN_S * 2**self._failures, FAILED_AGAIN_MAX_S)
        else:
            self._failures = 0
            again_s = result["again_s"]
            for taken in result["taken"]:
                self._say(taken)
            still = {taken["manifest"] for taken in result["taken"] if taken["outcome"] == WAITING}
            self.waiting = len(still)
            self._said = {manifest: said for manifest, said in self._said.items() if manifest in still}
        self._watch.passed(listing, again_s, time.time())

    async def _made(self) -> dict[str, Any] | None:
        """What the process found and did; None, after saying why, if it failed."""
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            await _end(process)
            raise
        try:
            result: dict[str, Any] = json.loads(out)
        except ValueError:
            said = err[-SAID_BYTES_MAX:].decode("utf-8", "replace").strip()
            self._report("inbox_failed", level="error", reason="process", status=process.returncode, detail=said)
            return None
        return result

    def _say(self, taken: dict[str, Any]) -> None:
        said = (taken["outcome"], taken["reason"])
        if taken["outcome"] == WAITING and self._said.get(taken["manifest"]) == said:
            return
        self._said[taken["manifest"]] = said
        self._report(
            f"release_{taken['outcome']}", reason=taken["reason"] or None, level=LEVELS.get(taken["outcome"], "warning"),
            list=taken["list"], serial=taken["serial"], manifest=taken["manifest"] or None, detail=taken["detail"] or None,
        )  # fmt: skip


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop a pass in whatever it does: the store takes a load that ends in the middle."""
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), KILL_AFTER_S)
        except TimeoutError:
            process.kill()
            await process.wait()
