"""Diameter application on a node: its commands, its AVPs, and the function that answers requests.

Also the base application: commands that every Diameter node answers, with their grammars (RFC 6733 5.3 to 5.5, 6.11).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from eir.errors import DiameterError
from eir.wire.diameter import dictionary as base
from eir.wire.diameter.avp import encode, encode_u32
from eir.wire.diameter.dictionary import AUTH_APPLICATION_ID, VENDOR_ID, VENDOR_SPECIFIC_APPLICATION_ID, Dictionary
from eir.wire.diameter.grammar import Grammar, read_grammar
from eir.wire.diameter.message import Reply, Request
from eir.wire.diameter.result import COMMAND_UNSUPPORTED
from eir.wire.peers.settings import Limits


class Command(NamedTuple):
    """Diameter command whose requests the node answers."""

    name: str
    """Name in counters."""
    request: Grammar
    session: bool = False
    """True if the command's answer begins with a Session-Id; without one in the request, an error uses the answer-message grammar (RFC 6733 7.2)."""
    error_avps: bytes = b""
    """AVPs that the command's grammar requires in an answer in addition to result and origin, even in an error."""


class Lane(Protocol):
    """Fast path (lane) of an application, which answers frequent requests of one connection without the general parser.

    The lane returns the same bytes as the general path, and updates the application's counters; the connection updates the
    node's counters. A message that the lane skips costs only the attempt.
    """

    command: str
    """Name of the command whose requests it answers."""

    def take(
        self, data: bytes | memoryview, position: int, messages_max: int, out: list[bytes]
    ) -> tuple[int, Mapping[str, int]]:
        """Answer buffered messages from offset `position` on, and append the answers to `out`. Stop at the first message that needs the general path.

        Returns:
            Position behind the last answered message, and number of answers by result.
        """

    def shed(self, data: bytes | memoryview, position: int, messages_max: int, out: list[bytes]) -> tuple[int, int]:
        """Answer the same messages as `take`, but with the overload answer, because a rate limit is reached.

        The answers are appended to `out`.

        Returns:
            Position behind the last answered message, and number of answers.
        """


class LaneTerms(NamedTuple):
    """Properties of a connection that its fast path (lane) needs: peer label, names, tolerated faults and limits."""

    label: str
    """Label of the peer."""
    origin: bytes
    """Origin-Host and Origin-Realm of the node, encoded."""
    hosts: Collection[bytes]
    realms: Collection[bytes]
    """Values that Destination-Host and Destination-Realm may have, in lower case."""
    lenient: Collection[str]
    """Faults that are tolerated from the peer (eir.wire.peers.settings.LENIENCES)."""
    limits: Limits
    overload: Reply
    """Answer above a limit of requests per second."""


LaneFactory = Callable[[LaneTerms], Lane]


def _answer_nothing(request: Request) -> Reply:
    raise DiameterError(COMMAND_UNSUPPORTED, "command", f"command {request.command}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Diameter application that a node offers (RFC 6733 2.4)."""

    id: int
    """Application-Id."""
    vendor: int = 0
    """Vendor-Id of the vendor that defined it; 0 for an application of the IETF, which has no Vendor-Specific-Application-Id."""
    commands: Mapping[int, Command]
    """Commands by command code."""
    dictionary: Dictionary
    """Known AVPs, including those of the base protocol."""
    answer: Callable[[Request], Reply] = _answer_nothing
    """Function that answers one request synchronously. It raises DiameterError for a fault of the request; any other exception becomes a 5012."""
    lane: LaneFactory | None = None
    """Factory of a lane; None: all requests take the general path."""
    observer: Callable[[Request, bytes], None] | None = None
    """Function that receives each request on the general path with its answer as sent, including errors; None: no function."""


def application_id_avp(application: Application) -> bytes:
    """Encode the Auth-Application-Id or Vendor-Specific-Application-Id of an application (RFC 6733 6.8, 6.11)."""
    own = encode_u32(AUTH_APPLICATION_ID, application.id)
    if not application.vendor:
        return own
    return encode(VENDOR_SPECIFIC_APPLICATION_ID, encode_u32(VENDOR_ID, application.vendor) + own)


APPLICATION_IDS = read_grammar(
    """
      { Vendor-Id }
      [ Auth-Application-Id ]
      [ Acct-Application-Id ]
    """,
    base.BASE_DICTIONARY,
    either=(base.AUTH_APPLICATION_ID, base.ACCT_APPLICATION_ID),
)
"""Grammar of a Vendor-Specific-Application-Id in an application's commands: exactly one of the two ids (RFC 6733 6.11)."""

CER = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
   1* { Host-IP-Address }
      { Vendor-Id }
      { Product-Name }
      [ Origin-State-Id ]
    * [ Supported-Vendor-Id ]
    * [ Auth-Application-Id ]
    * [ Inband-Security-Id ]
    * [ Acct-Application-Id ]
    * [ Vendor-Specific-Application-Id ]    ; not looked into: whether anything is common is all that matters here
      [ Firmware-Revision ]
    * [ AVP ]
    """,
    base.BASE_DICTIONARY,
)  # RFC 6733 5.3.1

DWR = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
      [ Origin-State-Id ]
    * [ AVP ]
    """,
    base.BASE_DICTIONARY,
)  # RFC 6733 5.5.1

DPR = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
      [ Disconnect-Cause ]    ; required by 5.4.1, but a peer that leaves goes, whatever it forgets to say
    * [ AVP ]
    """,
    base.BASE_DICTIONARY,
)  # RFC 6733 5.4.1

BASE_COMMANDS = {
    base.CAPABILITIES_EXCHANGE: Command("Capabilities-Exchange", CER),
    base.DEVICE_WATCHDOG: Command("Device-Watchdog", DWR),
    base.DISCONNECT_PEER: Command("Disconnect-Peer", DPR),
}
"""Commands of the base protocol, by command code."""
