"""A follower that applies random changes and loses its place ends with what an index built from scratch holds."""

import pytest
from churn import churn
from simulated.servers import Server

SECONDS = 4


@pytest.mark.long
async def test_random_changes(redis_program, tmp_path):
    with Server(redis_program) as server:
        figures = await churn(server, tmp_path, seconds=SECONDS, seed=3)
    assert figures.wrong == []
    assert min(figures.changes, figures.switches, figures.faults, figures.entries) > 0
