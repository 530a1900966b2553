"""Tasks of interfaces in the manager (attendants), such as a registration at another server."""

from collections.abc import Sequence
from pkgutil import resolve_name

from eir.errors import Report
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Attendant, Interface, NodeLoad
from eir.node.observe import metrics
from eir.node.observe.status import NOT_READY, AnsweringReport, Readiness
from eir.node.processes.configuration import Loaded


class Attendants:
    """Tasks of all interfaces in the manager."""

    def __init__(self, report: Report) -> None:
        self._standing = NodeLoad(serving=False, load=0)
        self._by_interface: list[tuple[Interface, Attendant]] = [
            (each, resolve_name(each.attendant)(lambda: self._standing, report))
            for each in INTERFACES
            if each.attendant
        ]

    @property
    def all(self) -> list[Attendant]:
        """Attendants of all interfaces: tasks in the manager, such as a registration with an NRF."""
        return [attendant for _, attendant in self._by_interface]

    async def apply(self, loaded: Loaded, listening: Sequence[str]) -> None:
        """Apply settings to all attendants: tasks of interfaces in the manager, such as a registration with an NRF.

        `listening`: URLs of the open listeners, as in Attendant.apply.
        """
        for each, attendant in self._by_interface:
            await attendant.apply(loaded.config.of(each), loaded.config, loaded.tls, listening)

    def note(self, readiness: Readiness, report: AnsweringReport | None) -> None:
        """Store the node's readiness and load, which the attendants (tasks of interfaces) report to other servers."""
        load = 0 if report is None else report.load
        self._standing = NodeLoad(serving=readiness.word != NOT_READY, load=round(100 * load))

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the attendants' metrics, by metric name and label values. Attendants are tasks of interfaces."""
        return {name: samples for each in self.all for name, samples in each.numbers().items()}

    async def close(self) -> None:
        """Stop all attendants (tasks of interfaces in the manager)."""
        for each in self.all:
            await each.close()
