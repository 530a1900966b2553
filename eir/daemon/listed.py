"""A list on its way from the follower to whoever answers: its state, with the descriptors of its image's memory."""

from collections.abc import Sequence
from typing import NamedTuple

from eir.daemon.channel import Channel
from eir.lists.amended import ListImage
from eir.lists.store import ListState


class Listed(NamedTuple):
    """A list as it is to be in force."""

    name: str
    kind: str
    """What the configuration says that it is."""
    state: ListState


def hand_over(channel: Channel, listed: Listed, image: ListImage) -> None:
    """Have the other side put a list in force; of several versions that wait, the last."""
    channel.tell("put_in_force", listed, carrying=image.layers, latest=listed.name)


def all_of(descriptors: Sequence[int | None]) -> list[int] | None:
    """The descriptors that came with a list; None if this process had no room for them."""
    there = [descriptor for descriptor in descriptors if descriptor is not None]
    return there if len(there) == len(descriptors) else None
