"""Settings of a configuration file as frozen dataclasses. `Config` contains all of them.

This module reads no file and does not depend on YAML.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from eir.errors import Problem
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Interface, SharedSettings
from eir.lists.record.settings import DEVICES, HistorySettings, Layout, ListSettings
from eir.sightings.conditions import TamperSettings
from eir.sightings.settings import SightingsSettings
from eir.wire.web.access import PageSettings


class Listener(NamedTuple):
    """Address on which an interface accepts connections."""

    protocol: str
    """Name of the interface."""
    spot: tuple[str | int, ...]
    """Place in the file."""
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(SharedSettings):
    """Checked settings of a node. Paths are absolute. None means that a setting is absent or off.

    keys.py describes each setting. An object can be pickled, so a process can pass it to other processes.
    """

    path: Path
    """File of the configuration."""
    interfaces: Mapping[str, Any]
    """Settings of each interface that has a section, by the section's name."""
    load_memory: int
    """Maximum memory of a load in bytes."""
    control_read: Path | None
    heal: bool
    boot_without_lists: str
    history: HistorySettings
    layouts: Mapping[str, Layout]
    inbox: Path | None
    inbox_patience_s: float
    sightings: SightingsSettings | None
    """Settings of the sightings record; None: no record."""
    http: str | None
    """host:port; None: neither the page nor /metrics, /live and /ready are served."""
    page: PageSettings
    """Access to the page for people."""
    tamper: TamperSettings
    full_identifiers: bool
    log_level: str
    warnings: tuple[Problem, ...] = ()
    digest: str = field(default="", compare=False)
    """SHA-256 of the file's content."""
    shown: dict[str, Any] = field(repr=False, compare=False)
    """Settings by the keys of the file for JSON, with defaults filled in and passwords hidden."""

    def of(self, interface: Interface) -> Any:
        """Return the settings of a protocol interface: its own section, or the whole configuration if the interface has no section."""
        return self.interfaces[interface.section] if interface.section else self

    @property
    def registering(self) -> list[str]:
        """Names of the device lists in `policy.registering`. Their devices are registered and need no period of grace."""
        return [name for name in self.policy.registering if self.lists[name].kind == DEVICES]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all peer table entries, and of the outgoing connections that are not in the peer table."""
        own = (label for each in INTERFACES for label in each.labels(self.of(each)))
        return (*(peer.label for peer in self.peers), *own)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Listeners of the interfaces whose servers answer device checks."""
        return tuple(listener for each in INTERFACES if each.server for listener in self._listeners(each))

    @property
    def service_listeners(self) -> tuple[Listener, ...]:
        """Listeners of service interfaces, such as the feed. The services process serves them. They answer no device checks."""
        return tuple(listener for each in INTERFACES if each.service for listener in self._listeners(each))

    def _listeners(self, interface: Interface) -> Iterator[Listener]:
        key = (interface.section, "listen") if interface.section else ("listen",)
        for at, url in enumerate(self.of(interface).listen):
            yield Listener(interface.name, (*key, at), url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Locations of a node's state, store and lists, for commands that also work with an invalid file."""

    path: Path
    state: Path
    store: str
    lists: Mapping[str, ListSettings]
    """Lists without faults; empty for a file that is not YAML."""
    shown: dict[str, Any] = field(repr=False, compare=False)
    """Displayed form of the settings (see Config.shown)."""
    problems: tuple[Problem, ...] = ()
    """Faults of the file in other keys than `state` and `store`; all faults of a file that is not YAML."""
