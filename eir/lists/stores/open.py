"""Creation of the store that the configuration names.

It imports both stores, so only eir.node and eir.cli import this module.
"""

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
    """Create the store that `url` names: `sqlite` (a file in the state folder), or a URL of Redis.

    The store opens its file or connection when it is first used.

    Args:
        url: the configured URL.
        state_folder: folder of the SQLite file.
        report: receives events that are not errors.
        check: True to verify now that the files and variables in the URL exist. A process of a running node passes
            False: then a missing file or variable is an error (`noauth`, `refused`) of each call that must connect.
        upgrades: True to upgrade a file of an older format, after an event about the upgrade, and to create a missing
            file; False to read only.

    Raises:
        StoreError: `url`, if the URL is invalid.
    """
    if url == SQLITE:
        return _sqlite(state_folder / SQLITE_FILE, report, upgrades=upgrades)
    from eir.lists.stores.redis import RedisStore  # noqa: PLC0415  # 0.2 s that a node with the embedded store does not spend

    return RedisStore(url, report=report, check=check)


def open_copy(url: str, state_folder: Path, *, report: Report = silent, upgrades: bool = True) -> ListStore | None:
    """Create the store for this node's last good copy; None if the configured store is on the local disk itself."""
    if url == SQLITE:
        return None
    return _sqlite(state_folder / COPY_FILE, report, upgrades=upgrades)


def _sqlite(path: Path, report: Report, *, upgrades: bool) -> ListStore:
    from eir.lists.stores.sqlite import SqliteStore  # noqa: PLC0415  # 0.1 s that a command which only reads the configuration does not spend

    return SqliteStore(path, upgrades=upgrades, report=report)


async def serial_marks(url: str, state_folder: Path) -> Mapping[str, Mark]:
    """Return the mark of each list (number of serial resets, highest serial) in this node's last good copy.

    The result is empty if the host has no copy: its store is on the local disk, or no node ever ran here.

    Raises:
        StoreError: if the copy cannot be read. Without its serials, a release that was in force before could be
            loaded again.
    """
    path = state_folder / COPY_FILE
    try:
        copy = open_copy(url, state_folder, upgrades=False) if path.exists() else None
    except PermissionError as error:
        raise StoreError("cannot_open", f"{path}: {error.strerror}") from None
    if copy is None:
        return {}
    try:
        states = await copy.states()
        return {name: state.mark for name, state in states.items()}
    finally:
        await copy.close()
