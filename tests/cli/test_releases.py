"""`eir load` when the process of a load ends without an outcome."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from eir.cli import releases
from eir.errors import ReleaseRefused
from eir.lists.sources.inbox import UNRECORDED
from eir.lists.stores.sqlite import SqliteStore


@pytest.mark.parametrize(("reason", "count"), [*((reason, 1) for reason in sorted(UNRECORDED)), ("expired", 0)])
async def test_a_rejection_is_recorded_unless_the_load_has_done_so(tmp_path, monkeypatch, reason, count):
    """A dry run records none."""

    async def load_apart(*_, **__):
        raise ReleaseRefused(reason, "the load ended")

    monkeypatch.setattr(releases, "load_apart", load_apart)
    (tmp_path / "stolen-1.manifest.json").write_text("{}")
    store, config = SqliteStore(tmp_path / "lists.sqlite"), SimpleNamespace(lists={}, load_memory=1 << 30)
    for dry_run, recorded in ((True, 0), (False, count)):
        options = {"force": False, "dry_run": dry_run, "marks": {}}
        result = await releases._loaded(store, config, None, Path(tmp_path, "stolen-1.manifest.json"), {}, options)
        assert (result["outcome"], result["reason"]) == ("refused", reason)
        events = await store.history()
        assert [(event.what, event.detail) for event in events] == [("refuse", f"{reason}: the load ended")] * recorded
    await store.close()
