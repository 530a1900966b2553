"""Deliveries in the drop folder: manifests with signatures, their verification, and the order of their loads.

Anyone with write access may deliver many invalid files. So deliveries that claim a trusted key are verified first, alternately
the newest and the oldest, and the lists take turns with verified deliveries.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eir.errors import ReleaseRefused, refused_by
from eir.lists.record.settings import ListSettings
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, SIGNERS_BYTES_MAX, claims_one_of, keys_of
from eir.lists.releases.release import VerifiedRelease, is_plain_name, signature_names, verify_release
from eir.lists.rows.delivered import read_small
from eir.lists.sources.drop_folder import Listing, printable, signed_manifests


@dataclass(frozen=True, slots=True)
class Delivery:
    """Delivery: a manifest with its signatures in the drop folder, and the result of its verification."""

    name: str
    signatures: tuple[str, ...]
    """Names of the signatures. The first signature is last, because a release counts as delivered as long as it exists."""
    release: VerifiedRelease | None
    """Release, if its signatures are valid."""
    refused: ReleaseRefused | None

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the delivery's data files; empty if its manifest is not verified."""
        return () if self.release is None else tuple(file.name for file in self.release.manifest.files)

    @property
    def list(self) -> str | None:
        """Name of the delivery's list; None if its manifest is not verified."""
        return None if self.release is None else self.release.manifest.list

    @property
    def serial(self) -> int | None:
        """Serial of the delivery; None if its manifest is not verified."""
        return None if self.release is None else self.release.manifest.serial


def verify_delivery(
    name: str, folder: Path, listing: Listing, lists: Mapping[str, ListSettings], now: datetime
) -> Delivery:
    """Verify the signatures of a delivery at the time `now`, and return the delivery with the result.

    Raises:
        OSError: for a fault of this host.
    """
    first, *further = (signature for signature in signature_names(name) if signature in listing)
    if not is_plain_name(name):
        return Delivery(
            name,
            (*further, first),
            None,
            ReleaseRefused("file_name", f"{printable(name)} is not a plain file name in UTF-8"),
        )
    try:
        return Delivery(name, (*further, first), verify_release(folder / name, lists, now=now), None)
    except ReleaseRefused as refused:
        return Delivery(name, (*further, first), None, refused)
    except OSError:
        raise
    except Exception as fault:  # noqa: BLE001 - a bug with one delivery must not stop the others
        return Delivery(name, (*further, first), None, refused_by(fault))


def manifests_by_priority(
    listing: Listing, folder_fd: int, lists: Iterable[ListSettings]
) -> tuple[list[str], list[str]]:
    """Return the manifests with signatures as two lists: those that claim a trusted key, and all others.

    In each list the newest and the oldest manifests alternate, so that ten thousand deliveries before or after a good
    release cannot delay it.
    """
    keys = _trusted_keys(lists)
    likely: list[str] = []
    unlikely: list[str] = []
    for name in sorted(signed_manifests(listing), key=lambda name: listing[name].changed):
        (likely if keys is None or _claims_trusted_key(name, folder_fd, listing, keys) else unlikely).append(name)
    return list(_from_both_ends(likely)), list(_from_both_ends(unlikely))


def order_by_turn(deliveries: Iterable[Delivery], last: Callable[[Delivery], bool]) -> Iterator[tuple[int, Delivery]]:
    """Yield deliveries with the number of their round. Each round has one delivery of each list, by serial.

    Deliveries for which `last` returns True follow after all rounds. Unverified deliveries are at the end, by name.
    """
    rounds: dict[tuple[bool, str | None], int] = {}
    turns = []
    for each in sorted(deliveries, key=lambda each: (each.serial or 0, each.name)):
        late = each.release is None or last(each)
        number = rounds[late, each.list] = rounds.get((late, each.list), -1) + 1
        turns.append((each.release is None, late, number, each.list or "", each))
    turns.sort(key=lambda turn: turn[:4])
    return ((number + 1 if late else number, each) for _, late, number, _, each in turns)


def _from_both_ends(names: list[str]) -> Iterator[str]:
    left, right = 0, len(names) - 1
    while left <= right:
        yield names[right]
        if left < right:
            yield names[left]
        left, right = left + 1, right - 1


def _trusted_keys(lists: Iterable[ListSettings]) -> Collection[bytes] | None:
    """Return the public keys in all signers files, or None if one of the files cannot be read."""
    keys: set[bytes] = set()
    for path in {settings.signers for settings in lists if settings.signers is not None}:
        try:
            with path.open("rb") as file:
                keys |= keys_of(file.read(SIGNERS_BYTES_MAX))
        except OSError:
            return None
    return keys


def _claims_trusted_key(name: str, folder_fd: int, listing: Listing, keys: Collection[bytes]) -> bool:
    for signature in signature_names(name):
        if signature in listing:
            with suppress(ReleaseRefused, OSError):
                if claims_one_of(keys, read_small(signature, folder_fd, SIGNATURE_BYTES_MAX)):
                    return True
    return False
