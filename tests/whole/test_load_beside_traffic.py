"""A load beside traffic: no wrong answer, nobody turned away, every watchdog answered."""

import pytest
from simulated.node import until
from simulated.traffic import lists_of, load_beside_traffic, write_list

ENTRIES = 1_000_000


@pytest.mark.long
async def test_a_load_while_a_client_keeps_asking(site, capsys):
    old, new = lists_of(ENTRIES, seed=7)
    manifests = []
    for serial, keys in enumerate((old, new), 1):
        write_list(site.folder / f"data-{serial}.csv", keys)
        manifests.append(site.release(site.folder / f"data-{serial}.csv", serial=serial))
    site.configure(policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]})
    site.eir("load", manifests[0])
    node = site.start()
    figures = await load_beside_traffic(site, node, manifests[1], old, new)
    with capsys.disabled():
        print("", *figures.lines(), sep="\n  ")
    assert figures.wrong == []
    assert figures.refused == []
    assert figures.connections > 5
    assert figures.watchdog_s
    until(lambda: [line["serial"] for line in node.lines("list_in_force")] == ["1", "2"])
