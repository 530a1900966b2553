"""Commands of the two control sockets of a node.

A user who can open the control socket can control the node. A user who can open the read-only socket can only read.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from eir.checks.question import Question
from eir.config import digests
from eir.errors import EirError, Report, SetupFault
from eir.lists.log.journal import SERIES, parse_event, read_events
from eir.lists.stores.open import JOURNAL
from eir.node.observe.control import (
    PING,
    RUN,
    RUN_ACCEPTS,
    RUNNING,
    STOPPING,
    Arguments,
    Command,
    ControlServer,
    ReadOnlyRunner,
    asker,
)
from eir.node.processes.answered import NOT_STARTED
from eir.node.processes.configuration import Configuration
from eir.node.processes.following import Followed
from eir.node.processes.overview import Overview
from eir.node.processes.recorder import Recorded
from eir.node.processes.reload import Reload
from eir.node.processes.sources import Sources
from eir.node.processes.tracing import Tracing

LIMIT_MAX = 1 << 62
"""Maximum number of events that a command may request from the history."""
QUESTION: Arguments = {**dict.fromkeys(Question._fields, str | None), "unproven": bool | None}
"""Arguments of the command `check`: fields of a question."""
ACCEPTS: Mapping[str, Arguments] = {
    "check": QUESTION, "history": {"list": str | None, "limit": int | None, "since": str | None, "chain": str | None},
    "forget": {"subscribers": list}, "trace": {"imei": str | None, "imsi": str | None, "lasts_s": int | float, "reason": str | None},
    "record": {"event": dict}, "recorded": {"list": str, "change": str}, "last_devices": {"imsi": str}, "trace_read": {"number": int | None}, "trace_end": {"number": int | None}, "peer_disable": {"name": str}, "peer_enable": {"name": str},
}  # fmt: skip
"""Arguments of each command of the control socket that has arguments."""


class ControlSockets:
    """Control socket of the node, and its read-only socket if the configuration has `control_read`."""

    def __init__(
        self,
        configuration: Configuration,
        commands: Mapping[str, Command],
        read_only: ReadOnlyRunner,
        *,
        report: Report,
    ) -> None:
        config = configuration.config
        self._control = ControlServer(config.state, commands, accepts=ACCEPTS, report=report)
        self._read_only: ControlServer | None = None
        path = config.control_read
        if path is not None:
            commands = {RUN: read_only.run}
            self._read_only = ControlServer(path.parent, commands, accepts=RUN_ACCEPTS, name=path.name, report=report)
        self._path = path

    async def open(self) -> None:
        """Open the control socket, and the read-only socket if the configuration has one.

        Raises:
            EirError: if the read-only socket cannot be opened.
        """
        await self._control.listen()
        if self._read_only is None:
            return
        try:
            await self._read_only.listen()
        except OSError as e:
            raise SetupFault(
                f"control_read {self._path}: {e.strerror}; its folder must belong to the node's user and the group of the readers, with mode 2750"
            ) from None

    async def close(self) -> None:
        """Close the control socket and the read-only socket, and remove their files."""
        await self._control.close()
        if self._read_only is not None:
            await self._read_only.close()


class Commands:
    """Commands of the node's control socket, such as `eir status`. Each command calls functions of the manager's parts."""

    def __init__(
        self,
        configuration: Configuration,
        overview: Overview,
        reload: Reload,
        *,
        sources: Sources,
        followed: Followed,
        recorded: Recorded | None,
        tracing: Tracing,
        stop: Callable[[str], None],
        is_stopping: Callable[[], bool],
        report: Report,
    ) -> None:
        """Create the commands of a node from the parts of its manager.

        `stop`: function that begins to stop the node, for the given cause.
        """
        self._configuration = configuration
        self._overview = overview
        self._reload = reload
        self._sources = sources
        self._followed = followed
        self._recorded = recorded
        self._tracing = tracing
        self._stop = stop
        self._is_stopping = is_stopping
        self._report = report

    def by_name(self) -> Mapping[str, Command]:
        """Return all commands of the control socket: map from the name of a command to its function."""
        return {
            PING: lambda _: STOPPING if self._is_stopping() else RUNNING,
            "status": lambda _: self._status(),
            "lists": lambda _: self._lists(),
            "check": self._check,
            "peers": lambda _: self._overview.answered.peers(),
            "reload": lambda _: self._reload_file(),
            "drain": lambda _: self._drain(),
            "history": self._events,
            "write_checks": lambda _: self._write_checks(),
            "record": self._record,
            "recorded": lambda arguments: self._followed.is_recorded(arguments["list"], arguments["change"]),
            "last_devices": lambda arguments: self._followed.find_last_devices(arguments["imsi"]),
            "forget": self._forget,
            "trace": self._tracing.begin,
            "trace_read": self._tracing.read,
            "trace_end": self._tracing.end,
            "peer_disable": lambda arguments: self._set_peer(arguments["name"], enabled=False),
            "peer_enable": lambda arguments: self._set_peer(arguments["name"], enabled=True),
        }

    async def _status(self) -> dict[str, Any]:
        report, document = await self._overview.report_and_document()
        if report is not None:
            self._sources.note_in_force(
                report.lists
            )  # before the answer by which a load reports that the node has taken over
        return document

    async def _in_force(self) -> dict[str, Any]:
        """Return the configuration and the lists in force. A command compares them with the configuration file and the store."""
        report = await self._overview.answered.report()
        if report is None:
            raise EirError(NOT_STARTED)
        lists = report.lists
        return {
            "pid": os.getpid(), "configuration": digests(self._configuration.config.shown),
            "lists": {name: asdict(state) for name, state in lists.items()}, **self._sources.in_force(lists),
        }  # fmt: skip

    async def _lists(self) -> dict[str, Any]:
        return {**await self._in_force(), "answer": self._overview.ending()}

    async def _check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in arguments.items() if value is not None}
        question = Question(**fields)
        answer = await self._overview.answered.explain(question)
        return {**await self._in_force(), "answer": answer.as_fields()}

    async def _reload_file(self) -> str:
        return await self._reload.reload_for(await asker())

    def _drain(self) -> str:
        self._stop("drain")
        return "draining: the node sends a DPR to each peer, then ends"

    async def _events(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return events of the node's journal, for commands that cannot read its folder."""
        limit, chain = arguments.get("limit"), arguments.get("chain")
        if limit is not None and not 0 <= limit <= LIMIT_MAX:
            raise EirError(f"history limit {limit}: expected 0 to {LIMIT_MAX}")
        if chain not in {None, *SERIES}:
            raise EirError(f"history chain {chain}: expected one of {', '.join(SERIES)}")
        folder = self._configuration.config.state / JOURNAL
        read = partial(
            read_events, folder, name=arguments.get("list"), since=arguments.get("since") or "", series=(chain,) if chain else SERIES, limit=limit,
        )  # fmt: skip
        return [asdict(event) for event in await asyncio.to_thread(read)]

    async def _record(self, arguments: Mapping[str, Any]) -> bool:
        """Record an event of a command in the journal of this node; return once it is on the disk."""
        try:
            event = parse_event(arguments["event"])
        except (ValueError, TypeError) as error:
            raise EirError(f"the event is not valid: {error}") from None
        await self._followed.record_now(event)
        return True

    async def _write_checks(self) -> bool:
        """Write all checks so far to the record on disk; return false if the node keeps no record of checks."""
        if self._recorded is None:
            return False
        await self._recorded.write()
        return True

    async def _forget(self, arguments: Mapping[str, Any]) -> bool:
        """Delete subscribers from the memory of the recorder; return false if the node keeps no record of checks."""
        if self._recorded is None:
            return False
        subscribers = [str(subscriber) for subscriber in arguments["subscribers"]]
        await self._recorded.forget(subscribers)
        return True

    async def _set_peer(self, label: str, *, enabled: bool) -> str:
        known = self._configuration.config.labels
        if label not in known:
            labels = ", ".join(known) or "none"
            raise EirError(f"no peer {label}; there are: {labels}")
        await self._overview.answered.set_peer(label, enabled=enabled)
        who = await asker()
        if enabled:
            self._report("peer_enabled", peer=label, level="warning", who=who)
            return f"{label} is in service"
        self._report("peer_disabled", peer=label, level="warning", who=who)
        return f"{label} is out of service until `eir peer enable {label}` or a restart"
