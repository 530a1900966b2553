"""One connection of an HTTP/2 server (RFC 9113), without I/O: parses received bytes and encodes responses.

h2 implements the protocol. This module splits the bytes into frames and enforces limits on memory and time, which h2 leaves to
its user. Nearly all requests are complete in one frame. They are answered without a stream of h2, for a tenth of the work; all
other frames go through h2. Time is an argument.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct, iter_unpack, pack
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import NoSuchStreamError, ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Encoder, HPACKError, OversizedHeaderListError

from eir.wire.peers.rate import Bucket
from eir.wire.web import http2_limits as floods
from eir.wire.web.hpack_lane import decoded
from eir.wire.web.http2_limits import SETTINGS, Http2Limits
from eir.wire.web.http2_message import (
    BODY_TOO_LARGE,
    END_HEADERS,
    END_STREAM,
    HEADERS_TOO_LARGE,
    Answer,
    Http2Request,
    Http2Response,
    Shape,
    Shapes,
    are_clean,
    frame,
    stateless,
)

ACK = 0x1
KNOWN = frozenset(int(code) for code in SettingCodes)
_HEADER_BYTES, _SETTING_BYTES = 9, 6
_TABLE_OF_NOTHING = b"\x20"
"""Change of the header table's size to 0 (RFC 7541 6.3)."""


class _NoTable(Encoder):
    """HPACK encoder that never uses a dynamic header table, even if the client allows one."""

    _resized = False

    @property
    def header_table_size(self) -> int:
        """Size of the header table, always 0. A size that the client allows is ignored."""
        return 0

    @header_table_size.setter
    def header_table_size(self, _allowed: int) -> None:
        self._resized = True

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:  # noqa: ARG002 - as the library has it
        """Encode a header block.

        The first block after a change of the client's table size sets the size to 0 (RFC 7541 4.2).
        """
        begin, self._resized = _TABLE_OF_NOTHING if self._resized else b"", False
        return begin + stateless((name, value) for name, value, *_ in headers)


class ServerConnection(H2Connection):
    """Connection of the library h2, with limits on the memory that the client's frames can occupy.

    By default h2 keeps a header table as large as the client allows and searches it for each response. It also stores unknown
    settings and closed streams.
    """

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
    """Return a SETTINGS frame without its unknown settings, which are ignored (RFC 9113 6.5.2).

    An invalid frame is returned unchanged.
    """
    payload = octets[_HEADER_BYTES:]
    if flags & ACK or len(payload) % _SETTING_BYTES:
        return octets
    known = b"".join(pack(">HI", name, value) for name, value in iter_unpack(">HI", payload) if name in KNOWN)
    return frame(SETTINGS, flags, stream_id, known)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP_1 = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) ")
NOT_HTTP_1 = b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 41\r\n\r\nHTTP/2 only, without an upgrade from 1.1.\n"
FRAME_BYTES_MAX = 16_384
"""Value of SETTINGS_MAX_FRAME_SIZE: its minimum."""
STREAM_ID_MAX = 2**31 - 1
PADDED, PRIORITY = 0x8, 0x20
CONTINUATIONS_MAX = 8
"""Maximum number of CONTINUATION frames of one header block."""
PATH_KEPT = 4096
"""Maximum length of the path that is kept of a request whose headers are too large."""
_HEADER = Struct(">HBBBL")
_DRAIN_PING = b"eirdrain"
_ALIVE_PING = b"eiralive"


@dataclass(slots=True)
class _Open:
    """Incomplete request whose stream the library h2 handles."""

    request: Http2Request
    since: float
    body_bytes: int = 0


class Http2Connection:
    """HTTP/2 connection of one client: protocol state, requests and responses.

    `over` is the reason why the connection ends, or empty. Send the bytes of `data_to_send` before closing it.
    """

    def __init__(self, answer: Answer, limits: Http2Limits, shapes: Shapes, now: float) -> None:
        self._answer = answer
        self._limits = limits
        self._shapes = shapes
        self._h2 = ServerConnection(limits)
        self._out: list[bytes] = []
        self._in = b""
        self._at = 0
        self._begun = False
        """True after the preface."""
        self._settled = False
        """True after the client's first SETTINGS frame."""
        self._resized = False
        """True if the client has changed the size of the header table: the next response must acknowledge it (RFC 7541 4.2)."""
        self._serving = False
        """True after the first request."""
        self._since = now
        """Time when the incomplete part began: preface, frame or header block."""
        self._heard = now
        self._pinged: float | None = None
        self._block: tuple[int, int, list[bytes]] | None = None
        """Stream, flags and parts of an incomplete header block."""
        self._highest = 0
        self._window = 65_535
        """Initial flow-control window of a stream for responses."""
        self._open: dict[int, _Open] = {}
        self._unsent: dict[int, tuple[bytes, float]] = {}
        """Bodies blocked by the client's flow-control window: (rest, start of the block) by stream."""
        self._reset: dict[int, None] = {}
        """Streams that the server has reset recently; frames that the client sent on them before are ignored."""
        self._learning: tuple[bytes, ...] | None = None
        """Header names of the request that h2 parses; a valid request makes them a known shape."""
        self._oversized = False
        """True if the request that h2 parses had more headers."""
        self._ready: Http2Response | None = None
        """Response to the request that h2 parses, if already computed."""
        self._control = Bucket(floods.CONTROL_A_SECOND, now, burst=floods.CONTROL_BURST)
        self._updates = Bucket(floods.UPDATES_A_SECOND, now, burst=floods.UPDATES_BURST)
        self._last_stream: int | None = None
        """Last stream that the server still answers, after the second GOAWAY of the drain."""
        self._draining: tuple[float, str] | None = None
        """Start time and reason of the drain."""
        self.over = ""
        self.leaving = False
        """True after a GOAWAY of the client."""
        self.more = False
        """True if complete frames wait for the next call of `work`."""
        self.requests = 0
        self.answers = 0

    def data_to_send(self) -> bytes:
        """Return the bytes that must be sent to the client, and clear the send buffer."""
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    @property
    def under_way(self) -> int:
        """Number of requests whose response is not completely sent."""
        return len(self._open) + len(self._unsent)

    @property
    def unread(self) -> int:
        """Number of received bytes that `work` has not processed."""
        return len(self._in) - self._at

    def receive(self, data: bytes, now: float) -> None:
        """Buffer received bytes until the next call of `work`."""
        if self._at == len(self._in):
            self._in, self._since = data, now
        else:
            self._in = self._in[self._at :] + data
        self._at = 0
        self._heard, self._pinged = now, None

    def work(self, now: float, enough: Callable[[], bool]) -> None:
        """Process buffered frames until `enough` returns True.

        `enough` is called after each frame; `more` is then True if complete frames are left.
        """
        self.more = False
        if not self._begun and not self._begin(now):
            return
        data, at, size = self._in, self._at, len(self._in)
        before = self.requests
        while size - at >= 9 and not self.over:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
            end = at + 9 + (high << 8 | low)
            if end - at - 9 > FRAME_BYTES_MAX:
                self._end("frame_size", ErrorCodes.FRAME_SIZE_ERROR)
                break
            if end > size:
                break
            if kind == floods.HEADERS and self._settled and self._block is None:
                self._headers_frame(stream_id & STREAM_ID_MAX, flags, data[at + 9 : end], now)
            else:
                self._other_frame(kind, flags, stream_id & STREAM_ID_MAX, data[at:end], now)
            at = end
            if enough() and size - at >= 9:
                self.more = True
                break
        if at != self._at and self._block is None:
            self._since = now
        self._in, self._at = (data, at) if at < size else (b"", 0)  # a silent client occupies no memory
        self._updates.fill(floods.UPDATES_A_REQUEST * (self.requests - before))
        self._finish()

    def leave(self, now: float, reason: str = "drained", *, at_once: bool = False) -> None:
        """Start an orderly close of the connection: answer pending requests, but accept no further requests (RFC 9113 6.8).

        Send a GOAWAY that permits all streams and a PING; after the PING's acknowledgement send a GOAWAY with the last stream.
        `reason`: value of `over` at the end. `at_once`: send only the GOAWAY with the last stream.
        """
        if self._draining is None:
            self._draining = now, reason
            if at_once:
                self._second_goaway()
                return
            self._goaway(STREAM_ID_MAX, ErrorCodes.NO_ERROR)
            self._out.append(frame(floods.PING, 0, 0, _DRAIN_PING))
            if not self._begun:
                self._second_goaway()

    def tick(self, now: float) -> None:
        """Enforce the time limits. The owner calls this about every 0.5 s."""
        limits = self._limits
        if self.over:
            return
        if not self._begun:
            if now - self._since > limits.preface_s:
                self._end("preface_timeout", ErrorCodes.NO_ERROR)
            return
        if self._is_amid and now - self._since > limits.frame_s:
            self._end("slow_frame", ErrorCodes.ENHANCE_YOUR_CALM)
        for stream_id, request in list(self._open.items()):
            if now - request.since <= limits.request_s:
                break
            self._abandon(stream_id, now, "slow_body")
        if any(now - since > limits.answer_s for _, since in self._unsent.values()):
            self._end("no_window", ErrorCodes.ENHANCE_YOUR_CALM)
        if self._draining is not None and self._last_stream is None and now - self._draining[0] > 1:
            self._second_goaway()
        self._end_if_idle(now)

    def _end_if_idle(self, now: float) -> None:
        """Send a PING to a client that has sent nothing for `idle_s`; if no answer arrives, end the connection.

        An idle libcurl does not answer.
        """
        limits = self._limits
        if self._pinged is not None and now - self._pinged > limits.ping_s:
            self.leave(now, "idle")
        elif self._pinged is None and now - self._heard > limits.idle_s:
            self._pinged = now
            self._out.append(frame(floods.PING, 0, 0, _ALIVE_PING))

    @property
    def _is_amid(self) -> bool:
        """True if the bytes received so far end in the middle of a frame or of a header block."""
        return self._block is not None or (self._at < len(self._in) and not self.more)

    # ---- frames ----

    def _begin(self, now: float) -> bool:
        """Parse the connection preface (RFC 9113 3.4); return whether it is complete."""
        begin = self._in[: len(PREFACE)]
        if begin == PREFACE:
            self._lib(PREFACE, now)  # sends our SETTINGS, which a client of HTTP/1.1 would not understand
            self._begun, self._at, self._since = True, len(PREFACE), now
        elif not PREFACE.startswith(begin):
            if HTTP_1.match(begin):
                self._out = [NOT_HTTP_1]
            self.over = "preface"
        return self._begun

    def _headers_frame(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        if flags & (PADDED | PRIORITY):
            padding = payload[0] if flags & PADDED and payload else 0
            begin = bool(flags & PADDED) + (5 if flags & PRIORITY else 0)
            if begin + padding > len(payload):
                self._end("padding", ErrorCodes.PROTOCOL_ERROR)
                return
            payload = payload[begin : len(payload) - padding]
        if flags & END_HEADERS:
            self._headers(stream_id, flags & END_STREAM, payload, now)
        else:
            self._block = stream_id, flags & END_STREAM, [payload]
            self._since = now

    def _other_frame(self, kind: int, flags: int, stream_id: int, octets: bytes, now: float) -> None:
        """Process a complete frame that is not a HEADERS frame; another method handles HEADERS."""
        if self._block is not None:
            self._continue(kind, flags, stream_id, octets, now)
            return
        if not self._settled:
            if kind != floods.SETTINGS:
                self._end("preface", ErrorCodes.PROTOCOL_ERROR)
                return
            self._settled = True
        if kind in {floods.WINDOW_UPDATE, floods.PRIORITY} or (kind == floods.DATA and len(octets) > 9):
            allowed = self._updates.try_spend(now)
        else:
            allowed = self._control.try_spend(now, floods.size_weight(len(octets)))
        if not allowed:
            self._end(floods.REASONS.get(kind, floods.UNKNOWN), ErrorCodes.ENHANCE_YOUR_CALM)
        elif kind == floods.GOAWAY:
            self.leaving = True
        elif kind == floods.SETTINGS:
            self._lib(known_settings(flags, stream_id, octets), now)
        elif kind == floods.RST_STREAM and not self._serving and stream_id and len(octets) == 13:
            pass  # h2 has no stream yet
        elif kind <= floods.CONTINUATION:
            self._lib(octets, now)

    def _continue(self, kind: int, flags: int, stream_id: int, octets: bytes, now: float) -> None:
        """Add a CONTINUATION frame to the incomplete header block.

        Any other frame ends the connection (RFC 9113 6.10).
        """
        if self._block is None:
            return
        begun, end_stream, parts = self._block
        if kind != floods.CONTINUATION or stream_id != begun:
            self._end("header_block", ErrorCodes.PROTOCOL_ERROR)
            return
        parts.append(octets[9:])
        if len(parts) > CONTINUATIONS_MAX or sum(map(len, parts)) > self._limits.header_list_bytes_max:
            self._end(floods.REASONS[floods.CONTINUATION], ErrorCodes.ENHANCE_YOUR_CALM)
        elif flags & END_HEADERS:
            self._block = None
            self._headers(begun, end_stream, b"".join(parts), now)

    def _headers(self, stream_id: int, end_stream: int, block: bytes, now: float) -> None:
        """Process a complete header block: of a new request, or of the trailers after a request's body."""
        try:
            headers = decoded(block, self._h2.decoder)
        except OversizedHeaderListError:
            self._end("header_list", ErrorCodes.ENHANCE_YOUR_CALM)
            return
        except (HPACKError, IndexError, TypeError, UnicodeDecodeError):
            self._end("compression", ErrorCodes.COMPRESSION_ERROR)
            return
        if (weight := floods.weight(len(block), len(headers))) and not self._control.try_spend(now, weight):
            self._end(floods.HEADER_FLOOD, ErrorCodes.ENHANCE_YOUR_CALM)
            return
        is_new = stream_id > self._highest and stream_id & 1
        if is_new and self._last_stream is not None and stream_id > self._last_stream:
            self._refuse(stream_id, now, ErrorCodes.REFUSED_STREAM)  # the client may retry elsewhere (RFC 9113 8.7)
            return
        names = tuple([name for name, _ in headers])
        if (
            is_new
            and end_stream
            and self._serving
            and not self._resized
            and not self._unsent
            and (shape := self._shapes.get(names)) is not None
        ):
            values = [value for _, value in headers]
            size = shape.size + sum(map(len, values))
            if (
                values[shape.method] == b"GET"
                and values[shape.path][:1] == b"/"
                and size <= self._limits.header_list_bytes
                and are_clean(values)
            ):
                self._usual(stream_id, values, shape, headers, now)
                return
        self._general(stream_id, end_stream, headers, names, now)

    def _usual(
        self, stream_id: int, values: list[bytes], shape: Shape, headers: Sequence[tuple[bytes, bytes]], now: float
    ) -> None:
        """Answer a complete request that has no body and only known header names. This fast path avoids the library h2.

        If the response's body exceeds the flow-control window, the response is sent by h2.
        """
        h2 = self._h2
        response = self._respond(
            Http2Request("GET", values[shape.path], {name: values[at] for name, at in shape.others})
        )
        room = len(response.body)
        if room > self._window or room > h2.outbound_flow_control_window:
            self._ready = response
            self._lib(frame(floods.HEADERS, END_HEADERS | END_STREAM, stream_id, stateless(headers)), now)
            self._ready = None
            return
        h2.outbound_flow_control_window -= room
        h2.highest_inbound_stream_id = self._highest = stream_id
        self._out.append(response.frames(stream_id))
        self.answers += 1

    def _general(
        self,
        stream_id: int,
        end_stream: int,
        headers: Sequence[tuple[bytes, bytes]],
        names: tuple[bytes, ...],
        now: float,
    ) -> None:
        """Process a decoded header block with the library h2, because the fast path for known header names cannot handle it.

        The block is encoded again without the header table, so that the decoder's table does not change twice.
        """
        if stream_id in self._reset:
            if not self._control.try_spend(now):
                self._end(floods.REASONS[floods.HEADERS], ErrorCodes.ENHANCE_YOUR_CALM)
            return
        is_new = stream_id > self._highest and stream_id & 1
        if is_new and self.under_way >= self._limits.streams_max:
            self._refuse(stream_id, now, ErrorCodes.REFUSED_STREAM)
            return
        fault = sum(len(name) + len(value) + 32 for name, value in headers) > self._limits.header_list_bytes
        if fault:
            pseudo = {b":method", b":path", b":scheme"}
            headers = [(name, value[:PATH_KEPT]) for name, value in headers if name in pseudo]
            headers.append((b":authority", b"x"))
            if not is_new:
                self._abandon(stream_id, now, "trailers")
                return
        elif is_new:
            self._learning = names
        self._oversized = fault
        self._lib(frame(floods.HEADERS, END_HEADERS | end_stream, stream_id, stateless(headers)), now)
        self._learning, self._oversized = None, False
        if fault and (opened := self._open.get(stream_id)) is not None:
            self._complete(stream_id, opened, now)

    # ---- through h2 ----

    def _lib(self, octets: bytes, now: float) -> None:
        try:
            events = self._h2.receive_data(octets)
            for event in events:
                self._event(event, now)
            if self._unsent:
                self._send_rest()
        except ProtocolError as e:
            self.over = self.over or f"protocol:{type(e).__name__}"
        self._out.append(self._h2.data_to_send())

    def _event(self, event: Event, now: float) -> None:
        match event:
            case RequestReceived():
                self._received(event.stream_id, event.headers, now)
            case StreamEnded() if (opened := self._open.get(event.stream_id)) is not None:
                self._complete(event.stream_id, opened, now)
            case DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                opened = self._open.get(event.stream_id)
                if opened is not None:
                    opened.body_bytes += len(event.data)
                    if opened.body_bytes > self._limits.body_bytes:
                        opened.request = opened.request._replace(fault=BODY_TOO_LARGE)
                        self._complete(event.stream_id, opened, now)
            case StreamReset():
                self._open.pop(event.stream_id, None)
                self._unsent.pop(event.stream_id, None)
            case RemoteSettingsChanged() | WindowUpdated():
                if (
                    isinstance(event, RemoteSettingsChanged)
                    and SettingCodes.HEADER_TABLE_SIZE in event.changed_settings
                ):
                    self._resized = True
                self._window = self._h2.remote_settings.initial_window_size
            case PingAckReceived() if event.ping_data == _DRAIN_PING and self._draining is not None:
                self._second_goaway()
            case _:
                pass

    def _received(self, stream_id: int, fields: Sequence[tuple[bytes, bytes]], now: float) -> None:
        self._serving, self._highest = True, stream_id
        if self._learning is not None:
            self._shapes.learn(self._learning)
        method, path = "", b""
        headers: dict[bytes, bytes] = {}
        for name, value in fields:
            if name == b":method":
                method = value.decode("latin-1")
            elif name == b":path":
                path = value
            elif not name.startswith(b":"):
                headers[name] = headers[name] + b", " + value if name in headers else value
        self._open[stream_id] = _Open(
            Http2Request(method, path, headers, HEADERS_TOO_LARGE if self._oversized else None), now
        )

    def _complete(self, stream_id: int, opened: _Open, now: float) -> None:
        """Answer a request that is complete, or reject a request that is too large."""
        del self._open[stream_id]
        response, self._ready = self._ready, None
        if response is None:
            response = self._respond(opened.request)
        # RFC 9110 9.3.2: the response to HEAD has the content-length of the body that it omits.
        body = b"" if opened.request.method == "HEAD" else response.body
        self._h2.send_headers(stream_id, list(response.all_headers), end_stream=not body)
        self._resized = False
        self.answers += 1
        if body:
            self._unsent[stream_id] = body, now
            self._send_rest()
        if opened.request.fault:
            self._cut_off(stream_id, ErrorCodes.NO_ERROR)

    def _respond(self, request: Http2Request) -> Http2Response:
        self.requests += 1
        return self._answer(request)

    def _send_rest(self) -> None:
        """Send as much of the unsent response bodies as the client's flow-control windows allow."""
        for stream_id, (rest, since) in list(self._unsent.items()):
            try:
                room = min(self._h2.local_flow_control_window(stream_id), FRAME_BYTES_MAX)
            except (NoSuchStreamError, ProtocolError):
                del self._unsent[stream_id]
                continue
            if room >= len(rest):
                self._h2.send_data(stream_id, rest, end_stream=True)
                del self._unsent[stream_id]
            elif room > 0:
                self._h2.send_data(stream_id, rest[:room])
                self._unsent[stream_id] = rest[room:], since

    def _refuse(self, stream_id: int, now: float, code: ErrorCodes) -> None:
        """Reject a new request: reset its stream with this error code, without the library h2."""
        self._h2.highest_inbound_stream_id = self._highest = stream_id
        self._remember(stream_id)
        self._out.append(frame(floods.RST_STREAM, 0, stream_id, int(code).to_bytes(4)))
        if not self._control.try_spend(now):
            self._end(floods.REASONS[floods.HEADERS], ErrorCodes.ENHANCE_YOUR_CALM)

    def _abandon(self, stream_id: int, now: float, reason: str) -> None:
        """Reset the stream of a request that is too slow or too large.

        The connection ends after too many resets.
        """
        self._open.pop(stream_id, None)
        self._cut_off(stream_id, ErrorCodes.ENHANCE_YOUR_CALM)
        if not self._control.try_spend(now, 10):
            self._end(reason, ErrorCodes.ENHANCE_YOUR_CALM)

    def _cut_off(self, stream_id: int, code: ErrorCodes) -> None:
        self._remember(stream_id)
        with suppress(NoSuchStreamError, ProtocolError):  # the stream is closed on both sides
            self._h2.reset_stream(stream_id, code)
        self._out.append(self._h2.data_to_send())

    def _remember(self, stream_id: int) -> None:
        self._reset[stream_id] = None
        if len(self._reset) > self._limits.streams_max:
            del self._reset[next(iter(self._reset))]

    # ---- the end ----

    def _second_goaway(self) -> None:
        if self._last_stream is None:
            self._last_stream = self._highest
            self._goaway(self._last_stream, ErrorCodes.NO_ERROR)
            self._finish()

    def _goaway(self, last: int, code: ErrorCodes) -> None:
        self._out.append(frame(floods.GOAWAY, 0, 0, last.to_bytes(4) + int(code).to_bytes(4)))

    def _finish(self) -> None:
        """Set `over` if all requests are answered, and either the drain is complete or the client has sent a GOAWAY."""
        if not self.over and not self.under_way and not self.more:
            if self._last_stream is not None and self._draining is not None:
                self.over = self._draining[1]
            elif self.leaving and self._at == len(self._in):
                self.over = "left"

    def _end(self, reason: str, code: ErrorCodes) -> None:
        """End the connection with a GOAWAY, because the client has violated the protocol or a limit."""
        if not self.over:
            self.over = reason
            self._goaway(self._highest, code)
