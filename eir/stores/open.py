"""From the configuration's `store` to a store. Imports the stores; nobody below server and cli imports this."""

from pathlib import Path

from eir.errors import StoreError
from eir.lists.store import ListStore
from eir.stores.sqlite import SqliteStore

SQLITE_FILE = "lists.sqlite"


def open_store(url: str, state_folder: Path) -> ListStore:
    """The store that `store: URL` means: `sqlite` (a file in the state folder).

    Nothing is opened or connected yet. Raises StoreError (`url`) for a URL that names no store.
    """
    if url == "sqlite":
        return SqliteStore(state_folder / SQLITE_FILE)
    raise StoreError("url", f"no store has the URL {url.partition('://')[0]}…; expected sqlite")
