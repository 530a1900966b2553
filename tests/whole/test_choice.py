"""Entries that match by their reason, on real nodes, over S13, N5g-eir and MAP, on SQLite and on Redis with two nodes. Conformance row 70."""

import os
import signal

import pytest
from simulated.node import children, until
from three_protocols import BLACK, DEVICES, WHITE

REASONS = {"s13": "stolen", "n5g": "lost", "map": ""}
"""Reason of the device that each protocol asks about."""


def answers(host):
    """The answer over every protocol for each reason."""
    return {reason: set().union(*(host.ask(each, DEVICES[of]) for each in DEVICES)) for of, reason in REASONS.items()}


@pytest.mark.long(short=["sqlite"])
def test_only_entries_with_the_chosen_reasons_match(hosts, tmp_path):
    """Row 70: the others stay in the list and in `show`; a reload, kill -9 of the follower and a restart change the choice at once and for good."""
    lists = {"own": {"local": True, "reasons": ["stolen"]}}
    rules = {"rules": [{"list": "own", "answer": "blacklisted"}]}
    there = hosts(lists=lists, policy=rules)
    first, last = there[0], there[-1]
    file = tmp_path / "own.csv"
    file.write_text("imei,reason\n" + "".join(f"{DEVICES[of]},{reason or 'other'}\n" for of, reason in REASONS.items()))
    first.site.eir("add", "own", "--file", file, "--reason", "unused")
    chosen, others = {"stolen": {BLACK}}, {"lost": {WHITE}, "": {WHITE}}
    for host in there:
        until(lambda host=host: answers(host) == chosen | others)
        shown = host.site.json("show", "own")["entries"]
        assert sorted(row["reason"] for row in shown) == ["lost", "other", "stolen"]
        found = [host.site.json("check", DEVICES[of], *where) for of in DEVICES for where in ((), ("--store",))]
        assert [each["status"] for each in found] == 2 * [BLACK] + 4 * [WHITE]
        assert host.site.node.metrics()["eir_list_entries{list=own}"] == 3
    lists["own"]["reasons"] = ["lost", "theft"]
    for host in there:
        host.site.configure(lists=lists)
        assert "no entry has the reason theft" in host.site.eir("config", "--connect").stderr
        host.site.eir("reload")
        until(lambda host=host: answers(host) == {"stolen": {WHITE}, "lost": {BLACK}, "": {WHITE}})
        until(lambda host=host: host.site.node.lines("reasons_unknown"))
        os.kill(children(host.site.node.pid)["follower"], signal.SIGKILL)
    digests = {host.site.json("lists")[0]["digest"] for host in there}
    assert len(digests) == 1
    last.site.eir("add", "own", DEVICES["map"], "--reason", "lost", "--replace")
    for host in there:
        until(lambda host=host: answers(host) == {"stolen": {WHITE}, "lost": {BLACK}, "": {BLACK}})
        host.restart(0)
        assert answers(host) == {"stolen": {WHITE}, "lost": {BLACK}, "": {BLACK}}
