"""The record of checks: what the answering process hands over, what becomes of it in files, and what people get out of it and into it."""

import json
import os
import random
import re
import stat
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from simulated.node import LISTED, TRACKED, UNLISTED
from simulated.wire import HOST, REALM, avp, ecr

from eir.checks.policy import Decision, SightingKind
from eir.errors import EirError
from eir.sightings import buffer, files
from eir.sightings.batches import FRAME, rows_of
from eir.sightings.buffer import HEAD, Buffer
from eir.sightings.engine import duck
from eir.sightings.schema import COLUMNS, SCHEMA
from eir.sightings.seen import find_sightings, parse_search
from eir.sightings.settings import FULL, HASHED, OFF
from eir.sightings.subscribers import KEY_FILE, Subscribers, load_subscribers, read_keys, subscriber_names

IMSI, OTHER_IMSI = "001010000000001", "001010000000002"
NUMBER = "85512345678"
WHITE, BLACK = Decision("whitelisted", "default", None, True), Decision("blacklisted", "1", "stolen", False)
ORIGIN, PEER = ("mme1.epc", "epc"), "mme"
NOON = 1_764_158_400.0  # 2025-11-26 12:00:00Z
DAY = 86400.0


def each(
    *identifiers, imsi=IMSI, version="01", msisdn="", decision=WHITE, origin=ORIGIN, observed="", peer=PEER, early=False, access=None,
):  # fmt: skip
    """Checks of one kind that are handed in together."""
    texts = "".join(f"{text}\n" for identifier in identifiers for text in (*origin, identifier, imsi, version, msisdn))
    return (SightingKind(decision, "s13", peer, observed, early, access),), bytes(2 * len(identifiers)), texts.encode()


class Handed:
    """A buffer, and what came of it; its clock and its timers are the test's."""

    def __init__(self, rate_max=1e6, *, takes=True, waiting_bytes_max=16 << 20):
        self.now, self.takes, self.messages, self.timers = NOON, takes, [], []
        self.buffer = Buffer(
            self.send,
            lambda _, call: self.timers.append(call),
            rate_max=rate_max,
            now=lambda: self.now,
            monotonic=lambda: self.now,
            waiting_bytes_max=waiting_bytes_max,
        )

    def send(self, message):
        if self.takes:
            self.messages.append(message)
        return self.takes

    def add(self, *sightings):
        for part in sightings:
            self.buffer.add(*part)

    def flush(self):
        due, self.timers = self.timers, []
        for call in due:
            call()

    def frame(self, how=FULL):
        return rows_of(self.messages).grouped(Subscribers(how))


def rows(frame):
    return list(frame.sort("device", "time", "imei", nulls_last=True).iter_rows(named=True))


def frame_of(*sightings, at=NOON, how=FULL):
    handed = Handed()
    handed.now = at
    handed.add(*sightings)
    handed.flush()
    return handed.frame(how)


# What the answering process hands over


def test_checks_become_rows_of_those_that_are_alike():
    handed = Handed()
    kinds = SightingKind(WHITE, "s13", PEER, ""), SightingKind(WHITE, "s13", "agent", "")
    texts = "".join(
        f"{host}\nepc\n{imei}\n{IMSI}\n01\n\n"
        for host, imei in (("mme1.epc", UNLISTED), ("mme2.epc", UNLISTED), ("mme1.epc", UNLISTED), ("mme1.epc", LISTED))
    )
    handed.add(
        each(UNLISTED, UNLISTED), each(LISTED, decision=BLACK, version=""), (kinds, b"\0\0\0\0\1\0\1\0", texts.encode())
    )
    handed.flush()
    found = rows(handed.frame())
    assert {(row["imei"], row["device"], row["software_version"], row["subscriber"], row["home"], row["protocol"]) for row in found} == {
        (UNLISTED, int(UNLISTED), "01", IMSI, "001010", "s13"), (LISTED, int(LISTED), "01", IMSI, "001010", "s13"), (LISTED, int(LISTED), None, IMSI, "001010", "s13"),
    }  # fmt: skip
    assert {(row["imei"], row["origin_host"], row["peer"], row["status"], row["rule"], row["list"], row["checks"]) for row in found} == {
        (LISTED, "mme1.epc", "agent", "whitelisted", "default", None, 1), (LISTED, "mme1.epc", "mme", "blacklisted", "1", "stolen", 1),
        (UNLISTED, "mme1.epc", "agent", "whitelisted", "default", None, 1), (UNLISTED, "mme1.epc", "mme", "whitelisted", "default", None, 3),
        (UNLISTED, "mme2.epc", "mme", "whitelisted", "default", None, 1),
    }  # fmt: skip
    assert found[0]["time"] == datetime.fromtimestamp(NOON, UTC).replace(tzinfo=None)


@pytest.mark.parametrize(
    ("identifier", "device", "version"),
    [
        ("3512345678901234", 35123456789012, "34"),  # an IMEISV carries its version
        ("351234567890123", 35123456789012, None),
        ("000000000000000", 0, None),
        ("A1000009296DF0", 10**14 + 0xA1000009296DF0, None),
        ("99000009296DF0", 10**14 + 0x99000009296DF0, None),
        ("1234567890123", None, None),
        ("nonsense" * 5, None, None),
        ("", None, None),
    ],
)
def test_the_device_of_an_identifier(identifier, device, version):
    (row,) = rows(frame_of(each(identifier, version="")))
    assert (row["imei"], row["device"], row["software_version"]) == (identifier[:32] or None, device, version)


def test_a_batch_larger_than_a_message_is_handed_over_in_parts():
    handed = Handed()
    handed.add(each(*["351234567890123"] * 20_000, imsi="", version=""))
    handed.flush()
    assert max(map(len, handed.messages)) < 64 << 10
    assert sum(HEAD.unpack_from(message)[1] for message in handed.messages) == 20_000
    assert [row["checks"] for row in rows(handed.frame())] == [20_000]


def test_long_texts_make_more_messages_and_no_longer_ones():
    handed = Handed()
    handed.add(*(each(UNLISTED, imsi=f"{IMSI}{number:01500d}") for number in range(300)))
    handed.flush()
    assert len(handed.messages) > 1
    assert max(map(len, handed.messages)) < 128 << 10
    assert handed.frame()["checks"].sum() == 300


def test_above_the_rate_only_what_matters_is_kept():
    handed = Handed(rate_max=20)
    handed.add(
        *[each(UNLISTED)] * 8,
        *[each(LISTED, decision=BLACK)] * 4,
        each(TRACKED, observed="2=greylisted"),
        each(*[UNLISTED] * 50),
    )
    handed.flush()
    assert [(row["imei"], row["checks"]) for row in rows(handed.frame())] == [(UNLISTED, 8), (LISTED, 4), (TRACKED, 1)]
    assert not handed.buffer.full
    handed.add(*[each(UNLISTED)] * 8)
    assert handed.buffer.dropped == {"rate": 55}  # of a room of seven one peer takes three
    assert handed.buffer.full == {PEER}
    handed.buffer.left_out(40, PEER)
    assert handed.buffer.dropped == {"rate": 95}
    handed.now += 1
    handed.flush()
    assert not handed.buffer.full
    handed.add(*[each(UNLISTED)] * 5)
    handed.flush()
    assert handed.buffer.dropped == {"rate": 95}


def test_checks_before_the_sim_was_authenticated_have_a_mark():
    found = rows(frame_of(each(LISTED, early=True), each(UNLISTED), each(TRACKED), each(TRACKED, early=True)))
    assert {(row["imei"], row["early"]) for row in found} == {
        (LISTED, True), (TRACKED, None), (TRACKED, True), (UNLISTED, None),
    }  # fmt: skip
    assert len(found) == 4


def test_a_flood_of_one_peer_leaves_the_others_their_room_and_comes_to_the_whole_rate_alone():
    handed = Handed(rate_max=1000)

    def turns(count, *, calm):
        for _ in range(count):
            handed.now += buffer.FLUSH_S
            for number in range(50):  # five times the rate
                handed.add(each(UNLISTED, peer="loud"))
                if number == 49:
                    handed.add(*[each(LISTED, peer="calm")] * calm)
            handed.flush()
        kept = {row["peer"]: row["checks"] for row in rows(handed.frame())}
        handed.messages = []
        return kept

    turns(100, calm=0)  # what was saved up before is used up
    assert turns(200, calm=0)["loud"] == pytest.approx(200 * 10, rel=0.05)
    both = turns(200, calm=4)
    assert both["calm"] == 200 * 4
    assert both["loud"] == pytest.approx(200 * 6, rel=0.1)


def test_while_nobody_takes_anything_the_oldest_go_and_are_counted():
    handed, count = Handed(takes=False, waiting_bytes_max=1 << 20), 0
    while not handed.buffer.dropped:
        handed.add(*(each(f"{number:014d}") for number in range(count, count + 5000)))
        count += 5000
        handed.flush()
    handed.takes = True
    handed.flush()
    assert sum(map(len, handed.messages)) <= 1 << 20
    kept = handed.frame()["device"]
    assert handed.buffer.dropped.total() + len(kept) == count
    assert kept.max() == count - 1
    assert kept.min() == handed.buffer.dropped["buffer"]


# Files


def test_the_schema_is_that_of_the_files(tmp_path):
    (made,) = files.write(tmp_path, frame_of(each(UNLISTED)))
    assert pl.read_parquet_schema(made.path) == FRAME
    assert list(SCHEMA) == [column.name for column in COLUMNS]
    assert made.path.parent.name == "2025-11-26"
    assert made.path.name.startswith(f"12-{round(NOON * 1e6)}-")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700


def test_like_checks_are_one_row_within_an_hour_and_a_file_holds_one_hour(tmp_path):
    """Also where the clock goes back an hour in between: nothing is replaced, and each row is in the file of its hour."""
    handed = Handed()
    for at in (0, 1, 3599, 3600, -1, 3601):
        handed.now = NOON + at
        handed.add(each(UNLISTED))
        handed.flush()
    made = files.write(tmp_path, handed.frame())
    assert sorted(file.path.name[:2] for file in made) == ["11", "12", "13"]
    found = {file.path.name[:2]: rows(pl.read_parquet(file.path)) for file in made}
    assert [row["checks"] for row in found["12"]] == [3]
    assert (found["12"][0]["last"] - found["12"][0]["time"]).seconds == 3599
    again = files.write(tmp_path, handed.frame())
    assert len(files.list_files(tmp_path)) == len(made) + len(again)


def test_what_is_too_old_or_too_much_goes_oldest_first(tmp_path):
    made = [files.write(tmp_path, frame_of(each(UNLISTED), at=NOON + day * DAY))[0] for day in range(5)]
    for day, file in enumerate(made):
        os.utime(file.path, (NOON + day * DAY, NOON + day * DAY))
    now = NOON + 5 * DAY
    left = files.prune(tmp_path, keep_s=3.5 * DAY, max_bytes=10**9, now=now)
    assert [file.path for file in files.list_files(tmp_path)] == [file.path for file in made[2:]]
    assert left == sum(file.bytes for file in made[2:])
    assert files.prune(tmp_path, keep_s=3.5 * DAY, max_bytes=round(2.2 * made[0].bytes), now=now) == 2 * made[0].bytes
    assert [file.path for file in files.list_files(tmp_path)] == [file.path for file in made[3:]]
    assert not made[0].path.parent.exists()


def test_what_a_process_left_unfinished_is_not_read_and_goes(tmp_path):
    (made,) = files.write(tmp_path, frame_of(each(UNLISTED)))
    left = made.path.with_name(f".{made.path.name}{files.UNFINISHED}")
    left.write_bytes(made.path.read_bytes()[:100])
    assert len(find_sightings(tmp_path, parse_search(UNLISTED), [], None)) == 1
    files.clean(tmp_path)
    assert not left.exists()
    assert made.path.exists()


# Subscribers


def test_a_subscriber_is_a_hash_under_a_key_that_is_kept_and_rotated(tmp_path):
    how = load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda: NOON)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    one, other = how.one(IMSI), how.one(OTHER_IMSI)
    assert len(one) == 18
    assert one != other
    assert one == load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda: NOON + 99).one(IMSI)
    later = load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda: NOON + 101)
    assert later.one(IMSI)[:2] != one[:2]
    assert later.one(IMSI)[2:] != one[2:]
    assert subscriber_names(tmp_path, IMSI) == [IMSI, one, later.one(IMSI)]
    load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda: NOON + 1102)
    assert [key.number for key in read_keys(tmp_path)] == [1, 2]  # what the first one hashed is too old to be there
    assert how.of(pl.Series([IMSI, "", IMSI])).to_list() == [one, None, one]


@pytest.mark.parametrize(("how", "kept"), [(FULL, IMSI), (OFF, None)])
def test_a_subscriber_is_recorded_as_configured(tmp_path, how, kept):
    (row,) = rows(frame_of(each(UNLISTED), how=how))
    assert (row["subscriber"], row["home"]) == (kept, "001010")
    load_subscribers(tmp_path, how, rotate_s=1, keep_s=1)
    assert not (tmp_path / KEY_FILE).exists()


def test_a_number_is_recorded_as_configured(tmp_path):
    hashed = load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda: NOON)
    for how, kept in ((Subscribers(FULL), NUMBER), (Subscribers(OFF), None), (hashed, hashed.one(NUMBER))):
        handed = Handed()
        handed.add(each(UNLISTED, UNLISTED, msisdn=NUMBER, access="wlan"), each(UNLISTED))
        handed.flush()
        found = rows(rows_of(handed.messages).grouped(how))
        assert {(row["msisdn"], row["access"], row["checks"]) for row in found} == {(kept, "wlan", 2), (None, None, 1)}


def test_a_key_made_by_a_clock_that_was_ahead_gives_way(tmp_path):
    made = [
        load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda at=at: at) for at in (NOON + DAY, NOON)
    ]
    assert [each.key.number for each in made] == [0, 1]
    assert made[1] == load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda: NOON - 1)


def test_a_key_file_that_is_damaged_is_not_replaced(tmp_path):
    (tmp_path / KEY_FILE).write_text("rubbish\n")
    with pytest.raises(EirError, match="restore it from a backup"):
        load_subscribers(tmp_path, HASHED, rotate_s=1, keep_s=1)
    assert (tmp_path / KEY_FILE).read_text() == "rubbish\n"


def test_one_damaged_file_does_not_keep_the_others_from_being_forgotten(kept):
    kept.taken(f"time,imei,imsi\n2025-11-20T10:00:00Z,{UNLISTED},{IMSI}\n")
    (first,) = (kept.folder / "var").glob("sightings/*/*.parquet")
    damaged = first.with_name("00-0-damaged.parquet")
    damaged.write_bytes(first.read_bytes()[:-50])
    done = kept.eir("sightings", "forget", "--imsi", IMSI, status=1)
    assert done.out.strip() == "1 rows are gone"
    assert str(damaged) in done.err


def test_the_newest_file_is_never_pruned_for_its_size(tmp_path):
    rows = rows_of([]).grouped(Subscribers(OFF))
    row = pl.DataFrame(
        [{**dict.fromkeys(rows.columns), "time": datetime(2026, 11, 25, 6), "checks": 1}],  # noqa: DTZ001
        schema=rows.schema,
    )
    (made,) = files.write(tmp_path, row)
    assert files.prune(tmp_path, keep_s=10**9, max_bytes=1, now=made.written) == made.bytes
    assert files.prune(tmp_path, keep_s=10, max_bytes=1, now=made.written + 11) == 0


def files_of_rows(folder, *counts):
    """Files of one day each with about so many rows, by several peers."""
    for day, count in enumerate(counts):
        parts = [
            each(f"{number:014d}", imsi=f"{random.getrandbits(49):015d}", peer=f"p{number % 3}")
            for number in range(count)
        ]
        files.write(folder, frame_of(*parts, at=NOON + day * DAY))
    return files.list_files(folder)


def test_the_newest_file_displaces_no_other_if_it_alone_exceeds_the_limit(tmp_path):
    """Deleting the others could not bring the record below the limit; as many as fit within it stay."""
    *older, newest = files_of_rows(tmp_path, 3000, 3000, 3000, 60_000)
    limit = round(2.5 * older[0].bytes)
    assert newest.bytes > limit
    left = files.prune(tmp_path, keep_s=10**9, max_bytes=limit, now=newest.written)
    assert files.list_files(tmp_path) == [*older[1:], newest]
    assert left == sum(file.bytes for file in files.list_files(tmp_path))
    assert files.prune(tmp_path, keep_s=10**9, max_bytes=limit, now=newest.written) == left


@pytest.mark.long
def test_a_file_that_cannot_fit_goes_before_older_ones(tmp_path):
    """Such as one that exceeded the limit while it was the newest."""
    *older, large, newest = files_of_rows(tmp_path, 3000, 3000, 60_000, 3000)
    limit = sum(file.bytes for file in (*older, newest)) * 11 // 10
    left = files.prune(tmp_path, keep_s=10**9, max_bytes=limit, now=newest.written)
    assert large.bytes > limit >= left
    assert files.list_files(tmp_path) == [*older, newest]


def test_of_what_is_too_much_the_oldest_of_the_loudest_peer_goes_first(tmp_path):
    for day in range(6):
        calm, loud = (
            each(LISTED, peer="calm"),
            [each(f"{day}{number:013d}", imsi=f"{random.getrandbits(49):015d}", peer="loud") for number in range(5000)],
        )
        files.write(tmp_path, frame_of(calm, *loud, at=NOON + day * DAY))
    whole = files.list_files(tmp_path)
    size = sum(file.bytes for file in whole)

    def kept():
        return {
            peer: [
                pl.read_parquet(file.path).filter(pl.col("peer") == peer).height for file in files.list_files(tmp_path)
            ]
            for peer in ("calm", "loud")
        }

    left = files.prune(tmp_path, keep_s=10**9, max_bytes=size // 2, now=whole[-1].written)
    assert left == sum(file.bytes for file in files.list_files(tmp_path)) <= size // 2
    assert kept() == {"calm": [1] * 6, "loud": [0, 0, 0, 0, 5000, 5000]}
    assert files.prune(tmp_path, keep_s=10**9, max_bytes=size // 4, now=whole[-1].written) <= size // 4
    assert kept() == {"calm": [1] * 6, "loud": [0, 0, 0, 0, 0, 5000]}
    assert files.prune(tmp_path, keep_s=10**9, max_bytes=1, now=whole[-1].written) == whole[-1].bytes
    assert kept() == {"calm": [1], "loud": [5000]}


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        ({"a": 301, "b": 300}, {"b": 300}), ({"a": 300, "b": 300}, {"a": 300, "b": 300}), ({"a": 300, "b": 200, "c": 200}, {"a": 300, "b": 200, "c": 200}),
    ],
)  # fmt: skip
def test_a_peer_pushes_out_its_own_rows_while_it_has_more_than_half_of_all(tmp_path, rows, first):
    for day in range(3):
        parts = [
            each(f"{number:014d}", imsi=f"{random.getrandbits(49):015d}", peer=peer)
            for peer, count in rows.items()
            for number in range(count)
        ]
        files.write(tmp_path, frame_of(*parts, at=NOON + day * DAY))
    whole = files.list_files(tmp_path)
    files.prune(tmp_path, keep_s=10**9, max_bytes=sum(file.bytes for file in whole) - 1, now=whole[-1].written)
    left = [dict(pl.read_parquet(file.path)["peer"].value_counts().iter_rows()) for file in files.list_files(tmp_path)]
    assert left == ([first] if first != rows else []) + [rows] * 2


def test_forget_takes_one_subscriber_out_under_every_key(tmp_path):
    made = []
    for at in (NOON, NOON + 101):
        how = load_subscribers(tmp_path, HASHED, rotate_s=100, keep_s=1000, now=lambda at=at: at)
        handed = Handed()
        handed.now = at
        handed.add(each(UNLISTED), each(LISTED, imsi=OTHER_IMSI), each(TRACKED, imsi=""))
        handed.flush()
        made += files.write(tmp_path, rows_of(handed.messages).grouped(how))
    only, _ = files.write(tmp_path, frame_of(each(UNLISTED), at=NOON + 300))[0], None
    os.utime(made[0].path, (5, 5))
    assert files.forget(tmp_path, subscriber_names(tmp_path, IMSI)) == 3
    left = pl.read_parquet([file.path for file in files.list_files(tmp_path)])
    assert sorted(left["device"].to_list()) == sorted([int(LISTED), int(TRACKED)] * 2)
    assert made[0].path.stat().st_mtime == 5  # it is as old as it was
    assert stat.S_IMODE(made[0].path.stat().st_mode) == 0o600
    assert not only.path.exists()
    assert files.forget(tmp_path, subscriber_names(tmp_path, IMSI)) == 0


# Taking in


class Kept:
    """A host without a node, with a record; its commands run in this process."""

    def __init__(self, site, run):
        self.folder, self.state, self._run = site.folder, site.state, run

    def eir(self, *arguments, status=0):
        done = self._run(*arguments)
        assert done.status == status, done
        return done

    def json(self, *arguments, status=0):
        return json.loads(self.eir(*arguments, "--json", status=status).out)

    def taken(self, text, *more, status=0):
        (self.folder / "log.csv").write_text(text)
        return self.eir("sightings", "import", "log.csv", *more, status=status)


@pytest.fixture
def kept(site, eir, monkeypatch):
    site.configure(sightings={"subscribers": "full"})
    site.state.mkdir()
    monkeypatch.setenv("EIR_CONFIG", str(site.path))
    monkeypatch.chdir(site.folder)
    return Kept(site, eir)


def test_the_log_of_another_eir_is_taken_in(kept):
    text = f"""time,IMSI,imei,ignored,status,origin_host
2025-11-20T10:00:00Z,{IMSI},{UNLISTED}2,x,1,mme1
2025-11-20T12:00:00+02:00,{IMSI},{UNLISTED},x,black,mme1
2025-11-20 10:00:00.5,{IMSI},{UNLISTED},x,blacklisted,mme1
1763632800,,{LISTED},x,,
not a time,,{LISTED},x,,
2025-11-20T10:00:00Z,,,x,,
2025-11-20T10:00:00Z,12a,{LISTED},x,,
2025-11-20T10:00:00Z,,{LISTED},x,pink,
{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%d %H:%M:%S},,{LISTED},x,,
"""
    done = kept.taken(text, "--json")
    said = json.loads(done.out)
    assert (said["rows"], said["bad_rows"]) == (4, 5)
    assert [each.partition(": ")[0] for each in said["complaints"]] == [f"log.csv:{line}" for line in (6, 7, 8, 9, 10)]
    assert said["complaints"][-1] == "log.csv:10: 'time' is in the future; a time without a zone is UTC"
    assert UNLISTED not in done.err
    assert LISTED not in done.err
    found = kept.json("seen", UNLISTED)
    assert [(row["checks"], row["status"], row["origin_host"], row["subscriber"]) for row in found["sightings"]] == [
        (1, "blacklisted", "mme1", IMSI), (2, "blacklisted", "mme1", IMSI),
    ]  # fmt: skip
    assert (found["first_seen"], found["last_seen"]) == ("2025-11-20T10:00:00.000Z", "2025-11-20T10:00:00.500Z")
    assert kept.json("seen", LISTED)["sightings"][0]["status"] is None
    assert kept.json("seen", IMSI)["devices"] == [UNLISTED]


def test_only_time_and_identifier_have_to_be_there_and_parquet_does_as_well(kept):
    frame = pl.DataFrame(
        {
            "imei": [UNLISTED, LISTED],
            "time": [datetime(2025, 11, 20, 10, tzinfo=UTC)] * 2,
            "software_version": ["01", None],
        }
    )
    frame.write_parquet(kept.folder / "log.parquet")
    assert json.loads(kept.eir("sightings", "import", "log.parquet", "--json").out)["rows"] == 2
    assert kept.json("seen", UNLISTED)["software_versions"] == ["01"]
    assert json.loads(kept.taken(f"imei;time\n{LISTED};2025-11-20T10:00:00Z\n", "--json").out)["rows"] == 1
    assert "no column imei" in kept.taken("time,imsi\n", status=1).err
    assert "does-not-exist" in kept.eir("sightings", "import", "does-not-exist", status=1).err
    assert kept.json("sightings")["files"] == 2


def test_a_day_as_a_register_takes_it(kept, site, tmp_path):
    kept.taken(
        "time,imei,imsi,origin_host\n"
        f"2026-11-24T08:00:00Z,{LISTED}1,{IMSI},mme1\n2026-11-24T06:30:00.5Z,{LISTED}1,{IMSI},mme2\n2026-11-24T09:00:00Z,{LISTED}1,001010000000077,mme1\n"
        f"2026-11-25T09:00:00Z,{UNLISTED}0,{IMSI},mme1\n"
    )
    (site.folder / "numbers").write_text(f"85512345678,{IMSI}\n")
    site.configure(numbers="numbers")
    made = kept.eir("sightings", "export", "--layout", "edr", "--day", "2026-11-24", "--operator", "OP")
    times = [
        int(datetime.fromisoformat(f"2026-11-24T{time}Z").timestamp() * 1000) for time in ("06:30:00.500", "09:00:00")
    ]
    assert sorted(made.out.splitlines()[1:]) == sorted([
        f"{LISTED}1,{IMSI},85512345678,{times[0]},import,mme2,OP_EIR_20261124.csv,2026-11-24 06:30:00,OP",
        f"{LISTED}1,001010000000077,,{times[1]},import,mme1,OP_EIR_20261124.csv,2026-11-24 09:00:00,OP",
    ])  # fmt: skip
    assert made.out.splitlines()[0] == "imei,imsi,msisdn,timestamp,protocol,source,file_name,event_time,operator"
    kept.eir("sightings", "export", "--day", "2026-11-25", "--out", tmp_path / "day.csv")
    assert (tmp_path / "day.csv").read_text().count("\n") == 2
    assert stat.S_IMODE((tmp_path / "day.csv").stat().st_mode) == 0o600
    assert len(kept.eir("sightings", "export", "--day", "2020-01-01").out.splitlines()) == 1
    kept.eir("sightings", "export", "--day", "x", status=2)
    kept.eir("sightings", "export", "--layout", "x", status=2)


def test_a_subscriber_by_the_number(kept, site):
    (site.folder / "numbers").write_text(f"85512345678,{IMSI}\n")
    site.configure(numbers="numbers")
    kept.taken(f"time,imei,imsi\n2025-11-24T08:00:00Z,{LISTED}1,{IMSI}\n2025-11-24T09:00:00Z,{UNLISTED},{OTHER_IMSI}\n")
    seen = kept.json("seen", "+855 12345678")
    assert (seen["imsi"], seen["device"], seen["checks"]) == (IMSI, None, 1)
    assert kept.json("check", UNLISTED, "--imsi", "+85512345678")["imsi"] == IMSI
    assert kept.json("why", LISTED, "--imsi", "+85512345678")["imsi"] == IMSI
    for command in (
        ("seen", "+1"),
        ("check", LISTED, "--imsi", "+85512345679"),
        ("why", LISTED, "--imsi", "+1"),
    ):
        assert kept.eir(*command, status=2).err.startswith(f"eir: {command[-1]}: ")
    assert kept.json("sightings", "forget", "--imsi", "+85512345678") == {"rows": 1, "last_devices": 0}
    del site.settings["numbers"]
    site.configure()
    assert "sets no table `numbers`" in kept.eir("why", LISTED, "--imsi", "+85512345678", status=2).err


def test_the_number_of_a_check_is_found_exported_and_forgotten(kept, site):
    """Beside a file from before the columns `msisdn` and `access`, which is read as before."""
    files.write(kept.state, frame_of(each(LISTED, imsi=OTHER_IMSI)).drop("msisdn", "access"))
    for at, sighting in (
        (0, each(UNLISTED, msisdn=NUMBER, access="wlan")),
        (60, each(TRACKED, imsi="", msisdn=NUMBER)),
    ):
        files.write(kept.state, frame_of(sighting, at=NOON + at))
    assert kept.json("seen", LISTED)["msisdns"] == []
    found = kept.json("seen", f"+{NUMBER}")
    assert (found["imsi"], found["msisdns"], sorted(found["devices"])) == (None, [NUMBER], sorted([UNLISTED, TRACKED]))
    assert [row["access"] for row in found["sightings"]] == ["wlan", None]
    assert "msisdn" not in kept.eir("seen", LISTED).out
    assert NUMBER in kept.eir("seen", UNLISTED).out
    exported = kept.eir("sightings", "export", "--day", "2025-11-26").out
    assert sorted(line.split(",")[:3] for line in exported.splitlines()[1:]) == sorted(
        [[LISTED, OTHER_IMSI, ""], [UNLISTED, IMSI, NUMBER], [TRACKED, "", NUMBER]]
    )
    noon = datetime.fromtimestamp(NOON, UTC).replace(tzinfo=None)
    with duck(
        [str(file.path) for file in files.list_files(kept.state)],
        since=noon,
        until=noon + timedelta(hours=1),
        memory=1 << 30,
    ) as engine:
        assert engine.rows("SELECT DISTINCT msisdn FROM sightings ORDER BY 1 NULLS FIRST") == [(None,), (NUMBER,)]
    assert "not on record" in kept.eir("seen", "+85512345679", status=1).err
    # With a table, the number is its SIM's too.
    (site.folder / "numbers").write_text(f"{NUMBER},{OTHER_IMSI}\n")
    site.configure(numbers="numbers")
    assert sorted(kept.json("seen", f"+{NUMBER}")["devices"]) == sorted([LISTED, UNLISTED, TRACKED])
    del site.settings["numbers"]
    site.configure()
    gone = kept.eir("sightings", "forget", "--imsi", f"+{NUMBER}", "--json")
    assert json.loads(gone.out) == {"rows": 2, "last_devices": 0}
    assert "IMSI is not known" in gone.err
    assert kept.json("seen", LISTED)["checks"] == 1


def test_the_day_that_is_exported_is_yesterday_if_none_is_named(kept):
    today = datetime.now(UTC).date()
    rows = [
        (today - timedelta(days=2), TRACKED),
        (today - timedelta(days=1), LISTED),
        (today, LISTED),
    ]  # midnight may pass
    kept.taken("time,imei\n" + "".join(f"{day}T00:00:00Z,{imei}0\n" for day, imei in rows))
    out = kept.eir("sightings", "export").out
    assert LISTED in out
    assert TRACKED not in out


def test_what_is_asked_for_is_checked(kept):
    kept.eir("seen", "12345", status=1)
    kept.eir("seen", "twelve", status=2)
    kept.eir("seen", UNLISTED, "--since", "yesterday", status=2)
    kept.eir("sightings", "forget", "--imsi", "12a", status=2)
    assert "is not on record since 7d" in kept.eir("seen", UNLISTED, "--since", "7d", status=1).err
    kept.taken(f"time,imei,imsi\n2025-11-20T10:00:00Z,{UNLISTED},{IMSI}\n")
    assert kept.json("seen", UNLISTED, "--since", "7d", status=1)["sightings"] == []
    assert kept.json("sightings", "forget", "--imsi", IMSI) == {"rows": 1, "last_devices": 0}
    kept.eir("seen", UNLISTED, status=1)


def test_without_a_record_no_command_claims_that_there_were_no_checks(kept, site):
    site.load([LISTED])
    del site.settings["sightings"]
    site.configure()
    manifest = site.folder / "releases" / "stolen-1.manifest.json"
    for command in ("seen", UNLISTED), ("why", UNLISTED), ("sightings", "export"), ("audit", manifest, "--sightings"):
        said = kept.eir(*command, status=1)
        assert "has no section 'sightings'" in said.err
        assert not re.search("never asked|msisdn", said.out)


# A node


RULES = {
    "rules": [
        {"list": "stolen", "answer": "blacklisted"},
        {"name": "trial", "list": "tracked", "answer": "greylisted", "observe": True},
        {"identifier": "zero", "answer": "greylisted"},
    ],
    "no_identity": "error",
}  # fmt: skip


def check(identifier, imsi=IMSI, number=1):
    """An ECR; None: without Terminal-Information."""
    drop = ("terminal",) if identifier is None else ()
    return ecr(identifier or UNLISTED, drop=drop, user=avp(1, imsi), ids=(number, number))


async def asked(connection, *identifiers, imsi=IMSI):
    for identifier in identifiers:
        await connection.ask(check(identifier, imsi))


async def test_every_check_is_on_record_by_whichever_path_it_was_answered(site, connect):
    """The general path, the lane, and columns: a window full of like requests."""
    site.configure(sightings={"window_s": 3600, "subscribers": "full"}, policy=RULES | {"rules": RULES["rules"][:2]})
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    # A clock that is a year ahead of what the node saw last takes nothing off the record.
    (site.state / "clock").write_text(f"{time.time() - 365 * DAY:.0f}")
    (kept,) = files.write(site.state, frame_of(each(UNLISTED)))
    os.utime(kept.path, (time.time() - 365 * DAY, time.time() - 365 * DAY))
    node = site.start()
    mme = await connect(node)
    await asked(mme, UNLISTED, LISTED, TRACKED, UNLISTED, LISTED, None, "nonsense")
    many = 400
    await mme.send(
        *(check(f"{35_000_000_000_000 + number}" if number % 40 else LISTED, number=number) for number in range(many))
    )
    for _ in range(many):
        await mme.read()
    found = site.json("seen", LISTED)
    assert [
        (row["checks"], row["status"], row["rule"], row["list"], row["subscriber"], row["origin_host"])
        for row in found["sightings"]
    ] == [(2 + many // 40, "blacklisted", "1", "stolen", IMSI, HOST)]
    (tracked,) = site.json("seen", TRACKED)["sightings"]
    assert (tracked["status"], tracked["rule"], tracked["observed"]) == (
        "whitelisted",
        "default",
        "2=greylisted@tracked",
    )
    kept.path.unlink()
    frame = pl.read_parquet(str(site.state / "sightings" / "*" / "*.parquet"))
    assert frame["checks"].sum() == 7 + many
    assert (
        frame.filter(pl.col("device").is_between(35_000_000_000_000, 35_000_000_000_399))["device"].n_unique()
        == many - many // 40
    )
    assert frame.filter(pl.col("imei").is_null()).select("status", "rule").rows() == [("error", "no_identity")]
    assert frame.filter(pl.col("imei") == "nonsense").select("status", "rule").rows() == [
        ("whitelisted", "bad_identity")
    ]
    assert node.metrics()["eir_sightings_total"] == 7 + many
    assert frame["origin_realm"].unique().to_list() == [REALM]
    await asked(mme, LISTED)  # the record that anybody looks at has what was asked just now
    assert site.json("tamper", "show", LISTED)["subscribers"][0]["checks"] == 3 + many // 40
    await asked(mme, LISTED)
    audited = site.json("audit", site.folder / "releases" / "stolen-1.manifest.json", "--sightings")
    assert (audited["asked"], audited["never_asked"]) == (4 + many // 40, [])
    await asked(mme, UNLISTED)
    node.end()  # what was not written yet is written at the end
    assert pl.read_parquet(str(site.state / "sightings" / "*" / "*.parquet"))["checks"].sum() == 10 + many


async def test_checks_of_a_probe_are_no_sightings_until_a_reload_makes_a_peer_of_it(site, connect):
    site.configure(
        sightings={"window_s": 3600, "subscribers": "full"},
        policy=RULES,
        peers=[{"name": "probe", "host": HOST, "probe": True}],
    )
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    node = site.start()
    mme = await connect(node)
    await asked(mme, UNLISTED, LISTED, TRACKED)
    assert site.json("sightings")["files"] == 0
    site.eir("seen", LISTED, status=1)
    site.configure(peers=[{"name": "mme", "host": HOST, "access": "wlan"}])
    site.eir("reload")
    await asked(mme, UNLISTED, LISTED, LISTED)
    assert [(row["checks"], row["access"]) for row in site.json("seen", LISTED)["sightings"]] == [(2, "wlan")]
    assert node.metrics()["eir_sightings_total"] == 3
    blocked = {
        name: count
        for name, count in node.metrics().items()
        if name.startswith("eir_checks_total{") and "status=blacklisted" in name
    }
    assert blocked == {
        "eir_checks_total{list=stolen,probe=yes,protocol=s13,rule=1,status=blacklisted}": 1,
        "eir_checks_total{list=stolen,protocol=s13,rule=1,status=blacklisted}": 2,
    }
