"""The life of a list: chains of deltas, rollback, DIRBS's files, rows and releases that end; in every store that is there."""

import asyncio
import contextlib
import shutil
import zipfile
from datetime import UTC, datetime, timedelta

import full_disk
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import servers
from simulated.node import until, until_async
from simulated.releases import NOW, Agency, load_release, publish_files, text
from simulated.store_content import content_of, devices_of
from simulated.wire import avp, ecr

from eir.checks.explain import explain
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import SNR_KEYS, device_key, imsi_key
from eir.errors import NothingToRollBack, ReleaseRefused
from eir.lists.changes import release_load
from eir.lists.changes.local_entries import parse_entries
from eir.lists.changes.local_rows import ADD, REMOVE, RowsEdit, rows_of_entries, rows_update, write_edit
from eir.lists.changes.undo import plan_rollback
from eir.lists.follow.list_reader import ListReader
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.log.change import Head
from eir.lists.log.writer import KEEP, ListWriter
from eir.lists.record.clock import TrustedClock
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import ListSettings
from eir.lists.releases.release import VerifiedRelease, parse_manifest
from eir.lists.stores.open import open_store
from eir.lists.table.digest import digest_tree
from eir.node.observe.status import REMIND_S, ExpiryReminder, expired

KINDS = ["sqlite", *servers.programs()]
SIM, OTHER_SIM = "001010000000001", "001010000000002"


@pytest.fixture(scope="module")
def agency(tmp_path_factory):
    made = Agency(tmp_path_factory.mktemp("agency"))
    for kind in ("devices", "subscribers", "pairs"):
        made.settings(name=kind, kind=kind, growth_max=1e9, shrink_max=1, change_min=10**9)
    return made


@pytest.fixture
async def store(tmp_path):
    opened = open_store("sqlite", tmp_path)
    yield opened
    await opened.close()


async def contents(store, name):
    """{device or TAC: (reason, end)}, {subscriber: …} or {device: {SIMs}}; proves digest and sums by the way."""
    content = await content_of(store, name)
    head, found = content.head, {}
    assert head.content == digest_tree(content.table, head.reasons).root
    for entry in entries_in(content.table.rows()):
        if entry.imsi:
            found.setdefault(entry.key, set()).add(entry.imsi)
        else:
            subject = ("TAC", entry.key // SNR_KEYS) if entry.whole_tac else entry.key
            found[subject] = reason_at(head.reasons, entry.reason), entry.until
    assert head.devices == devices_of(content.table.rows())
    assert head.entries == len(content.table)
    return found


async def roll_back(name, store):
    planned = await plan_rollback(store, name)
    return await ListWriter(store, name, planned.target.kind, "tester@host").write(planned.make)


# ---- chains of deltas ----


def rows_of(kind, entries):
    """A data file of this kind of list with these entries, and its name for the role."""
    if kind == "pairs":
        return "imei,imsi\n" + "".join(
            f"{device:014d},{str(sim)[1:]}\n" for device, sims in entries.items() for sim in sims
        )
    column = "imsi" if kind == "subscribers" else "imei"
    shown = (str(key)[1:] if kind == "subscribers" else f"{key:014d}" for key in entries)
    return _rows(column, zip(shown, entries.values(), strict=True))


def _rows(columns, lines):
    lines = list(lines)
    ends = {0: ""} | {end: text(datetime.fromtimestamp(end, UTC)) for _, (_, end) in lines if end}
    return f"{columns},reason,until\n" + "".join(f"{key},{reason},{ends[end]}\n" for key, (reason, end) in lines)


def files_of(role, kind, entries):
    """Data files of this role; whole TACs, which only devices have, are written as such or as ranges from end to end."""
    tacs = {name[1]: said for name, said in entries.items() if isinstance(name, tuple)}
    files = {f"{role}.csv": rows_of(kind, {name: said for name, said in entries.items() if isinstance(name, int)})}
    if plain := {f"{tac}": said for tac, said in tacs.items() if tac % 2}:
        files[f"{role}-tacs.csv"] = _rows("tac", plain.items())
    if ranges := {f"{tac}000000,{tac}999999": said for tac, said in tacs.items() if not tac % 2}:
        files[f"{role}-ranges.csv"] = _rows("imei_from,imei_to", ranges.items())
    return {name: (role, "eir", content.encode()) for name, content in files.items()}


numbers = st.integers(0, 14)
deltas = st.tuples(
    st.sets(numbers), st.dictionaries(numbers, st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, 2])))
)
histories = st.lists(
    st.tuples(st.just("delta"), deltas)
    | st.tuples(st.just("full"), deltas)
    | st.tuples(st.just("rollback"), st.none()),
    max_size=8,
)
END = int(NOW.timestamp()) + 86400
ENDS = (0, END, 2 * END)


def key_of(kind, number):
    if kind == "subscribers":
        return imsi_key(f"00101{number % 3}00000{number:04d}")
    if kind == "devices" and number > 11:
        return "TAC", 35_000_000 + number % 3
    return (35_000_000 + number % 3) * SNR_KEYS + number


class Chain:
    """A list as its releases make it, and the dict that it is to equal."""

    def __init__(self, agency, store, kind):
        self.agency, self.store, self.kind = agency, store, kind
        self.truth, self.serial, self.current, self.kept = {}, 0, None, []

    def entries(self, rows):
        if self.kind == "pairs":  # the row's end tells whether the device has one SIM, the other, or both
            sims = {0: {SIM}, 1: {OTHER_SIM}, 2: {SIM, OTHER_SIM}}
            return {key_of("pairs", n): {imsi_key(sim) for sim in sims[which]} for n, (_, which) in rows.items()}
        return {key_of(self.kind, n): (reason, ENDS[which]) for n, (reason, which) in rows.items()}

    async def release(self, delta, removed, rows):
        """Load it; the truth changes alike."""
        added = self.entries(rows)
        gone = self.entries({n: ("a", n % 3) for n in removed - rows.keys()})  # a key in both is refused
        files, members = files_of("entries", self.kind, added), {}
        if delta:
            files = files_of("added", self.kind, added) | files_of("removed", self.kind, gone)
            members = {"kind": "delta", "base": self.current}
        self.serial += 1
        manifest = self.agency.release(files, list=self.kind, serial=self.serial, sign_it=False, **members)
        await load_release(manifest, self.agency.lists, self.store, now=NOW)
        if self.current is not None:
            self.kept = [*self.kept, (self.truth, self.current)][-KEEP:]
        self.truth, self.current = self.after(delta, gone, added), self.serial

    def after(self, delta, gone, added):
        if not delta:
            return added
        if self.kind != "pairs":
            return self.truth_without(gone) | {key: self.merged(key, value) for key, value in added.items()}
        left = {device: sims - gone.get(device, set()) for device, sims in self.truth.items()}
        both = {device: left.get(device, set()) | added.get(device, set()) for device in left | added}
        return {device: sims for device, sims in both.items() if sims}

    def truth_without(self, gone):
        return {key: value for key, value in self.truth.items() if key not in gone}

    def merged(self, key, value):
        """Of a row that is listed already, the later end counts; 0 is none."""
        reason, end = value
        _, before = self.truth.get(key, value)
        return reason, end and before and max(end, before)

    async def release_truth(self):
        """The full list that everything before leads to."""
        self.serial += 1
        files = files_of("entries", self.kind, self.truth)
        manifest = self.agency.release(files, list=self.kind, serial=self.serial, sign_it=False)
        await load_release(manifest, self.agency.lists, self.store, now=NOW)

    async def roll_back(self):
        if not self.kept:
            with pytest.raises(NothingToRollBack):
                await roll_back(self.kind, self.store)
            return
        await roll_back(self.kind, self.store)
        self.truth, self.current = self.kept.pop()

    async def missed_base(self):
        """A delta whose base is not in force is refused with the serial that is needed."""
        files = {"a.csv": ("added", "eir", rows_of(self.kind, self.entries({1: ("a", 0)})).encode())}
        manifest = self.agency.release(
            files, list=self.kind, serial=self.serial + 9, kind="delta", base=self.current + 7, sign_it=False
        )
        with pytest.raises(ReleaseRefused) as caught:
            await load_release(manifest, self.agency.lists, self.store, now=NOW)
        assert caught.value.reason == "base"
        assert f"a delta with base {self.current}, or a full release, is needed" in caught.value.detail


def believed(manifest, _trusts, *, now):  # noqa: ARG001  # tests/lists/releases/test_release.py and test_load.py are about signatures
    content = manifest.read_bytes()
    return VerifiedRelease(manifest=parse_manifest(content), digest=f"{len(content):064x}", signers=())


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Makes an empty store of a kind, in a folder or on a real server of its own."""
    with contextlib.ExitStack() as stack:
        running = {}

        def open_one(kind):
            if kind == "sqlite":
                return open_store("sqlite", tmp_path_factory.mktemp("store"))
            if kind not in running:
                running[kind] = stack.enter_context(servers.Server(servers.programs()[kind]))
            running[kind].command("FLUSHALL")
            return open_store(running[kind].url, tmp_path_factory.mktemp("state"))

        yield open_one


@pytest.mark.long(short=["subscribers-sqlite"])
@pytest.mark.parametrize("store_kind", KINDS)
@pytest.mark.parametrize("kind", ["devices", "subscribers", "pairs"])
def test_any_chain_of_deltas_equals_the_list_that_it_leads_to(agency, opened, monkeypatch, kind, store_kind):
    monkeypatch.setattr(release_load, "verify_release", believed)

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(deltas, histories)
    def chain(first, history):
        async def run():
            store = opened(store_kind)
            try:
                made = Chain(agency, store, kind)
                await made.release(False, *first)
                for what, change in history:
                    if what == "rollback":
                        await made.roll_back()
                    else:
                        await made.release(what == "delta", *change)
                    assert await contents(store, kind) == made.truth
                    assert (await store.heads())[kind].serial == made.current
                await made.missed_base()
                by_deltas = await contents(store, kind)
                await made.release(False, set(), {})
                await made.roll_back()
                assert await contents(store, kind) == by_deltas == made.truth
                await made.release_truth()
                assert await contents(store, kind) == by_deltas
            finally:
                await store.close()

        asyncio.run(run())

    chain()


# ---- DIRBS ----


def dirbs(folder, what, members):
    """A zip as DIRBS-Core makes it: stored, CRLF."""
    path = folder / f"20261120_020000_{what}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, lines in members.items():
            archive.writestr(f"20261120_020000_{name}.csv", "".join(f"{line}\r\n" for line in lines))
    return path


async def published(agency, store, name, file, serial, base=None):
    now = datetime.now(UTC).replace(microsecond=0)
    manifest = publish_files(
        [file], list_name=name, serial=serial, base=base, issued=now, expires=now + timedelta(days=1), key=agency.key,
        out=file.parent / f"out-{name}-{serial}",
    ).manifest  # fmt: skip
    return await load_release(manifest, agency.lists, store, now=now)


BLACKLIST, EXCEPTIONS = "imei,block_date,reasons", "imei,imsi,msisdn"
IN_FULL, UNPAID, BLOCKED_LATER = "35000001000001", "35000001000002", "35000001000003"


async def test_dirbs_delta_files_are_deltas(agency, store, tmp_path):
    full = dirbs(tmp_path, "blacklist", {
        "blacklist": [BLACKLIST, f"{IN_FULL},20261101,stolen", f"{UNPAID},20261101,unpaid|local", "1#2,20261101,junk"],
        "blacklist_delta_-1_42_blocked": [BLACKLIST, f"{IN_FULL},20261101,stolen"],
    })  # fmt: skip
    report = await published(agency, store, "devices", full, 1)
    assert report.entries == 2
    delta = dirbs(tmp_path, "blacklist", {
        "blacklist": [BLACKLIST, "99999999999999,20261101,full files are no deltas"],
        "blacklist_delta_42_43_blocked": [BLACKLIST, f"{BLOCKED_LATER},20261119,stolen", "*,20261119,junk"],
        "blacklist_delta_42_43_unblocked": [BLACKLIST, f"{UNPAID},20261101,unpaid|local"],
        "blacklist_delta_42_43_changed": [BLACKLIST, f"{IN_FULL},20261101,stolen|duplicate"],
    })  # fmt: skip
    report = await published(agency, store, "devices", delta, 2, base=1)
    assert (report.kind, report.come, report.gone) == ("delta", 1, 1)
    assert await contents(store, "devices") == {
        device_key(IN_FULL): ("stolen|duplicate", 0),
        device_key(BLOCKED_LATER): ("stolen", 0),
    }


async def test_dirbs_exceptions_exempt_a_sim_in_a_device_and_theft_beats_them(agency, store, tmp_path):
    """DIRBS's trap: its delta files may exempt a device that its full file would not."""
    await published(agency, store, "devices", dirbs(tmp_path, "blacklist", {
        "blacklist": [BLACKLIST, f"{IN_FULL},20261101,stolen", f"{UNPAID},20261101,unpaid"],
    }), 1)  # fmt: skip
    await published(agency, store, "pairs", dirbs(tmp_path, "exceptions_op1", {
        "exceptions_op1": [EXCEPTIONS, f"{UNPAID},{OTHER_SIM},1"],
    }), 1)  # fmt: skip
    await published(agency, store, "pairs", dirbs(tmp_path, "exceptions_op1", {
        "exceptions_op1_delta_42_43_added": [EXCEPTIONS, f"{IN_FULL},{SIM},1", f"{UNPAID},{SIM},1"],
        "exceptions_op1_delta_42_43_removed": [EXCEPTIONS, f"{UNPAID},{OTHER_SIM},1"],
    }), 2, base=1)  # fmt: skip
    agency.settings(name="stolen")
    files = {"s.csv": ("entries", "eir", f"imei\n{IN_FULL}\n".encode())}
    await agency.load(agency.release(files, list="stolen", serial=1), store)
    policy = PolicySettings(
        rules=(
            Rule(list="stolen", answer=Status.BLACKLISTED),
            Rule(list="pairs", answer=Status.WHITELISTED),
            Rule(list="devices", answer=Status.BLACKLISTED),
        )
    )
    found = {}
    for imei, imsi in ((UNPAID, SIM), (UNPAID, OTHER_SIM), (UNPAID, ""), (IN_FULL, SIM)):
        answer = await explain(Question(imei, imsi=imsi), policy, agency.lists, ListReader(store).content, now=NOW)
        found[imei, imsi] = (answer.status, answer.list, answer.reason)
    assert found == {
        (UNPAID, SIM): ("whitelisted", "pairs", None),
        (UNPAID, OTHER_SIM): ("blacklisted", "devices", "unpaid"),
        (UNPAID, ""): ("blacklisted", "devices", "unpaid"),
        (IN_FULL, SIM): ("blacklisted", "stolen", None),
    }


# ---- `eir check` over lists of each kind ----


async def test_check_finds_what_a_sim_is_bound_to_anywhere_in_a_list(agency, store):
    pairs = "".join(f"{35000000 + n}000001,00101{n:010d}\n" for n in range(3000))
    await agency.load(
        agency.release({"p.csv": ("entries", "eir", f"imei,imsi\n{pairs}".encode())}, list="pairs", serial=1), store
    )
    await agency.load(
        agency.release(
            {"s.csv": ("entries", "eir", f"imsi,reason\n{SIM},test SIM\n".encode())}, list="subscribers", serial=1
        ),
        store,
    )
    rules = (
        Rule(list="subscribers", answer=Status.WHITELISTED),
        Rule(device_bound_elsewhere="pairs", answer=Status.BLACKLISTED),
        Rule(subscriber_bound_elsewhere="pairs", answer=Status.GREYLISTED),
        Rule(list="pairs", answer=Status.UNKNOWN),
    )

    async def rule(imei, imsi):
        answer = await explain(
            Question(imei, imsi=imsi), PolicySettings(rules=rules), agency.lists, ListReader(store).content, now=NOW
        )
        assert (answer.reason == "test SIM") is (answer.rule == 1)
        return answer.rule

    assert await rule("35000007000001", f"00101{7:010d}") == 4
    assert await rule("35000007000001", f"00101{8:010d}") == 2
    assert await rule("99999999000001", f"00101{2999:010d}") == 3
    assert await rule("99999999000001", f"00101{3000:010d}") == "default"
    assert await rule("35000007000001", SIM) == 1
    assert await rule("35000007000001", "") == "default"
    assert await rule("35000007000001", "not an IMSI") == "default"


async def test_check_leaves_out_rows_that_ended(agency, store):
    rows = f"imei,until\n{IN_FULL},{text(NOW)}\n{UNPAID},{text(NOW + timedelta(seconds=1))}\n"
    await agency.load(agency.release({"u.csv": ("entries", "eir", rows.encode())}, list="devices", serial=1), store)
    policy = PolicySettings(rules=(Rule(list="devices", answer=Status.BLACKLISTED),))

    async def listed(imei, now):
        answer = await explain(Question(imei), policy, agency.lists, ListReader(store).content, now=now)
        return answer.status == "blacklisted"

    assert not await listed(IN_FULL, NOW)
    assert await listed(UNPAID, NOW)
    assert await listed(IN_FULL, NOW - timedelta(seconds=1))


# ---- rows and releases that end ----


async def test_a_published_row_drops_out_at_its_moment_and_not_because_a_clock_jumped(agency, store):
    ends = NOW + timedelta(hours=10)
    rows = f"imei,until\n{IN_FULL},{text(ends)}\n{UNPAID},\n"
    await agency.load(agency.release({"u.csv": ("entries", "eir", rows.encode())}, list="devices", serial=1), store)
    wall, monotonic, clock = NOW.timestamp(), 0.0, TrustedClock()
    index = Index({"devices": "devices"}, lambda: clock.now(wall, monotonic))
    content = await content_of(store, "devices")
    index.switch("devices", content.head, image_of(content.table))
    holds = index.lists["devices"].holds
    assert holds(device_key(IN_FULL))
    wall += 36_000  # a jump by ten hours
    assert holds(device_key(IN_FULL))
    wall -= 72_000  # and one back
    assert holds(device_key(IN_FULL))
    for _ in range(36):  # ten hours go by as they do
        monotonic += 1000
        wall = NOW.timestamp() + monotonic - 1
        assert holds(device_key(IN_FULL))
    wall, monotonic = ends.timestamp(), 36_001.0
    assert not holds(device_key(IN_FULL))
    assert holds(device_key(UNPAID))


def released(expires):
    return Head(kind="devices", serial=1, generation=1, highest_serial=1, expires=expires)


def test_which_lists_are_past_their_expiry():
    states = {"old": released(text(NOW)), "new": released(text(NOW + timedelta(seconds=1))), "local": released(None)}
    assert expired(states, NOW) == ["old"]
    assert expired(states, NOW + timedelta(seconds=1)) == ["old", "new"]


def test_an_expired_list_is_logged_at_once_and_each_hour():
    reminder = ExpiryReminder()
    states = {"a": released(text(NOW + timedelta(minutes=10))), "b": released(text(NOW - timedelta(days=1)))}
    said = []
    for second in range(0, 3 * 3600, 60):
        now = NOW + timedelta(seconds=second)
        said += [(second, name) for name in reminder.due(states, now=now, monotonic=1e6 + second)]
        if second == 7000 // 60 * 60:
            states["b"] = released(text(NOW + timedelta(days=1)))  # a new release
    assert said == [(0, "b"), (600, "a"), (REMIND_S, "b"), (REMIND_S + 600, "a"), (2 * REMIND_S + 600, "a")]


def test_a_wall_clock_that_jumps_repeats_no_reminder():
    reminder = ExpiryReminder()
    states = {"a": released(text(NOW))}
    assert reminder.due(states, now=NOW, monotonic=0.0) == ["a"]
    assert reminder.due(states, now=NOW + timedelta(days=365), monotonic=1.0) == []


async def test_a_node_logs_that_a_list_is_past_its_expiry_and_keeps_it(site, connect):
    listed = "35209900176148"
    issued = datetime.now(UTC).replace(microsecond=0)
    site.load([listed], issued=issued, expires_in=timedelta(seconds=3), now=issued)
    site.load([listed], list_name="tracked")
    node = site.start()
    (line,) = await until_async(lambda: node.lines("list_expired"))
    assert (line["list"], line["level"], line["detail"]) == ("stolen", "warning", "it stays in force")
    assert node.metrics()["eir_list_expires_timestamp_seconds{list=stolen}"] < datetime.now(UTC).timestamp()
    assert node.status()["state"] == "CRITICAL"
    client = await connect(node)
    answer = await client.ask(ecr(listed))
    assert (answer.result, answer.number(1445, 10415)) == (2001, 1)


async def test_a_node_that_starts_with_a_clock_days_ahead_drops_no_row(site, connect):
    """What it saw last stands in the state folder; by that the row has not ended yet."""
    listed = "35209900176148"
    ended = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)  # the file has whole seconds
    site.load(["imei,until", f"{listed},{text(ended)}", f"{UNPAID},"])
    (site.state / "clock").write_text(f"{(ended - timedelta(days=3)).timestamp():.0f}\n")
    node = site.start()
    assert (await (await connect(node)).ask(ecr(listed))).number(1445, 10415) == 1
    until(lambda: node.lines("clock_jumped", level="warning"))
    node.end()
    kept = int((site.state / "clock").read_text())
    assert 0 <= kept - (ended - timedelta(days=3)).timestamp() < 60
    (site.state / "clock").unlink()
    node = site.start()
    assert (await (await connect(node)).ask(ecr(listed))).number(1445, 10415) == 0
    node.end()
    assert int((site.state / "clock").read_text()) > ended.timestamp()


async def test_a_node_that_starts_on_a_full_disk_has_its_lists(site, connect, tmp_path):
    """The lists are those of its copies, as the store cannot be opened."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not full_disk.is_possible(folder):
        pytest.skip("no mount namespace may be made here")
    for name in ("stolen", "tracked"):
        site.load([UNPAID], list_name=name)
    site.start().end()  # it has written its copies
    with full_disk.small_disk(folder, 4) as disk:
        shutil.copytree(site.state, disk.seen_from_outside, dirs_exist_ok=True)
        site.configure(state=str(folder))
        disk.fill()
        site.state = disk.seen_from_outside
        node = site.start(prefix=disk.prefix)
        assert (await (await connect(node)).ask(ecr(UNPAID))).number(1445, 10415) == 1
        status, text = node.get("/ready")
        assert (status, text.splitlines()[:2]) == (200, ["degraded", "the store is away; the node answers from memory"])


async def test_operators_entries_pairs_and_subscribers_reach_a_running_node(site, connect):
    """By the commands, over the wire: a block, a SIM that is always served, a module that is used with another SIM."""
    site.configure(
        lists={
            "stolen": {"signers": "signers"},
            "own": {"local": True},
            "test-sims": {"local": True, "kind": "subscribers"},
            "modules": {"local": True, "kind": "pairs"},
        },
        policy={
            "rules": [
                {"list": "test-sims", "answer": "whitelisted"},
                {"list": "own", "answer": "blacklisted"},
                {"device_bound_elsewhere": "modules", "answer": "blacklisted"},
                {"subscriber_bound_elsewhere": "modules", "answer": "greylisted"},
            ]
        },
    )
    device, module, sim, test_sim, module_sim = "35123456000001", "35999999000001", SIM, OTHER_SIM, "001010000000003"
    node = site.start()
    assert node.get("/ready")[0] == 200  # a local list without an entry is no list that is missing
    client = await connect(node)

    async def status(imei, imsi):
        return (await client.ask(ecr(imei, user=avp(1, imsi)))).number(1445, 10415)

    async def becomes(expected, imei, imsi):
        async def is_so():
            return await status(imei, imsi) == expected

        await until_async(is_so)

    async def eir(*arguments, **options):
        return await asyncio.to_thread(site.eir, *arguments, **options)

    assert await status(device, sim) == 0
    await eir("add", "own", f"{device}7", "--reason", "stolen at the counter", "--until", "14d")
    await becomes(1, device, sim)
    assert "already" in (await eir("add", "own", device, "--reason", "again", status=1)).stderr
    await eir("add", "test-sims", test_sim, "--reason", "drive test")
    await becomes(0, device, test_sim)
    assert await status(device, sim) == 1
    await eir("add", "modules", module, "--imsi", module_sim, "--reason", "meter")
    await becomes(1, module, sim)
    assert [await status(module, module_sim), await status("35123456000009", module_sim)] == [0, 2]
    await eir("remove", "own", device, "--reason", "found")
    await becomes(0, device, sim)
    await eir("rollback", "own")
    await becomes(1, device, sim)
    events = site.json("history", "own")
    assert events[0]["detail"].startswith("stolen at the counter, until 20")
    assert [event["what"] for event in events] == ["add", "remove", "rollback"]
    assert (
        (await eir("add", "own", "351", "--reason", "x", status=2)).stderr.split("eir: ")[-1].startswith("351: no IMEI")
    )
    assert (
        "eir: --until soon: expected"
        in (await eir("add", "own", device, "--reason", "x", "--until", "soon", status=2)).stderr
    )
    assert "no list nowhere" in (await eir("remove", "nowhere", device, "--reason", "x", status=2)).stderr
    assert "signed releases" in (await eir("add", "stolen", device, "--reason", "x", status=1)).stderr
    assert "Missing option '--reason'" in (await eir("add", "own", device, status=2)).stderr


@pytest.mark.parametrize("store_kind", KINDS)
async def test_operators_entries_in_every_store(opened, store_kind):
    store = opened(store_kind)
    own = ListSettings(name="own", local=True)

    async def edit(what, *imeis, **details):
        rows, names = rows_of_entries(parse_entries("devices", imeis))
        change = RowsEdit(what=what, rows=rows, names=names, reason="lost", **details)
        return await write_edit(
            change, own, ListWriter(store, "own", "devices", "tester@host"), rows_update(change, own, now=NOW)
        )

    await edit(ADD, IN_FULL, UNPAID)
    await edit(ADD, IN_FULL, replace=True)
    await edit(REMOVE, UNPAID)
    assert await contents(store, "own") == {device_key(IN_FULL): ("lost", 0)}
    await roll_back("own", store)
    assert await contents(store, "own") == dict.fromkeys(map(device_key, (IN_FULL, UNPAID)), ("lost", 0))
    assert [entry.change.what for entry in await store.log("own", 0)] == ["add", "add", "remove", "rollback"]
    assert (await store.heads())["own"].generation == 4
    await store.close()
