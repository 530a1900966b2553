"""The dictionary: the known AVPs and their types.

A known AVP is never the reason for a 5001, whatever its M bit. The base protocol's stand here, for a reader to check against
RFC 6733 4.5; an application adds its own by a table of the same form.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from eir.wire.diameter.avp import M_FLAG, V_FLAG, encode, key_of


def _is_address(data: bytes) -> bool:
    # RFC 6733 4.3.1: address family and address; families other than IPv4 and IPv6 have lengths of their own.
    return len(data) > 2 and len(data) == {b"\0\x01": 6, b"\0\x02": 18}.get(data[:2], len(data))


class Type(NamedTuple):
    """A base or derived AVP format (RFC 6733 4.2, 4.3)."""

    only_bytes: int | None = None
    """Length of the data, where the format allows only one."""
    least_bytes: int = 0
    """Length of the zeros that stand for a value."""
    test: Callable[[bytes], object] | None = None
    """Says of data whether they are a value, where their length does not say it."""
    is_group: bool = False


# RFC 6733 4.3.1: an FQDN or a realm, so 255 octets at most (RFC 1035 2.3.4). Any printable ASCII is taken: underscores and
# the like are common.
_is_identity = re.compile(rb"[!-~]{1,255}").fullmatch
TYPES = {
    "octets": Type(), "utf8": Type(), "identity": Type(None, 1, _is_identity), "uri": Type(None, 1), "u32": Type(4, 4),
    "u64": Type(8, 8), "enum": Type(4, 4), "address": Type(None, 6, _is_address), "time": Type(4, 4),
    "group": Type(is_group=True),
}  # fmt: skip
"""AVP types, by their words in a table of AVPs."""


class Definition(NamedTuple):
    """One AVP."""

    name: str
    type: Type
    flags: int
    """Flags that we set when we send it, except V."""
    values: frozenset[int] | None
    """The values of an Enumerated AVP, where any other is to be answered by an error (RFC 6733 7.1.5, 5004)."""


class Dictionary:
    """The AVPs that are known, by key and by name."""

    __slots__ = ("avps", "groups", "keys")

    def __init__(self, avps: Mapping[int, Definition]) -> None:
        self.avps = avps
        self.keys = {definition.name: key for key, definition in avps.items()}
        self.groups = frozenset(key for key, definition in avps.items() if definition.type.is_group)

    def plus(self, *tables: Mapping[int, Definition]) -> "Dictionary":
        """A dictionary of these AVPs and those of further tables."""
        return Dictionary({key: definition for table in (self.avps, *tables) for key, definition in table.items()})

    def name(self, key: int) -> str:
        """An AVP as a person would call it."""
        definition = self.avps.get(key)
        return definition.name if definition else f"AVP {key & 0xFFFFFFFF} of vendor {key >> 32}"

    def example(self, key: int) -> bytes:
        """An example of a missing AVP: zeros of the least length of a value, a text's being 1 (RFC 6733 7.1.5, 5005).

        Of a group it has no member, which only its application can choose.
        """
        definition = self.avps[key]
        least = 0 if definition.type.is_group else max(1, definition.type.least_bytes)
        return encode(key, bytes(least), flags=definition.flags)

    def corrected(self, key: int, flags: int) -> bytes:
        """An AVP whose length was wrong, as a Failed-AVP holds it: its header, a payload of zeros, a length that fits both.

        RFC 6733 7.1.5 (5014): the least payload of its type; none for a group or an AVP without a definition.
        """
        definition = self.avps.get(key)
        payload = bytes(definition.type.least_bytes if definition else 0)
        if flags & V_FLAG and not key >> 32:
            # A header that was cut before its Vendor-Id keeps its V bit: the Vendor-Id is zero.
            return encode(key, bytes(4) + payload, flags=flags)
        return encode(key, payload, flags=flags & ~V_FLAG)


def read_avps(table: str, vendor: int = 0) -> dict[int, Definition]:
    """Definitions by key, from lines of the form `code name type [optional] [values]`.

    `optional`: we send it without the M bit. `values` and `code` are numbers or ranges (`1,4-6`); AVPs of several codes have
    no name of their own, but the line's name and their code.
    """
    read = {}
    for line in table.splitlines():
        match line.split():
            case [codes, name, word, *rest]:
                optional = rest[:1] == ["optional"]
                values = frozenset(_numbers(rest[-1])) if rest[optional:] else None
                flags = 0 if optional else M_FLAG
                for code in _numbers(codes):
                    own = name if codes.isdigit() else f"{name}-{code}"
                    read[key_of(code, vendor)] = Definition(own, TYPES[word], flags, values)
    return read


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


BASE_DICTIONARY = Dictionary(
    read_avps("""
1 User-Name utf8
25 Class octets
27 Session-Timeout u32
33 Proxy-State octets
44 Accounting-Session-Id octets
50 Acct-Multi-Session-Id utf8
55 Event-Timestamp time
85 Acct-Interim-Interval u32
257 Host-IP-Address address
258 Auth-Application-Id u32
259 Acct-Application-Id u32
260 Vendor-Specific-Application-Id group
261 Redirect-Host-Usage enum
262 Redirect-Max-Cache-Time u32
263 Session-Id utf8
264 Origin-Host identity
265 Supported-Vendor-Id u32
266 Vendor-Id u32
267 Firmware-Revision u32 optional
268 Result-Code u32
269 Product-Name utf8 optional
270 Session-Binding u32
271 Session-Server-Failover enum
272 Multi-Round-Time-Out u32
273 Disconnect-Cause enum
274 Auth-Request-Type enum
276 Auth-Grace-Period u32
277 Auth-Session-State enum 0-1
278 Origin-State-Id u32
279 Failed-AVP group
280 Proxy-Host identity
281 Error-Message utf8 optional
282 Route-Record identity
283 Destination-Realm identity
284 Proxy-Info group
285 Re-Auth-Request-Type enum
287 Accounting-Sub-Session-Id u64
291 Authorization-Lifetime u32
292 Redirect-Host uri
293 Destination-Host identity
294 Error-Reporting-Host identity optional
295 Termination-Cause enum
296 Origin-Realm identity
297 Experimental-Result group
298 Experimental-Result-Code u32
299 Inband-Security-Id u32
301 DRMP enum optional
480 Accounting-Record-Type enum
483 Accounting-Realtime-Required enum
485 Accounting-Record-Number u32
621 OC-Supported-Features group optional
622 OC-Feature-Vector u64 optional
623 OC-OLR group optional
624 OC-Sequence-Number u64 optional
625 OC-Validity-Duration u32 optional
626 OC-Report-Type enum optional
627 OC-Reduction-Percentage u32 optional
648 OC-Peer-Algo u64 optional
649 SourceID identity optional
650 Load group optional
651 Load-Type enum optional
652 Load-Value u64 optional
""")
)
"""RFC 6733 4.5, RFC 7683 (OC-*), RFC 7944 (DRMP), RFC 8581, RFC 8583 (Load)."""

BASE, RELAY = 0, 0xFFFFFFFF
"""Application ids (RFC 6733 2.4)."""
CAPABILITIES_EXCHANGE, DEVICE_WATCHDOG, DISCONNECT_PEER = 257, 280, 282
"""Command codes of the base protocol (RFC 6733 3.1)."""

_KEYS = BASE_DICTIONARY.keys
ACCT_APPLICATION_ID, AUTH_APPLICATION_ID = _KEYS["Acct-Application-Id"], _KEYS["Auth-Application-Id"]
AUTH_SESSION_STATE, SESSION_ID = _KEYS["Auth-Session-State"], _KEYS["Session-Id"]
DESTINATION_HOST, DESTINATION_REALM = _KEYS["Destination-Host"], _KEYS["Destination-Realm"]
DISCONNECT_CAUSE = _KEYS["Disconnect-Cause"]
DRMP = _KEYS["DRMP"]
ERROR_MESSAGE, FAILED_AVP = _KEYS["Error-Message"], _KEYS["Failed-AVP"]
EXPERIMENTAL_RESULT, EXPERIMENTAL_RESULT_CODE = _KEYS["Experimental-Result"], _KEYS["Experimental-Result-Code"]
FIRMWARE_REVISION, PRODUCT_NAME = _KEYS["Firmware-Revision"], _KEYS["Product-Name"]
HOST_IP_ADDRESS = _KEYS["Host-IP-Address"]
INBAND_SECURITY_ID = _KEYS["Inband-Security-Id"]
ORIGIN_HOST, ORIGIN_REALM, ORIGIN_STATE_ID = _KEYS["Origin-Host"], _KEYS["Origin-Realm"], _KEYS["Origin-State-Id"]
PROXY_INFO = _KEYS["Proxy-Info"]
REDIRECT_HOST, RESULT_CODE = _KEYS["Redirect-Host"], _KEYS["Result-Code"]
USER_NAME = _KEYS["User-Name"]
VENDOR_ID, SUPPORTED_VENDOR_ID = _KEYS["Vendor-Id"], _KEYS["Supported-Vendor-Id"]
VENDOR_SPECIFIC_APPLICATION_ID = _KEYS["Vendor-Specific-Application-Id"]
