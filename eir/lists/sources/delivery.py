"""Deliveries: releases (manifests with signatures) in the drop folder, their verification, and the order of their loads.

Anyone with write access may deliver many invalid files. So deliveries that claim a trusted key are verified first, alternately
the newest and the oldest. Verified deliveries are loaded in rounds, with one delivery of each list in each round.
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
    """Release in the drop folder: manifest, signatures, and the result of their verification."""

    name: str
    """File name of the manifest."""
    signatures: tuple[str, ...]
    """File names of the signatures. `.sig` is the last one: a manifest counts as delivered while its `.sig` exists."""
    release: VerifiedRelease | None
    """Release, if the signatures are valid."""
    refused: ReleaseRefused | None
    """Reason for the rejection, if the signatures are not valid."""

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the delivery's data files; empty if its manifest is not verified."""
        if self.release is None:
            return ()
        return tuple(file.name for file in self.release.manifest.files)

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
    release = None
    refused = None
    if is_plain_name(name):
        try:
            release = verify_release(folder / name, lists, now=now)
        except ReleaseRefused as error:
            refused = error
        except OSError:
            raise
        except Exception as fault:  # noqa: BLE001 - a bug with one delivery must not stop the others
            refused = refused_by(fault)
    else:
        refused = ReleaseRefused("file_name", f"{printable(name)} is not a plain file name in UTF-8")
    return Delivery(name, (*further, first), release, refused)


def manifests_by_priority(
    listing: Listing, folder_fd: int, lists: Iterable[ListSettings]
) -> tuple[list[str], list[str]]:
    """Return the names of the signed manifests: first those whose signature names a trusted key, then all others.

    In each list the newest and the oldest manifests alternate, so that ten thousand deliveries before or after a valid
    release cannot delay the release.
    """
    keys = _trusted_keys(lists)
    trusted: list[str] = []
    others: list[str] = []
    for name in sorted(signed_manifests(listing), key=lambda name: listing[name].changed):
        if keys is None or _claims_trusted_key(name, folder_fd, listing, keys):
            trusted.append(name)
        else:
            others.append(name)
    return list(_from_both_ends(trusted)), list(_from_both_ends(others))


def order_by_turn(deliveries: Iterable[Delivery], last: Callable[[Delivery], bool]) -> Iterator[tuple[int, Delivery]]:
    """Yield each delivery with its round number. A round has one delivery of each list; the lowest serials are in the first round.

    Deliveries for which `last` returns True follow after all rounds. Unverified deliveries are at the end, by name.
    """
    rounds: dict[tuple[bool, str | None], int] = {}
    turns = []
    for delivery in sorted(deliveries, key=lambda delivery: (delivery.serial or 0, delivery.name)):
        is_unverified = delivery.release is None
        is_late = is_unverified or last(delivery)
        queue = (is_late, delivery.list)
        number = rounds.get(queue, -1) + 1
        rounds[queue] = number
        turns.append((is_unverified, is_late, number, delivery.list or "", delivery))
    turns.sort(key=lambda turn: turn[:4])
    for _, is_late, number, _, delivery in turns:
        yield (number + 1 if is_late else number), delivery


def _from_both_ends(names: list[str]) -> Iterator[str]:
    left = 0
    right = len(names) - 1
    while left <= right:
        yield names[right]
        if left < right:
            yield names[left]
        left += 1
        right -= 1


def _trusted_keys(lists: Iterable[ListSettings]) -> Collection[bytes] | None:
    """Return the public keys in all signers files, or None if one of the files cannot be read."""
    keys: set[bytes] = set()
    paths = {settings.signers for settings in lists if settings.signers is not None}
    for path in paths:
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
                content = read_small(signature, folder_fd, SIGNATURE_BYTES_MAX)
                if claims_one_of(keys, content):
                    return True
    return False
