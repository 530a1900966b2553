"""Grammar of an ECR (TS 29.272 7.2.19). Each line that accepts more than the standard has a comment with the reason."""

from eir.interfaces.s13.dictionary import DICTIONARY, TERMINAL_INFORMATION
from eir.wire.diameter.application import APPLICATION_IDS
from eir.wire.diameter.dictionary import VENDOR_SPECIFIC_APPLICATION_ID
from eir.wire.diameter.grammar import read_grammar

TERMINAL_GRAMMAR = read_grammar(
    """
      [ IMEI ]
      [ 3GPP2-MEID ]
      [ Software-Version ]
    * [ AVP ]
    """,
    DICTIONARY,
)  # TS 29.272 7.3.3

# TS 29.272 7.2.19
ECR = read_grammar(
    """
      < Session-Id >
      [ DRMP ]
      [ Vendor-Specific-Application-Id ]
      { Auth-Session-State }
      { Origin-Host }
      { Origin-Realm }
      [ Destination-Host ]
      { Destination-Realm }
      [ Terminal-Information ]    ; required by 7.2.19; real clients leave it out, and the application decides
      [ User-Name ]
      [ Auth-Application-Id ]     ; these two are not in 7.2.19; base stacks add them
      [ Acct-Application-Id ]
    * [ AVP ]
    * [ Proxy-Info ]
    * [ Route-Record ]
    """,
    DICTIONARY,
    {VENDOR_SPECIFIC_APPLICATION_ID: APPLICATION_IDS, TERMINAL_INFORMATION: TERMINAL_GRAMMAR},
)
