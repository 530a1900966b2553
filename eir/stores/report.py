"""What a store or a follower is handed to say what happened. Imports nothing."""

from typing import Protocol


class Report(Protocol):
    """Where events go that someone may want to read: a short name, and what belongs to it."""

    def __call__(  # noqa: D102  # the class says it
        self, event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
    ) -> None: ...


def silent(
    event: str, *, peer: str | None = None, reason: str | None = None, level: str = "info", **fields: object
) -> None:
    """Say nothing: for commands that print what matters themselves."""
