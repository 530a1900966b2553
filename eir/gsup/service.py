"""CHECK-IMEI: a request becomes a question, and a verdict becomes ACK or NACK.

Translates and nothing else: what is answered about a device, eir.checks says. A phone whose MSC gets an error instead takes itself for
illegal until it is switched off, so there is no error here: where the policy wants one (`error`), and for a fault of ours, it is an ACK.
Synchronous from request to answer.
"""

from collections.abc import Iterable
from typing import Final

from eir.checks.checker import Checker
from eir.checks.question import Question
from eir.checks.settings import Asks, NoDevice, Status, answers_of
from eir.gsup.message import CheckImei
from eir.peers.requester import Requester

PROTOCOL: Final = "gsup"
"""Name of this protocol in metrics."""


class GsupService:
    """Answers CHECK-IMEIs by what the checker says."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._answers: dict[str, dict[Status, Status]] = {}
        self._unproven: frozenset[str] = frozenset()

    def configure(self, peers: Iterable[Asks], unproven: Iterable[str]) -> None:
        """Take over what some peers are answered instead of a status, and which of them, by label, ask before they know whose the SIM is."""
        self._answers, self._unproven = answers_of(peers), frozenset(unproven)

    def permits(self, asked: CheckImei, asks: Requester) -> bool:
        """True if the device may pass; `asks`: who asks."""
        verdict = self._checker.check(Question(
            imei=asked.imei, imsi=asked.subscriber, origin_host=asks.host, protocol=PROTOCOL, peer=asks.label,
            unproven=asks.label in self._unproven,
        ))  # fmt: skip
        if isinstance(verdict, NoDevice):
            return True
        status = verdict.status
        if asks.label in self._answers:
            status = self._answers[asks.label].get(status, status)
        return is_permitted(status)

    def permits_after_fault(self) -> bool:
        """True if a device passes that a fault of ours kept from a check, as one with a malformed identifier does."""
        verdict = self._checker.policy.unidentified[NoDevice.MALFORMED]
        return isinstance(verdict, NoDevice) or is_permitted(verdict.status)


def is_permitted(status: Status) -> bool:
    """True if a status is answered by an ACK; only a device on the black list gets a NACK."""
    return status is not Status.BLACKLISTED
