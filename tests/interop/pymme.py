"""An MME on python-diameter, for the tests that need a client that no one here wrote."""

from contextlib import contextmanager

import python_diameter
from diameter.message.avp.grouped import TerminalInformation, VendorSpecificApplicationId
from diameter.message.commands.me_identity_check import MeIdentityCheckRequest
from diameter.message.constants import APP_3GPP_S13_S13, E_AUTH_SESSION_STATE_NO_STATE_MAINTAINED, VENDOR_TGPP
from diameter.node.application import Application
from simulated.patience import FACTOR
from simulated.wire import EIR, HOST, REALM

ANSWER_S = 30 * FACTOR


class Mme:
    """An MME on python-diameter."""

    def __init__(self, node, address, peer=EIR, peer_realm=REALM, realm=REALM):
        host, port = address
        self.realm = realm
        self.node = node
        self.peer = self.node.add_peer(
            f"aaa://{peer}:{port};transport=tcp", peer_realm, ip_addresses=[host], is_persistent=True
        )
        self.application = Application(APP_3GPP_S13_S13, is_auth_application=True)
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
def connected(*arguments, ready=True):
    """An MME; `ready`: wait until its peer has answered the CER by success."""
    with python_diameter.running(HOST, REALM, vendor_ids=[VENDOR_TGPP]) as node:
        mme = Mme(node, *arguments)
        node.start()
        if ready:
            mme.application.wait_for_ready(ANSWER_S)
        yield mme
