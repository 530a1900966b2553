"""`eir check`, `eir lists` and `eir show` ask the running node first, and name where file, store and node differ."""

import json

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, until
from simulated.servers import Server, programs

REASON = ["imei,reason", f"{LISTED},stolen in transit"]
OTHER_POLICY = {"rules": [{"list": "stolen", "answer": "greylisted"}, {"list": "tracked", "answer": "greylisted"}]}


def answered(site, *arguments, status=0):
    """The document, and what was said besides."""
    done = site.eir(*arguments, "--json", status=status)
    return json.loads(done.stdout), done.stderr


def test_the_source_of_an_answer_is_named_and_documents_have_one_shape(site):
    site.load(REASON)
    site.load([TRACKED], list_name="tracked")
    asked = (("check", LISTED), ("lists",), ("show", "stolen"))
    without = [answered(site, *each) for each in asked]
    assert "from the store, no node answers here\n" in site.eir("check", LISTED).stderr
    node = site.start()
    for each, before in zip(asked, without, strict=True):
        assert answered(site, *each) == before
        assert before[1] == ""
        assert site.eir(*each).stderr == f"from the running node (process {node.pid})\n"
    assert site.eir("check", LISTED, "--store").stderr == "from the store, as --store says\n"
    assert site.json("check", "x", status=2)["reason"].startswith("an IMEI has")


def test_a_file_that_the_node_has_not_taken_over_is_named(site):
    site.load(REASON)
    site.start()
    site.configure(policy=OTHER_POLICY)
    found, said = answered(site, "check", LISTED)
    assert (found["status"], found["reason"]) == ("blacklisted", "stolen in transit")
    assert said == f"note: {site.path} differs from the node in policy; eir reload applies the file\n"
    assert answered(site, "check", LISTED, "--store")[0]["status"] == "greylisted"
    site.eir("reload")
    found, said = answered(site, "check", LISTED)
    assert (found["status"], said) == ("greylisted", "")
    site.path.write_text(f"{site.path.read_text()}nonsense: 1\n")
    assert "has errors (eir config); the node uses its previous configuration" in answered(site, "lists")[1]


@pytest.mark.skipif("redis" not in programs(), reason="redis-server is not installed")
def test_with_the_store_away_the_node_answers_and_an_emergency_is_a_rule(site):
    with Server(programs()["redis"]) as redis:
        site.configure(store=redis.url, heal=False)
        site.load(REASON)
        node = site.start()
        whole = [site.json(*each) for each in (("check", LISTED), ("lists",))]
        until(lambda: len(node.lines("list_in_force")) == 1 and site.is_copied())
        redis.flush()
        found, said = answered(site, "check", LISTED)
        assert found == whole[0]
        assert "the store has no release of stolen, the node answers by serial 1 (generation 1)" in said
        assert site.json("check", LISTED, "--store")["status"] == "whitelisted"
        redis.kill()
        until(lambda: node.lines("store_failed"))
        for each, before in zip((("check", LISTED), ("lists",)), whole, strict=True):
            found, said = answered(site, *each)
            assert found == before, "reasons come from the node's last good copy"
            assert "note: the node answers from memory, because its store does not answer: " in said
        found, said = answered(site, "show", "stolen", LISTED)
        (entry,) = found["entries"]
        assert (entry["entry"], entry["reason"], entry["who"]) == (LISTED, "stolen in transit", "test@localhost")
        site.eir("lists", "--store", status=1)
        emergency = {"name": "emergency", "imei": [f"{UNLISTED}5"], "answer": "blacklisted"}
        site.configure(policy={"rules": [emergency, *site.settings["policy"]["rules"]]})
        site.eir("reload")
        assert site.json("check", f"{UNLISTED}0")["rule_name"] == "emergency"
