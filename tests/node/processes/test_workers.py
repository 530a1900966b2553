"""`eir serve` with two workers, from outside: they are one node, whatever ends or is told to. Real processes and sockets."""

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, children, is_gone, until, until_async
from simulated.patience import PATIENCE_S
from simulated.wire import HOST, REALM, TGPP, VSAI, Connection, Listener, answer_to, avp, cer, ecr, u32

from eir.node.observe.control import ask as control
from eir.wire.peers.rate import BURST_S
from eir.wire.peers.settings import Limits

WHITE, BLACK, GREY = 0, 1, 2
HOSTS = tuple(f"mme{number}.localdomain" for number in range(1, 5))
ROW = {"list": "stolen", "answer": "blacklisted"}


@pytest.fixture(scope="module")
def loaded(shared):
    """A state folder with one device listed."""
    shared.load([LISTED])
    return shared.state


@pytest.fixture
def crew(site, loaded):
    """A host whose node has two workers, with one device listed; not serving yet."""
    site.configure(workers=2, policy={"rules": [ROW]})
    site.tune(Limits, close_after_dpa_s=2, duplicate_probe_s=60)
    shutil.copytree(loaded, site.state)
    return site


def serving(site):
    """Which worker has whose connections: Origin-Host → worker."""
    return {row["host"]: row["worker"] for row in control(site.state, "peers") if row["host"] is not None}


async def ask(client, imei=UNLISTED, host=HOST):
    """Equipment-Status of the answer to a check."""
    answer = await client.ask(ecr(imei, host=avp(264, host)))
    assert answer.result == 2001
    return answer.number(1445, TGPP)


async def four(node, connect):
    """A connection of each of four peers, one after the other."""
    return {host: await connect(node, host) for host in HOSTS}


async def later(listener):
    """Answer the next attempt of the node in such a way that it tries again."""
    attempt = await listener.accept()
    await attempt.answer(await attempt.read(), code=4003)


def total(samples, name):
    return sum(value for labelled, value in samples.items() if labelled.partition("{")[0] == name)


class TestOneNode:
    async def test_four_peers_are_served_two_and_two(self, crew, connect):
        node = crew.start()
        clients = await four(node, connect)
        assert Counter(serving(crew).values()) == {0: 2, 1: 2}
        for host, client in clients.items():
            assert [await ask(client, imei, host) for imei in (LISTED, UNLISTED)] == [BLACK, WHITE]
        assert set(children(node.pid)) == {"follower", "worker-0", "worker-1"}

    async def test_one_scrape_is_the_sum_of_what_the_clients_received(self, crew, connect):
        node = crew.start()
        clients = await four(node, connect)
        for number, (host, client) in enumerate(clients.items(), 1):
            for _ in range(number):
                await ask(client, LISTED, host)
                await ask(client, UNLISTED, host)
        samples = node.metrics()
        received = sum(client.received["answer"] for client in clients.values())
        assert samples["eir_diameter_answers_total{peer=mme,result=2001}"] == received == 4 + 20
        assert samples["eir_checks_total{list=stolen,protocol=s13,rule=1,status=blacklisted}"] == 10
        assert samples["eir_checks_total{list=,protocol=s13,rule=default,status=whitelisted}"] == 10
        assert samples["eir_check_duration_seconds_count"] == 20
        assert samples["eir_list_entries{list=stolen}"] == 1
        assert samples["eir_worker_restarts_total"] == 0
        status = node.status()
        assert (status["workers"], status["checks"], status["peers"], status["pid"]) == (2, 20, {"mme": 4}, node.pid)

    async def test_ipv6_beside_ipv4(self, crew):
        crew.configure(
            listen=["tcp://[::1]:0", "tcp://127.0.0.1:0"],
            peers=[{"name": "mme", "realm": REALM, "from": ["::1", "127.0.0.1"]}],
        )
        node = crew.start()
        addresses = [url.removeprefix("tcp://").rpartition(":") for url in node.status()["listening"]]
        for (host, _, port), shown in zip(addresses, (b"\0\2" + bytes(15) + b"\1", b"\0\1\x7f\0\0\1"), strict=True):
            client = Connection(*await asyncio.open_connection(host.strip("[]"), int(port)))
            assert (await client.open(cer(f"mme{port}.localdomain"))).data(257) == shown
            assert await ask(client, LISTED) == BLACK
            await client.close()

    async def test_all_workers_send_the_same_origin_state_id(self, crew, connect):
        node = crew.start()
        said = [(await (await connect(node, host, opened=False)).open(cer(host))).number(278) for host in HOSTS]
        assert len(set(said)) == 1

    async def test_a_load_reaches_both_workers(self, crew, connect):
        clients = await four(crew.start(), connect)
        await crew.eir_beside("load", "--force", crew.release([LISTED, UNLISTED], serial=2))
        async with asyncio.timeout(PATIENCE_S):
            for host, client in clients.items():
                while await ask(client, UNLISTED, host) != BLACK:
                    pass

    async def test_a_release_in_the_drop_folder_reaches_every_worker(self, crew, connect, constants):
        constants({"eir.lists.sources.drop_folder.SETTLED_S": 0.0})
        (crew.folder / "inbox").mkdir()
        crew.configure(inbox="inbox", policy={"rules": [{"list": "tracked", "answer": "greylisted"}]})
        clients = await four(crew.start(), connect)
        manifest = crew.release([TRACKED], list_name="tracked")
        for file in sorted(manifest.parent.glob("tracked-1.*")):
            file.rename(crew.folder / "inbox" / file.name)
        for host, client in clients.items():
            await until_async(lambda c=client, h=host: _is(ask(c, TRACKED, h), GREY))


class TestAdmission:
    """`connections: 1`, and the second connection of a peer lands on the other worker."""

    async def second(self, crew, connect, state_id=100):
        node = crew.start()
        first = await connect(node)
        second = await connect(node, opened=False)
        await second.send(cer(state_id=u32(278, state_id)))
        return node, first, second

    async def test_while_the_first_is_alive_the_second_is_refused(self, crew, connect):
        node, first, second = await self.second(crew, connect)
        asked = await first.read()
        assert (asked.command, asked.is_request) == (280, True)
        await first.answer(asked)
        assert (await second.read()).result == 5012
        assert await second.end() == []
        assert await ask(first, LISTED) == BLACK
        assert serving(crew) == {HOST: 0}
        assert node.metrics()["eir_peers_refused_total{reason=duplicate}"] == 1

    async def test_a_first_that_is_silent_is_replaced(self, crew, connect):
        crew.tune(Limits, duplicate_probe_s=0.5)
        _, first, second = await self.second(crew, connect)
        await second.send(cer(state_id=u32(278, 100)))  # again, as go-diameter does after a second: it is the same CER
        assert (await second.read()).result == 2001
        assert [message.command for message in await first.end()] == [280]
        assert await ask(second, LISTED) == BLACK
        assert serving(crew) == {HOST: 1}

    async def test_a_peer_that_has_restarted_replaces_it_at_once(self, crew, connect):
        _, first, second = await self.second(crew, connect, state_id=101)
        assert (await second.read()).result == 2001
        assert await first.end() == []
        assert serving(crew) == {HOST: 1}

    async def test_a_first_whose_worker_dies_makes_room(self, crew, connect):
        node, first, second = await self.second(crew, connect)
        assert (await first.read()).command == 280
        os.kill(children(node.pid)["worker-0"], signal.SIGKILL)
        assert (await second.read()).result == 2001
        assert await ask(second, LISTED) == BLACK

    async def test_as_many_as_are_allowed_wherever_they_are(self, crew, connect):
        crew.configure(peers=[{"name": "mme", "realm": REALM, "connections": 3}])
        node = crew.start()
        first, second, third = [await connect(node) for _ in range(3)]
        assert sorted(row["worker"] for row in control(crew.state, "peers")) == [0, 0, 1]
        fourth = await connect(node, opened=False)
        await fourth.send(cer())
        await first.answer(await first.read())  # it is the oldest that is asked
        assert (await fourth.read()).result == 5012
        assert [await ask(client, LISTED) for client in (first, second, third)] == [BLACK] * 3

    @asynccontextmanager
    async def election(self, crew, connect, host):
        """Worker 0 connects to a peer that connects to worker 1: both connections, the CER on the node's read, theirs sent."""
        async with Listener() as listener:
            dra = {"name": "dra", "host": host, "realm": REALM, "connect": f"tcp://127.0.0.1:{listener.port}"}
            crew.configure(peers=[dra, {"name": "mme", "realm": REALM}])
            node = crew.start()
            await connect(node, "other.localdomain")  # has worker 0, so that the next one gets worker 1
            ours = await listener.accept()
            request = await ours.read()
            theirs = await connect(node, opened=False)
            await theirs.send(cer(host))
            yield ours, request, theirs

    async def test_a_peer_that_shows_no_s13_to_one_worker_is_connected_to_by_none(self, crew, connect):
        async with Listener() as listener, Listener() as other:
            hosts = {HOST: listener, "beside.example": other}
            dialed = [
                {"name": host, "host": host, "connect": f"tcp://127.0.0.1:{at.port}", "reconnect_after_s": 1}
                for host, at in hosts.items()
            ]
            crew.configure(peers=[*dialed, {"name": "first", "host": HOSTS[0]}])
            node = crew.start()
            await connect(node, HOSTS[0])  # has worker 0, so that the next one gets worker 1
            await later(listener)
            theirs = await connect(node, opened=False)
            assert (await theirs.ask(cer(app=b""))).result == 5010
            (line,) = await until_async(lambda: node.lines("peer_refused", reason="no_common_application"))
            assert line["worker"] == "1"
            control(crew.state, "peers")  # whose answers come after what the worker told
            before = len(listener.made)
            for _ in range(3):
                await later(other)
            assert len(listener.made) == before

    async def test_an_election_that_the_node_wins(self, crew, connect):
        async with self.election(crew, connect, "dra.localdomain") as (ours, _, theirs):
            assert (await theirs.read()).result == 2001  # dra < eir
            assert await ours.end() == []
            assert await ask(theirs, LISTED, "dra.localdomain") == BLACK
            assert serving(crew)["dra.localdomain"] == 1

    async def test_an_election_that_the_node_loses(self, crew, connect):
        async with self.election(crew, connect, HOST) as (ours, request, theirs):
            await until_async(
                lambda: (
                    [row["worker"] for row in control(crew.state, "peers") if row["state"] == "wait_admission"] == [1]
                )
            )
            await ours.answer(request, extra=VSAI)  # eir < mme
            assert [(cea.result, cea.error) for cea in await theirs.end()] == [(4003, False)]
            assert await ask(ours, LISTED) == BLACK
            assert serving(crew)[HOST] == 0

    async def test_an_election_whose_winner_dies_with_its_worker(self, crew, connect):
        async with self.election(crew, connect, HOST) as (ours, _, theirs):
            await until_async(
                lambda: (
                    [row["worker"] for row in control(crew.state, "peers") if row["state"] == "wait_admission"] == [1]
                )
            )
            os.kill(children(crew.node.pid)["worker-0"], signal.SIGKILL)
            assert (await theirs.read()).result == 2001
            assert await ours.end() == []
            assert await ask(theirs, LISTED) == BLACK

    async def test_connections_past_the_limit_and_from_strangers_are_counted(self, crew):
        crew.configure(limits={"connections_max": 2}, peers=[{"realm": REALM, "from": ["127.0.0.1", "127.0.0.2"]}])
        node = crew.start()

        async def come(source):
            return Connection(*await asyncio.open_connection(*node.address, local_addr=(source, 0)))

        made = [await come("127.0.0.1"), await come("127.0.0.2"), await come("127.0.0.2")]
        assert await made[-1].end() == []
        for client in made[:2]:
            await client.close()
        until(lambda: total(node.metrics(), "eir_peers_refused_total") == 1)
        stranger = await come("127.0.0.3")
        assert await stranger.end() == []
        samples = node.metrics()
        assert samples["eir_peers_refused_total{reason=connections_max}"] == 1
        assert samples["eir_peers_refused_total{reason=source}"] == 1
        for client in (*made, stranger):
            await client.close()
        crew.configure(limits={"connections_max": 3})
        await crew.eir_beside("reload")
        made = [await come("127.0.0.1") for _ in range(3)]
        assert (await made[-1].ask(cer())).result == 2001
        for client in made:
            await client.close()


class TestOverload:
    @pytest.mark.long(short=["rate_max-2", "rate_max_all-3"])
    @pytest.mark.parametrize("peers", [1, 2, 3])
    @pytest.mark.parametrize("limit", ["rate_max", "rate_max_all"])
    async def test_a_limit_is_the_nodes_wherever_the_connections_are(self, crew, connect, limit, peers):
        """Three times the limit and more, over one worker or both: as many are answered as with one worker."""
        rate, batch = 100, 60
        entry = {"name": "mme", "realm": REALM}
        if limit == "rate_max":
            entry["rate_max"] = rate
        crew.configure(peers=[entry], limits={"rate_max": rate} if limit == "rate_max_all" else {})
        node = crew.start()
        clients = [await connect(node, host) for host in HOSTS[:peers]]
        results, answered_at = Counter(), []

        async def push(client, host):
            octets = ecr(LISTED, host=avp(264, host))
            while time.monotonic() < answered_at[0] + 2:
                await client.send(*[octets] * batch)
                results.update([(await client.read()).result for _ in range(batch)])
                answered_at.append(time.monotonic())
                await asyncio.sleep(0.02)

        answered_at.append(time.monotonic())
        await asyncio.gather(*(push(client, host) for client, host in zip(clients, HOSTS, strict=False)))
        took = answered_at[-1] - answered_at[0]
        # Nobody saves up more than BURST_S while a busy host keeps everyone waiting.
        used = sum(min(after - before, BURST_S) for before, after in pairwise(answered_at))
        assert set(results) == {2001, 3004}
        assert 0.6 * rate * used < results[2001] < 1.1 * rate * took + rate * BURST_S
        assert (
            total(node.metrics(), "eir_shed_total")
            == node.metrics()[f"eir_shed_total{{peer=mme,reason={limit}}}"]
            == results[3004]
        )

    async def test_below_the_limit_nobody_is_turned_away(self, crew, connect):
        crew.configure(peers=[{"name": "mme", "realm": REALM, "rate_max": 1000}])
        clients = (await four(crew.start(), connect)).items()

        async def push(host, client):
            octets = ecr(LISTED, host=avp(264, host))
            for _ in range(50):
                await client.send(*[octets] * 4)
                for _ in range(4):
                    assert (await client.read()).result == 2001
                await asyncio.sleep(0.025)  # 640 a second, together

        await asyncio.gather(*(push(host, client) for host, client in clients))


class TestCrash:
    async def test_it_loses_its_own_connections_and_they_come_back(self, crew, connect):
        node = crew.start()
        clients = await four(node, connect)
        served = serving(crew)
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK
        assert total(node.metrics(), "eir_checks_total") == 4  # and these figures are kept
        lost = [host for host in HOSTS if served[host] == 1]
        before = children(node.pid)["worker-1"]
        os.kill(before, signal.SIGKILL)
        for host in lost:
            assert await clients[host].end() == []
            clients[host] = await connect(node, host)  # at once, as a peer may
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK
        assert Counter(serving(crew).values()) == {0: 2, 1: 2}
        assert children(node.pid)["worker-1"] != before
        samples = node.metrics()
        assert samples["eir_worker_restarts_total"] == 1
        assert samples["eir_checks_total{list=stolen,protocol=s13,rule=1,status=blacklisted}"] == 8
        assert samples["eir_check_duration_seconds_count"] == 8
        assert samples["eir_peer_up{peer=mme}"] == 1
        lines = await until_async(lambda: node.lines("process_ended", process="worker-1"))
        assert [line["status"] for line in lines] == ["-9"]

    async def test_one_that_connects_to_a_peer_does_so_again(self, crew):
        async with Listener() as listener:
            crew.configure(
                peers=[{"name": "dra", "host": HOST, "realm": REALM, "connect": f"tcp://127.0.0.1:{listener.port}"}]
            )
            node = crew.start()
            for _ in range(2):
                connection = await listener.accept()
                await connection.answer(await connection.read(), extra=VSAI)
                assert await ask(connection, LISTED) == BLACK
                os.kill(children(node.pid)["worker-0"], signal.SIGKILL)
                assert await connection.end() == []

    async def test_what_it_had_counted_is_kept_up_to_a_second_ago(self, crew, connect):
        node = crew.start()
        clients = await four(node, connect)
        until(lambda: total(node.metrics(), "eir_checks_total") == 0)
        old = [await ask(client, LISTED, host) for host, client in clients.items()]
        # The supervisor takes figures each second, by itself: nobody scrapes between these answers and the end, and nothing
        # shows when it has.
        await asyncio.sleep(4)
        await ask(clients[HOSTS[0]], LISTED, HOSTS[0])  # worker 0
        os.kill(children(node.pid)["worker-1"], signal.SIGKILL)
        os.kill(children(node.pid)["worker-0"], signal.SIGKILL)
        until(lambda: node.metrics()["eir_worker_restarts_total"] == 2)
        assert total(node.metrics(), "eir_checks_total") in {len(old), len(old) + 1}

    @pytest.mark.long
    async def test_the_pause_before_a_restart_doubles(self, crew):
        node = crew.start()
        for restarts in range(1, 4):
            os.kill(children(node.pid)["worker-0"], signal.SIGKILL)
            until(lambda n=restarts: node.metrics()["eir_worker_restarts_total"] == n and node.status()["workers"] == 2)
        lines = until(lambda: len(found := node.lines("process_ended", process="worker-0")) >= 3 and found)
        assert [line["restart_in_s"] for line in lines] == ["0.1", "0.2", "0.4"]

    async def test_the_origin_state_id_stays(self, crew, connect):
        """RFC 6733 8.16: it says that the node has lost its state, and the node has not."""
        node = crew.start()
        first = (await (await connect(node, HOSTS[0], opened=False)).open(cer(HOSTS[0]))).number(278)
        os.kill(children(node.pid)["worker-1"], signal.SIGKILL)
        until(lambda: node.metrics()["eir_worker_restarts_total"] == 1 and node.status()["workers"] == 2)
        second = (await (await connect(node, HOSTS[1], opened=False)).open(cer(HOSTS[1]))).number(278)
        assert serving(crew) == {HOSTS[0]: 0, HOSTS[1]: 1}
        assert first == second

    async def test_its_successor_has_received_all_settings_of_the_others(self, crew, connect):
        node = crew.start()
        crew.configure(
            peers=[{"name": "mme", "realm": REALM}, {"name": "away", "host": "away.example", "realm": "example"}],
            lists={**crew.settings["lists"], "late": {"signers": "signers"}},
            policy={"rules": [{"list": "late", "answer": "greylisted"}, ROW]},
            http="127.0.0.1:1",  # what takes a restart of the node is not taken over by the new worker alone
            state="elsewhere",
        )
        control(crew.state, "reload")
        control(crew.state, "peer_disable", name="away")
        os.kill(children(node.pid)["worker-1"], signal.SIGKILL)
        until(lambda: node.metrics()["eir_worker_restarts_total"] == 1 and node.status()["workers"] == 2)
        assert node.status()["ready"] == "degraded"  # list late has never been loaded
        crew.configure(state="var")
        await asyncio.to_thread(crew.load, [UNLISTED], list_name="late")
        for number, host in enumerate(HOSTS[:2]):
            client = await connect(node, host)
            assert serving(crew)[host] == number
            await until_async(lambda c=client, h=host: _is(ask(c, UNLISTED, h), GREY))
        for _ in range(2):
            refused = await connect(node, opened=False)
            assert (await refused.ask(cer("away.example", "example"))).result == 3010

    async def test_a_worker_that_hangs_is_replaced(self, crew, connect, altered):
        altered(
            "import eir.node.processes.channel, eir.node.processes.child\neir.node.processes.channel.ANSWER_S, eir.node.processes.child.HUNG_QUESTIONS = 0.2, 2\n"
        )
        node = crew.start()
        client = await connect(node)
        os.kill(children(node.pid)["worker-0"], signal.SIGSTOP)
        await until_async(lambda: node.status()["ready"] == "degraded")
        assert "1 of 2 workers answer" in node.status()["summary"]
        assert await client.end() == []
        assert await ask(await connect(node), LISTED) == BLACK
        await until_async(lambda: node.lines("worker_hung", worker=0))

    async def test_one_that_cannot_answer_a_question_answers_the_others_and_checks(self, crew, connect, altered):
        """A fault in what it shows, in both: the log has it, and nothing else comes of it."""
        altered("import eir.node.processes.worker\neir.node.processes.worker.Worker.peers = lambda self: 1 / 0\n")
        node = crew.start()
        clients = await four(node, connect)
        assert control(crew.state, "peers") == []
        until(
            lambda: {line["worker"] for line in node.lines("fault", reason="peers")} == {"0", "1"}
        )  # a thread writes them
        said = node.status()
        assert (said["workers"], said["ready"]) == (2, "ready")
        assert total(node.metrics(), "eir_peer_up") == 1
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK

    async def test_one_that_the_front_cannot_make_sense_of_is_heard_on(self, crew, connect, altered):
        altered("import eir.wire.diameter.admission as a\na.Admission.closed = lambda self, name, reason='': 1 / 0\n")
        node = crew.start()
        clients = await four(node, connect)
        await clients.pop(HOSTS[0]).close()
        (line,) = await until_async(lambda: node.lines("fault", reason="reported"))
        assert "ZeroDivisionError" in line["detail"]
        assert node.status()["workers"] == 2
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK


class TestSteering:
    @pytest.mark.parametrize("how", ["command", "signal"])
    async def test_reload(self, crew, connect, how):
        node = crew.start()
        clients = await four(node, connect)
        crew.configure(policy={"rules": [{**ROW, "answer": "greylisted"}]}, workers=3)
        if how == "command":
            assert (await crew.eir_beside("reload")).stdout == "reloaded; these need a restart: workers\n"
        else:
            node.signal(signal.SIGHUP)
        for host, client in clients.items():
            await until_async(lambda c=client, h=host: _is(ask(c, LISTED, h), GREY))
        assert len(await until_async(lambda: node.lines("reloaded"))) == 1  # logged once every worker has it

    @pytest.mark.parametrize("how", ["command", "signal"])
    async def test_a_reload_with_an_error_changes_nothing(self, crew, connect, how):
        node = crew.start()
        clients = await four(node, connect)
        crew.configure(policy={"rules": [{**ROW, "answer": "blocklisted"}]})
        if how == "command":
            assert "blocklisted" in (await crew.eir_beside("reload", status=2)).stderr
        else:
            node.signal(signal.SIGHUP)
            (line,) = await until_async(lambda: node.lines("reload_refused"))
            assert "blocklisted" in line["detail"]
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK
        assert node.lines("reloaded") == []

    async def test_a_peer_goes_out_of_service_on_both_workers_and_comes_back(self, crew, connect):
        node = crew.start()
        clients = await four(node, connect)
        await crew.eir_beside("peer", "disable", "mme")
        for host, client in clients.items():
            asked = await client.read()
            assert (asked.command, asked.number(273)) == (282, 0)
            await client.send(answer_to(asked, host=host))
            assert await client.end() == []
        for host in HOSTS[:2]:
            assert (await (await connect(node, host, opened=False)).ask(cer(host))).result == 3010
        assert [row["state"] for row in crew.json("peers")] == ["disabled"]
        await crew.eir_beside("peer", "enable", "mme")
        for host in HOSTS:
            assert await ask(await connect(node, host), LISTED, host) == BLACK
        assert "nobody" in (await crew.eir_beside("peer", "disable", "nobody", status=1)).stderr

    @pytest.mark.parametrize("how", ["SIGTERM", "SIGINT to all", "drain"])
    async def test_the_end(self, crew, connect, how):
        """DPR to each peer, their requests answered until they close, exit status 0, and no process left."""
        node = crew.start()
        clients = await four(node, connect)
        left = children(node.pid)
        (crew.state / "clock").unlink(missing_ok=True)
        match how:
            case "SIGTERM":
                node.signal(signal.SIGTERM)
            case "SIGINT to all":  # as from a terminal
                for pid in (node.pid, *left.values()):
                    os.kill(pid, signal.SIGINT)
            case "drain":
                assert (await crew.eir_beside("drain")).stdout.startswith("draining")
        for host, client in clients.items():
            asked = await client.read()
            assert (asked.command, asked.number(273)) == (282, 0)  # REBOOTING
            assert await ask(client, LISTED, host) == BLACK
            await client.send(answer_to(asked, host=host))
            assert await client.end() == []
        assert await asyncio.to_thread(node.wait) == 0
        assert all(is_gone(pid) for pid in left.values())
        assert (crew.state / "clock").exists(), "the time of the clock is stored for the next start"
        assert len(node.lines("stopping")) == len(node.lines("stopped")) == 1

    async def test_a_terminal_that_is_closed(self, crew, connect):
        """SIGHUP reaches every process: a reload, and no worker ends."""
        node = crew.start()
        client = await connect(node)
        for pid in (node.pid, *children(node.pid).values()):
            os.kill(pid, signal.SIGHUP)
        await until_async(lambda: node.lines("reloaded"))
        assert await ask(client, LISTED) == BLACK
        assert node.metrics()["eir_worker_restarts_total"] == 0


class TestFaults:
    async def test_without_the_front_the_node_ends(self, crew, connect):
        """Killed, as where memory runs out: nobody is left to end the others but they themselves."""
        node = crew.start()
        clients = await four(node, connect)
        left = children(node.pid)
        node.signal(signal.SIGKILL)
        for host, client in clients.items():
            asked = await client.read()
            assert (asked.command, asked.number(273)) == (282, 0)
            assert await ask(client, LISTED, host) == BLACK
            await client.send(answer_to(asked, host=host))
            assert await client.end() == []
        assert await asyncio.to_thread(node.wait) == -signal.SIGKILL
        await until_async(lambda: all(is_gone(pid) for pid in left.values()))
        assert crew.start().status()["ready"] == "ready"


async def _is(answer, expected):
    return await answer == expected


FAULTS = """
import resource
from eir.node.processes import worker
worker._set_malloc_options()
def window():
    return [bytes([at]) * 250_000 for at in range(6)]
for _ in range(3):
    window()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    window()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no such option")
def test_buffers_of_full_windows_take_no_new_pages():
    """Each page is a fault, which costs as much as the answers to the checks on it. Without the option it goes by where the heap ends."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
