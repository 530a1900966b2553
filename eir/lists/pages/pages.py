"""The page: the unit in which lists are stored, followed, proved and held in memory.

A page holds the identifiers of a list that share key // 10^6 (for a device: that share a TAC). Its `keys` are the
remainders as a 32-bit Roaring bitmap in the portable format, which other languages read too. `extra` holds what a row
said besides: tagged sections, each a tag of one byte, its length (4 bytes, little-endian) and its content.

    T  the TAC as a whole is an entry: the byte of its reason, then its until (8 bytes as in U); always 9 bytes
    R  reasons: for each key, in order, one byte that indexes `ListState.reasons`; a single byte if all keys share it
    U  until: for each key, in order, 8 bytes of Unix seconds, little-endian, 0 for "no end"; 8 bytes if all keys share it.
       In lists of pairs, for each pair, in the order of S
    S  subscribers (lists of pairs): for each key, in order, the number of its IMSIs (4 bytes), then all IMSI keys (8 bytes each)
    D  dates (lists of device types): for each key, in order, the day on which its TAC was allocated, in 8 bytes as in U; 0 for none;
       8 bytes if all keys share it

An entry is a single identifier or a whole TAC; a page has both side by side, and neither says anything of the other: its
`keys` are the identifiers that are listed on their own, and with T every identifier of the TAC is listed besides.

Imports nothing of ours; knows no store and no layout.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

PAGE_KEYS = 1_000_000
NUMBER_BITS = 37
"""Page numbers stay below 2^37 (eir.device: the highest key is below ODD_BASE + 2^55)."""
DIGEST_MODULUS = 1 << 256
_TAC_TAG, _TAGS = b"T", (b"R", b"U", b"S", b"D")
TAC_HEAD, TAC_BYTES = 5, 14
"""Tag and length of section T; all of it. It comes first, so that its presence shows in the first byte of `extra`."""
_TAC_BEGINS = _TAC_TAG + (TAC_BYTES - TAC_HEAD).to_bytes(4, "little")


class TacEntry(NamedTuple):
    """A whole TAC as an entry of a list: the byte of its reason, and Unix seconds at which it ends (0: it does not)."""

    reason: int
    until: int

    @property
    def extra(self) -> bytes:
        """Section T, with which `extra` of a page begins."""
        return _TAC_BEGINS + bytes((self.reason,)) + self.until.to_bytes(8, "little", signed=True)


class Page(NamedTuple):
    """One page of a list as it is stored; two equal pages are byte for byte equal."""

    number: int
    """key // 10^6 of every identifier in it."""
    keys: bytes
    """key % 10^6 of each, as a Roaring bitmap in the portable format, run-optimised; empty if none is listed on its own."""
    extra: bytes = b""
    """Tagged sections, in the order T, R, U, S, D; empty where rows gave an identifier and nothing else."""

    @property
    def gone(self) -> bool:
        """Nothing is listed under it: neither single identifiers nor the TAC, without which `extra` is empty too."""
        return not self.keys and not self.extra

    @property
    def tac(self) -> TacEntry | None:
        """The TAC as an entry of its own; None if it is not listed as a whole.

        Raises ValueError if the entry is cut short.
        """
        if self.extra[:1] != _TAC_TAG:
            return None
        content = self.extra[TAC_HEAD:TAC_BYTES]
        if self.extra[:TAC_HEAD] != _TAC_BEGINS or len(content) != TAC_BYTES - TAC_HEAD:
            raise ValueError(f"page {self.number} has a whole TAC that is cut short")
        return TacEntry(content[0], int.from_bytes(content[1:], "little", signed=True))

    @property
    def singles(self) -> "Page":
        """The page without its TAC: what is listed on its own."""
        return self if self.extra[:1] != _TAC_TAG else self._replace(extra=self.extra[TAC_BYTES:])

    def digest(self) -> int:
        """SHA-256 of the page number (8 bytes, big-endian), keys and extra, as a number; 0 for a page that is gone."""
        if not self.keys and not self.extra:  # as `gone`, which would cost a call for each of many pages
            return 0
        return int.from_bytes(hashlib.sha256(self.number.to_bytes(8, "big") + self.keys + self.extra).digest(), "big")


def content_digest(pages: Iterable[Page]) -> str:
    """The digest of a whole list: the sum modulo 2^256 of its pages' digests, as 64 hexadecimal digits."""
    return digest_text(sum(map(Page.digest, pages)))


def amended_digest(digest: str, before: Iterable[Page], after: Iterable[Page]) -> str:
    """The digest of a list in which the pages `before` were replaced by the pages `after`."""
    return digest_text(int(digest, 16) - sum(p.digest() for p in before) + sum(p.digest() for p in after))


def digest_text(total: int) -> str:
    """A sum of page digests in the form that states carry."""
    return f"{total % DIGEST_MODULUS:064x}"


EMPTY_DIGEST = digest_text(0)


class Sections(NamedTuple):
    """The parts of `extra` on single identifiers: the contents of R, U, S and D; a missing section is empty."""

    reasons: bytes = b""
    until: bytes = b""
    imsis: bytes = b""
    dates: bytes = b""

    def encode(self) -> bytes:
        """`extra` of these."""
        said = ((tag, content) for tag, content in zip(_TAGS, self, strict=True) if content)
        return b"".join(tag + len(content).to_bytes(4, "little") + content for tag, content in said)


def decode_sections(extra: bytes) -> Sections:
    """The sections of `extra` but for T. Raises ValueError if a section is cut short."""
    if not extra:
        return NO_SECTIONS
    found: dict[bytes, bytes] = {}
    at, size = 0, len(extra)
    while at < size:
        begin = at + 5
        end = begin + int.from_bytes(extra[at + 1 : begin], "little")
        tag = extra[at : at + 1]
        if end > size:
            raise ValueError(f"section {tag!r} of a page is cut short")
        found[tag] = extra[begin:end]
        at = end
    return Sections(*(found.get(tag, b"") for tag in _TAGS))


NO_SECTIONS = Sections()
