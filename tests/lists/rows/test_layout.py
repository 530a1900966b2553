"""Layouts: the vectorised reader takes exactly what eir.device takes, in every dialect, and names what it does not."""

import csv
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated.luhn import check_digit
from simulated.releases import read_into

from eir.device import SNR_KEYS, device_key, imsi_key, meid_key
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.changes import import_days
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import Reasons, reason_at
from eir.lists.releases.foreign import LAYOUTS, guess_layout
from eir.lists.rows import layout as layouts
from eir.lists.rows import reader
from eir.lists.rows.layout import until_seconds
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.rows.reader import Tally


def read(content, layout="eir", kind="devices", *, bad_rows_max=10**6, range_tacs_max=1000, chunks=None):
    """(keys, tally, rows, reasons by key, ends by key) of a file with that content."""
    rows, reasons = ListedRows(), Reasons()
    tally = Tally(bad_rows_max=bad_rows_max, range_tacs_max=range_tacs_max)
    pieces = chunks if chunks is not None else [content]
    count = read_into(rows, pieces, layout=layout, kind=kind, reasons=reasons, tally=tally)
    entries = {
        ("TAC", entry.key // SNR_KEYS) if entry.whole_tac else entry.key: entry for entry in entries_in(rows.pop())
    }
    why = {key: reason_at(reasons.texts, entry.reason) for key, entry in entries.items()}
    return set(entries), tally, count, why, {key: entry.until for key, entry in entries.items()}


def keys_of(*texts):
    return {device_key(text) for text in texts}


GOOD = ["35123456789012", "351234567890128", "3512345678901299", "00000000000000", "A1234567890ABC", "99000012345678"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [b"", b"end", b"end end"])
@pytest.mark.parametrize("quote", [b"", b'"'])
@pytest.mark.parametrize("columns", ["imei", "note,imei,reason", "IMEI ,reason,date,x", "imei_to_be,until,imei"])
def test_dialects_of_the_same_list(end, bom, last, quote, columns):
    names = columns.split(",")
    where = [name.strip().lower() for name in names].index("imei")
    lines = []
    for text in GOOD:
        fields = ["lost"] * len(names)
        fields[where] = text
        if "until" in names:
            fields[names.index("until")] = ""
        lines.append(",".join(f"{quote.decode()}{field}{quote.decode()}" for field in fields).encode())
    content = bom + end.join([columns.encode(), *lines])
    content += {b"": b"\n", b"end": end, b"end end": end + end}[last]  # the reader is handed complete lines
    keys, tally, count, why, _ = read(content)
    assert keys == keys_of(*GOOD)
    assert (count, tally.bad, tally.skipped) == (6, 0, 0)
    assert set(why.values()) == ({"lost"} if "reason" in names else {""})


TEXTS = st.one_of(
    st.from_regex(r"\A[0-9]{12,17}\Z"),
    st.from_regex(r"\A[0-9A-Fa-f]{13,15}\Z"),
    st.from_regex(r"\A[ +\-_][0-9]{13,15}\Z"),
    st.from_regex(r"\A[0-9]{13,15}[ .*#e+\-_]\Z"),
    st.sampled_from(
        ["", "0x351234567890", "1e13", "٣٥١٢٣٤٥٦٧٨٩٠١٢", "3512345678901²", "NULL", "nan", "3512345678901\0"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=20),
)


@given(st.lists(TEXTS, max_size=30), st.booleans())
def test_the_reader_takes_what_eir_device_takes(texts, two_columns):
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["imei", "reason"] if two_columns else ["imei"])
    for text in texts:
        writer.writerow([text, "x"] if two_columns else [text])
    expected, bad = set(), 0
    for text in texts:
        try:
            expected.add(device_key(text))
        except IdentifierError:
            bad += 1
    keys, tally, count, _, _ = read(out.getvalue().encode())
    assert keys == expected
    assert tally.bad == bad
    assert count == len(texts)
    assert len(tally.complaints) == min(bad, 10)


@given(
    st.lists(st.one_of(st.from_regex(r"\A[0-9]{4,17}\Z"), st.sampled_from(["", "+12345678901", "12345x"])), max_size=20)
)
def test_subscribers(texts):
    keys, tally, _, _, _ = read(("imsi,imei_count\n" + "".join(f"{t},1\n" for t in texts)).encode(), kind="subscribers")
    expected = []
    for text in texts:
        try:
            expected.append(imsi_key(text))
        except IdentifierError:
            assert tally.bad
    assert keys == set(expected)
    assert tally.bad == len(texts) - len(expected)


def test_bad_rows_are_named_by_line_without_the_identifier():
    rows = [
        ("35123456789012", None),
        ("3512345678901", "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 13 characters"),
        ("", None),  # a blank line, which is no row
        ("35123456789012,lost,20261301", "until is not like 20261231, 2026-12-31 or 2026-12-31T12:00:00Z"),
        (",lost", "got nothing"),
        ('"35123456789013', "expected one row per line, with closed quotes"),
        ('still quoted"', "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 13 characters"),
        ("35123456789014,lost", None),
        (
            "G1234567890123",
            "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 14 characters, not all of them digits",
        ),
        (
            "+35123456789012",
            "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 15 characters, not all of them digits",
        ),
        (
            "3.51235E+14",
            "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got a number that a spreadsheet has rounded: format the column as text, and export the number again",
        ),
        ("35123456", "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 8 digits, which are a TAC"),
        (
            "35-123456 789012",
            "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 16 characters, blanks or dashes among them",
        ),
    ]
    content = ("imei,reason,until\n" + "".join(text + "\n" for text, _ in rows)).encode()
    keys, tally, count, _, _ = read(content)
    assert keys == keys_of("35123456789012", "35123456789014")
    assert count == len(rows) - 1
    wrong = [(line, what) for line, (_, what) in enumerate(rows, 2) if what]
    assert tally.bad == len(wrong)
    for complaint, (line, what) in zip(tally.complaints, wrong, strict=True):
        assert complaint.startswith(f"f.csv:{line}: ")
        assert what in complaint
        assert "3512345" not in complaint


def test_lines_are_counted_through_pieces_and_ten_are_named():
    pieces = [b"imei\n35123456789012\n", b"\n\nx\n", b"35123456789013\nx\n", b"".join(b"y\n" for _ in range(20))]
    keys, tally, count, _, _ = read(b"", chunks=pieces)
    assert len(keys) == 2
    assert (count, tally.bad) == (24, 22)
    assert [complaint.split(":")[1] for complaint in tally.complaints] == [str(n) for n in (5, 7, *range(8, 16))]


def test_bad_rows_past_the_limit_refuse_at_once():
    def pieces():
        yield b"imei\nx\ny\n"
        yield b"z\n"
        raise AssertionError("read on after the limit")

    with pytest.raises(
        ReleaseRefused, match=r"3 bad rows at least, 2 are allowed[\s\S]*f.csv:2: [\s\S]*f.csv:4: "
    ) as caught:
        read(b"", chunks=pieces(), bad_rows_max=2)
    assert caught.value.reason == "bad_rows"


@pytest.mark.parametrize(
    "row",
    [
        b'"35123456789012","a\nb"\n35123456789013,c\n',
        b'"35123456789012,c\n35123456789013,c\n',
        b'35123456789013,"c\n',
        b'35123456789013,c\n35123456789012,"c"\n"\n',
    ],
)
def test_a_quote_that_does_not_close_in_its_line_is_a_bad_row(row):
    keys, tally, count, _, _ = read(b"imei,reason\n" + row + b"35123456789099,d\n" * 3)
    by_line = [csv_line(line) for line in row.decode().splitlines()]
    good = {device_key(text) for text in by_line if text is not None and len(text) == 14}
    assert keys == good | keys_of("35123456789099")
    assert count == len(by_line) + 3
    assert tally.bad == sum(text is None or len(text) != 14 for text in by_line)


def csv_line(line):
    try:
        return next(csv.reader([line], strict=True))[0]
    except csv.Error:
        return None


def test_rows_with_more_or_fewer_fields():
    keys, tally, _, why, _ = read(
        b"imei,x,reason\n35123456789012,1,lost,more,fields\n35123456789013\n35123456789014,,\n"
    )
    assert tally.bad == 0
    assert keys == keys_of("35123456789012", "35123456789013", "35123456789014")
    assert why[device_key("35123456789012")] == "lost"
    assert why[device_key("35123456789013")] == ""
    keys, tally, _, _, _ = read(b"x,imei\n1\n1,35123456789013\n")
    assert (len(keys), tally.bad) == (1, 1)


def test_bytes_that_are_no_utf8():
    keys, tally, _, why, _ = read(b"imei,reason\n35123456789012,vol\xe9\n\xff5123456789012,x\n")
    assert keys == keys_of("35123456789012")
    assert tally.bad == 1
    assert list(why.values()) == ["vol\ufffd"]


def test_tacs_and_ranges():
    keys, tally, count, _, _ = read(b"tac\n35123456\n00100100\n3512345\n+3512345\n3512345x\n")
    assert keys == {("TAC", 100_100), ("TAC", 35_123_456)}
    assert (count, tally.bad) == (5, 3)
    assert tally.complaints[0] == "f.csv:4: a TAC has 8 digits; got 7 characters"
    rows = b"35123456000005,351234560000091\n35123456000005,35123456000004\n35123456999999,35123457000000\n,1\n"
    keys, tally, _, _, _ = read(b"imei_from,imei_to\n" + rows)
    first = 35_123_456 * SNR_KEYS
    assert keys == {*range(first + 5, first + 10), first + 999_999, first + SNR_KEYS}
    assert tally.bad == 2
    assert tally.complaints[0] == "f.csv:3: imei_from is above imei_to"
    _, tally, _, _, _ = read(
        b"imei_to,imei_from\n35123459999999,35123456000000\n35123457000000,35123456000000\n", range_tacs_max=3
    )
    assert tally.wide == ["f.csv:2: the range holds 4 TACs"]
    assert tally.bad == 0


DIRBS = (
    b"imei,block_date,reasons\r\n"
    b"35111111111111,20261124,local stolen list|duplicate\r\n"
    b"351111111111128,20261124,x\r\n"
    b"12345,20261124,x\r\n"
    b"*#06#,20261124,x\r\n"
    b"0000000A,20261124,x\r\n"
    b"A000001234567F,20261124,x\r\n"
    b"3511111111111X,20261124,x\r\n"
    b"35111111111111111,20261124,x\r\n"
)


def test_dirbs_junk_is_skipped_and_counted():
    keys, tally, count, why, _ = read(DIRBS, "dirbs-blacklist")
    assert keys == {35111111111111, 35111111111112, meid_key("A000001234567F")}
    assert (count, tally.skipped, tally.bad) == (8, 3, 2)
    assert why[35111111111111] == "local stolen list|duplicate"
    keys, tally, _, _, _ = read(
        b"imei,imsi,msisdn,block_date,reasons\r\n35111111111111,1,2,3,4\r\n#,1,2,3,4\r\n", "dirbs-notifications"
    )
    assert (keys, tally.skipped) == ({35111111111111}, 1)


def test_imei_layout_has_no_header_and_one_field():
    keys, tally, count, _, _ = read(
        b'\xef\xbb\xbf35123456789012\r\n"35123456789013"\r\n\r\n35123456789014,1\r\nimei\r\n', "imei"
    )
    assert keys == keys_of("35123456789012", "35123456789013")
    assert (count, tally.bad) == (4, 2)
    assert tally.complaints[1].startswith("f.csv:5: ")


LSDS = """imei,reporting_date,status,change_type
00101006000001,20261101,blacklist,add
00101006000002,20261101,pending,add
00101006000003,20261101,blacklist,update
00101006000004,20261101,recovered,remove
00101006000005,20261101,pending,remove
00101006000006,20261101,,add
00101006000007,20261101,blacklist,ADD
00101006000008,20261101,closed,add
0010100600000,20261101,blacklist,add
"""


def test_an_lsds_list_has_what_is_to_be_blocked_and_not_what_is_pending():
    """The codes are those of DIRBS-Core's schemas, and of what LSDS writes."""
    keys, tally, count, _, _ = read(LSDS.encode(), "lsds")
    assert keys == keys_of("00101006000001", "00101006000003", "00101006000006")
    assert (count, tally.bad) == (9, 3)
    assert tally.complaints[:2] == [
        f"f.csv:{line}: its code is none of add, blacklist, update (added) and pending, recovered, remove (removed)"
        for line in (8, 9)
    ]
    full = b"imei,reporting_date,status\n00101006000001,20261101,blacklist\n00101006000002,20261101,pending\n00101006000003,,\n"
    assert read(full, "lsds")[0] == keys_of("00101006000001", "00101006000003")
    tally, removed = Tally(bad_rows_max=9, range_tacs_max=1), ListedRows()
    read_into(None, [LSDS.encode()], layout="lsds", kind="devices", removed=removed, reasons=Reasons(), tally=tally)
    assert set(removed.pop().keys.tolist()) == keys_of("00101006000002", "00101006000004", "00101006000005")


@pytest.mark.parametrize("cut", [1, 10**6])
def test_of_the_rows_of_a_file_that_has_codes_the_last_one_about_a_device_counts(cut):
    """Recovered, stolen again, never recovered, both in the same spelling and in another; the reasons of what stays are as ever."""
    rows = [
        "00101006000001,20261101,blacklist,add", "001010060000028,20261101,blacklist,add", "00101006000003,20261101,recovered,update",
        "00101006000004,20261101,blacklist,add", "00101006000001,20261103,recovered,update", "00101006000002,20261103,blacklist,remove",
        "00101006000003,20261103,blacklist,add", "00101006000004,20261103,blacklist,update",
    ]  # fmt: skip
    lines = [LSDS.splitlines()[0], *rows]
    pieces = ["\n".join(lines[at : at + cut]).encode() + b"\n" for at in range(0, len(lines), cut)]
    assert read(b"", "lsds", chunks=pieces)[0] == keys_of("00101006000003", "00101006000004")
    removed = ListedRows()
    tally = Tally(bad_rows_max=0, range_tacs_max=1)
    read_into(None, pieces, layout="lsds", kind="devices", removed=removed, reasons=Reasons(), tally=tally)
    assert set(removed.pop().keys.tolist()) == keys_of("00101006000001", "00101006000002")


@pytest.mark.parametrize(
    ("content", "layout", "kind", "says"),
    [
        (
            b"35123456789012\n",
            "eir",
            "devices",
            "a header with imei or identifier or tac or imei_from\\+imei_to is expected",
        ),
        (b"imei,imei\n", "eir", "devices", "twice"),
        (b"imei,IMEI \n", "eir", "devices", "twice"),
        (b"imei,tac\n", "eir", "devices", "it has imei\\+tac"),
        (b"imei,imsi\n", "eir", "devices", "it has imei\\+imsi"),
        (b"imei\n", "eir", "subscribers", "with imsi is expected"),
        (b"imei_from\n", "eir", "devices", "it has imei_from"),
        (b'"imei\n', "eir", "devices", "none of them"),
        (b"\xff\n", "eir", "devices", "none of them"),
        (b"\n", "eir", "devices", "none of them"),
        (b"block_date,reasons\n", "dirbs-blacklist", "devices", "with imei is expected"),
        (b"imei,imsi,msisdn\n", "dirbs-exceptions", "devices", "is for lists of pairs, not of devices"),
        (b"imei\n", "gsma", "devices", "layout 'gsma' is unknown; expected one of eir, imei, dirbs-blacklist"),
    ],
)
def test_headers_that_do_not_fit(content, layout, kind, says):
    with pytest.raises(ReleaseRefused, match=says) as caught:
        read(content, layout, kind)
    assert caught.value.reason == "layout"


@pytest.mark.parametrize(
    "layout", [name for name, dialect in LAYOUTS.items() if dialect.names and "devices" in dialect.subjects]
)
def test_an_empty_file_has_no_header(layout):
    with pytest.raises(ReleaseRefused, match="empty"):
        read(b"", layout, chunks=[])


def test_an_empty_imei_file_is_an_empty_list():
    assert read(b"", "imei", chunks=[])[2] == 0


def test_reasons_past_255_are_other():
    texts = [f"reason {n}" for n in range(300)]
    content = "imei,reason\n" + "".join(f"{35123456000000 + n},{text}\n" for n, text in enumerate(texts))
    halves = [content[:4000].rpartition("\n")[0] + "\n", content[content[:4000].rfind("\n") + 1 :]]
    for pieces in ([content], halves):
        _, _, _, why, _ = read(b"", chunks=[piece.encode() for piece in pieces])
        got = [why[35123456000000 + n] for n in range(300)]
        assert got == texts[:254] + ["other"] * 46


def test_reasons_known_before_keep_their_places():
    reasons = Reasons(("", "b", "a"))
    assert [reasons.index(text) for text in ("a", "b", "", "c")] == [2, 1, 0, 3]
    assert reasons.texts == ("", "b", "a", "c")
    assert Reasons().texts == ()
    _, _, _, why, _ = read(b"imei,reason\n35123456789012," + b"x" * 500 + b"\n")
    assert list(why.values()) == ["x" * 200]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("20261231", 1_798_761_600),
        ("2026-12-31", 1_798_761_600),
        ("2026-12-31T12:00:00Z", 1_798_718_400),
        ("1969-01-01", 1),
    ],
)
def test_until(text, seconds):
    assert until_seconds(text) == seconds
    _, _, _, _, ends = read(f"imei,until\n35123456789012,{text}\n35123456789013,\n".encode())
    assert ends == {35123456789012: seconds, 35123456789013: 0}


@pytest.mark.parametrize(
    "text",
    ["31.12.2026", "2026-02-30", "2026-12-31T12:00:00", "2026-12-31T12:00:00+01:00", "٢٠٢٦١٢٣١", "9999-12-31", "soon"],
)
def test_until_that_is_no_time(text):
    with pytest.raises(ValueError, match=r"."):
        until_seconds(text)
    keys, tally, _, _, _ = read(f"imei,until\n35123456789012,{text}\nA0000000000001,{text}\n".encode())
    assert (keys, tally.bad) == (set(), 2)


@pytest.mark.parametrize(
    ("line", "layout"),
    [
        (b"imei,block_date,reasons\r\n", "dirbs-blacklist"),
        (b"imei,imsi,msisdn,block_date,reasons,amnesty_granted\r\n", "dirbs-notifications"),
        (b"imei,imsi,msisdn\n", "dirbs-exceptions"),
        (b"\xef\xbb\xbfIMEI,reason\n", "eir"),
        (b"tac\n", "eir"),
        (b"imei,reporting_date,status\n", "lsds"),
        (b"IMEI,reporting_date,status,change_type\r\n", "lsds"),
        (b'{"imei": "00101006000001"}\n', None),
        (b"351234567890123\n", "imei"),
        (b"A0000012345678\n", "imei"),
        (b"TAC|Manufacturer\n", None),
        (b"", None),
    ],
)
def test_guess(line, layout):
    assert guess_layout(line) == layout


def test_every_subject_can_be_read_and_explained():
    layouts_of_files = (*LAYOUTS.values(), import_days.LAYOUT)
    subjects = {subject for dialect in layouts_of_files for allowed in dialect.subjects.values() for subject in allowed}
    assert {column for subject in subjects for column in subject} == set(reader.KEYS_OF) == set(layouts.KEY_OF)


@given(st.lists(st.from_regex(r"[0-9]{14,16}", fullmatch=True)))
def test_wrong_check_digits_are_those_of_the_annex(texts):
    wrong = [text for text in texts if len(text) == 15 and text[14] not in {"0", str(check_digit(text[:14]))}]
    for content, subjects in (("imei", 1), ("imei_from,imei_to", 2), ("imsi,imei", 1)):
        tally = Tally(bad_rows_max=10**6, range_tacs_max=10**8, check_digits=True)
        rows = {"imei": "{0}", "imei_from,imei_to": "{0},{0}", "imsi,imei": "00101000002,{0}"}[content]
        octets = "".join(
            f"{row}\n" for row in (content, *(rows.format(text) for text in (*texts, "x", "35123456789a15")))
        ).encode()
        kind = "pairs" if "imsi" in content else "devices"
        read_into(ListedRows(), [octets], kind=kind, reasons=Reasons(), tally=tally)
        assert tally.wrong_check_digits == subjects * len(wrong)


def test_check_digits_are_checked_only_if_wanted():
    assert read(b"imei\n351234567890127\n")[1].wrong_check_digits == 0


def test_pairs():
    def pairs(content, layout):
        rows, tally = ListedRows(), Tally(bad_rows_max=9, range_tacs_max=1000)
        read_into(rows, [content], layout=layout, kind="pairs", reasons=Reasons(), tally=tally)
        found = {}
        for entry in entries_in(rows.pop()):
            found.setdefault(entry.key, []).append(entry.imsi)
        return found, tally

    lines = b"imsi,imei\n001010000000001,35123456789012\n00101000002,351234567890128\n1,35123456789012\n00101000003,A1234567890ABC\n00101000003,1\n"
    found, tally = pairs(lines, "eir")
    assert found == {
        35123456789012: [imsi_key("00101000002"), imsi_key("001010000000001")],
        meid_key("A1234567890ABC"): [imsi_key("00101000003")],
    }
    assert tally.bad == 2
    assert tally.complaints[0] == "f.csv:4: an IMSI has 6 to 15 digits; got 1 characters"
    found, tally = pairs(
        b"imei,imsi,msisdn\r\n35123456789012,00101000002,1\r\n#06,00101000002,1\r\n", "dirbs-exceptions"
    )
    assert found == {35123456789012: [imsi_key("00101000002")]}
    assert (tally.skipped, tally.bad) == (1, 0)


PIECES = [
    "\r",
    "\r\n",
    "\n",
    "\ufeff",
    '"',
    ",",
    " ",
    "\0",
    "\x0b",
    "\u2028",
    "3512345678901",
    "35123456789012",
    "351234567890128",
    "stolen",
    "2026-12-31",
    "+",
]


def cut(content, *, at=None):
    """A file as pieces that end with a newline each: every line alone, or cut behind some of them."""
    lines = [line + b"\n" for line in content.split(b"\n")[:-1]]
    pieces, piece = [], b""
    for number, line in enumerate(lines):
        piece += line
        if at is None or number in at:
            pieces.append(piece)
            piece = b""
    return [*pieces, *([piece] if piece else [])]


def outcome(pieces, layout):
    keys, tally, count, why, ends = read(b"", layout, chunks=pieces)
    return keys, tally.bad, tally.complaints, count, why, ends


@pytest.mark.long
@settings(max_examples=100)
@example(["35123456789012,a\rb", '35123456789013,"open'], set(), ("eir", "imei,reason,until\n"))
@example(["35123456789013", "\ufeff35123456789012"], {1}, ("imei", ""))
@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), max_size=8), st.sets(st.integers(0, 20), max_size=6),
    st.sampled_from([("eir", "imei,reason,until\n"), ("eir", "\ufeffreason,until,imei\r\n"), ("imei", "")]),
)  # fmt: skip
def test_a_file_that_is_cut_elsewhere_is_the_same_list(rows, at, form):
    layout, header = form
    content = (header + "".join(f"{row}\n" for row in ("35123456789099", *rows, ""))).encode()
    whole = outcome([content], layout)
    assert outcome(cut(content), layout) == whole
    assert outcome(cut(content, at=at), layout) == whole


@pytest.mark.parametrize(
    ("row", "good"),
    [
        ("35123456789012\r", True), ("35123456789012\r\r", False), ("\r35123456789012", False), ("351234567890\r12", False), ("\ufeff35123456789012", False),
        ("\ufeff\ufeff35123456789012", False), ("\r", None), ("\r\r", False), ("35123456789012,a\rb", True), ('"35123456789012"\r', True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", ["", '35123456789013,"open\n'])
def test_a_lone_carriage_return_and_a_mark_of_order_end_no_row(row, good, beside):
    """In a piece that polars reads, and in one that Python's csv does; as the first row of a piece, and behind others."""
    text = f"{row}\n{beside}".encode()
    for pieces in (
        [b"imei,reason\n" + text],
        [b"imei,reason\n", text],
        [b"imei,reason\n35123456789014,\n" + text],
        [b"imei,reason\n35123456789014,\n", text],
    ):
        keys, tally, *_ = read(b"", chunks=pieces)
        assert (35123456789012 in keys) == bool(good)
        assert tally.bad == (good is False) + bool(beside)
