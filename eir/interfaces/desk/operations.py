"""Operations of the desk: search of a device, rows of local lists, undo of a change, and the last changes.

The page and the JSON interface call them. They know neither HTTP nor sessions. A change is written as `eir add` and `eir remove` write it, under
the name of the user, and its function returns when the journal of this host has the change.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from eir.checks.explain import explain, option_fault, question_of, rows_about
from eir.checks.question import Question
from eir.device import TAC_DIGITS, device_key, key_text, strip_separators
from eir.errors import EntryRefused
from eir.interfaces.clients import RequestRefused
from eir.interfaces.interface import NodeCalls, SharedSettings
from eir.lists.changes.local_entries import parse_entries
from eir.lists.changes.local_rows import (
    ADD,
    REMOVE,
    EditReport,
    RowsEdit,
    check_present_list,
    edit_report,
    entry_text,
    present_rows,
    rows_of_entries,
    rows_update,
)
from eir.lists.changes.local_writer import LocalWriter
from eir.lists.changes.merged_rows import has_other, with_reasons
from eir.lists.changes.rows_file import FileRows, parse_file_rows
from eir.lists.follow.list_reader import ListReader
from eir.lists.log.change import utc_text
from eir.lists.log.journal import FEED, MAIN, JournalEvent, read_events
from eir.lists.log.reader import LoggedList, read_content, read_rows
from eir.lists.log.writer import ListUpdate, Make
from eir.lists.record.entries import date_text, until_text
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, ListSettings
from eir.lists.rows.layout import TIME_MAX, begin_seconds, until_seconds
from eir.lists.stores.open import JOURNAL
from eir.lists.table.columns import NO_COLUMNS, NO_ROWS, SECONDS, TableRows
from eir.lists.table.table import merge, not_ended
from eir.wire.peers.rate import Buckets
from eir.wire.web.passwords import CHANGE

SEARCH = "search"
"""Kind of the journal's event for a search by IMSI or number."""
SEARCH_CHARS_MAX = 32
"""Maximum number of recorded characters of an IMSI or number, which may be wrong."""
CASE_CHARS_MAX = 64
ON_THE_HOST = "use `eir add` or `eir remove` with --force on the host of the node"
"""Remedy for a change that exceeds the limits of its list: the desk never lifts them."""
CHECKS_SHOWN, CHANGES_SHOWN, CHANGES_READ = 20, 20, 1_000
"""Maximum numbers of checks and of changes in the result of a search, and of events that are read for them."""
CHECKS_SINCE = timedelta(days=30)
SEARCHES_A_SECOND, SEARCHES_BURST = 4.0, 40.0
"""Searches of one user: maximum per second, and maximum number at once."""
PAUSE_S_MAX = 1.0
"""Longest pause in seconds after a search."""


class DeskUser(NamedTuple):
    """User who sent a request."""

    name: str
    role: str
    """eir.wire.web.passwords.VIEW or CHANGE."""
    lists: Sequence[str]
    """Names of the lists that the user may change."""
    who: str
    """User in the history."""
    salt: bytes = b""
    """Salt of the user's password: another one means another password."""

    def may_change(self, name: str) -> bool:
        """Return True if the user may change a list."""
        return self.role == CHANGE and name in self.lists


class RowValues(NamedTuple):
    """Values of a row that a user adds, as the user wrote them."""

    reason: str
    begin: str = ""
    """Begin as in a data file; empty: at once."""
    until: str = ""
    """End as in a data file; empty: none."""
    case: str = ""
    """Case number, which the history shows."""


class WrittenRow(NamedTuple):
    """Result of a change of one row."""

    row: Mapping[str, str] | None
    """Row after the change; None if it was removed."""
    changed: bool
    created: bool = False


class Precondition(NamedTuple):
    """State that a row must have before a change."""

    tag: str = ""
    """Entity tag of the row; empty: any."""
    is_absent: bool = False
    """True if the list must not have the row."""

    def check(self, row: Mapping[str, str] | None) -> None:
        """Raise RequestRefused (412) if the row has another state."""
        if (self.is_absent and row is not None) or (self.tag and (row is None or tag_of(row) != self.tag)):
            raise RequestRefused(412, "precondition", "the row has changed since it was read; read it again")


NO_PRECONDITION = Precondition()


def tag_of(row: Mapping[str, str]) -> str:
    """Return the entity tag of a row: a hash of its values."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:24]


class DeskOperations:
    """Operations of the desk on the lists of a node.

    Args:
        local: writer of the local lists.
        reader: reader of all lists.
        node: functions of the node.
        numbers: returns the IMSI of an MSISDN, or None; it raises IdentifierError.
    """

    def __init__(self, local: LocalWriter, reader: ListReader, node: NodeCalls, numbers: Any) -> None:
        self._local, self._reader, self._node, self._numbers = local, reader, node, numbers
        self._shared: Any = None
        self._rates = Buckets(SEARCHES_A_SECOND, SEARCHES_BURST)
        """Buckets of searches by user."""
        self._one = asyncio.Lock()

    def apply(self, shared: SharedSettings) -> None:
        """Apply new settings of the node."""
        self._shared, self._local.lists = shared, shared.lists

    def settings_of(self, name: str) -> ListSettings:
        """Return the settings of a list. Raises RequestRefused (404)."""
        settings: ListSettings | None = self._shared.lists.get(name)
        if settings is None:
            raise RequestRefused(404, "no_list", f"there is no list {name}")
        return settings

    async def lists(self, user: DeskUser) -> list[dict[str, Any]]:
        """Return all lists: name, kind, number of entries, serial, and whether the user may change the list."""
        heads = await self._local.store.heads()
        documents = []
        for name, settings in self._shared.lists.items():
            head = heads.get(name)
            documents.append({
                "name": name, "kind": settings.kind, "local": settings.local, "entries": head.entries if head else 0,
                "serial": head.serial if head and head.serial else None, "changeable": settings.local and user.may_change(name),
            })  # fmt: skip
        return documents

    # Rows

    async def row(self, name: str, identifier: str) -> Mapping[str, str]:
        """Return a row of a list. Raises RequestRefused (404)."""
        settings = self.settings_of(name)
        rows, _ = _rows_of(settings, identifier)
        content = await self._reader.content(name)
        row = None if content is None else _only_row(content, settings, rows, self._now_s())
        if row is None:
            raise RequestRefused(404, "no_entry", f"{name} has no entry {identifier}")
        return row

    async def write_row(
        self, user: DeskUser, name: str, identifier: str, values: RowValues, *, expected: Precondition = NO_PRECONDITION
    ) -> WrittenRow:
        """Add a row to a local list, or give it other values. Nothing changes if the list has the row with these values.

        Raises:
            RequestRefused: 403, 404, 412 or 422.
            StoreError: if the store fails.
        """
        settings = self._changeable(user, name)
        rows, names = _rows_of(settings, identifier)
        edit = RowsEdit(
            what=ADD, rows=rows, names=names, reason=values.reason, begin=_seconds(values.begin, begin_seconds), until=_seconds(values.until, until_seconds),
            replace=True,
        )  # fmt: skip
        return await self._write(user, edit, settings, values.case, expected)

    async def remove_row(
        self, user: DeskUser, name: str, identifier: str, values: RowValues, *, expected: Precondition = NO_PRECONDITION
    ) -> WrittenRow:
        """Remove a row from a local list. Nothing changes if the list lacks the row. Raises as `write_row`."""
        settings = self._changeable(user, name)
        rows, names = _rows_of(settings, identifier)
        edit = RowsEdit(what=REMOVE, rows=rows, names=names, reason=values.reason)
        return await self._write(user, edit, settings, values.case, expected)

    async def _write(
        self, user: DeskUser, edit: RowsEdit, settings: ListSettings, case: str, expected: Precondition
    ) -> WrittenRow:
        """Write a change of one row."""
        now, before = self._local.now(), list[Mapping[str, str] | None]()
        compute = self._rows_update(user, edit, settings, case, now)
        wanted = {"reason": edit.reason, "begin": until_text(edit.begin), "until": until_text(edit.until)}

        def make(content: LoggedList) -> ListUpdate | None:
            row = _only_row(content, settings, edit.rows, int(now.timestamp()))
            before[:] = [row]
            expected.check(row)
            if row is None if edit.what == REMOVE else row is not None and wanted.items() <= row.items():
                return None
            return compute(content)

        computed, _, head = await self._write_edit(edit, settings, make)
        await self._local.check_recorded(settings.name, head)
        row = before[0]
        if computed is not None:
            content = replace(computed.content, table=computed.effect.table, head=head)
            row = _only_row(content, settings, edit.rows, int(now.timestamp()))
        return WrittenRow(row, computed is not None, created=before[0] is None)

    def _rows_update(self, user: DeskUser, edit: RowsEdit, settings: ListSettings, case: str, now: datetime) -> Make:
        """Return the function that computes a change by a user, as `rows_update`, with the user's name and the case number."""
        detail = _case_text(case)
        try:
            compute = rows_update(edit, settings, now=now, guard=partial(self._local.guard, settings.name))
        except EntryRefused as e:
            raise RequestRefused(422, "refused", str(e)) from None

        def make(content: LoggedList) -> ListUpdate | None:
            update = compute(content)
            return None if update is None else replace(update, who=user.who, detail=update.detail + detail)

        return make

    async def _write_edit(self, edit: RowsEdit, settings: ListSettings, make: Make, *, dry_run: bool = False) -> Any:
        try:
            return await self._local.write(edit, settings, make, dry_run=dry_run)
        except EntryRefused as e:
            raise RequestRefused(
                422, "refused", str(e).replace("repeat the command with --force", ON_THE_HOST)
            ) from None

    def _changeable(self, user: DeskUser, name: str) -> ListSettings:
        settings = self.settings_of(name)
        if not settings.local:
            raise RequestRefused(403, "signed", f"{name} changes only by signed releases")
        if not user.may_change(name):
            raise RequestRefused(403, "role", f"{user.name} may not change {name}")
        return settings

    # Files of rows

    def parse_file(self, user: DeskUser, name: str, content: bytes, file: str) -> FileRows:
        """Parse a file of rows for a local list. Bad rows are among the warnings.

        Raises:
            RequestRefused: 403 or 404.
            ReleaseRefused: if the file has no good row, or too many bad ones.
        """
        return parse_file_rows(
            content, file, self._changeable(user, name), now_s=self._now_s(), declared=self._shared.layouts
        )

    async def add_file(
        self, user: DeskUser, name: str, found: FileRows, values: RowValues, *, dry_run: bool
    ) -> EditReport:
        """Add the rows of a file to a local list as one change; return the effect. Raises as `write_row`."""
        settings, now = self._changeable(user, name), self._local.now()
        edit = RowsEdit(
            what=ADD, rows=found.rows, texts=found.texts, reason=values.reason, begin=_seconds(values.begin, begin_seconds),
            until=_seconds(values.until, until_seconds), replace=True, source=found.source,
        )  # fmt: skip
        make = self._rows_update(user, edit, settings, values.case, now)
        computed, made, head = await self._write_edit(edit, settings, make, dry_run=dry_run)
        if not dry_run:
            await self._local.check_recorded(name, head)
        return edit_report(settings, computed, made)

    # History

    async def changes(self, *, since: str = "", limit: int = CHANGES_READ) -> list[dict[str, Any]]:
        """Return the newest changes of lists with their authors, oldest first. `since`: only changes from this time on."""
        async with self._turn():
            return [_change_document(event) for event in await self._events(since, limit)]

    async def _events(self, since: str = "", limit: int = CHANGES_READ) -> list[JournalEvent]:
        """Return the newest changes in the journal of this host."""
        events = await asyncio.to_thread(
            read_events, self._journal, since=since, series=(MAIN, FEED), limit=limit, witnesses=False
        )
        return [event for event in events if event.change is not None]

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for the end of other searches, and pause after this one as long as it took: searches cannot delay the process's other interfaces much."""
        async with self._one:
            began = time.monotonic()
            yield
            await asyncio.sleep(min(time.monotonic() - began, PAUSE_S_MAX))

    async def undo(self, user: DeskUser, name: str, number: int) -> None:
        """Undo a change of a local list by the same user. All its rows must still be as the change left them.

        Raises:
            RequestRefused: 403, 404, or 409 if a row has changed since.
            StoreError: if the store fails, or no longer has the change (`gone`).
        """
        settings, store = self._changeable(user, name), self._local.store
        head = (await store.heads()).get(name)
        entry = next((each for each in await store.log(name, number - 1) if each.change.generation == number), None)
        if head is None or entry is None:
            raise RequestRefused(404, "no_change", f"{name} has no change {number}")
        if not is_by(entry.change.who, user):
            raise RequestRefused(403, "author", f"change {number} of {name} is not by {user.name}")
        touched = merge(*(await read_rows(store, name, entry)).decoded(name))
        after = await read_content(store, name, head, number)
        before: TableRows = NO_ROWS
        texts: Sequence[str] = ("",)
        if number > 1:
            content = await read_content(store, name, head, number - 1)
            before, texts = present_rows(content.table, touched), content.head.reasons
        left = _row_documents(present_rows(after.table, touched), after.head.reasons, settings.kind)
        edit = RowsEdit(
            what=ADD if len(before) else REMOVE, rows=TableRows(touched.keys, (touched.columns[SECONDS], *NO_COLUMNS[1:])),
            reason=f"undo of change {number}",
        )  # fmt: skip

        def make(content: LoggedList) -> ListUpdate:
            check_present_list(content, settings, partial(self._local.guard, name))
            present = present_rows(content.table, touched)
            if _row_documents(present, content.head.reasons, settings.kind) != left:
                raise RequestRefused(409, "changed", f"a row of change {number} has changed since; nothing was undone")
            added, reasons = with_reasons(before, texts, content.head.reasons)
            if has_other(added):
                raise RequestRefused(
                    409, "reasons", f"{name} has no room for the reasons of change {number}; nothing was undone"
                )
            return ListUpdate(
                what=edit.what, added=added, removed=present, reasons=reasons, who=user.who,
                detail=f": {', '.join(entry_text(each, settings.kind) for each in islice(entries_in(touched), 10))}",
            )  # fmt: skip

        _, _, written = await self._write_edit(edit, settings, make)
        await self._local.check_recorded(name, written)

    # Search

    async def find(self, user: DeskUser, imei: str, imsi: str = "") -> dict[str, Any]:
        """Return the answer with its reason, the rows of lists, the last checks and the last changes of a device, a subscriber, or both.

        Args:
            user: user who searches; a search by IMSI or number is recorded.
            imei: IMEI, IMEISV or MEID; may be empty.
            imsi: IMSI, or `+NUMBER` of the table of numbers; may be empty.

        Raises:
            RequestRefused: 404 for an unknown number, 422 for a wrong identifier, 429 above SEARCHES_A_SECOND.
            StoreError: if a list cannot be read.
        """
        if not self._rates.of(user.name, now := time.monotonic()).try_spend(now):
            raise RequestRefused(429, "rate", f"more than {SEARCHES_A_SECOND:g} searches a second; search again later")
        imei, imsi = strip_separators(imei), strip_separators(imsi)
        if imsi:
            await self._node.record_event(
                JournalEvent(
                    time=utc_text(self._local.now()),
                    who=user.who,
                    what=SEARCH,
                    detail=f"search for the subscriber {imsi[:SEARCH_CHARS_MAX]}",
                )
            )
        if imsi.startswith("+"):
            number, imsi = imsi, self._numbers(imsi) or ""
            if not imsi:
                raise RequestRefused(404, "number", f"the table of numbers has no {number}")
        question = question_of(imei, imsi=imsi, software_version="", origin_host="", origin_realm="")
        if wrong := option_fault(question):
            raise RequestRefused(422, "identifier", wrong.removeprefix("--imsi "))
        key = device_key(imei) if imei else None
        async with self._turn():
            return {"imei": imei or None, "imsi": imsi or None, **await self._known(user, question, key)}

    async def _known(self, user: DeskUser, question: Question, key: int | None) -> dict[str, Any]:
        """Return answer, rows, checks and changes of a device or a subscriber. `key`: key of the device; None without one."""
        imsi, answer = question.imsi, None
        if key is not None:
            answer = await explain(
                question,
                self._shared.policy,
                self._shared.lists_and_record,
                self._reader.content,
                now=self._local.now(),
            )
        rows = [row for name in self._shared.lists for row in await self._listed(user, name, question)]
        wanted = {text for text in (key_text(key) if key is not None else "", imsi) if text}
        events = [
            each for each in await self._events() if any(not wanted.isdisjoint(row.values()) for row in each.rows)
        ]
        return {
            "answer": answer.as_json() if answer else None, "rows": rows, "checks": await self._checks(key, imsi),
            "changes": [_change_document(each) for each in events[-CHANGES_SHOWN:]],
        }  # fmt: skip

    async def _listed(self, user: DeskUser, name: str, question: Question) -> list[dict[str, Any]]:
        """Return the rows of a list about a device or a subscriber."""
        settings, content = self._shared.lists[name], await self._reader.content(name)
        if content is None or content.head.kind != settings.kind or settings.kind not in {DEVICES, PAIRS, SUBSCRIBERS}:
            return []
        rows = rows_about(question, settings.kind, content.table)
        texts = _row_documents(not_ended(rows, self._now_s()), content.head.reasons, settings.kind)
        changeable = settings.local and user.may_change(name)
        return [{"list": name, "changeable": changeable, **row, "tag": tag_of(row)} for row in texts]

    async def _checks(self, key: int | None, imsi: str) -> list[dict[str, Any]]:
        """Return the last checks of a device or a subscriber, newest first; none if the node keeps no record of checks."""
        if self._shared.sightings is None or (key is None and not imsi):
            return []
        await self._node.write_checks()
        return await asyncio.to_thread(_last_checks, self._shared.state, key, imsi, self._local.now() - CHECKS_SINCE)

    @property
    def _journal(self) -> Path:
        folder: Path = self._shared.state / JOURNAL
        return folder

    def _now_s(self) -> int:
        return int(self._local.now().timestamp())


def is_by(who: str, user: DeskUser) -> bool:
    """Return True if the author of a change is this user of the desk."""
    name, _, place = who.partition(" at ")
    return name == user.name and " by the desk of " in place


def user_text(name: str, address: str, host: str) -> str:
    """Return the text that names a user of the desk in the history."""
    return f"{name} at {address} by the desk of {host}"


def _rows_of(settings: ListSettings, identifier: str) -> tuple[TableRows, Mapping[tuple[int, int], str]]:
    """Return the row of an identifier: IMEI, MEID or TAC, IMSI, or `IMEI+IMSI`. Raises IdentifierError."""
    device, plus, imsi = identifier.partition("+")
    is_tac = settings.kind == DEVICES and len(strip_separators(device)) == TAC_DIGITS
    return rows_of_entries(parse_entries(settings.kind, [device], imsis=[imsi] if plus else (), tacs=is_tac))


def _only_row(content: LoggedList, settings: ListSettings, wanted: TableRows, now: int) -> Mapping[str, str] | None:
    """Return the row that a list has for one identifier, unless the row has ended."""
    rows = not_ended(present_rows(content.table, wanted), now)
    return next(iter(_row_documents(rows, content.head.reasons, settings.kind)), None)


def _row_documents(rows: TableRows, reasons: Sequence[str], kind: str) -> list[dict[str, str]]:
    """Return the values of rows as texts; a value that a row lacks is empty."""
    return [
        {
            "id": entry_text(entry, kind), "reason": reason_at(reasons, entry.reason), "begin": until_text(entry.begin), "until": until_text(entry.until),
            "date": date_text(entry.date),
        }
        for entry in entries_in(rows)
    ]  # fmt: skip


def _seconds(text: str, parse: Any) -> int:
    """Parse a begin or an end; 0 for an empty text. Raises RequestRefused (422)."""
    with suppress(ValueError):
        seconds = int(parse(text)) if text else 0
        if seconds <= TIME_MAX:
            return seconds
    raise RequestRefused(422, "time", f"{text}: expected 2026-12-31 or 2026-12-31T12:00:00Z, before the year 2106")


def _case_text(case: str) -> str:
    """Return the case number for the detail of a change. Raises RequestRefused (422)."""
    if len(case) > CASE_CHARS_MAX or not case.isprintable():
        raise RequestRefused(422, "case", f"a case number has at most {CASE_CHARS_MAX} printable characters")
    return f"; case {case}" if case else ""


def _change_document(event: JournalEvent) -> dict[str, Any]:
    return {
        "time": event.time, "list": event.list, "change": event.generation, "what": event.what, "who": event.who, "serial": event.serial,
        "detail": event.detail.partition("\n")[0], "rows": [dict(row) for row in event.rows],
    }  # fmt: skip


def _last_checks(state: Path, key: int | None, imsi: str, since: datetime) -> list[dict[str, Any]]:
    from eir.sightings.seen import SearchTerms, find_sightings  # noqa: PLC0415 - polars, only for a search with a record of checks
    from eir.sightings.subscribers import subscriber_names  # noqa: PLC0415 - as above

    names = subscriber_names(state, imsi) if imsi and key is None else []
    found = find_sightings(state, SearchTerms(key, None), names, since)
    return found[: -CHECKS_SHOWN - 1 : -1]
