"""A delivery: a manifest in the drop folder with its signatures, what verification says of it, and whose turn it is.

Who may deliver may deliver rubbish, and a great deal of it. So deliveries that name a trusted key are looked at first, both the
newest and the oldest of them, and those that are verified take turns by list.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eir.errors import ReleaseRefused, refused_by
from eir.lists.record.settings import ListSettings
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, SIGNERS_BYTES_MAX, keys_of, names_one_of
from eir.lists.releases.release import Release, is_plain_name, signature_names, verify_release
from eir.lists.rows.delivered import read_small
from eir.lists.sources.drop_folder import Listing, delivered, printable


@dataclass(frozen=True, slots=True)
class Delivery:
    """A manifest whose signature is there, and the result of its verification."""

    name: str
    signatures: tuple[str, ...]
    """Signatures by name. The first one stands last, since a release is there as long as that one is."""
    release: Release | None
    """Once its signatures hold."""
    refused: ReleaseRefused | None

    @property
    def data(self) -> tuple[str, ...]:
        """Its data files, by name; none as long as its manifest is not believed."""
        return () if self.release is None else tuple(file.name for file in self.release.manifest.files)

    @property
    def list(self) -> str | None:
        """The list that it is for, if its manifest is believed."""
        return None if self.release is None else self.release.manifest.list

    @property
    def serial(self) -> int | None:
        """Its serial, if its manifest is believed."""
        return None if self.release is None else self.release.manifest.serial


def verified(name: str, folder: Path, listing: Listing, lists: Mapping[str, ListSettings], now: datetime) -> Delivery:
    """The delivery, with its signatures verified as of now. Raises OSError for a fault of this host."""
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
    except Exception as fault:  # noqa: BLE001 - the outermost loop over deliveries: the others go on
        return Delivery(name, (*further, first), None, refused_by(fault))


def to_look_at(listing: Listing, folder_fd: int, lists: Iterable[ListSettings]) -> tuple[list[str], list[str]]:
    """The manifests whose signature has arrived: those signed by a key that some list trusts, or so they say, and the others.

    Each in the order in which to look at them: the newest, the oldest, the next to newest and so on, so that whoever has
    delivered ten thousand before or after a good release cannot keep it waiting.
    """
    keys = _trusted(lists)
    likely: list[str] = []
    others: list[str] = []
    for name in sorted(delivered(listing), key=lambda name: listing[name].changed):
        (likely if keys is None or _names_one(name, folder_fd, listing, keys) else others).append(name)
    return list(_from_both_ends(likely)), list(_from_both_ends(others))


def in_turn(deliveries: Iterable[Delivery], last: Callable[[Delivery], bool]) -> Iterator[tuple[int, Delivery]]:
    """Deliveries and the round in which each has its turn, by round: one of each list a round, in the order of serials.

    Those of which `last` holds come after all rounds, and after them those that were not verified, by name.
    """
    rounds: dict[tuple[bool, str | None], int] = {}
    found = []
    for each in sorted(deliveries, key=lambda each: (each.serial or 0, each.name)):
        late = each.release is None or last(each)
        number = rounds[late, each.list] = rounds.get((late, each.list), -1) + 1
        found.append((each.release is None, late, number, each.list or "", each))
    found.sort(key=lambda turn: turn[:4])
    return ((number + 1 if late else number, each) for _, late, number, _, each in found)


def _from_both_ends(names: list[str]) -> Iterator[str]:
    left, right = 0, len(names) - 1
    while left <= right:
        yield names[right]
        if left < right:
            yield names[left]
        left, right = left + 1, right - 1


def _trusted(lists: Iterable[ListSettings]) -> Collection[bytes] | None:
    """The keys in all signers files; None if one cannot be read."""
    keys: set[bytes] = set()
    for path in {settings.signers for settings in lists if settings.signers is not None}:
        try:
            with path.open("rb") as file:
                keys |= keys_of(file.read(SIGNERS_BYTES_MAX))
        except OSError:
            return None
    return keys


def _names_one(name: str, folder_fd: int, listing: Listing, keys: Collection[bytes]) -> bool:
    for signature in signature_names(name):
        if signature in listing:
            with suppress(ReleaseRefused, OSError):
                if names_one_of(keys, read_small(signature, folder_fd, SIGNATURE_BYTES_MAX)):
                    return True
    return False
