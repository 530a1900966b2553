"""The feed without a node: what a request says, users and their file, numbers, and gathering into transactions."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.register import DATE, basic, device, path, request
from simulated.store_content import Altered, Lists, content_of, rows_in

from eir.device import SNR_KEYS, device_key, imsi_key, key_text
from eir.disk import WatchedFile
from eir.errors import EirError, StoreError
from eir.interfaces.clients import TOKEN_USERS_MAX, Clients, RequestRefused
from eir.interfaces.feed.feed import Feed
from eir.interfaces.feed.feed_rows import FeedRow, read_row
from eir.interfaces.feed.feed_writer import FeedWriter
from eir.interfaces.feed.settings import FeedSettings
from eir.lists.changes.local_entries import Entry
from eir.lists.changes.local_rows import ADD, REMOVE
from eir.lists.changes.local_writer import LocalWriter
from eir.lists.follow.list_copy import ListCopy
from eir.lists.follow.write_back import refuse_lost_here
from eir.lists.record.settings import ListSettings
from eir.lists.rows.msisdn import NumbersError, number_key, number_of, read_numbers
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.table.columns import BEGINS, DAYS, ENDS, WHOLE, rows_of
from eir.wire.web.http1 import Conversation, HttpRequest, HttpResponse
from eir.wire.web.passwords import Hashed, Users, UsersError, read_users, user_line

ROLES = frozenset({"block", "exception", "track", "allowed-tac", "blocked-tac"})
IMEI, SEEN, IMSI = "35209900176148", "352099001761481", "001010000000001"
PASSWORD = "correct horse battery"
DAY = (
    datetime.strptime(DATE, "%Y-%m-%d-%H-%M-%S").replace(tzinfo=UTC).toordinal()
    - datetime(1970, 1, 1, tzinfo=UTC).toordinal()
)


def test_a_file_that_is_being_written_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "numbers"
    path.write_text("85512345678,001010000000009\n")
    watched = WatchedFile(path)
    assert [watched.changed(), watched.changed()] == [True, False]
    for written in ("85512345678,0010100000", "85512345678,001010000000009\n8"):
        path.write_text(written)
        assert not watched.changed()
    assert [watched.changed(), watched.changed()] == [True, False]
    path.unlink()
    assert not watched.changed()


@pytest.mark.parametrize(
    ("method", "target", "row"),
    [
        ("POST", device(IMEI), FeedRow(ADD, "block", IMEI)),
        ("DELETE", device(IMEI, IMSI, "85512345678", SEEN, role="track"), FeedRow(REMOVE, "track", IMEI, IMSI, "85512345678")),
        ("POST", device(IMEI, actual="3520990017614899"), FeedRow(ADD, "block", IMEI)), ("POST", device("NULL", actual=SEEN), FeedRow(ADD, "block", SEEN)), ("POST", device("NULL", IMSI), FeedRow(ADD, "block", "", IMSI)),
        ("POST", device("NULL", "NULL", "+85512345678"), FeedRow(ADD, "block", "", "", "+85512345678")),
        ("POST", device("A0000000000001", role="exception"), FeedRow(ADD, "exception", "A0000000000001")),
        ("POST", path("allowed-tac", "00101001"), FeedRow(ADD, "allowed-tac", "00101001")),
        ("DELETE", path("blocked-tac", "00101001"), FeedRow(REMOVE, "blocked-tac", "00101001")),
        ("POST", f"{device(IMEI)}?begin=2026-12-22", FeedRow(ADD, "block", IMEI, begin=1_797_897_600)),
        ("POST", f"{path('blocked-tac', '00101001')}?begin=2026-12-22T12:00:00Z", FeedRow(ADD, "blocked-tac", "00101001", begin=1_797_940_800)),
    ],
)  # fmt: skip
def test_parts_of_a_request(method, target, row):
    assert read_row(method, target, ROLES) == row._replace(day=DAY)


@pytest.mark.parametrize(
    ("method", "target", "status", "reason"),
    [
        ("GET", device(IMEI), 405, "method"), ("PUT", device(IMEI), 405, "method"), ("POST", "/", 404, "path"), ("POST", "", 404, "path"),
        ("POST", "eir/block/x", 404, "path"), ("POST", "/eir/unknown/1", 404, "path"), ("POST", f"/eir/block/{IMEI}", 404, "path"),
        ("POST", device(IMEI) + "/", 404, "path"), ("POST", f"/EIR/block/{IMEI}", 404, "path"), ("POST", "//eir/block", 404, "path"),
        ("POST", device("NULL"), 400, "identifier"), ("POST", device("1234"), 400, "identifier"), ("POST", device(""), 400, "identifier"),
        ("POST", device("%33" + IMEI[1:]), 400, "identifier"), ("POST", device(IMEI, "12a456"), 400, "identifier"),
        ("POST", device(IMEI, msisdn="1"), 400, "identifier"),
        ("POST", device(IMEI, actual="352099001761581"), 400, "identifier"), ("POST", device("\u0663" * 14), 400, "identifier"),
        ("POST", device(IMEI, date="2026-11-28"), 400, "date"), ("POST", device(IMEI, date="2026-13-28-16-00-00"), 400, "date"),
        ("POST", device(IMEI, date="2026-11-28-16-00-0x"), 400, "date"), ("POST", device(IMEI, date="NULL"), 400, "date"),
        ("POST", device(IMEI, date="-0026-1-28-16-00-00"), 400, "date"), ("POST", path("allowed-tac", "0010100"), 400, "identifier"),
        ("POST", f"{device(IMEI)}?begin=", 400, "begin"), ("POST", f"{device(IMEI)}?begin=soon", 400, "begin"), ("POST", f"{device(IMEI)}?x=1", 400, "begin"),
        ("DELETE", f"{device(IMEI)}?begin=2026-12-22", 400, "begin"), ("POST", f"{device(IMEI)}?begin=2199-01-01", 400, "begin"),
        ("POST", path("allowed-tac", "NULL"), 400, "identifier"), ("POST", path("allowed-tac", "00101001", "x"), 404, "path"),
    ],
)  # fmt: skip
def test_what_is_no_row(method, target, status, reason):
    with pytest.raises(RequestRefused) as caught:
        read_row(method, target, ROLES)
    assert (caught.value.status, caught.value.reason) == (status, reason)


@given(st.text(), st.text())
def test_any_path_is_a_row_or_refused(method, target):
    for there in (target, f"/eir/{target}", f"/eir/block/{target}"):
        with suppress(RequestRefused):
            read_row(method, there, ROLES)


class TestUsers:
    @pytest.fixture
    def file(self, tmp_path):
        def write(*lines):
            (tmp_path / "users").write_text("\n".join(lines) + "\n")
            return tmp_path / "users"

        return write

    @pytest.fixture
    def quick(self, monkeypatch):
        """A clock, and passwords that are compared without a hash, which takes 50 ms."""
        hashed = []
        monkeypatch.setattr(
            Hashed, "fits", lambda _, password: hashed.append(password) or password == PASSWORD.encode()
        )
        return SimpleNamespace(now=0.0, hashed=hashed)

    async def test_a_good_password_and_bad_ones(self, file):
        now = [0.0]
        users = Users(
            read_users(file("# us", "", user_line("register", PASSWORD), user_line("second", "pass:word:twice"))),
            ticks=lambda: now[0],
        )
        assert users.known(basic(), "10.0.0.1") is None
        assert await users.user(basic(), "10.0.0.1") == ("register", "")
        assert users.known(basic(), "10.0.0.1") == "register"
        assert await users.user(basic("second", "pass:word:twice"), "10.0.0.1") == ("second", "")
        for header in (
            "", "Basic", "Basic !", "Bearer x", basic().replace("Basic ", "Digest "), "Basic " + "A" * 5000, "Basic cmVnaXN0ZXI=", "Basic Og==",
            "Basic w6k6cGFzcw==", basic().replace("Basic ", "Basic !"),
        ):  # fmt: skip
            assert await users.user(header, "10.0.0.1") == ("", "no_password"), header
        for header in (basic(password=PASSWORD + "x"), basic("nobody"), basic("second"), basic("register", "")):
            assert await users.user(header, "10.0.0.1") == ("", "wrong_password"), header
            assert users.known(header, "10.0.0.1") is None

    async def test_an_address_sends_a_limited_number_of_wrong_ones(self, file, quick):
        users = Users(read_users(file(user_line("register", PASSWORD))), ticks=lambda: quick.now)
        wrong = [await users.user(basic("nobody"), "10.0.0.1") for _ in range(30)]
        assert wrong == [("", "wrong_password")] * 20 + [("", "too_many")] * 10
        assert await users.user(basic(), "10.0.0.1") == ("", "too_many")
        assert await users.user(basic(), "10.0.0.2") == ("register", "")
        quick.now += 61
        assert [await users.user(basic(), "10.0.0.1") for _ in range(30)] == [("register", "")] * 30
        assert await users.user(basic("nobody"), "10.0.0.1") == ("", "wrong_password")  # good ones cost nothing

    async def test_wrong_ones_beyond_the_limit_lock_out_for_no_longer(self, file, quick):
        users = Users(read_users(file(user_line("register", PASSWORD))), ticks=lambda: quick.now)
        for _ in range(1000):
            await users.user(basic("nobody"), "10.0.0.1")
        assert len(quick.hashed) == 20
        quick.now += 61
        assert await users.user(basic(), "10.0.0.1") == ("register", "")

    async def test_a_remembered_header_is_no_oracle_for_another_address(self, file, quick):
        """Beyond the limit, a right guess gets the answer that a wrong one gets, whoever else uses that password."""
        users = Users(read_users(file(user_line("register", PASSWORD))), ticks=lambda: quick.now)
        assert await users.user(basic(), "10.0.0.1") == ("register", "")
        for _ in range(20):
            await users.user(basic(password="a wrong guess"), "10.0.0.2")
        assert users.known(basic(), "10.0.0.2") is None
        assert await users.user(basic(), "10.0.0.2") == ("", "too_many")
        assert users.known(basic(), "10.0.0.1") == "register"

    async def test_an_ipv6_network_of_one_client_is_one_address(self, file, quick):
        users = Users(read_users(file(user_line("register", PASSWORD))), ticks=lambda: quick.now)
        answers = [await users.user(basic("nobody"), f"2001:db8::{number:x}") for number in range(1, 31)]
        assert answers == [("", "wrong_password")] * 20 + [("", "too_many")] * 10
        assert await users.user(basic(), "2001:db8:0:1::1") == ("register", "")

    async def test_many_at_once_with_one_password_cost_one_hash(self, file):
        users = Users(read_users(file(user_line("register", PASSWORD))), ticks=monotonic)
        assert set(await asyncio.gather(*(users.user(basic(), "10.0.0.1") for _ in range(100)))) == {("register", "")}

    async def test_another_file_forgets(self, file):
        users = Users(read_users(file(user_line("register", PASSWORD))), ticks=monotonic)
        await users.user(basic(), "10.0.0.1")
        users.apply(read_users(file(user_line("register", "another password"))))
        assert users.known(basic(), "10.0.0.1") is None
        assert await users.user(basic(), "10.0.0.1") == ("", "wrong_password")

    @pytest.mark.parametrize(
        ("before", "after", "sent", "answer"),
        [
            (PASSWORD, PASSWORD, PASSWORD, ("register", "")),
            ("another password", PASSWORD, PASSWORD, ("register", "")),
            (PASSWORD, "another password", PASSWORD, ("", "wrong_password")),
        ],
    )
    async def test_a_file_that_is_read_meanwhile_decides(self, file, before, after, sent, answer):
        """The users change while one request has its password hashed and others wait for theirs."""
        users = Users(read_users(file(user_line("register", before))), ticks=monotonic)
        requests = [asyncio.create_task(users.user(basic(password=sent), "10.0.0.1")) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(request.done() for request in requests)
        users.apply(read_users(file(user_line("register", after), user_line("second", PASSWORD))))
        assert await asyncio.gather(*requests) == [answer] * 3
        assert users.known(basic(password=sent), "10.0.0.1") == (answer[0] or None)

    async def test_a_file_with_the_same_line_forgets_nobody(self, file):
        """Wrong passwords from a register's own address do not shut the register out once the file is read again."""
        users, line = Users({}, ticks=lambda: 0.0), user_line("register", PASSWORD)
        users.apply(read_users(file(line)))
        assert await users.user(basic(), "10.0.0.1") == ("register", "")
        for _ in range(21):
            await users.user(basic("nobody"), "10.0.0.1")
        users.apply(read_users(file(line, user_line("second", PASSWORD))))
        assert users.known(basic(), "10.0.0.1") == "register"
        assert await users.user(basic(), "10.0.0.1") == ("register", "")

    @pytest.mark.parametrize(
        ("lines", "says"),
        [
            (["# nobody"], "has no user"), (["register:secret"], ":1: expected a line"), (["a:scrypt:16384:8:1:AAAA"], ":1: expected a line"),
            (["a:scrypt:16384:8:1:AAAA:AAAA"], ":1: expected"), ([user_line("a", PASSWORD), user_line("a", PASSWORD)], ":2: the user a has two lines; remove one"),
            ([user_line("a", PASSWORD).replace("16384", "1073741824")], ":1: expected"), (["\u00e9:scrypt"], ":1: expected"),
            ([user_line("a", PASSWORD).replace(":8:1:", ":0:1:")], ":1: expected"), ([user_line("a", PASSWORD).replace("a:", "a b:", 1)], ":1: expected"),
        ],
    )  # fmt: skip
    def test_a_file_that_is_wrong(self, file, lines, says):
        with pytest.raises(UsersError) as caught:
            read_users(file(*lines))
        assert says in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "password"),
        [("", PASSWORD), ("a:b", PASSWORD), ("a", "short"), ("a", "x" * 300), ("a", "line\nline and more")],
    )
    def test_what_makes_no_line(self, name, password):
        with pytest.raises(UsersError):
            user_line(name, password)


async def test_metrics_distinguish_users_of_the_file_and_a_limited_number_of_token_holders(writing, tmp_path):
    (tmp_path / "users").write_text(user_line("register", PASSWORD))
    clients = Clients("eir-feed", report=lambda *_, **__: None)
    clients.users = Users(read_users(tmp_path / "users"), ticks=monotonic)
    clients.tokens = SimpleNamespace(subject=lambda authorization, _: authorization.decode().removeprefix("Bearer "))
    feed = Feed(FeedSettings(), clients, writing.writer, host="eir", report=lambda *_, **__: None)
    senders = [*(f"Bearer {number}" for number in range(TOKEN_USERS_MAX + 2)), "Bearer 0", basic(), "Digest x"]
    for authorization in senders:
        assert (await feed.respond(HttpRequest("POST", "/", headers={"authorization": authorization}))).status in {
            404,
            401,
        }
    counted = {user: count for (user, *_), count in feed.answers.items()}
    assert counted == {
        **dict.fromkeys(map(str, range(TOKEN_USERS_MAX)), 1), "0": 2, "other": 2, "register": 1, "-": 1,
    }  # fmt: skip


class TestNumbers:
    def test_a_table(self, tmp_path):
        (tmp_path / "n").write_text(
            "MSISDN,IMSI\r\n85512345678,001010000000009\n+4915112345,001010000000008\n\n0015551234,00101000001\n"
        )
        numbers = read_numbers(tmp_path / "n")
        assert [numbers.imsi(each) for each in ("85512345678", "+85512345678", "0085512345678", "4915112345", "15551234", "999999")] == [
            "001010000000009", "001010000000009", "001010000000009", "001010000000008", "00101000001", None,
        ]  # fmt: skip
        back = number_of(numbers)
        assert [back(imsi) for imsi in ("001010000000009", "00101000001", "001010000000001")] == [
            "85512345678",
            "15551234",
            "",
        ]
        assert number_key("0085512345678") == number_key("+85512345678") == number_key("85512345678")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("1,2", ":1: an MSISDN has 5"), ("85512345678,1\n", ":1: an IMSI has"), ("85512345678,001010000000009\nx,y", ":2: an MSISDN"),
            ("85512345678,001010000000009\n0085512345678,001010000000008", ": rows 1 and 2 have the same number"), ("msisdn,imsi\n", " has no number; expected lines of MSISDN,IMSI"), ("85512345678", ":1: an IMSI"),
            ("\u0663,1", ":1: not ASCII"),
        ],
    )  # fmt: skip
    def test_half_a_table_is_none(self, tmp_path, text, says):
        (tmp_path / "n").write_text(text)
        with pytest.raises(NumbersError) as caught:
            read_numbers(tmp_path / "n")
        assert says in str(caught.value)


LISTS = {
    "blocked": ListSettings(name="blocked", local=True, change_min=50),
    "other": ListSettings(name="other", local=True),
    "dated": ListSettings(name="dated", local=True, dates=True),
}


async def recorded(*_):
    return True


class Writing:
    """A writer over a store of its own; `put` gives what a row is answered."""

    def __init__(self, store, **limits):
        self.failed = []
        self.local = LocalWriter(store, LISTS, now=lambda: datetime.now(UTC), is_recorded=recorded)
        self.writer = FeedWriter(self.local, failed=self.failed.append, **limits)
        self.store = store

    def put(self, what, imei, name="blocked", who="register at x", day=DAY, begin=0):
        answer = asyncio.get_running_loop().create_future()
        entry = Entry(imei, device_key(imei))
        done = answer.set_result
        self.writer.add(what, entry, name=name, who=who, reason="fed by register", done=done, day=day, begin=begin)
        return answer

    async def columns(self, name, *indexes):
        """Return some columns of a list by identifier."""
        rows = await rows_in(self.store, name)
        values = zip(*(rows.column(index).tolist() for index in indexes), strict=True)
        return dict(zip(map(key_text, rows.keys.tolist()), values, strict=True))

    async def changes(self, name="blocked"):
        return [entry.change for entry in await self.store.log(name, 0)]

    async def all(self, *rows):
        return [
            found if isinstance(found, int) else found.status
            for found in await asyncio.gather(*(self.put(*row) for row in rows))
        ]


@pytest.fixture
async def writing(tmp_path):
    store = SqliteStore(tmp_path / "lists.sqlite")
    made = Writing(store)
    task = asyncio.create_task(made.writer.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


def imei(number):
    return f"00101001{number:06d}"


async def test_a_list_with_dates_has_those_of_the_rows(writing):
    rows = [(ADD, imei(at), "dated", "register at x", day) for at, day in ((1, DAY), (2, 0), (3, DAY + 1))]
    assert await writing.all(*rows, (ADD, imei(1))) == [201] * 4
    assert await writing.all((ADD, imei(1), "dated", "register at x", DAY - 1), (REMOVE, imei(3), "dated")) == [
        208,
        202,
    ]
    assert await writing.columns("dated", DAYS) == {imei(1): (DAY,), imei(2): (0,)}
    assert await writing.columns("blocked", DAYS) == {imei(1): (0,)}


async def test_a_row_begins_when_the_register_says_and_never_later_than_it_did(writing):
    later = int(datetime.now(UTC).timestamp()) + 86_400
    rows = ((1, later), (2, later), (3, 0), (1, later + 60), (2, 0), (3, later), (1, later - 60))
    answers = await writing.all(*((ADD, imei(at), "blocked", "register at x", DAY, begin) for at, begin in rows))
    assert answers == [201, 201, 201, 208, 201, 208, 201]
    assert await writing.columns("blocked", BEGINS) == {imei(1): (later - 60,), imei(2): (0,), imei(3): (0,)}


async def test_a_list_that_the_store_lost_takes_no_row(writing):
    """A new one of the fed rows alone would not be followed, or would take the place of all that were blocked before."""

    def guard(name, stored):
        if name == "blocked":
            raise StoreError("lost", f"list {name}: the store has generation {stored.generation}")

    writing.local.guard = guard
    assert await writing.all((ADD, imei(1)), (ADD, imei(1), "other")) == [503, 201]
    assert [str(fault) for fault in writing.failed] == ["list blocked: the store has generation 0"]
    assert [*await writing.store.heads()] == ["other"]


async def test_a_host_whose_copy_is_newer_than_the_store_takes_no_row(writing, tmp_path):
    """The store loses the last change of a list, which this host's node holds; each other list takes rows."""
    assert await writing.all((ADD, imei(1)), (ADD, imei(2)), (ADD, imei(1), "other")) == [201] * 3
    content = await content_of(writing.store, "blocked")
    ListCopy(tmp_path / "copies", "blocked").save(replace(content, head=replace(content.head, generation=9)))
    writing.local.guard = partial(refuse_lost_here, tmp_path / "copies")
    assert await writing.all((ADD, imei(3)), (ADD, imei(3), "other")) == [503, 201]
    assert "eir lists abandon blocked" in str(writing.failed[0])
    ListCopy(tmp_path / "copies", "blocked").save(content)
    assert await writing.all((ADD, imei(3))) == [201]


async def test_what_comes_together_is_one_transaction(writing):
    assert await writing.all(*((ADD, imei(number)) for number in range(40))) == [201] * 40
    assert writing.writer.transactions == 1
    (change,) = await writing.changes()
    assert (change.what, change.who, change.detail.count(", "), change.added) == ("feed", "register at x", 39, 40)
    # Those that are there, and those that are not, beside such that change something; of another sender and another list besides.
    assert await writing.all((ADD, imei(0)), (REMOVE, imei(1)), (REMOVE, imei(99)), (ADD, imei(50)), (ADD, imei(0), "other"), (ADD, imei(51), "blocked", "second")) == [
        208, 202, 204, 201, 201, 201,
    ]  # fmt: skip
    assert [(change.who, change.added, change.removed) for change in (await writing.changes())[1:]] == [
        ("register at x", 1, 0), ("register at x", 0, 1), ("second", 1, 0),
    ]  # fmt: skip
    assert (await writing.store.heads())["blocked"].entries == 41


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("devices", Entry("x", device_key(IMEI))), ("devices", Entry("x", 101002 * 10**6, whole_tac=True)), ("subscribers", Entry("x", imsi_key(IMSI))),
        ("pairs", Entry("x", device_key(IMEI), imsi_key(IMSI))),
    ],
)  # fmt: skip
async def test_what_was_to_end_does_not_once_a_register_sends_it(writing, kind, entry):
    settings = ListSettings(name=kind, kind=kind, local=True, change_min=10**7)
    end = int(datetime.now(UTC).timestamp()) + 3600
    key = WHOLE | entry.key // SNR_KEYS if entry.whole_tac else entry.key
    await Lists(writing.store, kinds={kind: kind}).change(rows_of([key], seconds=[entry.imsi], ends=end), name=kind)
    writing.local.lists = {kind: settings}

    async def put(what):
        answer = asyncio.get_running_loop().create_future()
        writing.writer.add(what, entry, name=kind, who="x", reason="fed by x", done=answer.set_result)
        return await answer

    assert [await put(ADD), await put(ADD)] == [201, 208]
    assert (await rows_in(writing.store, kind)).column(ENDS).tolist() == [0]
    assert [await put(REMOVE), await put(REMOVE)] == [202, 204]


async def test_rows_about_one_entry_keep_their_order(writing):
    rows = [(ADD, imei(1)), (REMOVE, imei(1)), (REMOVE, imei(1)), (ADD, imei(1)), (ADD, imei(1)), (ADD, imei(2))]
    assert await writing.all(*rows) == [201, 202, 204, 201, 208, 201]
    assert (await writing.store.heads())["blocked"].entries == 2


async def test_a_limit_is_one_of_each_row(writing):
    # 200 devices in one transaction are past change_min (50), and each of them is within it.
    assert await writing.all(*((ADD, imei(number)) for number in range(200))) == [201] * 200
    answer = asyncio.get_running_loop().create_future()
    tac = Entry("00101002", 101002 * 10**6, whole_tac=True)
    writing.writer.add(ADD, tac, name="blocked", who="x", reason="fed by x", done=answer.set_result)
    refused = await answer
    assert (refused.status, refused.reason) == (422, "limit")
    assert "change_min 50" in refused.detail


async def test_a_store_that_fails_is_reported_and_the_next_row_is_written(writing):
    async def fails(*_, **__):
        raise StoreError("full", "no room")

    store = Altered(writing.store, commit=fails)
    failing = Writing(store)
    task = asyncio.create_task(failing.writer.run())
    assert await failing.all((ADD, imei(1)), (ADD, imei(2))) == [503, 503]
    assert [fault.cause for fault in failing.failed] == ["full"]
    store.commit = writing.store.commit
    assert await failing.all((ADD, imei(1)), (ADD, imei(1), "gone")) == [201, 503]
    task.cancel()


async def test_a_fault_leaves_no_row_without_an_answer(writing):
    """One transaction has rows of two lists. The program fails at the first one."""
    altered, commit = Altered(writing.store), writing.store.commit

    async def fails_for_one(name, *rest, **more):
        if name == "blocked":
            raise RuntimeError(name)
        await commit(name, *rest, **more)

    altered.commit = fails_for_one
    failing = Writing(altered)
    task = asyncio.create_task(failing.writer.run())
    assert await failing.all((ADD, imei(1)), (ADD, imei(1), "other"), (ADD, imei(2), "blocked", "second")) == [
        500,
        201,
        500,
    ]
    assert [str(fault) for fault in failing.failed] == ["blocked"] * 2
    altered.commit = commit
    assert await failing.all((ADD, imei(1))) == [201]
    task.cancel()


async def test_a_row_is_answered_once_the_journal_has_its_change(writing):
    awaited, is_recorded = asyncio.Queue(), asyncio.Event()

    async def await_recorded(name, change):
        awaited.put_nowait((name, change))
        return await is_recorded.wait()

    writing.local.is_recorded = await_recorded
    assert await writing.all((REMOVE, imei(1))) == [204]  # the list has no change
    answers = [writing.put(ADD, imei(1)), writing.put(ADD, imei(2), "other")]
    changes = [await awaited.get(), await awaited.get()]
    heads = await writing.store.heads()
    assert changes == [(name, heads[name].digest) for name in ("blocked", "other")]
    answers.append(writing.put(ADD, imei(1)))  # it changes nothing: the change before it counts
    assert await awaited.get() == changes[0]
    assert not any(answer.done() for answer in answers)
    is_recorded.set()
    assert await asyncio.gather(*answers) == [201, 201, 208]


@pytest.mark.parametrize("error", [EirError("the follower does not run"), None])
async def test_a_row_that_the_journal_lacks_is_sent_again(writing, error):
    async def fails(*_):
        if error is not None:
            raise error
        return False

    failing = Writing(writing.store)
    failing.local.is_recorded = fails
    task = asyncio.create_task(failing.writer.run())
    refused = await failing.put(ADD, imei(1))
    assert (refused.status, refused.reason) == (503, "journal")
    assert str(error or "lacks the change") in str(failing.failed[0])
    task.cancel()
    assert await writing.all((ADD, imei(1))) == [208]


async def test_too_many_that_wait_are_turned_away(writing):
    limited = Writing(writing.store, waiting_max=3)
    answers = [limited.put(ADD, imei(number)) for number in range(3)]
    with pytest.raises(RequestRefused) as caught:
        limited.put(ADD, imei(3))
    assert (caught.value.status, caught.value.reason) == (503, "busy")
    task = asyncio.create_task(limited.writer.run())
    assert await asyncio.gather(*answers) == [201] * 3
    task.cancel()


def test_a_body_too_long_is_no_request():
    conversation = Conversation(10, 10)
    conversation.receive(request("POST", device(IMEI), None, b"x" * 11))
    assert conversation.next_request() is None
    assert (conversation.over, conversation.fault) == (True, 413)
    assert conversation.refuse(HttpResponse(413, "text/plain", b"x")).startswith(b"HTTP/1.1 413 ")


def test_dates_are_as_registers_write_them():
    assert read_row("POST", device(IMEI, date=DATE), ROLES)
