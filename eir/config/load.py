"""Loading, checking, rendering and comparison of the configuration."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from eir.config.checks import CHECKS, WARNINGS, Check, check_layouts
from eir.config.keys import ROOT, SECTIONS, TABLE
from eir.config.kinds import TOO_BUSY
from eir.config.reader import read_document, read_file
from eir.config.settings import Config, Whereabouts
from eir.errors import ConfigError, Problem
from eir.interfaces import INTERFACES
from eir.lists.record.settings import Layout
from eir.schema import Document

TAKES_RESTART = [
    *(key.path for key in TABLE if not key.live),
    *(section.path for section in SECTIONS if not section.live),
]
"""Keys and sections that need a restart."""


class _PlainDumper(yaml.SafeDumper):
    """YAML dumper that writes no aliases, because `load_config` rejects aliases."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - name of the library
        return True


def load_config(path: Path) -> Config:
    """Read and check a configuration. Raises ConfigError with all faults in file order."""
    octets = read_file(path)
    document = read_document(path, octets, ROOT)
    config, problems = _checked(path, document)
    if problems:
        raise ConfigError(problems)
    warnings = (*document.removed, *_findings(WARNINGS, config, document))
    return replace(config, warnings=warnings, digest=hashlib.sha256(octets).hexdigest())


def load_to_ask(path: Path) -> Config:
    """Read a configuration file for a command that sends checks to an EIR over the network. Faults in the section `identity` are ignored.

    Raises ConfigError with the faults in other sections.
    """
    document = read_document(path, read_file(path), ROOT)
    config, problems = _checked(path, document)
    others = [problem for problem in problems if document.problems.get(problem, ())[:1] != ("identity",)]
    if others:
        raise ConfigError(tuple(others))
    return config


def load_whereabouts(path: Path) -> Whereabouts:
    """Read a node's state folder, store and lists from a configuration file. Other keys may be faulty: the result reports their faults.

    A running node may still use an earlier, valid configuration. If the file as a whole is not YAML, only the lines
    that begin with `state:` and `store:` are read. Raises ConfigError if the file cannot be read, or if `state` or
    `store` is wrong.
    """
    octets = read_file(path)
    not_yaml: tuple[Problem, ...] = ()
    try:
        document = read_document(path, octets, ROOT)
    except ConfigError as e:
        not_yaml = e.problems
        lines = [line for line in octets.splitlines() if line.startswith((b"state:", b"store:"))]
        try:
            document = read_document(path, b"\n".join(lines), ROOT)
        except ConfigError:
            raise e from None
    config, problems = _checked(path, document)
    if document.faulty("state") or document.faulty("store"):
        raise ConfigError(not_yaml or problems)
    faults = not_yaml or problems
    return Whereabouts(
        path=path, state=config.state, store=config.store, lists=config.lists, shown=config.shown, problems=faults
    )


def load_layouts(path: Path) -> Mapping[str, Layout]:
    """Read the layouts of data files that the section `layouts` of a configuration file declares.

    A publisher has a file with only this section, so faults in all other sections are ignored.

    Raises ConfigError if the file is unreadable, or with the faults in `layouts`.
    """
    document = read_document(path, read_file(path), ROOT)
    config, _ = _checked(path, document)
    faults = [problem for problem, spot in document.problems.items() if spot[:1] == ("layouts",)]
    problems = _findings([check_layouts], config, document, *faults)
    if problems:
        raise ConfigError(problems)
    return config.layouts


def line_of(path: Path, *spot: str | int) -> int:
    """Return the line of a key in a configuration file."""
    return read_document(path, read_file(path), ROOT).line(*spot)


def render(config: Config) -> str:
    """Render the configuration as YAML; parsing the result gives the same configuration."""
    return str(yaml.dump(config.shown, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120))


def digests(shown: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each section of a configuration, so that two processes can compare their settings."""
    texts = {name: json.dumps(section, sort_keys=True) for name, section in shown.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def needs_restart(old: Config, new: Config) -> list[str]:
    """Return the changed keys that a reload does not apply, as they are written in the file."""
    return [path for path in TAKES_RESTART if _value(old, path) != _value(new, path)]


def config_after_reload(old: Config, new: Config) -> Config:
    """Return the configuration of a running node after a reload: `new`, except for the settings that need a restart."""
    interfaces = {}
    for each in INTERFACES:
        if each.section:
            interfaces[each.section] = each.settings_after_reload(old.of(each), new.of(each))
    kept: dict[str, Any] = {path: getattr(old, path) for path in TAKES_RESTART if "." not in path}
    return replace(new, interfaces=interfaces, **kept)


def changed_settings(old: Config, new: Config) -> list[str]:
    """Return the names of the settings that differ between two configurations."""
    names = [each.name for each in fields(Config) if each.compare and each.name not in {"warnings", "interfaces"}]
    return [name for name in (*names, *new.interfaces) if _value(old, name) != _value(new, name)]


def _value(config: Config, path: str) -> Any:
    """Return the value at a path of the configuration: `SETTING`, `INTERFACE`, or `INTERFACE.SETTING`."""
    section, _, name = path.partition(".")
    value = config.interfaces[section] if section in config.interfaces else getattr(config, section)
    return getattr(value, name) if name else value


def _checked(path: Path, document: Document) -> tuple[Config, tuple[Problem, ...]]:
    """Build and check the configuration of a document; return it with all problems in file order."""
    values = dict(document.values)
    if values["overload_answer"] == TOO_BUSY:
        values["overload_answer"] = None
    lists = dict(values["lists"])
    first_seen = values["first_seen"]
    if first_seen and first_seen.list in lists and lists[first_seen.list].local:
        del lists[first_seen.list]  # the record is a local list, and may be declared as one
    values["lists"] = lists
    interfaces = {each.section: values.pop(each.section) for each in INTERFACES if each.section}
    config = Config(path=path, shown=document.shown, interfaces=interfaces, **values)
    return config, _findings(CHECKS, config, document, *document.problems)


def _findings(checks: Iterable[Check], config: Config, document: Document, *more: Problem) -> tuple[Problem, ...]:
    """Run the checks on a configuration. Return the found problems and the earlier problems `more`, sorted by line."""
    problems = [*more]
    for check in checks:
        for text, spot in check(config, document):
            problems.append(Problem(document.file, document.line(*spot), text))
    return tuple(sorted(problems, key=lambda problem: problem.line))
