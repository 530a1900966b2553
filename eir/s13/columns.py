"""Many requests of one layout, one above the other: a table of bytes that is read and answered by columns.

What is done to a column at once costs each request next to nothing. Imports numpy and eir.device; knows neither policy nor lists.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from eir.device import KEY_DIGITS
from eir.diameter.message import HEADER_BYTES

_PLACES: Final = 10 ** np.arange(KEY_DIGITS - 1, -1, -1, dtype=np.uint64)
"""What the digits of a key count."""
_ZERO: Final = np.uint8(ord("0"))
DIGIT_MAX = 9

Rows = npt.NDArray[np.uint8]
"""Shape (requests, bytes of one)."""


class Columns:
    """Where the fields of requests of one layout are. All are given as stretches of a request's bytes.

    `free`: what may differ from request to request; `ids` and `session`: what an answer repeats; `imei` and `digits`: what is
    read, and what has to be decimal digits besides.
    """

    __slots__ = ("_constant", "_digits", "_ids", "_length", "_session")

    def __init__(self, length: int, free: Sequence[slice], *, ids: slice, session: slice, imei: slice, digits: Sequence[slice]) -> None:
        constant = np.full(length, 0xFF, np.uint8)
        for stretch in free:
            constant[stretch] = 0
        # Compared by words: a message's length is a multiple of 4 (RFC 6733 3).
        self._constant = constant.view(np.uint32)
        self._length = length
        self._ids = ids
        self._session = session
        self._digits = np.concatenate([np.arange(stretch.start, stretch.stop) for stretch in (imei, *digits)])

    def alike(self, data: bytes, position: int, count: int) -> tuple[Rows, npt.NDArray[np.uint64]]:
        """Of `count` requests at `position` those before the first one that differs, and the keys (eir.device) of their IMEIs."""
        rows = np.frombuffer(data, np.uint8, count * self._length, position).reshape(count, self._length)
        words = rows.view(np.uint32)
        digits = rows[:, self._digits] - _ZERO  # of bytes: what is below "0" becomes large
        differing = (words ^ words[0]) & self._constant
        if differing.any() or digits.max() > DIGIT_MAX:  # of all rows together, as nearly always none is strange
            strange = differing.any(axis=1) | (digits > DIGIT_MAX).any(axis=1)
            count = int(strange.argmax())
        return rows[:count], digits[:count, :KEY_DIGITS].astype(np.uint64) @ _PLACES

    def answers(self, rows: Rows, head: bytes, session_head: bytes, tail: bytes) -> bytes:
        """The answers to requests, of one size, one after another: `head`, identifiers, `session_head`, Session-Id, `tail`."""
        session_at = HEADER_BYTES + len(session_head)
        session_end = session_at + self._session.stop - self._session.start
        pattern = head.ljust(HEADER_BYTES) + session_head.ljust(session_end - HEADER_BYTES) + tail
        made = np.empty((len(rows), len(pattern)), np.uint8)
        made[:] = np.frombuffer(pattern, np.uint8)
        made[:, len(head) : HEADER_BYTES] = rows[:, self._ids]
        made[:, session_at:session_end] = rows[:, self._session]
        return made.tobytes()
