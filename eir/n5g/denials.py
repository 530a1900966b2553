"""What a request without a good access token is answered (TS 29.500 6.7.3, RFC 6750 3.1). Data only.

Apart from what checks tokens, which takes half a second to load and is not needed without `n5g.tokens`.
"""

from typing import Final, NamedTuple

from eir.n5g.settings import SERVICE

TOO_MANY_REQUESTS: Final = 429


class Denied(NamedTuple):
    """What whoever asks is answered instead."""

    status: int
    """401 or 403; 429 for a peer that has sent too many bad ones."""
    reason: str
    """A short word for metrics and log."""
    detail: str
    """For people, in the answer's body too; says nothing of keys."""
    challenge: str
    """The WWW-Authenticate header (RFC 6750 3)."""


def _denied(status: int, reason: str, detail: str, error: str | None) -> Denied:
    if status == TOO_MANY_REQUESTS:
        return Denied(status, reason, detail, "")
    parts = [f'realm="{SERVICE}"', *([f'error="{error}"', f'error_description="{detail}"'] if error else [])]
    if status == 403 or error is None:
        parts.append(f'scope="{SERVICE}"')
    return Denied(status, reason, detail, f"Bearer {', '.join(parts)}")


DENIED: Final = {
    reason: _denied(status, reason, detail, error)
    for reason, status, error, detail in (
        # RFC 6750 3.1: a request that brings no token is told of no error.
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
}
"""Every refusal, by its reason (TS 29.500 6.7.3, RFC 6750 3.1)."""
LASTING: Final = frozenset({"signature", "claims", "expired", "issuer", "audience", "scope"})
"""Refusals for which a signature was looked at, and which hold as long as settings and keys do."""
TOKEN_SETTINGS: Final = {
    "unknown_key": "n5g.tokens.jwks, n5g.tokens.keys", "issuer": "n5g.tokens.issuer", "audience": "n5g.tokens.audience",
    "no_token": "n5g.tokens, left out: no token is asked for",
}  # fmt: skip
"""By reason: the setting that would have taken the token; for other reasons it is the section as a whole."""
