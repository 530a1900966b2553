"""Configuration in force, with the files that it names.

The manager reads and validates the configuration, passes it to all processes, and replaces it as a whole.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from eir.checks.policy import compile_policy
from eir.checks.trace import TraceFilter
from eir.config import Config, config_after_reload, load_config, needs_restart
from eir.errors import ConfigError, EirError, Report
from eir.interfaces import INTERFACES
from eir.lists.images.index import Index
from eir.node.observe.metrics import Snapshot, details
from eir.node.processes.setup import ConfigFile, kinds_of, report_warnings
from eir.schema import DETAILS
from eir.wire.transport.tls import TlsFiles, load_tls, read_tls
from eir.wire.web.verifier import keys_of

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles


class Configured(NamedTuple):
    """Settings of the answering process, as the manager sends them at its start and at each reload.

    They contain the contents of files, so that a restarted process uses the same contents.
    """

    config: Config
    disabled: Sequence[str]
    """Labels of the peers that are out of service."""
    tls: TlsFiles | None
    keys: "Mapping[str, KeyFiles | None]"
    """Keys that verify access tokens, by interface."""
    sought: TraceFilter | None = None
    """Filter of the running trace; None: no trace runs."""
    left: Collection[str] = ()
    """Labels of the peers whose last connection ended in order, as in AnsweringReport."""


class Loaded(NamedTuple):
    """Configuration, and the contents of the files that it names. Only the manager reads these files."""

    config: Config
    tls: TlsFiles | None
    keys: "Mapping[str, KeyFiles | None]"
    """Keys that verify access tokens, by interface."""


class Configuration:
    """Configuration in force, and the result of the last reload."""

    def __init__(self, config: Config, *, report: Report) -> None:
        """Read the files that the configuration names.

        Raises:
            EirError: if a file cannot be used.
        """
        self._report = report
        self._file = ConfigFile(config.path, config.digest)
        self._certificate_ends: datetime | None = None
        self._keys_fault: str | None = None
        """Logged fault of the key files; None: they have no fault."""
        self._is_refused = False
        """True from the begin of a reload until all processes have applied it, so also after a refused reload."""
        self._needs_restart: Sequence[str] = ()
        """Keys of the last loaded file whose new values need a restart."""
        self.loaded = Loaded(config, self._read_tls(config), _read_keys(config, {}))

    @property
    def config(self) -> Config:
        """Settings in force."""
        return self.loaded.config

    def read(self, who: str) -> tuple[Loaded, list[str]]:
        """Read again the configuration file and the files that it names, without applying the new settings.

        `who`: user or signal that caused the reload. Returns the new settings, and the keys whose new values need a restart.

        Raises:
            EirError: if the configuration has faults; each is logged.
            OSError: if a file cannot be read.
        """
        self._is_refused = True
        try:
            new = load_config(self.config.path)
            tls = self._read_tls(new)
            keys = _read_keys(new, self.loaded.keys)
            config = config_after_reload(self.config, new)
            _validate(config)
        except (EirError, OSError) as e:
            problems = e.problems if isinstance(e, ConfigError) else (e,)
            for problem in problems:
                self._report("reload_refused", level="error", reason="configuration", detail=str(problem), who=who)
            raise
        report_warnings(new, self._report)
        return Loaded(config, tls, keys), needs_restart(self.config, new)

    def apply(self, loaded: Loaded) -> None:
        """Put settings in force for every process that starts from now on."""
        self.loaded = loaded

    def accept(self, needs_restart: Sequence[str]) -> None:
        """Record that all processes have applied a reload. `needs_restart`: changed keys that take effect only after a restart."""
        self._is_refused = False
        self._needs_restart = needs_restart

    def read_keys(self) -> "Mapping[str, KeyFiles | None]":
        """Read the key files of access tokens again, and put changed keys in force.

        Returns the keys of each interface whose keys changed. A fault of a file is logged once, and nothing changes then.
        """
        before = self.loaded.keys
        try:
            keys = _read_keys(self.config, before)
        except EirError as e:
            if str(e) != self._keys_fault:
                self._report("keys_refused", level="error", detail=str(e))
            self._keys_fault = str(e)
            return {}
        self._keys_fault = None
        self.loaded = self.loaded._replace(keys=keys)
        return {name: files for name, files in keys.items() if files != before[name]}

    async def has_file_changed(self) -> bool:
        """Return true if the configuration file was changed since the last call."""
        return await self._file.poll()

    def snapshot(self) -> Snapshot:
        """Return the samples of the metrics about reloads and the node's certificate, by metric name and label values."""
        ends, fault = self._certificate_ends, self._file.fault
        return {
            "eir_config_last_reload_successful": {(): float(not self._is_refused and fault is None)},
            "eir_config_needs_restart": {(key,): 1.0 for key in self._needs_restart},
            "eir_tls_certificate_expires_timestamp_seconds": {(): ends.timestamp()} if ends else {},
            DETAILS: details("EirReloadFailed", {"": fault or ""})
            | details("EirCertificateExpires", {"": f"{ends:%Y-%m-%dT%H:%M:%SZ}" if ends else ""}),
        }

    def _read_tls(self, config: Config) -> TlsFiles | None:
        """Read the TLS files for all processes, and log names and expiry of the node's certificate.

        Raises:
            FileError: if a file cannot be used.
        """
        if config.tls is None:
            return None
        files = read_tls(config.tls)
        names, _, ends = load_tls(files).certificate
        self._certificate_ends = ends
        self._report("certificate", names=",".join(names), expires=ends.isoformat(), file=config.tls.certificate)
        return files


def _validate(config: Config) -> None:
    """Compile the policy of a configuration, so that no process fails to apply it.

    Raises:
        EirError: if the policy needs a restart.
    """
    if config.first_seen is None and any(rule.has_first_seen for rule in config.policy.rules):
        raise EirError(
            "rules that ask for the first sighting take a restart, since this node started without 'first_seen'"
        )
    compile_policy(config.policy, Index(kinds_of(config)), observed=lambda _: None, now=datetime.now(UTC))


def _read_keys(config: Config, before: "Mapping[str, KeyFiles | None]") -> "dict[str, KeyFiles | None]":
    """Read the keys with which each interface verifies access tokens; return them by interface name.

    An interface without listeners keeps its previous keys.

    Raises:
        FileError: if a file cannot be used.
    """
    keys = {}
    for interface in INTERFACES:
        if not interface.tokens:
            continue
        settings = config.of(interface)
        keys[interface.name] = before.get(interface.name)
        if settings.listen:
            keys[interface.name] = keys_of(interface.tokens(settings, config), before.get(interface.name))
    return keys
