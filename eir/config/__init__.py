"""Configuration: it parses one YAML file into frozen dataclasses, or reports all faults with file and line.

keys.py has the table of all keys, from which the reference page is made. kinds.py parses and formats each kind of
value. reader.py reads a file by the table. checks.py checks values that depend on other values or on files. load.py
combines these steps. settings.py has the resulting dataclasses. Commands and the processes of a node use this package.
The parts below receive their settings and do not read the file.
"""

from eir.config.load import (
    changed_settings,
    config_after_reload,
    digests,
    line_of,
    load_config,
    load_layouts,
    load_to_ask,
    load_whereabouts,
    needs_restart,
    render,
)
from eir.config.settings import Config, Whereabouts

__all__ = [
    "Config", "Whereabouts", "changed_settings", "config_after_reload", "digests", "line_of", "load_config", "load_layouts", "load_to_ask",
    "load_whereabouts", "needs_restart", "render",
]  # fmt: skip
