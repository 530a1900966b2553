"""Tables for people: nothing is cut, whatever the width; times as people type them."""

from datetime import UTC, datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from eir import schema
from eir.cli.output import duration, minute, moment, table

ROWS = [
    {
        "list": "stolen-national",
        "serial": 42,
        "expires": "2026-12-09T01:35:00Z",
        "detail": "full: 107 entries, before 0, and so on for a while",
    },
    {"list": "tracked", "serial": None, "expires": None, "detail": ""},
]
COLUMNS = ("list", "serial", "expires", "detail")


def test_in_a_pipe_a_row_is_a_line():
    assert table(ROWS, COLUMNS, width=None) == (
        "list             serial  expires            detail\n"
        "stolen-national      42  2026-12-09 01:35Z  full: 107 entries, before 0, and so on for a while\n"
        "tracked               -  -                  -\n"
    )


def test_on_a_terminal_the_last_column_is_folded_beside():
    assert table(ROWS, COLUMNS, width=80) == (
        "list             serial  expires            detail\n"
        "stolen-national      42  2026-12-09 01:35Z  full: 107 entries, before 0, and so\n"
        "                                            on for a while\n"
        "tracked               -  -                  -\n"
    )


def test_or_below():
    assert table(ROWS[:1], COLUMNS, width=50) == (
        "list             serial  expires            detail\n"
        "stolen-national      42  2026-12-09 01:35Z\n"
        "    full: 107 entries, before 0, and so on for a\n"
        "    while\n"
    )


def test_and_where_nothing_helps_rows_are_records():
    assert table(ROWS, COLUMNS, width=30) == (
        "list     stolen-national\n"
        "serial   42\n"
        "expires  2026-12-09 01:35Z\n"
        "detail   full: 107 entries, before 0, and so on for a while\n"
        "\n"
        "list     tracked\n"
        "serial   -\n"
        "expires  -\n"
        "detail   -\n"
    )


def test_columns_are_aligned_by_the_width_of_their_characters():
    rows = [{"name": "漢字", "n": 7, "state": "é"}, {"name": "abcdef", "n": 42, "state": "open"}]
    assert table(rows, ("name", "n", "state"), width=None) == (
        "name     n  state\n"
        "漢字     7  é\n"
        "abcdef  42  open\n"
    )  # fmt: skip


def test_before_that_all_columns_are_folded():
    row = {
        "list": "tracked",
        "issued": "2026-12-09T01:35:00Z",
        "expires": "2026-12-10T01:35:00Z",
        "signers": "a@publisher.example",
        "state": "in force",
    }
    assert table([row], tuple(row), width=62) == (
        "list     issued      expires     signers              state\n"
        "tracked  2026-12-09  2026-12-10  a@publisher.example  in force\n"
        "         01:35Z      01:35Z\n"
    )


def test_instead_of_records_there_may_be_fewer_columns():
    row = {"label": "mme1", "host": f"mme1.{'epc' * 9}.example", "state": "open"}
    assert table([row], tuple(row), width=30, short=("label", "state")) == "label  state\nmme1   open\n"
    assert table([row], tuple(row), width=30).startswith("label  mme1\n")


def test_long_heads_are_folded_only_where_they_must_be():
    row = [{"imei": "35209900176148", "experimental_result_code": 5422, "ms": 0.5}]
    wide = table(row, tuple(row[0]), width=80)
    assert wide.splitlines()[0] == "imei            experimental result code   ms"
    narrow = table(row, tuple(row[0]), width=40)
    assert [line.split() for line in narrow.splitlines()] == [
        ["experimental"], ["imei", "result", "code", "ms"], ["35209900176148", "5422", "0.5"],
    ]  # fmt: skip


def test_no_rows_and_what_would_steer_a_terminal():
    assert table([], ("list", "serial"), width=None) == "list  serial\n"
    assert "\\x1b[2J\\x0a" in table([{"host": "\x1b[2J\n"}], ("host",), width=80)
    assert minute(0) == "-"
    assert minute(1795570000.7) == "2026-11-25 01:26Z"


def test_a_time_is_in_utc_and_one_beyond_the_calendar_is_a_usage_error():
    assert moment("") is None
    assert moment("2026-11-20") == datetime(2026, 11, 20, tzinfo=UTC)
    assert moment("2026-11-20T06:00:00+02:00").isoformat() == "2026-11-20T04:00:00+00:00"
    for text in ("soon", "999999d", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(typer.Exit):
            moment(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("20s", 20), ("90m", 5400), ("36h", 129600), ("14d", 1209600), ("1.5h", 5400)]
)
def test_a_duration_has_the_same_units_in_options_and_in_the_configuration(text, seconds):
    assert duration(text, "--for").total_seconds() == seconds
    assert schema.seconds(0, 10**7).read(text) == seconds
    before, meant, after = datetime.now(UTC), moment(text), datetime.now(UTC)
    assert before <= meant + timedelta(seconds=seconds) <= after


def test_a_configured_time_of_days_takes_every_unit_of_whole_days():
    keep = schema.days(1, 3650)
    assert [keep.read(text) for text in ("48h", "2880m", "172800s", "2d", "1y")] == [2, 2, 2, 2, 365]
    with pytest.raises(ValueError, match=r"^$"):
        keep.read("36h")


@pytest.mark.parametrize("text", ["20", "soon", "-5d", "0s", "", "9" * 40 + "d", "1e3s", "٣d"])
def test_an_option_that_is_no_duration_is_a_usage_error_that_names_the_units(text, capsys):
    with pytest.raises(typer.Exit) as ended:
        duration(text, "--for")
    assert ended.value.exit_code == 2
    assert f"--for {text}: expected a duration, a number and a unit: 14d, 36h, 90m or 20s" in capsys.readouterr().err


WORD = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30)


@given(st.lists(st.tuples(WORD, WORD, st.lists(WORD, max_size=12)), min_size=1, max_size=5), st.integers(20, 120))
def test_every_word_is_there_at_every_width(rows, width):
    shown = table([{"a": a, "b": b, "c": " ".join(c)} for a, b, c in rows], ("a", "b", "c"), width=width)
    text = "".join(shown.split())
    for a, b, c in rows:
        for word in (a, b, *c):
            assert word in text
    if shown.split()[:3] == ["a", "b", "c"]:  # a table, not records
        assert max(map(len, shown.splitlines())) <= width
