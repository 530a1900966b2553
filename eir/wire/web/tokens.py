"""Verification of access tokens (TS 33.501 13.4.1, RFC 6750, RFC 7519).

The verifier receives an Authorization header and returns the token's subject or a rejection. Only `read_keys` does I/O; clocks
are arguments. joserfc verifies signatures; this module verifies the claims, since joserfc accepts any.
A verified token is cached until it expires. Verifying a signature takes as long as many checks, so the number of invalid tokens
of a peer is limited.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc import jwk, jws
from joserfc.errors import InvalidKeyTypeError, JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry

from eir.errors import FileError
from eir.wire.peers.gate import client_key
from eir.wire.peers.rate import HIGHEST_PRIORITY, Buckets
from eir.wire.transport.tls import read_named
from eir.wire.web.denials import LASTING, Denied, TokenSettings, denials

ALGORITHMS: Final = (
    "ES256",
    "ES384",
    "ES512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "Ed25519",
    "EdDSA",
)
"""Accepted algorithms: signatures only (RFC 7518 3.1, RFC 9864). `none` proves nothing, and a verifier of an HMAC could also create one.
`EdDSA` is the older name (RFC 8037); only Ed25519 keys are accepted for it."""
TOKEN_BYTES_MAX: Final = 8192
KEYS_MAX: Final = 16
"""Maximum number of keys: a token without `kid` is tried with each."""
RSA_BITS_MIN: Final = 2048
SUBJECT_CHARS_MAX: Final = 255
REMEMBERED_MAX: Final = 4096
"""Maximum number of cached verified tokens; a further one replaces the oldest."""
TIME_MAX: Final = float(1 << 53)
REFUSED_MAX: Final = 512
"""Maximum number of cached rejected tokens, so that a repeated one costs a dictionary lookup."""
BAD_BURST: Final = 100
BAD_A_SECOND: Final = 20
"""Bucket of invalid tokens per peer; if it is empty, only cached tokens are accepted."""
EARLY_S: Final = 5
"""Seconds before its `nbf` from which a token is accepted, since the clocks of two hosts differ."""


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Contents of the configured key files, read once, so that the manager can send them to other processes."""

    settings: TokenSettings
    contents: tuple[tuple[str, str, bytes], ...]
    """Setting, file, content."""


class VerifyKey(NamedTuple):
    """Public key of an issuer of access tokens."""

    name: str | None
    """`kid` of the key in its set; None: the key is tried for every token."""
    key: jwk.Key
    algorithms: frozenset[str]
    thumbprint: str


class _Verified(NamedTuple):
    subject: str
    expires: float
    thumbprint: str


class _TokenRejected(Exception):
    """Rejection of an access token. The exception's text is one of the reasons in `denials`."""


class _Unusable(ValueError):
    pass


def read_keys(settings: TokenSettings) -> KeyFiles:
    """Read all key files. Raises FileError if a file is unreadable."""
    named = [("jwks", file) for file in settings.jwks] + [("keys", file) for file in settings.keys]
    return KeyFiles(settings, tuple((key, str(file), read_named(key, file)) for key, file in named))


def load_keys(files: KeyFiles) -> tuple[VerifyKey, ...]:
    """Parse the public keys. Raises FileError with a text that names the file and the fault."""
    public: list[VerifyKey] = []
    for setting, file, content in files.contents:
        try:
            with warnings.catch_warnings(action="ignore", category=SecurityWarning):  # such keys are rejected
                public += _of_set(content) if setting == "jwks" else [_of_pem(content)]
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as e:
            raise FileError(setting, f"{file}: {e}") from None
    if not 0 < len(public) <= KEYS_MAX:
        raise FileError("jwks", f"{len(public)} keys that tokens may be signed with; expected 1 to {KEYS_MAX}")
    return tuple(public)


class Tokens:
    """Verifier of access tokens.

    `scope`: required scope; `now`: clock in seconds since 1970; `ticks`: monotonic clock in seconds.
    """

    def __init__(
        self, settings: TokenSettings, keys: Sequence[VerifyKey], *, scope: str, now: Callable[[], float], ticks: Callable[[], float],
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:  # fmt: skip
        self._now, self._ticks, self._remembered_max = now, ticks, remembered_max
        self._scope, self._denied = scope, denials(scope)
        self._verified: dict[bytes, _Verified] = {}
        self._refused: dict[bytes, Denied] = {}
        self._bad_ones = Buckets(BAD_A_SECOND, BAD_BURST)
        """Buckets of invalid tokens by the peer's address."""
        self._settings, self._keys, self._audience = settings, tuple(keys), _audience(settings)

    def apply(self, settings: TokenSettings, keys: Sequence[VerifyKey]) -> None:
        """Apply new settings and keys for access tokens.

        Tokens verified with a remaining key stay cached if the settings are equal; all other tokens are verified again.
        """
        stays = {each.thumbprint for each in keys} if settings == self._settings else set()
        self._settings, self._keys, self._audience = settings, tuple(keys), _audience(settings)
        self._verified = {token: verified for token, verified in self._verified.items() if verified.thumbprint in stays}
        self._refused.clear()
        self._bad_ones = Buckets(BAD_A_SECOND, BAD_BURST)

    def subject(self, authorization: bytes | None, peer: str) -> str | Denied:
        """Verify the token in an Authorization header; return its subject (the client), or the error response.

        The subject (`sub`) is the requesting NF instance. `peer`: address of the client.
        """
        if authorization is None:
            return self._denied["no_token"]
        known = self._verified.get(authorization)
        if known is not None:
            if known.expires > self._now():
                return known.subject
            del self._verified[authorization]
        return self._refused.get(authorization) or self._verified_subject(authorization, peer)

    def _verified_subject(self, authorization: bytes, peer: str) -> str | Denied:
        """Verify a token that is not in the cache; return its subject (the client), or the error response."""
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return self._denied["no_token"]
        bad_ones = self._bad_ones.of(client_key(peer), self._ticks())
        if not bad_ones.room(self._ticks(), HIGHEST_PRIORITY):
            return self._denied["too_many"]
        try:
            verified = self._verify(token.strip(b" "))
        except _TokenRejected as e:
            refusal = self._denied[str(e)]
            if refusal.reason in LASTING:
                bad_ones.spend(1)
                _remember(self._refused, authorization, refusal, REFUSED_MAX)
            return refusal
        _remember(self._verified, authorization, verified, self._remembered_max)
        return verified.subject

    def _verify(self, token: bytes) -> _Verified:
        """Verify the form, signature and claims of a token, in this order. Raises _TokenRejected."""
        if len(token) > TOKEN_BYTES_MAX:
            raise _TokenRejected("malformed")
        try:
            signed = jws.extract_compact(token)
            header = signed.headers()
        except (JoseError, ValueError, TypeError, RecursionError):
            raise _TokenRejected("malformed") from None
        if "crit" in header:  # RFC 7515 4.1.11: no extension is supported
            raise _TokenRejected("critical_header")
        algorithm, name = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise _TokenRejected("algorithm")
        candidates = [each for each in self._keys if name is None or each.name is None or each.name == name]
        if not candidates:
            raise _TokenRejected("unknown_key")
        candidates = [each for each in candidates if algorithm in each.algorithms]
        if not candidates:
            raise _TokenRejected("algorithm")
        signer = next((each for each in candidates if _signed_by(signed, each.key)), None)
        if signer is None:
            raise _TokenRejected("signature")
        try:
            claims = json.loads(signed.payload)
        except (ValueError, RecursionError):
            raise _TokenRejected("malformed") from None
        subject, expires = self._claimed(claims)
        return _Verified(subject, expires, signer.thumbprint)

    def _claimed(self, claims: Any) -> tuple[str, float]:
        """Verify the claims of a token (TS 29.510 6.3.5.2.4); return its subject and expiry. Raises _TokenRejected."""
        if not isinstance(claims, dict):
            raise _TokenRejected("claims")
        expires, begins, now = _time(claims.get("exp")), _time(claims.get("nbf", 0)), self._now()
        subject, scope = claims.get("sub"), claims.get("scope")
        if expires is None or begins is None or not isinstance(subject, str) or not isinstance(scope, str):
            raise _TokenRejected("claims")
        if not 0 < len(subject) <= SUBJECT_CHARS_MAX or not (subject.isascii() and subject.isprintable()):
            raise _TokenRejected("claims")
        if expires <= now:
            raise _TokenRejected("expired")
        if begins > now + EARLY_S:
            raise _TokenRejected("not_yet")
        issuer, audience = claims.get("iss"), claims.get("aud")
        if self._settings.issuer and issuer not in self._settings.issuer:
            raise _TokenRejected("issuer")
        # An NF type, or NF instances (TS 29.510 6.3.5.2.4): UUIDs are compared without regard to case (RFC 4122 3).
        named = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(each, str) and each.casefold() in self._audience for each in named):
            raise _TokenRejected("audience")
        if self._scope not in scope.split(" "):
            raise _TokenRejected("scope")
        return subject, expires


def _remember(cache: dict[Any, Any], token: object, result: object, size_max: int) -> None:
    if len(cache) >= size_max:
        del cache[next(iter(cache))]
    cache[token] = result


def _audience(settings: TokenSettings) -> frozenset[str]:
    return frozenset(each.casefold() for each in settings.audience)


def _time(value: object) -> float | None:
    """Return the value of a time claim, in Unix seconds, or None if the value is not a valid time.

    Python's JSON parser accepts NaN, for which every comparison is false.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < TIME_MAX:
        return None
    return value


def _signed_by(signed: jws.CompactSignature, key: jwk.Key) -> bool:
    try:
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):  # of the name EdDSA
            return jws.validate_compact(signed, key, registry=_REGISTRY)
    except (JoseError, ValueError, TypeError):
        return False


_REGISTRY = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
"""Registry that ignores unknown headers (RFC 7515 4), except critical ones. Keys and addresses of keys in a token are not used."""


def _of_set(content: bytes) -> list[VerifyKey]:
    """Parse a JWK set; skip keys of unknown types and keys that are not for signatures (RFC 7517 5)."""
    try:
        keys = json.loads(content)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError('not a JWK set; expected {"keys": [...]} in JSON (RFC 7517 5)') from None
    usable = []
    for each in keys if isinstance(keys, list) else []:
        if not isinstance(each, Mapping) or each.get("kty") == "oct":
            raise ValueError("it contains a secret key; expected only public keys")
        if each.get("use", "sig") != "sig":
            continue
        try:
            key = jwk.import_key(dict(each))
        except InvalidKeyTypeError:
            continue
        usable.append(_usable(key, key.kid))
    return usable


def _of_pem(content: bytes) -> VerifyKey:
    """Parse a PEM file that contains a public key or a certificate."""
    if b"PRIVATE KEY-----" in content:
        raise ValueError("it contains a private key; expected the public key, or a certificate")
    for kind in ("RSA", "EC", "OKP"):
        try:
            return _usable(JWKRegistry.import_key(content, kind), None)
        except InvalidKeyTypeError:
            continue
        except UnsupportedAlgorithm:
            break
        except ValueError as e:
            raise (
                e if isinstance(e, _Unusable) else ValueError("expected a public key or a certificate in PEM")
            ) from None
    raise ValueError("expected an RSA, an EC or an Ed25519 key")


def _usable(key: jwk.Key, name: str | None) -> VerifyKey:
    if key.is_private:
        raise _Unusable("it contains a private key; expected only public keys")
    if isinstance(key, jwk.RSAKey) and key.public_key.key_size < RSA_BITS_MIN:
        raise _Unusable(f"an RSA key of {key.public_key.key_size} bits; expected {RSA_BITS_MIN} at least")
    algorithms = frozenset(each.name for each in jws.JWSRegistry.filter_algorithms(key, list(ALGORITHMS)))
    if not algorithms - {"EdDSA"}:  # a key of another curve
        raise _Unusable(f"the key fits none of these algorithms: {', '.join(ALGORITHMS)}")
    return VerifyKey(name, key, algorithms, key.thumbprint())
