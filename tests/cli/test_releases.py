"""`eir load`: what the journal of the host has of loads and rejections."""

from types import SimpleNamespace

import pytest

from eir.cli import releases
from eir.errors import EirError, ReleaseRefused
from eir.lists.log.journal import read_events
from eir.lists.stores.open import JOURNAL


def test_the_journal_has_loads_and_rejections_but_no_dry_run(site):
    release = site.release(["35123456000001"])
    for arguments in (["--dry-run"], []):
        site.eir("load", *arguments, release)
    for arguments in (["--dry-run"], []):
        site.eir("load", *arguments, release, status=1)
    load, rejection = read_events(site.state / JOURNAL)
    assert (load.what, load.list, load.serial, load.generation) == ("load", "stolen", 1, 1)
    assert (rejection.what, rejection.outcome, rejection.list, rejection.serial) == ("refuse", "refused", "stolen", 1)
    assert rejection.detail == "serial: serial 1 is not above 1, the highest ever accepted for stolen"
    assert rejection.digest == load.digest


@pytest.mark.parametrize("fails", [False, True])
async def test_a_rejection_whose_process_ended_without_an_outcome_is_recorded(tmp_path, monkeypatch, capsys, fails):
    async def load_apart(*_, **__):
        raise ReleaseRefused("crash", "the load ended", list_name="stolen", serial=1)

    def record_event(_, event):
        recorded.append((event.what, event.list, event.serial, event.detail))
        if fails:
            raise EirError("the journal cannot be written")

    recorded = []
    monkeypatch.setattr(releases, "load_apart", load_apart)
    monkeypatch.setattr(releases, "record_event", record_event)
    manifest = tmp_path / "stolen-1.manifest.json"
    manifest.write_text("{}")
    config = SimpleNamespace(load_memory=1 << 30, state=tmp_path)
    (result,) = await releases._load_all(None, config, [manifest], {}, dry_run=False, force=False)
    assert (result["outcome"], result["reason"]) == ("refused", "crash")
    assert recorded == [("refuse", "stolen", 1, "crash: the load ended")]
    assert ("warning: the journal of this host does not have the rejection" in capsys.readouterr().err) is fails
