"""Encoding, header record and trailer record of a data file, and the row counts in these records."""

import codecs
import csv
from collections.abc import Iterable, Iterator

from eir.errors import ReleaseRefused
from eir.lists.record.settings import Layout, RecordFormat
from eir.lists.rows.delivered import LINE_BYTES_MAX
from eir.lists.rows.layout import BOM, USUAL_DATES, device_check_rows, until_seconds

UTF_8 = "utf-8"


def one_line_end(piece: bytes) -> bytes:
    """Replace CRLF by a newline, and any other carriage return by a blank.

    CSV readers treat carriage returns differently, and a piece may end between the two characters of a line end.
    """
    return piece.replace(b"\r\n", b"\n").replace(b"\r", b" ") if b"\r" in piece else piece


class Frame:
    """Reader that removes encoding, header record and trailer record of a file, and leaves column names and rows."""

    def __init__(self, name: str, layout: Layout) -> None:
        self._name, self._layout = name, layout
        self._promised: dict[str, int] = {}

    def lines(self, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """Yield the line of column names and the rows in UTF-8, in pieces that end with a newline.

        Raises:
            ReleaseRefused: `layout` if the header record is not as declared, `rows` if the trailer record is not.
        """
        if self._layout.encoding != UTF_8:
            chunks = _decode_lines(self._name, chunks, self._layout.encoding)
        chunks = map(one_line_end, chunks)
        if self._layout.answers:
            chunks = map(device_check_rows, chunks)
        if self._layout.lines_before:
            chunks = self._skip_header(chunks)
        return chunks if self._layout.trailer is None else self._split_trailer(chunks, self._layout.trailer)

    def check(self, count: int) -> None:
        """Compare the row counts in the header and trailer records with the number of rows that were read.

        Raises:
            ReleaseRefused: `rows`, if they differ.
        """
        for record, promised in self._promised.items():
            if promised != count:
                raise ReleaseRefused("rows", f"{self._name} has {count} rows; its {record} says {promised}")

    def _skip_header(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        rest, begin, before = iter(chunks), b"", self._layout.lines_before
        while begin.count(b"\n") <= before and (piece := next(rest, b"")):
            begin += piece
        lines = begin.removeprefix(BOM).split(b"\n", before)
        if self._layout.header is not None:
            self._read("header", lines[0], self._layout.header, "layout")
        if len(lines) > before and lines[before]:
            yield lines[before]
        yield from rest

    def _split_trailer(self, chunks: Iterable[bytes], trailer: RecordFormat) -> Iterator[bytes]:
        pending = b""
        for piece in chunks:
            whole = pending + piece
            start = whole.rfind(b"\n", 0, len(whole.rstrip(b"\n"))) + 1
            if start:
                yield whole[:start]
            pending = whole[start:]
        self._read("trailer", pending, trailer, "rows")

    def _read(self, label: str, line: bytes, record: RecordFormat, reason: str) -> None:
        where = "the first line" if label == "header" else "the last line"
        text = line.decode("utf-8", "replace").strip("\n")
        if not text.startswith(record.begins):
            cut = "" if label == "header" else "; the file is probably truncated"
            raise ReleaseRefused(
                reason, f"{self._name}: {where} does not begin with {record.begins!r}, as a {label} record does{cut}"
            )
        try:
            fields = next(csv.reader([text], delimiter=self._layout.separator, strict=True), [])
        except csv.Error:
            fields = []
        if record.count is not None:
            count = fields[record.count - 1].strip() if record.count <= len(fields) else ""
            if not (count.isascii() and count.isdigit()):
                raise ReleaseRefused(
                    reason, f"{self._name}: field {record.count} of the {label} record is not a number of rows"
                )
            self._promised[label] = int(count[:18])
        if record.date is not None:
            date = fields[record.date - 1].strip() if record.date <= len(fields) else ""
            try:
                until_seconds(date or "none", self._layout.dates)
            except ValueError:
                form = self._layout.dates or USUAL_DATES
                raise ReleaseRefused(
                    reason, f"{self._name}: field {record.date} of the {label} record is not a date like {form}"
                ) from None


def _decode_lines(name: str, chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Decode a file's lines and yield them in UTF-8; bytes that are invalid in `encoding` become U+FFFD.

    Raises:
        ReleaseRefused: `data`, if a line is too long.
    """
    decoder, rest = codecs.getincrementaldecoder(encoding)("replace"), ""
    for chunk in chunks:
        lines, newline, rest = (rest + decoder.decode(chunk)).rpartition("\n")
        if len(rest) > LINE_BYTES_MAX:
            raise ReleaseRefused("data", f"{name} holds a line of more than {LINE_BYTES_MAX} characters")
        if newline:
            yield f"{lines}\n".encode("utf-8", "replace")
    if rest := rest + decoder.decode(b""):
        yield f"{rest}\n".encode("utf-8", "replace")
