"""SIGTRAN server of the answering process: connections to gateways and from MSCs.

It identifies the senders of requests, applies limits, counts, and drains. The listeners are in the manager; `serve` receives
an accepted connection.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eir.checks.settings import answers_by_peer
from eir.interfaces.interface import Context
from eir.interfaces.map.link import CARRIED, SigtranConnection
from eir.interfaces.map.service import PROTOCOL, MapReply, MapService
from eir.interfaces.map.settings import SSN_EIR, GatewaySettings, Ss7Settings
from eir.wire.peers.rate import Limit
from eir.wire.peers.server import DISABLED, DRAINING, ENDED, Server
from eir.wire.peers.settings import PeerSettings, Requester, is_from
from eir.wire.peers.status import PeerStatus
from eir.wire.ss7 import m3ua, sccp
from eir.wire.ss7.asp import Association, AssociationEvent, AssociationState
from eir.wire.ss7.m3ua import Transfer
from eir.wire.ss7.sccp import PartyAddress, ReturnCause, SccpFault, point_code, point_code_text
from eir.wire.transport import begin
from eir.wire.transport.endpoint import endpoint
from eir.wire.transport.stream import fault_text

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S, RECONNECT_MAX_S = 1.0, 30.0
"""First pause in seconds before the node connects to a gateway again, and the maximum to which the pause doubles."""
ASKERS_MAX = 4096
"""Maximum number of calling addresses whose sender is cached; beyond it the cache is cleared."""
_WARNED = frozenset({"m3ua_error", "path_down"})


class Asker(NamedTuple):
    """Sender of a MAP request: its identity, its rate limits, and whether it is out of service."""

    requester: Requester
    rates: Sequence[Limit]
    refused: bool
    """True if the sender is out of service."""


class MapServer(Server[SigtranConnection]):
    """SIGTRAN server of the answering process for MSCs and SGSNs."""

    carried = CARRIED

    def __init__(self, ss7: Ss7Settings, context: Context) -> None:
        super().__init__(PROTOCOL, counts=context.counts, rates=context.rates, report=context.report)
        self._service = MapService(context.checker, self.failed)
        self.results: Counter[tuple[str, str]] = Counter()
        """Answers by peer label and result (status or fault)."""
        self._askers: dict[tuple[object, ...], Asker] = {}
        self._dials = False
        self._dialing: dict[GatewaySettings, asyncio.Task[None]] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        """Time and reason of the last failed attempt since a connection to a gateway, by its label."""
        self.apply(ss7, context)

    def apply(self, ss7: Ss7Settings, context: Context) -> None:
        """Apply new settings to the SIGTRAN server, and close connections that the settings no longer permit."""
        shared = context.shared
        self._ss7, self._overload, self._sctp = ss7, shared.overload_answer, shared.sctp
        self.point_code = ss7.number
        """The EIR's own point code; None without SS7."""
        self._service.configure(answers_by_peer(shared.peers), shared.policy.bad_identity, ss7.imsi_tags)
        self._askers.clear()
        self.use(shared.peers, shared.limits)
        self.dial_all()

    # server.Server

    def link(self) -> SigtranConnection:
        """Create the protocol object for a new connection."""
        return SigtranConnection(self, self.loop)

    def who(self, link: SigtranConnection) -> tuple[PeerSettings, Requester] | None:
        """Return an association's peer table entry and the sender of its requests (Requester), or None if no entry matches.

        An association to a gateway has the gateway's entry. Another association has the first entry for its address; entries
        with a global title or point code come first, entries with a host or realm last. Without the section `ss7` the result is
        None for every association: the listener stays open until a restart, but serves no request.
        """
        if self.point_code is None:
            return None
        gateway = link.gateway
        if gateway is not None:
            settings = PeerSettings(label=gateway.label, connect=gateway.connect)
            return (settings, Requester(gateway.label)) if gateway in self._ss7.gateways else None
        matching = [each for each in self.peers if is_from(each, link.source) and (each.sources or not each.is_titled)]
        nameless = [each for each in matching if each.host is None and each.realm is None]
        entry = next(iter((*(each for each in nameless if each.is_titled), *nameless, *matching)), None)
        return None if entry is None else (entry, Requester(entry.label))

    async def drain(self, timeout_s: float) -> None:
        """Take all associations down gracefully, and close the remaining connections after `timeout_s`."""
        self._dials = False
        self.dial_all()
        await super().drain(timeout_s)

    def dial(self) -> None:
        """Start the connections to the gateways."""
        self._dials = True
        self.dial_all()

    def dial_all(self) -> None:
        """Start the connections to all gateways that are in service, and stop all other attempts.

        Senders are identified again, because one of them may now be out of service.
        """
        self._askers.clear()
        wanted = [each for each in self._ss7.gateways if self._dials and each.label not in self._disabled]
        for gateway in self._dialing.keys() - set(wanted):
            self._dialing.pop(gateway).cancel()
        for gateway in wanted:
            if gateway not in self._dialing:
                self._dialing[gateway] = self.loop.create_task(self._stay_connected(gateway))

    def connected(self) -> Counter[str]:
        """Return the number of associations that are up, by label; 0 for a gateway without an association.

        An MSC that is known by its title or point code has no connection of its own: it counts as connected while any
        association is up.
        """
        up = super().connected()
        connections = Counter(
            {gateway.label: 0 for gateway in self._ss7.gateways if gateway.label not in self._disabled}
        )
        connections.update(up)
        if self._ss7.point_code is not None:
            for each in self.peers:
                if each.is_titled and each.expected and each.label not in up:
                    connections[each.label] += int(up.total() > 0)
        return connections

    def status(self) -> list[PeerStatus]:
        """Return the rows of `eir peers`: associations, gateways without an association, and MSCs in the peer table."""
        rows, labels = super().status(), {link.requester.label for link in self.links.values()}
        for gateway in self._ss7.gateways:
            before = {row.label: row for row in rows if row.state == ENDED}.get(gateway.label)
            rows = [row for row in rows if row is not before]
            if gateway.label not in labels:
                at, why = self._failures.get(gateway.label, (None, None))
                tally = {} if before is None else {"requests": before.requests, "answers": before.answers}
                state = self._state(gateway.label, "down")
                rows.append(
                    self.absent(gateway.label, state, direction="out", last_error=why, last_error_at=at, **tally)
                )
        answers: Counter[str] = Counter()
        for (label, _), count in self.results.items():
            answers[label] += count
        reached = "open" if any(link.is_up for link in self.links.values()) else "down"
        for each in self.peers:
            if each.is_titled and each.label not in labels:
                count = answers[each.label]
                rows.append(self.absent(each.label, self._state(each.label, reached), requests=count, answers=count))
        return rows

    def _state(self, label: str, state: str) -> str:
        return DISABLED if label in self._disabled else state

    def standing(self, link: SigtranConnection) -> Mapping[str, Any]:
        """Return the MAP-specific fields of a connection's row in `eir peers`: the state of its M3UA association."""
        association = link.association
        state = "down" if association is None else str(association.state)
        return {"state": "open" if state == AssociationState.ACTIVE else state}

    def counters(self) -> Mapping[str, Mapping[Any, float]]:
        """Return the counters of MAP and SIGTRAN by metric name and label values."""
        errors = self.errors.copy()
        for link in self.links.values():
            if link.association is not None:
                errors.update(link.association.dropped)
        return {
            "eir_map_answers_total": self.results,
            "eir_sigtran_errors_total": {(reason,): count for reason, count in errors.items()},
        }

    def lost(self, link: SigtranConnection) -> None:
        """Remove an ended connection, and keep the counters of its association."""
        if link.association is not None:
            self.errors.update(link.association.dropped)
        super().lost(link)

    # link.Owner

    def refusal(self, link: SigtranConnection, fault: str | None = None) -> str | None:
        """Return the reason to reject a connection, or None to accept it.

        Without the section `ss7`, every connection is rejected.
        """
        return super().refusal(link, DRAINING if self.point_code is None else fault)

    def accept(self, link: SigtranConnection) -> Association | None:
        """Create the M3UA association of a new connection; return None if the connection is rejected."""
        if not self.admit(link):
            return None
        now = self.loop.time()
        longest, gateway = self.limits.max_message_bytes, link.gateway
        dropped = None if link.association is None else link.association.dropped  # counters only grow
        if gateway is None:
            return Association(now, dials=False, longest=longest, up_s=self.limits.cer_timeout_s, dropped=dropped)
        return Association(
            now, dials=True, routing_context=gateway.routing_context, mode=m3ua.MODES[gateway.mode], asp_identifier=gateway.asp_identifier,
            longest=longest,
        )  # fmt: skip

    def transferred(self, link: SigtranConnection, transfer: Transfer) -> Transfer | None:
        """Return the answer to a received DATA message, or None if no answer is sent.

        If the message causes an error, the error is counted, and no answer is sent.
        """
        try:
            return self._answer(link, transfer)
        except SccpFault as e:
            self.errors[f"sccp_{e}"] += 1
        except Exception as e:  # noqa: BLE001 - one request gets no answer, and the association stays up
            self.failed(e)
        return None

    def happened(self, link: SigtranConnection, what: AssociationEvent) -> None:
        """Log an event of an M3UA association, with point codes in the form `1-2-3`."""
        fields = dict(what.fields)
        if "point_codes" in fields:
            fields["point_codes"] = ",".join(
                point_code_text(code, self._ss7.variant) for code, _ in fields["point_codes"]
            )
        if what.event == "m3ua_state" and what.reason == AssociationState.ACTIVE:
            self._failures.pop(link.requester.label, None)
            self.opened(link)
            return
        level = "warning" if what.event in _WARNED else "info"
        self.report(
            what.event, peer=link.requester.label, reason=what.reason, level=level, **{"address": link.address} | fields
        )

    # inside

    def _answer(self, link: SigtranConnection, transfer: Transfer) -> Transfer | None:
        """Return the answer to a received DATA message, or None if no answer is sent.

        Raises:
            SccpFault: if a unitdata cannot be parsed, or the answer exceeds its size.
        """
        if transfer.indicator != m3ua.SCCP or transfer.dpc != self.point_code:
            self.errors["not_sccp" if transfer.indicator != m3ua.SCCP else "not_our_point_code"] += 1
            return None
        variant = self._ss7.variant
        unit = sccp.unitdata(transfer.payload, variant)
        if (tested := sccp.allowed(unit, transfer.dpc, (SSN_EIR, sccp.MANAGEMENT), variant)) is not None:
            available = link.requester.label not in self._disabled
            return self._back(link, transfer, unit.calling, tested) if available else None
        cause = (
            ReturnCause.NO_REASSEMBLY
            if unit.segmented
            else ReturnCause.UNEQUIPPED_USER
            if not _is_for_us(unit.called)
            else None
        )
        if cause is not None:
            self.errors[f"sccp_{cause.name.lower()}"] += 1
            return self._back(link, transfer, unit.calling, sccp.returned(unit, cause)) if unit.returns else None
        asker = self._asker(link, unit.calling, transfer.opc)
        reply = self._reply(unit.data, asker)
        self.results[asker.requester.label, reply.result] += 1
        if reply.octets is None:
            return None
        ours = sccp.with_ssn(unit.called, SSN_EIR, variant)
        payload = sccp.encoded(unit.kind, unit.protocol_class, unit.calling.octets, ours, reply.octets)
        return self._back(link, transfer, unit.calling, payload)

    def _reply(self, octets: bytes, asker: Asker) -> MapReply:
        label = asker.requester.label
        if asker.refused:
            return self._service.turned_away(octets)
        if not asker.rates:
            return self._service.answer(octets, asker.requester)

        def above_limit(version: int) -> tuple[bytes, str] | None:
            """Count one invocation against the rate limits; if a limit is exceeded, return the overload answer, else None."""
            if not self.past_limit(label, asker.rates):
                return None
            return self._service.component_of(version, self._overload)

        return self._service.answer(octets, asker.requester, above_limit)

    def _back(self, link: SigtranConnection, transfer: Transfer, calling: PartyAddress, payload: bytes) -> Transfer:
        """Return the DATA message that carries the answer `payload` to the calling address of the request.

        If the calling address routes by point code, the message goes there, otherwise to the originating point code of the
        request.
        """
        to = calling.pc if calling.by_ssn and calling.pc is not None else transfer.opc
        context = (
            transfer.context if transfer.context is not None or link.association is None else link.association.context
        )
        return Transfer(
            transfer.dpc,
            to,
            transfer.sls,
            payload,
            transfer.indicator,
            transfer.network,
            transfer.priority,
            context,
            transfer.appearance,
        )

    def _asker(self, link: SigtranConnection, calling: PartyAddress, opc: int) -> Asker:
        """Identify the sender of a request by its association, and by the global title and point code of its calling address."""
        key = calling.octets, opc, link.requester.label, link.source
        asker = self._askers.get(key)
        if asker is None:
            if len(self._askers) >= ASKERS_MAX:
                self._askers.clear()
            asker = self._askers[key] = self._find_asker(link, calling, opc)
        self.node_counts.last_request[asker.requester.label] = time.time()
        return asker

    def _find_asker(self, link: SigtranConnection, calling: PartyAddress, opc: int) -> Asker:
        variant, code = self._ss7.variant, calling.pc if calling.pc is not None else opc
        for each in self.peers:
            if (
                each.is_titled
                and is_from(each, link.source)
                and (each.gt is None or calling.digits.startswith(each.gt))
            ):
                if each.point_code is not None and point_code(each.point_code, variant) != code:
                    continue
                settings = each
                break
        else:
            settings = link.settings or PeerSettings(label=link.requester.label)
        host = calling.digits or point_code_text(code, variant)
        rates = self._rates.of(settings, self.loop.time()) if settings is not link.settings else link.rates
        return Asker(Requester(settings.label, host), rates, settings.label in self._disabled)

    # gateways

    async def _stay_connected(self, gateway: GatewaySettings) -> None:
        """Connect to a gateway, and connect again after each end of the connection, until cancelled."""
        pause_s = RECONNECT_S
        while True:
            link = SigtranConnection(self, self.loop, gateway)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await begin.connect(link, endpoint(gateway.connect), None, self._sctp, CARRIED)
            except OSError as e:
                why = fault_text(e, secure=False)
                self._failures[gateway.label] = time.time(), why
                self.report(
                    "connect_failed",
                    peer=gateway.label,
                    reason=type(e).__name__,
                    level="warning",
                    detail=why,
                    address=gateway.connect,
                )
            else:
                await asyncio.shield(link.closed)
                if link.served:
                    pause_s = RECONNECT_S
            await asyncio.sleep(pause_s * random.uniform(0.9, 1.1))  # noqa: S311 - jitter is no secret
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)


def _is_for_us(called: PartyAddress) -> bool:
    """Return true if a request is addressed to the subsystem EIR.

    After a translation, a global title may have no subsystem number.
    """
    return called.ssn == SSN_EIR or (not called.ssn and not called.by_ssn and called.kind > 0)
