"""Pages: units of a list's content, one for each TAC, in which the list is stored, followed, verified and kept in memory.

A page contains the identifiers of a list with the same key // 10^6 (for devices: with the same TAC). Its `keys` are the
remainders as a 32-bit Roaring bitmap in the portable format, which libraries of other languages decode too. `extra` contains the
other columns of the rows as tagged sections: a tag of one byte, the length (4 bytes, little-endian), the content.

    T  the TAC as a whole is an entry: the byte of its reason, then its until (8 bytes as in U); always 9 bytes
    R  reasons: for each key, in order, one byte that indexes `ListState.reasons`; a single byte if all keys share it
    U  until: for each key, in order, 8 bytes of Unix seconds, little-endian, 0 for "no end"; 8 bytes if all keys share it.
       In lists of pairs, for each pair, in the order of S
    S  subscribers (lists of pairs): for each key, in order, the number of its IMSIs (4 bytes), then all IMSI keys (8 bytes each)
    D  dates (lists of device types): for each key, in order, the day on which its TAC was allocated, in 8 bytes as in U; 0 for none;
       8 bytes if all keys share it
    F  first sightings (eir.lists.record.first_days): for each key, in order, its first day (2 bytes); then for each its last period (1 byte)

An entry is a single identifier or a whole TAC. A page can have both, and they are independent: `keys` are the identifiers
that are listed singly, and with T every identifier of the TAC is listed too.

This module imports no other module of eir and does not depend on a store or a layout.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

PAGE_KEYS = 1_000_000
NUMBER_BITS = 37
"""Number of bits of a page number (eir.device: the highest key is below ODD_BASE + 2^55)."""
DIGEST_MODULUS = 1 << 256
_TAC_TAG, _TAGS = b"T", (b"R", b"U", b"S", b"D", b"F")
TAC_HEAD, TAC_BYTES = 5, 14
"""Bytes of the tag and length of section T, and of the whole section. T is first, so the first byte of `extra` shows it."""
_TAC_BEGINS = _TAC_TAG + (TAC_BYTES - TAC_HEAD).to_bytes(4, "little")


class TacEntry(NamedTuple):
    """Entry of a list for a whole TAC: index of its reason, and its expiry in Unix seconds (0: none)."""

    reason: int
    until: int

    @property
    def extra(self) -> bytes:
        """Encoded entry of the whole TAC: section T of a stored page's field `extra`."""
        return _TAC_BEGINS + bytes((self.reason,)) + self.until.to_bytes(8, "little", signed=True)


class Page(NamedTuple):
    """Entries that a list has in one TAC, in stored form. Pages with equal content are equal byte for byte."""

    number: int
    """Key // 10^6 of every identifier in the page."""
    keys: bytes
    """Key % 10^6 of each single identifier, as a run-optimised Roaring bitmap in the portable format; empty without single identifiers."""
    extra: bytes = b""
    """Tagged sections in the order T, R, U, S, D, F; empty if the rows hold only identifiers."""

    @property
    def is_empty(self) -> bool:
        """True if the page has no entry: neither single identifiers nor the whole TAC.

        The field `extra` is then empty too.
        """
        return not self.keys and not self.extra

    @property
    def tac(self) -> TacEntry | None:
        """Entry for the whole TAC of the page; None if only single identifiers are listed.

        Raises:
            ValueError: if the entry is cut short.
        """
        if self.extra[:1] != _TAC_TAG:
            return None
        content = self.extra[TAC_HEAD:TAC_BYTES]
        if self.extra[:TAC_HEAD] != _TAC_BEGINS or len(content) != TAC_BYTES - TAC_HEAD:
            raise ValueError(f"page {self.number} has a whole TAC that is cut short")
        return TacEntry(content[0], int.from_bytes(content[1:], "little", signed=True))

    @property
    def singles(self) -> "Page":
        """Same page without the entry for the whole TAC."""
        return self if self.extra[:1] != _TAC_TAG else self._replace(extra=self.extra[TAC_BYTES:])

    def digest(self) -> int:
        """Return the SHA-256 of page number, `keys` and `extra` as an integer; 0 for an empty page.

        The page number has 8 bytes in big-endian order.
        """
        if not self.keys and not self.extra:  # like `is_empty`, without a call for each of many pages
            return 0
        content = self.number.to_bytes(8, "big") + self.keys + self.extra
        return int.from_bytes(hashlib.sha256(content).digest(), "big")


def content_digest(pages: Iterable[Page]) -> str:
    """Return the content digest of a whole list: the sum of its pages' digests modulo 2^256, as 64 hexadecimal digits."""
    return digest_text(sum(map(Page.digest, pages)))


def amended_digest(digest: str, before: Iterable[Page], after: Iterable[Page]) -> str:
    """Return the content digest of a list after a change has replaced the pages `before` by the pages `after`."""
    removed = sum(map(Page.digest, before))
    added = sum(map(Page.digest, after))
    return digest_text(int(digest, 16) - removed + added)


def digest_text(total: int) -> str:
    """Format a sum of page digests as a content digest: 64 hexadecimal digits."""
    return f"{total % DIGEST_MODULUS:064x}"


EMPTY_DIGEST = digest_text(0)


class Sections(NamedTuple):
    """Sections of a page's field `extra`: reasons (R), expiries (U), IMSIs (S), dates (D) and sightings (F). A missing section is empty."""

    reasons: bytes = b""
    until: bytes = b""
    imsis: bytes = b""
    dates: bytes = b""
    sightings: bytes = b""

    def encode(self) -> bytes:
        """Encode the sections as the field `extra` of a page."""
        sections = ((tag, content) for tag, content in zip(_TAGS, self, strict=True) if content)
        return b"".join(tag + len(content).to_bytes(4, "little") + content for tag, content in sections)


def decode_sections(extra: bytes) -> Sections:
    """Decode a page's field `extra` to its sections: reasons (R), expiries (U), IMSIs (S), dates (D) and sightings (F).

    A section T (entry of the whole TAC) is skipped.

    Raises:
        ValueError: if a section is cut short.
    """
    if not extra:
        return NO_SECTIONS
    contents: dict[bytes, bytes] = {}
    at, size = 0, len(extra)
    while at < size:
        begin = at + 5
        end = begin + int.from_bytes(extra[at + 1 : begin], "little")
        tag = extra[at : at + 1]
        if end > size:
            raise ValueError(f"section {tag!r} of a page is cut short")
        contents[tag] = extra[begin:end]
        at = end
    return Sections(*(contents.get(tag, b"") for tag in _TAGS))


NO_SECTIONS = Sections()
