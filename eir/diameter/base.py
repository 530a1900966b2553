"""The base application: the commands that every Diameter node answers, by their grammars (RFC 6733 5.3 to 5.5, 6.11)."""

from eir.diameter.application import Command
from eir.diameter.dictionary import (
    ACCT_APPLICATION_ID,
    AUTH_APPLICATION_ID,
    BASE_DICTIONARY,
    CAPABILITIES_EXCHANGE,
    DEVICE_WATCHDOG,
    DISCONNECT_PEER,
)
from eir.diameter.grammar import read_grammar

APPLICATION_IDS = read_grammar(
    """
      { Vendor-Id }
      [ Auth-Application-Id ]
      [ Acct-Application-Id ]
    """,
    BASE_DICTIONARY,
    either=(AUTH_APPLICATION_ID, ACCT_APPLICATION_ID),
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
    BASE_DICTIONARY,
)  # RFC 6733 5.3.1

DWR = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
      [ Origin-State-Id ]
    * [ AVP ]
    """,
    BASE_DICTIONARY,
)  # RFC 6733 5.5.1

DPR = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
      [ Disconnect-Cause ]    ; required by 5.4.1, but a peer that leaves goes, whatever it forgets to say
    * [ AVP ]
    """,
    BASE_DICTIONARY,
)  # RFC 6733 5.4.1

BASE_COMMANDS = {
    CAPABILITIES_EXCHANGE: Command("Capabilities-Exchange", CER),
    DEVICE_WATCHDOG: Command("Device-Watchdog", DWR),
    DISCONNECT_PEER: Command("Disconnect-Peer", DPR),
}
"""By command code."""
