"""Subscribers in the record: a keyed hash, the IMSI, or nothing.

The key of the hashes is in a file, made at the first start, mode 0600. Once it is old a new one takes its place. A hash begins with
the number of its key (two hexadecimal digits): under two keys the same SIM has two hashes, which tell nothing about each other. An old
key stays until what was recorded under it is too old itself, so that `eir seen` and `eir sightings forget` find all of it.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eir.disk import put
from eir.errors import EirError
from eir.sightings.settings import FULL, HASHED

if TYPE_CHECKING:
    import polars as pl

KEY_FILE = "sightings.key"
KEY_BYTES, DIGEST_BYTES = 32, 8
KEYS_MAX = 256


class Key(NamedTuple):
    """One key of the file."""

    number: int
    since: int
    """Unix seconds."""
    octets: bytes


@dataclass(frozen=True, slots=True)
class Subscribers:
    """The form in which subscribers are written from now on."""

    how: str
    """A word of eir.sightings.settings."""
    key: Key | None = None

    def of(self, imsis: "pl.Series") -> "pl.Series":
        """Return what is kept of each IMSI, null where it is missing (empty)."""
        import polars as pl  # noqa: PLC0415 - for those that have it already

        return pl.Series("subscriber", [self.one(imsi) for imsi in imsis.to_list()], dtype=pl.String)

    def one(self, imsi: str) -> str | None:
        """Return what is kept of one IMSI."""
        if not imsi:
            return None
        if self.key is not None:
            return hashed(self.key, imsi)
        return imsi if self.how == FULL else None


def hashed(key: Key, imsi: str) -> str:
    """The hash of an IMSI under a key, as hexadecimal digits: the key's number, then 64 bits."""
    digest = hashlib.blake2b(imsi.encode(), key=key.octets, digest_size=DIGEST_BYTES)
    return f"{key.number % KEYS_MAX:02x}{digest.hexdigest()}"


def read_keys(folder: Path) -> list[Key]:
    """The keys in a state folder, the newest last. Raises EirError where the file cannot be read or is damaged."""
    file = folder / KEY_FILE
    try:
        lines = file.read_text().splitlines()
        return [Key(int(number), int(since), bytes.fromhex(octets)) for number, since, octets in map(str.split, lines)]
    except FileNotFoundError:
        return []
    except PermissionError as e:
        raise EirError(f"{file}: {e.strerror}; run it as the node's user") from None
    except OSError as e:
        raise EirError(f"{file}: {e.strerror}") from None
    except ValueError as e:
        raise EirError(
            f"{file}: {e}; put it back from a backup, or remove it: hashes from before it tell nothing then"
        ) from None


def subscribers(
    folder: Path, how: str, *, rotate_s: float, keep_s: float, now: Callable[[], float] = time.time
) -> Subscribers:
    """Return the form in which subscribers are written from now on.

    Makes a key, or the next one, if needed. Raises EirError or OSError.
    """
    if how != HASHED:
        return Subscribers(how)
    keys = read_keys(folder)
    if not keys or abs(now() - keys[-1].since) > rotate_s:  # of a clock that was ahead, a key would never be old
        number = keys[-1].number + 1 if keys else 0
        keys.append(Key(number, int(now()), secrets.token_bytes(KEY_BYTES)))
        ended = [following.since for following in keys[1:]]
        kept = [key for key, end in zip(keys, [*ended, None], strict=True) if end is None or now() - end < keep_s]
        lines = "".join(f"{key.number} {key.since} {key.octets.hex()}\n" for key in kept)
        put(folder / KEY_FILE, lines.encode(), mode=0o600, durable=True)
    return Subscribers(how, keys[-1])


def forms(folder: Path, imsi: str) -> list[str]:
    """All that the record may call a subscriber: the IMSI, and its hash under each key. Raises EirError."""
    return [imsi, *(hashed(key, imsi) for key in read_keys(folder))]
