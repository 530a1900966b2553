"""Contract of a store: for each list a head, a log of changes with their rows, and staged parts (bases, long rows).

A store knows nothing of content, releases or rollbacks. The same tests verify every store. All methods are coroutines of one event loop,
and raise StoreError (eir.errors) if the store fails.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from eir.lists.log.change import Change, Head

RECORDS_KEPT = 20_000
"""Number of change records that the log keeps after their rows are deleted."""
BASES_KEPT = 1_000
"""Number of change records with a base that the log keeps."""
STAGED_S = 600
"""Time in seconds after which staged parts expire, unless another part follows or a commit names them."""


class LogEntry(NamedTuple):
    """Entry of the log: a change and its encoded rows."""

    change: Change
    rows: bytes | None
    """None if the rows are deleted, or in parts of their own."""


class StoredHeads(Mapping[str, Head]):
    """Heads of all lists. A damaged head raises its StoreError (`corrupt`) when it is read, so that it affects no other list."""

    def __init__(self, heads: Mapping[str, Callable[[], Head]], digests: Mapping[str, str]) -> None:
        self._heads = heads
        self.digests = digests
        """Digest of the newest change of each list, as `wait` and `commit` compare it."""

    def __getitem__(self, name: str) -> Head:
        return self._heads[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)


class LogSource(Protocol):
    """Source of logs for a reader."""

    async def log(self, name: str, after: int) -> Sequence[LogEntry]:
        """Return the changes of a list with generations above `after`, oldest first, with their rows as far as they are stored.

        A damaged change is left out: the change after it, or the head, shows that it is missing.
        """

    def base(self, name: str, part_id: str) -> AsyncIterator[bytes]:
        """Yield the parts with an ID in order; none if they do not exist."""


class LogStore(LogSource, Protocol):
    """Store of lists as logs."""

    async def heads(self) -> StoredHeads:
        """Return the heads of all lists."""

    async def stage(self, name: str, part_id: str, parts: Iterable[bytes]) -> int:
        """Write parts, which expire unless a commit names their ID; return their number."""

    async def commit(self, name: str, head: Head, entry: LogEntry, *, seen: str, oldest: int = 0) -> None:
        """Append a change and replace the head in one transaction.

        Then delete, in portions, the rows and parts of changes with generations below `oldest`, and records beyond RECORDS_KEPT and BASES_KEPT.
        A fault of the deletion is only reported, because the change is stored.

        Args:
            name: name of the list.
            head: head after the change.
            entry: the change. The parts that it names must be staged completely.
            seen: digest of the newest change that the writer has read; NO_CHANGE for a list that the store lacks.
            oldest: generation below which rows and parts are deleted; 0 deletes none.

        Raises:
            GenerationConflict: if the newest change is another one, or staged parts have expired; nothing was written.
        """

    async def wait(self, seen: Mapping[str, str], timeout_s: float) -> None:
        """Return when a list may have another newest change than in `seen` (also a list that is not in it), or after the timeout."""

    async def claim(self, task: str, who: str, ttl_s: float) -> bool:
        """Claim or renew the lease on a task for `ttl_s` seconds; return False while another one has it. `ttl_s` 0 releases it."""

    async def close(self) -> None:
        """Close files and connections."""
