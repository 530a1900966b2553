"""Dates of entries. They are stored in separate pages, so that neither images in memory nor the content digest of a list depend on them.

A day is the number of days since 1970-01-01 (UTC) in two bytes, little-endian; 0 for none. The page of dates with number N belongs to
page N of the list. Its `keys` hold, instead of a bitmap:

    a seal (8 bytes) of the page to which the days belong; days of a page with another seal are unknown
    the day of the TAC entry, if the page has one
    the day of each single identifier, in order

Its `extra` is empty. A page without any day has no page of dates.
"""

import hashlib
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.lists.pages.pages import Page
from eir.lists.pages.roaring import Remainders, decode_keys

DAY_MAX = 0xFFFF
"""Placeholder for "no day" while pages are built; the day of a row is lower."""
SEAL_BYTES = 8
DAY_BYTES = 2

Days: TypeAlias = NDArray[np.uint16]


class PageDays(NamedTuple):
    """Day of each entry of one page; 0 for an entry without a day."""

    tac: int
    """Day of the TAC entry."""
    low: Remainders
    """Remainders of the single identifiers."""
    days: Days
    """Day of each single identifier."""


def _seal(page: Page) -> bytes:
    """Return the seal of a page: the first bytes of a digest over its entries, without their reasons and expiries."""
    tac = b"" if page.tac is None else b"T"
    return hashlib.sha256(page.keys + tac).digest()[:SEAL_BYTES]


def is_sealed(page: Page, dates: Page) -> bool:
    """Return True if a page of dates was made for the entries that a page has now."""
    return dates.keys[:SEAL_BYTES] == _seal(page)


def encode_days(days: Days) -> bytes:
    """Encode days for a page of dates, each in DAY_BYTES."""
    return days.astype("<u2", copy=False).tobytes()


def encode_page_days(page: Page, entries: PageDays) -> Page:
    """Build the page of dates for a page from the day of each entry. If no entry has a day, the page of dates is empty."""
    if not entries.tac and not entries.days.any():
        return Page(page.number, b"")
    tac = b"" if page.tac is None else entries.tac.to_bytes(DAY_BYTES, "little")
    return seal_page_days(page, tac + encode_days(entries.days))


def seal_page_days(page: Page, encoded: bytes) -> Page:
    """Build the page of dates for a page from the encoded days of all its entries."""
    return Page(page.number, _seal(page) + encoded)


def decode_page_days(page: Page, dates: Page | None) -> PageDays:
    """Return the day of each entry in a page from its page of dates; all days are 0 if `dates` is None or belongs to other entries."""
    low = np.frombuffer(decode_keys(page.keys).to_array(), np.uint32)
    tacs = int(page.tac is not None)
    days = np.zeros(tacs + len(low), np.uint16)
    if dates is not None and is_sealed(page, dates) and len(dates.keys) == SEAL_BYTES + days.nbytes:
        days = np.frombuffer(dates.keys, "<u2", offset=SEAL_BYTES)
    tac_day = int(days[0]) if tacs else 0
    return PageDays(tac_day, low, days[tacs:])
