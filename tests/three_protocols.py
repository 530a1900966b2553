"""Nodes that answer over S13, N5g-eir and MAP: one on SQLite, or two on one Redis."""

import asyncio
import contextlib
import subprocess
import time

import pytest
from simulated import servers
from simulated.http2_wire import RESOURCE
from simulated.node import Site, children, is_gone, until
from simulated.traffic import connect
from simulated.wire import HOST, TGPP, avp, ecr

from eir.checks.settings import Status
from eir.interfaces.map import INTERFACE as MAP

DAY_S = 86400
DEVICES = {"s13": "352099001761481", "n5g": "353328110022335", "map": "861234567890124"}
IMSI = "001010123456789"
GREY, BLACK, WHITE = Status.GREYLISTED, Status.BLACKLISTED, Status.WHITELISTED


class Host:
    """A node with three protocols, and the day that it believes in."""

    def __init__(self, folder, publisher, store, **settings):
        self.map_port = servers.free_port()
        self.site = Site(folder, publisher)
        self.site.configure(
            store=store,
            n5g={"listen": "http://127.0.0.1:0"}, ss7={"point_code": "1-1-2", "listen": f"tcp://127.0.0.1:{self.map_port}"},
            **settings,
        )  # fmt: skip

    def start(self, days=0):
        """Start on a later day: the time that the node saw last is then."""
        self.site.state.mkdir(exist_ok=True)
        (self.site.state / "clock").write_text(f"{time.time() + days * DAY_S:.0f}\n")
        self.site.start()

    def restart(self, days):
        processes = children(self.site.node.pid).values()
        self.site.node.end()
        until(lambda: all(map(is_gone, processes)))  # the answering process saves the time at its very end
        self.start(days)

    def ask(self, protocol, *devices, imsi=IMSI):
        """The answers for devices with a SIM over one protocol."""
        ask = {"s13": self._by_mme, "n5g": self._by_amf, "map": self._by_msc}[protocol]
        return asyncio.run(ask(devices or [DEVICES[protocol]], imsi))

    async def _by_mme(self, devices, imsi):
        mme = await connect(self.site.node, HOST)
        await mme.send(
            *(
                ecr(terminal=avp(1401, avp(1402, device, TGPP), TGPP), user=avp(1, imsi), ids=(n, n))
                for n, device in enumerate(devices)
            )
        )
        found = {[WHITE, BLACK, GREY][(await mme.read()).number(1445, TGPP)] for _ in devices}
        await mme.close()
        return found

    async def _by_amf(self, devices, imsi):
        url = next(url for url in self.site.node.status()["listening"] if url.startswith("http:"))
        asking = [f"{url}{RESOURCE}?pei=imei-{device}&supi=imsi-{imsi}" for device in devices]
        done = await asyncio.to_thread(
            subprocess.run, ["curl", "-s", "--http2-prior-knowledge", *asking], capture_output=True, check=True
        )
        return {word for word in (WHITE, BLACK, GREY) if word.upper().encode() in done.stdout}

    async def _by_msc(self, devices, imsi):
        url = f"map://127.0.0.1:{self.map_port}?point_code=1-1-3&to_point_code=1-1-2"
        async with MAP.probe_of(url, timeout_s=60).asking() as ask:
            return {await ask(device, imsi) for device in devices}

    def answers(self):
        return set().union(*map(self.ask, DEVICES))

    def entries(self):
        return self.site.node.metrics().get("eir_list_entries{list=first-seen}", 0)


@pytest.fixture(params=["sqlite", "redis"])
def hosts(request, tmp_path, publisher):
    """One node on SQLite; two on Redis."""
    with contextlib.ExitStack() as stack:
        store, names = "sqlite", ["a"]
        if request.param == "redis":
            programs = servers.programs()
            if not programs:
                pytest.skip("no Redis here")
            server = stack.enter_context(servers.Server(next(iter(programs.values()))))
            store, names = server.url, ["a", "b"]

        def made(**settings):
            found = [Host(tmp_path / name, publisher, store, **settings) for name in names]
            for host in found:
                stack.enter_context(host.site)
                host.start()
            return found

        made.server = None if store == "sqlite" else server
        yield made
