"""The history of a node whose store has an attacker in it, is away, or is of a newer form, and whose disk fails: what commands, status, log and metrics say."""

import contextlib
import os
import re
import sqlite3

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, Site, until
from simulated.servers import Protected
from simulated.store_content import Lists

from eir.device import device_key
from eir.lists.stores.open import open_store

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


def whats(site):
    return [row["what"] for row in site.json("history")]


async def test_a_list_that_was_overwritten_is_reported_for_a_day(site, redis):
    """By someone with the loader's password, who has begun a chain of his own."""
    site.configure(heal=False)
    site.load([LISTED])
    node = site.start()
    site.eir("load", site.release([LISTED, UNLISTED], serial=2))
    until(lambda: node.status()["lists"]["stolen"]["serial"] == 2)
    anchored = until(lambda: [line["digest"] for line in node.lines("history_at")])
    until(lambda: node.metrics()["eir_history_last_digest"] == int(node.lines("history_at")[-1]["digest"][:12], 16))
    assert node.metrics()["eir_history_differs"] == 0
    redis.command("DEL", "eir:{stolen}:head", "eir:{stolen}:log")
    store = open_store(redis.url, site.state)
    try:
        await Lists(store).load([device_key(TRACKED)], serial=3, name="stolen")
    finally:
        await store.close()
    until(lambda: node.lines("list_forked", list="stolen"))
    until(lambda: node.metrics()["eir_history_differs"] == 1)
    assert "replaced changes that this node held" in site.eir("status", status=2).stdout
    assert "fork" in whats(site)
    until(lambda: node.lines("history_at")[-1]["digest"] != anchored[-1])
    node.end()
    node = site.start()
    until(lambda: node.metrics()["eir_history_differs"] == 1)


async def test_after_a_flush_the_journal_has_the_load_and_the_write_back(site, redis):
    site.load([LISTED])
    node = site.start()
    until(site.is_copied)
    redis.flush()
    until(lambda: node.lines("store_healed", list="stolen"))
    until(lambda: whats(site) == ["load", "heal"])
    site.eir("load", site.release([UNLISTED], serial=2))
    until(lambda: whats(site) == ["load", "heal", "load"])
    site.eir("history", "--verify")
    assert node.metrics()["eir_history_differs"] == 0


def test_a_journal_that_cannot_be_written_makes_the_node_critical_until_it_can(site):
    site.load([LISTED])
    journal = site.state / "journal"
    site.state.mkdir(exist_ok=True)
    journal.write_text("no folder")
    node = site.start()
    assert site.json("check", LISTED)["status"] == "blacklisted"
    until(lambda: node.lines("journal_failed"))
    until(lambda: node.metrics()["eir_list_unrecorded{list=stolen}"] == 1)
    said = site.eir("status", status=2).stdout
    assert re.search(r"newest change the history lacks: stolen\b.* \(eir history\): .*journal", said)
    journal.unlink()
    until(lambda: node.metrics()["eir_list_unrecorded{list=stolen}"] == 0)
    assert whats(site) == ["load"]


@pytest.mark.long
def test_while_the_store_is_away_the_node_shows_its_history(site, redis):
    site.load([LISTED])
    site.eir("add", "own", TRACKED, "--reason", "a case", "--first")
    node = site.start()
    until(lambda: whats(site) == ["load", "add"])
    redis.end()
    until(lambda: not node.metrics()["eir_store_up"])
    assert whats(site) == ["load", "add"]
    assert [row["list"] for row in site.json("history", "own")] == ["own"]
    node.end()
    site.node = None
    for command in (("check", LISTED), ("load", site.release([LISTED], serial=2))):
        assert "start Redis, or correct `store`; test it with: redis-cli" in site.eir(*command, status=1).stderr


def test_a_copy_that_cannot_be_kept_degrades_the_node_until_it_can(site):
    site.load([LISTED])
    copy = site.state / "copies" / "stolen.copy"
    copy.mkdir(parents=True)
    node = site.start()
    assert site.json("check", LISTED)["status"] == "blacklisted"
    until(lambda: node.metrics()["eir_copy_failed{list=stolen}"] == 1)
    assert "is in force without the store: stolen (" in site.eir("status", status=1).stdout
    assert node.status()["ready"] == "degraded"
    until(lambda: node.lines("copy_failed"))
    copy.rmdir()
    until(lambda: node.metrics()["eir_copy_failed{list=stolen}"] == 0)


def test_changes_that_a_failover_lost_are_critical_until_the_operator_deletes_their_file(site):
    site.load([LISTED])
    file = site.state / "lost" / f"stolen-{'0' * 16}.csv"
    file.parent.mkdir(parents=True)
    file.write_text("change\n")
    node = site.start()
    until(lambda: node.metrics()["eir_list_lost_changes{list=stolen}"] == 1)
    assert (
        f"the store lost changes: stolen (in {file}: apply them, then delete the file)"
        in site.eir("status", status=2).stdout
    )
    file.unlink()
    until(lambda: node.metrics()["eir_list_lost_changes{list=stolen}"] == 0)


def test_with_a_store_of_a_newer_form_the_node_answers_from_its_copy_and_nothing_is_changed(tmp_path, publisher):
    with Site(tmp_path / "site", publisher) as site:
        site.configure(lists=LISTS, policy=POLICY)
        site.load([LISTED])
        site.start().end()
        with contextlib.closing(sqlite3.connect(site.state / "lists.sqlite")) as db:
            db.execute("PRAGMA user_version = 99")
        node = site.start()
        assert node.status()["lists"]["stolen"]["serial"] == 1
        until(lambda: node.status()["ready"] == "degraded")
        assert "stolen (this node's last good copy is in force)" in site.eir("status", status=1).stdout
        assert "newer" in site.eir("load", site.release([UNLISTED], serial=2), status=1).stderr


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
