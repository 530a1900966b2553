"""An EIR's drop folder without a node: real files, real keys and signatures, the SQLite store, and a clock that tests put ahead."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from simulated.releases import public, release_by_hand

from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.log.journal import REFUSED
from eir.lists.record.settings import ListSettings
from eir.lists.sources.drop_folder import DropFolderSettings, load_delivered
from eir.lists.sources.source import TurnSettings, accepted
from eir.lists.stores.sqlite import SqliteStore

PATIENCE_S = 3600
IMEIS = [f"35123456{n:06d}" for n in range(10)]


class Site:
    """An EIR's drop folder and store, a publisher's outbox, and a clock that tests put ahead."""

    def __init__(self, folder, keys):
        self.folder, self.keys = folder, keys
        self.drop, self.outbox, self.state = folder / "in", folder / "outbox", folder / "state"
        for made in (self.drop, self.outbox, self.state):
            made.mkdir(parents=True)
        self.signers = folder / "signers"
        self.signers.write_text(f"agency {public(keys[0])}second {public(keys[1])}")
        self.lists = {}
        for name in ("stolen", "other"):
            self.trust(name)
        self.store = SqliteStore(self.state / "lists.sqlite")
        self.attempts = self.state / "attempt"
        self.rejected = []
        """Events of rejections, as the journal gets them."""
        self.ahead_s = 2.0

    def trust(self, name, **changes):
        self.lists[name] = ListSettings(
            **{"name": name, "signers": self.signers, "growth_max": 100, "shrink_max": 1, **changes}
        )

    def publish(self, serial, rows=IMEIS, *, base=None, name="stolen", key=0, data=None, **how):
        """A release in the outbox; returns its files, data first, the signature last."""
        file = self.outbox / (data or f"{name}-{serial}{'-added' if base is not None else ''}.csv")
        file.write_text("imei\n" + "".join(f"{row}\n" for row in rows))
        manifest = release_by_hand([file], list_name=name, serial=serial, base=base, key=self.keys[key], **how)
        return [file, manifest, Path(f"{manifest}.sig")]

    def deliver(self, files):
        for file in files:
            shutil.copyfile(file, self.drop / file.name)

    async def load(self, release, folder):
        """The load of a turn, unless the settings name another; in this process."""
        loader = ReleaseLoader(self.lists, self.store, "inbox of tester@host", self.clock(), {})
        return accepted("", await loader.load(release, folder))

    def clock(self):
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    async def turn(self, *, items_max=50_000, verified_max=200, refused_max=(1000, 1 << 30), **changes):
        """One turn: {manifest: (outcome, reason)}."""

        async def claim():
            return True

        def emit(result):
            if result.outcome == REFUSED:
                self.rejected.append(result.rejection("inbox of tester@host", self.clock()))

        given = {
            "lists": self.lists, "store": self.store, "clock": self.clock, "load": self.load, "attempts": self.attempts,
            "claim": claim, "emit": emit, "marks": {},
        }  # fmt: skip
        drop = DropFolderSettings(
            folder=self.drop, patience_s=PATIENCE_S, items_max=items_max, verified_max=verified_max, refused_max=refused_max
        )  # fmt: skip
        made = await load_delivered(drop, TurnSettings(**(given | changes)))
        json.dumps(made.as_json())
        self.again_s, self.said = made.again_s, {each.manifest: each.detail for each in made.results}
        self.outcome = made.outcome, made.reason
        return {each.manifest: (each.outcome, each.reason) for each in made.results}

    async def serial(self, name="stolen"):
        head = await self.head(name)
        return head and head.serial

    async def head(self, name="stolen"):
        return (await self.store.heads()).get(name)

    async def loads(self):
        """Lists and serials of the loads, those of each list in their order."""
        logs = [(name, await self.store.log(name, 0)) for name in await self.store.heads()]
        return [(name, entry.change.serial) for name, log in logs for entry in log if entry.change.what == "load"]

    def lying(self, where="."):
        return sorted(entry.name for entry in (self.drop / where).iterdir() if not entry.is_dir())

    def refusals(self):
        return [event.detail.partition(":")[0] for event in self.rejected]
