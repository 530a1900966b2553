"""Every order in which things can happen between two nodes, up to a number of mishaps: a breadth-first search over states, no sample."""

import time
from collections import deque

import pairs
import pytest

from eir.wire.diameter.states import State

STATES = {0: 40_000, 1: 40_000, 2: 40_000}
"""Mishaps that there may be → states to look at: the fewer mishaps, the longer the runs."""

TOGETHER = {
    frozenset(each)
    for each in (
        {State.OPEN}, {State.WAIT_CEA, State.WAIT_ADMISSION}, {State.CLOSING, State.LEAVING}, {State.CLOSING}, {State.LEAVING},
    )
}  # fmt: skip
"""States of the two ends between which nothing is on its way: they agree, or a timer of one of them is what comes next."""


def check(world, path):
    for side in (0, 1):
        ends = [link.ends[side] for link in world.links if link.ends[side] is not None]
        assert sum(end.state is State.OPEN for end in ends) <= 1, ("two open", side, path(world))
        admission = pairs.thawed(world.admissions[side])
        for slot, link in enumerate(world.links):
            end = link.ends[side]
            if end is not None and end.state is State.WAIT_ADMISSION:
                # It waits for another connection: for its sign of life, or for the CEA on ours. Both have a timer.
                probed = [oldest for oldest, claim in admission.probed.items() if claim.connection == slot]
                attempts = [each.connection for each in admission.attempts.values()]
                waits = (
                    slot in admission.waiting
                    and all(world.links[each].ends[side] is not None for each in attempts)
                    and attempts
                )
                assert waits or (probed and (side, probed[0]) in world.probes), (
                    "waits for ever",
                    side,
                    slot,
                    path(world),
                )
        for host, there in admission.connections.items():
            for slot in there:
                end = world.links[slot].ends[side]
                assert end is not None, ("a table of ghosts", host, path(world))
                assert end.state in {State.OPEN, State.CLOSING, State.LEAVING}, (end.state, path(world))


@pytest.mark.long
@pytest.mark.parametrize("mischief", STATES)
def test_every_order_of_things_between_two_nodes(mischief):
    began = time.monotonic()
    first = pairs.begin(mischief)
    parents, depths, waiting = {first: None}, {first: 0}, deque([first])

    def path(world):
        steps = []
        while parents[world] is not None:
            world, what = parents[world]
            steps.append(what)
        return steps[::-1]

    while waiting and len(parents) < STATES[mischief]:
        world = waiting.popleft()
        for what, after in (*pairs.lawful(world), *pairs.unlawful(world)):
            if after not in parents and pairs.fits(after):
                parents[after], depths[after] = (world, what), depths[world] + 1
                check(after, path)
                waiting.append(after)
    explored = time.monotonic() - began
    # With a good wire from any of these states on, there is a connection in the end.
    arrives = {}
    for start in parents:
        run, world = [], start
        while world not in arrives and not pairs.is_connected(world):
            arrives[world] = False
            run.append(world)
            world = pairs.onward(world)
            assert world is not None, ("nothing comes next", path(run[0]))
            assert arrives.get(world, True), ("goes round in circles", path(run[0]), run[-3:])
        arrives |= dict.fromkeys(run, True)
    seconds = time.monotonic() - began
    print(
        f"{len(parents)} states, depth {max(depths.values())}, {len(pairs.STEPS)} steps of a peer, {explored:.1f} + {seconds - explored:.1f} s"
    )
    assert len(parents) >= STATES[mischief]
    assert any(pairs.is_connected(world) for world in parents)
