"""Opens the store that the configuration names. Imports the stores; nobody below server and cli imports this."""

from collections.abc import Mapping
from pathlib import Path

from eir.errors import Report, StoreError, silent
from eir.lists.record.store import ListStore, Mark

SQLITE = "sqlite"
SQLITE_FILE = "lists.sqlite"
COPY_FILE = "copy.sqlite"


def open_store(
    url: str, state_folder: Path, *, report: Report = silent, check: bool = True, upgrades: bool = True
) -> ListStore:
    """The store that `store: URL` means: `sqlite` (a file in the state folder), or a URL of eir.lists.stores.redis_url.

    Nothing is opened or connected yet. Raises StoreError (`url`) for a URL that names no store; with `check` also where a
    file or a variable that it names is not there, which does not go away by itself: a node ends then. Without it, as in a
    process of a node that has started, that is a StoreError (`noauth`, `refused`) of each call that has to connect. `upgrades`: a file of
    an older form is brought to this one, which `report` is told before.
    """
    if url == SQLITE:
        return _sqlite(state_folder / SQLITE_FILE, report, upgrades=upgrades)
    from eir.lists.stores.redis import RedisStore  # noqa: PLC0415  # 0.2 s that a node with the embedded store does not spend

    return RedisStore(url, report=report, check=check)


def open_copy(url: str, state_folder: Path, *, report: Report = silent, upgrades: bool = True) -> ListStore | None:
    """The last good copy that this node keeps of a store that is elsewhere; None for one that is on its own disk anyway."""
    return None if url == SQLITE else _sqlite(state_folder / COPY_FILE, report, upgrades=upgrades)


def _sqlite(path: Path, report: Report, *, upgrades: bool) -> ListStore:
    from eir.lists.stores.sqlite import SqliteStore  # noqa: PLC0415  # 0.1 s that a command which only reads the configuration does not spend

    return SqliteStore(path, upgrades=upgrades, report=report)


async def serial_marks(url: str, state_folder: Path) -> Mapping[str, Mark]:
    """The mark of each list's serials in this node's last good copy, whatever the store says.

    Nothing where there is no copy: the store is on this disk itself, or no node ever ran on this host. Raises StoreError if
    there is one and it cannot be read: a release that was in force before might pass for a new one.
    """
    path = state_folder / COPY_FILE
    try:
        copy = open_copy(url, state_folder, upgrades=False) if path.exists() else None
    except PermissionError as error:
        raise StoreError("cannot_open", f"{path}: {error.strerror}") from None
    if copy is None:
        return {}
    try:
        return {name: state.mark for name, state in (await copy.states()).items()}
    finally:
        await copy.close()
