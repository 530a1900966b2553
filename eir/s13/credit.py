"""What a peer's lane may learn: answers pay for it, so that a peer whose requests are all different costs little. Imports nothing of ours."""

LEARNING_COSTS = 32
"""Answers by the lane that pay for learning one kind of request."""
UNPAID = 8
"""Of requests that nothing pays for one in so many is learned. It takes about as long as the general path's answer, so an eighth is added."""
START = 100 * LEARNING_COSTS
"""What a lane begins with."""


class Credit:
    """The account of one lane; `most`: above this nothing is saved."""

    __slots__ = ("_left", "_most", "_passed_over")

    def __init__(self, most: int = START) -> None:
        self._most = most
        self._left, self._passed_over = min(START, most), 0

    def allows(self) -> bool:
        """Whether to learn the request at hand. Without credit one in UNPAID is learned: the peer may have changed its ways, or bring many MMEs."""
        if self._left >= LEARNING_COSTS:
            return True
        self._passed_over += 1
        return not self._passed_over % UNPAID

    def spend(self) -> None:
        """A request is learned."""
        self._left = max(0, self._left - LEARNING_COSTS)

    def earn(self, answers: int) -> None:
        """So many were answered by what was learned."""
        self._left = min(self._most, self._left + answers)
