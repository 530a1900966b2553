"""From the configuration's `store` to a store. Imports the stores; nobody below server and cli imports this."""

from pathlib import Path

from eir.lists.store import ListStore
from eir.stores.report import Report, silent
from eir.stores.sqlite import SqliteStore

SQLITE = "sqlite"
SQLITE_FILE = "lists.sqlite"
COPY_FILE = "copy.sqlite"


def open_store(url: str, state_folder: Path, *, report: Report = silent) -> ListStore:
    """The store that `store: URL` means: `sqlite` (a file in the state folder), or a URL of eir.stores.redis_url.

    Nothing is opened or connected yet. Raises StoreError (`url`) for a URL that names no store, or not how to reach it.
    """
    if url == SQLITE:
        return SqliteStore(state_folder / SQLITE_FILE)
    from eir.stores.redis import RedisStore  # noqa: PLC0415  # 0.2 s that a node with the embedded store does not spend

    return RedisStore(url, report=report)


def open_copy(url: str, state_folder: Path) -> ListStore | None:
    """The last good copy that this node keeps of a store that is elsewhere; None for one that is on its own disk anyway."""
    return None if url == SQLITE else SqliteStore(state_folder / COPY_FILE)
