"""The grammar of each command as data, and the one checker that reads it (RFC 6733 3.2, 7.1.5; TS 29.272 7.2).

A grammar is written as its specification writes it, so that a reader can lay the two side by side; where it is wider,
the reason stands at the line. Imports the codec, the dictionary and answer's examples.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from eir.diameter.answer import corrected_avp, example_avp
from eir.diameter.avp import M_FLAG, Avp, Fault, encode_u32, nest, u32
from eir.diameter.dictionary import (
    ACCT_APPLICATION_ID,
    AUTH_APPLICATION_ID,
    AUTH_SESSION_STATE,
    AVPS,
    BASE,
    CAPABILITIES_EXCHANGE,
    DEVICE_WATCHDOG,
    DISCONNECT_PEER,
    GROUPS,
    KEYS,
    ME_IDENTITY_CHECK,
    PROXY_INFO,
    S13,
    TERMINAL_INFORMATION,
    VALUES,
    VENDOR_SPECIFIC_APPLICATION_ID,
    Type,
)
from eir.diameter.message import Message
from eir.errors import DiameterError

AVP_UNSUPPORTED = 5001
INVALID_AVP_VALUE = 5004
MISSING_AVP = 5005
AVP_OCCURS_TOO_MANY_TIMES = 5009
UNABLE_TO_COMPLY = 5012
INVALID_AVP_LENGTH = 5014


class Rule(NamedTuple):
    """What a grammar says of one AVP."""

    single: bool
    """At most one."""
    members: "Grammar"
    """Of its inside, if it is a group."""
    only_bytes: int | None
    """The only length of its data."""
    values: frozenset[int] | None
    """The only values of its data."""
    test: Callable[[bytes], bool] | None
    """Says of its data whether they are a value of the type."""


class Grammar(NamedTuple):
    """What a message, or a group, is made of."""

    rules: Mapping[int, Rule]
    required: tuple[int, ...]
    """Keys in the order in which the first missing one is reported."""
    strict: bool = True
    """False: nothing is known of what may stand here, so that an unknown AVP is no error, whatever its M bit."""
    either: tuple[int, ...] = ()
    """Of these keys exactly one."""


class Command(NamedTuple):
    """A command that the node answers."""

    name: str
    request: Grammar
    session: bool = False
    """Its answer begins with a Session-Id, so that without one only the answer-message grammar is left (7.2)."""
    error_avps: bytes = b""
    """What its own grammar wants in an answer besides result and origin, even when that is an error."""


IDENTITY_BYTES_MAX = 255


def _is_identity(data: bytes) -> bool:
    # RFC 6733 4.3.1: an FQDN or a realm, so 255 octets at most (RFC 1035 2.3.4). Taken is any printable ASCII: underscores
    # and the like are common.
    return 0 < len(data) <= IDENTITY_BYTES_MAX and data.isascii() and not any(octet <= 0x20 or octet == 0x7F for octet in data)


def _is_address(data: bytes) -> bool:
    # RFC 6733 4.3.1: address family and address; families other than IPv4 and IPv6 have lengths of their own.
    return len(data) > 2 and len(data) == {b"\0\x01": 6, b"\0\x02": 18}.get(data[:2], len(data))


_TESTS = {Type.IDENTITY: _is_identity, Type.ADDRESS: _is_address}

ANYTHING = Grammar({}, (), strict=False)
"""The inside of a group that none of our grammars names."""

_LINE = re.compile(r"(?P<many>\d*\*(?!1\b)\d*)?(?:\d*\*1)?\s*(?P<open>[<{\[])\s*(?P<name>[\w-]+)\s*[>}\]]")


def read_grammar(text: str, groups: Mapping[int, Grammar] | None = None, either: tuple[int, ...] = ()) -> Grammar:
    """A grammar from the specification's notation (RFC 6733 3.2); text after a semicolon is a comment.

    `groups` gives the inside of those groups that are to be looked into.
    """
    rules, required = {}, []
    for line in text.split("\n"):
        found = _LINE.match(line.partition(";")[0].strip())
        if found is None or found["name"] == "AVP":
            continue
        key = KEYS[found["name"]]
        kind = AVPS[key].type
        rules[key] = Rule(
            not found["many"], (groups or {}).get(key, ANYTHING), kind.only_bytes, VALUES.get(key), _TESTS.get(kind)
        )
        if found["open"] in "<{":
            required.append(key)
    return Grammar(rules, tuple(required), either=either)


APPLICATION_GRAMMAR = read_grammar(
    """
      { Vendor-Id }
      [ Auth-Application-Id ]
      [ Acct-Application-Id ]
    """,
    # RFC 6733 6.11: exactly one of the two.
    either=(AUTH_APPLICATION_ID, ACCT_APPLICATION_ID),
)

TERMINAL_GRAMMAR = read_grammar(
    """
      [ IMEI ]
      [ 3GPP2-MEID ]
      [ Software-Version ]
    * [ AVP ]
    """
)  # TS 29.272 7.3.3

CER = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
   1* { Host-IP-Address }
      { Vendor-Id }
      { Product-Name }
      [ Origin-State-Id ]
    * [ Supported-Vendor-Id ]
    * [ Auth-Application-Id ]
    * [ Inband-Security-Id ]
    * [ Acct-Application-Id ]
    * [ Vendor-Specific-Application-Id ]    ; not looked into: whether anything is common is all that matters here
      [ Firmware-Revision ]
    * [ AVP ]
    """
)  # RFC 6733 5.3.1

DWR = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
      [ Origin-State-Id ]
    * [ AVP ]
    """
)  # RFC 6733 5.5.1

DPR = read_grammar(
    """
      { Origin-Host }
      { Origin-Realm }
      [ Disconnect-Cause ]    ; required by 5.4.1, but a peer that leaves goes, whatever it forgets to say
    * [ AVP ]
    """
)  # RFC 6733 5.4.1

ECR = read_grammar(
    """
      < Session-Id >
      [ DRMP ]
      [ Vendor-Specific-Application-Id ]
      { Auth-Session-State }
      { Origin-Host }
      { Origin-Realm }
      [ Destination-Host ]
      { Destination-Realm }
      [ Terminal-Information ]    ; required by 7.2.19; real clients leave it out, and the application decides
      [ User-Name ]
      [ Auth-Application-Id ]     ; these two are not in 7.2.19; base stacks add them
      [ Acct-Application-Id ]
    * [ AVP ]
    * [ Proxy-Info ]
    * [ Route-Record ]
    """,
    {VENDOR_SPECIFIC_APPLICATION_ID: APPLICATION_GRAMMAR, TERMINAL_INFORMATION: TERMINAL_GRAMMAR},
)  # TS 29.272 7.2.19

NO_STATE_MAINTAINED = encode_u32(AUTH_SESSION_STATE, 1)

COMMANDS: dict[tuple[int, int], Command] = {
    (BASE, CAPABILITIES_EXCHANGE): Command("Capabilities-Exchange", CER),
    (BASE, DEVICE_WATCHDOG): Command("Device-Watchdog", DWR),
    (BASE, DISCONNECT_PEER): Command("Disconnect-Peer", DPR),
    (S13, ME_IDENTITY_CHECK): Command("ME-Identity-Check", ECR, session=True, error_avps=NO_STATE_MAINTAINED),
}
"""(application id, command code) → command."""


class _Check(NamedTuple):
    """What stays the same throughout one check."""

    message: Message
    application_id: int
    unknown_m: bool
    depth_max: int


def check(message: Message, grammar: Grammar, *, unknown_m: bool = False, depth_max: int = 8) -> None:
    """Hold a request to its command's grammar.

    `unknown_m`: AVPs that the dictionary does not have are ignored although they have the M bit. Raises DiameterError
    with result code and Failed-AVP for the first thing that is wrong, in the order of the message; what is missing
    comes last (RFC 6733 7, 7.1.5).
    """
    state = _Check(message, message.application_id, unknown_m, depth_max)
    _check_avps(state, message.avps, message.fault, grammar, ())


def _check_avps(
    state: _Check, avps: Sequence[Avp], fault: Fault | None, grammar: Grammar, path: tuple[Avp, ...]
) -> None:
    rules = grammar.rules
    seen = set()
    for avp in avps:
        key = avp.key
        rule = rules.get(key)
        if rule is None:
            if key in GROUPS:
                _check_group(state, avp, ANYTHING, path)
            elif avp.flags & M_FLAG and key not in AVPS and grammar.strict and not state.unknown_m:
                raise _fault(AVP_UNSUPPORTED, "avp_unsupported", avp, state.message.failed(avp, *path))
            continue
        if rule.single and key in seen:
            raise _fault(AVP_OCCURS_TOO_MANY_TIMES, "avp_repeated", avp, state.message.failed(avp, *path))
        seen.add(key)
        if key in GROUPS:
            _check_group(state, avp, rule.members, path)
        else:
            _check_value(state, avp, rule, path)
    if fault is not None:
        raise _walk_fault(fault, path)
    missing = next((key for key in grammar.required if key not in seen), None)
    if missing is not None:
        example = nest(example_avp(missing & 0xFFFFFFFF, missing >> 32), path)
        raise DiameterError(MISSING_AVP, "avp_missing", f"{AVPS[missing].name} is missing", failed_avp=example)


def _check_value(state: _Check, avp: Avp, rule: Rule, path: tuple[Avp, ...]) -> None:
    if rule.only_bytes is not None and len(avp.data) != rule.only_bytes:
        raise _fault(INVALID_AVP_LENGTH, "avp_length", avp, state.message.failed(avp, *path))
    if (rule.values is not None and u32(avp) not in rule.values) or (rule.test is not None and not rule.test(avp.data)):
        raise _fault(INVALID_AVP_VALUE, "avp_value", avp, state.message.failed(avp, *path))
    # RFC 6733 6.8: an application id in an AVP is that of the header; a CER or CEA lists all that its sender has.
    if (
        avp.key in {AUTH_APPLICATION_ID, ACCT_APPLICATION_ID}
        and state.application_id != BASE
        and u32(avp) != state.application_id
    ):
        raise _fault(INVALID_AVP_VALUE, "application_mismatch", avp, state.message.failed(avp, *path))


def _check_group(state: _Check, group: Avp, grammar: Grammar, path: tuple[Avp, ...]) -> None:
    if group.key == PROXY_INFO:
        return  # Its inside is the business of the proxy that put it there (RFC 6733 6.7.2).
    path = (*path, group)
    if len(path) > state.depth_max:
        outermost = path[0]
        raise DiameterError(
            INVALID_AVP_LENGTH,
            "avp_depth",
            f"groups are nested more than {state.depth_max} deep",
            failed_avp=corrected_avp(outermost.key, outermost.flags),
        )
    members, fault = state.message.walk(group)
    if grammar.either:
        _check_either(state, members, fault, grammar, path)
    _check_avps(state, members, fault, grammar, path)


def _check_either(
    state: _Check, members: Sequence[Avp], fault: Fault | None, grammar: Grammar, path: tuple[Avp, ...]
) -> None:
    present = [avp for avp in members if avp.key in grammar.either]
    name = AVPS[path[-1].key].name
    # RFC 6733 6.11: the Failed-AVP holds both AVPs themselves, not inside their group.
    if len({avp.key for avp in present}) > 1:
        failed = b"".join(map(state.message.failed, present))
        raise DiameterError(
            AVP_OCCURS_TOO_MANY_TIMES, "application_ids", f"{name} has more than one application id", failed_avp=failed
        )
    if not present and fault is None:
        failed = b"".join(example_avp(key & 0xFFFFFFFF, key >> 32) for key in grammar.either)
        raise DiameterError(MISSING_AVP, "application_ids", f"{name} has no application id", failed_avp=failed)


def _fault(result_code: int, reason: str, avp: Avp, failed: bytes) -> DiameterError:
    definition = AVPS.get(avp.key)
    name = definition.name if definition else f"AVP {avp.code} of vendor {avp.vendor}"
    return DiameterError(result_code, reason, f"{name}: {_WORDS[reason]}", failed_avp=failed)


_WORDS = {
    "avp_unsupported": "is not known here, and its M bit is set",
    "avp_repeated": "may stand here once only",
    "avp_length": "has a length that its type does not have",
    "avp_value": "has a value that its type does not have",
    "application_mismatch": "differs from the application id in the header",
}


def _walk_fault(fault: Fault, path: tuple[Avp, ...]) -> DiameterError:
    if fault.reason == "too_many_avps":
        return DiameterError(UNABLE_TO_COMPLY, fault.reason, "the message has more AVPs than the limit `max_avps`")
    failed = nest(corrected_avp(fault.key, fault.flags), path)
    return DiameterError(INVALID_AVP_LENGTH, fault.reason, "the length of an AVP does not fit", failed_avp=failed)
