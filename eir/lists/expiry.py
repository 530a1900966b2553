"""Lists past their `expires`: still in force, and someone has to hear of it again and again. Knows no clock and no log."""

from collections.abc import Mapping
from datetime import datetime

from eir.lists.store import ListState

REMIND_S = 3600.0  # between two reminders of one list


def expired(states: Mapping[str, ListState], now: datetime) -> list[str]:
    """The names of the lists whose release is past its `expires`; a local list has none."""
    return [name for name, state in states.items() if state.expires and datetime.fromisoformat(state.expires) <= now]


class ExpiryReminder:
    """Remembers when each expired list was last reported."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def due(self, states: Mapping[str, ListState], *, now: datetime, monotonic: float) -> list[str]:
        """The expired lists to report now: at once, then each REMIND_S of the monotonic clock, until a release renews them."""
        past = expired(states, now)
        self._said = {name: said for name, said in self._said.items() if name in past}
        found = [name for name in past if name not in self._said or monotonic - self._said[name] >= REMIND_S]
        self._said.update(dict.fromkeys(found, monotonic))
        return found
