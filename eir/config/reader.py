"""Reader of a YAML file by a table of keys. It finds all faults in one run, with line and expected value.

The table has a `Key` for each key, and a `Section` for each object that is built from several keys.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from eir.errors import ConfigError, Problem
from eir.schema import Document, Key, Kind, Section, Spot, Unexpected, did_you_mean, mask_secrets

FILE_BYTES_MAX = 1 << 18
EXPECTED = "expected the configuration, a YAML file"
DEPTH_MAX = 20
"""Maximum depth of a file; tables of keys are less deep."""
SHOWN_MAX = 60
"""Maximum number of characters of an invalid value in a message."""

YAML_TAG = "tag:yaml.org,2002:"
NULL_TAG = f"{YAML_TAG}null"
PLAIN_TAGS = {
    YAML_TAG + name for name in ("map", "seq", "str", "null", "bool", "int", "float", "timestamp", "merge", "value")
}
"""Implicit tags of YAML; explicit tags such as `!!python/…` are rejected."""

Read = tuple[Any, Any]
"""Value, and its form for JSON. The form is {} if the file cannot express the value, such as an absent one."""
Found = tuple[int, yaml.Node]
"""Line of a key, and the node of its value."""


def tree(sections: Iterable[Section], table: Iterable[Key]) -> Section:
    """Build the tree of all configuration keys: one root section that contains every other section.

    `sections` are the sections with a builder or with attributes; this function adds their keys to them.
    """
    named = {section.path: section for section in sections}
    root = named.get("", Section("", dict))
    for key in table:
        entries, path = root.entries, ""
        *around, last = key.path.replace(".*", "*").split(".")
        for part in around:
            path = f"{path}.{part.replace('*', '.*')}".strip(".")
            section = named.setdefault(path, Section(path))
            entries[part.rstrip("[]*")] = section
            entries = section.entries
        entries[last] = key
    return root


def read_file(path: Path) -> bytes:
    """Read the content of a configuration file. Raises ConfigError."""
    try:
        with path.open("rb") as stream:
            octets = stream.read(FILE_BYTES_MAX + 1)
    except OSError as e:
        raise _unreadable(
            path, 1, f"cannot be read: {e.strerror}; {EXPECTED}; -c or EIR_CONFIG names another file"
        ) from None
    if len(octets) > FILE_BYTES_MAX:
        raise _unreadable(path, 1, f"larger than {FILE_BYTES_MAX} bytes; {EXPECTED}")
    return octets


def read_document(path: Path, octets: bytes, root: Section) -> Document:
    """Parse the content of a configuration file by the tree of keys in `root`.

    `path` is the name of the file in messages. Relative paths in the file start at its folder. Faults in values are
    gathered in `problems`. Raises ConfigError if the content is not valid YAML.
    """
    document = Document(str(path))
    folder = path.absolute().parent
    if ".." in folder.parts:  # so that equal files have equal paths, by whatever path a file is opened
        folder = folder.resolve()
    node = _compose(path, octets)
    document.values, document.shown = _Reader(document, folder).mapping(node, root, ())
    return document


# The file as YAML nodes


class _Bounded(yaml.SafeLoader):
    """YAML loader that creates only nodes; it rejects aliases, explicit tags and nesting above DEPTH_MAX."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            text = f"found the alias *{alias.anchor}; expected the value itself"
            raise ComposerError(None, None, text, alias.start_mark)
        self.depth += 1
        if self.depth > DEPTH_MAX and parent is not None:
            raise ComposerError(None, None, f"nested more than {DEPTH_MAX} deep", parent.start_mark)
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in PLAIN_TAGS:
            tag = node.tag.replace(YAML_TAG, "!!")
            raise ComposerError(None, None, f"found the tag {tag}; expected none", node.start_mark)
        self.depth -= 1
        return node


def _compose(path: Path, octets: bytes) -> yaml.Node:
    """Parse the content of a file, which must be one YAML document, into nodes. Raises ConfigError."""
    try:
        node = _Bounded(octets).get_single_node()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = mark.line + 1 if mark else 1
        text = " ".join(part for part in (e.context, e.problem) if part)
        if any(each.lstrip(b" ").startswith(b"\t") for each in octets.splitlines()[line - 1 : line]):
            text += "; the line begins with a tab: indent with spaces"
        raise _unreadable(path, line, f"not valid YAML: {text}") from None
    except yaml.reader.ReaderError as e:
        line = octets[: e.position].count(b"\n") + 1
        raise _unreadable(path, line, f"not valid YAML: {e.reason} (position {e.position})") from None
    if node is None:  # an empty file
        return yaml.ScalarNode(NULL_TAG, "", yaml.Mark("", 0, 0, 0, None, 0))
    return node


def _unreadable(path: Path, line: int, text: str) -> ConfigError:
    return ConfigError((Problem(str(path), line, text),))


# The walk over the nodes


@dataclass(slots=True)
class _Reader:
    """Reader of the YAML nodes of one file, which records lines and problems in the document."""

    document: Document
    folder: Path

    def wrong(self, spot: Spot, line: int, text: str) -> None:
        """Record a problem with the value at this position."""
        self.document.problems.setdefault(Problem(self.document.file, line, text), spot)
        self.document.faults.add(spot)

    def mapping(self, node: yaml.Node, section: Section, spot: Spot, **more: Any) -> Read:
        """Read a YAML mapping as a section of the configuration; record each unknown key as a problem, and each removed one as a warning."""
        pairs = self.pairs(node, spot)
        if pairs is None:
            return self.build(section, spot, {}, None, **more)
        for name, (line, _) in pairs.items():
            if name in section.gone:
                text = f"the key '{name}'{_in(spot)} has no effect: {section.gone[name]}"
                self.document.removed.append(Problem(self.document.file, line, text))
            elif name not in section.entries:
                advice = did_you_mean(name, section.entries) or f"; known here: {', '.join(section.entries)}"
                self.wrong((*spot, name), line, f"unknown key '{name}'{_in(spot)}{advice}")
        return self.build(section, spot, pairs, _line(node), **more)

    def build(self, section: Section, spot: Spot, pairs: Mapping[str, Found], line: int | None, **more: Any) -> Read:
        """Build the object that represents a section of the configuration.

        Args:
            section: definition of the section and its keys.
            spot: position of the section in the configuration.
            pairs: for each key that the file contains, its line and the YAML node of its value.
            line: line in which a missing required key is recorded as a problem; None: it is not recorded.
            more: further values for the object.

        Returns:
            The object, and its form for JSON.
        """
        values, shown = more, {}
        for name, entry in section.entries.items():
            inner = (*spot, name)
            if name in pairs:
                _, node = pairs[name]
                value, show = self.entry(node, entry, inner)
            else:
                value, show = self.missing(entry, inner, line)
            shape = entry.shape if isinstance(entry, Section) else None
            if shape == "" and isinstance(value, dict):
                values |= value
            else:
                field = getattr(entry, "field", "") or name
                values[field] = value
            if show != {} or shape:
                shown[name] = show
        build = section.build or dict
        return build(**values), shown

    def missing(self, entry: Key | Section, spot: Spot, line: int | None) -> Read:
        """Return the default of a key or section that the file lacks.

        If it is required, a problem is recorded in `line`; if `line` is `None`, no problem is recorded.
        """
        if isinstance(entry, Key):
            if entry.required and line:
                expected = f"expected {entry.kind.form_with_example}"
                self.wrong(spot, line, f"the key '{spot[-1]}' is missing{_in(spot[:-1])}; {expected}")
            return self.default(entry)
        if entry.required and line:
            expected = f"expected its keys {', '.join(entry.entries)}"
            self.wrong(spot, line, f"the section '{_dotted(spot)}' is missing; {expected}")
        if entry.optional:
            return None, {}
        if entry.shape == "[]":
            return (), []
        if entry.shape:
            return {}, {}
        return self.build(entry, spot, {}, None)

    def entry(self, node: yaml.Node, entry: Key | Section, spot: Spot) -> Read:
        """Parse the YAML node that holds the value of a key or of a section.

        Depending on its path, a section is a mapping, a list of mappings or a mapping of mappings.
        """
        if isinstance(entry, Key):
            return self.value(node, entry, spot)
        if not entry.shape:
            if entry.short and isinstance(node, yaml.ScalarNode) and node.tag != NULL_TAG:
                return self.build(entry, spot, {entry.short: (_line(node), node)}, None)
            return self.mapping(node, entry, spot)  # a section without a value counts as given
        if node.tag == NULL_TAG:
            return self.missing(entry, spot, _line(node))
        if entry.shape == ".*":
            return self.named_mappings(node, entry, spot)
        return self.listed_mappings(node, entry, spot)

    def listed_mappings(self, node: yaml.Node, section: Section, spot: Spot) -> Read:
        """Read a YAML list whose entries are mappings with the keys of one section."""
        if not isinstance(node, yaml.SequenceNode):
            expected = "expected a list, each entry with '- ' before it"
            self.wrong(spot, _line(node), f"found {_node_text(node)} for '{_dotted(spot)}'; {expected}")
            return (), []
        values, shown = [], []
        for number, item in enumerate(node.value):
            inner = (*spot, number)
            self.document.lines[inner] = _line(item)
            value, show = self.mapping(item, section, inner)
            values.append(value)
            shown.append(show)
        return tuple(values), shown

    def named_mappings(self, node: yaml.Node, section: Section, spot: Spot) -> Read:
        """Read a YAML mapping that has one section for each name. The user chooses the names, such as the names of lists."""
        values, shown = {}, {}
        for name, (_, inner) in (self.pairs(node, spot) or {}).items():
            values[name], shown[name] = self.mapping(inner, section, (*spot, name), name=name)
        return values, shown

    def pairs(self, node: yaml.Node, spot: Spot) -> dict[str, Found] | None:
        """Return each key of a mapping node with its line and the node of its value.

        For any other node, a problem is recorded and None is returned.
        """
        if node.tag == NULL_TAG:
            return {}
        if not isinstance(node, yaml.MappingNode):
            expected = "expected keys, each with ': ' and a value"
            self.wrong(spot, _line(node), f"found {_node_text(node)}{_in(spot)}; {expected}")
            return None
        pairs: dict[str, Found] = {}
        for key, value in node.value:
            line = _line(key)
            if not isinstance(key, yaml.ScalarNode):
                self.wrong(spot, line, f"found {_node_text(key)} as a key{_in(spot)}; expected a name")
            elif key.value in pairs:
                first, _ = pairs[key.value]
                text = f"the key '{key.value}'{_in(spot)} occurs twice, first in line {first}"
                self.wrong((*spot, key.value), line, text)
            else:
                pairs[key.value] = (line, value)
                self.document.lines[*spot, key.value] = line
        return pairs

    def value(self, node: yaml.Node, key: Key, spot: Spot) -> Read:
        """Read the value of a key. If the value is invalid, return the default."""
        kind = key.kind
        if kind.many and isinstance(node, yaml.SequenceNode):
            if not node.value and not kind.may_be_empty:
                expected = f"expected {kind.form_with_example}, or the key left out"
                self.wrong(spot, _line(node), f"the list '{spot[-1]}'{_in(spot[:-1])} is empty; {expected}")
            items = [self.scalar(item, kind, (*spot, number)) for number, item in enumerate(node.value)]
            return _both(key, tuple(chain.from_iterable(items)))
        if node.tag == NULL_TAG and kind.may_be_empty:
            return _both(key, () if kind.many else None)
        values = self.scalar(node, kind, spot)
        if not values:
            return self.default(key)
        return _both(key, values if kind.many else values[0])

    def scalar(self, node: yaml.Node, kind: Kind, spot: Spot) -> tuple[Any, ...]:
        """Parse a scalar node to a tuple with one value; if the value is invalid, the tuple is empty.

        An invalid value is recorded as a problem.
        """
        line = _line(node)
        self.document.lines.setdefault(spot, line)
        expected = f"expected {kind.form_with_example}"
        if isinstance(node, yaml.ScalarNode) and kind.bare and node.style is not None:
            expected += ", without quotes"
        elif isinstance(node, yaml.ScalarNode) and node.tag != NULL_TAG:
            try:
                value = kind.read(node.value)
                return (kind.place(value, self.folder),)
            except Unexpected as e:
                expected = str(e)
            except ValueError:
                pass
        *around, name = spot[:-1] if isinstance(spot[-1], int) else spot
        self.wrong(spot, line, f"found {_node_text(node)} for '{name}'{_in(tuple(around))}; {expected}")
        return ()

    def default(self, key: Key) -> Read:
        """Return the default of a key; for a required key, None or an empty tuple.

        A file name in a default is resolved in the folder of the configuration. Defaults with several values contain no
        file names.
        """
        if key.required:
            return _both(key, () if key.kind.many else None)
        if key.kind.many or key.default is None:
            return _both(key, key.default)
        return _both(key, key.kind.place(key.default, self.folder))


def _both(key: Key, value: Any) -> Read:
    """Return the value of a configuration key twice: as the program uses it, and as JSON output shows it."""
    kind = key.kind
    is_absent = value is None and (key.required or key.default is None)
    if kind.many:
        is_absent = not value and not kind.may_be_empty
    if is_absent:
        return value, {}
    return value, [kind.show(each) for each in value] if kind.many else kind.show(value)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _in(spot: Spot) -> str:
    """Format the position of a value as a part of a message, such as ` in lists.stolen` or ` in entry 2 of policy.rules`."""
    if spot and isinstance(spot[-1], int):
        return f" in entry {spot[-1] + 1} of {_dotted(spot[:-1])}"
    return f" in {_dotted(spot)}" if spot else ""


def _dotted(spot: Spot) -> str:
    parts = [f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in spot]
    return "".join(parts).removeprefix(".")


def _node_text(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a section with keys of its own"
    if node.tag == NULL_TAG:
        return "no value"
    text = mask_secrets(str(node.value))
    if len(text) > SHOWN_MAX:
        text = f"{text[: SHOWN_MAX - 1]}…"
    return repr(text)
