"""Dictionary of known AVPs and their types.

A known AVP never causes a 5001, regardless of its M bit. The AVPs of the base protocol are here, for comparison with RFC 6733
4.5; an application adds its own AVPs by a table of the same form.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from eir.wire.diameter.avp import M_FLAG, V_FLAG, encode, key_of


def _is_address(data: bytes) -> bool:
    # RFC 6733 4.3.1: address family and address; families other than IPv4 and IPv6 have other lengths.
    return len(data) > 2 and len(data) == {b"\0\x01": 6, b"\0\x02": 18}.get(data[:2], len(data))


class Type(NamedTuple):
    """Basic or derived AVP format (RFC 6733 4.2, 4.3)."""

    only_bytes: int | None = None
    """Length of the data, if the format permits only one."""
    least_bytes: int = 0
    """Number of zero bytes in an example of the format."""
    test: Callable[[bytes], object] | None = None
    """Function that returns whether data are a valid value, if the length does not decide."""
    is_group: bool = False


# RFC 6733 4.3.1: FQDN or realm, so at most 255 octets (RFC 1035 2.3.4). Any printable ASCII is accepted, because underscores
# and the like are common.
_is_identity = re.compile(rb"[!-~]{1,255}").fullmatch
TYPES = {
    "octets": Type(), "utf8": Type(), "identity": Type(None, 1, _is_identity), "uri": Type(None, 1), "u32": Type(4, 4),
    "u64": Type(8, 8), "enum": Type(4, 4), "address": Type(None, 6, _is_address), "time": Type(4, 4),
    "group": Type(is_group=True),
}  # fmt: skip
"""AVP types, by their words in a table of AVPs."""


class Definition(NamedTuple):
    """Definition of one AVP: name, type, flags and valid values."""

    name: str
    type: Type
    flags: int
    """Flags that the node sets when it sends the AVP, without V."""
    values: frozenset[int] | None
    """Valid values of an Enumerated AVP, if other values must be answered with an error (RFC 6733 7.1.5, 5004)."""


class Dictionary:
    """Known AVPs, by key and by name."""

    __slots__ = ("avps", "groups", "keys")

    def __init__(self, avps: Mapping[int, Definition]) -> None:
        self.avps = avps
        self.keys = {definition.name: key for key, definition in avps.items()}
        self.groups = frozenset(key for key, definition in avps.items() if definition.type.is_group)

    def plus(self, *tables: Mapping[int, Definition]) -> "Dictionary":
        """Return a new dictionary with the AVPs of this dictionary and of `tables`."""
        return Dictionary({key: definition for table in (self.avps, *tables) for key, definition in table.items()})

    def name(self, key: int) -> str:
        """Return the name of an AVP for messages and logs; for an unknown AVP, its code and vendor."""
        definition = self.avps.get(key)
        return definition.name if definition else f"AVP {key & 0xFFFFFFFF} of vendor {key >> 32}"

    def example(self, key: int) -> bytes:
        """Encode an example of a missing AVP for a Failed-AVP: the minimum number of zero bytes (RFC 6733 7.1.5, 5005).

        An example of a group has no members, because only the application can choose them.
        """
        definition = self.avps[key]
        least = 0 if definition.type.is_group else max(1, definition.type.least_bytes)
        return encode(key, bytes(least), flags=definition.flags)

    def corrected(self, key: int, flags: int) -> bytes:
        """Encode a Failed-AVP's example for an AVP of wrong length: the AVP's code, flags and vendor, a correct length, and zeros as data.

        RFC 6733 7.1.5 (5014): minimum payload of its type; empty for a group or an AVP without a definition.
        """
        definition = self.avps.get(key)
        payload = bytes(definition.type.least_bytes if definition else 0)
        if flags & V_FLAG and not key >> 32:
            # A header that ends before its Vendor-Id keeps its V bit, with the Vendor-Id 0.
            return encode(key, bytes(4) + payload, flags=flags)
        return encode(key, payload, flags=flags & ~V_FLAG)


def read_avps(table: str, vendor: int = 0) -> dict[int, Definition]:
    """Parse definitions from lines of the form `code name type [optional] [values]`; return them by key.

    `optional`: the node sends the AVP without the M bit. `values` and `code` are numbers or ranges (`1,4-6`). If a line has
    several codes, the name of each AVP is the line's name and the code.
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
