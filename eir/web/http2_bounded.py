"""h2's connection for a server, so that a client decides over none of its memory. Imports eir.web.http2_limits.

Left to itself h2 keeps a table of headers as large as the client allows, and searches all of it for each response; it keeps each setting
that a client names, known or not; and it remembers streams that are over.
"""

from collections.abc import Iterable
from struct import iter_unpack, pack
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings
from hpack import Encoder

from eir.web.http2_calm import SETTINGS
from eir.web.http2_limits import Http2Limits
from eir.web.http2_message import frame, stateless

ACK = 0x1
KNOWN = frozenset(int(code) for code in SettingCodes)
_HEADER_BYTES, _SETTING_BYTES = 9, 6
_TABLE_OF_NOTHING = b"\x20"
"""RFC 7541 6.3: the table of headers has the size 0 from now on."""


class _NoTable(Encoder):
    """Refers to no header that was sent before, whatever table the client allows."""

    _resized = False

    @property
    def header_table_size(self) -> int:
        """Always 0: the table that the client allows is not used."""
        return 0

    @header_table_size.setter
    def header_table_size(self, _allowed: int) -> None:
        self._resized = True

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:  # noqa: ARG002 - as the library has it
        """A header block. The first one after a change of the table says that no table is used (RFC 7541 4.2)."""
        begin, self._resized = _TABLE_OF_NOTHING if self._resized else b"", False
        return begin + stateless((name, value) for name, value, *_ in headers)


class ServerConnection(H2Connection):
    """h2's connection, which has said what it takes."""

    MAX_CLOSED_STREAMS = 512

    def __init__(self, limits: Http2Limits) -> None:
        super().__init__(H2Configuration(client_side=False, header_encoding=None))
        settings = {
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams_max, SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_list_bytes,
            SettingCodes.ENABLE_PUSH: 0, SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
        }  # fmt: skip
        self.local_settings = Settings(client=False, initial_values=settings)
        self.encoder = _NoTable()
        self.decoder.max_header_list_size = limits.header_list_bytes_max
        self.initiate_connection()


def known_settings(flags: int, stream_id: int, octets: bytes) -> bytes:
    """A SETTINGS frame without the settings that are not known, which are ignored (RFC 9113 6.5.2); a faulty frame stays as it is."""
    payload = octets[_HEADER_BYTES:]
    if flags & ACK or len(payload) % _SETTING_BYTES:
        return octets
    known = b"".join(pack(">HI", name, value) for name, value in iter_unpack(">HI", payload) if name in KNOWN)
    return frame(SETTINGS, flags, stream_id, known)
