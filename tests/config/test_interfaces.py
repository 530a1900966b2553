"""Sections of interfaces: the 5G core, feeds, 2G and 3G."""

import re

import pytest
from configuration import GOOD, IDENTITY, ONE_PEER, files_of_tokens, problems_of

from eir.cli.backup import KEYS
from eir.config import load_config, render
from eir.interfaces import INTERFACES, n5g
from eir.interfaces.n5g.registration import own_instance
from eir.wire.web.denials import TokenSettings
from eir.wire.web.passwords import user_line


def test_a_backup_has_the_files_that_interfaces_name(tmp_path):
    own_instance(tmp_path)
    assert tuple(path.name for path in tmp_path.iterdir()) == n5g.INTERFACE.state_files
    assert {name for each in INTERFACES for name in each.state_files} <= set(KEYS)


# The 5G core: access tokens and NRF

N5G = IDENTITY + ONE_PEER + "n5g:\n  listen: http://127.0.0.1:7777\n"


def test_access_tokens_and_nrf_as_they_are_built(write, tmp_path):
    files_of_tokens(tmp_path / "tokens")
    config = load_config(
        write(
            N5G
            + "  tokens: {keys: tokens/nrf.pem}\n  nrf: {uri: [http://nrf.example.org/base/, 'http://[::1]:8000'], plmns: '00101'}\n"
        )
    )
    assert config.interfaces["n5g"].tokens == TokenSettings(
        jwks=(), keys=(tmp_path / "tokens" / "nrf.pem",), issuer=(), audience=("5G_EIR",)
    )
    assert config.interfaces["n5g"].nrf.uri == ("http://nrf.example.org:80/base", "http://[::1]:8000")
    assert (
        config.interfaces["n5g"].nrf.plmns,
        config.interfaces["n5g"].nrf.capacity,
        config.interfaces["n5g"].nrf.instance,
    ) == (("00101",), 100, None)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("tokens: {}", "no keys to verify access tokens; expected jwks or keys"),
        ("tokens: {audience: AMF}", "no keys to verify access tokens"),
        ("tokens: {jwks: signers}", "not a JWK set"),
        ("tokens: {keys: away.pem}", "away.pem cannot be read"),
        ("nrf: {}", "the key 'uri' is missing in n5g.nrf"),
        ("nrf: {uri: 127.0.0.1}", "found '127.0.0.1' for 'uri' in n5g.nrf"),
        ("nrf: {uri: 'http://a?b=c'}", "for 'uri' in n5g.nrf"),
        ("nrf: {uri: 'http://a@b'}", "for 'uri' in n5g.nrf"),
        ("nrf: {uri: [http://a, http://a/]}", "http://a:80 stands twice"),
        ("nrf: {uri: https://nrf.example.org}", "needs the section 'tls'"),
        ("nrf: {uri: http://a, instance: 7}", "expected a UUID"),
        ("nrf: {uri: http://a, plmns: 1234}", "expected 5 or 6 digits"),
    ],
)
def test_what_cannot_be_of_access_tokens_and_nrf(write, section, said):
    [(line, text)] = problems_of(write(f"{N5G}  {section}\n"))
    assert said in text
    assert line == 5


def test_the_profile_for_amfs_must_have_an_address(write):
    nrf = "  nrf: {uri: http://127.0.0.1:8000"
    [(_, text)] = problems_of(write(IDENTITY + ONE_PEER + "n5g:\n" + nrf + "}\n"))
    assert "expected n5g.listen" in text
    anywhere = N5G.replace("127.0.0.1:7777", "0.0.0.0:7777")
    [(_, text)] = problems_of(write(anywhere + nrf + "}\n"))
    assert "expected n5g.nrf.endpoints" in text
    load_config(write(anywhere + nrf + ", endpoints: http://10.0.0.1:7777}\n"))


FEED = (
    IDENTITY
    + ONE_PEER
    + "lists: {own: {local: true}, pairs: {local: true, kind: pairs}, stolen: {signers: signers}, sims: {local: true, kind: subscribers}, more: {local: true}}\n"
)


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        ("listen: http://10.0.0.1:80, users: users", "http://10.0.0.1:80 would send passwords and tokens in clear text; expected https://"),
        ("listen: 'https://10.0.0.1:80', users: users", "needs the section 'tls'"),
        ("users: nothing", "cannot be read: No such file or directory"), ("users: bad", "bad:1: expected a line of `eir feed user NAME`"),
        ("lists: {block: none}", "the list 'none' is not under 'lists'"), ("lists: {block: stolen}", "stolen changes by signed releases"),
        ("lists: {allowed-tac: sims}", "'sims' is a list of subscribers, which contains no TACs"),
        ("lists: {block: [own, more]}", "two lists of devices for block; expected at most one"), ("lists: {blocks: own}", "did you mean 'block'"),
        ("tokens: {jwks: none}", "the key 'audience' is missing in feed.tokens"), ("tokens: {audience: x}", "expected jwks or keys"),
    ],
)  # fmt: skip
def test_a_feed_that_cannot_be(write, feed, says):
    path = write(FEED + f"feed: {{{feed}}}\n")
    (path.parent / "users").write_text(user_line("register", "correct horse battery"))
    (path.parent / "bad").write_text("register:secret\n")
    found = [text for _, text in problems_of(path)]
    assert any(says in text for text in found), found


def test_what_is_probably_not_meant_of_a_feed(write):
    path = write(FEED + "feed: {listen: http://127.0.0.1:1, lists: {block: [own, pairs, sims], allowed-tac: more}}\n")
    found = [warning.text for warning in load_config(path).warnings]
    assert any("no register can send rows" in text for text in found)
    assert any("a TAC is a million devices, and change_min of more is 1000" in text for text in found)


SS7 = IDENTITY + ONE_PEER + "ss7:\n"


def test_ss7(write):
    config = load_config(
        write(
            SS7
            + "  point_code: 1.1.2\n  imsi_tags: [80, 9f21]\n  gateways:\n  - {connect: 'sctp://10.0.0.9,10.0.1.9', routing_context: 7}\n  - {connect: 'tcp://stp.example.org:2906', name: stp2, mode: override}\n"
        )
    )
    ss7 = config.interfaces["ss7"]
    assert (ss7.point_code, ss7.number, ss7.imsi_tags) == ("1-1-2", 2058, (0x80, 0x9F21))
    first, second = ss7.gateways
    assert (first.label, first.connect, first.mode) == (
        "10.0.0.9,10.0.1.9:2905",
        "sctp://10.0.0.9,10.0.1.9:2905",
        "loadshare",
    )
    assert (second.label, second.mode, second.routing_context) == ("stp2", "override", None)
    assert load_config(write(render(config), "again.yaml")).interfaces["ss7"] == ss7
    ansi = load_config(write(SS7 + "  point_code: 245-16-8\n  variant: ansi\n", "ansi.yaml"))
    assert ansi.interfaces["ss7"].number == 0xF51008


@pytest.mark.parametrize(("text", "says"), [
    ("  point_code: 245-16-8\n", "245-16-8 is not a point code of the variant itu"),
    ("  listen: tcp://127.0.0.1\n", "expected ss7.point_code"),
    ("  point_code: 1-2\n", "found '1-2' for 'point_code' in ss7"),
    ("  gateways: [{connect: tls://a}]\n", "found 'tls://a' for 'connect'"),
    ("  imsi_tags: [x]\n", "found 'x' for 'imsi_tags'"),
    ("  point_code: 1-1-2\n  gateways: [{connect: tcp://a, name: b}, {connect: tcp://c, name: b}]\n", "expected a 'name' of its own"),
])  # fmt: skip
def test_faults_of_ss7(write, text, says):
    assert any(re.search(says, said) for _, said in problems_of(write(SS7 + text)))


@pytest.mark.parametrize(("listen", "hlr", "is_itself"), [
    ("127.0.0.1:4222", "127.0.0.1:4222", True), ("0.0.0.0:4222", "127.0.0.1:4222", True), ("[::]:4222", "localhost:4222", True),
    ("127.0.0.1:4222", "127.0.0.1:4223", False), ("127.0.0.1:4222", "127.0.0.2:4222", False), ("0.0.0.0:4222", "192.0.2.1:4222", False),
])  # fmt: skip
def test_an_hlr_that_is_the_node_itself(write, listen, hlr, is_itself):
    text = f"{GOOD}gsup: {{listen: 'tcp://{listen}', hlr: 'tcp://{hlr}'}}\n"
    if is_itself:
        assert "expected the OsmoHLR's own address" in str(problems_of(write(text)))
    else:
        load_config(write(text))
