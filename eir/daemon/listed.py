"""A list on its way from the follower to whoever answers: its state, with the descriptor of its image's memory."""

from typing import NamedTuple

from eir.daemon.channel import Channel
from eir.images.image import Image
from eir.record.store import ListState


class Listed(NamedTuple):
    """A list as it is to be in force."""

    name: str
    kind: str
    """Kind of the list, by the configuration."""
    state: ListState


def hand_over(channel: Channel, listed: Listed, image: Image) -> None:
    """Have the other side put a list in force; of several versions that wait, the last."""
    channel.tell("put_in_force", listed, carrying=[image], latest=listed.name)
