"""Key files and verifier of access tokens, as the settings require them.

`eir/wire/web/tokens.py` takes 0.5 s to load, so these functions import it only if the settings require tokens.
"""

import time
from typing import TYPE_CHECKING

from eir.wire.web.denials import TokenSettings

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles, Tokens


def keys_of(tokens: TokenSettings | None, before: "KeyFiles | None" = None) -> "KeyFiles | None":
    """Read and check the key files for access tokens; return their contents, or None if the settings require no token.

    `before`: earlier content, which is not verified again. Raises FileError.
    """
    if tokens is None:
        return None
    from eir.wire.web.tokens import load_keys, read_keys  # noqa: PLC0415 - takes 0.5 s, which a node without tokens saves

    files = read_keys(tokens)
    if files != before:
        load_keys(files)
    return files


def tokens_of(files: "KeyFiles | None", now: "Tokens | None", scope: str) -> "Tokens | None":
    """Return the verifier of access tokens for this scope, or None if the settings require no token.

    `now`: present verifier, to which the new settings and keys are applied. Raises FileError.
    """
    if files is None:
        return None
    from eir.wire.web.tokens import Tokens, load_keys  # noqa: PLC0415 - as above

    keys = load_keys(files)
    if now is None:
        return Tokens(files.settings, keys, scope=scope, now=time.time, ticks=time.monotonic)
    now.apply(files.settings, keys)
    return now
