"""Reloads: each worker prepares the new configuration; every process applies it only if all workers could prepare it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from eir.config import changed_settings
from eir.errors import EirError, Report
from eir.lists.record.store import Event
from eir.node.processes.configuration import Configuration, Loaded
from eir.node.processes.jobs import Jobs
from eir.node.processes.setup import changed_lists, reload_event
from eir.node.processes.workers import Workers


class Reload:
    """Reloads of a node, one at a time."""

    def __init__(
        self,
        configuration: Configuration,
        workers: Workers,
        *,
        apply: Callable[[Loaded], Awaitable[None]],
        record: Callable[[Event], None],
        is_stopping: Callable[[], bool],
        on_change: bool,
        jobs: Jobs,
        report: Report,
    ) -> None:
        """Create the reloads. `apply` applies settings to all parts except the workers. `on_change`: also reload when the file is written."""
        self._configuration, self._workers, self._apply, self._record = configuration, workers, apply, record
        self._is_stopping, self._on_change, self._jobs, self._report = is_stopping, on_change, jobs, report
        self._lock = asyncio.Lock()  # workers prepare only one configuration at a time

    async def reload(self, who: str) -> str:
        """Reload the configuration file for `who`; return the result as text. After a failure nothing has changed.

        A concurrent reload waits.

        Raises:
            EirError: if the configuration is refused; the reason is logged.
            OSError: if a file cannot be read; the reason is logged.
        """
        async with self._lock:
            if self._is_stopping():
                raise EirError("the node is stopping")
            return await self._reload(who)

    async def reload_and_log(self, who: str) -> None:
        """Reload without a caller that needs the result, which is logged."""
        with suppress(EirError, OSError):
            await self.reload(who)

    async def reload_for(self, who: str) -> str:
        """Reload for a command; the result also names lists that need work.

        The reload continues if the command is cancelled.

        Raises:
            EirError: as `reload`.
            OSError: as `reload`.
        """
        before = await self._workers.reports()
        result: str = await asyncio.shield(self._jobs.spawn(self.reload(who)))
        return "; ".join([result, *changed_lists(self._configuration.config, before, await self._workers.reports())])

    async def poll_file(self) -> None:
        """Check the configuration file for changes and faults."""
        if await self._configuration.is_written() and self._on_change:
            await self.reload_and_log("file")

    async def poll_keys(self) -> None:
        """Apply changed key files, which verify access tokens."""
        changed = self._configuration.read_keys()
        if changed:
            await self._workers.set_keys(self._configuration.loaded.keys)
        for keys in changed.values():
            files = ",".join(file for _, file, _ in keys.contents) if keys else None
            self._report("keys_in_force", files=files)

    async def _reload(self, who: str) -> str:
        before = self._configuration.config
        loaded, waiting = self._configuration.read(who)
        await self._workers.prepare(loaded)
        self._configuration.apply(loaded)
        await self._workers.apply_prepared()
        self._configuration.accept(waiting)
        await self._apply(loaded)
        changed = changed_settings(before, loaded.config)
        if changed:
            self._record(reload_event(loaded.config.digest, who, changed))
        self._report(
            "reloaded", level="warning" if waiting else "info", who=who, changed=",".join(changed) or "nothing",
            needs_restart=",".join(waiting) or None,
        )  # fmt: skip
        return "reloaded" + (f"; these need a restart: {', '.join(waiting)}" if waiting else "")
