"""Two EIR nodes that follow one Redis, as real processes, and a loader; what they hold, and what they say."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from simulated.node import Site, until
from witness import Truth, Witness

from eir.errors import StoreError
from eir.lists.follow.list_copy import copied_heads
from eir.lists.stores.open import COPIES
from eir.lists.stores.redis import RedisStore

LIST = "stolen"
HELD = [f"{35_000_000 + n:08d}{n * 31:06d}" for n in range(2_500)]
"""Always listed."""
NEVER = [f"{35_000_000 + n:08d}{n * 31 + 7:06d}" for n in range(10)]
WATCHDOG_S = 6
USER = "--user eir on >secret ~* &* +@all"
OPTIONS = (*USER.split(), "--loading-process-events-interval-bytes", "1024")
"""Options of a server whose user for EIR a test may change without locking itself out."""


def added(serial):
    """The device that is listed from this release on."""
    return f"{36_000_000 + serial:08d}000001"


class Fleet:
    """`held`: what the list has in each release; `kept`: number of releases in which the device stays that a release adds."""

    def __init__(self, folder, publisher, url, *, nodes=2, held=HELD, kept=1000, **settings):
        self.url = self.looked_at = url
        """`looked_at`: where a test looks at the store, past a proxy if there is one."""
        self.folder, self.publisher, self.settings = folder, publisher, settings
        self.truth, self.serial, self.held_always, self.kept = None, 0, held, kept
        with ExitStack() as stack:
            self.loader = self.site("loader", url)
            self.sites = [stack.enter_context(self.site(f"node-{number}", url)) for number in range(nodes)]
            self.load()
            with ThreadPoolExecutor(nodes) as pool:
                self.nodes = list(pool.map(lambda site: site.start(), self.sites))
            self.settle()
            self._stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exits):
        with ThreadPoolExecutor(len(self.sites)) as pool:
            list(pool.map(lambda site: site.node.end(check=exits[0] is None), self.sites))
        self._stack.__exit__(*exits)

    def site(self, name, url, **more):
        """A host whose store is the fleet's."""
        return self.host(self.folder / name, self.publisher, url, **{**self.settings, **more})

    @staticmethod
    def host(folder, publisher, url, **settings):
        """A host with one list, from a store."""
        site = Site(folder, publisher)
        site.configure(
            store=url, lists={LIST: {"signers": "signers"}},
            policy={"rules": [{"list": LIST, "answer": "blacklisted"}]},
            peers=[{"name": "mme", "realm": "localdomain", "from": ["127.0.0.0/8"], "watchdog_s": WATCHDOG_S}],
            **settings,
        )  # fmt: skip
        return site

    def at(self, port):
        """The store's URL, by another port."""
        return re.sub(r":\d+$", f":{port}", self.url)

    # ---- loads ----

    def content(self, serial):
        return [*self.held_always, *(added(each) for each in range(max(1, serial - self.kept + 1), serial + 1))]

    def publish(self, serial=None, *, site=None):
        """The manifest of a release, by default of the next."""
        serial = serial or self.serial + 1
        return (site or self.loader).release(self.content(serial), list_name=LIST, serial=serial)

    def load(self, *, loader=None):
        """Load the next release; returns when it is in the store."""
        site = loader or self.loader
        manifest = self.publish(site=site)
        self.begin()
        site.eir("load", manifest)
        self.serial += 1

    def begin(self):
        """From now on some node may answer by the next release."""
        content = self.content(self.serial + 1)
        if self.truth is None:
            self.truth = Truth(content)
        else:
            self.truth.may_become(content)

    def load_and_follow(self, **how):
        """Load the next release and see it reach every node."""
        self.load(**how)
        self.settle()

    def settle(self, **how):
        """Wait until every node and every last good copy holds what the store holds, and everything is as it should be."""
        until(self.is_level, **how)
        until(self.is_copied, **how)  # what a test takes from the store next, some node is to be able to write back
        assert self.held()[0]["serial"] == self.serial
        self.truth.is_now()

    # ---- what is held ----

    def stored(self):
        """The list's head in the store; None while the store does not say."""

        async def ask():
            store = RedisStore(self.looked_at)
            try:
                return (await store.heads()).get(LIST)
            except StoreError:
                return None
            finally:
                await store.close()

        return asyncio.run(ask())

    def held(self):
        """Each node's state of the list; None for a node without it."""
        return [node.status()["lists"].get(LIST) for node in self.nodes]

    def is_level(self):
        """Every node holds the generation and the digest that the store holds, and every node says that it is ready."""
        if not all(node.get("/ready") == (200, "ready\n") for node in self.nodes):
            return False
        found = self.stored()
        return found is not None and all(
            held is not None and (held["generation"], held["digest"]) == (found.generation, found.content)
            for held in self.held()
        )

    def is_copied(self):
        """The last good copy of every node is what it has in force."""
        copied = [copied_heads(site.state / COPIES).get(LIST) for site in self.sites]
        return None not in copied and [each.generation for each in copied] == [
            held["generation"] for held in self.held()
        ]

    def degraded(self, why):
        """Every node answers, says that someone should look, and why."""
        told = [node.get("/ready") for node in self.nodes]
        return all(code == 200 and text.startswith("degraded\n") and why in text for code, text in told)

    def failures(self, cause):
        """Times that each node counted this cause."""
        return [node.metrics().get(f"eir_store_errors_total{{cause={cause}}}", 0) for node in self.nodes]

    def noticed(self, cause, before):
        """Some node counted this cause since; a node may find the store healed by another before it looks."""
        return any(now > was for now, was in zip(self.failures(cause), before, strict=True))

    def up(self):
        return [node.metrics()["eir_store_up"] for node in self.nodes]

    def lost_data(self):
        """For each node, True if it says that the store shows less than is in force."""
        return [node.metrics()[f"eir_store_lost_data{{list={LIST}}}"] == 1 for node in self.nodes]

    def witness(self):
        devices = [*self.held_always[::250], *NEVER, *(added(serial) for serial in range(1, self.serial + 4))]
        return Witness(self.nodes, self.truth, devices)
