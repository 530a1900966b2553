"""Grammars of commands as data, and the checker that applies them (RFC 6733 3.2, 7.1.5).

A grammar has the notation of its specification, so that a reader can compare the two. No command is known here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from eir.errors import DiameterError
from eir.wire.diameter import result
from eir.wire.diameter.avp import M_FLAG, Avp, Fault, nest, u32
from eir.wire.diameter.dictionary import ACCT_APPLICATION_ID, AUTH_APPLICATION_ID, BASE, PROXY_INFO, Dictionary
from eir.wire.diameter.message import Message


class GrammarRule(NamedTuple):
    """Rule for one AVP in a grammar: how often it may occur, its length, its valid values and its members."""

    single: bool
    """True if the AVP may occur only once."""
    members: "Grammar"
    """Grammar of the members, if the AVP is a group."""
    only_bytes: int | None
    """Required length of the data."""
    values: frozenset[int] | None
    """Valid values."""
    test: Callable[[bytes], object] | None
    """Function that returns whether the data are a valid value of the type."""
    is_group: bool
    is_free: bool
    """True if every value is valid."""


class Grammar(NamedTuple):
    """Grammar of a message or of a grouped AVP."""

    rules: Mapping[int, GrammarRule]
    required: tuple[int, ...]
    """Keys in the order in which the first missing one is reported."""
    strict: bool = True
    """False if the permitted AVPs are not known, so that an unknown AVP is no error even with the M bit."""
    either: tuple[int, ...] = ()
    """Keys: exactly one of them must be present."""


ANYTHING = Grammar({}, (), strict=False)
"""Members of a group without a grammar of its own."""

_LINE = re.compile(r"(?P<many>\d*\*(?!1\b)\d*)?(?:\d*\*1)?\s*(?P<open>[<{\[])\s*(?P<name>[\w-]+)\s*[>}\]]")


def read_grammar(
    text: str, dictionary: Dictionary, groups: Mapping[int, Grammar] | None = None, either: tuple[int, ...] = ()
) -> Grammar:
    """Parse a grammar in the notation of RFC 6733 3.2, where `;` begins a comment.

    `groups`: grammars of the grouped AVPs whose members are checked. `either`: keys, exactly one of them must be present.
    """
    rules, required = {}, []
    for line in text.split("\n"):
        match = _LINE.match(line.partition(";")[0].strip())
        if match is None or match["name"] == "AVP":
            continue
        key = dictionary.keys[match["name"]]
        definition = dictionary.avps[key]
        kind, members = definition.type, (groups or {}).get(key, ANYTHING)
        is_free = kind.only_bytes is None and definition.values is None and kind.test is None and not kind.is_group
        rules[key] = GrammarRule(
            not match["many"], members, kind.only_bytes, definition.values, kind.test, kind.is_group, is_free
        )
        if match["open"] in "<{":
            required.append(key)
    return Grammar(rules, tuple(required), either=either)


def check(
    message: Message, grammar: Grammar, dictionary: Dictionary, *, unknown_m: bool = False, depth_max: int = 8
) -> None:
    """Check a request against the grammar of its command. Raise DiameterError for the first fault.

    With `unknown_m`, unknown AVPs are ignored even with the M bit.

    Raises:
        DiameterError: with result code and Failed-AVP, for the first fault in the order of the message; missing AVPs come last
            (RFC 6733 7, 7.1.5).
    """
    _Checker(message, dictionary, unknown_m, depth_max).check(message.avps, message.fault, grammar, ())


_APPLICATION_IDS = frozenset({AUTH_APPLICATION_ID, ACCT_APPLICATION_ID})

_FAULTS = {
    "avp_unsupported": (result.AVP_UNSUPPORTED, "is not known here, and its M bit is set"),
    "avp_repeated": (result.AVP_OCCURS_TOO_MANY_TIMES, "may stand here once only"),
    "avp_length": (result.INVALID_AVP_LENGTH, "has a length that its type does not have"),
    "avp_value": (result.INVALID_AVP_VALUE, "has a value that its type does not have"),
    "application_mismatch": (result.INVALID_AVP_VALUE, "differs from the application id in the header"),
}
"""Faults of a single AVP."""


class _Checker(NamedTuple):
    """Checker of one message.

    `path` in its methods: the grouped AVPs that contain the checked AVPs, outermost first.
    """

    message: Message
    dictionary: Dictionary
    unknown_m: bool
    depth_max: int

    def check(self, avps: Sequence[Avp], fault: Fault | None, grammar: Grammar, path: tuple[Avp, ...]) -> None:
        rules = grammar.rules
        keys = {avp[0] for avp in avps}
        seen = None if len(keys) == len(avps) else set[int]()  # None: each AVP occurs once
        for avp in avps:
            key = avp[0]
            rule = rules.get(key)
            if rule is None:
                self._other(avp, grammar, path)
                continue
            if seen is not None:
                if rule.single and key in seen:
                    raise self._fault("avp_repeated", avp, path)
                seen.add(key)
            if rule.is_free:
                continue
            if rule.is_group:
                self._group(avp, rule.members, path)
            else:
                self._value(avp, rule, path)
        if fault is not None:
            raise self._walk_fault(fault, path)
        for key in grammar.required:
            if key not in keys:
                raise self._missing(key, path)

    def _other(self, avp: Avp, grammar: Grammar, path: tuple[Avp, ...]) -> None:
        if avp.key in self.dictionary.groups:
            self._group(avp, ANYTHING, path)
        elif avp.flags & M_FLAG and avp.key not in self.dictionary.avps and grammar.strict and not self.unknown_m:
            raise self._fault("avp_unsupported", avp, path)

    def _value(self, avp: Avp, rule: GrammarRule, path: tuple[Avp, ...]) -> None:
        data = avp.data
        if rule.only_bytes is not None and len(data) != rule.only_bytes:
            raise self._fault("avp_length", avp, path)
        if (rule.values is not None and u32(avp) not in rule.values) or (rule.test is not None and not rule.test(data)):
            raise self._fault("avp_value", avp, path)
        # RFC 6733 6.8: an application id in an AVP must equal that of the header; a CER or CEA lists all applications
        # of its sender.
        if avp.key in _APPLICATION_IDS and self.message.application_id not in {BASE, u32(avp)}:
            raise self._fault("application_mismatch", avp, path)

    def _group(self, group: Avp, grammar: Grammar, path: tuple[Avp, ...]) -> None:
        if group.key == PROXY_INFO:
            return  # its members belong to the proxy that added it (RFC 6733 6.7.2)
        path = (*path, group)
        if len(path) > self.depth_max:
            text = f"groups are nested more than {self.depth_max} deep"
            outermost = self.dictionary.corrected(path[0].key, path[0].flags)
            raise DiameterError(result.INVALID_AVP_LENGTH, "avp_depth", text, failed_avp=outermost)
        members, fault = self.message.walk(group)
        if grammar.either:
            self._either(members, fault, grammar.either, group)
        self.check(members, fault, grammar, path)

    def _either(self, members: Sequence[Avp], fault: Fault | None, either: tuple[int, ...], group: Avp) -> None:
        present = [avp for avp in members if avp.key in either]
        # RFC 6733 6.11: the Failed-AVP holds the two AVPs without their group.
        if len({avp.key for avp in present}) > 1:
            code, text = result.AVP_OCCURS_TOO_MANY_TIMES, "more than one application id"
            failed = b"".join(map(self.message.failed, present))
        elif not present and fault is None:
            code, text = result.MISSING_AVP, "no application id"
            failed = b"".join(map(self.dictionary.example, either))
        else:
            return
        name = self.dictionary.name(group.key)
        raise DiameterError(code, "application_ids", f"{name} has {text}", failed_avp=failed)

    def _fault(self, reason: str, avp: Avp, path: tuple[Avp, ...]) -> DiameterError:
        code, text = _FAULTS[reason]
        failed = self.message.failed(avp, *path)
        return DiameterError(code, reason, f"{self.dictionary.name(avp.key)}: {text}", failed_avp=failed)

    def _missing(self, key: int, path: tuple[Avp, ...]) -> DiameterError:
        example, text = nest(self.dictionary.example(key), path), f"{self.dictionary.name(key)} is missing"
        return DiameterError(result.MISSING_AVP, "avp_missing", text, failed_avp=example)

    def _walk_fault(self, fault: Fault, path: tuple[Avp, ...]) -> DiameterError:
        if fault.reason == "too_many_avps":
            return DiameterError(
                result.UNABLE_TO_COMPLY, fault.reason, "the message has more AVPs than the limit `max_avps`"
            )
        failed = nest(self.dictionary.corrected(fault.key, fault.flags), path)
        return DiameterError(
            result.INVALID_AVP_LENGTH, fault.reason, "the length of an AVP does not fit", failed_avp=failed
        )
