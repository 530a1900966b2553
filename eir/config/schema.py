"""A YAML file read against a table of keys: every fault in one run, each with its line and what was expected.

The table is data: a `Key` names a dotted path, a kind of value, a default, and what the key is for. Values are read from
the text that stands in the file, never from YAML's own idea of it, so that `tac: 00101001` keeps its zeros and a peer may
be called `no`. Imports errors only; knows no key of ours.
"""

import difflib
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from yaml.composer import ComposerError

from eir.errors import ConfigError, Problem

FILE_BYTES_MAX = 1 << 18
DEPTH_MAX = 20
"""Levels of a file; no table of keys is that deep."""
NODES_MAX = 100_000
"""Values that are read from one file. An alias counts each time it is used, so that a few lines cannot stand for a billion."""

SHOWN_MAX = 60
"""Characters of a wrong value that a message repeats."""

YAML_TAG = "tag:yaml.org,2002:"
NULL_TAG, MERGE_TAG = f"{YAML_TAG}null", f"{YAML_TAG}merge"
PLAIN_TAGS = frozenset(
    YAML_TAG + name for name in ("map", "seq", "str", "null", "bool", "int", "float", "timestamp", "merge", "value")
)
"""What YAML gives by itself; anything else was asked for (`!!python/…`) and is refused."""

FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30}

REQUIRED: Final = object()
"""The default of a key that has to be there."""

N = TypeVar("N", int, float)

Spot = tuple[Hashable, ...]
"""Where a value stands: keys by name, entries of a list by their number from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one kind of value is written, read and shown."""

    expected: str
    """Completes "expected …", and is what the reference says of the key."""
    read: Callable[[str], Any]
    """The value that a text stands for; raises ValueError, whose text (if any) says more than `expected`."""
    show: Callable[[Any], Any] = str
    """The inverse: what to print, as JSON knows it."""
    bare: bool = False
    """Must not stand in quotes: a number or a switch, where quotes say that someone meant a text."""
    many: bool = False
    """One value, or a list of them; read as a tuple."""
    may_be_empty: bool = False
    """Of `many`: `[]` has a meaning. Of others: a key without a value has one, and is read as None."""


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table."""

    path: str
    """Dotted; `name[]` is a list of sections, `name.*` a section whose keys are free names."""
    kind: Kind
    default: Any
    says: str
    live: bool = True
    """A reload takes it over; otherwise it needs a restart."""


@dataclass(slots=True)
class _Section:
    """A mapping of the file: its keys, or, if `shape` says so, sections of one form."""

    path: str
    shape: str = ""
    """`[]`: a list of such mappings; `*`: a mapping from free names to them; empty: just the one."""
    optional: bool = False
    """None if it is not there, although something in it is required."""
    keys: "dict[str, Key | _Section]" = field(default_factory=dict)

    def required(self) -> bool:
        """Whether the section has to be there, because something in it does."""
        return not (self.shape or self.optional) and any(
            entry.required() if isinstance(entry, _Section) else entry.default is REQUIRED for entry in self.keys.values()
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it was read: all values, defaults filled in, and where they stand."""

    file: str
    values: dict[str, Any]
    lines: Mapping[Spot, int]
    """Lines (from 1) of keys and entries that are in the file."""
    problems: tuple[Problem, ...]
    """Faults in values, in file order."""
    faults: frozenset[Spot]
    """Where they are."""

    def faulty(self, *spot: Hashable) -> bool:
        """Whether there is a fault in the value or section, or in anything inside it."""
        return any(fault[: len(spot)] == spot for fault in self.faults)

    def line(self, *spot: Hashable) -> int:
        """The line of a value, else that of the nearest section around it."""
        while spot and spot not in self.lines:
            spot = spot[:-1]
        return self.lines.get(spot, 1)

    def problem(self, text: str, *spot: Hashable) -> Problem:
        """A fault, or a warning, at a value."""
        return Problem(self.file, self.line(*spot), text)


def read_document(path: Path, table: Sequence[Key], *, optional: frozenset[str]) -> Document:
    """Read a file against the table.

    `optional` names sections that are None when the file does not have them although something in them is required.
    Faults in values are gathered in `problems`, in file order. Raises ConfigError if the file cannot be read at all.
    """
    reader = _Reader(str(path))
    node, root = _compose(path), _tree(table, optional)
    try:
        values = reader.absent_all(root, (), 1) if node is None else reader.section(node, root, ())
    except _TooMuch as e:
        raise ConfigError((Problem(str(path), e.line, f"more than {NODES_MAX} values, aliases counted"),)) from None
    problems = tuple(sorted(reader.problems, key=lambda problem: problem.line))
    return Document(str(path), values, reader.lines, problems, frozenset(reader.faults))


def show_values(values: Mapping[str, Any], table: Sequence[Key]) -> dict[str, Any]:
    """Values as `read_document` gives them, as JSON knows them. Left out is what the file cannot say either: a default of none."""
    return _show_section(values, _tree(table, frozenset()))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing if no known word is near."""
    near = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1)
    near = near or difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


# Kinds of values that any file may need


def text(expected: str, pattern: str, *, flags: re.RegexFlag = re.ASCII) -> Kind:
    """A text that matches the whole pattern."""
    compiled = re.compile(pattern, flags)

    def read(written: str) -> str:
        if compiled.fullmatch(written):
            return written
        raise ValueError

    return Kind(expected=expected, read=read)


def one_of(words: Mapping[str, Any]) -> Kind:
    """One of some words, each of which stands for a value."""

    def read(written: str) -> Any:
        if written in words:
            return words[written]
        raise ValueError(f"expected {_listed(words)}{did_you_mean(written, list(words))}")

    back = {value: word for word, value in words.items()}
    return Kind(expected=_listed(words), read=read, show=lambda value: back[value])


def whole(low: int, high: int, what: str = "a whole number") -> Kind:
    """A whole number within limits."""
    limits = f"{low}" if low == high else f"{what} from {low} to {high}"

    def read(written: str) -> int:
        if re.fullmatch(r"0[0-9_]+", written):
            raise ValueError(f"expected {limits}; a leading zero makes it octal for some readers, leave it out")
        if not re.fullmatch(r"-?[0-9]+", written, re.ASCII):
            raise ValueError
        return _within(int(written), low, high)

    return Kind(expected=limits, read=read, show=int, bare=True)


def number(low: float, high: float, what: str) -> Kind:
    """A number within limits, with or without a decimal point."""

    def read(written: str) -> float:
        if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", written, re.ASCII):
            raise ValueError
        return _within(float(written), low, high)

    return Kind(expected=f"{what} from {low:.10g} to {high:.10g}", read=read, show=_short_number, bare=True)


def flag() -> Kind:
    """True or false."""

    def read(written: str) -> bool:
        if written.lower() in FLAGS:
            return FLAGS[written.lower()]
        raise ValueError

    return Kind(expected="true or false", read=read, show=bool, bare=True)


def percentage(high: int) -> Kind:
    """A percentage, read as a fraction; the sign has to be there, since 0.2 might be meant either way."""

    def read(written: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?\s*%", written, re.ASCII):
            raise ValueError
        return _within(float(written.rstrip("% ")), 0, high) / 100

    return Kind(expected=f"a percentage from 0% to {high}%, such as 20%", read=read, show=lambda value: f"{value * 100:.10g}%")


def seconds(low: float, high: float) -> Kind:
    """A time, read as seconds: a plain number, or one with a unit."""

    def read(written: str) -> float:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", written, re.ASCII)
        if match is None or (match[2] and match[2] not in SECONDS):
            raise ValueError
        return _within(float(match[1]) * SECONDS[match[2] or "s"], low, high)

    return Kind(expected=f"seconds from {low:.10g} to {high:.10g}, or a time such as 500ms, 30s, 2m", read=read, show=_short_number)


def byte_size(low: int, high: int) -> Kind:
    """A size, read as bytes: a plain number, or one with a unit."""

    def read(written: str) -> int:
        match = re.fullmatch(r"([0-9]+)\s*([A-Za-z]*)", written, re.ASCII)
        if match is None or match[2] not in BYTES:
            raise ValueError
        return int(_within(int(match[1]) * BYTES[match[2]], low, high))

    return Kind(expected=f"bytes from {low} to {high}, or a size such as 64KiB", read=read, show=int)


def many(kind: Kind, *, may_be_empty: bool = False) -> Kind:
    """One value of a kind, or a list of them."""
    return Kind(
        expected=f"{kind.expected}, or a list of such", read=kind.read, show=kind.show, bare=kind.bare, many=True,
        may_be_empty=may_be_empty,
    )  # fmt: skip


def _listed(words: Mapping[str, Any]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _within(value: N, low: float, high: float) -> N:
    if low <= value <= high:
        return value
    raise ValueError


def _short_number(value: float) -> float:
    return int(value) if value == int(value) else value


# The file as YAML nodes


class _Bounded(yaml.SafeLoader):
    """A safe loader that gives nodes, and stops at a depth that no table of keys has."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEPTH_MAX and parent is not None:
            raise ComposerError(None, None, f"nested more than {DEPTH_MAX} deep", parent.start_mark)
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in PLAIN_TAGS:
            raise ComposerError(None, None, f"found the tag {node.tag.replace(YAML_TAG, '!!')}; expected none", node.start_mark)
        self.depth -= 1
        return node


def _compose(path: Path) -> yaml.Node | None:
    """The file's one document; None if it is empty. Raises ConfigError."""
    try:
        with path.open("rb") as stream:
            octets = stream.read(FILE_BYTES_MAX + 1)
    except OSError as e:
        raise _unreadable(path, 1, f"cannot be read: {e.strerror}; expected the configuration, a YAML file") from None
    if len(octets) > FILE_BYTES_MAX:
        raise _unreadable(path, 1, f"larger than {FILE_BYTES_MAX} bytes; expected the configuration, a YAML file")
    try:
        loader = _Bounded(octets)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        about = " ".join(part for part in (e.context, e.problem) if part)
        raise _unreadable(path, mark.line + 1 if mark else 1, f"not valid YAML: {about}") from None
    except yaml.reader.ReaderError as e:
        line = octets[: e.position].count(b"\n") + 1
        raise _unreadable(path, line, f"not valid YAML: {e.reason} (position {e.position})") from None


def _unreadable(path: Path, line: int, about: str) -> ConfigError:
    return ConfigError((Problem(str(path), line, about),))


# The walk over the nodes


def _tree(table: Sequence[Key], optional: frozenset[str]) -> _Section:
    root = _Section("")
    for key in table:
        here = root
        *sections, last = key.path.replace(".*", "*").split(".")
        for at, part in enumerate(sections):
            name, shape = re.fullmatch(r"(.*?)(\[\]|\*)?", part).groups("")  # type: ignore[union-attr]  # it matches anything
            path = ".".join(sections[: at + 1])
            entry = here.keys.setdefault(name, _Section(path, shape, path in optional))
            if isinstance(entry, Key):
                raise TypeError(f"{key.path}: {path} is a value elsewhere in the table")
            here = entry
        here.keys[last] = key
    return root


def _default(entry: Key | _Section) -> Any:
    """What stands for something that the file does not have, or has wrong."""
    if isinstance(entry, Key):
        return None if entry.default is REQUIRED else entry.default
    if entry.shape:
        return [] if entry.shape == "[]" else {}
    return None if entry.optional else {name: _default(inner) for name, inner in entry.keys.items()}


class _TooMuch(Exception):
    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line


@dataclass(slots=True)
class _Reader:
    """One walk: gathers lines and problems as it goes; a value with a fault reads as its default."""

    file: str
    lines: dict[Spot, int] = field(default_factory=dict)
    problems: dict[Problem, None] = field(default_factory=dict)
    """In the order found; a node that is read twice through an alias has one fault."""
    faults: set[Spot] = field(default_factory=set)
    visited: int = 0

    def visit(self, node: yaml.Node) -> int:
        """Count the node against the limit; its line."""
        self.visited += 1
        line = _line(node)
        if self.visited > NODES_MAX:
            raise _TooMuch(line)
        return line

    def wrong(self, spot: Spot, line: int, text: str) -> None:
        """Note a fault."""
        self.problems[Problem(self.file, line, text)] = None
        self.faults.add(spot)

    def absent(self, entry: Key | _Section, spot: Spot, line: int) -> Any:
        """The value of something that the file does not have, which is a fault if it is required."""
        if isinstance(entry, Key):
            if entry.default is REQUIRED:
                self.wrong(spot, line, f"the key '{spot[-1]}' is missing{_in(spot[:-1])}; expected {entry.kind.expected}")
        elif entry.required():
            self.wrong(spot, line, f"the section '{_dotted(spot)}' is missing; expected its keys {', '.join(entry.keys)}")
        return _default(entry)

    def absent_all(self, section: _Section, spot: Spot, line: int, found: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A section of what was found in it, and of what it does not have."""
        found = found or {}
        return {
            name: found[name] if name in found else self.absent(entry, (*spot, name), line)
            for name, entry in section.keys.items()
        }

    def section(self, node: yaml.Node, section: _Section, spot: Spot) -> Any:
        """A mapping, a list of mappings, or a mapping of mappings, as the section's shape says."""
        line = self.visit(node)
        if node.tag == NULL_TAG:
            return self.absent(section, spot, line) if spot else self.absent_all(section, spot, line)
        if section.shape == "[]":
            if not isinstance(node, yaml.SequenceNode):
                self.wrong(spot, line, f"found {_found(node)} for '{_dotted(spot)}'; expected a list, each entry with '- ' before it")
                return _default(section)
            for number, item in enumerate(node.value):
                self.lines[*spot, number] = _line(item)
            return [self.mapping(item, section, (*spot, number)) for number, item in enumerate(node.value)]
        if section.shape == "*":
            return {name: self.mapping(inner, section, (*spot, name)) for name, inner in self.pairs(node, spot)}
        return self.mapping(node, section, spot)

    def mapping(self, node: yaml.Node, section: _Section, spot: Spot) -> dict[str, Any]:
        """One mapping whose keys the table knows."""
        line = self.visit(node)
        if not isinstance(node, yaml.MappingNode) and node.tag != NULL_TAG:
            self.wrong(spot, line, f"found {_found(node)}{_in(spot)}; expected keys, each with ': ' and a value")
            return {name: _default(entry) for name, entry in section.keys.items()}
        found: dict[str, Any] = {}
        for name, inner in self.pairs(node, spot):
            entry = section.keys.get(name)
            if isinstance(entry, Key):
                found[name] = self.value(inner, entry, (*spot, name))
            elif entry is not None:
                found[name] = self.section(inner, entry, (*spot, name))
            else:
                self.wrong((*spot, name), self.lines[*spot, name], f"unknown key '{name}'{_in(spot)}{_advice(name, section)}")
        return self.absent_all(section, spot, line, found)

    def pairs(self, node: yaml.Node, spot: Spot) -> Iterator[tuple[str, yaml.Node]]:
        """Names and values of a mapping, merge keys (`<<`) resolved; lines are noted, names that come twice are faults."""
        own: dict[str, tuple[int, yaml.Node]] = {}
        merged: list[tuple[str, yaml.Node]] = []
        if node.tag == NULL_TAG:
            return
        if not isinstance(node, yaml.MappingNode):
            self.wrong(spot, _line(node), f"found {_found(node)}{_in(spot)}; expected keys, each with ': ' and a value")
            return
        for key, value in node.value:
            line = self.visit(key)
            if key.tag == MERGE_TAG:
                merged += self.merged(value, spot, 1)
            elif not isinstance(key, yaml.ScalarNode):
                self.wrong(spot, line, f"found {_found(key)} as a key{_in(spot)}; expected a name")
            elif key.value in own:
                self.wrong(spot, line, f"the key '{key.value}'{_in(spot)} stands twice, first in line {own[key.value][0]}")
            else:
                own[key.value] = (line, value)
        for name, value in merged:
            # Own keys come before merged ones, earlier merged ones before later ones (YAML's merge key, draft of 2005).
            own.setdefault(name, (_line(value), value))
        for name, (line, value) in own.items():
            self.lines[*spot, name] = line
            yield name, value

    def merged(self, node: yaml.Node, spot: Spot, depth: int) -> Iterator[tuple[str, yaml.Node]]:
        """Names and values that a merge key brings in."""
        line = self.visit(node)
        if depth > DEPTH_MAX:
            self.wrong(spot, line, f"merge keys{_in(spot)} nested more than {DEPTH_MAX} deep")
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                yield from self.merged(item, spot, depth + 1)
        elif isinstance(node, yaml.MappingNode):
            inherited: list[yaml.Node] = []
            for key, value in node.value:
                self.visit(key)
                if key.tag == MERGE_TAG:
                    inherited.append(value)
                else:
                    yield str(key.value), value
            for value in inherited:
                yield from self.merged(value, spot, depth + 1)
        else:
            self.wrong(spot, line, f"found {_found(node)} as a merge key{_in(spot)}; expected an alias of a section")

    def value(self, node: yaml.Node, key: Key, spot: Spot) -> Any:
        """The value of a key; its default (None if it is required) if there is a fault in it."""
        line = self.visit(node)
        kind = key.kind
        if kind.many and isinstance(node, yaml.SequenceNode):
            if not node.value and not kind.may_be_empty:
                self.wrong(spot, line, f"the list '{spot[-1]}'{_in(spot[:-1])} is empty; expected {kind.expected}, or no such key at all")
            read = [self.scalar(item, kind, (*spot, number)) for number, item in enumerate(node.value)]
            return tuple(value for ok, value in read if ok)
        if node.tag == NULL_TAG and kind.may_be_empty:
            return () if kind.many else None
        ok, value = self.scalar(node, kind, spot)
        if not ok:
            return _default(key)
        return (value,) if kind.many else value

    def scalar(self, node: yaml.Node, kind: Kind, spot: Spot) -> tuple[bool, Any]:
        """(True, the value), or (False, None) with the fault noted."""
        line = self.visit(node)
        self.lines.setdefault(spot, line)
        expected = f"expected {kind.expected}"
        quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
        if isinstance(node, yaml.ScalarNode) and node.tag != NULL_TAG and not (kind.bare and quoted):
            try:
                return True, kind.read(node.value)
            except ValueError as e:
                expected = str(e) or expected
        elif kind.bare and quoted:
            expected += ", without quotes"
        named = spot[:-1] if isinstance(spot[-1], int) else spot
        self.wrong(spot, line, f"found {_found(node)} for '{named[-1]}'{_in(named[:-1])}; {expected}")
        return False, None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _in(spot: Spot) -> str:
    """` in lists.stolen`, ` in entry 2 of policy.rules`; nothing at the top."""
    if spot and isinstance(spot[-1], int):
        return f" in entry {spot[-1] + 1} of {_dotted(spot[:-1])}"
    return f" in {_dotted(spot)}" if spot else ""


def _dotted(spot: Spot) -> str:
    dotted = ""
    for part in spot:
        dotted += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if dotted else str(part)
    return dotted


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a section with keys of its own"
    if node.tag == NULL_TAG:
        return "no value"
    written = mask_password(str(node.value))
    return repr(written if len(written) <= SHOWN_MAX else written[: SHOWN_MAX - 1] + "…")


def mask_password(url: str) -> str:
    """A URL with its password hidden; anything else as it is."""
    return re.sub(r"(?<=://)([^/@\s:]*):\S*@", r"\1:***@", url)


def _advice(name: str, section: _Section) -> str:
    return did_you_mean(name, list(section.keys)) or f"; known here: {', '.join(section.keys)}"


def _show_section(values: Mapping[str, Any], section: _Section) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, entry in section.keys.items():
        value = values[name]
        if isinstance(entry, Key):
            if value is None:
                if entry.default is not None:
                    shown[name] = None
            elif value != () or entry.kind.may_be_empty:
                shown[name] = [entry.kind.show(item) for item in value] if entry.kind.many else entry.kind.show(value)
        elif value is None:
            continue
        elif entry.shape == "[]":
            shown[name] = [_show_section(item, entry) for item in value]
        elif entry.shape == "*":
            shown[name] = {named: _show_section(item, entry) for named, item in value.items()}
        elif inner := _show_section(value, entry):
            shown[name] = inner
    return shown
