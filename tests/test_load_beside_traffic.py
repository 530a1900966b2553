"""A load beside traffic: no wrong answer, nobody turned away, watchdogs in time, the loop never held. `scripts/soak load`: more of it."""

import pytest
from traffic import lists_of, load_beside_traffic, write_list

ENTRIES = 1_000_000
SLICE_MS = 20
WATCHDOG_S = 2.0
"""The quickest peer asks each 6 s (RFC 3539 3.4.1) and is owed an answer long before that."""


@pytest.mark.timeout(180)
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
    assert figures.in_force_s < 3
    assert max(figures.watchdog_s) < WATCHDOG_S
    assert figures.slice_ms < SLICE_MS
    assert [line["serial"] for line in node.lines("list_in_force")] == ["1", "2"]
