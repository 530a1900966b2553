"""Last devices of SIMs in the recorder: the sightings from its batches, and the events of changes.

`SightingFeed` converts each batch of checks to sightings of SIMs, and sends them through the manager to the follower, which keeps the
list (eir.lists.follow.last_devices). `DeviceChanges` reads the log of the list on the node that holds a lease, and posts an event for
each change. The last posted generation is the field `registered` of a list of its own in the store, beside the list.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256

import numpy as np

from eir.config import Config
from eir.device import SNR_KEYS, imei_key, key_text
from eir.errors import EirError, IdentifierError, Report
from eir.lists.follow.list_copy import copied_head
from eir.lists.follow.list_reader import ListReader
from eir.lists.log.change import LEARN, Head
from eir.lists.log.reader import LoggedList, has_rows, read_rows
from eir.lists.log.store import LogEntry, LogStore
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.last_devices import (
    BY_IMSI,
    DUAL_USE,
    SIGHTING,
    changed_pairings,
    file_form,
    key_of_form,
    new_form,
    pairings_of,
    sim_of,
    sim_text,
)
from eir.lists.record.settings import DEVICE, FIRST, LAST_DEVICE, MODEL, TYPES, LastDeviceSettings
from eir.lists.rows.msisdn import NO_NUMBERS, number_of, read_numbers
from eir.lists.stores.open import COPIES
from eir.lists.table.columns import REASONS
from eir.sightings.buffer import checks_of
from eir.sightings.deliver import Event, EventSender
from eir.sightings.events import DEVICE_CHANGED
from eir.sightings.settings import FULL

TICK_S = 0.5
"""Seconds between two batches, and between two reads of the log."""
MESSAGES_MAX = 2_000
"""Maximum number of messages of the answering process that wait; the oldest are left out."""
AGAIN_S = 5.0
"""Seconds between two attempts to agree on the key of the SIMs."""
LEASE_S = 10.0
"""Seconds after which another node posts the events if the node that holds the lease was killed."""
POSTED = "+events"
"""End of the name of the list that has the last posted generation."""
PARTS = 1_000
"""Maximum number of events that are queued for the receiver."""
POLL_S = 0.02
"""Seconds between two checks whether events have been sent."""
OLD_S = 3600.0
"""Age of a change in seconds from which it causes no event if its rows were appended to a store that had lost them, or if no generation was posted."""
ID_DIGITS = 32


async def agree_on_key(store: LogStore, config: Config, settings: LastDeviceSettings, who: str) -> bytes | None:
    """Return the key of the SIMs of the stored list; None for IMSIs. The first node writes the form of the SIMs to the list.

    Raises:
        StoreError: if the store fails.
        EirError: if the list has SIMs of another form than this node.
    """
    own: tuple[str, ...] = ()
    if config.sightings is not None and config.sightings.subscribers == FULL:
        own = BY_IMSI
    elif settings.key_file is not None:
        own = file_form(settings.key_file)
    held = copied_head(config.state / COPIES, settings.list)
    form = own or (held.registered if held is not None else ()) or new_form(secrets.token_bytes(32))
    writer = ListWriter(store, settings.list, LAST_DEVICE, who)
    head = (await store.heads()).get(settings.list, Head())
    if not head.registered:
        await writer.write(
            lambda content: None if content.head.registered else ListUpdate(what=LEARN, state={"registered": form})
        )
        head = writer.content.head
    if own and head.registered != own:
        raise EirError(
            f"list {settings.list} has SIMs of another form or key in the store: set sightings.subscribers and last_device.key_file as on the other nodes"
        )
    return key_of_form(head.registered, settings.key_file)


def sim_sightings(messages: Sequence[bytes], key: bytes | None) -> list[tuple[str, bytes]]:
    """Return the sightings of authenticated SIMs in messages of the answering process, by peer (eir.lists.follow.last_devices)."""
    firsts: dict[tuple[str, str, str], int] = {}
    for message in messages:
        for time_us, kind, identifier, imsi, *_ in checks_of(message):
            if imsi and not kind.early:
                firsts.setdefault((kind.peer or "", imsi, identifier), time_us)
    rows: dict[str, list[tuple[int, int, int]]] = {}
    for (peer, imsi, identifier), time_us in firsts.items():
        with suppress(IdentifierError):
            device = imei_key(identifier)
            if device:
                rows.setdefault(peer, []).append((sim_of(imsi, key), device, time_us // 1_000_000))
    return [(peer, np.array(each, SIGHTING).tobytes()) for peer, each in rows.items()]


class SightingFeed:
    """Conversion of the answering process's messages to sightings of SIMs.

    Args:
        agree: returns the key of the SIMs, or raises an error.
        send: sends sightings to the follower; raises EirError if the follower does not run.
        report: logs failures.
    """

    def __init__(
        self,
        agree: Callable[[], Awaitable[bytes | None]],
        send: Callable[[list[tuple[str, bytes]]], Awaitable[object]],
        report: Report,
    ) -> None:
        self._agree, self._send, self._report = agree, send, report
        self._messages: deque[bytes] = deque(maxlen=MESSAGES_MAX)

    def add(self, message: bytes) -> None:
        """Queue a message of the answering process."""
        self._messages.append(message)

    async def run(self) -> None:
        """Send sightings until the task is cancelled."""
        key, is_agreed = None, False
        while True:
            await asyncio.sleep(TICK_S)
            try:
                if not is_agreed:
                    key, is_agreed = await self._agree(), True
            except EirError as error:
                self._report("sightings_failed", reason="last_device", level="error", detail=str(error))
                await asyncio.sleep(AGAIN_S)
                continue
            messages, self._messages = self._messages, deque(maxlen=MESSAGES_MAX)
            sightings = await asyncio.to_thread(sim_sightings, [*messages], key)
            while sightings:
                with suppress(EirError):
                    await self._send(sightings)
                    break
                await asyncio.sleep(TICK_S)


class DeviceChanges:
    """Events of the changes in the log of the last devices.

    Args:
        config: configuration at the start.
        settings: settings of the list.
        store: store of the lists.
        sender: sends events to the receiver; its queue has no other events.
        who: name of this process.
        report: logs failures.
    """

    def __init__(
        self,
        config: Config,
        settings: LastDeviceSettings,
        store: LogStore,
        sender: EventSender,
        *,
        who: str,
        report: Report,
    ) -> None:
        self._settings, self._store, self._sender, self._who, self._report = settings, store, sender, who, report
        self._reader = ListReader(store, config.state / COPIES)
        self._writer = ListWriter(store, settings.list + POSTED, LAST_DEVICE, who)
        self._number = number_of(NO_NUMBERS if config.numbers is None else read_numbers(config.numbers))
        self._type_lists = [name for name, each in config.lists.items() if each.kind == TYPES]
        self._types: Sequence[LoggedList] = ()
        self._claimed_at = 0.0
        self._posted = 0
        """Last generation that this process has posted."""

    async def run(self) -> None:
        """Post events while this node holds the lease, until the task is cancelled."""
        delivery = asyncio.create_task(self._sender.run())
        try:
            while True:
                try:
                    if await self._claims():
                        await self._post()
                except EirError as error:
                    self._report("events_undelivered", reason="last_device", level="warning", detail=str(error))
                    await asyncio.sleep(AGAIN_S)
                await asyncio.sleep(TICK_S)
        finally:
            delivery.cancel()

    def forget(self, subscribers: Collection[str]) -> None:
        """Remove these subscribers from queued events."""
        self._sender.forget(subscribers)

    async def _claims(self) -> bool:
        self._claimed_at = time.monotonic()
        return await self._store.claim(f"events:{self._settings.list}", self._who, LEASE_S)

    async def _post(self) -> None:
        """Post the changes after the last posted generation, each before the next, and store its generation."""
        posted = [int(text) for text in (await self._writer.catch_up()).head.registered]
        self._posted = max([self._posted, *posted])
        head = (await self._store.heads()).get(self._settings.list)
        if head is None or head.generation <= self._posted:
            return
        key = key_of_form(head.registered, self._settings.key_file)
        self._types = [
            content for name in self._type_lists if (content := await self._reader.content(name)) is not None
        ]
        is_first = not self._posted
        for entry in await self._store.log(self._settings.list, self._posted):
            since = time.time() - OLD_S if is_first or entry.change.continues else 0.0
            events = [*await self._events(entry, key, since)] if has_rows(entry) else []
            for at in range(0, len(events), PARTS):
                if not await self._is_delivered(events[at : at + PARTS]):
                    return
            self._posted = entry.change.generation
            if events:
                update = ListUpdate(what=LEARN, state={"registered": (str(self._posted),)})
                await self._writer.write(lambda _, update=update: update)  # type: ignore[misc]  # of this turn

    async def _is_delivered(self, events: Sequence[Event]) -> bool:
        """Deliver events; return False if another node got the lease meanwhile. Events that are not delivered are posted again."""
        self._sender.add(events)
        try:
            while not self._sender.is_idle:
                await asyncio.sleep(POLL_S)
                if time.monotonic() - self._claimed_at > LEASE_S / 3 and not await self._claims():
                    return False
        finally:
            self._sender.waiting.clear()
        return True

    async def _events(self, entry: LogEntry, key: bytes | None, since: float) -> Iterator[Event]:
        """Return the events of a change of the list. Pairings that began before `since` (Unix seconds) cause none."""
        added, removed = map(
            pairings_of, (await read_rows(self._store, self._settings.list, entry)).decoded(self._settings.list)
        )
        news, olds = changed_pairings(added, removed)
        origin = entry.change.who.partition(":")[0]
        events = (
            self._event(new, old, key, origin) for new, old in zip(news, olds, strict=True) if new["changed"] >= since
        )
        return filter(None, events)

    def _event(self, new: np.void, old: np.void, key: bytes | None, origin: str) -> Event | None:
        """Return the event of a SIM in a new device; None for a kind that is not reported, or for a SIM that was in dual use before."""
        sim, device, before = int(new["sim"]), int(new["device"]), int(old["device"])
        is_same_model = device // SNR_KEYS == before // SNR_KEYS
        kind = FIRST if not before else DEVICE if is_same_model else MODEL
        is_dual = new["returns"] == DUAL_USE
        if kind not in self._settings.events or (is_dual and old["returns"] == DUAL_USE):
            return None
        digest = sha256(f"{sim} {device} {new['changed']}".encode()).hexdigest()
        subscriber = sim_text(sim, key)
        return {
            "id": f"{DEVICE_CHANGED}-{digest[:ID_DIGITS]}", "event": DEVICE_CHANGED, "kind": kind, "dual_use": bool(is_dual),
            "time": int(new["changed"]), "subscriber": subscriber, "msisdn": (self._number(subscriber) or None) if key is None else None,
            "imei": key_text(device), "type": self._type(device), "previous": key_text(before) if before else None,
            "previous_type": self._type(before) if before else None, "origin": origin,
        }  # fmt: skip

    def _type(self, device: int) -> str | None:
        """Return the type of a device by the first list of device types that has its TAC."""
        for content in self._types:
            rows = content.table.find(device // SNR_KEYS * SNR_KEYS)
            if len(rows):
                return content.head.reasons[int(rows.column(REASONS)[0])]
        return None
