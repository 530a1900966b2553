"""Figures of a month for the public: recomputed by plain Python from the same files, small counts hidden, several operators, the page in a browser."""

import asyncio
import csv
import io
import json
import random
import re
import subprocess
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import polars as pl
import pytest
from browser import in_chromium, looked_at
from simulated.patience import PROGRAM_S
from tampered import FAR, NEAR, phones

from eir.config import load_config
from eir.errors import EirError
from eir.lists.changes.local_entries import parse_entries
from eir.lists.changes.local_rows import ADD, REMOVE, RowsEdit, rows_of_entries, rows_update, write_edit
from eir.lists.changes.undo import plan_rollback
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.first_days import DAY_S
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.stores.open import open_store
from eir.lists.table import columns
from eir.sightings import cases, figures, refusals
from eir.sightings.batches import FRAME
from eir.sightings.conditions import TamperSettings
from eir.sightings.engine import duck
from eir.sightings.figures import (
    FEW,
    OTHER,
    UNKNOWN,
    WITHHELD,
    Coverage,
    FigureTally,
    document,
    hidden_rows,
    merge,
    public_text,
    read_document,
    record_coverage,
)
from eir.sightings.figures_page import figures_page
from eir.sightings.judge import judge
from eir.sightings.refusals import count_refusals
from eir.sightings.schema import FILES, FOLDER
from eir.sightings.seen import sum_files

MONTH, BEGIN, END = "2026-10", datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
A, B, C = "35209900", "35332811", "86123456"
SECRET = "990000862471854"
GRACE_DAYS = 30


def day(number, hour=12):
    return datetime(2026, 10, number, hour, tzinfo=UTC)


def imeis(tac, *numbers):
    return [f"{tac}{number:06d}" for number in numbers]


# Hidden counts, without files


def tally(total, attempts=0, **by):
    made = FigureTally()
    made.total.update(devices=total, attempts=attempts)
    for dimension, rows in by.items():
        for name, (devices, tries) in rows.items():
            made.by[dimension][name].update(devices=devices, attempts=tries)
    return made


def rows_of(total, **rows):
    """Published rows of the lists of refused devices."""
    made = document(
        "alpha", MONTH, {"refused": tally(total, 9 * total, list={name: (n, 9 * n) for name, n in rows.items()})}
    )
    part = made["figures"]["refused"]
    return part["devices"], {row["name"]: (row["devices"], row["attempts"]) for row in part["by"]["list"]}


@pytest.mark.parametrize(
    ("counts", "hidden"),
    [((50, 20), ()), ((50, 9), (50, 9)), ((50, 30, 9), (30, 9)), ((50, 3, 9), (3, 9)), ((0, 50, 12), ()), ((4,), (4,))],
)
def test_small_counts_are_not_published_nor_can_they_be_worked_out(counts, hidden):
    named = dict(zip("abcdef", counts, strict=False))
    texts = {name: FEW if count < 10 else WITHHELD for name, count in named.items() if count in hidden}
    assert hidden_rows(named, sum(counts)) == texts


FEW_ROW, HIDDEN = (FEW, WITHHELD), (WITHHELD, WITHHELD)


@pytest.mark.parametrize(
    ("rows", "total", "published"),
    [
        ({}, 0, {}),
        ({"a": 9}, FEW, {"a": FEW_ROW}),
        ({"a": 10}, 10, {"a": (10, 90)}),
        ({"a": 10, "b": 26}, 40, {"a": (10, 90), "b": (30, 230)}),
        ({"a": 3, "b": 20, "c": 50}, 70, {"a": FEW_ROW, "b": HIDDEN, "c": (50, 450)}),
        ({"a": 3, "b": 4, "c": 50}, 60, {"a": FEW_ROW, "b": FEW_ROW, "c": HIDDEN}),
        ({"a": 3, "b": 7, "c": 50}, 60, {"a": FEW_ROW, "b": FEW_ROW, "c": (50, 450)}),
        ({"a": 3, "b": 50}, 50, {"a": FEW_ROW, "b": HIDDEN}),
        ({"a": 3, "b": 4}, FEW, {"a": FEW_ROW, "b": FEW_ROW}),
    ],
)
def test_no_count_below_ten_is_given_or_follows_from_the_others(rows, total, published):
    assert rows_of(sum(rows.values()), **rows) == (total, published)


def test_devices_on_two_lists_hide_more_rather_than_less():
    """The difference of the total and the visible rows is 2, though both hidden rows have 6."""
    assert rows_of(22, a=6, b=6, c=20)[1] == {"a": FEW_ROW, "b": FEW_ROW, "c": HIDDEN}


def test_whatever_is_published_hides_at_least_ten_devices():
    drawn = random.Random(7)
    for _ in range(500):
        rows = {f"row{number}": drawn.choice((1, 2, 5, 9, 10, 11, 40, 300)) for number in range(drawn.randrange(7))}
        _, published = rows_of(sum(rows.values()), **rows)
        hidden = [rows[name] for name, cells in published.items() if isinstance(cells[0], str)]
        assert all(rows[name] >= 10 for name in rows if isinstance(published[name][0], int))
        assert not hidden or sum(hidden) >= 10 or sum(hidden) == sum(rows.values()), rows
        assert len(hidden) != 1 or len(rows) == 1, rows


def test_reasons_and_makers_below_ten_are_one_row():
    made = tally(40, maker={"x": (25, 0), "y": (8, 0), "z": (7, 0)}, reason={f"r{n}": (1, 0) for n in range(40)})
    part = document("alpha", MONTH, {"listed": made})["figures"]["listed"]
    assert part["by"]["maker"] == [{"name": "x", "devices": 30}, {"name": OTHER, "devices": 20}]
    assert part["by"]["reason"] == [{"name": OTHER, "devices": 40}]
    many = tally(100 * 50, maker={f"m{n}": (100, 0) for n in range(50)})
    assert len(document("alpha", MONTH, {"listed": many})["figures"]["listed"]["by"]["maker"]) == figures.ROWS_MAX + 1


def test_a_reason_names_nobody():
    assert public_text(f"stolen, see {SECRET} and +380 44 123 45 67") == "stolen, see … and +…"
    assert public_text("case 17") == "case 17"


def test_a_sum_hides_what_one_operator_hides():
    parts = [
        document(
            "alpha", MONTH, {"refused": tally(100, 500, list={"x": (60, 300), "y": (40, 200)}), "listed": tally(20)}
        ),
        document("beta", MONTH, {"refused": tally(33, 90, list={"x": (30, 80), "y": (3, 10)})}),
    ]
    found = merge(parts)
    refused = found["figures"]["refused"]
    assert (found["operators"], refused["operators"], refused["devices"], refused["attempts"]) == (2, 2, 130, 590)
    assert refused["by"]["list"] == [
        {"name": "x", "devices": WITHHELD, "attempts": WITHHELD}, {"name": "y", "devices": WITHHELD, "attempts": WITHHELD},
    ]  # fmt: skip
    assert (found["figures"]["listed"]["operators"], found["figures"]["listed"]["devices"]) == (1, 20)
    assert found["figures"]["returned"] is None
    assert (found["names"], found["covered"]) == (["alpha", "beta"], {})
    assert merge([found, document("gamma", MONTH, {})])["operators"] == 3
    with pytest.raises(EirError, match="several files have figures of alpha; merge one file of each operator"):
        merge([found, parts[0]])
    with pytest.raises(EirError, match="several months"):
        merge([parts[0], document("beta", "2026-09", {})])


@pytest.mark.parametrize(
    ("begin", "end", "is_whole", "days"),
    [
        (BEGIN, END, True, ["2026-10-01", "2026-10-31"]),
        (day(1, 0) - timedelta(days=9), END + timedelta(days=9), True, ["2026-10-01", "2026-10-31"]),
        (day(1, 1), END, False, ["2026-10-01", "2026-10-31"]),
        (BEGIN, day(31, 23), False, ["2026-10-01", "2026-10-31"]),
        (BEGIN, day(5, 0), False, ["2026-10-01", "2026-10-04"]),
        (END, END + timedelta(days=1), False, None),
        (BEGIN - timedelta(days=3), BEGIN, False, None),
    ],
)
def test_a_source_covers_the_whole_month_or_names_its_days(begin, end, is_whole, days):
    assert (Coverage(begin, end).holds(BEGIN, END), Coverage(begin, end).days(BEGIN, END)) == (is_whole, days)


@pytest.mark.parametrize(
    ("days", "now", "is_recording", "until"),
    [
        ([day(1, 0), day(31, 0)], END + timedelta(days=3), False, END),
        ([day(1, 0), day(31, 0)], day(31, 10), False, day(31, 10)),  # the month is not over
        ([day(1, 0), day(20, 0)], END + timedelta(days=3), False, day(21, 0)),
        ([day(1, 0), day(20, 0)], END + timedelta(days=3), True, END + timedelta(days=3)),
    ],
)
def test_a_record_covers_its_days_until_now(days, now, is_recording, until):
    assert record_coverage(days, now, is_recording=is_recording) == Coverage(day(1, 0), until)
    assert record_coverage([], now, is_recording=is_recording) is None


def altered(change):
    """Document of a month with one change."""
    found = json.loads(
        json.dumps(document("alpha", MONTH, {"refused": tally(100, 500, list={"x": (60, 300), "y": (40, 200)})}))
    )
    change(found)
    return found


@pytest.mark.parametrize("value", [1, 9, -10, True, False, 10.0, "10", "many", 10**12, [10], float("nan")])
def test_a_number_that_no_operator_publishes_is_refused(value):
    for place in ("devices", "attempts"):
        for part in (
            lambda found: found["figures"]["refused"],
            lambda found: found["figures"]["refused"]["by"]["list"][0],
        ):
            with pytest.raises(ValueError, match=f"refused: {place}: expected null, 0, a whole number from 10"):
                read_document(altered(lambda found, part=part, place=place: part(found).update({place: value})))


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("names"), lambda found: found.update(names=[]), lambda found: found.update(names="alpha"), lambda found: found.update(format="x"),
        lambda found: found["figures"].update(refused=5), lambda found: found["figures"]["refused"].update(operators=0),
        lambda found: found["figures"]["refused"]["by"].pop("peer"), lambda found: found["figures"]["refused"]["by"].update(list=[7]),
        lambda found: found.update(month="2026-13"), lambda found: found.update(month=["2026-10"]), lambda found: found.update(names=["\ud800"]),
        lambda found: found["figures"]["refused"]["by"]["list"][0].update(name=7), lambda found: found["figures"]["refused"]["by"]["list"][0].update(name="\ud800"),
    ],
)  # fmt: skip
def test_a_file_of_another_shape_is_refused(change):
    with pytest.raises(ValueError, match=r"expected|no figures of the form"):
        read_document(altered(change))
    assert read_document(altered(lambda found: found["figures"].update(unknown=5)))["names"] == ["alpha"]


def test_a_number_that_an_operator_does_not_give_is_withheld():
    parts = [read_document(altered(lambda found: found["figures"]["refused"].update(devices=None)))]
    parts.append(document("beta", MONTH, {"refused": tally(100, 500)}))
    refused = merge(parts)["figures"]["refused"]
    assert (refused["devices"], refused["attempts"]) == (WITHHELD, 1000)


# A node's files


def rows_for_release(entries):
    return ["imei,reason", *(f"{imei},{reason}" for imei, reason in entries.items())]


RELEASES = {  # serial → time, and rows
    1: (datetime(2026, 9, 28, tzinfo=UTC), dict.fromkeys(imeis(A, *range(25)), "stolen")),
    2: (day(5), dict.fromkeys(imeis(A, *range(60)), "stolen") | dict.fromkeys(imeis(B, *range(15)), "lost")
        | dict.fromkeys(imeis(C, *range(5)), "lost")),
    3: (day(12), dict.fromkeys(imeis(A, *range(20, 60)), "stolen") | dict.fromkeys(imeis(B, *range(15)), "lost")
        | dict.fromkeys(imeis(C, *range(5)), "lost") | dict.fromkeys(imeis(C, *range(5, 17)), f"seen with {SECRET}")),
    4: (day(25), dict.fromkeys(imeis(A, *range(20, 60)), "stolen") | dict.fromkeys(imeis(B, *range(15)), "lost")
        | dict.fromkeys(imeis(C, *range(5)), "lost") | dict.fromkeys(imeis(C, *range(5, 17)), f"seen with {SECRET}")
        | dict.fromkeys(imeis(C, *range(20, 31)), "fraud")),
}  # fmt: skip
NOT_BACK = ("unconfigured", "sims", "lost")
"""Lists that cannot show that a device came back: one that the configuration has no longer, one of SIMs, one that the store lacks."""
MEIDS = [f"A00000123456{number:02d}" for number in range(12)]
ADDED, REMOVED = [*imeis(C, *range(100, 113)), *MEIDS], imeis(C, *range(100, 103))


async def change_lists(config):
    """Changes by hand, a rollback, and the record of first sightings."""
    store = open_store(config.store, config.state)

    def writer(name, kind, time):
        return ListWriter(store, name, kind, "test@localhost", now=lambda: time)

    try:
        own = config.lists["own"]
        for what, devices, reason, time in (
            (ADD, ADDED, "broken seal", day(15)),
            (REMOVE, REMOVED, "repaired", day(20)),
        ):
            rows, names = rows_of_entries(parse_entries(own.kind, devices))
            edit = RowsEdit(what=what, rows=rows, reason=reason, names=names)
            await write_edit(edit, own, writer("own", own.kind, time), rows_update(edit, own, now=time))
        planned = await plan_rollback(store, "stolen")
        await writer("stolen", "devices", day(26)).write(planned.make)
        keys = np.arange(int(f"{A}000500"), int(f"{A}000560"), dtype=np.uint64)
        begin = (BEGIN - datetime(1970, 1, 1, tzinfo=UTC)).days
        firsts = np.array([begin - 40, begin - 20, begin, begin + 30, begin + 31, 0] * 10, np.int64)
        later = np.where(firsts, firsts + 1, firsts)  # an import has the earlier days of the first devices
        for name, days, chosen in (("first-seen", later, slice(None)), ("first-seen+import", firsts, slice(0, 60))):
            rows = columns.rows_of(keys[chosen], begins=days[chosen] * DAY_S, ends=(days[chosen] + 1) * DAY_S)
            await writer(name, FIRST_SEEN, BEGIN - timedelta(days=1)).write(partial(learned, rows))
        return {int(key): int(first) - begin for key, first in zip(keys, firsts, strict=True)}
    finally:
        await store.close()


def learned(rows, _):
    return ListUpdate(what="learn", added=rows)


def checks():
    """Checks of the month: phones of both lists and others, at three peers; and copied identities."""
    drawn = random.Random(3)
    listed = [*RELEASES[4][1], *imeis(A, *range(20)), *ADDED, *imeis(B, *range(900, 930))]
    for imei in listed:
        for _ in range(drawn.randrange(4)):
            time = BEGIN + timedelta(seconds=drawn.randrange(31 * 86400))
            peer = "small" if imei in imeis(B, 1, 2) else drawn.choice(("mme1", "mme2"))
            yield time, imei, peer, *answer(imei, time), drawn.randrange(1, 6), f"0010100000{drawn.randrange(5):05d}"
    for imei in imeis(A, *range(14)):  # refused, unlisted by release 3, and there again
        yield day(11), imei, "mme1", "blacklisted", "stolen", 1, None
        yield day(13), imei, "mme2", "whitelisted", None, 1, None
    for number, name in enumerate(NOT_BACK):  # accepted again, but no list of devices has removed them
        for imei in imeis(B, *range(950 + 10 * number, 960 + 10 * number)):
            yield day(11), imei, "mme1", "blacklisted", name, 1, None
            yield day(13), imei, "mme2", "whitelisted", None, 1, None
    for number in range(12):
        places = {"a": NEAR, "b": FAR, "c": NEAR, "d": FAR}
        for hours, imei, who, origin, _ in phones("abcd", imei=f"3520995{number:07d}", places=places, seed=number):
            yield BEGIN + timedelta(hours=hours), imei, origin, "whitelisted", None, 1, who
    yield day(9), "not a device", "mme1", "error", None, 3, None
    yield END, imeis(A, 30)[0], "mme1", "blacklisted", "stolen", 1, None


def answer(imei, time):
    """Status and list by the lists in force then."""
    entries = [
        rows for since, rows in RELEASES.values() if since <= time and not (since == day(25) and time >= day(26))
    ][-1]
    if imei in entries:
        return "blacklisted", "stolen"
    if imei in ADDED and time >= day(15) and not (imei in REMOVED and time >= day(20)):
        return "blacklisted", "own"
    return ("unknown", None) if imei in imeis(B, *range(900, 915)) else ("whitelisted", None)


def write_checks(state, rows):
    records = [
        dict.fromkeys(FRAME) | {
            "time": time.replace(tzinfo=None), "last": time.replace(tzinfo=None), "checks": count, "imei": imei,
            "device": int(imei) if imei.isdigit() else None, "subscriber": who, "home": "001010", "origin_host": peer, "peer": peer,
            "protocol": "s13", "status": status, "list": list_name, "rule": "1",
        }
        for time, imei, peer, status, list_name, count, who in rows
    ]  # fmt: skip
    frame = pl.DataFrame(records, schema=FRAME).sort("time")
    for (name,), part in frame.group_by(pl.col("time").dt.strftime("%Y-%m-%d")):
        folder = state / FOLDER / name
        folder.mkdir(parents=True)
        part.write_parquet(folder / "00-1-made.parquet")


@pytest.fixture(scope="module")
def operator(shared):
    """A node's state folder after a month."""
    shared.configure(
        lists={"stolen": {"signers": "signers", "growth_max": "100%"}, "own": {"local": True}, "registered": {"local": True},
               "sims": {"local": True, "kind": "subscribers"}, "lost": {"local": True}},
        policy={"rules": [
            {"list": "registered", "answer": "whitelisted"}, {"list": "stolen", "answer": "blacklisted"},
            {"list": "own", "answer": "blacklisted"}, {"first_seen_within": f"{GRACE_DAYS}d", "answer": "greylisted"},
            {"imsi": "286", "first_seen_within": f"{4 * GRACE_DAYS}d", "answer": "greylisted"},
        ]},
        first_seen={"list": "first-seen"}, sightings={"subscribers": "hashed"},
    )  # fmt: skip
    for serial, (time, entries) in RELEASES.items():
        shared.load(rows_for_release(entries), serial=serial, now=time, issued=time - timedelta(hours=1))
    config = load_config(shared.path)
    shared.first_days = asyncio.run(change_lists(config))
    write_checks(config.state, checks())
    for number in range(11):
        decision = {
            "time": f"2026-10-{number + 1:02d}T00:00:00Z",
            "who": "x",
            "imei": f"3520995{number:07d}",
            "verdict": cases.CONFIRMED,
            "reason": "seen",
        }
        cases.add_decision(config.state, decision)
    done = shared.eir("figures", "--month", MONTH, "--json", "--html", "page.html")
    shared.document, shared.page = json.loads(done.stdout), (shared.folder / "page.html").read_text()
    return shared


def published(pairs, total, *, folded=False):
    """The rule of the page for regulators, once more: rows (name, devices) of one table beside a total."""
    rows = dict(pairs)
    if folded:
        rows = {name: n for name, n in rows.items() if n >= 10} | {OTHER: sum(n for n in rows.values() if n < 10)}
        rows = {name: n for name, n in rows.items() if n}
    small = {name for name, n in rows.items() if n < 10}
    hidden = set(small)
    for name in sorted(set(rows) - small, key=lambda name: (rows[name], [-ord(c) for c in name])):
        left = total - sum(n for other, n in rows.items() if other not in hidden)
        if not hidden or (len(hidden) > 1 and left >= 10):
            break
        hidden.add(name)
    return {
        name: FEW if name in small else WITHHELD if name in hidden else (n + 5) // 10 * 10 for name, n in rows.items()
    }


def given(operator, figure, dimension, cell="devices"):
    return {row["name"]: row[cell] for row in operator.document["figures"][figure]["by"][dimension]}


def month_rows(operator):
    """All rows of the record in that month, read file by file."""
    for path in sorted(operator.state.glob("sightings/*/*.parquet")):
        for row in pl.read_parquet(path).iter_rows(named=True):
            if BEGIN.replace(tzinfo=None) <= row["time"] < END.replace(tzinfo=None) and row["device"] is not None:
                yield row


def maker(imei):
    return "no TAC (MEID)" if imei in MEIDS else f"TAC {imei[:8]}"


def test_listed_and_unlisted_devices_are_those_of_the_releases_and_changes(operator):
    listed, unlisted = Counter(), Counter()
    for before, after in ((1, 2), (2, 3), (3, 4)):
        old, new = RELEASES[before][1], RELEASES[after][1]
        listed += Counter(("stolen", new[imei].replace(SECRET, "…"), maker(imei)) for imei in new.keys() - old.keys())
        unlisted += Counter(("stolen", old[imei], maker(imei)) for imei in old.keys() - new.keys())
    undone = RELEASES[4][1].keys() - RELEASES[3][1].keys()
    unlisted += Counter(("stolen", "fraud", maker(imei)) for imei in undone)
    listed += Counter(("own", "broken seal", maker(imei)) for imei in ADDED)
    unlisted += Counter(("own", "broken seal", maker(imei)) for imei in REMOVED)
    for name, counts in (("listed", listed), ("unlisted", unlisted)):
        total = counts.total()
        assert operator.document["figures"][name]["devices"] == (total + 5) // 10 * 10
        for place, dimension in enumerate(("list", "reason", "maker")):
            rows = Counter()
            for each, devices in counts.items():
                rows[each[place]] += devices
            expected = published(rows.items(), total, folded=dimension != "list")
            assert given(operator, name, dimension) == expected, (name, dimension)
    assert FEW in given(operator, "unlisted", "list").values()


def test_refused_devices_and_attempts_are_those_of_the_record(operator):
    devices, attempts = defaultdict(lambda: defaultdict(set)), defaultdict(Counter)
    in_force = RELEASES[3][1] | dict.fromkeys(set(ADDED) - set(REMOVED), "broken seal")
    for row in month_rows(operator):
        if row["status"] in {"blacklisted", "unknown"}:
            imei = f"{row['device']:014d}"
            reason = in_force.get(imei, "not known").replace(SECRET, "…") if row["list"] else "not known"
            names = {
                "list": row["list"] or "no list",
                "peer": row["peer"],
                "maker": maker(imei),
                "reason": reason,
                "": "",
            }
            for dimension, name in names.items():
                devices[dimension][name].add(imei)
                attempts[dimension][name] += row["checks"]
    part, total = operator.document["figures"]["refused"], len(devices[""][""])
    assert (part["devices"], part["attempts"]) == ((total + 5) // 10 * 10, (attempts[""][""] + 5) // 10 * 10)
    for dimension in ("list", "peer", "maker", "reason"):
        counts = {name: len(those) for name, those in devices[dimension].items()}
        expected = published(counts.items(), total, folded=dimension in {"maker", "reason"})
        assert given(operator, "refused", dimension) == expected, dimension
        for name, shown in given(operator, "refused", dimension, "attempts").items():
            if name != OTHER:
                hidden = isinstance(expected[name], str)
                assert shown == (WITHHELD if hidden else (attempts[dimension][name] + 5) // 10 * 10)
    assert given(operator, "refused", "peer")["small"] == FEW


def test_devices_came_back_that_the_list_that_refused_them_does_not_have_any_more(operator):
    listed = {"stolen": RELEASES[3][1], "own": set(ADDED) - set(REMOVED)}
    by_device = defaultdict(list)
    for row in month_rows(operator):
        by_device[row["device"]].append((row["last"].replace(tzinfo=UTC), row["status"], row["list"], row["peer"]))
    back = Counter()
    for device, rows in by_device.items():
        imei = f"{device:014d}"
        refused = max((row for row in rows if row[1] in {"blacklisted", "unknown"}), default=None)
        accepted = max((row for row in rows if row[1] == "whitelisted"), default=None)
        if refused and accepted and refused[0] < accepted[0] and imei not in listed.get(refused[2], imei):
            back[accepted[3]] += 1
    assert back.total() >= 14
    assert operator.document["figures"]["returned"]["devices"] == (back.total() + 5) // 10 * 10
    assert given(operator, "returned", "peer") == published(back.items(), back.total())


def test_periods_of_grace_are_those_of_the_record_of_first_sightings(operator):
    """A rule with a further condition does not lengthen the period, as in `eir export`."""
    firsts = operator.first_days.values()
    for name, many in (
        ("grace_begun", sum(0 <= first < 31 for first in firsts)),
        ("grace_ended", sum(0 <= first + GRACE_DAYS < 31 for first in firsts)),
    ):
        assert many >= 10
        assert operator.document["figures"][name]["devices"] == many
        assert given(operator, name, "maker") == {f"TAC {A}": many}


def test_copied_identities_are_those_of_the_report_and_of_the_decisions(operator):
    period = {"since": BEGIN.replace(tzinfo=None), "until": END.replace(tzinfo=None)}
    with duck(str(operator.state / FOLDER / FILES), **period, memory=1 << 28) as engine:
        findings = judge(engine, TamperSettings(), **period).findings
    assert {finding.imei for finding in findings} >= {f"3520995{number:07d}" for number in range(12)}
    assert operator.document["figures"]["copies_found"]["devices"] == (len(findings) + 5) // 10 * 10
    assert operator.document["figures"]["copies_confirmed"]["devices"] == 10


def test_devices_are_the_same_in_any_number_of_files_and_slices_at_a_time(operator, monkeypatch):
    paths = [str(path) for path in sorted(operator.state.glob(f"{FOLDER}/{FILES}"))]
    period = BEGIN.replace(tzinfo=None), END.replace(tzinfo=None)

    reads = Counter()

    def read(name, keys):
        reads[name] += 1
        return ["lost" if key % 2 else None for key in keys]

    lists = {name: partial(read, name) for name in ("stolen", "own")}
    whole = count_refusals(paths, *period, lists, str)
    assert reads == {"stolen": 1, "own": 1}, "one read of each list serves both figures"
    monkeypatch.setattr(refusals, "sum_files", partial(sum_files, files_at_once=4))
    monkeypatch.setattr(refusals, "SLICE_ROWS", 50)
    assert count_refusals(paths, *period, lists, str) == whole
    assert whole[0].total["devices"] > 50 > whole[1].total["devices"] > 5
    unclear = dict.fromkeys(lists, lambda keys: [UNKNOWN] * len(keys))
    assert count_refusals(paths, *period, unclear, str)[1] == FigureTally(), "a listed device may have this reason"


@pytest.fixture
def run(operator, eir, monkeypatch):
    """Run `eir figures` in this process."""
    monkeypatch.chdir(operator.folder)
    monkeypatch.setenv("EIR_CONFIG", str(operator.path))
    return partial(eir, "figures")


def test_no_output_has_an_identifier(operator, run):
    (operator.folder / "one.json").write_text(json.dumps(operator.document))
    status, people, messages = run("--merge", "one.json")
    assert (status, messages) == (0, f"figures of {MONTH} (UTC)\n")
    status, table, _ = run("--month", MONTH, "--csv", "--record", operator.state / FOLDER / FILES)
    rows = list(csv.DictReader(io.StringIO(table)))
    assert {row["figure"] for row in rows} == set(figures.FIGURES)
    assert [row["devices"] for row in rows if row["figure"] == "listed" and not row["by"]] == [
        str(operator.document["figures"]["listed"]["devices"])
    ]
    for text in (table, people, operator.page, json.dumps(operator.document)):
        assert not re.search(r"[0-9]{10,}", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)), text


def test_several_operators_by_the_command(operator, run):
    other = {**operator.document, "names": ["beta"]}
    evil = json.loads(json.dumps(other))
    for row, name in zip(evil["figures"]["refused"]["by"]["peer"], ("=1+1", "+1", "-1", "@x", "\tx"), strict=False):
        row["name"] = name
    for name, part in (
        ("a.json", operator.document),
        ("b.json", other),
        ("old.json", {**other, "month": "2026-09"}),
        ("no.json", []),
        ("evil.json", evil),
    ):
        (operator.folder / name).write_text(json.dumps(part))
    (operator.folder / "deep.json").write_text("[" * 200_000)
    (operator.folder / "text.json").write_text("x")
    status, text, _ = run("--merge", "a.json", "b.json", "--json")
    found = json.loads(text)
    assert (status, found["operators"]) == (0, 2)
    assert found["figures"]["refused"]["attempts"] == 2 * operator.document["figures"]["refused"]["attempts"]
    for words, status, message in (
        (["--merge", "a.json", "old.json"], 1, "several months"), (["--merge", "no.json"], 1, "no.json: no figures of the form"), (["--merge"], 2, "go together"),
        (["--merge", "a.json", "a.json"], 1, "several files have figures of"), (["--merge", "deep.json"], 1, "deep.json: JSON that is nested too deep"),
        (["--merge", "text.json"], 1, "text.json: Expecting value"), (["--merge", "none.json"], 1, "none.json: No such file"),
        (["--month", f"{datetime.now(UTC) + timedelta(days=40):%Y-%m}"], 2, "has not begun"),
        (["a.json"], 2, "go together"), (["--month", "2026-13"], 2, "expected a month"), (["--csv", "--json"], 2, "expected one of them"),
    ):  # fmt: skip
        code, _, said = run(*words)
        assert (code, message in said) == (status, True), said


def test_a_name_is_no_formula_of_a_spreadsheet(operator, run):
    test_several_operators_by_the_command(operator, run)
    status, table, _ = run("--merge", "evil.json", "--csv")
    names = {
        row["name"] for row in csv.DictReader(io.StringIO(table)) if row["by"] == "peer" and row["figure"] == "refused"
    }
    assert status == 0
    assert {"'=1+1", "'+1", "'-1"} <= names


def test_a_month_that_a_source_does_not_cover_has_no_numbers(operator, run):
    """The history begins on 28 September, the record of checks with October."""
    before = json.loads(run("--month", "2026-09", "--json")[1])
    assert before["figures"] == dict.fromkeys(figures.FIGURES)
    assert before["covered"]["listed"] == ["2026-09-28", "2026-09-30"]
    assert (before["covered"]["refused"], before["covered"]["grace_begun"]) == (None, ["2026-09-30", "2026-09-30"])
    assert json.loads(run("--month", "2020-01", "--json")[1])["figures"] == dict.fromkeys(figures.FIGURES)
    assert operator.document["covered"] == {}
    kept = run("--month", MONTH, "--json", "--record", operator.state / FOLDER / "2026-10-2*" / "*.parquet")
    assert json.loads(kept[1])["covered"]["refused"] == ["2026-10-20", "2026-10-29"]
    assert "warning: refused: no number, because only 2026-10-20 to 2026-10-29 are covered" in kept[2]


def test_without_a_record_there_are_the_figures_of_the_lists_alone(site):
    site.load(["imei,reason", *(f"{imei},lost" for imei in imeis(A, *range(12)))])
    month = f"{datetime.now(UTC):%Y-%m}"
    found = site.json("figures", "--month", month)
    assert found["figures"] == dict.fromkeys(figures.FIGURES), "the month is not over"
    assert found["covered"]["refused"] is None
    assert found["covered"]["listed"][1] >= f"{month}-01"


@pytest.mark.long
@in_chromium
def test_the_page_opens_in_a_browser_in_each_colour_scheme_and_prints(operator, tmp_path):
    two = figures_page(merge([operator.document, {**operator.document, "names": ["beta"]}]))
    assert [each["wrong"] for each in looked_at(tmp_path, [operator.page, two])] == [[]] * 4
    assert "<svg" in operator.page
    assert not re.search(r"<script|\ssrc=|https?:|url\(|@import", operator.page)
    for label, value in given(operator, "refused", "list").items():  # to be read without colour
        assert f">{value:,}</text>" in operator.page if isinstance(value, int) else f">{value}</text>" in operator.page
        assert label in operator.page
    (tmp_path / "print.html").write_text(operator.page)
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--print-to-pdf={tmp_path / 'print.pdf'}", (tmp_path / "print.html").as_uri()],
        check=True, capture_output=True, timeout=PROGRAM_S,
    )  # fmt: skip
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")
