"""Drop folder of a running node: loads releases that appear in it.

The supervisor watches the folder (`DropFolder`), and starts a process for each pass, which loads all complete releases.
`make_pass` is the work of that process, and of `eir inbox`. A pass holds a lease in the store, so that only one of several nodes
loads. If that node ends, another node continues. Each load has its own process.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable

from eir.config import Config
from eir.errors import EirError, Report, SetupFault, StoreError, place_of
from eir.lists.log.journal import ACCEPTED
from eir.lists.sources.drop_folder import AGAIN_S, Listing, Watch, scan_folder
from eir.lists.sources.inbox import WAITING, DeliveryOutcome, Pass, Record, run_pass
from eir.node.observe import metrics
from eir.node.processes.apart import run_apart
from eir.node.processes.channel import Channel
from eir.node.processes.lease import CLAIM_S
from eir.node.processes.loading import NICE, Load, Loads, loading_over, node_user, open_pass, recording_over
from eir.node.processes.starter import Start

POLL_S = 1.0
CLAIM = "inbox"
"""Name of the lease for loads from the drop folder."""
ATTEMPTS_FILE = "inbox.attempt"
INBOX_PROCESS = "inbox"
"""Name of the process in `ps` and `top`."""
FAILED_AGAIN_S, FAILED_AGAIN_MAX_S = 5.0, 600.0
"""Seconds before another pass after a failure: the pause doubles from twice the first value up to the second one."""
LEVELS = {ACCEPTED: "info", WAITING: "info"}
"""Level of the log line of an outcome; the level of any other outcome is `warning`."""


async def make_pass(config: Config, who: str, load: Load, record: Record) -> Pass:
    """Load all complete releases in the drop folder once (a pass), unless another node has the lease.

    Raises:
        EirError: if there is no drop folder, or it cannot be used.
    """
    if config.inbox is None:
        raise SetupFault(f"{config.path} sets no drop folder (`inbox`)")
    lease = CLAIM, f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
    try:
        attempts_file = config.state / ATTEMPTS_FILE
        opened = open_pass(
            config, config.inbox, config.lists, who, load, record=record, attempts_file=attempts_file, lease=lease
        )
        async with opened as (settings, claim):
            if not await claim():
                return Pass(again_s=CLAIM_S / 3, elsewhere=True)
            return await run_pass(settings)
    except StoreError as error:
        detail = f"the store: {error}"
        failed = DeliveryOutcome(manifest="", outcome=WAITING, reason=error.cause, detail=detail, here=True)
        return Pass(taken=(failed,), again_s=AGAIN_S)


async def _pass_of_node(config: Config, who: str, channel: Channel) -> Pass:
    """Load the drop folder's releases once, in a process of a running node."""
    return await make_pass(config, who, loading_over(channel), recording_over(channel))


class DropFolder:
    """Watcher of the drop folder, which starts a process when there are releases to load."""

    def __init__(self, config: Callable[[], Config], start: Start, loads: Loads, *, report: Report) -> None:
        """Create a watcher. `config`: function that returns the settings in force."""
        self._config = config
        self._start = start
        self._loads = loads
        self._report = report
        self._watch = Watch(config().inbox_patience_s)
        self._failures = 0
        self._logged: dict[str, tuple[str, str]] = {}
        """Last logged outcome and reason of each waiting release, by manifest."""
        self._readable = True
        self._waiting = 0
        """Number of waiting releases."""

    @property
    def is_usable(self) -> bool:
        """True if the drop folder is readable and the last attempt to load from it succeeded."""
        return self._readable and not self._failures

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics about the drop folder; empty if no drop folder is configured."""
        if self._config().inbox is None:
            return {}
        return {
            "eir_inbox_usable": {(): float(self.is_usable)},
            "eir_inbox_waiting_releases": {(): self._waiting},
        }

    async def poll(self) -> None:
        """Read the drop folder, and load its releases in a new process if a load is due."""
        folder = self._config().inbox
        if folder is None:
            return
        try:
            listing = await asyncio.to_thread(scan_folder, folder)
        except OSError as error:
            self._readable = False
            self._report("inbox_unusable", level="error", reason="folder", folder=folder, detail=error.strerror)
            return
        self._readable = True
        if not listing:
            self._waiting = 0
        if self._watch.due(listing, time.time()):
            await self._pass(listing)

    async def _pass(self, listing: Listing) -> None:
        finished = await self._run_pass()
        again_s: float | None
        if finished is None:
            self._failures += 1
            again_s = min(FAILED_AGAIN_S * 2**self._failures, FAILED_AGAIN_MAX_S)
        else:
            self._failures = 0
            again_s = finished.again_s
            for taken in finished.taken:
                self._log_outcome(taken)
            waiting = {taken.manifest for taken in finished.taken if taken.outcome == WAITING}
            self._waiting = len(waiting)
            self._logged = {manifest: logged for manifest, logged in self._logged.items() if manifest in waiting}
        self._watch.record_pass(listing, again_s, time.time())

    async def _run_pass(self) -> Pass | None:
        """Load the folder's releases in a new process; return the result, or None after a failure, which is logged."""
        config = self._config()
        who = f"inbox of {node_user()}"
        try:
            finished: Pass = await run_apart(
                self._start, INBOX_PROCESS, _pass_of_node, config, who, nice=NICE,
                handlers=self._loads.handlers(config, who), report=self._report,
            )  # fmt: skip
        except EirError as error:
            status = getattr(error, "status", None)
            self._report("inbox_failed", level="error", reason="process", status=status, detail=str(error))
        except OSError as error:
            self._report("inbox_failed", level="error", reason="process", detail=place_of(error))
        else:
            return finished
        return None

    def _log_outcome(self, taken: DeliveryOutcome) -> None:
        outcome = (taken.outcome, taken.reason)
        if taken.outcome == WAITING and self._logged.get(taken.manifest) == outcome:
            return
        self._logged[taken.manifest] = outcome
        self._report(
            f"release_{taken.outcome}", reason=taken.reason or None, level=LEVELS.get(taken.outcome, "warning"),
            list=taken.list, serial=taken.serial, manifest=taken.manifest or None, detail=taken.detail or None,
        )  # fmt: skip
