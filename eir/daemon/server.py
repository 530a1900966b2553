"""One worker: puts the parts together, starts them in order, and takes them down in order; and the node that is one worker.

Order of start: lists from the store, then the listeners, then "ready". Order of stop: no new peers, DPR to those that are
connected, their requests answered until they close (bounded), then the rest. Nothing here is on the path of a check.
"""

import asyncio
import gc
import itertools
import math
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from eir import __version__
from eir.checks.policy import Policy, Rule, Status, Verdict, compile_policy
from eir.config import Config, load_config, needs_restart, take_over
from eir.daemon.intake import Intake
from eir.daemon.signals import heed
from eir.diameter.admission import Desk
from eir.diameter.answer import Reply
from eir.diameter.counts import DURATION_BUCKETS_S, Counts
from eir.diameter.node import Node
from eir.diameter.rate import Grants
from eir.diameter.serve import TOO_BUSY_REPLY
from eir.diameter.settings import Limits
from eir.diameter.transport.tls import Tls, load_tls
from eir.errors import EirError, StoreError
from eir.follow.follower import Follower
from eir.lists.clock import TrustedClock
from eir.lists.expiry import ExpiryReminder
from eir.lists.index import Index
from eir.lists.store import REFUSED, ListState, Outcome
from eir.operate import metrics
from eir.operate.front import Front, WorkerReport, cannot_listen, tell_refusal
from eir.operate.log import Log
from eir.s13.lane import Lane
from eir.s13.service import REPLIES, S13Service
from eir.stores.open import open_copy, open_store

L = TypeVar("L", bound=tuple[str, ...])

DRAIN_S = 8.0
"""How long peers have to close after our DPR (RFC 6733 5.4 gives them no time; the peer machine closes after 5 s)."""
OPEN_FILES_BESIDES = 256
"""Open files of a process besides its connections: store, log, pages, commands, releases that are being read."""
TICK_S = 1.0
FOLD_EVERY_TICKS = 10
OUTCOMES_EVERY_TICKS = 5
KEEP_CLOCK_EVERY_TICKS = 60
CLOCK_FILE = "clock"
CLOCK_JUMPED = "the clock is hours ahead of what this node saw last; rows with an end go by that for an hour"
STORE_TIMEOUT_S = 5.0
"""How long the figures of releases may take; what else goes on beside the checks waits for them."""
NOT_KEYS = frozenset({"path", "warnings", "shown"})
"""Of Config: what is no setting of its own."""
DIGEST_SHOWN = 12
"""Digits of a list's digest in a line of the log: enough to compare with `eir lists --json`."""
UNKNOWN_LIST = "unknown"
"""Label of releases that were refused before a verified manifest named a list."""


def run(config: Config) -> int:
    """Serve with one worker until SIGTERM or SIGINT; returns the exit status. Raises EirError if the node cannot start."""
    prepare_state_folder(config.state)
    log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
    report_warnings(config, log)
    allow_open_files(config, log)
    try:
        return uvloop.run(Alone(config, log).serve())
    finally:
        log.close()


class Alone:
    """A node that is one worker."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._stop = asyncio.Event()
        self._worker = Worker(config, log, next_origin_state_id(config.state / "origin-state-id"))
        self._front = Front(config, self, report=log.report, stop=self._begin_stop)
        self._intake = Intake(config, report=log.report)

    async def serve(self) -> int:
        """Start, run until told to stop, stop. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._worker.reload_and_say)
        heed()
        await self._front.open()
        beside = [asyncio.create_task(self._intake.run())]
        try:
            await self._worker.start()
            if self._config.boot_without_lists == "refuse":
                await self._worker.lists_or(self._stop)
            await self._listen()
            if not self._stop.is_set():
                self._worker.node.dial()
                await self._front.announce()
                beside.append(asyncio.create_task(self._front.watch()))
            await self._stop.wait()
        finally:
            for task in beside:
                task.cancel()
            await self._worker.stop()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._front.close()
        self._log.report("stopped")
        return 0

    async def _listen(self) -> None:
        for url in self._config.listen:
            if self._stop.is_set():
                return
            try:
                host, port = await self._worker.node.listen(url)
            except OSError as e:
                raise cannot_listen(url, e) from None
            self._front.listening.append(listener_url(url, host, port))
            self._log.report("listening", address=self._front.listening[-1])

    def _begin_stop(self, cause: str) -> None:
        self._log.report("stopping", reason=cause)
        self._front.stopping = True
        self._stop.set()

    # front.Crew

    async def snapshot(self) -> metrics.Snapshot:
        """All numbers."""
        return self._worker.snapshot()

    async def reports(self) -> Sequence[WorkerReport]:
        """How the worker is."""
        return [self._worker.report()]

    async def peers(self) -> list[dict[str, Any]]:
        """All connections, and the entries of the peer table that have none."""
        return self._worker.peers()

    async def reload(self, who: str) -> str:
        """See Worker.reload."""
        return self._worker.reload(who)

    async def set_peer(self, label: str, *, enabled: bool) -> bool:
        """Put a peer in or out of service."""
        return self._worker.set_peer(label, enabled=enabled)


class Worker:
    """The parts of one worker, and what they have in common: configuration, clock, log, counters.

    `desk` is where connections are admitted when there are several workers, `grants` where they share limits; `index` holds
    lists already when this worker was forked from a process that has them. Whoever has one decides when its node listens and dials.
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        origin_state_id: int,
        *,
        desk: Desk | None = None,
        index: Index | None = None,
        grants: Grants | None = None,
    ) -> None:
        self._config = config
        self._log = log
        self._changed = asyncio.Event()
        """Set when a list or a configuration was taken over."""
        self._counts = Counts()
        self._observed: Counter[tuple[str, str]] = Counter()
        self._shed_told: Counter[tuple[str, str]] = Counter()
        """What was shed up to the last line about it."""
        self._shed_lately: Counter[tuple[str, str]] = Counter()
        """What that line told."""
        self._outcomes: Sequence[Outcome] = ()
        self._expiry = ExpiryReminder()
        self._tasks: list[asyncio.Task[None]] = []
        self._index = index or Index(kinds_of(config))
        self._service = S13Service(self._compile(config), note=self._note)
        self._store = open_store(config.store, config.state, report=log.report)
        self._copy = open_copy(config.store, config.state)
        self._clock = clock_of(config.state)
        self._follower = Follower(
            self._store, self._index, report=log.report, on_switch=self._switched, copy=self._copy, heal=config.heal,
            who=f"{socket.gethostname()}:{os.getpid()}", clock=self._clock,
        )  # fmt: skip
        self._tls = self._load_tls(config)
        self.node = Node(
            replace(config.identity, origin_state_id=origin_state_id), config.peers, limits_of(config), self._service.answer,
            counts=self._counts, report=log.report, lane=lambda *known: Lane(self._service, *known), desk=desk, dials=False,
            overload=overload_of(config), tls=self._tls, grants=grants,
        )  # fmt: skip

    # ---- start and stop ----

    async def start(self) -> None:
        """Lists from the store, before anyone is answered; without the store or without lists the worker starts anyway."""
        try:
            await self._follower.start()
        except StoreError as e:
            self._log.report("store_away", level="error", reason=e.cause, detail=str(e))
        gc.collect()
        gc.freeze()  # what start-up made stays: no collection walks it again
        if missing := self._missing_lists():
            self._log.report(
                "lists_missing", level="warning", lists=",".join(missing), boot_without_lists=self._config.boot_without_lists
            )
        self._tasks = [asyncio.create_task(self._follower.run()), asyncio.create_task(self._tick())]

    async def lists_or(self, stop: asyncio.Event) -> None:
        """Wait until no list is missing, or until told to stop."""
        stopped = asyncio.create_task(stop.wait())
        while self._missing_lists() and not stop.is_set():
            self._changed.clear()
            switched = asyncio.create_task(self._changed.wait())
            await asyncio.wait((stopped, switched), return_when=asyncio.FIRST_COMPLETED)
            switched.cancel()
        stopped.cancel()

    async def stop(self) -> None:
        """Send the peers away, answer what is under way, and let go of everything."""
        await self.node.drain(DRAIN_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(keep_clock, self._clock, self._config.state)
        for store in (self._store, self._copy):
            if store is not None:
                await store.close()
        self._tell_shed()
        self._log.fold()

    # ---- lists and policy ----

    def _compile(self, config: Config) -> Policy:
        policy = compile_policy(config.policy, self._index, observed=partial(self._observe, config.policy.rules), now=datetime.now(UTC))
        if policy.overridden:
            until = policy.override_until
            self._log.report("override", level="warning", detail="every check is answered alike", until=until and until.isoformat())
        return policy

    def _load_tls(self, config: Config) -> Tls | None:
        if config.tls is None:
            return None
        tls = load_tls(config.tls)
        names, _, ends = tls.certificate
        self._log.report("certificate", names=",".join(names), expires=ends.isoformat(), file=config.tls.certificate)
        return tls

    def _observe(self, rules: Sequence[Rule], rule: int, status: Status) -> None:
        name = rules[rule - 1].name
        self._observed[name or str(rule), status] += 1
        self._log.note_observed(rule, status, name)

    def _note(self, verdict: Verdict, peer: str, imei: str, imsi: str) -> None:
        self._log.note_check(verdict.status, verdict.list or "", peer, imei, imsi)

    def _switched(self, name: str, state: ListState) -> None:
        self._changed.set()
        tell_in_force(self._log, name, state, longest_slice_ms=round(self._follower.longest_slice_s * 1000, 3))

    def _loaded(self) -> dict[str, ListState]:
        return {name: held.state for name, held in self._index.lists.items() if held.state is not None}

    def _missing_lists(self) -> list[str]:
        """Lists that rules in force look into and that have never been loaded; a local one may well have no entry yet."""
        used = dict.fromkeys(n for rule in self._config.policy.rules if not rule.observe for n in rule.lists)
        return [name for name in used if self._index.lists[name].state is None and not self._config.lists[name].local]

    # ---- what goes on beside the checks ----

    async def _tick(self) -> None:
        for tick in itertools.count():
            try:
                await self._look(tick)
            except Exception as e:  # noqa: BLE001 - the outermost loop of this task: it says so, and looks again
                self._log.report("fault", reason="tick", level="error", detail=repr(e))
            await asyncio.sleep(TICK_S)

    async def _look(self, tick: int) -> None:
        """What is to be done now."""
        if tick % FOLD_EVERY_TICKS == 0:
            self._tell_shed()
            self._log.fold()
        ends = self._service.policy.override_until
        if ends is not None and datetime.now(UTC) >= ends:
            self._service.policy = self._compile(self._config)
            self._log.report("override_ended", level="warning")
        if tick % KEEP_CLOCK_EVERY_TICKS == 0:
            if self._clock.jumped:
                self._log.report("clock_jumped", level="warning", detail=CLOCK_JUMPED)
            await asyncio.to_thread(keep_clock, self._clock, self._config.state)
        states = self._loaded()
        for name in self._expiry.due(states, now=datetime.now(UTC), monotonic=time.monotonic()):
            expires = states[name].expires
            self._log.report("list_expired", level="warning", list=name, expires=expires, detail="it stays in force")
        if tick % OUTCOMES_EVERY_TICKS == 0:
            await self._read_outcomes()

    def _tell_shed(self) -> None:
        """One line for each peer and limit about what was turned away since the last ones."""
        self._shed_lately = self._counts.shed - self._shed_told
        self._shed_told = self._counts.shed.copy()
        for (peer, reason), count in self._shed_lately.items():
            self._log.report("shed", peer=peer, reason=reason, level="warning", count=count)

    def _shedding(self) -> list[str]:
        """Peers of which something was turned away since the last lines, or that these told of."""
        lately = (self._counts.shed - self._shed_told) + self._shed_lately
        return list(dict.fromkeys(peer for peer, _ in lately))

    async def _read_outcomes(self) -> None:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                self._outcomes = await self._store.outcomes()
        except TimeoutError:
            self._log.report("store_error", level="warning", reason="timeout", detail="no figures of releases")
        except StoreError as e:
            self._log.report("store_error", level="warning", reason=e.cause, detail=str(e))

    def reload(self, who: str) -> str:
        """Take over the configuration file as it is now; raises ConfigError and changes nothing if it is bad.

        `who` asked for it, as the log shows.
        """
        new = load_config(self._config.path)
        # Certificates and policy first: they can fail on what the files say, and nothing has changed by then.
        tls = self._load_tls(new)
        self._index.reconfigure(kinds_of(new))
        policy = self._compile(new)
        kept = needs_restart(self._config, new)
        self._service.policy = policy
        identity = replace(new.identity, origin_state_id=self.node.identity.origin_state_id)
        self._tls = tls or self._tls  # a listener for TLS that is open stays so until a restart
        self.node.reconfigure(new.peers, identity, limits_of(new), overload=overload_of(new), tls=self._tls)
        self._log.set_level(new.log_level)
        self._log.full_identifiers = new.full_identifiers
        before, self._config = self._config, take_over(self._config, new)
        changed = [key.name for key in fields(Config) if key.name not in NOT_KEYS and getattr(before, key.name) != getattr(self._config, key.name)]
        self._changed.set()
        said = "reloaded" + (f"; these need a restart: {', '.join(kept)}" if kept else "")
        report_warnings(new, self._log)
        self._log.report("reloaded", who=who, changed=",".join(changed) or "nothing", needs_restart=",".join(kept) or None)
        return said

    def reload_and_say(self) -> None:
        """The same for a signal: what is wrong goes to the log."""
        try:
            self.reload("SIGHUP")
        except (EirError, OSError) as e:
            tell_refusal(self._log.report, e, "SIGHUP")

    # ---- what is shown ----

    def snapshot(self) -> metrics.Snapshot:
        """All numbers of this worker, for a scrape."""
        counts, follower = self._counts, self._follower
        connected, disabled = self.node.connected(), self.node.disabled()
        states = self._loaded()
        # What the operator does to a local list is in the history too, and is no release; one that is offered for it is refused.
        local = {name for name, settings in self._config.lists.items() if settings.local}
        return {
            "eir_checks_total": _labelled(self._service.checks),
            "eir_observed_total": _labelled(self._observed),
            "eir_identity_errors_total": _labelled(self._service.identity_errors),
            "eir_check_duration_seconds": metrics.histogram(DURATION_BUCKETS_S, counts.durations.buckets, counts.durations.total_s),
            "eir_diameter_messages_total": _labelled(counts.messages),
            "eir_diameter_answers_total": _labelled(counts.answers),
            "eir_diameter_errors_total": _by_one(counts.errors),
            "eir_diameter_drops_total": _by_one(counts.dropped),
            "eir_peer_up": {(label,): float(number > 0) for label, number in connected.items()},
            "eir_peer_disabled": {(label,): float(label in disabled) for label in connected},
            "eir_peer_last_request_timestamp_seconds": _by_one(counts.last_request),
            "eir_peers_refused_total": _by_one(counts.peers_refused),
            "eir_shed_total": _labelled(counts.shed),
            "eir_list_entries": {(name,): state.entries for name, state in states.items()},
            "eir_list_serial": {(name,): state.serial for name, state in states.items()},
            "eir_list_issued_timestamp_seconds": _times({name: state.issued for name, state in states.items()}),
            "eir_list_expires_timestamp_seconds": _times({name: state.expires for name, state in states.items()}),
            "eir_release_last_refused_timestamp_seconds": _times(
                {o.list or UNKNOWN_LIST: o.last for o in self._outcomes if o.outcome == REFUSED}
            ),
            "eir_releases_total": {
                (o.list or UNKNOWN_LIST, o.outcome): o.count for o in self._outcomes if o.outcome == REFUSED or o.list not in local
            },
            "eir_store_up": {(): float(follower.up)},
            "eir_store_errors_total": _by_one(follower.errors),
            "eir_store_lost_data": {(name,): float(name in follower.lost) for name in states},
            "eir_follow_lag_seconds": {(): follower.lag_s},
            "eir_switch_longest_slice_seconds": {(): follower.longest_slice_s},
            "eir_override_active": {(): float(self._service.policy.overridden)},
            "eir_tls_certificate_expires_timestamp_seconds": {(): self._tls.certificate.not_after.timestamp()} if self._tls else {},
            "eir_worker_restarts_total": {(): 0.0},
            "eir_build_info": {(__version__,): 1.0},
        }

    def report(self) -> WorkerReport:
        """How the worker is."""
        states = self._loaded()
        lists = {
            name: {
                "serial": s.serial, "generation": s.generation, "digest": s.content_digest, "entries": s.entries,
                "expires": s.expires,
            }
            for name, s in states.items()
        }  # fmt: skip
        return WorkerReport(
            missing=self._missing_lists(), lists=lists, store_up=self._follower.up, lost=dict(self._follower.lost),
            from_copy=sorted(self._follower.from_copy), overridden=self._service.policy.overridden,
            checks=sum(self._service.checks.values()), connected=self.node.connected(), tasks=len(asyncio.all_tasks()),
            shedding=self._shedding(), disabled=self.node.disabled(),
        )  # fmt: skip

    def peers(self) -> list[dict[str, Any]]:
        """All connections, and the entries of the peer table that have none."""
        return [asdict(peer) for peer in self.node.status()]

    def set_peer(self, label: str, *, enabled: bool) -> bool:
        """Put a peer in or out of service; False if there is none with this label."""
        return self.node.enable(label) if enabled else self.node.disable(label)


def prepare_state_folder(folder: Path) -> None:
    """Make the folder if it is not there. Raises EirError if it cannot be made or written."""
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as e:
        raise EirError(f"the state folder {folder} cannot be made: {e.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EirError(f"the state folder {folder} is not writable for user {os.getuid()}")


def tell_in_force(log: Log, name: str, state: ListState, *, longest_slice_ms: float | None = None) -> None:
    """The line that says which content of a list answers from now on, and who vouched for it."""
    log.report(
        "list_in_force", list=name, serial=state.serial, generation=state.generation, entries=state.entries,
        digest=state.content_digest[:DIGEST_SHOWN], signers=",".join(state.signers) or None, longest_slice_ms=longest_slice_ms,
    )  # fmt: skip


def report_warnings(config: Config, log: Log) -> None:
    """What is allowed in the configuration and probably not meant."""
    for warning in config.warnings:
        log.report("config_warning", level="warning", detail=str(warning))


def limits_of(config: Config) -> Limits:
    """The limits of one worker: what counts over all connections is shared out, since each worker sees its own only.

    Not so those that the dispatcher holds connections to before it hands them over, and rates, which workers fill together.
    """
    limits, workers = config.limits, config.workers
    return replace(
        limits,
        unidentified_max=math.ceil(limits.unidentified_max / workers),
        source_unidentified_max=math.ceil(limits.source_unidentified_max / workers),
    )


def overload_of(config: Config) -> Reply:
    """What a request above a limit gets."""
    return TOO_BUSY_REPLY if config.overload_answer is None else REPLIES[config.overload_answer]


def allow_open_files(config: Config, log: Log) -> None:
    """Raise this process's limit on open files, as far as it may, to what all connections and the rest need."""
    wanted = config.limits.connections_max + OPEN_FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.report(
            "open_files", level="warning", limit=hard, setting="limits.connections_max",
            detail=f"this process may have {hard} open files, too few for {config.limits.connections_max} connections",
        )  # fmt: skip


def kinds_of(config: Config) -> dict[str, str]:
    """The kind of each configured list."""
    return {name: settings.kind for name, settings in config.lists.items()}


def listener_url(configured: str, host: str, port: int) -> str:
    """A listener's URL with the address that it was bound to."""
    scheme = configured.partition("://")[0]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def next_origin_state_id(file: Path) -> int:
    """A value for Origin-State-Id that is higher than at any start before (RFC 6733 8.16), kept in the file.

    On a disk that is full it is not kept, and still higher: it is the time, unless the clock went back.
    """
    try:
        last = int(file.read_text())
    except (OSError, ValueError):
        last = 0
    value = max(int(time.time()), last + 1)
    fresh = file.with_suffix(".new")
    with suppress(OSError):
        fresh.write_text(f"{value}\n")
        fresh.replace(file)
    return value


def clock_of(state: Path) -> TrustedClock:
    """The clock by which rows end, with the last time that a worker of this node kept in the state folder."""
    try:
        return TrustedClock(int((state / CLOCK_FILE).read_text()))
    except (OSError, ValueError):
        return TrustedClock()


def keep_clock(clock: TrustedClock, state: Path) -> None:
    """Keep the time for the next start; a disk that is full costs no more than that start's caution."""
    fresh = state / f"{CLOCK_FILE}.{os.getpid()}.new"
    with suppress(OSError):
        fresh.write_text(f"{clock.time:.0f}\n")
        fresh.replace(state / CLOCK_FILE)


def _labelled(values: Mapping[L, int]) -> dict[metrics.Labels, float]:
    return dict(values.items())


def _by_one(values: Mapping[str, float]) -> dict[metrics.Labels, float]:
    return {(label,): value for label, value in values.items()}


def _times(values: Mapping[str, str | None]) -> dict[metrics.Labels, float]:
    """ISO times as Unix seconds, those that there are."""
    return {(label,): datetime.fromisoformat(text).timestamp() for label, text in values.items() if text}
