"""Encoding, header record and trailer record of a data file, and the numbers of rows in these records."""

import codecs
import io
from collections.abc import Iterable, Mapping, Sequence

from eir.errors import ReleaseRefused
from eir.lists.record.settings import Layout, RecordFormat
from eir.lists.rows.delivered import read_lines
from eir.lists.rows.layout import BOM, USUAL_DATES, csv_fields, until_seconds

UTF_8 = "utf-8"


def decode(octets: bytes, encoding: str) -> bytes:
    """Convert text to UTF-8. Invalid bytes become U+FFFD, and a character that is cut at the end is omitted."""
    if encoding == UTF_8:
        return octets.removeprefix(BOM)
    return codecs.getincrementaldecoder(encoding)("replace").decode(octets).encode("utf-8", "replace")


def split_records(chunks: Iterable[bytes], name: str, layout: Layout) -> tuple[Iterable[bytes], Mapping[str, int]]:
    """Return the UTF-8 text of a data file in pieces of whole lines, and the number of rows in each of its records.

    The text begins with the line of column names, if the file has it. A file with records or another encoding is read as a whole.

    Raises:
        ReleaseRefused: `layout` if the header record is not as the layout declares it; `rows` if the trailer record is not.
    """
    if not layout.lines_before and layout.trailer is None and layout.encoding == UTF_8:
        return chunks, {}
    *before, text = decode(b"".join(chunks), layout.encoding).split(b"\n", layout.lines_before)
    if len(before) < layout.lines_before:
        before, text = [*before, text], b""
    counts: dict[str, int] = {}
    if layout.header is not None:
        counts |= _row_count(name, "header", before[0], layout.header, layout)
    if layout.trailer is not None:
        end = len(text.rstrip(b"\r\n"))
        start = text.rfind(b"\n", 0, end) + 1
        counts |= _row_count(name, "trailer", text[start:end], layout.trailer, layout)
        text = text[:start]
    return read_lines(name.removesuffix(".gz").removesuffix(".zst"), io.BytesIO(text), len(text)), counts


def _row_count(name: str, label: str, line: bytes, record: RecordFormat, layout: Layout) -> Mapping[str, int]:
    """Return the number of rows in a header or trailer record, by its label; nothing if the record has none.

    Raises:
        ReleaseRefused: `layout` (header) or `rows` (trailer), if the record is not as the layout declares it.
    """
    reason = "layout" if label == "header" else "rows"
    line = line.rstrip(b"\r")
    if not line.decode("utf-8", "replace").startswith(record.begins):
        fault = f"does not begin with {record.begins!r}, as a {label} record does"
        if label == "header":
            raise ReleaseRefused(reason, f"{name}: the first line {fault}")
        raise ReleaseRefused(reason, f"{name}: the last line {fault}; the file is probably truncated")
    fields = csv_fields(line, layout.separator)
    if record.date is not None:
        try:
            until_seconds(_field(fields, record.date) or "none", layout.dates)
        except ValueError:
            fault = f"field {record.date} of the {label} record is not a date like {layout.dates or USUAL_DATES}"
            raise ReleaseRefused(reason, f"{name}: {fault}") from None
    if record.count is None:
        return {}
    count = _field(fields, record.count)
    if not (count.isascii() and count.isdigit()):
        raise ReleaseRefused(reason, f"{name}: field {record.count} of the {label} record is not a number of rows")
    return {label: int(count[:18])}


def _field(fields: Sequence[str], position: int) -> str:
    """Return the field at a position, counted from 1; an empty text if the record is too short."""
    return "".join(fields[position - 1 : position]).strip()
