"""The record of a node on a Redis that has an attacker in it, is away, or is of a newer form: what commands, status, log and metrics say."""

import contextlib
import json
import os
import sqlite3
from dataclasses import replace

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, Site, until
from simulated.servers import Protected
from simulated.store_content import event, pages_of, state

from eir.device import device_key
from eir.lists.record.history import append_events
from eir.lists.record.store import Ledger
from eir.lists.stores.redis import RedisStore
from eir.node.observe.status_texts import StatusText

LISTS, POLICY = (
    {"stolen": {"signers": "signers"}, "own": {"local": True}},
    {"rules": [{"list": "stolen", "answer": "blacklisted"}]},
)


@pytest.fixture
def redis(redis_program):
    with Protected(redis_program) as server:
        yield server


@pytest.fixture
def site(redis, tmp_path, publisher, monkeypatch):
    monkeypatch.setenv("EIR_REDIS_PASSWORD", redis.PASSWORD)
    with Site(tmp_path / "site", publisher) as site:
        site.configure(lists=LISTS, policy=POLICY, store=f"redis://loader@127.0.0.1:{redis.port}/0")
        yield site


@contextlib.asynccontextmanager
async def stolen_password(redis):
    """A store as whoever holds the loader's password opens it."""
    store = RedisStore(redis.url)
    try:
        yield store
    finally:
        await store.close()


async def one(batch):
    yield batch


def copied(site):
    return site.json("history", "--verify", status=None)["copied"]


async def test_a_history_that_was_overwritten_is_reported_and_kept_until_it_is_adopted(site, redis):
    site.load([LISTED])
    node = site.start()
    site.eir("load", site.release([LISTED, UNLISTED], serial=2))
    until(lambda: copied(site) == 2)
    until(lambda: node.metrics()["eir_history_last_record"] == 2)
    anchored = [line["digest"] for line in node.lines("history_at")]
    async with stolen_password(redis) as store:
        assert anchored[-1] == (await store.ledger()).digest
        forged, _ = append_events(
            Ledger(first=200, number=199), [event("stolen", detail="all is well"), event("stolen", detail="as always")]
        )
        await store.rewrite_history(one(forged), (), after=0, seen=await store.ledger(), exact=True)
    until(lambda: node.lines("history_differs"))
    until(lambda: node.metrics()["eir_history_differs"] == 1)
    assert "does not continue this node's copy" in site.eir("status", status=2).stdout
    done = site.eir("history", "--verify", status=1)
    assert "the store's records, from 200 on, do not continue this node's, which end with 2" in done.stderr
    assert copied(site) == 2
    assert "a reason is needed" in site.eir("history", "adopt", status=2).stderr
    said = site.eir("history", "adopt", "--reason", "a failover to an old replica").stdout
    aside = next(site.state.glob("history-*.jsonl"))
    assert str(aside) in said
    assert [json.loads(line)["what"] for line in aside.read_text().splitlines()] == ["load", "load"]
    site.eir("history", "--verify")
    adopted = site.json("history")[-1]
    assert adopted["what"] == "adopt"
    assert adopted["detail"].startswith("a failover to an old replica; the copy of ")
    until(lambda: node.metrics()["eir_history_differs"] == 0)
    assert "nothing was changed" in site.eir("history", "adopt", "--reason", "once more", status=1).stderr
    assert "requires" in site.eir("history", "stolen", "--reason", "x", status=2).stderr


@pytest.mark.long
async def test_a_history_that_was_destroyed_is_given_back_and_loads_go_on(site, redis):
    site.load([LISTED])
    node = site.start()
    until(lambda: copied(site) == 1)
    redis.command("DEL", "eir:{history}:ledger")
    redis.command("SET", "eir:{history}:ledger", "nothing")
    until(lambda: node.lines("history_healed"))
    site.eir("load", site.release([UNLISTED], serial=2))
    site.eir("history", "--verify")
    assert [row["what"] for row in site.json("history")] == ["load", "heal", "load"]
    until(lambda: node.metrics()["eir_history_last_record"] == 3)  # and they are copied
    node.end()
    redis.flush()
    assert "3 records of this node's copy are not in the store" in site.eir("history", "--verify", status=1).stderr


async def test_after_a_flush_the_history_is_there_before_the_first_new_record(site, redis):
    site.load([LISTED])
    node = site.start()
    until(lambda: copied(site) == 1 and site.is_copied())
    redis.flush()
    until(lambda: node.lines("store_healed"))
    until(lambda: [row["what"] for row in site.json("history")][:1] == ["load"])
    site.eir("history", "--verify")
    assert sorted(row["what"] for row in site.json("history")) == ["heal", "heal", "load"]
    assert not node.lines("history_differs")


@pytest.mark.long
async def test_a_forged_list_is_reported_as_unrecorded(site, redis, constants):
    """With the digest of a release that was loaded, and its signer's name."""
    constants({"eir.lists.follow.history.UNRECORDED_S": 1.0})
    site.load([LISTED])
    node = site.start()
    async with stolen_password(redis) as store:
        before = await store.state("stolen")
        pages = pages_of([device_key(UNLISTED)])
        forged = replace(state(pages), serial=2, release_digest=before.release_digest, signers=before.signers)
        await store.replace("stolen", forged, pages, seen=before.generation)
    until(lambda: node.lines("list_unrecorded"))
    assert node.metrics()["eir_list_unrecorded{list=stolen}"] == 1
    assert node.metrics()["eir_list_unrecorded{list=own}"] == 0
    assert StatusText.LIST_UNRECORDED.format("stolen", "stolen") in site.eir("status", status=2).stdout
    site.eir("load", site.release([LISTED], serial=3))
    until(lambda: node.metrics()["eir_list_unrecorded{list=stolen}"] == 0)


@pytest.mark.long
def test_while_the_store_is_away_the_node_shows_its_history(site, redis):
    site.load([LISTED])
    site.eir("add", "own", TRACKED, "--reason", "a case")
    node = site.start()
    until(lambda: copied(site) == 2)
    there = site.json("history")
    redis.end()
    until(lambda: not node.metrics()["eir_store_up"])
    assert site.json("history") == there
    assert [row["list"] for row in site.json("history", "own")] == ["own"]
    assert "this is the node's copy, because the store does not answer" in site.eir("history").stderr
    node.end()
    site.node = None
    for command in (("history",), ("check", LISTED), ("load", site.release([LISTED], serial=2))):
        assert "start Redis, or correct `store`; test it with: redis-cli" in site.eir(*command, status=1).stderr


@pytest.mark.long
def test_a_copy_that_cannot_be_kept_degrades_the_node(site):
    """As after a downgrade: the copy has the form of a newer eir."""
    site.load([LISTED])
    node = site.start()
    until(lambda: copied(site) == 1)
    node.end()
    with contextlib.closing(sqlite3.connect(site.state / "copy.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    node = site.start()
    site.eir("load", site.release([UNLISTED], serial=2))
    until(lambda: node.metrics()["eir_copy_failed{list=stolen}"] == 1)
    said = site.eir("status", status=1).stdout
    assert StatusText.COPY_FAILED.text.partition("(")[0].format("stolen") in said
    assert "written by a newer eir (form 99, this one knows 3)" in said
    assert node.status()["ready"] == "degraded"
    until(lambda: node.lines("copy_failed"))
    node.end()
    (site.state / "copy.sqlite").unlink()
    node = site.start()
    until(lambda: node.metrics()["eir_copy_failed{list=stolen}"] == 0)


@pytest.mark.long
def test_a_store_of_a_newer_form_is_followed_and_not_changed(site, redis):
    site.load([LISTED])
    node = site.start()
    for key in ("eir:{history}:ledger", "eir:{stolen}:state"):
        redis.command("HSET", key, "form", 99)
    until(lambda: "written by a newer eir (form 99, this one knows 3)" in site.eir("status", status=None).stdout)
    assert node.status()["ready"] == "degraded"
    before = site.json("history")
    for command in (
        ("load", site.release([UNLISTED], serial=2)),
        ("lists", "reset-serial", "stolen", "--to", "0", "--reason", "x"),
    ):
        assert "this eir only reads it" in site.eir(*command, status=1).stderr
    assert site.json("history") == before
    assert site.json("check", LISTED)["status"] == "blacklisted"
    for key in ("eir:{history}:ledger", "eir:{stolen}:state"):
        redis.command("HSET", key, "form", 3)
    site.eir("load", site.release([UNLISTED], serial=2))
    until(lambda: node.status()["lists"]["stolen"]["serial"] == 2)
    for key in ("eir:{history}:ledger", "eir:{stolen}:state"):
        redis.command("HSET", key, "form", 99)
    node.end()
    node = site.start()
    assert node.status()["lists"]["stolen"]["serial"] == 2


def test_an_sqlite_store_of_a_newer_form_is_followed_and_not_changed(tmp_path, publisher):
    with Site(tmp_path / "site", publisher) as site:
        site.configure(lists=LISTS, policy=POLICY)
        site.load([LISTED])
        with contextlib.closing(sqlite3.connect(site.state / "lists.sqlite")) as db:
            db.execute("PRAGMA user_version = 99")
        node = site.start()
        assert site.json("check", LISTED)["status"] == "blacklisted"
        until(lambda: node.status()["ready"] == "degraded")
        assert "written by a newer eir (form 99, this one knows 3)" in site.eir("status", status=1).stdout
        assert "this eir only reads it" in site.eir("load", site.release([UNLISTED], serial=2), status=1).stderr


@pytest.mark.long(short=["a pipe"])
@pytest.mark.parametrize("odd", ["a pipe", "a pipe in the place of a file", "a file", "a link to nowhere"])
def test_whatever_lies_where_images_were_kept_keeps_no_node_from_starting(tmp_path, publisher, odd):
    with Site(tmp_path / "site", publisher) as site:
        site.configure(lists=LISTS, policy=POLICY)
        site.load([LISTED])
        place = site.state / "images"
        match odd:
            case "a pipe":
                os.mkfifo(place)
            case "a pipe in the place of a file":
                place.mkdir()
                os.mkfifo(place / "stolen")
            case "a file":
                place.mkdir()
                (place / "stolen").write_bytes(b"rubbish" * 100)
            case _:
                place.symlink_to("nowhere")
        node = site.start()
        assert node.status()["ready"] == "ready"
        assert site.json("check", LISTED)["status"] == "blacklisted"
        assert not node.lines("copy_failed")
