"""Access tokens: what is accepted, what is refused and how (TS 33.501 13.4.1, TS 29.500 6.7.3, RFC 6750, RFC 7515)."""

import json
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from simulated.issuer import AMF, NRF, Issuer, bearer, jwks, raw

from eir.errors import FileError
from eir.interfaces.n5g.settings import SERVICE
from eir.wire.web import tokens
from eir.wire.web.denials import Denied, TokenSettings, denials
from eir.wire.web.tokens import Tokens, load_keys, read_keys

DENIED = denials(SERVICE)
NOW = 1_900_000_000.0
OURS = "0b8f1d3e-1111-4222-8333-0000000000e1"


@pytest.fixture(scope="module")
def issuer():
    return Issuer()


def settings_of(
    tmp_path: Path,
    *,
    sets: Iterable[bytes] = (),
    pems: Iterable[bytes] = (),
    issuer=(),
    audience=("5G_EIR", OURS),
):
    files = []
    for kind, contents in (("jwks", sets), ("pem", pems)):
        paths = tuple(tmp_path / f"{kind}-{number}" for number in range(len(contents)))
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        files.append(paths)
    return TokenSettings(jwks=files[0], keys=files[1], issuer=issuer, audience=audience)


class Asked(Tokens):
    """Asked by one and the same peer unless a test says another."""

    def subject(self, authorization, peer="amf"):
        return super().subject(authorization, peer)


class Clock:
    def __init__(self):
        self.time = NOW

    def __call__(self):
        return self.time


def checker(tmp_path, *issuers, clock=None, ticks=None, remembered_max=4096, **more):
    settings = settings_of(tmp_path, sets=[jwks(*issuers)], **more)
    return Asked(
        settings,
        load_keys(read_keys(settings)),
        scope=SERVICE,
        now=clock or Clock(),
        ticks=ticks or Clock(),
        remembered_max=remembered_max,
    )


def test_a_good_token_names_who_asks(tmp_path, issuer):
    assert checker(tmp_path, issuer).subject(bearer(issuer.token(NOW))) == AMF


@pytest.mark.parametrize(
    ("claims", "status", "reason"),
    [
        ({"exp": NOW}, 401, "expired"),  # RFC 7519 4.1.4: on or after
        ({"exp": NOW - 3600}, 401, "expired"),
        ({"exp": NOW + 1}, 0, ""),
        ({"exp": NOW + 0.5}, 0, ""),
        ({"exp": None}, 401, "claims"),
        ({"exp": str(NOW + 60)}, 401, "claims"),
        ({"exp": True}, 401, "claims"),
        ({"exp": float("nan")}, 401, "claims"),
        ({"exp": float("inf")}, 401, "claims"),
        ({"exp": 10**400}, 401, "claims"),
        ({"nbf": NOW + 60}, 401, "not_yet"),
        ({"nbf": NOW + 2}, 0, ""),  # the issuer's clock is a little ahead
        ({"nbf": NOW - 60}, 0, ""),
        ({"nbf": "now"}, 401, "claims"),
        ({"nbf": float("nan")}, 401, "claims"),
        ({"iat": NOW + 2}, 0, ""),
        ({"aud": "AMF"}, 401, "audience"),
        ({"aud": None}, 401, "audience"),
        ({"aud": []}, 401, "audience"),
        ({"aud": {"5G_EIR": 1}}, 401, "audience"),
        ({"aud": [["5G_EIR"], 7]}, 401, "audience"),
        ({"aud": [OURS]}, 0, ""),
        ({"aud": ["another", OURS.upper()]}, 0, ""),  # RFC 4122 3
        ({"aud": ["another"]}, 401, "audience"),
        ({"scope": "nudm-sdm n5g-eir-eic"}, 0, ""),
        ({"scope": "nudm-sdm"}, 403, "scope"),
        ({"scope": "n5g-eir-eic-more"}, 403, "scope"),
        ({"scope": ""}, 403, "scope"),
        ({"scope": None}, 401, "claims"),
        ({"scope": ["n5g-eir-eic"]}, 401, "claims"),
        ({"sub": None}, 401, "claims"),
        ({"sub": ""}, 401, "claims"),
        ({"sub": "a\nb"}, 401, "claims"),
        ({"sub": "a" * 256}, 401, "claims"),
        ({"sub": 7}, 401, "claims"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_claims(tmp_path, issuer, claims, status, reason):
    result = checker(tmp_path, issuer).subject(bearer(issuer.token(NOW, **claims)))
    assert (result == AMF) if not status else (result.status, result.reason) == (status, reason)


@pytest.mark.parametrize("algorithm", sorted({*tokens.ALGORITHMS, "Ed25519", "EdDSA"}))
def test_each_algorithm(tmp_path, algorithm):
    issuer = Issuer(algorithm)
    assert checker(tmp_path, issuer).subject(bearer(issuer.token(NOW))) == AMF


def test_an_issuer_that_is_not_configured_is_refused(tmp_path, issuer):
    checks = checker(tmp_path, issuer, issuer=(NRF,))
    assert checks.subject(bearer(issuer.token(NOW))) == AMF
    for other in ("another", None, 7, [NRF]):
        assert checks.subject(bearer(issuer.token(NOW, iss=other))).reason == "issuer"


GOOD = json.dumps({"iss": NRF, "sub": AMF, "aud": "5G_EIR", "scope": "n5g-eir-eic", "exp": NOW + 60}).encode()


@pytest.mark.parametrize(
    ("header", "secret", "reason"),
    [
        ({"alg": "none"}, None, "algorithm"),
        ({"alg": "None"}, None, "algorithm"),
        ({"alg": "none", "kid": "key-1"}, b"", "algorithm"),
        ({"alg": "HS256"}, "pem", "algorithm"),  # an HMAC over what everyone may know
        ({"alg": "HS256", "kid": "key-1"}, "pem", "algorithm"),
        ({"alg": "HS256"}, b"", "algorithm"),
        ({"alg": "ES256"}, b"x", "signature"),
        ({"alg": "ES256"}, None, "signature"),
        ({"alg": "RS256"}, b"x", "algorithm"),  # there is no such key
        ({"alg": "ES256", "kid": "another"}, b"x", "unknown_key"),
        ({"alg": "ES256", "kid": 7}, b"x", "unknown_key"),
        ({"alg": "ES256", "kid": ["key-1"]}, b"x", "unknown_key"),
        ({"alg": "ES256", "crit": ["exp"]}, b"x", "critical_header"),
        ({"alg": "ES256", "crit": ["b64"], "b64": False}, b"x", "critical_header"),
        ({"alg": "ES256", "crit": []}, b"x", "critical_header"),
        ({"alg": "ES256", "crit": 7}, b"x", "critical_header"),
        ({"alg": ["ES256"]}, b"x", "algorithm"),
        ({"alg": {"a": 1}}, b"x", "algorithm"),
        ({"alg": 7}, b"x", "algorithm"),
        ({"alg": None}, b"x", "algorithm"),
        ({}, b"x", "malformed"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_an_attacker_signs(tmp_path, issuer, header, secret, reason):
    token = raw(header, GOOD, issuer.pem if secret == "pem" else secret)
    result = checker(tmp_path, issuer).subject(bearer(token))
    assert isinstance(result, Denied)
    assert (result.status, result.reason) == (401, reason)


def test_a_critical_header_that_the_issuer_itself_signed_is_refused(tmp_path, issuer):
    token = issuer.token(NOW, header={"crit": ["typ"]})
    assert checker(tmp_path, issuer).subject(bearer(token)).reason == "critical_header"


def test_a_header_that_is_not_critical_is_ignored(tmp_path, issuer):
    assert checker(tmp_path, issuer).subject(bearer(issuer.token(NOW, header={"x-more": {"a": 1}}))) == AMF


def test_a_key_that_the_token_brings_along_counts_for_nothing(tmp_path, issuer):
    other = Issuer()
    token = other.token(NOW, header={"jwk": other.jwk(), "jku": "https://127.0.0.1/keys"})
    assert checker(tmp_path, issuer).subject(bearer(token)).reason == "signature"


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        (None, "no_token"),
        (b"", "no_token"),
        (b"Basic YTpi", "no_token"),
        (b"Bearer", "malformed"),
        (b"Bearer ", "malformed"),
        (b"Bearer a.b", "malformed"),
        (b"Bearer a.b.c.d", "malformed"),
        (b"Bearer \xff\xfe.\xff.\xff", "malformed"),
        (b"Bearer e30.e30.e30", "malformed"),
        (b"Bearer bnVsbA.e30.AA", "malformed"),
        (b"Bearer " + b"W" * 500 + b".e30.AA", "malformed"),  # arrays within arrays
        (b"Bearer " + b"a" * 9000 + b".e30.AA", "malformed"),
        (b"Bearer " + b"." * 9000, "malformed"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_token(tmp_path, issuer, authorization, reason):
    result = checker(tmp_path, issuer).subject(authorization)
    assert (result.status, result.reason) == (401, reason)


def test_the_scheme_is_written_as_one_likes(tmp_path, issuer):
    token = issuer.token(NOW).encode()
    checks = checker(tmp_path, issuer)
    assert {checks.subject(scheme + b" " + token) for scheme in (b"Bearer", b"bearer", b"BEARER", b"Bearer ")} == {AMF}


def test_a_challenge_names_the_missing_scope():
    assert DENIED["no_token"].challenge == 'Bearer realm="n5g-eir-eic", scope="n5g-eir-eic"'
    assert DENIED["expired"].challenge.startswith(
        'Bearer realm="n5g-eir-eic", error="invalid_token", error_description="'
    )
    assert DENIED["scope"].challenge.endswith('scope="n5g-eir-eic"')
    for denied in DENIED.values():
        assert denied.challenge.isascii()
        assert "\\" not in denied.detail
        assert '"' not in denied.detail


class CountedKey:
    """A key that counts the signatures that are verified by it."""

    def __init__(self, key):
        self._key, self.uses = key, 0

    def __getattr__(self, name):
        self.uses += name == "key"
        return getattr(self._key, name)


def counted(tmp_path, issuer, **more):
    """A checker, and its only key."""
    checks, settings = checker(tmp_path, issuer, **more), settings_of(tmp_path, sets=[jwks(issuer)])
    key = CountedKey(*load_keys(read_keys(settings)))
    checks.apply(settings, [key])
    return checks, key


def test_a_verified_token_is_not_verified_again_and_ends_in_time(tmp_path, issuer):
    clock = Clock()
    (checks, key), token = counted(tmp_path, issuer, clock=clock), bearer(issuer.token(NOW, exp=NOW + 10))
    assert checks.subject(token) == checks.subject(token) == AMF
    assert key.uses == 1
    clock.time = NOW + 10
    assert checks.subject(token).reason == "expired"


def test_what_is_remembered_is_bounded_and_holds_no_refused_token(tmp_path, issuer):
    checks, key = counted(tmp_path, issuer, remembered_max=4)
    tokens = [bearer(issuer.token(NOW, sub=f"amf-{number}")) for number in range(9)]
    for number, token in enumerate(tokens):
        assert checks.subject(token) == f"amf-{number}"
        assert checks.subject(bearer(issuer.token(NOW, aud="AMF"))).reason == "audience"
    verified = key.uses
    assert [checks.subject(token) for token in tokens[5:]] == [f"amf-{number}" for number in range(5, 9)]
    assert key.uses == verified
    assert checks.subject(tokens[4]) == "amf-4"
    assert key.uses == verified + 1, "the fifth newest is verified again"


def test_bad_tokens_of_one_peer_take_only_so_much_time(tmp_path, issuer):
    clock = Clock()
    checks, key = counted(tmp_path, issuer, clock=clock, ticks=clock)
    good, bad = (
        bearer(issuer.token(NOW)),
        [bearer(raw({"alg": "ES256"}, GOOD, b"%d" % number)) for number in range(200)],
    )
    assert checks.subject(good) == AMF
    reasons = [checks.subject(token).reason for token in bad]
    assert reasons == ["signature"] * 100 + ["too_many"] * 100
    assert checks.subject(bad[-1]).status == 429
    # What is known is answered all the same, and so is another peer; the same token again and again costs nothing.
    assert checks.subject(good) == AMF
    assert checks.subject(bad[99]).reason == "signature"
    assert key.uses == 101
    assert checks.subject(bearer(issuer.token(NOW, sub="new")), "another") == "new"
    clock.time += 1
    assert checks.subject(bearer(issuer.token(NOW, sub="new2"))) == "new2"


def test_a_token_that_is_not_valid_yet_is_verified_again(tmp_path, issuer):
    clock = Clock()
    checks, token = checker(tmp_path, issuer, clock=clock), bearer(issuer.token(NOW, nbf=NOW + 60))
    assert checks.subject(token).reason == "not_yet"
    clock.time += 60
    assert checks.subject(token) == AMF


def test_a_token_that_was_refused_for_its_audience_is_verified_again_after_a_change(tmp_path, issuer):
    checks, token = checker(tmp_path, issuer, audience=("AMF",)), bearer(issuer.token(NOW))
    assert checks.subject(token).reason == "audience"
    settings = settings_of(tmp_path, sets=[jwks(issuer)])
    checks.apply(settings, load_keys(read_keys(settings)))
    assert checks.subject(token) == AMF


def test_a_change_of_keys(tmp_path):
    old, new = Issuer(), Issuer("RS512", "key-2")
    checks, settings = checker(tmp_path, old), settings_of(tmp_path, sets=[jwks(old)])
    first, second = bearer(old.token(NOW)), bearer(new.token(NOW))
    assert checks.subject(first) == AMF
    assert checks.subject(second).reason == "unknown_key"
    for in_force, accepted in (((old, new), (first, second)), ((new,), (second,)), ((old, new), (first, second))):
        (tmp_path / "jwks-0").write_bytes(jwks(*in_force))
        checks.apply(settings, load_keys(read_keys(settings)))
        assert [checks.subject(token) == AMF for token in (first, second)] == [
            token in accepted for token in (first, second)
        ]


def test_another_audience_counts_for_remembered_tokens_too(tmp_path, issuer):
    checks, token = checker(tmp_path, issuer), bearer(issuer.token(NOW))
    assert checks.subject(token) == AMF
    settings = replace(settings_of(tmp_path, sets=[jwks(issuer)]), audience=(OURS,))
    checks.apply(settings, load_keys(read_keys(settings)))
    assert checks.subject(token).reason == "audience"


def test_keys_of_every_form(tmp_path):
    issuers = [Issuer("ES256", None), Issuer("RS256", None), Issuer("Ed25519", None)]
    settings = settings_of(tmp_path, pems=[each.pem for each in issuers])
    checks = Asked(
        settings, load_keys(pickle.loads(pickle.dumps(read_keys(settings)))), scope=SERVICE, now=Clock(), ticks=Clock()
    )
    for issuer in issuers:
        assert checks.subject(bearer(issuer.token(NOW))) == AMF
        # A PEM file has no name for its key: whatever the token calls it, it is tried.
        assert checks.subject(bearer(issuer.token(NOW, header={"kid": "whatever"}))) == AMF
    certificate = trustme.CA().cert_pem.bytes()
    settings = settings_of(tmp_path, pems=[certificate])
    assert len(load_keys(read_keys(settings))) == 1


def test_a_token_that_names_no_key_is_held_against_each(tmp_path):
    first, second = Issuer(kid="a"), Issuer(kid="b")
    checks = checker(tmp_path, first, second)
    assert checks.subject(bearer(second.token(NOW, header={"kid": None}))) == AMF
    assert checks.subject(bearer(Issuer().token(NOW, header={"kid": None}))).reason == "signature"
    # One that names another than it is signed with does not become good by that.
    assert checks.subject(bearer(second.token(NOW, header={"kid": "a"}))).reason == "signature"


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("sets", b"", "not a JWK set"),
        ("sets", b"[]", "not a JWK set"),
        ("sets", b'{"keys": 7}', "0 keys"),
        ("sets", b'{"keys": []}', "0 keys"),
        ("sets", b'{"keys": [7]}', "expected only public keys"),
        ("sets", b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "expected only public keys"),
        ("sets", b'{"keys": [{"kty": "new", "x": "y"}]}', "0 keys"),
        ("sets", b'{"keys": [{"kty": "RSA", "n": 5, "e": "AQAB"}]}', "must be a str"),
        ("sets", b"[" * 100_000, "not a JWK set"),
        ("sets", "private", "expected only public keys"),
        ("sets", "many", "expected 1 to 16"),
        ("pems", b"", "expected a public key or a certificate in PEM"),
        ("pems", "private", "contains a private key"),
        ("pems", b"-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----\n", "expected a public key"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_keys_that_nothing_can_be_checked_with(tmp_path, issuer, kind, content, said):
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if content == "private":
        pem = issuer.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        content = pem if kind == "pems" else json.dumps({"keys": [issuer.key.as_dict(private=True)]}).encode()
    elif content == "many":
        content = json.dumps({"keys": [issuer.jwk()] * 17}).encode()
    settings = settings_of(tmp_path, **{kind: [content]})
    with pytest.raises(FileError, match=said) as e:
        load_keys(read_keys(settings))
    assert e.value.key == ("jwks" if kind == "sets" else "keys")


def test_a_key_of_a_curve_that_is_not_taken_under_the_name_of_one_that_is(tmp_path):
    """EdDSA may be Ed448 as well (RFC 8037 3.1)."""
    key = {"kty": "OKP", "crv": "Ed448", "x": "A" * 76, "alg": "EdDSA"}
    with pytest.raises(FileError, match="the key fits none of these algorithms"):
        load_keys(read_keys(settings_of(tmp_path, sets=[json.dumps({"keys": [key]}).encode()])))


def test_a_weak_key_and_a_file_that_is_not_there(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    weak = (
        rsa.generate_private_key(65537, 1024).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    settings = settings_of(tmp_path, pems=[weak])
    with pytest.raises(FileError, match="1024 bits"):
        load_keys(read_keys(settings))
    with pytest.raises(FileError, match="cannot be read"):
        read_keys(replace(settings, keys=(tmp_path / "away",)))
