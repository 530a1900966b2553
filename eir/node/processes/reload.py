"""Reloads of the configuration: the manager validates it, reads its files and opens its new listeners, then all processes apply it.

If the configuration, a file or a listener cannot be used, nothing changes. A process that fails to apply it is replaced.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from eir.config import Config, changed_settings
from eir.config.settings import Listener
from eir.errors import EirError, Report
from eir.lists.log.journal import JournalEvent
from eir.node.processes.answered import AnsweringChild
from eir.node.processes.configuration import Configuration, Loaded
from eir.node.processes.listeners import Listeners, OpenListener
from eir.node.processes.process import Jobs
from eir.node.processes.setup import changed_lists, reload_event


class Reload:
    """Reloads of a node's configuration, one at a time."""

    def __init__(
        self,
        configuration: Configuration,
        answered: AnsweringChild,
        *,
        listeners: Listeners,
        wanted: Callable[[Config], Sequence[Listener]],
        apply: Callable[[Loaded, Sequence[OpenListener]], Awaitable[None]],
        record: Callable[[JournalEvent], None],
        is_stopping: Callable[[], bool],
        on_change: bool,
        jobs: Jobs,
        report: Report,
    ) -> None:
        """Store the node's parts that take part in a reload of the configuration.

        `wanted`: function that returns the listeners of a configuration that the node has open at present. `apply`: function that
        applies settings and new listeners to all processes. `on_change`: True to reload also when the file changes.
        """
        self._configuration = configuration
        self._answered = answered
        self._listeners = listeners
        self._wanted = wanted
        self._apply = apply
        self._record = record
        self._is_stopping = is_stopping
        self._on_change = on_change
        self._jobs = jobs
        self._report = report
        self.lock = asyncio.Lock()
        """Lock during a reload, and while the node opens the listeners of its start."""

    async def reload(self, who: str) -> str:
        """Reload the configuration file; return the result as text.

        `who`: user or signal that caused the reload. Only one reload runs at a time. After a failure nothing has changed.

        Raises:
            EirError: if the configuration is refused; the reason is logged.
            OSError: if a file cannot be read; the reason is logged.
        """
        async with self.lock:
            if self._is_stopping():
                raise EirError("the node is stopping")
            return await self._reload(who)

    async def reload_and_log(self, who: str) -> None:
        """Reload the configuration file, and only log the result."""
        with suppress(EirError, OSError):
            await self.reload(who)

    async def reload_for(self, who: str) -> str:
        """Reload the configuration file for a command of the user `who`; return the result as text.

        The text also names lists that need an action of the operator. If the command is cancelled, the reload continues.

        Raises:
            EirError: as `reload`.
            OSError: as `reload`.
        """
        before = await self._answered.report()
        result: str = await asyncio.shield(self._jobs.spawn(self.reload(who)))
        after = await self._answered.report()
        advice = changed_lists(self._configuration.config, before, after)
        return "; ".join([result, *advice])

    async def poll_file(self) -> None:
        """Detect a change of the configuration file, and the file's faults. If `on_change` is set, reload the changed configuration."""
        has_changed = await self._configuration.has_file_changed()
        if has_changed and self._on_change:
            await self.reload_and_log("file")

    async def poll_keys(self) -> None:
        """Read the key files of access tokens, and send changed keys to the answering process."""
        changed = self._configuration.read_keys()
        if changed:
            await self._answered.set_keys(self._configuration.loaded.keys)
        for keys in changed.values():
            files = ",".join(file for _, file, _ in keys.contents) if keys else None
            self._report("keys_in_force", files=files)

    async def _reload(self, who: str) -> str:
        before = self._configuration.config
        loaded, waiting = self._configuration.read(who)
        listeners, sctp = self._wanted(loaded.config), loaded.config.sctp
        try:
            opened = await self._listeners.open(listeners, sctp)
        except EirError as e:
            self._report("reload_refused", level="error", reason="listener", detail=str(e), who=who)
            raise
        self._configuration.apply(loaded)
        self._listeners.apply(opened, listeners, sctp)
        await self._apply(loaded, opened)
        self._configuration.accept(waiting)
        changed = changed_settings(before, loaded.config)
        if changed:
            self._record(reload_event(loaded.config.digest, who, changed))
        self._report(
            "reloaded", level="warning" if waiting else "info", who=who, changed=",".join(changed) or "nothing",
            needs_restart=",".join(waiting) or None,
        )  # fmt: skip
        if not waiting:
            return "reloaded"
        return f"reloaded; these need a restart: {', '.join(waiting)}"
