"""Fuzzed data files and manifests: each is read, or refused with a reason, in bounded work.

A script is a seed: from it a data file, its layout, kind and cut into pieces are made, nearly right for the most part, and read
as a load reads them, into a table and through a delta of it. Manifests are good ones with members changed.
"""

import json
import random
from contextlib import suppress

from simulated.releases import read_into

from eir.errors import ReleaseRefused
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS
from eir.lists.releases.foreign import LAYOUTS
from eir.lists.releases.release import parse_manifest
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.rows.reader import Tally, read_rows
from eir.lists.table.codec import decode, encode
from eir.lists.table.table import change, table_of

HEADERS = (
    "imei", "tac", "imei_from,imei_to", "imsi", "imei,imsi", "imei,reason", "imei,until", "imei,reason,until", "tac,reason,until",
    "imei_from,imei_to,reason,until", "imei,imsi,reason,until", "imei,block_date,reasons", "imei,imsi,msisdn",
    "imei,imsi,msisdn,block_date,reasons", "IMEI , Reason", "imei,imei", "", "reason", "imei;reason", '"imei","reason"',
)  # fmt: skip
CELLS = (
    "", " ", "35209900176148", "352099001761481", "3520990017614800", "99999999999999", "00000000000000", "A0000012345678",
    "FFFFFFFFFFFFFF", "35209900", "99999999", "001010000000001", "999999999999999", "+35209900176148", "-1", "1e14", "0x10",
    "18446744073709551615", "99999999999999999999", "stolen", "x" * 300, "\u00fc\u0663", "20261231", "2026-12-31",
    "2026-12-31T12:00:00Z", "9999-12-31", "0001-01-01", "1970-01-01T00:00:00Z", "2026-02-30", '"', '""', '"a\nb"', "a,b", "\0", "#*",
)  # fmt: skip
ENDS = ("\n", "\r\n", "\n\n", "\r", "\n \n", "")
KINDS = (DEVICES, PAIRS, SUBSCRIBERS)
ROWS_MAX = 12
FITTING = (
    (DEVICES, "eir", (*HEADERS[:3], *HEADERS[5:10])), (PAIRS, "eir", ("imei,imsi", "imei,imsi,reason,until")), (SUBSCRIBERS, "eir", ("imsi", "imsi,reason")),
    (DEVICES, "imei", ("35209900176148",)), (DEVICES, "dirbs-blacklist", ("imei,block_date,reasons",)),
    (PAIRS, "dirbs-notifications", ("imei,imsi,msisdn,block_date,reasons",)), (PAIRS, "dirbs-exceptions", ("imei,imsi,msisdn",)),
)  # fmt: skip
"""Kinds of list, layouts and headers that belong together."""


def run(seed):
    """One script; returns what came of it: `read`, or the reason of the refusal. Anything but ReleaseRefused goes through."""
    chance = random.Random(seed)
    if chance.random() < 0.2:
        with suppress(ReleaseRefused):
            parse_manifest(_manifest(chance))
        return "manifest"
    try:
        return _read(chance)
    except ReleaseRefused as refused:
        return refused.reason


def _read(chance):
    kind, layout, headers = chance.choice(FITTING)
    if chance.random() < 0.1:
        kind, layout, headers = chance.choice(KINDS), chance.choice([*LAYOUTS, "unknown"]), HEADERS
    tally = Tally(
        bad_rows_max=chance.choice([0, 3, 100]),
        range_tacs_max=chance.choice([1, 3]),
        check_digits=chance.random() < 0.3,
    )
    reasons, sides = Reasons(), [ListedRows() for _ in range(2)]
    for number in range(chance.choice([1, 1, 2, 3])):
        octets = _file(chance, chance.choice(headers))
        pieces = _pieces(octets, chance)
        options = {"name": "f.csv", "kind": kind, "reasons": reasons, "tally": tally}
        if layout == "eir":
            for part in read_rows(pieces, rows_max=chance.choice([None, 9]), **options):
                sides[number % 2].add(part.rows, part.lasts)
        else:
            read_into(sides[number % 2], pieces, layout=layout, **options)
    if tally.wide:
        raise ReleaseRefused("range", tally.wide[0])
    added, removed = (rows.pop() for rows in sides)
    table = table_of(added)
    effect = change(table, added, removed)
    assert len(reasons.texts) <= 256
    assert effect.devices_added >= 0 <= effect.devices_removed
    assert len(decode([*encode(effect.table)])) == len(effect.table)
    return "read"


def _file(chance, header):
    width = header.count(",") + 1
    likely = [_cell_for(column.strip().lower()) for column in header.split(",")]
    rows, right = [], chance.choice([0, 0.85, 0.97, 1])
    for _ in range(chance.choice([0, 1, 2, ROWS_MAX])):
        cells = [each(chance) if chance.random() < right else chance.choice(CELLS) for each in likely]
        rows.append(",".join(cells[: chance.choice([width, width, width, width - 1])]))
    ends = chance.choice(ENDS)
    text = ends.join([*([header] if chance.random() < 0.95 else []), *rows]) + ends * chance.choice([0, 1, 1, 3])
    octets = chance.choice([b"", b"", b"", b"\xef\xbb\xbf"]) + text.encode()
    if chance.random() < 0.1 and octets:
        at = chance.randrange(len(octets))
        octets = octets[:at] + chance.randbytes(chance.randrange(4)) + octets[at + chance.randrange(3) :]
    return octets


def _cell_for(column):
    def digits(count):
        return lambda chance: f"{chance.choice([35209900, 35209901, 99999999]):08d}{chance.randrange(10**6):06d}000"[
            :count
        ]

    shapes = {
        "imei": digits(14), "imei_from": digits(14), "imei_to": digits(14), "tac": digits(8), "imsi": digits(15),
        "until": lambda chance: chance.choice(["", "20261231", "2026-12-31", "2026-12-31T12:00:00Z"]),
    }  # fmt: skip
    return shapes.get(column, lambda chance: chance.choice(["", "stolen", "lost"]))


def _pieces(octets, chance):
    """As DataFile.chunks cuts a file: pieces that end with a newline each."""
    lines = [line + b"\n" for line in octets.split(b"\n")]
    lines = lines[:-1] if lines[-1] == b"\n" else lines
    while lines:
        count = chance.choice([1, 2, len(lines)])
        yield b"".join(lines[:count])
        del lines[:count]


def _manifest(chance):
    file = {"name": "f.csv", "role": "entries", "layout": "eir", "bytes": 10, "rows": 1, "sha256": "0" * 64}
    document = {
        "format": "eir-release/1", "list": "stolen", "kind": "full", "serial": 2, "base": None, "issued": "2026-01-01T00:00:00Z",
        "expires": "2026-02-01T00:00:00Z", "files": [file],
    }  # fmt: skip
    wild = (
        None, 0, -1, 1, 1 << 63, 1 << 64, 10**400, 1.5, float("inf"), True, "", "x", "x" * 5000, "\ud800", "..", "a/b", "-f", "f\n", [], {}, [[]],
        [file] * 2, [file | {"name": chr(n)} for n in range(65, 90)], "delta", "2026-01-01T00:00:60Z", "9999-12-31T23:59:59Z", "0000-00-00T00:00:00Z",
        "a.manifest.json", "a.SIG", "a.sig.2", "٣٣",
    )  # fmt: skip
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        target = chance.choice([document, document, file])
        name = chance.choice([*target, "more"])
        if chance.random() < 0.2:
            target.pop(name, None)
        else:
            target[name] = chance.choice(wild)
    try:
        octets = json.dumps(document, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):  # a document that holds itself
        octets = b"{"
    shapes = (
        lambda: octets,
        lambda: octets[: chance.randrange(len(octets) + 1)],
        lambda: b"[" * chance.choice([10, 100_000]),
        lambda: chance.randbytes(50),
    )
    octets = chance.choice(shapes[:1] * 6 + shapes[1:])()
    if chance.random() < 0.2 and octets:
        at = chance.randrange(len(octets))
        octets = octets[:at] + chance.randbytes(1) + octets[at + 1 :]
    return octets
