"""An EIR's drop folder without a node: real files, real keys and signatures, the SQLite store, and a clock that tests put ahead."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from simulated.releases import public, release_by_hand

from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.record.settings import ListSettings
from eir.lists.sources.inbox import Attempts, PassSettings, run_pass
from eir.lists.stores.sqlite import SqliteStore

PATIENCE_S = 3600
UNHURRIED_S = 60.0
"""A pass is not cut short because the host is busy."""
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
        self.attempts = Attempts(self.state / "attempt")
        self.rejected = []
        """Events of rejections, as the journal gets them."""
        self.ahead_s = 2.0

    def trust(self, name, **changes):
        self.lists[name] = ListSettings(
            **{"name": name, "signers": self.signers, "growth_max": 100, "shrink_max": 1, **changes}
        )

    def publish(self, serial, rows=IMEIS, *, base=None, name="stolen", key=0, data=None):
        """A release in the outbox; returns its files, data first, the signature last."""
        file = self.outbox / (data or f"{name}-{serial}{'-added' if base is not None else ''}.csv")
        file.write_text("imei\n" + "".join(f"{row}\n" for row in rows))
        manifest = release_by_hand([file], list_name=name, serial=serial, base=base, key=self.keys[key])
        return [file, manifest, Path(f"{manifest}.sig")]

    def deliver(self, files):
        for file in files:
            shutil.copyfile(file, self.drop / file.name)

    def terms(self, **changes):
        given = {
            "folder": self.drop, "lists": self.lists, "store": self.store, "who": "inbox of tester@host",
            "clock": lambda: datetime.now(UTC) + timedelta(seconds=self.ahead_s), "patience_s": PATIENCE_S,
            "attempts": self.attempts, "pass_s": UNHURRIED_S, "record": self.rejected.append,
        }  # fmt: skip
        return PassSettings(**(given | changes))

    def loader(self):
        """The function by which a pass loads, unless the settings name another."""
        terms = self.terms()
        return ReleaseLoader(terms.lists, terms.store, terms.who, terms.clock(), {})

    async def turn(self, **changes):
        """One pass: {manifest: (outcome, reason)}."""
        made = await run_pass(self.terms(**changes))
        json.dumps(made.as_json())
        self.again_s, self.said = made.again_s, {taken.manifest: taken.detail for taken in made.taken}
        return {taken.manifest: (taken.outcome, taken.reason) for taken in made.taken}

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
