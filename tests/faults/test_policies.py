"""Random policies are answered as a model says while lists change, rows end and the store fails; `scripts/soak policies` is longer."""

import pytest
from simulated.node import Site
from simulated.random_policies import Run
from simulated.servers import Server


@pytest.mark.long(short=["SQLite"])
@pytest.mark.parametrize(("with_redis", "policies"), [(False, 8), (True, 4)], ids=["SQLite", "Redis"])
async def test_each_answer_follows_from_policy_and_rows(tmp_path, publisher, redis_program, with_redis, policies):
    with Server(redis_program) as server, Site(tmp_path / "site", publisher) as site:
        figures = await Run(site, 1, server if with_redis else None).run(policies, 200)
    assert figures.wrong == []
    assert figures.questions >= 200 * policies
    assert figures.ended > 0
    assert sum(figures.changes.values()) >= policies
