"""From a file to the configuration in force and back: reading, checking, showing, and what waits for a restart."""

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
from eir.wire.peers.settings import Identity

TAKES_RESTART = [
    *(key.path for key in TABLE if not key.live),
    *(section.path for section in SECTIONS if not section.live),
]
"""Keys and sections that take a restart."""


def load_config(path: Path) -> Config:
    """Read and check a configuration. Raises ConfigError with all that is wrong in it, in file order."""
    octets = read_file(path)
    document = read_document(path, octets, ROOT)
    config, problems = _checked(path, document)
    if problems:
        raise ConfigError(problems)
    return replace(config, warnings=_found(WARNINGS, config, document), digest=hashlib.sha256(octets).hexdigest())


def load_to_ask(path: Path) -> Config:
    """Read a configuration for a command that asks another EIR, which takes no `identity`. Raises ConfigError with what else is wrong."""
    document = read_document(path, read_file(path), ROOT)
    config, problems = _checked(path, document)
    if others := tuple(problem for problem in problems if document.problems.get(problem, ())[:1] != ("identity",)):
        raise ConfigError(others)
    return config


def load_identity(path: Path) -> Identity:
    """Read what a file says of the node's names, whatever is missing or wrong in it. Raises ConfigError where it cannot be read."""
    identity: Identity = read_document(path, read_file(path), ROOT).values["identity"]
    return identity


def load_whereabouts(path: Path) -> Whereabouts:
    """Return where node and lists are, even if the file is wrong elsewhere: a running node has taken over a good one.

    In a file that is not YAML as a whole, the lines that begin with `state:` and `store:` still say it. Raises
    ConfigError if the file cannot be read, or if `state` or `store` is wrong.
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
    return Whereabouts(
        path=path,
        state=config.state,
        store=config.store,
        lists=config.lists,
        shown=config.shown,
        problems=not_yaml or problems,
    )


def load_layouts(path: Path) -> Mapping[str, Layout]:
    """The layouts that a file declares, whatever is missing or wrong in it besides: a publisher has no node to configure.

    Raises ConfigError where the file cannot be read, or for what is wrong in `layouts`.
    """
    document = read_document(path, read_file(path), ROOT)
    config, _ = _checked(path, document)
    wrong = (problem for problem, spot in document.problems.items() if spot[:1] == ("layouts",))
    if problems := _found([check_layouts], config, document, *wrong):
        raise ConfigError(problems)
    return config.layouts


def render(config: Config) -> str:
    """Return the configuration in force as YAML; read again, it gives the same configuration."""
    return str(yaml.safe_dump(config.shown, sort_keys=False, allow_unicode=True, width=120))


def digests(shown: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each section in force (see Config.shown), by which two processes compare what they go by."""
    return {
        name: hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()
        for name, section in shown.items()
    }


def needs_restart(old: Config, new: Config) -> list[str]:
    """Keys, as the file writes them, that differ and that a reload does not take over."""
    return [path for path in TAKES_RESTART if _value(old, path) != _value(new, path)]


def take_over(old: Config, new: Config) -> Config:
    """Return the configuration of a node that runs by `old` after a reload: `new`, but for what takes a restart."""
    interfaces = {
        each.section: replace(each.take_over(old.of(each), new.of(each)), listen=old.of(each).listen)
        for each in INTERFACES
        if each.section
    }
    kept: dict[str, Any] = {path: getattr(old, path) for path in TAKES_RESTART if "." not in path}
    return replace(new, interfaces=interfaces, **kept)


def changed_settings(old: Config, new: Config) -> list[str]:
    """Return the names of the settings that differ."""
    names = [each.name for each in fields(Config) if each.compare and each.name not in {"warnings", "interfaces"}]
    return [name for name in (*names, *new.interfaces) if _value(old, name) != _value(new, name)]


def _value(config: Config, path: str) -> Any:
    """Return a setting, or one of an interface's section, or that section."""
    section, _, name = path.partition(".")
    found = config.interfaces[section] if section in config.interfaces else getattr(config, section)
    return getattr(found, name) if name else found


def _checked(path: Path, document: Document) -> tuple[Config, tuple[Problem, ...]]:
    """Return what a document says, and all that is wrong in it, in file order."""
    answer = document.values["overload_answer"]
    layouts = document.values["layouts"]
    lists = {name: replace(settings, layouts=layouts) for name, settings in document.values["lists"].items()}
    values = document.values | {"overload_answer": None if answer == TOO_BUSY else answer, "lists": lists}
    interfaces = {each.section: values.pop(each.section) for each in INTERFACES if each.section}
    config = Config(path=path, shown=document.shown, interfaces=interfaces, **values)
    return config, _found(CHECKS, config, document, *document.problems)


def _found(checks: Iterable[Check], config: Config, document: Document, *more: Problem) -> tuple[Problem, ...]:
    """Return what the checks find, and more problems, in file order."""
    found = [
        Problem(document.file, document.line(*spot), text) for check in checks for text, spot in check(config, document)
    ]
    return tuple(sorted([*more, *found], key=lambda problem: problem.line))
