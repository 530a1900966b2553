"""Access tokens (RFC 6750): settings, header and error responses. Another module verifies tokens.

`eir/wire/web/tokens.py` verifies tokens. It takes 0.5 s to load, and a node without tokens does not need it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from eir.errors import EirError

TOO_MANY_REQUESTS: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Keys, issuers and audiences of accepted access tokens."""

    jwks: tuple[Path, ...]
    """Files with JWK sets (RFC 7517)."""
    keys: tuple[Path, ...]
    """Files with public keys or certificates in PEM."""
    issuer: tuple[str, ...]
    """Accepted issuers; empty: any issuer that holds one of the keys."""
    audience: tuple[str, ...]
    """Accepted audiences; in a 5G core an NF type, or NF instances."""


class Denied(NamedTuple):
    """Error response for a rejected token."""

    status: int
    """401 or 403; 429 for a peer that has sent too many invalid tokens."""
    reason: str
    """Label in metrics and log."""
    detail: str
    """Message for people, also in the response body; reveals nothing about keys."""
    challenge: str
    """Value of the WWW-Authenticate header (RFC 6750 3)."""


def _denied(scope: str, status: int, reason: str, detail: str, error: str | None) -> Denied:
    if status == TOO_MANY_REQUESTS:
        return Denied(status, reason, detail, "")
    parts = [f'realm="{scope}"', *([f'error="{error}"', f'error_description="{detail}"'] if error else [])]
    if status == 403 or error is None:
        parts.append(f'scope="{scope}"')
    return Denied(status, reason, detail, f"Bearer {', '.join(parts)}")


@cache
def denials(scope: str) -> Mapping[str, Denied]:
    """Return the error responses to rejected tokens, by reason (TS 29.500 6.7.3, RFC 6750 3.1).

    `scope`: required scope, which is also the realm.
    """
    return {reason: _denied(scope, status, reason, detail, error) for reason, status, error, detail in _DENIED}


_DENIED: Final = (
    # RFC 6750 3.1: the response to a request without a token carries no error code.
    ("no_token", 401, None, "an access token is needed"),
    ("malformed", 401, "invalid_token", "the access token is not a signed JWT"),
    ("algorithm", 401, "invalid_token", "the access token is signed in a way that is not accepted here"),
    ("critical_header", 401, "invalid_token", "the access token has a critical header that is not understood"),
    ("unknown_key", 401, "invalid_token", "the access token is not signed by a key that is known here"),
    ("signature", 401, "invalid_token", "the signature of the access token is wrong"),
    ("claims", 401, "invalid_token", "the access token lacks a claim, or one of them has the wrong type"),
    ("expired", 401, "invalid_token", "the access token has expired"),
    ("not_yet", 401, "invalid_token", "the access token is not valid yet"),
    ("issuer", 401, "invalid_token", "the issuer of the access token is not accepted here"),
    ("audience", 401, "invalid_token", "the access token is for another audience"),
    ("scope", 403, "insufficient_scope", "the access token is not for this service"),
    ("too_many", TOO_MANY_REQUESTS, None, "too many bad access tokens"),
)
LASTING: Final = frozenset({"signature", "claims", "expired", "issuer", "audience", "scope"})
"""Reasons found after a signature check, valid until settings or keys change."""
_NAMED = {"unknown_key": ("jwks", "keys"), "issuer": ("issuer",), "audience": ("audience",)}


def token_setting(section: str, reason: str) -> str:
    """Return a text with the configuration keys that can cause token rejections for this reason, or the section if no such key is known."""
    if reason == "no_token":
        return f"{section}, left out: no token is required"
    return ", ".join(f"{section}.{key}" for key in _NAMED.get(reason, ())) or section


TOKEN_CHARS_MAX: Final = 8192
FILE_BYTES_MAX: Final = 4 * TOKEN_CHARS_MAX


def issued(document: Mapping[str, Any]) -> str | None:
    """Return the access token in the answer of a token issuer (RFC 6749 5.1); None if the answer has no token.

    None also if a header cannot carry the token.
    """
    token = document.get("access_token")
    return token if isinstance(token, str) and _is_token(token) else None


def token_in(file: Path) -> str:
    """Read the access token from a file, which holds the token alone or an issuer's JSON answer.

    Raises:
        EirError: if the file has no token. The text contains nothing of the file's content.
    """
    try:
        with file.open("rb") as stream:
            octets = stream.read(FILE_BYTES_MAX + 1)
    except OSError as e:
        raise EirError(f"{file} cannot be read: {e.strerror}") from None
    try:
        text = octets.decode("ascii").strip()
        document = json.loads(text) if text.startswith("{") else {"access_token": text}
    except (ValueError, RecursionError):
        document = {}
    if len(octets) > FILE_BYTES_MAX or (token := issued(document)) is None:
        raise EirError(
            f"{file} has no access token; expected the token alone, or an issuer's answer in JSON with access_token"
        ) from None
    return token


def authorization(token: str) -> tuple[str, str]:
    """Return the Authorization header for a token (RFC 6750 2.1)."""
    return "authorization", f"Bearer {token}"


def _is_token(text: str) -> bool:
    """Return whether the text has only characters that a header permits in a token."""
    return 0 < len(text) <= TOKEN_CHARS_MAX and text.isascii() and text.isprintable() and " " not in text
