"""Configuration: parses one YAML file into frozen dataclasses of the parts, or reports every fault with file and line.

keys.py is the reference: a table of all keys, and the page that is made of it. kinds.py knows how each kind of value is written, reader.py walks a file by the
table, checks.py holds what no single value can tell, load.py puts them together, settings.py is what comes of it. Used by
commands, daemon and operate; what is below them is handed its settings and sees no file.
"""

from eir.config.load import (
    changed_settings,
    config_after_reload,
    digests,
    load_config,
    load_identity,
    load_layouts,
    load_to_ask,
    load_whereabouts,
    needs_restart,
    render,
)
from eir.config.settings import Config, Whereabouts

__all__ = [
    "Config", "Whereabouts", "changed_settings", "config_after_reload", "digests", "load_config", "load_identity", "load_layouts", "load_to_ask",
    "load_whereabouts", "needs_restart", "render",
]  # fmt: skip
