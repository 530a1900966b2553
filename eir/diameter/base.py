"""The base application: the commands that every Diameter node answers, by their grammars (RFC 6733 5.3 to 5.5, 6.11)."""

from eir.diameter import dictionary as base
from eir.diameter.application import Command
from eir.diameter.grammar import read_grammar

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
