"""Work on a large list, which keeps a processor busy for a while.

The owner of a follower may have it stand back behind checks.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from eir.record.store import ListState

LARGE_ENTRIES = 100_000
"""A list with as many takes long enough to be made that checks could wait for it."""

Heavy = Callable[[], AbstractContextManager[None]]
"""Is entered for the time of such work."""


def while_large(heavy: Heavy, *states: ListState | None, often: bool = False) -> AbstractContextManager[None]:
    """The context for work on these states of a list.

    `often`: this is one of many changes, which together are as much work.
    """
    return (
        heavy()
        if often or any(state is not None and state.entries >= LARGE_ENTRIES for state in states)
        else nullcontext()
    )
