"""Issuer of access tokens, as an NRF is one: keys, and valid and invalid tokens signed with them."""

import base64
import hashlib
import hmac
import json
import warnings
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwk, jws
from joserfc.errors import SecurityWarning

AMF = "6fd0a5d1-7a0b-4a8e-9b7e-00000000a3f1"
NRF = "6fd0a5d1-7a0b-4a8e-9b7e-0000000000f0"
SCOPE = "n5g-eir-eic"


CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


def _key(algorithm: str) -> tuple[str, Any]:
    if algorithm in CURVES:
        return "EC", ec.generate_private_key(CURVES[algorithm]())
    return ("OKP", ed25519.Ed25519PrivateKey.generate()) if algorithm in {"Ed25519", "EdDSA"} else ("RSA", _rsa())


@cache
def _rsa() -> rsa.RSAPrivateKey:
    """One for all: making it takes a while."""
    return rsa.generate_private_key(65537, 2048)


class Issuer:
    """One key of an issuer, and what it signs."""

    def __init__(self, algorithm: str = "ES256", kid: str | None = "key-1") -> None:
        self.algorithm, self.kid = algorithm, kid
        kind, self.private = _key(algorithm)
        self.key = jwk.import_key(self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), kind)

    @property
    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def jwk(self, **more: Any) -> dict[str, Any]:
        """The public key as a member of a set."""
        return {**self.key.as_dict(private=False), **({"kid": self.kid} if self.kid else {}), **more}

    def token(self, now: float, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A good token, but for what is said otherwise; a claim of None is left out."""
        said = {"iss": NRF, "sub": AMF, "aud": "5G_EIR", "scope": SCOPE, "exp": int(now) + 3600, **claims}
        head = {"alg": self.algorithm, "typ": "JWT", **({"kid": self.kid} if self.kid else {}), **(header or {})}
        payload = json.dumps({name: value for name, value in said.items() if value is not None})
        registry = jws.JWSRegistry(algorithms=[self.algorithm], strict_check_header=False)
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):
            return jws.serialize_compact(
                {name: value for name, value in head.items() if value is not None}, payload, self.key, registry=registry
            )


def jwks(*issuers: Issuer) -> bytes:
    return json.dumps({"keys": [each.jwk() for each in issuers]}).encode()


def bearer(token: str) -> bytes:
    return b"Bearer " + token.encode()


def raw(header: dict[str, Any], payload: bytes, secret: bytes | None) -> str:
    """A token as an attacker makes it: signed by HMAC over whatever secret, or not at all."""
    head, body = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(header).encode(), payload))
    signature = b"" if secret is None else hmac.new(secret, head + b"." + body, hashlib.sha256).digest()
    return b".".join((head, body, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()
