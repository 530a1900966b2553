"""An MME on python-diameter, for the tests that need a client that no one here wrote."""

import logging
from contextlib import contextmanager

from diameter.message.avp.grouped import TerminalInformation, VendorSpecificApplicationId
from diameter.message.commands.me_identity_check import MeIdentityCheckRequest
from diameter.message.constants import APP_3GPP_S13_S13, E_AUTH_SESSION_STATE_NO_STATE_MAINTAINED, VENDOR_TGPP
from diameter.node import Node
from diameter.node.application import SimpleThreadingApplication
from simulated.patience import FACTOR
from simulated.wire import EIR, HOST, REALM

ANSWER_S = 30 * FACTOR


class Mme:
    """An MME on python-diameter."""

    def __init__(self, address, peer=EIR, peer_realm=REALM, realm=REALM):
        host, port = address
        self.realm = realm
        self.node = Node(HOST, REALM, vendor_ids=[VENDOR_TGPP])
        self.node.wakeup_interval = 1
        self.peer = self.node.add_peer(
            f"aaa://{peer}:{port};transport=tcp", peer_realm, ip_addresses=[host], is_persistent=True
        )
        self.application = SimpleThreadingApplication(APP_3GPP_S13_S13, is_auth_application=True)
        self.node.add_application(self.application, [self.peer], realms=[realm])

    def ask(self, imei, **more):
        request = MeIdentityCheckRequest()
        request.session_id = self.node.session_generator.next_id()
        request.vendor_specific_application_id = VendorSpecificApplicationId(
            vendor_id=VENDOR_TGPP, auth_application_id=APP_3GPP_S13_S13
        )
        request.auth_session_state = E_AUTH_SESSION_STATE_NO_STATE_MAINTAINED
        request.origin_host, request.origin_realm = HOST.encode(), REALM.encode()
        request.destination_realm = self.realm.encode()
        request.terminal_information = TerminalInformation(imei=imei, software_version="01")
        for name, value in more.items():
            setattr(request, name, value)
        answer = self.application.send_request(request, timeout=ANSWER_S)
        assert answer.session_id == request.session_id
        return answer


@contextmanager
def connected(*arguments, patience_s=ANSWER_S, **options):
    # Its own threads complain about what they do themselves at the end; what matters is asserted here.
    logging.getLogger("diameter").setLevel(logging.CRITICAL)
    mme = Mme(*arguments, **options)
    mme.node.start()
    try:
        mme.application.wait_for_ready(patience_s)
        yield mme
    finally:
        mme.node.stop(wait_timeout=2)
