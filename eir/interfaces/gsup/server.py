"""GSUP server of the answering process: converts CHECK-IMEI to ACK or NACK, identifies clients, and applies limits and counters.

eir.checks decides the verdict. A phone whose MSC receives an error considers itself illegal until it is switched off, so GSUP
has no error answer: it is an ACK if the policy requires an error (`error`), and after a fault of this program. Synchronous from
request to answer.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from eir.checks.checker import Checker
from eir.checks.question import Question
from eir.checks.settings import NoDevice, PeerAnswers, Status, answers_by_peer
from eir.interfaces.gsup.hlr import HlrState
from eir.interfaces.gsup.link import GsupConnection
from eir.interfaces.gsup.message import CheckImei, read_check_imei
from eir.interfaces.gsup.settings import HLR_AWAY, GsupSettings
from eir.interfaces.interface import Context
from eir.schema import DETAILS
from eir.wire.peers.server import DISABLED, SOURCE, UNKNOWN_PEER, Server
from eir.wire.peers.settings import PeerSettings, Requester, is_from

if TYPE_CHECKING:
    from eir.wire.transport.endpoint import Endpoint

PROTOCOL: Final = "gsup"
"""Name of this protocol in metrics."""


class GsupService:
    """Service that decides each CHECK-IMEI by the status that the policy (Checker) gives to the device."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._answers: dict[str, dict[Status, Status]] = {}
        self._unproven: frozenset[str] = frozenset()

    def configure(self, peers: Iterable[PeerAnswers], unproven: Iterable[str]) -> None:
        """Apply settings of peers: replacements of the policy's statuses, and labels of peers that check devices before SIM authentication.

        `peers`: peers with their replacements (`answers`). `unproven`: labels of peers that send a check before they authenticate
        the SIM.
        """
        self._answers, self._unproven = answers_by_peer(peers), frozenset(unproven)

    def permits(self, asked: CheckImei, asks: Requester) -> bool:
        """Return true if the policy permits the device of a CHECK-IMEI to attach. `asks`: sender of the request."""
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
        """Return true if a check receives an ACK after an internal error. The policy's answer to a malformed identifier decides."""
        verdict = self._checker.policy.unidentified[NoDevice.MALFORMED]
        return isinstance(verdict, NoDevice) or is_permitted(verdict.status)


def is_permitted(status: Status) -> bool:
    """Return true if a status is answered with an ACK. Only `blacklisted` is answered with a NACK."""
    return status is not Status.BLACKLISTED


ACK, NACK, NOBODY = "ack", "nack", "none"
"""Names of answers in metrics; NOBODY: the request has no IMSI, so that no answer is possible."""


class GsupServer(Server[GsupConnection]):
    """Server for GSUP clients, each with its own connection to the HLR."""

    def __init__(self, settings: GsupSettings, context: Context) -> None:
        super().__init__(PROTOCOL, counts=context.counts, rates=context.rates, report=context.report)
        self._service = GsupService(context.checker)
        self.answers: Counter[tuple[str, str]] = Counter()
        """Answers by peer label and ACK, NACK or NOBODY."""
        self.through: Counter[tuple[str, str]] = Counter()
        """Forwarded messages by peer label and direction (`out` to the HLR, `in` from it)."""
        self.kept: Counter[tuple[str, str]] = Counter()
        """Messages that were not forwarded to the HLR, by peer label and reason."""
        self._away: dict[str, tuple[float, str]] = {}
        """Time and reason of the loss of the HLR, by label of its clients; each has been logged."""
        self.silent_hlrs: set[Endpoint] = set()
        """HLRs that were lost by silence and have sent nothing since."""
        self.hlr: str | None = None
        self.store = False
        self.apply(settings, context)

    def apply(self, settings: GsupSettings, context: Context) -> None:
        """Apply new settings to the GSUP server, and close connections of clients that the settings no longer permit."""
        peers, overload = context.shared.peers, context.shared.overload_answer
        self._overloaded = overload is None or is_permitted(overload)
        self._service.configure(peers, [peer.label for peer in peers if peer.early])
        elsewhere, self.hlr, self.store = settings.hlr != self.hlr, settings.hlr, settings.store
        self.use(peers, context.shared.limits)
        for link in list(self.links.values()) if elsewhere else ():
            link.renew_hlr()

    # server.Server

    def link(self) -> GsupConnection:
        """Create the protocol object for a new connection."""
        return GsupConnection(self, self.loop)

    def who(self, link: GsupConnection) -> tuple[PeerSettings, Requester] | None:
        """Identify a client by its address and name: return its entry in the peer table, and the sender of its requests (Requester).

        GSUP has no realm. Before the client has given its name, an entry for the address without a name is preferred to one
        with a name.
        """
        matching = [settings for settings in self.peers if is_from(settings, link.source) and not settings.is_titled]
        if link.identity is None:
            entry = next(iter(sorted(matching, key=lambda settings: settings.host is not None)), None)
        else:
            entry = next(
                (
                    settings
                    for settings in matching
                    if settings.host is None or settings.host.lower() == link.name.lower()
                ),
                None,
            )
        return None if entry is None else (entry, Requester(entry.label, link.name))

    def counters(self) -> Mapping[str, Mapping[Any, float]]:
        """Return the counters of GSUP by metric name and label values."""
        return {
            "eir_gsup_answers_total": self.answers, "eir_gsup_passed_total": self.through, "eir_gsup_not_passed_total": self.kept,
            "eir_gsup_errors_total": {(reason,): count for reason, count in self.errors.items()},
        }  # fmt: skip

    def gauges(self) -> Mapping[str, Mapping[Any, float]]:
        """Return the gauges of HLR connections by peer label: 1 if the HLR is connected for all clients of the peer, else 0."""
        up: dict[tuple[str], float] = {}
        for link in self.links.values():
            if link.has_hlr is not None:
                label = (link.requester.label,)
                up[label] = min(up.get(label, 1.0), float(link.has_hlr))
        return {
            "eir_gsup_hlr_up": up,
            DETAILS: {("EirHlrAway", label, detail): 1.0 for label, (_, detail) in self._away.items()},
        }

    def standing(self, link: GsupConnection) -> Mapping[str, Any]:
        """Return the GSUP-specific fields of a connection's row in `eir peers`, with the reason if its HLR is not connected."""
        label = link.requester.label
        if link.has_hlr is not False or label not in self._away:
            return super().standing(link)
        away_at, detail = self._away[label]
        return {
            **super().standing(link),
            "last_error": HLR_AWAY.format(label, detail),
            "last_error_at": max(away_at, link.since),
        }

    def _doubt(self, newest: GsupConnection) -> None:
        """Send a PING to every other client with the name of `newest`, and close the connection of a client that does not answer.

        An HLR keeps only one connection per name, and must not keep that of a dead client.
        """
        for link in self.links.values():
            if link is not newest and link.name.lower() == newest.name.lower():
                link.doubt()

    # link.Owner

    def named(self, link: GsupConnection) -> bool:
        """Identify a client that has sent its name; return true if the client may stay connected."""
        refusal = self.identify(link)
        if refusal is None:
            if link.name:
                self._doubt(link)
            return True
        if refusal == SOURCE:
            refusal = UNKNOWN_PEER
        setting = None if refusal == DISABLED else "peers: host, or an entry without one"
        self.refused(refusal, address=link.address, host=link.name, setting=setting)
        return False

    def permits(self, link: GsupConnection, frame: bytes) -> tuple[bytes, bool] | None:
        """Decide a CHECK-IMEI by rate limits and policy; return its IMSI, and whether the device may attach.

        If the request has no IMSI, no answer is possible, and None is returned.
        """
        label = link.requester.label
        asked = read_check_imei(frame)
        if asked.imsi is None:
            self.answers[label, NOBODY] += 1
            return None
        try:
            if link.rates and self.past_limit(label, link.rates):
                return asked.imsi, self._overloaded
            return asked.imsi, self._service.permits(asked, link.requester)
        except Exception as e:  # noqa: BLE001 - the client receives an answer, and the connection stays open
            self.failed(e, label)
            return asked.imsi, self._service.permits_after_fault()

    def decided(self, link: GsupConnection, *, permitted: bool, by_hlr: bool = False) -> None:
        """Count the answer to a CHECK-IMEI. If the HLR rejected the device, log this rejection. `by_hlr`: the HLR has decided."""
        self.answers[link.requester.label, ACK if permitted else NACK] += 1
        if by_hlr and not permitted:
            self.report("hlr_refused", peer=link.requester.label, protocol=PROTOCOL)

    def passed(self, link: GsupConnection, direction: str, count: int) -> None:
        """Count forwarded messages. `direction`: `out` (to the HLR) or `in` (from the HLR)."""
        self.through[link.requester.label, direction] += count

    def not_passed(self, link: GsupConnection, count: int, reason: str) -> None:
        """Count messages that could not be forwarded to the HLR, by reason."""
        self.kept[link.requester.label, reason] += count

    def hlr_is(self, link: GsupConnection, state: HlrState, detail: str) -> None:
        """Log that a client's HLR is lost or connected again."""
        label = link.requester.label
        if state is not HlrState.READY and label not in self._away:
            self._away[label] = time.time(), detail
            self.report("hlr_away", peer=label, protocol=PROTOCOL, level="warning", address=self.hlr, detail=detail)
        elif state is HlrState.READY and label in self._away:
            del self._away[label]
            self.report("hlr_back", peer=label, protocol=PROTOCOL, address=self.hlr)
