"""The answering process of `eir serve`, from outside: its answers, its end and successor, reloads, the node's stop. Real processes and sockets."""

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, children, is_gone, until, until_async
from simulated.patience import PATIENCE_S
from simulated.wire import HOST, REALM, TGPP, VSAI, Connection, Listener, answer_to, avp, cer, ecr

from eir.node.observe.control import ask as control
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
    """A host with one device listed; not serving yet."""
    site.configure(policy={"rules": [ROW]})
    site.tune(Limits, close_after_dpa_s=2, duplicate_probe_s=60)
    shutil.copytree(loaded, site.state)
    return site


async def ask(client, imei=UNLISTED, host=HOST):
    """Equipment-Status of the answer to a check."""
    answer = await client.ask(ecr(imei, host=avp(264, host)))
    assert answer.result == 2001
    return answer.number(1445, TGPP)


async def four(node, connect):
    """A connection of each of four peers, one after the other."""
    return {host: await connect(node, host) for host in HOSTS}


def total(samples, name):
    return sum(value for labelled, value in samples.items() if labelled.partition("{")[0] == name)


class TestOneNode:
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
        assert samples["eir_process_restarts_total{process=answering}"] == 0
        status = node.status()
        assert (status["checks"], status["peers"], status["pid"]) == (20, {"mme": 4}, node.pid)

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

    async def test_a_load_reaches_all_connections(self, crew, connect):
        clients = await four(crew.start(), connect)
        await crew.eir_beside("load", "--force", crew.release([LISTED, UNLISTED], serial=2))
        async with asyncio.timeout(PATIENCE_S):
            for host, client in clients.items():
                while await ask(client, UNLISTED, host) != BLACK:
                    pass

    async def test_a_release_in_the_drop_folder_reaches_all_connections(self, crew, connect, constants):
        constants({"eir.lists.sources.drop_folder.SETTLED_S": 0.0})
        (crew.folder / "inbox").mkdir()
        crew.configure(inbox="inbox", policy={"rules": [{"list": "tracked", "answer": "greylisted"}]})
        clients = await four(crew.start(), connect)
        manifest = crew.release([TRACKED], list_name="tracked")
        for file in sorted(manifest.parent.glob("tracked-1.*")):
            file.rename(crew.folder / "inbox" / file.name)
        for host, client in clients.items():
            await until_async(lambda c=client, h=host: _is(ask(c, TRACKED, h), GREY))

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


class TestCrash:
    async def test_its_peers_come_back_at_once_and_wait_in_the_listener(self, crew, connect):
        node = crew.start()
        clients = await four(node, connect)
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK
        assert total(node.metrics(), "eir_checks_total") == 4  # and these figures are kept
        before = children(node.pid)["answering"]
        os.kill(before, signal.SIGKILL)
        for host in HOSTS:
            assert await clients[host].end() == []
            clients[host] = await connect(node, host)  # at once, as a peer may
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK
        assert children(node.pid)["answering"] != before
        samples = node.metrics()
        assert samples["eir_process_restarts_total{process=answering}"] == 1
        assert samples["eir_checks_total{list=stolen,protocol=s13,rule=1,status=blacklisted}"] == 8
        assert samples["eir_check_duration_seconds_count"] == 8
        assert samples["eir_peer_up{peer=mme}"] == 1
        lines = await until_async(lambda: node.lines("process_ended", process="answering"))
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
                os.kill(children(node.pid)["answering"], signal.SIGKILL)
                assert await connection.end() == []

    async def test_what_it_had_counted_is_kept_up_to_a_second_ago(self, crew, connect):
        node = crew.start()
        clients = await four(node, connect)
        until(lambda: total(node.metrics(), "eir_checks_total") == 0)
        old = [await ask(client, LISTED, host) for host, client in clients.items()]
        # The manager takes figures each second, by itself: nobody scrapes between these answers and the end, and nothing
        # shows when it has.
        await asyncio.sleep(4)
        await ask(clients[HOSTS[0]], LISTED, HOSTS[0])
        os.kill(children(node.pid)["answering"], signal.SIGKILL)
        until(lambda: node.metrics()["eir_process_restarts_total{process=answering}"] == 1)
        assert total(node.metrics(), "eir_checks_total") in {len(old), len(old) + 1}

    @pytest.mark.long
    async def test_the_pause_before_a_restart_doubles(self, crew):
        node = crew.start()
        for restarts in range(1, 4):
            os.kill(children(node.pid)["answering"], signal.SIGKILL)
            until(lambda n=restarts: node.is_restarted(n))
        lines = until(lambda: len(found := node.lines("process_ended", process="answering")) >= 3 and found)
        assert [line["restart_in_s"] for line in lines] == ["0.1", "0.2", "0.4"]

    async def test_the_origin_state_id_stays(self, crew, connect):
        """RFC 6733 8.16: it says that the node has lost its state, and the node has not."""
        node = crew.start()
        first = (await (await connect(node, HOSTS[0], opened=False)).open(cer(HOSTS[0]))).number(278)
        os.kill(children(node.pid)["answering"], signal.SIGKILL)
        second = (await (await connect(node, HOSTS[1], opened=False)).open(cer(HOSTS[1]))).number(278)
        assert first == second

    async def test_its_successor_has_received_all_settings(self, crew, connect):
        node = crew.start()
        crew.configure(
            peers=[{"name": "mme", "realm": REALM}, {"name": "away", "host": "away.example", "realm": "example"}],
            lists={**crew.settings["lists"], "late": {"signers": "signers"}},
            policy={"rules": [{"list": "late", "answer": "greylisted"}, ROW]},
            http="127.0.0.1:1",  # a restart of the answering process does not apply it
            state="elsewhere",
        )
        control(crew.state, "reload")
        control(crew.state, "peer_disable", name="away")
        os.kill(children(node.pid)["answering"], signal.SIGKILL)
        until(node.is_restarted)
        assert node.status()["ready"] == "degraded"  # list late has never been loaded
        crew.configure(state="var")
        await asyncio.to_thread(crew.load, [UNLISTED], list_name="late")
        client = await connect(node)
        await until_async(lambda: _is(ask(client, UNLISTED), GREY))
        refused = await connect(node, opened=False)
        assert (await refused.ask(cer("away.example", "example"))).result == 3010

    async def test_a_process_that_hangs_is_replaced(self, crew, connect, altered):
        altered(
            "import eir.node.processes.channel, eir.node.processes.child\neir.node.processes.channel.ANSWER_S, eir.node.processes.child.HUNG_QUESTIONS = 0.2, 2\n"
        )
        node = crew.start()
        client = await connect(node)
        os.kill(children(node.pid)["answering"], signal.SIGSTOP)
        status = await until_async(lambda: (status := node.status())["ready"] == "not ready" and status)
        assert "the answering process does not answer" in status["summary"]
        assert await client.end() == []
        assert await ask(await connect(node), LISTED) == BLACK
        await until_async(lambda: node.lines("process_hung", process="answering"))

    async def test_one_that_cannot_answer_a_question_answers_the_others_and_checks(self, crew, connect, altered):
        """A fault in what it shows: the log has it, and nothing else comes of it."""
        altered("from eir.node.processes.answering import AnsweringProcess as a\na.peers = lambda self: 1 / 0\n")
        node = crew.start()
        clients = await four(node, connect)
        assert control(crew.state, "peers") == []
        until(lambda: node.lines("fault", reason="peers"))  # a thread writes them
        assert node.status()["ready"] == "ready"
        assert total(node.metrics(), "eir_peer_up") == 1
        for host, client in clients.items():
            assert await ask(client, LISTED, host) == BLACK


class TestSteering:
    @pytest.mark.parametrize("how", ["command", "signal"])
    async def test_reload(self, crew, connect, how):
        node = crew.start()
        clients = await four(node, connect)
        crew.configure(policy={"rules": [{**ROW, "answer": "greylisted"}]}, http="127.0.0.1:1")
        if how == "command":
            assert (await crew.eir_beside("reload")).stdout == "reloaded; these need a restart: http\n"
        else:
            node.signal(signal.SIGHUP)
        for host, client in clients.items():
            await until_async(lambda c=client, h=host: _is(ask(c, LISTED, h), GREY))
        assert len(await until_async(lambda: node.lines("reloaded"))) == 1

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

    async def test_a_peer_goes_out_of_service_and_comes_back(self, crew, connect):
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
        """SIGHUP reaches every process: a reload, and no process ends."""
        node = crew.start()
        client = await connect(node)
        for pid in (node.pid, *children(node.pid).values()):
            os.kill(pid, signal.SIGHUP)
        await until_async(lambda: node.lines("reloaded"))
        assert await ask(client, LISTED) == BLACK
        assert total(node.metrics(), "eir_process_restarts_total") == 0


class TestFaults:
    async def test_without_the_manager_the_node_ends(self, crew, connect):
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
from eir.node.processes import answering
answering._set_malloc_options()
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
