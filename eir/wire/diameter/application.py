"""A Diameter application, for the node that it is handed to: its commands, its AVPs, and the function that answers.

The base application is one, too: the commands that every Diameter node answers, by their grammars (RFC 6733 5.3 to 5.5, 6.11).
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
    """A command whose requests the node answers."""

    name: str
    """Its name in counters."""
    request: Grammar
    session: bool = False
    """Its answer begins with a Session-Id, so that without one only the answer-message grammar is left (RFC 6733 7.2)."""
    error_avps: bytes = b""
    """AVPs that its own grammar requires in an answer besides result and origin, even if that answer is an error."""


class Lane(Protocol):
    """A shortcut that an application may have for the requests of one connection.

    Whatever it takes, it answers as the general path would, to the byte; it keeps the application's own counters, and the
    connection keeps the node's. What it does not take costs that message alone.
    """

    command: str
    """Name of the command whose requests it takes."""

    def take(
        self, data: bytes | memoryview, position: int, messages_max: int, out: list[bytes]
    ) -> tuple[int, Mapping[str, int]]:
        """Answer the messages at `position`, up to the first that is not for the lane; append the answers to `out`.

        Returns the position behind the last one answered, and how many answers of each result there were.
        """

    def shed(self, data: bytes | memoryview, position: int, messages_max: int, out: list[bytes]) -> tuple[int, int]:
        """Answer what `take` would, but with the overload answer only.

        Returns the position behind it, and the number of answers.
        """


class LaneTerms(NamedTuple):
    """The facts that a lane needs about its connection."""

    label: str
    """The peer's label."""
    origin: bytes
    """Our Origin-Host and Origin-Realm, encoded."""
    hosts: Collection[bytes]
    realms: Collection[bytes]
    """The names that a Destination-Host or a Destination-Realm may have, in lower case."""
    lenient: Collection[str]
    """Faults that the peer is forgiven (eir.wire.peers.settings.LENIENCES)."""
    limits: Limits
    overload: Reply
    """The answer past a limit on requests a second."""


LaneFactory = Callable[[LaneTerms], Lane]


def _answer_nothing(request: Request) -> Reply:
    raise DiameterError(COMMAND_UNSUPPORTED, "command", f"command {request.command}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """One application (RFC 6733 2.4)."""

    id: int
    """Application-Id."""
    vendor: int = 0
    """Vendor-Id of who defined it; 0 for one of the IETF's, which has no Vendor-Specific-Application-Id."""
    commands: Mapping[int, Command]
    """The commands, by command code."""
    dictionary: Dictionary
    """The AVPs that are known, those of the base protocol included."""
    answer: Callable[[Request], Reply] = _answer_nothing
    """Answers one request, synchronously. Raises DiameterError for a fault of the request; anything else becomes a 5012."""
    lane: LaneFactory | None = None
    """None: all requests take the general path."""
    told: Callable[[Request, bytes], None] | None = None
    """A function that is told each request on the general path, with its answer as sent, also if it is an error; None:
    nobody."""


def application_id_avp(application: Application) -> bytes:
    """The AVP that says what application is meant, encoded (RFC 6733 6.8, 6.11)."""
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
"""The inside of a Vendor-Specific-Application-Id in an application's commands: exactly one of the two ids (RFC 6733 6.11)."""

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
"""The commands of the base protocol, by command code."""
