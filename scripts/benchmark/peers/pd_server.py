"""pd_server.py PORT REALM: an S13 server on python-diameter that answers in the thread which reads, and has nothing else to do.

The documented way, SimpleThreadingApplication with a thread for each request, is half as fast; this is the package at its best.
"""

import logging
import signal
import sys

from diameter.message import constants
from diameter.message.commands import MeIdentityCheckRequest
from diameter.node import Node
from diameter.node.application import Application

MMES = 64


class Eir(Application):
    """Server that answers each check with WHITELISTED."""

    def handle_request(self, request: MeIdentityCheckRequest) -> None:
        """Answer one request."""
        answer = self.generate_answer(request, result_code=constants.E_RESULT_CODE_DIAMETER_SUCCESS)
        answer.auth_session_state = constants.E_AUTH_SESSION_STATE_NO_STATE_MAINTAINED
        answer.equipment_status = 0 if request.terminal_information.imei else 1
        self.send_answer(answer)


def main(port: int, realm: str) -> None:
    """Serve until SIGTERM."""
    logging.disable()
    node = Node(f"pd.{realm}", realm, ip_addresses=["127.0.0.1"], tcp_port=port, vendor_ids=[constants.VENDOR_TGPP])
    mmes = [node.add_peer(f"aaa://mme{number}.{realm}", realm) for number in range(1, MMES + 1)]
    node.add_application(Eir(constants.APP_3GPP_S13_S13, is_auth_application=True), mmes)
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # the threads that `start` makes leave them to this one
    node.start()
    signal.sigwait(ending)
    node.stop(wait_timeout=1, force=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
