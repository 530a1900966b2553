"""Creation of the store that the configuration names.

It imports both stores, so only eir.node and eir.cli import this module.
"""

from pathlib import Path

from eir.errors import Report, silent
from eir.lists.log.store import LogStore

SQLITE = "sqlite"
SQLITE_FILE = "lists.sqlite"
COPIES = "copies"
"""Folder of the copies of lists in the state folder."""
JOURNAL = "journal"
"""Folder of the node's journal in the state folder."""


def open_store(
    url: str, state_folder: Path, *, report: Report = silent, check: bool = True, creates: bool = True
) -> LogStore:
    """Create the store that `url` names: `sqlite` (a file in the state folder), or a URL of Redis.

    The store opens its file or connection when it is first used.

    Args:
        url: the configured URL.
        state_folder: folder of the SQLite file.
        report: receives events that are not errors.
        check: True to verify now that the files and variables in the URL exist. A process of a running node passes
            False: then a missing file or variable is an error (`noauth`, `refused`) of each call that must connect.
        creates: True to create a missing file; False to read only.

    Raises:
        StoreError: `url`, if the URL is invalid.
    """
    if url == SQLITE:
        from eir.lists.stores.sqlite import SqliteStore  # noqa: PLC0415  # 0.1 s that a command which only reads the configuration does not spend

        return SqliteStore(state_folder / SQLITE_FILE, creates=creates, report=report)
    from eir.lists.stores.redis import RedisStore  # noqa: PLC0415  # 0.2 s that a node with the embedded store does not spend

    return RedisStore(url, report=report, check=check)
