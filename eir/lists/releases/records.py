"""Reader for the encoding, the header record and the trailer record of a data file. It verifies the row counts in these records."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from eir.errors import ReleaseRefused
from eir.lists.record.settings import Layout, RecordFormat
from eir.lists.rows.delivered import LINE_BYTES_MAX
from eir.lists.rows.layout import BOM, USUAL_DATES, csv_fields, until_seconds

UTF_8 = "utf-8"


class Frame:
    """Reader of one data file: removes header and trailer record, and converts the text to UTF-8."""

    def __init__(self, name: str, layout: Layout) -> None:
        self._name = name
        self._layout = layout
        self._promised: dict[str, int] = {}
        """Row count in the header record and in the trailer record, by the name of the record."""

    def lines(self, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """Yield UTF-8 text in pieces of whole lines: first the line of column names, if the file has it, then the rows.

        Raises:
            ReleaseRefused: `layout` if the header record is not as the layout declares it; `rows` if the trailer record
                is not.
        """
        if self._layout.encoding != UTF_8:
            chunks = _decode_lines(self._name, chunks, self._layout.encoding)
        if self._layout.lines_before:
            chunks = self._skip_header(chunks)
        if self._layout.trailer is not None:
            chunks = self._split_trailer(chunks, self._layout.trailer)
        return chunks

    def check(self, count: int) -> None:
        """Verify that `count`, the number of rows in the file, equals the row counts in header and trailer record.

        Raises:
            ReleaseRefused: `rows`, if a row count differs.
        """
        for record, promised in self._promised.items():
            if promised != count:
                raise ReleaseRefused("rows", f"{self._name} has {count} rows; its {record} says {promised}")

    def _skip_header(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        rest = iter(chunks)
        before = self._layout.lines_before
        begin = b""
        for piece in rest:
            begin += piece
            if begin.count(b"\n") > before:
                break
        lines = begin.removeprefix(BOM).split(b"\n", before)
        if self._layout.header is not None:
            self._read_record("header", lines[0], self._layout.header, "layout")
        if len(lines) > before and lines[before]:
            yield lines[before]
        yield from rest

    def _split_trailer(self, chunks: Iterable[bytes], trailer: RecordFormat) -> Iterator[bytes]:
        pending = b""
        for piece in chunks:
            content = pending + piece
            last_line_end = len(content.rstrip(b"\r\n"))
            start = content.rfind(b"\n", 0, last_line_end) + 1
            if start:
                yield content[:start]
            pending = content[start:]
        self._read_record("trailer", pending, trailer, "rows")

    def _read_record(self, label: str, line: bytes, record: RecordFormat, reason: str) -> None:
        """Parse a header or trailer record, and store its row count.

        Raises:
            ReleaseRefused: by `reason`, if the record is not as the layout declares it.
        """
        text = line.decode("utf-8", "replace").strip("\r\n")
        if not text.startswith(record.begins):
            fault = f"does not begin with {record.begins!r}, as a {label} record does"
            if label == "header":
                raise ReleaseRefused(reason, f"{self._name}: the first line {fault}")
            raise ReleaseRefused(reason, f"{self._name}: the last line {fault}; the file is probably truncated")
        fields = csv_fields(line.strip(b"\r\n"), self._layout.separator)
        if record.count is not None:
            count = _field(fields, record.count)
            if not (count.isascii() and count.isdigit()):
                fault = f"field {record.count} of the {label} record is not a number of rows"
                raise ReleaseRefused(reason, f"{self._name}: {fault}")
            self._promised[label] = int(count[:18])
        if record.date is not None:
            date = _field(fields, record.date)
            try:
                until_seconds(date or "none", self._layout.dates)
            except ValueError:
                form = self._layout.dates or USUAL_DATES
                fault = f"field {record.date} of the {label} record is not a date like {form}"
                raise ReleaseRefused(reason, f"{self._name}: {fault}") from None


def _field(fields: Sequence[str], position: int) -> str:
    """Return the field at a position, counted from 1; an empty text if the record is too short."""
    if position > len(fields):
        return ""
    return fields[position - 1].strip()


def _decode_lines(name: str, chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Convert the lines of a file to UTF-8. Bytes that are invalid in `encoding` become U+FFFD.

    Raises:
        ReleaseRefused: `data`, if a line is too long.
    """
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    rest = ""
    for chunk in chunks:
        text = rest + decoder.decode(chunk)
        lines, newline, rest = text.rpartition("\n")
        if len(rest) > LINE_BYTES_MAX:
            raise ReleaseRefused("data", f"{name} holds a line of more than {LINE_BYTES_MAX} characters")
        if newline:
            yield f"{lines}\n".encode("utf-8", "replace")
    rest += decoder.decode(b"")
    if rest:
        yield f"{rest}\n".encode("utf-8", "replace")
