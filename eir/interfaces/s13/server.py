"""S13 server: the Diameter node, the S13 service, and the fast paths (express lanes) of its connections."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from eir.checks.settings import Status
from eir.checks.trace import TraceFilter
from eir.interfaces.interface import Context, SharedSettings
from eir.interfaces.s13.application import s13_application
from eir.interfaces.s13.lane import COMPILED, ExpressLane, ExpressLanes
from eir.interfaces.s13.service import PROTOCOL, REPLIES, S13Service
from eir.wire.diameter.message import Reply
from eir.wire.diameter.node import Node
from eir.wire.diameter.serve import TOO_BUSY_REPLY


class S13Server(Node):
    """S13 server for MMEs and SGSNs."""

    def __init__(self, _: SharedSettings, context: Context) -> None:
        shared = context.shared
        self._service = S13Service(context.checker, shared.peers, context.tracer)
        self._lanes = ExpressLanes(context.checker, self._service.replies) if COMPILED else None
        """State of the express lanes with the mapped lists; None: no lane was compiled."""
        lane = partial(ExpressLane, self._lanes) if self._lanes else None
        super().__init__(
            shared.identity, shared.peers, shared.limits, s13_application(self._service, lane), counts=context.counts,
            report=context.report, dials=False, overload=_overload(shared.overload_answer), tls=context.tls, rates=context.rates, sctp=shared.sctp, protocol=PROTOCOL,
        )  # fmt: skip

    def apply(self, _: SharedSettings, context: Context) -> None:
        """Apply new settings to the S13 server, and close connections that the settings no longer permit."""
        shared = context.shared
        self._service.apply(shared.peers)
        overload = _overload(shared.overload_answer)
        self.reconfigure(
            shared.peers, shared.identity, shared.limits, overload=overload, tls=context.tls, sctp=shared.sctp
        )

    def renew(self) -> None:
        """Load the lists in force into the fast paths (express lanes) of the connections."""
        if self._lanes is not None:
            self._lanes.renew()

    def exclude_traced(self, trace_filter: TraceFilter | None) -> None:
        """Exclude checks that match the filter of a trace from the fast path (express lane). None: no trace runs."""
        if self._lanes is not None:
            self._lanes.exclude_traced(trace_filter)

    def counters(self) -> Mapping[str, Mapping[Any, float]]:
        """Return the counters of Diameter by metric name and label values."""
        self.count_retransmissions()
        counts = self.context.counts
        return {
            "eir_diameter_messages_total": counts.messages,
            "eir_diameter_answers_total": counts.answers,
            "eir_diameter_errors_total": {(reason,): count for reason, count in counts.errors.items()},
            "eir_diameter_drops_total": {(reason,): count for reason, count in counts.dropped.items()},
        }


def _overload(answer: Status | None) -> Reply:
    """Return the reply to ECRs above a rate limit: the configured status `answer`, or Result-Code 3004 without one."""
    return TOO_BUSY_REPLY if answer is None else REPLIES[answer]
