"""Evaluator of the PromQL expressions in the table of conditions (conditions.py) on the metrics of one node.

It parses the part of PromQL that the table uses. The node has no labels `instance` and `job`, so aggregations and matchings by
`instance` have one group. The module does no I/O.
"""

import operator
import re
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from eir.node.observe.metrics import FAMILIES, Labels

LABELS = {family.name: ("le",) if family.kind == "histogram" else family.labels for family in FAMILIES} | {
    "up": ("job",)
}
"""Names of the labels of each metric."""

LabelPairs: TypeAlias = tuple[tuple[str, str], ...]
Vector: TypeAlias = Mapping[LabelPairs, float]
"""Values by labels; a label is a pair (name, value)."""


class Metrics(Protocol):
    """Metrics that an expression reads."""

    now: float
    """Unix time of the metrics."""

    def values(self, name: str, offset_s: float = 0.0) -> Mapping[Labels, float]:
        """Return the samples of a metric `offset_s` seconds ago."""

    def rises(self, name: str, window_s: float, offset_s: float = 0.0) -> Mapping[Labels, float]:
        """Return the increase of a counter in the `window_s` seconds that ended `offset_s` seconds ago."""


Expression: TypeAlias = Callable[[Metrics], Any]
"""Function that returns the expression's value: a vector or a number."""

LEVELS = ({"or"}, {"and", "unless"}, {"==", "<", ">", "<=", ">="}, {"+", "-"}, {"*", "/"})
"""Binary operators by precedence, the weakest first."""
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "==": operator.eq, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip
ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": lambda one, other: one / other if other else float("nan"),
}  # fmt: skip
MATCHERS: Mapping[str, Callable[[str, str], bool]] = {
    "=": lambda pattern, value: pattern == value,
    "=~": lambda pattern, value: bool(re.fullmatch(pattern, value)),
    "!~": lambda pattern, value: not re.fullmatch(pattern, value),
    "!=": lambda pattern, value: pattern != value,
}
AGGREGATES: Mapping[str, Callable[[Collection[float]], float]] = {"sum": sum, "max": max, "min": min, "count": len}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TOKEN = re.compile(r'"[^"]*"|[\d.]+[smhd]?|\w+|=~|[!=<>][=~]|\S')


def parse(text: str) -> Expression:
    """Parse an expression of the table.

    Raises:
        ValueError: if the expression has text after its end.
    """
    parser = _Parser(text)
    expression = parser.expression()
    if parser.tokens:
        raise ValueError(f"expression {text!r}: cannot parse {parser.tokens[0]!r}")
    return expression


def seconds(duration: str) -> float:
    """Parse a duration, such as `5m`."""
    return float(duration[:-1]) * SECONDS[duration[-1]]


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = deque(_TOKEN.findall(text))

    def expression(self, level: int = 0) -> Expression:
        """Parse an expression whose binary operators have at least the precedence `level`."""
        if level == len(LEVELS):
            return self._operand()
        left = self.expression(level + 1)
        while self.tokens and self.tokens[0] in LEVELS[level]:
            word = self.tokens.popleft()
            on = self._labels() if self._has("on") else None
            if self._has("group_left"):
                self._labels()
            left = partial(_combine, word, on, left, self.expression(level + 1))
        return left

    def _operand(self) -> Expression:
        word = self.tokens.popleft()
        if word[0].isdigit():
            return lambda _: float(word)
        if word in AGGREGATES:
            by = self._labels() if self._has("by") else ()
            return partial(_aggregate, AGGREGATES[word], by, self._operand())
        if word == "(":
            inner = self.expression()
        elif word == "time":
            self._has("(")
            inner = lambda metrics: metrics.now  # noqa: E731 - as the other operands
        elif word == "vector":
            number = self._operand()
            inner = lambda metrics: {(): number(metrics)}  # noqa: E731 - as above
        elif word in {"increase", "rate"}:
            self._has("(")
            inner = self._selector(self.tokens.popleft(), is_rate=word == "rate")
        else:
            return self._selector(word)
        self._has(")")
        return inner

    def _selector(self, name: str, *, is_rate: bool = False) -> Expression:
        matchers = []
        while self._has("{") or self._has(","):
            label, word, pattern = (self.tokens.popleft() for _ in range(3))
            matchers.append((label, MATCHERS[word], pattern[1:-1]))
        self._has("}")
        window_s = seconds(self.tokens.popleft()) if self._has("[") else 0.0
        self._has("]")
        offset_s = seconds(self.tokens.popleft()) if self._has("offset") else 0.0
        divisor = window_s if is_rate else 1.0
        name = name.removesuffix("_bucket")
        labels = LABELS[name]

        def select(metrics: Metrics) -> Vector:
            samples = metrics.rises(name, window_s, offset_s) if window_s else metrics.values(name, offset_s)
            for label, matches, pattern in matchers:
                position = labels.index(label)
                samples = {
                    values: value
                    for values, value in samples.items()
                    if matches(pattern, "".join(values[position : position + 1]))
                }
            return {tuple(zip(labels, values, strict=False)): value / divisor for values, value in samples.items()}

        return select

    def _labels(self) -> Sequence[str]:
        """Parse label names in parentheses."""
        labels = []
        self._has("(")
        while not self._has(")"):
            labels.append(self.tokens.popleft())
        return labels

    def _has(self, word: str) -> bool:
        """Remove the next token and return true if it is `word`."""
        if not self.tokens or self.tokens[0] != word:
            return False
        self.tokens.popleft()
        return True


def _aggregate(
    combine: Callable[[Collection[float]], float], by: Sequence[str], inner: Expression, metrics: Metrics
) -> Vector:
    groups: dict[LabelPairs, list[float]] = defaultdict(list)
    for labels, value in inner(metrics).items():
        groups[_only(labels, by)].append(value)
    return {labels: combine(values) for labels, values in groups.items()}


def _combine(word: str, on: Sequence[str] | None, left: Expression, right: Expression, metrics: Metrics) -> Any:
    """Apply a binary operator. A comparison keeps the matching values of the left side, or of the vector if the left side is a number."""
    one, other = left(metrics), right(metrics)
    is_vector = isinstance(one, Mapping), isinstance(other, Mapping)
    if is_vector == (False, False):
        return ARITHMETIC[word](one, other)
    if is_vector == (False, True):
        pairs = {labels: (one, value) for labels, value in other.items()}
    elif is_vector == (True, False):
        pairs = {labels: (value, other) for labels, value in one.items()}
    else:
        matching = {_only(labels, on): value for labels, value in other.items()}
        if word == "or":
            return {**other, **one}
        keys = {labels: _only(labels, on) for labels in one}
        if word in {"and", "unless"}:
            return {labels: one[labels] for labels, key in keys.items() if (key in matching) == (word == "and")}
        pairs = {labels: (one[labels], matching[key]) for labels, key in keys.items() if key in matching}
    if word in ARITHMETIC:
        return {labels: ARITHMETIC[word](*pair) for labels, pair in pairs.items()}
    return {labels: pair[not is_vector[0]] for labels, pair in pairs.items() if COMPARISONS[word](*pair)}


def _only(labels: LabelPairs, names: Sequence[str] | None) -> LabelPairs:
    """Select the labels with these names; None selects all."""
    return labels if names is None else tuple(each for each in labels if each[0] in names)
