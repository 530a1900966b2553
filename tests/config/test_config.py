"""The configuration: each fault with its line, YAML's traps, bounds, and what is built."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import threading
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from configuration import GOOD, IDENTITY, LISTS, ONE_PEER, RULES, SIGNER, problems_of
from hypothesis import given
from hypothesis import strategies as st
from simulated.certificates import Authority, days

from eir.checks.settings import Override, PolicySettings, Rule, Status
from eir.config import load_config
from eir.config.keys import SECTIONS, TABLE
from eir.config.reader import FILE_BYTES_MAX
from eir.errors import ConfigError
from eir.lists.record.settings import ListSettings
from eir.schema import Key
from eir.wire.peers.settings import Identity, Limits, PeerSettings
from eir.wire.transport.sctp_options import LOAD_ADVICE, is_supported
from eir.wire.transport.settings import SctpSettings, TlsSettings

SAMPLE = Path(__file__).parents[2] / "config" / "eir.yaml"
PAGE = SAMPLE.parent / "REFERENCE.md"


# What is built


def test_shortest_configuration_has_every_default(write, tmp_path):
    config = load_config(write(IDENTITY + ONE_PEER))
    assert config.identity == Identity(host="eir.epc", realm="epc", origin_state_id=0)
    assert config.listen == ("tcp://127.0.0.1:3868",)
    assert config.peers == (PeerSettings(label="epc", realm="epc", sources=(ip_network("127.0.0.0/8"),)),)
    assert config.limits == Limits()
    assert config.policy == PolicySettings()
    assert config.lists == {}
    assert (config.inbox, config.inbox_patience_s) == (None, 3600)
    assert config.state == tmp_path / "var"
    assert (config.store, config.boot_without_lists, config.http) == ("sqlite", "serve", "127.0.0.1:9868")
    assert (config.full_identifiers, config.log_level, config.warnings) == (False, "info", ())
    assert load_config(write(GOOD)).lists == {"stolen": ListSettings(name="stolen", signers=tmp_path / "signers")}


def test_a_file_has_the_same_paths_by_whichever_way_it_is_named(write, tmp_path):
    """Or what a node goes by would not be what the file says."""
    (tmp_path / "beside").mkdir()
    path = write(GOOD)
    assert load_config(tmp_path / "beside" / ".." / path.name).shown == load_config(path).shown


def test_everything_set(write, tmp_path):
    (tmp_path / "revoked").write_text("ssh-ed25519 AAAA\n")
    config = load_config(write("""
identity: {host: eir.epc, realm: epc, aliases: [eir2.epc, eir3.epc], realms: other.realm}
listen: [tcp://0.0.0.0, 'tcp://[::]:3869', tcp://eir.epc:0]
peers:
  - {name: mme:1, host: mme.epc, realm: epc, from: [10.0.0.0/8, 192.0.2.1, '2001:db8::/32'], connections: 4,
     watchdog_s: 6, connect: tcp://10.0.0.1, reconnect_after_s: 500s, rate_max: 0.5, lenient: [applications, unknown_m, destination], as: {host: a.b, realm: b}}
  - {host: sgsn.epc, from: 10.0.0.0/8, watchdog_s: 1m, lenient: destination, probe: true}
  - {from: 192.0.2.0/24, expected: false, answers: {unknown: greylisted, greylisted: whitelisted}}
limits: {connections_max: 32, rate_max: 100, unidentified_max: 1}
state: /srv/eir
inbox: in/drop
inbox_patience_s: 2d
boot_without_lists: refuse
lists:
  stolen: {kind: devices, signers: signers, revoked: revoked, threshold: 1, shrink_max: 0%, growth_max: 12.5 %, range_tacs_max: 1, bad_rows_max: 0, reasons: [stolen, 'lost, or not']}
policy:
  rules:
    - {list: stolen, not_list: stolen, imei: [00101001000001, 001010010000019, 0010100100000201, A0000000000001], tac: [00101001, 0010*], software_version: 01, imsi: [00101, 262], origin_host: a.b, origin_realm: [b, c], answer: unknown}
    - {tac: 35209900, observe: yes, answer: greylisted}
  default: unknown
  no_identity: error
  bad_identity: greylisted
  override: {answer: whitelisted, until: 2099-12-01 06:00:00+02:00}
http: off
log: {level: debug}
privacy: {identifiers: full}
"""))  # fmt: skip
    assert config.identity == Identity(
        host="eir.epc", realm="epc", aliases=("eir2.epc", "eir3.epc"), realms=("other.realm",), origin_state_id=0
    )
    assert config.listen == ("tcp://0.0.0.0:3868", "tcp://[::]:3869", "tcp://eir.epc:0")
    assert config.peers == (
        PeerSettings(
            label="mme:1", host="mme.epc", realm="epc", connections=4, watchdog_s=6, connect="tcp://10.0.0.1:3868", reconnect_after_s=500, rate_max=0.5, as_host="a.b", as_realm="b",
            sources=(ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"), ip_network("2001:db8::/32")),
            lenient=frozenset({"applications", "unknown_m", "destination"}),
        ),
        PeerSettings(label="sgsn.epc", host="sgsn.epc", sources=(ip_network("10.0.0.0/8"),), watchdog_s=60, lenient=frozenset({"destination"}), probe=True),
        PeerSettings(
            label="192.0.2.0/24", sources=(ip_network("192.0.2.0/24"),), expected=False, answers=(("greylisted", "whitelisted"), ("unknown", "greylisted")),
        ),
    )  # fmt: skip
    assert config.limits == Limits(connections_max=32, rate_max=100, unidentified_max=1)
    assert config.state == Path("/srv/eir")
    assert (config.inbox, config.inbox_patience_s) == (tmp_path / "in" / "drop", 172_800)
    assert (config.boot_without_lists, config.http, config.full_identifiers, config.log_level) == (
        "refuse",
        None,
        True,
        "debug",
    )
    assert config.lists == {
        "stolen": ListSettings(
            name="stolen", signers=tmp_path / "signers", revoked=tmp_path / "revoked", shrink_max=0, growth_max=0.125,
            range_tacs_max=1, bad_rows_max=0, reasons=("stolen", "lost, or not"),
        )
    }  # fmt: skip
    assert config.policy == PolicySettings(
        rules=(
            Rule(
                answer=Status.UNKNOWN, list="stolen", not_list="stolen", tac=("00101001", "0010"), software_version=("01",),
                imei=("00101001000001", "001010010000019", "0010100100000201", "A0000000000001"), imsi=("00101", "262"), origin_host=("a.b",), origin_realm=("b", "c"),
            ),
            Rule(answer=Status.GREYLISTED, observe=True, tac=("35209900",)),
        ),
        default=Status.UNKNOWN,
        no_identity=None,
        bad_identity=Status.GREYLISTED,
        override=Override(answer=Status.WHITELISTED, until=datetime(2099, 12, 1, 4, tzinfo=UTC)),
    )  # fmt: skip


def test_addresses_of_sctp(write):
    text = "listen: ['sctp://10.0.0.1,[2001:db8::1]', 'sctp://eir.epc,127.0.0.1:4000']\nsctp: {local_addresses: [10.0.0.1, '2001:DB8::1'], optional: true}\n"
    config = load_config(write(IDENTITY + text + ONE_PEER.replace("from", "connect: 'sctp://10.2.0.1,10.3.0.1', from")))
    assert config.listen == ("sctp://10.0.0.1,[2001:db8::1]:3868", "sctp://eir.epc,127.0.0.1:4000")
    assert config.peers[0].connect == "sctp://10.2.0.1,10.3.0.1:3868"
    assert config.sctp == SctpSettings(local_addresses=("10.0.0.1", "2001:db8::1"), optional=True)
    assert [each for each in config.warnings if LOAD_ADVICE not in each.text] == []


def test_a_kernel_without_sctp_is_warned_of(write):
    """And one with SCTP is not."""
    warnings = load_config(write(IDENTITY + "listen: sctp://127.0.0.1\n" + ONE_PEER)).warnings
    assert [each.line for each in warnings] == ([] if is_supported() else [2])
    assert all(f"sctp://127.0.0.1:3868 does not work on this host: {LOAD_ADVICE}" in each.text for each in warnings)


OPTIONAL = {section.path: section for section in SECTIONS if section.optional}
"""Sections that have no effect if they are left out."""


def under(path, text):
    """Write the section `path` of a configuration that is valid otherwise; return its lines and the number of the last one."""
    names = ["*" if name == "*" else name.removesuffix("[]") for name in path.split(".")]
    lines = [f"{'  ' * depth}{'x' if name == '*' else name}:" for depth, name in enumerate(names)]
    return "".join(f"{line}\n" for line in lines[:-1]) + f"{lines[-1]}{text}\n", len(lines)


def outcome(file):
    """Return the values of a configuration, or its problems with their lines."""
    try:
        return load_config(file).shown
    except ConfigError as e:
        return [(problem.line, problem.text) for problem in e.problems]


@pytest.mark.parametrize("path", sorted(OPTIONAL))
def test_a_section_without_a_value_counts_as_given(write, path):
    """As one with `{}`: each key that it needs is named with its line, and without such keys the section is in force."""
    found = []
    for text in (" {}", "", "  # a comment", "\n        #key: 1"):
        section, line = under(path, text)
        found.append(outcome(write(IDENTITY + ONE_PEER + section)))
    assert all(each == found[0] for each in found)
    for name, key in OPTIONAL[path].entries.items():
        if isinstance(key, Key) and key.required:
            text = f"the key '{name}' is missing in {path.replace('*', 'x')}; expected {key.kind.form_with_example}"
            assert (2 + line, text) in found[0]
    left_out = section.rpartition(f"{path.rpartition('.')[2]}:")[0]
    assert found[0] != outcome(write(IDENTITY + ONE_PEER + left_out))


def test_sections_without_anything_in_them_have_their_defaults(write):
    text = IDENTITY + ONE_PEER
    bare = "".join(f"{name}:\n" for name in ("limits", "lists", "policy", "log", "privacy", "http"))
    assert dataclasses.replace(load_config(write(text + bare)), http="127.0.0.1:9868") == load_config(write(text))
    assert load_config(write(text + "policy: {rules: }\n")).policy == PolicySettings()


def test_configuration_is_frozen(write):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(write(GOOD)).heal = False


@pytest.mark.parametrize(
    ("text", "line", "warning"),
    [
        ("fraud_check:\n  listen: http://127.0.0.1:8444\n", 2, "the key 'fraud_check' has no effect: DeviceAuthenticity replaced CAMARA's IMEI Fraud Check: rename the section"),
        ("workers: 2\n", 2, "the key 'workers' has no effect: a node has one answering process; for more capacity run more nodes on one Redis"),
        ("tamper:\n  tac_db: tacs.txt\n", 3, "the key 'tac_db' in tamper has no effect: TACs come in a signed list now"),
        ("tamper:\n  origins: {}\n", 3, "the key 'origins' in tamper has no effect: the record itself shows which origins are one place"),
        ("limits:\n  rate_max: 100\n  max_message_bytes: 64KiB\n", 4, "the key 'max_message_bytes' in limits has no effect: the value is fixed at 131072; remove the key"),
        ("limits: {cer_timeout_s: 5}\n", 2, "the key 'cer_timeout_s' in limits has no effect: the value is fixed at 10; remove the key"),
        ("sctp: {rto_min_s: 2}\n", 2, "the key 'rto_min_s' in sctp has no effect: the value is fixed at 0.3; remove the key"),
        ("n5g:\n  listen: http://127.0.0.1:0\n  nrf: {uri: 'http://127.0.0.1:1', heartbeat_s: 5}\n", 4, "the key 'heartbeat_s' in n5g.nrf has no effect: the NRF sets the interval; remove the key"),
        ("ss7:\n  point_code: 1-1-2\n  gateways:\n  - {connect: tcp://127.0.0.1:1, reconnect_after_s: 5}\n", 5, "the key 'reconnect_after_s' in entry 1 of ss7.gateways has no effect: the first pause is fixed at 1 s; remove the key"),
        ("sightings:\n  stream: eir:checks\n  keep: 30d\n", 3, "the key 'stream' in sightings has no effect: events go to a receiver over HTTP, see sightings.webhook"),
    ],
)  # fmt: skip
def test_a_removed_key_is_a_warning_that_names_its_successor(write, text, line, warning):
    (found,) = (each for each in load_config(write(IDENTITY + text)).warnings if "has no effect" in each.text)
    assert found.line == line
    assert found.text.startswith(warning)


# Every fault, with its line and what was expected


FAULTS = [
    # what stands after a good identity (line 1), the line, and what the message has to say
    ("polici: {}\n", 2, r"^unknown key 'polici'; did you mean 'policy'\?$"),
    ("lists:\n  stolen-national:\n    signers: signers\n    shrinkmax: 20%\n", 5, r"^unknown key 'shrinkmax' in lists.stolen-national; did you mean 'shrink_max'\?$"),
    ("limits:\n  rate-max: 40\n", 3, "unknown key 'rate-max' in limits; did you mean 'rate_max'"),
    ("zzz: 1\n", 2, "^unknown key 'zzz'; known here: identity, listen, peers"),
    ("identity: {host: b, realm: c}\n", 2, "the key 'identity' occurs twice, first in line 1"),
    ("http: off\nhttp: 127.0.0.1:1\n", 3, "the key 'http' occurs twice, first in line 2"),
    ("policy:\n  default: whitelisted\n  'default': unknown\n", 4, "'default' in policy occurs twice, first in line 3"),
    ("listen: tls://127.0.0.1\n", 2, "tls://127.0.0.1:5868 needs the section 'tls' with certificate, key and ca"),
    ("peers:\n- {realm: a, connect: 'tls://10.0.0.1'}\n", 3, "tls://10.0.0.1:5868 needs the section 'tls'"),
    ("tls: {key: k, ca: c}\n", 2, "the key 'certificate' is missing in tls; expected a file path"),
    ("tls: {certificate: c, key: k, ca: a, min_version: 1.1}\n", 2, "found '1.1' for 'min_version' in tls; expected 1.2 or 1.3"),
    ("tls:\n  certificate: nowhere\n  key: k\n  ca: a\n", 3, "nowhere cannot be read: No such file or directory"),
    ("peers:\n- {realm: a, tls_names: '*'}\n", 3, "for 'tls_names' in entry 1 of peers; expected a domain name such as dra.example.org"),
    ("overload_answer: 3002\n", 2, "found '3002' for 'overload_answer'; expected 3004, whitelisted, blacklisted, greylisted or unknown"),
    ("listen: udp://127.0.0.1\n", 2, "found 'udp://127.0.0.1' for 'listen'; expected tcp://ADDRESS:PORT"),
    ("listen:\n- tcp://127.0.0.1:1\n- tcp://127.0.0.1:65536\n", 4, "found 'tcp://127.0.0.1:65536' for 'listen'; expected tcp://"),
    *(
        (f"sightings:\n  webhook: {{url: 'http://127.0.0.1:{port}/x', key_file: k}}\n", 3, f"found 'http://127.0.0.1:{port}/x' for 'url' in sightings.webhook; expected http://HOST")
        for port in ("0", "65536", "99999", "x")
    ),
    ("listen: [tcp://::1:3868]\n", 2, "expected tcp://ADDRESS:PORT, tls://ADDRESS:PORT or sctp://ADDRESS,ADDRESS:PORT, such as"),
    ("listen: ['tcp://10.0.0.1,10.0.1.1']\n", 2, "expected one address; only sctp:// accepts several"),
    ("listen: ['sctp://10.0.0.1:3868,10.0.1.1:3868']\n", 2, "expected one port for all addresses, after the last address"),
    ("listen: ['sctp://10.0.0.1,']\n", 2, "expected tcp://ADDRESS:PORT, tls://ADDRESS:PORT or sctp://ADDRESS,ADDRESS:PORT, such as"),
    ("listen: ['dtls://10.0.0.1']\n", 2, "DTLS over SCTP is not supported: expected sctp:// with IPsec below it, or tls://"),
    ("peers:\n- {realm: a, connect: 'sctp://10.0.0.1,10.0.1.1:0'}\n", 3, "expected tcp://ADDRESS:PORT, tls://ADDRESS:PORT or sctp://"),
    ("sctp: {local_addresses: eir.epc}\n", 2, "found 'eir.epc' for 'local_addresses' in sctp; expected an IP address"),
    ("listen: [127.0.0.1:3868]\n", 2, "expected tcp://ADDRESS:PORT, tls://ADDRESS:PORT or sctp://ADDRESS,ADDRESS:PORT, such as"),
    ("listen: ['tcp://1.2.3:1']\n", 2, "expected tcp://"),
    ("listen: ['tcp://1.2.3.4/']\n", 2, "expected tcp://"),
    ("listen: ['tcp://user@1.2.3.4']\n", 2, "expected tcp://"),
    ("listen: []\n", 2, "the list 'listen' is empty; expected tcp://"),
    ("listen:\n", 2, "found no value for 'listen'; expected tcp://"),
    ("listen: [tcp://127.0.0.1, tcp://127.0.0.1:3868]\n", 2, "tcp://127.0.0.1:3868 stands twice"),
    ("peers: {realm: epc}\n", 2, "found a section with keys of its own for 'peers'; expected a list, each entry with '- ' before it"),
    ("peers: [epc]\n", 2, "found 'epc' in entry 1 of peers; expected keys"),
    ("peers:\n- {}\n", 3, "the entry matches every client; expected at least one of host, realm, from, gt and point_code"),
    ("peers:\n- {realm: epc}\n- {realm: aaa://x}\n", 4, "found 'aaa://x' for 'realm' in entry 2 of peers; expected a name alone, without aaa://"),
    ("peers:\n- {realm: bücher.example}\n", 3, "xn--"),
    ("peers:\n- {realm: 'a b'}\n", 3, "expected a domain name"),
    ("peers:\n- {realm: a..b}\n", 3, "expected a domain name"),
    ("peers:\n- {realm: -a.b}\n", 3, "expected a domain name"),
    ("peers:\n- {realm: " + "a" * 64 + "}\n", 3, "expected a domain name"),
    ("peers:\n- {realm: " + "a." * 127 + "aa}\n", 3, "expected a domain name"),
    ("peers:\n- {host: EIR.epc}\n", 3, "the peer's host EIR.epc is the node's own name"),
    ("peers:\n- {name: a, host: b}\n- {name: a, host: c}\n", 4, "this peer would have the name 'a' in metrics and commands, like the entry in line 3; expected a 'name' of its own"),
    ("peers:\n- {realm: b, from: 10.0.0.0/8}\n- {realm: b}\n", 4, "this peer would have the name 'b' in metrics and commands, like the entry in line 3"),
    ("peers:\n- {realm: a, connect: mme.epc}\n", 3, "found 'mme.epc' for 'connect' in entry 1 of peers; expected tcp://ADDRESS:PORT, tls://ADDRESS:PORT or sctp://ADDRESS,ADDRESS:PORT, such as"),
    ("peers:\n- {realm: a, connect: 'tcp://10.0.0.1:0'}\n", 3, "expected tcp://ADDRESS:PORT, tls://ADDRESS:PORT or sctp://ADDRESS,ADDRESS:PORT, such as"),
    ("peers:\n- {realm: a, rate_max: 0}\n", 3, "found '0' for 'rate_max' in entry 1 of peers; expected requests a second from 0.1 to 1000000"),
    ("limits: {rate_max: '5'}\n", 2, "expected requests a second from 0.1 to 1000000, without quotes"),
    ("limits: {rate_max: fast}\n", 2, "expected requests a second from"),
    ("peers:\n- from: 10.1.2.3/8\n", 3, "found '10.1.2.3/8' for 'from' in entry 1 of peers; it has bits outside its mask; expected the network 10.0.0.0/8 or the address 10.1.2.3"),
    ("peers:\n- from: [10.0.0.0/8, 10.0.0.0/33]\n", 3, "found '10.0.0.0/33' for 'from' in entry 1 of peers; expected a network"),
    ("peers:\n- from: ['2001:db8::1/32']\n", 3, "expected the network 2001:db8::/32 or"),
    ("peers:\n- from:\n", 3, "found no value for 'from'"),
    ("peers:\n- from: []\n", 3, "the list 'from' in entry 1 of peers is empty"),
    ("peers:\n- {realm: a, connections: '3'}\n", 3, "found '3' for 'connections' in entry 1 of peers; expected an integer from 1 to 64, without quotes"),
    ("peers:\n- {realm: a, connections: 0}\n", 3, "integer from 1 to 64"),
    ("peers:\n- {realm: a, connections: 1.5}\n", 3, "integer from 1 to 64"),
    ("peers:\n- {realm: a, connections: 010}\n", 3, "remove the leading zero, which some YAML readers take as octal"),
    ("peers:\n- {realm: a, connections: 1:30}\n", 3, "found '1:30' for 'connections'"),
    ("peers:\n- {realm: a, watchdog_s: 5}\n", 3, "found '5' for 'watchdog_s' in entry 1 of peers; expected seconds from 6 to 3600"),
    ("peers:\n- {realm: a, watchdog_s: 6 parsecs}\n", 3, "such as 500ms, 30s, 2m"),
    ("peers:\n- {realm: a, lenient: [aplications]}\n", 3, "expected applications, destination or unknown_m; did you mean 'applications'"),
    ("peers:\n- {realm: a, as: x}\n", 3, "found 'x' in peers\\[1\\].as; expected keys"),
    ("limits: [1]\n", 2, "found a list in limits; expected keys, each with ': ' and a value"),
    ("limits: {load_memory: 64 kilo}\n", 2, "such as 64KiB"),
    ("limits: {load_memory: 1}\n", 2, "bytes from 134217728"),
    ("limits: {load_memory: 9999999GiB}\n", 2, "bytes from 134217728"),
    ("state: ''\n", 2, "found '' for 'state'; expected a folder path"),
    ("store: mysql\n", 2, "found 'mysql' for 'store'; expected sqlite, redis://HOST"),
    ("store: mysql://u:secret@host/0\n", 2, r"^found 'mysql://u:\*\*\*@host/0' for 'store'; .*no store has the scheme 'mysql'"),
    ("store: redis://host/0?pasword_file=x\n", 2, "unknown option 'pasword_file'"),
    ("store: redis+sentinel://host\n", 2, "/SERVICE"),
    ("inbox: ''\n", 2, "found '' for 'inbox'; expected a folder path"),
    ("sightings: {keep: 90x}\n", 2, "such as 36h, 90d"),
    ("inbox_patience_s: 31d\n", 2, "expected seconds from 1 to 2592000"),
    ("boot_without_lists: yes\n", 2, "found 'yes' for 'boot_without_lists'; expected serve or refuse"),
    ("lists: {stolen: {}}\n", 2, "the list stolen has no signers and is not local; expected signers \\(an allowed_signers file\\), or local: true"),
    ("lists: {stolen: }\n", 2, "the list stolen has no signers and is not local"),
    ("lists: {stolen: {signers: nowhere}}\n", 2, "the signers file of stolen does not exist: .*/nowhere; write the publishers' public keys there, one per line: NAME namespaces="),
    ("lists: {stolen: {signers: .}}\n", 2, "is not a file"),
    ("lists: {stolen: {signers: empty}}\n", 2, "is empty"),
    ("lists: {stolen: {signers: signers, revoked: nowhere}}\n", 2, "the file of revoked keys of stolen does not exist: .*; write the revoked public keys there, or leave 'revoked' out"),
    ("lists: {stolen: {signers: signers, revoked: empty}}\n", 2, "the file of revoked keys of stolen is empty"),
    ("lists: {'a b': {signers: signers}}\n", 2, "'a b' cannot be the name of a list; expected 1 to 64 letters"),
    ("lists: {stolen: {signers: signers, kind: device}}\n", 2, "found 'device' for 'kind' in lists.stolen; expected devices, pairs, subscribers or device_types; did you mean 'devices'"),
    ("lists:\n  types: {kind: device_types, signers: signers, reasons: Smartphone}\n", 3, "types is a list of device_types, whose entries have no reasons; leave 'reasons' out"),
    ("first_seen: {}\nlists: {lent: {local: true, reasons: [tax paid]}}\npolicy: {rules: [{list: lent, answer: whitelisted}]}\n", 3, "lent registers devices for a period of grace, with any reason; leave 'reasons' out"),
    ("lists: {own: {local: true, reasons: []}}\n", 2, "the list 'reasons' in lists.own is empty; expected a reason such as stolen"),
    ("lists: {stolen: {signers: signers, local: true}}\n", 2, "stolen is local, so no release changes it; leave 'signers' out, or 'local'"),
    ("lists: {stolen: {revoked: signers, local: true}}\n", 2, "leave 'revoked' out, or 'local'"),
    ("lists: {stolen: {local: no}}\n", 2, "the list stolen has no signers and is not local"),
    ("lists: {stolen: {local: here}}\n", 2, "found 'here' for 'local' in lists.stolen; expected true or false"),
    ("lists: {stolen: {signers: signers, shrink_max: 0.2}}\n", 2, "found '0.2' for 'shrink_max' in lists.stolen; expected a percentage from 0% to 100%, such as 20%"),
    ("lists: {stolen: {signers: signers, shrink_max: 101%}}\n", 2, "percentage from 0% to 100%"),
    ("lists: {stolen: {signers: [a, b]}}\n", 2, "found a list for 'signers' in lists.stolen"),
    ("policy: {rules: [{list: stolen, answer: blacklisted}]}\n", 2, "the rule's list 'stolen' is not under 'lists'; lists are: none"),
    ("policy: {rules: [{not_list: stoln, answer: blacklisted}]}\nlists: {stolen: {signers: signers}}\n", 2, "the rule's list 'stoln' is not under 'lists'; did you mean 'stolen'"),
    ("policy: {rules: [{device_bound_elsewhere: iott, answer: blacklisted}]}\nlists: {iot: {local: true, kind: pairs}}\n", 2, "the rule's list 'iott' is not under 'lists'; did you mean 'iot'"),
    ("policy: {rules: [{subscriber_bound_elsewhere: iot, answer: blacklisted}]}\nlists: {iot: {local: true, kind: subscribers}}\n", 2, "'iot' is a list of subscribers; expected a list of pairs"),
    ("policy: {rules: [{tac: 00101001}]}\n", 2, "the key 'answer' is missing in entry 1 of policy.rules; expected whitelisted, blacklisted, greylisted or unknown"),
    ("policy: {rules: [{tac: 00101001, answer: black}]}\n", 2, "did you mean 'blacklisted'"),
    ("policy: {rules: [{answer: blacklisted}]}\n", 2, "a rule without a condition answers every device; expected one of list, not_list, imei, tac"),
    ("policy: {rules: [{answer: blacklisted, tac: []}]}\n", 2, "the list 'tac' in entry 1 of policy.rules is empty"),
    ("policy: {rules: [{answer: blacklisted, tac: 101001}]}\n", 2, "found '101001' for 'tac' in entry 1 of policy.rules; expected 8 digits"),
    ("policy: {rules: [{answer: blacklisted, tac: [001010010]}]}\n", 2, "found '001010010' for 'tac' in entry 1 of policy.rules"),
    ("policy: {rules: [{answer: blacklisted, tac: ['*']}]}\n", 2, "expected 8 digits"),
    ("policy: {rules: [{answer: blacklisted, tac: [00101001*]}]}\n", 2, "expected 8 digits"),
    ("policy: {rules: [{answer: blacklisted, tac: [\u0660\u0660101001]}]}\n", 2, "expected 8 digits"),
    ("policy: {rules: [{answer: blacklisted, software_version: 1}]}\n", 2, "expected two digits"),
    ("policy: {rules: [{answer: blacklisted, imei: [0010100100000]}]}\n", 2, "expected a whole identifier: no IMEI .14 to 16 digits"),
    ("policy: {rules: [{answer: blacklisted, imei: 00101001*}]}\n", 2, "expected a whole identifier"),
    ("policy: {rules: [{answer: blacklisted, identifier: [zero, check_digit]}]}\n", 2, "check_digit has no successor, because many clients send wrong check digits; remove it"),
    ("policy: {rules: [{answer: blacklisted, imsi: 00101x}]}\n", 2, "expected the first 1 to 15 digits"),
    ("policy: {rules: [{answer: blacklisted, tac: 00101001, observe: 'true'}]}\n", 2, "found 'true' for 'observe' in entry 1 of policy.rules; expected true or false, without quotes"),
    ("policy: {rules: [{answer: blacklisted, tac: 00101001, observe: 1}]}\n", 2, "expected true or false"),
    ("policy: {default: error}\n", 2, "found 'error' for 'default' in policy; expected whitelisted"),
    ("policy: {default: }\n", 2, "found no value for 'default' in policy; expected"),
    ("policy: {no_identity: none}\n", 2, "greylisted, unknown or error"),
    ("policy: {override: {}}\n", 2, "the key 'answer' is missing in policy.override"),
    ("policy: {override: {answer: whitelisted, until: 2026-12-01}}\n", 2, "found '2026-12-01' for 'until' in policy.override; expected a time with its zone such as 2026-"),
    ("policy: {override: {answer: whitelisted, until: soon}}\n", 2, "expected a time with its zone"),
    ("http: 9868\n", 2, "found '9868' for 'http'; expected ADDRESS:PORT such as 127.0.0.1:9868, or off"),
    ("http: 127.0.0.1\n", 2, "expected ADDRESS:PORT"),
    ("http: {port: 1}\n", 2, "found a section with keys of its own for 'http'"),
    ("log: {level: trace}\n", 2, "expected debug, info, warning or error"),
    ("privacy: {identifiers: whole}\n", 2, "expected short or full"),
    ("? [a, b]\n: 1\n", 2, "found a list as a key; expected a name"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "says"), FAULTS)
def test_fault(write, tmp_path, text, line, says):
    (tmp_path / "empty").write_text(" \n")
    found = problems_of(write(IDENTITY + text))
    assert [at for at, _ in found] == [line], found
    assert re.search(says, found[0][1]), found[0][1]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "the section 'identity' is missing; expected its keys host, realm, aliases, realms"),
        ("# nothing\n", 1, "the section 'identity' is missing"),
        ("http: off\nidentity: {host: a.b}\n", 2, "the key 'realm' is missing in identity; expected a domain name"),
        ("- a\n- b\n", 1, "found a list; expected keys, each with ': ' and a value"),
        ("just a text\n", 1, "found 'just a text'; expected keys"),
        ("a: b: c\n", 1, "not valid YAML: mapping values are not allowed here"),
        (IDENTITY + "peers: [\n", 3, "not valid YAML: while parsing a flow node"),
        (IDENTITY + "\tlisten: x\n", 2, "; the line begins with a tab: indent with spaces"),
        (IDENTITY + "---\n" + IDENTITY, 2, "not valid YAML: expected a single document"),
        (IDENTITY + "state: !!python/object/apply:os.system [true]\n", 2, "not valid YAML: found the tag !!python/object/apply:os.system"),
        (IDENTITY + "state: !mine x\n", 2, "found the tag !mine"),
        (IDENTITY.encode() + b"\n\nstate: \xff\n", 4, "not valid YAML: invalid start byte"),
        (IDENTITY.encode() + b"\nstate: \x00\n", 3, "not valid YAML: special characters are not allowed"),
        (IDENTITY + "listen: " + "[" * 18 + "]" * 18, 2, "found a list for 'listen'"),
        (IDENTITY + "listen: " + "[" * 19 + "x" + "]" * 19, 2, "not valid YAML: nested more than 20 deep"),
        (IDENTITY + "listen: " + "[" * 100_000, 2, "not valid YAML: nested more than 20 deep"),
        (b"#" * (FILE_BYTES_MAX + 1), 1, "larger than"),
    ],
)  # fmt: skip
def test_file_that_is_no_configuration(write, text, line, says):
    (found,) = problems_of(write(text))
    assert found[0] == line
    assert says in found[1]


def test_missing_file_and_folder(tmp_path):
    assert "cannot be read: No such file" in (text := problems_of(tmp_path / "nowhere.yaml")[0][1])
    assert text.endswith("; expected the configuration, a YAML file; -c or EIR_CONFIG names another file")
    assert "cannot be read: Is a directory" in problems_of(tmp_path)[0][1]


def test_all_faults_come_in_one_run_and_in_order(write):
    path = write("""identity: {host: eir.epc, realm: "-"}
listen: 7
lists:
  stolen: {signers: nowhere, threshhold: 2}
peers:
  - {from: 10.1.2.3/8}
policy:
  rules:
    - {list: stole, answer: blacklistd}
  default: x
inbox_patience_s: many
""")
    assert [line for line, _ in problems_of(path)] == [1, 2, 4, 4, 6, 9, 9, 10, 11]
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert (
        str(refused.value)
        .splitlines()[0]
        .startswith(f"{path}:1: found '-' for 'realm' in identity; expected a domain name")
    )


# YAML's traps


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("00101001", "00101001"),  # octal in YAML 1.1, a number without its zeros in 1.2
        ("'00101001'", "00101001"),
        ('"00101001"', "00101001"),
        ("01234567", "01234567"),
        ("35209900", "35209900"),
        ("0010*", "0010"),
        ("12345678  # comment", "12345678"),
        ("!!str 00101001", "00101001"),
    ],
)
def test_tac_is_taken_as_it_is_written(write, written, read):
    for text in (
        f"policy:\n  rules:\n  - answer: greylisted\n    tac: {written}\n",
        f"policy:\n  rules:\n  - answer: greylisted\n    tac:\n    - {written}\n",
    ):
        assert load_config(write(IDENTITY + ONE_PEER + text)).policy.rules[0].tac == (read,)


@pytest.mark.parametrize("name", ["no", "on", "null-island", "1e3", "007", "2026-11-25", "0x1F", "1.0", "12:30:45"])
def test_names_that_yaml_takes_for_something_else(write, name):
    config = load_config(
        write(
            IDENTITY
            + f"peers: [{{name: {name}, realm: epc}}]\nlists: {{x{name.replace(':', '')}: {{signers: signers}}}}\n"
        )
    )
    assert config.peers[0].label == name


def test_list_named_like_a_switch(write):
    assert list(
        load_config(write(IDENTITY + "lists:\n  no: {signers: signers}\n  2026: {signers: signers}\n")).lists
    ) == ["no", "2026"]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("peers:\n- &a {realm: epc}\n- *a\n", 4, "not valid YAML: found the alias *a; expected the value itself"),
        ("peers:\n- &a {realm: epc}\n- {<<: *a}\n", 4, "not valid YAML: found the alias *a; expected the value itself"),
        ("peers: &p [*p, *p]\n", 2, "not valid YAML: found the alias *p; expected the value itself"),
        ("listen: *nowhere\n", 2, "not valid YAML: found the alias *nowhere; expected the value itself"),
        ("peers:\n- {realm: epc, <<: {name: x}}\n", 3, "unknown key '<<' in entry 1 of peers"),
    ],
)
def test_an_alias_is_an_error_with_its_line(write, text, line, problem):
    ((at, said), *_) = problems_of(write(IDENTITY + text))
    assert at == line
    assert said.startswith(problem)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.sampled_from(sorted({part for key in TABLE for part in re.split(r"\W+", key.path)} - {""})), inner, max_size=6), max_leaves=30))  # fmt: skip
def test_any_yaml_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(value))
    try:
        problems = load_config(path).warnings
    except ConfigError as e:
        problems = e.problems
        assert problems
    assert all(problem.line >= 1 for problem in problems)


# Warnings

PERIODS = "first_seen: {}\nlists: {lent: {local: true}}\npolicy:\n  rules:\n"
PERIOD = "  - {first_seen_within: 60d, answer: greylisted}\n"


def test_a_list_that_a_rule_without_a_further_condition_whitelists_registers_without_a_warning(write):
    rules = "  - {list: lent, imsi: 20801, answer: whitelisted}\n  - {list: lent, answer: whitelisted}\n" + PERIOD
    config = load_config(write(IDENTITY + ONE_PEER + PERIODS + rules))
    assert (config.registering, config.warnings) == (["lent"], ())


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "no peer is configured under 'peers': every connection will be refused"),
        (ONE_PEER + "first_seen:\n", 3, "no rule has first_seen_within or first_seen_before: no sighting is recorded"),
        (ONE_PEER + "feed:\n", 3, "the section 'feed' has no effect without the key 'listen'"),
        (ONE_PEER + "feed: {from: 10.0.0.0/8}\n", 3, "the section 'feed' has no effect without the key 'listen'"),
        (ONE_PEER + "device_authenticity:\n  #listen: x\n", 3, "'device_authenticity' has no effect without the key 'listen'"),
        (ONE_PEER + "gsup:\n", 3, "the section 'gsup' has no effect without the key 'listen'"),
        (ONE_PEER + "n5g: {}\n", 3, "the section 'n5g' has no effect without the key 'listen'"),
        (ONE_PEER + "ss7:\n", 3, "the section 'ss7' has no effect without the key 'point_code'"),
        (ONE_PEER + "lists:\n  unused: {signers: signers}\n", 4, "no rule uses the list 'unused'"),
        (ONE_PEER + "sightings: {}\nlists:\n  unused: {signers: signers}\n  types: {kind: device_types, signers: signers}\n", 5, "no rule uses the list 'unused'"),
        (ONE_PEER + "lists:\n  types: {kind: device_types, signers: signers}\n", 4, "no rule uses the list 'types'"),
        ("peers:\n- realm: epc\n- {host: mme.epc, realm: EPC, from: 10.0.0.0/8}\n", 4, "never applies: the entry in line 3 matches"),
        ("peers:\n- {realm: epc, from: [10.0.0.0/8, '::/0']}\n- {name: b, realm: epc, from: [10.1.0.0/16, '2001:db8::/32']}\n", 4, "never applies"),
        (ONE_PEER + PERIODS + "  - {list: lent, imsi: 20801, answer: whitelisted}\n" + PERIOD, 7, "the list 'lent' registers no device for a period of grace, because this rule has a further condition; expected a rule whose only"),
        (ONE_PEER + PERIODS + "  - {list: lent, first_seen_within: 9d, answer: whitelisted}\n", 7, "the list 'lent' registers no device for a period of grace"),
        (ONE_PEER + PERIODS + "  - {not_list: lent, imsi: 20801, first_seen_within: 9d, answer: greylisted}\n", 7, "the list 'lent' registers no device for a period of grace"),
        (ONE_PEER + PERIODS + PERIOD + "  - {list: lent, answer: whitelisted}\n", 7, "the period of grace of this rule has no end for devices in 'lent', which are registered; expected the rule with the condition list: lent"),
        (ONE_PEER + PERIODS + "  - {not_list: lent, first_seen_within: 9d, answer: greylisted}\n" + PERIOD, 8, "the period of grace of this rule has no end for devices in 'lent'"),
        (ONE_PEER + "policy: {override: {answer: whitelisted}}\n", 3, "the override answers whitelisted to every check, and has no 'until'"),
        (ONE_PEER + "policy: {override: {answer: whitelisted, until: 2020-01-01T00:00:00Z}}\n", 3, "the override has ended"),
        ("peers:\n- {realm: epc, connect: 'tcp://127.0.0.1:1',\n   lenient: [applications]}\n", 3, "leave out 'connect'"),
        ("listen: tcp://0.0.0.0\npeers: [{realm: epc}]\n", 3, "any client of the listener can claim to be peer 'epc'"),
        (ONE_PEER + "lists: {stolen: {signers: nobody}}\n" + RULES, 3, "nobody holds 0 keys, and a release of stolen needs 1: none will load"),
        (ONE_PEER + "lists: {stolen: {signers: garbled}}\n" + RULES, 3, "line 2 of {}/garbled has no public key, so OpenSSH ignores the line; expected NAME "),
        (ONE_PEER + "lists: {stolen: {signers: signers, threshold: 2}}\n" + RULES, 3, "holds 1 keys, and a release of stolen needs 2"),
        (ONE_PEER + "lists: {stolen: {signers: same, threshold: 2}}\n" + RULES, 3, "holds 2 keys of 1 persons, and a release of stolen needs 2"),
    ],
)  # fmt: skip
def test_warning(write, tmp_path, text, line, says):
    (tmp_path / "nobody").write_text("# no key yet\n")
    (tmp_path / "garbled").write_text("a@x ssh-ed25519 AAAA\nb@x AAAA\n")
    (tmp_path / "same").write_text("a@* ssh-ed25519 AAAA\nA@x ssh-ed25519 BBBB\n")
    (warning,) = load_config(write(IDENTITY + text)).warnings
    assert warning.line == line
    assert says.format(tmp_path) in warning.text


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "peers:\n- {realm: epc, from: 10.0.0.0/8}\n- {name: roaming, realm: epc}\n- {realm: other, from: 10.0.0.0/8}\n- {host: a.epc}\n"
        + IDENTITY,
        IDENTITY + "listen: tcp://0.0.0.0\n" + ONE_PEER,
        IDENTITY + ONE_PEER + "lists: {stolen: {signers: authority, threshold: 2}}\n" + RULES,
        IDENTITY + ONE_PEER + LISTS + "policy: {rules: [{not_list: stolen, observe: true, answer: unknown}]}\n",
        IDENTITY + ONE_PEER + "lists: {own: {local: true}}\npolicy: {rules: [{list: own, answer: blacklisted}]}\n",
        IDENTITY
        + ONE_PEER
        + "lists: {iot: {kind: pairs, signers: signers}}\npolicy: {rules: [{device_bound_elsewhere: iot, answer: blacklisted}]}\n",
        IDENTITY
        + ONE_PEER
        + "lists: {iot: {kind: pairs, signers: signers}}\npolicy: {rules: [{subscriber_bound_elsewhere: iot, answer: unknown}]}\n",
    ],
)
def test_no_warning(write, tmp_path, text):
    (tmp_path / "authority").write_text("*@agency cert-authority " + SIGNER.partition(" ")[2])
    assert load_config(write(text)).warnings == ()


@pytest.mark.parametrize("option", ["password_file", "sentinel_password_file", "ca_file", "cert_file", "key_file"])
def test_files_that_the_store_names_are_opened(write, tmp_path, option):
    text = f"store: rediss://loader@redis.example/0?{option}=secret\n" + IDENTITY + ONE_PEER
    assert problems_of(write(text)) == [
        (1, f"{option} {tmp_path / 'secret'} of the store cannot be read: No such file or directory")
    ]
    (tmp_path / "secret").write_text("")
    assert problems_of(write(text)) == [(1, f"{option} {tmp_path / 'secret'} of the store is empty")]
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o604)
    warnings = [(warning.line, warning.text) for warning in load_config(write(text)).warnings]
    is_secret = option in {"password_file", "sentinel_password_file", "key_file"}
    assert (
        warnings
        == [(1, f"{tmp_path / 'secret'} is readable by everyone on this host: chmod o-r {tmp_path / 'secret'}")]
        * is_secret
    )
    (tmp_path / "secret").chmod(0o640)
    assert load_config(write(text)).warnings == ()


def test_a_private_key_that_everyone_can_read_is_warned_of(write, tmp_path):
    tls = Authority(tmp_path / "tls").write("eir.epc")
    Path(tls["key"]).chmod(0o644)
    path = write(GOOD + "tls: " + json.dumps(tls) + "\n")
    (warning,) = load_config(path).warnings
    assert "eir.key is readable by everyone" in warning.text
    Path(tls["key"]).chmod(0o640)
    assert load_config(path).warnings == ()


def test_readable_secrets_of_a_source_are_a_warning(write, tmp_path):
    for name, mode in (("ca", 0o644), ("certificate", 0o644), ("key", 0o604), ("token", 0o604)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    files = "ca: ca, certificate: certificate, key: key, token: token"
    source = f"url: 'https://publisher.example/stolen/', {files}"
    text = f"lists:\n  stolen: {{signers: signers, source: {{{source}}}}}\n"
    path = write(IDENTITY + ONE_PEER + text + RULES)
    assert [warning.text for warning in load_config(path).warnings] == [
        f"{tmp_path / name} is readable by everyone on this host: chmod o-r {tmp_path / name}"
        for name in ("key", "token")
    ]
    for name in ("key", "token"):
        (tmp_path / name).chmod(0o640)
    assert load_config(path).warnings == ()


def test_lists_of_each_kind_and_local_ones(write, tmp_path):
    config = load_config(write(IDENTITY + ONE_PEER + """
lists:
  own: {local: true}
  sims: {kind: subscribers, local: yes}
  iot: {kind: pairs, signers: signers}
policy:
  rules:
    - {list: sims, answer: whitelisted}
    - {list: own, device_bound_elsewhere: iot, subscriber_bound_elsewhere: iot, answer: blacklisted}
"""))  # fmt: skip
    assert config.lists == {
        "own": ListSettings(name="own", local=True),
        "sims": ListSettings(name="sims", kind="subscribers", local=True),
        "iot": ListSettings(name="iot", kind="pairs", signers=tmp_path / "signers"),
    }
    assert config.policy.rules[1] == Rule(
        answer=Status.BLACKLISTED, list="own", device_bound_elsewhere="iot", subscriber_bound_elsewhere="iot"
    )
    assert config.warnings == ()


class TestTls:
    def settings(self, tmp_path, *names, **options):
        tls = Authority(tmp_path / "tls").write(*names, **options)
        return tls, IDENTITY + ONE_PEER + f"listen: [tls://127.0.0.1]\ntls: {json.dumps(tls)}\n"

    def test_all_keys(self, write, tmp_path):
        tls, text = self.settings(tmp_path, "eir.epc")
        crl = Authority(tmp_path / "other").revoke()
        more = {"crl": crl.relative_to(tmp_path).as_posix(), "min_version": "1.3"}
        text = text.replace(json.dumps(tls), json.dumps(tls | more)).replace(
            "realm: epc, from", "realm: epc, tls_names: '*.dra.epc', from"
        )
        config = load_config(write(text))
        assert config.tls == TlsSettings(**{key: Path(file) for key, file in tls.items()}, crl=crl, min_version="1.3")
        assert (config.listen, config.warnings) == (("tls://127.0.0.1:5868",), ())
        assert config.peers[0].tls_names == ("*.dra.epc",)

    @pytest.mark.parametrize(
        ("names", "options", "says"),
        [
            (["eir.epc"], {"not_after": days(10)}, "ends on"),
            (["eir.epc"], {"not_after": days(-1)}, "has ended on"),
            (["eir.epc"], {"not_before": days(2)}, "is not valid before"),
            (["eir2.epc", "dra.epc"], {}, "is for eir2.epc, dra.epc, not for eir.epc"),
            (["*.epc"], {}, None),
        ],
    )
    def test_a_certificate_that_peers_may_not_take_is_a_warning(self, write, tmp_path, names, options, says):
        _, text = self.settings(tmp_path, *names, **options)
        assert [says in str(warning) for warning in load_config(write(text)).warnings] == ([True] if says else [])

    @pytest.mark.parametrize(
        ("key", "of", "says"),
        [
            ("key", "other", "is not the private key of"), ("ca", "key", "no certificate or crl found"), ("certificate", "key", "no certificate in it"),
            ("key", "certificate", "contains no private key"), ("crl", "ca", "contains no revocation list"),
        ],
    )  # fmt: skip
    def test_files_that_are_not_what_they_should_be(self, write, tmp_path, key, of, says):
        tls, text = self.settings(tmp_path, "eir.epc")
        files = tls | {"other": Authority(tmp_path / "other").write("eir.epc")["key"]}
        text = text.replace(json.dumps(tls), json.dumps(tls | {key: files[of]}))
        with pytest.raises(ConfigError, match=says):
            load_config(write(text))

    def test_a_key_with_a_passphrase_asks_nobody(self, write, tmp_path):
        tls, text = self.settings(tmp_path, "eir.epc")
        locked = tmp_path / "locked"
        subprocess.run(
            ["openssl", "ec", "-in", tls["key"], "-aes128", "-passout", "pass:word", "-out", locked],
            check=True,
            capture_output=True,
        )
        with pytest.raises(ConfigError, match="requires a passphrase"):
            load_config(write(text.replace(tls["key"], str(locked))))


def test_the_digest_is_that_of_the_bytes_that_were_read(write):
    """By a pipe, which gives its content once; a second read would wait for ever."""
    path = write(GOOD)
    path.unlink()
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=[GOOD], daemon=True)
    writer.start()
    assert load_config(path).digest == hashlib.sha256(GOOD.encode()).hexdigest()
    writer.join()
