"""S13 as an application of the Diameter node: id, vendor, command with its grammar, AVPs and answering function (TS 29.272 7.1, 7.2).

Each line of the grammar that accepts more than the standard has a comment with the reason.
"""

from dataclasses import replace

from eir.interfaces.s13 import dictionary as s13
from eir.interfaces.s13.service import S13Service
from eir.wire.diameter.application import APPLICATION_IDS, Application, Command, LaneFactory
from eir.wire.diameter.dictionary import VENDOR_SPECIFIC_APPLICATION_ID
from eir.wire.diameter.grammar import read_grammar

TERMINAL_GRAMMAR = read_grammar(
    """
      [ IMEI ]
      [ 3GPP2-MEID ]
      [ Software-Version ]
    * [ AVP ]
    """,
    s13.DICTIONARY,
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
    s13.DICTIONARY,
    {VENDOR_SPECIFIC_APPLICATION_ID: APPLICATION_IDS, s13.TERMINAL_INFORMATION: TERMINAL_GRAMMAR},
)

S13 = Application(
    id=s13.S13_APPLICATION, vendor=s13.VENDOR_3GPP, dictionary=s13.DICTIONARY,
    commands={s13.ME_IDENTITY_CHECK: Command(s13.ME_IDENTITY_CHECK_NAME, ECR, session=True, error_avps=s13.NO_STATE)},
)  # fmt: skip
"""S13 for a client, without an answering function."""


def s13_application(service: S13Service, lane: LaneFactory | None = None) -> Application:
    """Return the Diameter application S13 of a node. `service` answers the ECRs that the fast path (`lane`) leaves unanswered."""
    return replace(S13, answer=service.answer, lane=lane, observer=service.observe)
