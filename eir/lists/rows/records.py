"""The frame around the rows of a file: its encoding, a header and a trailer record, and what these promise."""

import codecs
import csv
from collections.abc import Iterable, Iterator

from eir.errors import ReleaseRefused
from eir.lists.record.settings import Layout, Record
from eir.lists.rows.delivered import LINE_BYTES_MAX
from eir.lists.rows.layout import BOM, USUAL_DATES, rows_of, until_seconds

UTF_8 = "utf-8"


def one_line_end(piece: bytes) -> bytes:
    """Lines that end with a newline alone: one before it goes, and any other carriage return ends nothing, and stands as a blank.

    Readers differ over these, and over where a piece may be cut, so that none of them is to see one.
    """
    return piece.replace(b"\r\n", b"\n").replace(b"\r", b" ") if b"\r" in piece else piece


class Frame:
    """One file as its layout has it around the rows."""

    def __init__(self, name: str, layout: Layout) -> None:
        self._name, self._layout = name, layout
        self._promised: dict[str, int] = {}

    def lines(self, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """The names of columns and the rows, in UTF-8, in pieces that end with a newline each, as those of `chunks` do.

        Raises ReleaseRefused: `layout` where the header record is not as declared, `rows` where the trailer record is not.
        """
        if self._layout.encoding != UTF_8:
            chunks = _decoded(self._name, chunks, self._layout.encoding)
        chunks = map(one_line_end, chunks)
        if self._layout.answers:
            chunks = map(rows_of, chunks)
        if self._layout.lines_before:
            chunks = self._below(chunks)
        return chunks if self._layout.trailer is None else self._above(chunks, self._layout.trailer)

    def check(self, count: int) -> None:
        """Hold what the records promise against the rows that were found. Raises ReleaseRefused (`rows`)."""
        for what, promised in self._promised.items():
            if promised != count:
                raise ReleaseRefused("rows", f"{self._name} has {count} rows; its {what} says {promised}")

    def _below(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        left, begin, before = iter(chunks), b"", self._layout.lines_before
        while begin.count(b"\n") <= before and (piece := next(left, b"")):
            begin += piece
        lines = begin.removeprefix(BOM).split(b"\n", before)
        if self._layout.header is not None:
            self._read("header", lines[0], self._layout.header, "layout")
        if len(lines) > before and lines[before]:
            yield lines[before]
        yield from left

    def _above(self, chunks: Iterable[bytes], trailer: Record) -> Iterator[bytes]:
        kept = b""
        for piece in chunks:
            whole = kept + piece
            start = whole.rfind(b"\n", 0, len(whole.rstrip(b"\n"))) + 1
            if start:
                yield whole[:start]
            kept = whole[start:]
        self._read("trailer", kept, trailer, "rows")

    def _read(self, what: str, line: bytes, record: Record, reason: str) -> None:
        where = "the first line" if what == "header" else "the last line"
        text = line.decode("utf-8", "replace").strip("\n")
        if not text.startswith(record.begins):
            cut = "" if what == "header" else ": was the file cut off?"
            raise ReleaseRefused(
                reason, f"{self._name}: {where} does not begin with {record.begins!r}, as a {what} record does{cut}"
            )
        try:
            fields = next(csv.reader([text], delimiter=self._layout.separator, strict=True), [])
        except csv.Error:
            fields = []
        if record.count is not None:
            count = fields[record.count - 1].strip() if record.count <= len(fields) else ""
            if not (count.isascii() and count.isdigit()):
                raise ReleaseRefused(
                    reason, f"{self._name}: field {record.count} of the {what} record is not a number of rows"
                )
            self._promised[what] = int(count[:18])
        if record.date is not None:
            date = fields[record.date - 1].strip() if record.date <= len(fields) else ""
            try:
                until_seconds(date or "none", self._layout.dates)
            except ValueError:
                form = self._layout.dates or USUAL_DATES
                raise ReleaseRefused(
                    reason, f"{self._name}: field {record.date} of the {what} record is not a date like {form}"
                ) from None


def _decoded(name: str, chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The same lines in UTF-8; what cannot be read in this encoding stands as U+FFFD. Raises ReleaseRefused (`data`)."""
    decoder, rest = codecs.getincrementaldecoder(encoding)("replace"), ""
    for chunk in chunks:
        lines, newline, rest = (rest + decoder.decode(chunk)).rpartition("\n")
        if len(rest) > LINE_BYTES_MAX:
            raise ReleaseRefused("data", f"{name} holds a line of more than {LINE_BYTES_MAX} characters")
        if newline:
            yield f"{lines}\n".encode("utf-8", "replace")
    if rest := rest + decoder.decode(b""):
        yield f"{rest}\n".encode("utf-8", "replace")
