"""Names of subscribers in the record of checks (keyed hash, IMSI or none), and the keys of the hashes.

The key of the hashes is in a file, created at the first start, mode 0600. When it is old, a new key replaces it. A hash begins
with the number of its key (two hexadecimal digits). With different keys, an IMSI has different hashes, which cannot be related.
An old key stays in the file as long as rows with its hashes are kept, so that `eir seen` and `eir sightings forget` find them.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eir.disk import write_file
from eir.errors import EirError
from eir.sightings.settings import FULL, HASHED

if TYPE_CHECKING:
    import polars as pl

KEY_FILE = "sightings.key"
KEY_BYTES, DIGEST_BYTES = 32, 8
KEYS_MAX = 256


class HashKey(NamedTuple):
    """Key for the hashes of IMSIs, with its number and the time from which it is used."""

    number: int
    since: int
    """Unix seconds from which it is used."""
    octets: bytes


@dataclass(frozen=True, slots=True)
class Subscribers:
    """Form in which new rows of the record name subscribers: keyed hash, IMSI or no name."""

    how: str
    """One of the choices in eir.sightings.settings."""
    key: HashKey | None = None

    def of(self, texts: "pl.Series") -> "pl.Series":
        """Return for each IMSI or MSISDN its recorded form: keyed hash or plain text.

        Null for an empty text, or if subscribers are not recorded.
        """
        from eir.frames import pl  # noqa: PLC0415 - callers have imported it already

        return pl.Series(texts.name, [self.one(text) for text in texts.to_list()], dtype=pl.String)

    def one(self, text: str) -> str | None:
        """Return the recorded form of an IMSI or MSISDN: keyed hash or plain text.

        None for an empty text, or if subscribers are not recorded.
        """
        if not text:
            return None
        if self.key is not None:
            return subscriber_hash(self.key, text)
        return text if self.how == FULL else None


def subscriber_hash(key: HashKey, text: str) -> str:
    """Return the hash of an IMSI or MSISDN in hexadecimal digits: the number of the key, then a 64-bit hash."""
    digest = hashlib.blake2b(text.encode(), key=key.octets, digest_size=DIGEST_BYTES)
    return f"{key.number % KEYS_MAX:02x}{digest.hexdigest()}"


def read_keys(folder: Path) -> list[HashKey]:
    """Read the keys of subscribers' hashes from a state folder, newest last.

    Raises:
        EirError: if the file cannot be read or is damaged.
    """
    file = folder / KEY_FILE
    try:
        lines = file.read_text().splitlines()
        return [
            HashKey(int(number), int(since), bytes.fromhex(octets)) for number, since, octets in map(str.split, lines)
        ]
    except FileNotFoundError:
        return []
    except PermissionError as e:
        raise EirError(f"{file}: {e.strerror}; run the command as the node's user") from None
    except OSError as e:
        raise EirError(f"{file}: {e.strerror}") from None
    except ValueError as e:
        raise EirError(
            f"{file}: {e}; restore it from a backup, or remove it: earlier hashes can then not be resolved"
        ) from None


def load_subscribers(
    folder: Path, how: str, *, rotate_s: float, keep_s: float, now: Callable[[], float] = time.time
) -> Subscribers:
    """Return the form in which new rows of the record name subscribers. Create a new hash key if one is due.

    Raises:
        EirError: if the key file cannot be read.
        OSError: if it cannot be written.
    """
    if how != HASHED:
        return Subscribers(how)
    keys = read_keys(folder)
    if not keys or abs(now() - keys[-1].since) > rotate_s:  # abs: a key of a clock that was ahead must end too
        number = keys[-1].number + 1 if keys else 0
        keys.append(HashKey(number, int(now()), secrets.token_bytes(KEY_BYTES)))
        ended = [following.since for following in keys[1:]]
        current = [key for key, end in zip(keys, [*ended, None], strict=True) if end is None or now() - end < keep_s]
        lines = "".join(f"{key.number} {key.since} {key.octets.hex()}\n" for key in current)
        write_file(folder / KEY_FILE, lines.encode(), mode=0o600, durable=True)
    return Subscribers(how, keys[-1])


def subscriber_names(folder: Path, text: str) -> list[str]:
    """Return all names that the record may have for an IMSI or MSISDN: the text itself, and its hash with each key.

    Raises:
        EirError: if the key file cannot be read.
    """
    return [text, *(subscriber_hash(key, text) for key in read_keys(folder))]
