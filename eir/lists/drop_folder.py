"""What lies in a drop folder, what of it is whole, and when to look closer.

Files come in any order and in halves, change while they are read, or are links. What is here reads names, sizes and times,
and no content. May import lists.release.
"""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from eir.lists.release import Manifest

SETTLED_S = 1.0
"""A file that was changed less than this ago may still be on its way."""
ITEMS_MAX = 3000
"""Files of the folder that are looked at; the rest waits until these have gone."""
STRAYS_AGAIN_S = 30.0
"""Pause between two passes for files that have lain there for too long."""
CHANGED_AGAIN_S = 10.0
"""A pass while files only grow: not more often than this."""


class Item(NamedTuple):
    """One name in the folder."""

    size: int
    changed: float
    """Unix seconds of the last change, of content or name (ctime)."""
    regular: bool


Listing = Mapping[str, Item]


def look(folder: Path | int) -> dict[str, Item]:
    """The names in the folder (or its descriptor) that may belong to releases: no folders, nothing hidden. Raises OSError."""
    found: dict[str, Item] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    found[entry.name] = Item(status.st_size, status.st_ctime, stat.S_ISREG(status.st_mode))
            if len(found) >= ITEMS_MAX:
                break
    return found


def delivered(listing: Listing) -> list[str]:
    """Manifests whose signature has arrived, by name."""
    names = (name.removesuffix(".sig") for name in listing if name.endswith(".sig"))
    return sorted(name for name in names if name in listing)


def lacking(manifest: Manifest, listing: Listing, now: float) -> str:
    """What keeps a release's data files from being whole; empty if nothing does."""
    for file in manifest.files:
        item = listing.get(file.name)
        if item is None:
            return f"{file.name} is not there"
        if item.size != file.bytes:
            return f"{file.name} has {item.size} of {file.bytes} bytes"
        if not settled(item, now):
            return f"{file.name} was changed just now"
    return ""


def settled(item: Item, now: float) -> bool:
    """Nobody changed it of late. A time that is yet to come is another host's clock, and says nothing."""
    return not now - SETTLED_S < item.changed <= now


class Watch:
    """Decides from one look at the folder after another when a pass is worth making. `patience_s` as in inbox.Terms."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._seen: Listing = {}
        """As the last pass found it."""
        self._again_at = 0.0
        self._passed_at = -float("inf")

    def due(self, listing: Listing, now: float) -> bool:
        """Whether there may be something to do. `now` in Unix seconds, like the times of the files."""
        if not listing:
            return False
        if now >= self._again_at:
            return True
        since = now - self._passed_at
        if since >= STRAYS_AGAIN_S and min(item.changed for item in listing.values()) + self._patience_s <= now:
            return True
        fresh = [item for name, item in listing.items() if self._seen.get(name) != item]
        if not fresh or not any(name.endswith(".sig") for name in listing):
            return False
        return since >= CHANGED_AGAIN_S or all(settled(item, now) for item in fresh)

    def passed(self, listing: Listing, again_s: float | None, now: float) -> None:
        """A pass was made of what `listing` shows."""
        self._seen = listing
        self._passed_at = now
        self._again_at = float("inf") if again_s is None else now + again_s
