"""Access tokens as clients carry them (RFC 6750): what an issuer's answer has, and what a file has. Checks none; imports eir.errors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from eir.errors import EirError

TOKEN_CHARS_MAX: Final = 8192
FILE_BYTES_MAX: Final = 4 * TOKEN_CHARS_MAX


def issued(document: Mapping[str, Any]) -> str | None:
    """Return the token in an issuer's answer (RFC 6749 5.1); None if it has none that a header could carry."""
    token = document.get("access_token")
    return token if isinstance(token, str) and _is_token(token) else None


def token_in(file: Path) -> str:
    """The token that a file has, alone or in an issuer's answer. Raises EirError, which says nothing of what the file has."""
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
    """The header that carries it (RFC 6750 2.1)."""
    return "authorization", f"Bearer {token}"


def _is_token(text: str) -> bool:
    """True if a header can carry the text."""
    return 0 < len(text) <= TOKEN_CHARS_MAX and text.isascii() and text.isprintable() and " " not in text
