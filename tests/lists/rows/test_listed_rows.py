"""Rows of data files as tables, against a plain reading of the files, and tables as data files."""

import csv
import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.releases import read_into

from eir.device import MEID_BASE, SNR_KEYS, any_key, device_key, imsi_key, key_text
from eir.errors import EirError, ReleaseRefused
from eir.lists.log.change import Head
from eir.lists.record.listed_entries import entries_in, reason_and_day, rows_between
from eir.lists.record.reasons import Reasons, reason_at
from eir.lists.releases.foreign import guess_layout
from eir.lists.rows import listed_rows
from eir.lists.rows.layout import until_seconds
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.rows.reader import Tally
from eir.lists.rows.row_writer import csv_text, frames_of
from eir.lists.rows.table_export import export_table
from eir.lists.table.columns import BEGINS, DAYS, ENDS, REASONS, SECONDS, WHOLE
from eir.lists.table.digest import digest_tree
from eir.lists.table.table import table_of

CONFIG = Path(__file__).parents[3] / "config"
TAC = 35_000_000


def read(files, kind, rows, layout="eir", **options):
    """Rows of files in a collection, with the reasons and the counts."""
    reasons, tally = Reasons(), Tally(bad_rows_max=10**6, range_tacs_max=1000, **options)
    for number, text in enumerate(files):
        content = [text if isinstance(text, bytes) else text.encode()]
        read_into(rows, content, name=f"{number}.csv", layout=layout, kind=kind, reasons=reasons, tally=tally)
    return reasons, tally


def new_table(files, kind, dates=False, layout="eir", **options):
    rows = ListedRows()
    reasons, tally = read(files, kind, rows, layout, dates=dates, **options)
    return table_of(rows.pop()), reasons.texts, tally


def new_text(files, kind, dates=False, layout="eir", only=None, to="eir"):
    table, texts, _ = new_table(files, kind, dates, layout)
    out = io.StringIO()
    count = export_table(Head(kind=kind, reasons=texts, issued="2026-11-24T10:00:00Z"), table, to, out, only_tacs=only)
    assert count == len(out.getvalue().splitlines()) - (to != "imei")
    return out.getvalue()


def published(files, kind):
    """Data files that a publisher makes of files, one of the single keys and one of the ranges; and the number of conflicting rows."""
    collected = ListedRows()
    reasons, _ = read(files, kind, collected, dates=True)
    singles, ranges, lasts = collected.data_rows()
    _, conflicting = collected.count_repeats()
    release = [
        "".join(
            csv_text(frame, header=not number)
            for number, frame in enumerate(frames_of(kind, rows, reasons.texts, last_keys))
        )
        for rows, last_keys in ((singles, None), (ranges, lasts))[: 1 + bool(len(ranges))]
    ]
    return release, conflicting


REASONS_TEXT = st.sampled_from(["", "stolen", "lost, found", 'said "stolen"', "señal"])
DATES = st.sampled_from(["", "2026-10-01", "20261102", "2026-11-30", "junk"])
ENDS_TEXT = st.sampled_from(["", "2027-01-31", "2029-12-31T12:00:00Z", "1960-01-01"])
SNRS = st.integers(0, 30) | st.just(999_999)
NUMBERS = st.builds(lambda tac, snr: (TAC + tac) * SNR_KEYS + snr, st.integers(0, 3), SNRS)
IMEIS = NUMBERS.map(lambda key: f"{key:014d}")
MEIDS = st.integers(0, 3).map(lambda number: key_text(MEID_BASE + 0xA0000000000000 + number))
ODD = st.sampled_from(["0", "440015202000", "word", "#00000000000001", "x" * 20])
SIMS = st.integers(0, 5).map(lambda number: f"00101{number:010d}")
STARTS = st.integers(0, 3).map(lambda tac: (TAC + tac) * SNR_KEYS)
SIZES = st.integers(0, 40) | st.sampled_from([SNR_KEYS + 20, 2 * SNR_KEYS + 20])
RANGES = st.builds(lambda first, size: (first, first + size), STARTS, SIZES | st.just(SNR_KEYS - 1)) | st.builds(
    lambda first, size: (first - 10, first - 10 + size), STARTS, SIZES
)
REST = (REASONS_TEXT, DATES, ENDS_TEXT)


def lines(header, rows):
    return (
        header
        + "\n"
        + "".join(",".join(f'"{field.replace(chr(34), chr(34) * 2)}"' for field in row) + "\n" for row in rows)
    )


@st.composite
def files_of(draw, kind):
    """Data files of a list."""
    rest = "reason,date,until"
    if kind == "pairs":
        rows = draw(st.lists(st.tuples(IMEIS | MEIDS, SIMS, ENDS_TEXT, REASONS_TEXT), max_size=30))
        return [lines("imei,imsi,until,reason", rows)]
    if kind == "subscribers":
        return [lines(f"imsi,{rest}", draw(st.lists(st.tuples(SIMS, *REST), max_size=30)))]
    ranges = [
        (f"{first:014d}", f"{last:014d}", *said)
        for (first, last), *said in draw(st.lists(st.tuples(RANGES, *REST), max_size=4))
    ]
    tacs = [(f"{TAC + tac}", *said) for tac, *said in draw(st.lists(st.tuples(st.integers(0, 3), *REST), max_size=3))]
    singles = draw(st.lists(st.tuples(IMEIS, *REST), max_size=20))
    odd = draw(st.lists(st.tuples(MEIDS | ODD, *REST), max_size=4))
    return [
        lines(f"imei_from,imei_to,{rest}", ranges),
        lines(f"tac,{rest}", tacs),
        lines(f"imei,{rest}", singles),
        lines(f"identifier,{rest}", odd),
    ]


def is_apart(files):
    """True for whole TACs beside identifiers that no range can hold."""
    if len(files) == 1:
        return False
    rows = new_table(files, "devices")[0].rows()
    return bool((rows.keys >= WHOLE).any() and ((rows.keys >= MEID_BASE) & (rows.keys < WHOLE)).any())


def day_of(text):
    try:
        return max(until_seconds(text) - 1, 0) // 86_400
    except ValueError:
        return 0


def keys_of(row, kind):
    """Subjects of a row: of a range, each whole TAC and each other identifier."""
    if kind == "pairs":
        return [(device_key(row["imei"]), imsi_key(row["imsi"]))]
    if kind == "subscribers":
        return [imsi_key(row["imsi"])]
    if "tac" in row:
        return [WHOLE | int(row["tac"])]
    if "imei_from" not in row:
        text = row.get("imei") or row["identifier"]
        return [device_key(text) if "imei" in row else any_key(text)]
    first, after = int(row["imei_from"]), int(row["imei_to"]) + 1
    tacs = range(-(-first // SNR_KEYS), after // SNR_KEYS)
    whole = range(tacs.start * SNR_KEYS, tacs.stop * SNR_KEYS) if tacs else range(after, after)
    return [*range(first, whole.start), *(WHOLE | tac for tac in tacs), *range(whole.stop, after)]


def listed(files, kind):
    """The entries of files by a plain reading: subject → reason, end and day."""
    found, order = {}, {}
    for text in files:
        for row in csv.DictReader(io.StringIO(text)):
            reason, end, day = row["reason"], until_seconds(row["until"]), day_of(row.get("date", ""))
            order.setdefault(reason, len(order) + 1 if reason else 10**6)
            for key in keys_of(row, kind):
                found.setdefault(key, []).append((reason, end or 1 << 60, day))
    merged = {}
    for key, rows in found.items():
        end = max(end for _, end, _ in rows)
        reasons = [reason for reason, until, _ in sorted(rows, key=lambda row: (-row[1], order[row[0]])) if reason]
        merged[key] = "".join(reasons[:1]), end % (1 << 60), min((day for *_, day in rows if day), default=0)
    return merged


@pytest.mark.parametrize("kind", ["devices", "pairs", "subscribers"])
@given(data=st.data())
def test_any_file_has_the_entries_of_its_rows_and_comes_back(kind, data):
    files = data.draw(files_of(kind))
    table, texts, tally = new_table(files, kind, dates=True)
    rows = table.rows()
    keys = (
        rows.keys.tolist() if kind != "pairs" else zip(rows.keys.tolist(), rows.column(SECONDS).tolist(), strict=True)
    )
    columns = [rows.column(index).tolist() for index in (REASONS, ENDS, DAYS)]
    found = {key: (reason_at(texts, reason), *rest) for key, reason, *rest in zip(keys, *columns, strict=True)}
    assert (found, tally.bad) == (listed(files, kind), 0)
    choices = [None]
    if is_apart(files):
        with pytest.raises(EirError, match="--only imei and the second with --only tac"):
            new_text(files, kind, dates=True)
        choices = [False, True]
    release, conflicting = published(files, kind)
    for written in ([new_text(files, kind, dates=True, only=only) for only in choices], release):
        again = new_table(written, kind, dates=True)
        if written is not release or not conflicting:  # of several reasons of one entry, a release may have another
            assert digest_tree(*again[:2]).root == digest_tree(table, texts).root
        for index in (SECONDS, ENDS, DAYS):
            assert again[0].rows().column(index).tolist() == rows.column(index).tolist()
        assert again[0].rows().keys.tolist() == rows.keys.tolist()


DIRBS = "IMEI,block_date,reasons\n" + "".join(
    f"3512345600{n:04d}{n % 10},2026{n % 12 + 1:02d}11,duplicate|r{n % 7}\n" for n in range(900)
)
TYPES = """TAC|Device Type|Allocation Date
35209901|IoT Device|01-Feb-2021
35209900|Smartphone|01-Jan-2020
35209903||01-Feb-2021
35209902|WLAN Router|soon
"""


@pytest.mark.parametrize(
    ("content", "kind", "layout"),
    [
        (DIRBS, "devices", "dirbs-blacklist"), (DIRBS.replace("35123", "12*#,2026,x\n35123", 1), "devices", "dirbs-blacklist"), (TYPES, "device_types", "gsma-tacs"),
        *[(path.read_text(), "pairs" if "paired" in path.name else "devices", None) for path in sorted((CONFIG / "lists").glob("*.csv")) + sorted((CONFIG / "lists/dirbs").glob("*.csv"))],
    ],
)  # fmt: skip
def test_known_files_come_back(content, kind, layout):
    layout = layout or guess_layout(content.partition("\n")[0].encode())
    table, texts, _ = new_table([content], kind, kind == "devices", layout)
    text = new_text([content], kind, kind == "devices", layout)
    again, read_texts, tally = new_table([text], kind, kind == "devices")
    assert (digest_tree(again, read_texts).root, tally.bad) == (digest_tree(table, texts).root, 0)
    assert len(again) == len(table) > 0


def test_a_million_random_rows():
    rng = random.Random(7)
    reasons = [f"reason {number}" for number in range(40)]
    keys = {rng.randrange(TAC, TAC + 3000) * SNR_KEYS + rng.randrange(400): rng.randrange(40) for _ in range(1_000_000)}
    ends = ("", "", "", "2027-01-31", "2029-12-31T12:00:00Z")
    text = "imei,reason,until\n" + "".join(
        f"{key},{reasons[reason]},{ends[reason % 5]}\n" for key, reason in keys.items()
    )
    table, texts, _ = new_table([text], "devices")
    rows = table.rows()
    found = zip(rows.keys.tolist(), rows.column(REASONS).tolist(), rows.column(ENDS).tolist(), strict=True)
    assert {key: (texts[reason], end) for key, reason, end in found} == {
        key: (reasons[reason], until_seconds(ends[reason % 5])) for key, reason in keys.items()
    }


def test_what_other_layouts_have_no_place_for_is_refused():
    file = "imei,begin,date\n35000000000001,2026-12-22,2026-10-01\n"
    with pytest.raises(EirError, match="imei has no place for dates and begins"):
        new_text([file], "devices", True, to="imei")
    with pytest.raises(EirError, match="dirbs-blacklist has no place for begins"):
        new_text([file], "devices", True, to="dirbs-blacklist")
    assert new_text([file.replace("2026-12-22", "")], "devices", True, to="dirbs-blacklist").splitlines()[1:] == [
        "35000000000001,20261001,"
    ]
    assert new_text(["imei\n35000000000001\n"], "devices", to="imei") == "35000000000001\n"


class TestBegin:
    def test_it_is_the_begin_of_a_day_or_a_time_and_comes_back(self):
        file = "imei,begin,until\n35000000000001,2026-12-22,2026-12-22\n35000000000002,20261222,\n35000000000003,2026-12-22T08:00:00Z,\n35000000000004,,\n"
        table, _, tally = new_table([file], "devices")
        assert tally.bad == 0
        rows = table.rows()
        day = 1_797_897_600
        assert rows.column(BEGINS).tolist() == [day, day, day + 8 * 3600, 0]
        assert rows.column(ENDS).tolist() == [day + 86_400, 0, 0, 0]
        assert new_text([file], "devices").splitlines()[1] == "35000000000001,2026-12-22T00:00:00Z,2026-12-23T00:00:00Z"
        text = new_text([file], "devices")
        assert new_text([text], "devices") == text

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ("35000000000001,22.12.2026,", "begin is not like 20261231, 2026-12-31 or 2026-12-31T12:00:00Z"),
            ("35000000000001,2026-12-23,2026-12-22", "begin is not before until"),
            ("35000000000001,2026-12-22T08:00:00Z,2026-12-22T08:00:00Z", "begin is not before until"),
            ("35000000000001,2107-01-01,", "begin is not like"),
            ("35000000000001,2026-12-22,soon", "until is not like"),
        ],
    )
    def test_a_begin_that_cannot_be_is_a_bad_row(self, row, says):
        table, _, tally = new_table([f"imei,begin,until\n35000000000009,,\n{row}\n"], "devices")
        assert (tally.bad, len(table)) == (1, 1)
        (complaint,) = tally.complaints
        assert complaint.startswith(f"0.csv:3: {says}")

    def test_of_two_rows_the_earliest_begin_and_the_latest_end_count(self):
        rows = [
            f"35000000000001,{begin},{end}"
            for begin, end in (("2026-12-22", "2027-01-31"), ("2026-11-01", "2026-12-01"), ("2027-01-01", ""))
        ]
        for file in (rows, rows[::-1]):
            table, _, _ = new_table(["\n".join(("imei,begin,until", *file, ""))], "devices")
            (entry,) = entries_in(table.rows())
            assert (entry.begin, entry.until) == (1_793_491_200, 0)

    def test_an_end_that_no_table_can_store_is_none(self):
        table, _, tally = new_table(["imei,until\n35000000000001,9999-12-30\n"], "devices")
        assert (tally.bad, table.columns[ENDS]) == (0, None)


class TestRanges:
    @pytest.mark.parametrize(
        ("name", "message"), [("RANGE_TACS_MAX", "cover at least 3 TACs"), ("RANGE_KEYS_MAX", "have 5 identifiers")]
    )
    def test_their_size_is_limited(self, monkeypatch, name, message):
        file = "imei_from,imei_to\n35000000999998,35000002000002\n"
        assert len(new_table([file], "devices")[0]) == 6
        monkeypatch.setattr(listed_rows, name, 2)
        singles = "imei_from,imei_to\n" + "".join(f"3500000000000{n},3500000000000{n}\n" for n in range(9))
        assert len(new_table([singles], "devices")[0]) == 9
        with pytest.raises(ReleaseRefused, match=message):
            new_table([file], "devices")


def test_reasons_past_255_come_back_as_other():
    file = "imei,reason\n" + "".join(f"350000000{n:05d},r{n}\n" for n in range(300))
    table, texts, _ = new_table([file], "devices")
    assert (table.rows().column(REASONS) == 255).sum() == 46
    assert reason_at(texts, 255) == "other"


def test_rows_of_a_device_or_a_tac_are_found():
    file = f"imei_from,imei_to,reason\n{TAC}000000,{TAC}999999,tac\n{TAC}000005,{TAC}000007,\n{TAC + 1}000001,{TAC + 1}000001,one\n"
    table, texts, _ = new_table([file], "devices")
    first = TAC * SNR_KEYS
    found = [(entry.key - first, entry.whole_tac) for entry in entries_in(rows_between(table, first + 6, first + 6))]
    assert found == [(6, False), (0, True)]
    assert len(rows_between(table, first, first + SNR_KEYS - 1)) == 4
    assert reason_and_day(table, texts, first + 6) == ("tac", 0)
    assert reason_and_day(table, texts, first + SNR_KEYS + 1) == ("one", 0)
    assert reason_and_day(table, texts, first + SNR_KEYS + 2) == (None, 0)
