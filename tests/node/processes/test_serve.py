"""`eir serve` from outside: what it answers, takes over, shows and logs, and how it starts and ends. Real processes and sockets."""

import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, children, fields, until, until_async
from simulated.store_content import Lists
from simulated.wire import EIR, HOST, REALM, TGPP, answer_to, avp, cer, dpr, dwr, ecr, message

from eir.__main__ import LARGE_PAGES, TUNABLES
from eir.config import load_config
from eir.errors import EirError
from eir.lists.stores.open import open_store
from eir.node.observe import control
from eir.node.observe.control import ControlError

WHITE, BLACK, GREY = 0, 1, 2
OTHER_HOST = "mme2.localdomain"
IMSI = "001010123456789"  # that of wire.ecr()


async def ask(client, imei=UNLISTED, host=HOST, **parts):
    """Equipment-Status of the answer to a check, or its result where it has none."""
    answer = await client.ask(ecr(imei, host=avp(264, host), **parts))
    assert answer.avps[0].code == 263
    status = answer.number(1445, TGPP)
    assert (status is None) == (answer.result != 2001)
    return answer.result if status is None else status


async def _changed(site, serial):
    """The list is in the store with another serial, and the same entries."""
    config = load_config(site.path)
    store = open_store(config.store, config.state)
    await Lists(store).change(name="stolen", what="load", state={"serial": serial, "highest_serial": serial})
    await store.close()


@pytest.fixture
def loaded(site):
    """A host with both lists loaded, not serving yet."""
    site.load([LISTED], list_name="stolen")
    site.load([TRACKED], list_name="tracked")
    return site


class TestAnswers:
    async def test_a_device_is_answered_by_its_list_whatever_digits_follow(self, site, connect):
        site.load([f"{LISTED}1"], ["tac", "35332812"], ["imei_from,imei_to", "35332813000100,35332813000199"])
        site.load([f"{TRACKED}16"], list_name="tracked")
        client = await connect(site.start())
        expected = {
            LISTED: BLACK, f"{LISTED}1": BLACK, f"{LISTED}0": BLACK, f"{LISTED}7": BLACK, f"{LISTED}34": BLACK,
            TRACKED: GREY, f"{TRACKED}0": GREY, "3533281200000099": BLACK, "35332812999999": BLACK,
            "35332813000100": BLACK, "35332813000199": BLACK, "35332813000200": WHITE, "35332813000099": WHITE,
            UNLISTED: WHITE, "35209900176149": WHITE, "3520990017614": WHITE, "no identifier": WHITE,
        }  # fmt: skip
        assert {imei: await ask(client, imei) for imei in expected} == expected

    async def test_a_restart_answers_from_the_same_lists_with_a_higher_origin_state_id(self, loaded, connect):
        node = loaded.start()
        client = await connect(node, opened=False)
        first = (await client.open()).number(278)
        await client.close()
        node.end()
        client = await connect(loaded.start(), opened=False)
        assert (await client.open()).number(278) > first
        assert await ask(client, LISTED) == BLACK


class TestLists:
    async def test_a_load_and_a_rollback_beside_it_are_taken_over_within_about_a_second(self, loaded, connect):
        node = loaded.start()
        pid, client = node.status()["pid"], await connect(node)
        manifest = loaded.release([LISTED, UNLISTED], serial=2)
        assert await ask(client, UNLISTED) == WHITE
        await loaded.eir_beside("load", "--force", manifest)

        async def is_black():
            return await ask(client, UNLISTED) == BLACK

        await until_async(is_black)
        assert node.metrics()["eir_list_serial{list=stolen}"] == 2
        assert loaded.json("lists")[0]["serial"] == 2
        await loaded.eir_beside("rollback", "stolen")

        async def is_white():
            return await ask(client, UNLISTED) == WHITE

        await until_async(is_white)
        assert await ask(client, LISTED) == BLACK
        assert node.metrics()["eir_list_serial{list=stolen}"] == 1
        assert node.status()["pid"] == pid
        until(lambda: [line["serial"] for line in node.lines("list_in_force", list="stolen")] == ["1", "2", "1"])
        assert [event["what"] for event in loaded.json("history", "stolen")] == ["load", "load", "rollback"]

    async def test_a_refused_release_changes_nothing_and_is_a_metric(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        refused = await loaded.eir_beside("load", loaded.release([UNLISTED], serial=1), status=1)
        assert "serial" in refused.stderr
        assert await ask(client, UNLISTED) == WHITE
        until(lambda: node.metrics().get("eir_releases_total{list=stolen,outcome=refused}") == 1)
        assert node.metrics()["eir_release_last_refused_timestamp_seconds{list=stolen}"] > 1.7e9

    async def test_without_lists_it_serves_and_is_not_ready_until_they_are_there(self, site, connect):
        node = site.start()
        client = await connect(node)
        assert await ask(client, LISTED) == WHITE
        assert node.get("/live") == (200, "live\n")
        code, text = node.get("/ready")
        assert (code, "list stolen has never been loaded" in text) == (503, True)
        assert site.json("status", status=2)["state"] == "CRITICAL"
        until(lambda: [line["lists"] for line in node.lines("lists_missing")] == ["stolen,tracked"])
        await asyncio.to_thread(site.load, [LISTED], list_name="stolen")
        await asyncio.to_thread(site.load, [TRACKED], list_name="tracked")
        until(lambda: node.get("/ready") == (200, "ready\n"))
        assert await ask(client, LISTED) == BLACK
        assert site.json("status")["state"] == "OK"

    async def test_refuse_opens_no_listener_until_lists_are_there(self, site, connect):
        with socket.socket() as held:  # bound and never listening: nobody else is given the port meanwhile
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            site.configure(boot_without_lists="refuse", listen=[f"tcp://127.0.0.1:{port}"])
            node = site.start(ready=False)
            assert (node.status()["listening"], node.get("/live")[0]) == ([], 200)
            assert "not listening yet" in node.get("/ready")[1]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            await asyncio.to_thread(site.load, [LISTED], list_name="stolen")
            assert node.status()["listening"] == []
            await asyncio.to_thread(site.load, [TRACKED], list_name="tracked")
            until(lambda: node.status()["listening"])
            assert await ask(await connect(node), LISTED) == BLACK

    @pytest.mark.parametrize("rules", [[], [{"list": "stolen", "answer": "blacklisted"}]])
    async def test_refuse_takes_over_a_policy_that_needs_less_while_it_waits(self, site, connect, rules):
        site.configure(boot_without_lists="refuse")
        node = site.start(ready=False)
        site.configure(policy={"rules": rules})
        node.signal(signal.SIGHUP)
        until(lambda: node.lines("reloaded"))
        if rules:
            assert node.status()["listening"] == []
            await asyncio.to_thread(site.load, [LISTED])
        until(lambda: node.status()["listening"])
        assert await ask(await connect(node), LISTED) == (BLACK if rules else WHITE)

    async def test_refuse_ends_by_sigterm_while_it_waits(self, site):
        site.configure(boot_without_lists="refuse")
        node = site.start(ready=False)
        node.signal(signal.SIGTERM)
        assert node.wait() == 0


class TestReload:
    async def test_sighup_takes_over_policy_lists_and_peers(self, loaded, connect):
        local = ["127.0.0.0/8"]
        loaded.configure(
            peers=[
                {"name": "one", "host": HOST, "realm": REALM, "from": local},
                {"name": "two", "realm": REALM, "from": local},
            ]
        )
        node = loaded.start()
        stays, goes = await connect(node), await connect(node, OTHER_HOST)
        assert await ask(stays, TRACKED) == GREY
        loaded.configure(
            peers=[{"name": "one", "host": HOST, "realm": REALM, "from": local}],
            lists={**loaded.settings["lists"], "new": {"signers": "signers"}},
            policy={"rules": [{"list": "tracked", "answer": "blacklisted"}, {"list": "new", "answer": "greylisted"}]},
        )
        node.signal(signal.SIGHUP)
        asked = await goes.read()
        assert (asked.command, asked.is_request, asked.number(273)) == (282, True, 0)
        await goes.send(answer_to(asked, host=OTHER_HOST))
        assert await goes.end() == []
        assert await ask(stays, TRACKED) == BLACK
        assert await ask(stays, LISTED) == WHITE
        await asyncio.to_thread(loaded.load, [UNLISTED], list_name="new")

        async def is_grey():
            return await ask(stays, UNLISTED) == GREY

        await until_async(is_grey)
        refused = await connect(node, opened=False)
        assert (await refused.ask(cer(OTHER_HOST))).result == 3010
        (line,) = until(lambda: node.lines("reloaded"))
        assert "needs_restart" not in line
        assert {row["label"]: row["state"] for row in loaded.json("peers")} == {"one": "open"}

    async def test_a_bad_file_changes_nothing_and_names_the_line(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        good = loaded.path.read_text()
        loaded.path.write_text(good.replace("answer: blacklisted", "answer: blocklisted"))
        number = next(n for n, line in enumerate(loaded.path.read_text().splitlines(), 1) if "blocklisted" in line)
        refused = await loaded.eir_beside("reload", status=2)
        assert f"{loaded.path}:{number}:" in refused.stderr
        assert "blacklisted" in refused.stderr  # what was expected
        (line,) = await until_async(
            lambda: node.lines("reload_refused")
        )  # by the command, which is what `systemctl reload` runs
        assert node.metrics()["eir_config_last_reload_successful"] == 0
        node.signal(signal.SIGHUP)
        line, again = await until_async(lambda: len(found := node.lines("reload_refused")) == 2 and found)
        assert line["detail"] == again["detail"]
        assert f"eir.yaml:{number}:" in line["detail"]
        assert (line["level"], line["reason"]) == ("error", "configuration")
        await until_async(
            lambda: (
                f"the changed configuration was refused; the previous one is in force: {loaded.path}:{number}:"
                in node.status()["summary"]
            )
        )
        loaded.path.write_text(good)
        await until_async(lambda: f"{loaded.path}:{number}" not in node.status()["summary"])
        assert await ask(client, LISTED) == BLACK
        assert node.lines("reloaded") == []

    async def test_log_level_and_privacy(self, loaded, connect):
        node = loaded.start()
        loaded.configure(log={"level": "error"})
        await loaded.eir_beside("reload")
        await connect(node)
        await _changed(loaded, 2)
        await until_async(lambda: node.metrics()["eir_list_serial{list=stolen}"] == 2)
        loaded.configure(log={"level": "info"}, privacy={"identifiers": "full"})
        await loaded.eir_beside("reload")
        client = await connect(node, OTHER_HOST)
        opened = await until_async(lambda: node.lines("peer_open"))
        assert [line["host"] for line in opened] == [OTHER_HOST]
        await _changed(loaded, 3)
        await until_async(lambda: node.lines("list_in_force", serial="3"))
        assert not node.lines("list_in_force", serial="2")
        await ask(client, LISTED, OTHER_HOST)
        node.end()
        assert [line["imei"] for line in node.lines("checks")] == [LISTED]

    async def test_a_setting_that_needs_a_restart_is_reported_and_stays(self, loaded):
        node = loaded.start()
        before = node.status()
        loaded.configure(inbox="drop", http="off")
        (loaded.folder / "drop").mkdir()
        said = await loaded.eir_beside("reload")
        assert said.stdout == "reloaded; these need a restart: inbox, http\n"
        after = node.status()
        assert [before[key] for key in ("listening", "http", "pid")] == [
            after[key] for key in ("listening", "http", "pid")
        ]
        (line,) = until(lambda: node.lines("reloaded"))
        assert (line["needs_restart"], line["level"]) == ("inbox,http", "warning")

    async def test_a_reload_opens_new_listeners_and_closes_removed_ones(self, loaded, connect):
        node = loaded.start()
        client, (before,) = await connect(node), node.status()["listening"]
        loaded.configure(listen="tcp://localhost:0")
        assert (await loaded.eir_beside("reload")).stdout == "reloaded\n"
        (after,) = node.status()["listening"]
        assert after != before
        await ask(client, LISTED)  # an open connection stays
        await ask(await connect(node, OTHER_HOST), LISTED, OTHER_HOST)
        host, _, port = before.removeprefix("tcp://").rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        os.kill(children(node.pid)["answering"], signal.SIGKILL)
        await until_async(node.is_restarted)
        await ask(await connect(node), LISTED)
        assert node.status()["listening"] == [after]

    async def test_a_listener_that_cannot_be_opened_changes_nothing(self, loaded, connect):
        node = loaded.start()
        client, before = await connect(node), node.status()["listening"]
        with socket.create_server(("127.0.0.1", 0)) as busy:
            url = f"tcp://127.0.0.1:{busy.getsockname()[1]}"
            loaded.configure(listen=["tcp://localhost:0", url], policy={"default": "blacklisted"})
            with pytest.raises(EirError, match=f"cannot listen on {url}: Address already in use"):
                await asyncio.to_thread(control.ask, loaded.state, "reload")
        assert node.status()["listening"] == before
        assert (await asyncio.to_thread(node.metrics))["eir_config_last_reload_successful"] == 0
        assert node.lines("reload_refused", reason="listener")
        assert not node.lines("reloaded")
        await ask(client, LISTED)
        await ask(await connect(node, OTHER_HOST), LISTED, OTHER_HOST)
        assert (await loaded.eir_beside("reload")).stdout == "reloaded\n"  # the port is free
        assert len(node.status()["listening"]) == 2

    async def test_keys_that_wait_for_a_restart_are_named_until_they_are_in_force(self, loaded):
        """By `eir reload` each time, `eir status`, the page and a metric."""
        node = loaded.start()
        (loaded.folder / "new").mkdir()
        loaded.configure(inbox="new", log={"level": "debug"})
        for _ in range(2):
            assert (await loaded.eir_beside("reload")).stdout == "reloaded; these need a restart: inbox\n"
        trouble = "keys whose new values need a restart: inbox"
        assert trouble in (await loaded.eir_beside("status", status=1)).stdout
        status, page = await asyncio.to_thread(node.get, "/")
        assert (status, trouble in page, ">EirRestartNeeded</a>" in page) == (200, True, True)
        assert (await asyncio.to_thread(node.metrics))["eir_config_needs_restart{key=inbox}"] == 1
        loaded.configure(surplus=1)
        with pytest.raises(EirError, match="surplus"):
            control.ask(loaded.state, "reload")
        assert trouble in node.status()["troubles"]  # a refused reload changes nothing
        del loaded.settings["surplus"], loaded.settings["inbox"]
        loaded.configure()
        assert (await loaded.eir_beside("reload")).stdout == "reloaded\n"
        assert node.status()["troubles"] == []
        assert "eir_config_needs_restart{key=inbox}" not in await asyncio.to_thread(node.metrics)

    async def test_a_file_that_is_gone_changes_nothing(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        away = loaded.path.rename(loaded.folder / "away")
        node.signal(signal.SIGHUP)
        (line,) = until(lambda: node.lines("reload_refused"))
        assert "eir.yaml" in line["detail"]
        assert await ask(client, LISTED) == BLACK
        away.rename(loaded.path)

    async def test_new_names_of_ours_are_shown_on_new_connections(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        loaded.configure(identity={"host": "new.localdomain", "realm": REALM, "aliases": [EIR]})
        await loaded.eir_beside("reload")
        asked = await client.read()
        assert (asked.command, asked.number(273)) == (282, 0)  # REBOOTING: it is to come again
        await client.send(answer_to(asked))
        assert await client.end() == []
        client = await connect(node, opened=False)
        assert (await client.open()).data(264) == b"new.localdomain"
        assert await ask(client, LISTED, extra=avp(293, EIR)) == BLACK

    async def test_a_peer_is_taken_out_of_service_and_back_by_command(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        await loaded.eir_beside("peer", "disable", "mme")
        asked = await client.read()
        assert (asked.command, asked.number(273)) == (282, 0)
        await client.send(answer_to(asked))
        assert await client.end() == []
        refused = await connect(node, opened=False)
        assert (await refused.ask(cer())).result == 3010
        assert loaded.json("peers")[0]["state"] == "disabled"
        await loaded.eir_beside("peer", "enable", "mme")
        assert await ask(await connect(node), LISTED) == BLACK
        unknown = await loaded.eir_beside("peer", "disable", "nobody", status=1)
        assert "nobody" in unknown.stderr


class TestEnd:
    async def test_sigterm_sends_each_peer_a_dpr_and_answers_until_it_closes(self, loaded, connect):
        node = loaded.start()
        host, port = node.address
        clients = {name: await connect(node, name) for name in (HOST, OTHER_HOST)}
        node.signal(signal.SIGTERM)
        for name, client in clients.items():
            asked = await client.read()
            assert (asked.command, asked.is_request, asked.number(273)) == (282, True, 0)  # REBOOTING
            assert await ask(client, LISTED, name) == BLACK
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(host, port)
            await client.send(answer_to(asked, host=name))
            assert await client.end() == []
        assert await asyncio.to_thread(node.wait) == 0
        assert [line["reason"] for line in node.lines("stopping")] == ["SIGTERM"]
        assert node.text().splitlines()[-1].endswith("event=stopped")

    async def test_a_peer_that_never_answers_the_dpr_holds_nothing_up(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        node.signal(signal.SIGINT)
        assert await asyncio.to_thread(node.wait) == 0
        assert [m.command for m in await client.end()] == [282]

    async def test_signals_that_come_while_it_ends_change_nothing(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        node.signal(signal.SIGTERM)
        asked = await client.read()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            node.signal(number)
        assert await ask(client, LISTED) == BLACK
        await client.send(answer_to(asked))
        assert await client.end() == []
        assert await asyncio.to_thread(node.wait) == 0

    async def test_drain_by_command(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        assert (await loaded.eir_beside("drain")).stdout.startswith("draining")
        await client.send(answer_to(await client.read()))
        assert await client.end() == []
        assert await asyncio.to_thread(node.wait) == 0

    async def test_a_peer_disconnects(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        assert (await client.ask(dwr())).result == 2001
        assert (await client.ask(dpr())).result == 2001
        assert await ask(client, LISTED) == BLACK  # RFC 6733 5.4: until the transport closes
        await client.close()
        until(lambda: node.status()["peers"] == {"mme": 0})

    def test_nothing_is_left_behind(self, loaded):
        node = loaded.start()
        node.end()
        assert not {"control.sock", "lists.sqlite-wal", "lists.sqlite-shm"} & {
            path.name for path in loaded.state.iterdir()
        }
        assert loaded.eir("status", status=2).stdout.startswith("EIR CRITICAL - no node runs")


class TestStart:
    async def test_several_listeners_and_ipv6(self, loaded):
        loaded.configure(
            listen=["tcp://[::1]:0", "tcp://127.0.0.1:0"], http="[::1]:0", peers=[{"name": "mme", "realm": REALM}]
        )
        node = loaded.start()
        listening = [url.removeprefix("tcp://") for url in node.status()["listening"]]
        assert [address.rpartition(":")[0] for address in listening] == ["[::1]", "127.0.0.1"]
        for target in (*listening, f"localhost:{listening[1].rpartition(':')[2]}"):
            assert loaded.json("probe", f"s13://{target}?origin_realm={REALM}", LISTED)[0]["status"] == "blacklisted"
        assert node.get("/ready")[0] == 200

    async def test_without_a_descriptor_left_those_who_are_there_are_answered(self, loaded, connect):
        node = loaded.start()
        client, address = await connect(node), node.address
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (40, 40))
        crowd = [await asyncio.open_connection(*address) for _ in range(100)]
        assert [await ask(client, imei) for imei in (LISTED, UNLISTED)] == [BLACK, WHITE]
        for _, writer in crowd:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

        async def is_taken_again():
            with suppress(OSError, asyncio.IncompleteReadError, ControlError):
                return await connect(node, OTHER_HOST)

        assert await ask(await until_async(is_taken_again), LISTED, OTHER_HOST) == BLACK

    def test_a_second_node_on_the_same_state_folder_is_refused(self, loaded):
        node = loaded.start()
        second = loaded.eir("serve", status=1)
        assert f"a node already runs on the state folder {loaded.state}" in second.stderr
        assert node.status()["ready"] == "ready"

    def test_a_node_that_was_killed_leaves_nothing_in_the_way(self, loaded):
        node = loaded.start()
        node.process.kill()
        assert node.wait() == -signal.SIGKILL
        assert loaded.start().status()["ready"] == "ready"

    @pytest.mark.parametrize("what", ["listen", "http"])
    def test_a_port_that_is_taken(self, loaded, what):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            loaded.configure(**({"listen": [f"tcp://{address}"]} if what == "listen" else {"http": address}))
            done = loaded.eir("serve", status=1)
        assert address in done.stderr
        assert "in use" in done.stderr

    def test_an_address_that_is_not_ours(self, loaded):
        loaded.configure(listen=["tcp://203.0.113.7:3868"])
        done = loaded.eir("serve", status=1)
        assert "cannot listen on tcp://203.0.113.7:3868" in done.stderr
        assert "no interface of this host has that address" in done.stderr

    @pytest.mark.long(short=["listen"])
    @pytest.mark.parametrize("what", ["listen", "http"])
    def test_a_port_below_1024_without_the_privilege_for_it(self, loaded, what):
        if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024:
            pytest.skip("everyone may take such a port here")
        address = "127.0.0.1:868"
        loaded.configure(**({"http": address} if what == "http" else {"listen": [f"tcp://{address}"]}))
        # Root's commands get what is in the bounding set.
        without = ["setpriv", "--bounding-set", "-net_bind_service"] if os.geteuid() == 0 else []
        done = loaded.eir("serve", status=1, prefix=without)
        assert address in done.stderr
        assert (
            "a port below 1024 requires the capability CAP_NET_BIND_SERVICE; grant it, or choose another port"
            in done.stderr
        )

    def test_a_state_folder_that_cannot_be_made(self, loaded):
        (loaded.folder / "file").write_text("")
        loaded.configure(state="file/var")
        done = loaded.eir("serve", status=2)
        assert f"the state folder {loaded.folder}/file/var (`state`) cannot be created" in done.stderr

    def test_a_configuration_with_errors_starts_nothing(self, loaded):
        loaded.configure(listen=["udp://127.0.0.1:0"], surplus=1)
        done = loaded.eir("serve", status=2)
        assert done.stderr.count(str(loaded.path)) == 2
        assert not (loaded.state / "control.sock").exists()


NAMES = (
    "eir_checks_total", "eir_observed_total", "eir_identity_errors_total", "eir_check_duration_seconds",
    "eir_diameter_messages_total", "eir_diameter_answers_total", "eir_diameter_errors_total", "eir_peer_up",
    "eir_peer_last_request_timestamp_seconds", "eir_peers_refused_total", "eir_shed_total", "eir_list_entries",
    "eir_list_serial", "eir_list_issued_timestamp_seconds", "eir_list_expires_timestamp_seconds",
    "eir_release_last_refused_timestamp_seconds", "eir_release_last_forced_timestamp_seconds", "eir_releases_total", "eir_store_up", "eir_store_errors_total", "eir_store_lost_data",
    "eir_follow_lag_seconds", "eir_override_active", "eir_process_restarts_total", "eir_build_info",
)  # fmt: skip
"""What dashboards are built against."""


def promtool(text):
    return subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)


class TestShown:
    async def test_every_metric_is_there_from_the_start_and_promtool_has_no_objection(self, site):
        node = site.start()
        text = node.get("/metrics")[1]
        assert {name for name in NAMES if f"# TYPE {name} " not in text} == set()
        assert 'eir_peer_up{peer="mme"} 0.0' in text
        checked = promtool(text)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

    async def test_metrics_count_the_events(self, loaded, connect):
        loaded.configure(policy=loaded.settings["policy"] | {"bad_identity": "error"})
        node = loaded.start()
        client = await connect(node)
        for imei in (LISTED, LISTED, TRACKED, UNLISTED, None, "x"):
            await ask(client, imei)
        await client.ask(message(999, avp(264, HOST) + avp(296, REALM)))
        stranger = await connect(node, opened=False)
        assert (await stranger.ask(cer("a.stranger", "a.strange.land"))).result == 3010
        found = node.metrics()
        expected = {
            "eir_checks_total{list=stolen,protocol=s13,rule=1,status=blacklisted}": 2,
            "eir_checks_total{list=tracked,protocol=s13,rule=2,status=greylisted}": 1,
            "eir_checks_total{list=,protocol=s13,rule=default,status=whitelisted}": 1,
            "eir_checks_total{list=,protocol=s13,rule=no_identity,status=whitelisted}": 1,
            "eir_identity_errors_total{kind=none,peer=mme}": 1,
            "eir_identity_errors_total{kind=bad,peer=mme}": 1,
            "eir_diameter_messages_total{command=ME-Identity-Check,direction=in,kind=request,peer=mme}": 6,
            "eir_diameter_answers_total{peer=mme,result=5004}": 1,
            "eir_diameter_answers_total{peer=mme,result=3001}": 1,
            "eir_peers_refused_total{reason=unknown_peer}": 1,
            "eir_peer_up{peer=mme}": 1,
            "eir_list_entries{list=stolen}": 1,
            "eir_list_serial{list=tracked}": 1,
            "eir_store_up": 1,
            "eir_store_lost_data{list=stolen}": 0,
            "eir_override_active": 0,
        }
        shown = {name: found.get(name) for name in expected}
        assert shown == expected, sorted(found)
        assert found["eir_check_duration_seconds_count"] >= 6
        assert (
            found["eir_list_expires_timestamp_seconds{list=stolen}"]
            > found["eir_list_issued_timestamp_seconds{list=stolen}"]
        )
        assert 0 <= found["eir_follow_lag_seconds"] < 60
        # Nothing that comes from the wire and is not in the dictionary becomes a label.
        assert not any("999" in name or "strange" in name for name in found)

    async def test_status_exit_codes_and_document(self, loaded, connect):
        node = loaded.start()
        await connect(node)
        done = loaded.eir("status")
        assert re.fullmatch(r"EIR OK - 2 lists, 2 entries, 1 connections, 0 checks\n", done.stdout)
        document = loaded.json("status")
        for found in document["lists"].values():
            assert re.fullmatch("[0-9a-f]{64}", found.pop("digest"))
            found["expires"] = None
        assert document | {"version": None, "lane": None, "pid": None, "uptime_s": None, "tasks": None, "listening": None, "http": None} == {
            "state": "OK", "code": 0, "summary": "2 lists, 2 entries, 1 connections, 0 checks", "troubles": [], "ready": "ready", "version": None, "lane": None,
            "pid": None, "uptime_s": None, "tasks": None, "listening": None, "http": None,
            "lists": {key: {"serial": 1, "generation": 1, "entries": 1, "expires": None} for key in ("stolen", "tracked")},
            "peers": {"mme": 1}, "checks": 0,
        }  # fmt: skip
        loaded.configure(policy=loaded.settings["policy"] | {"override": {"answer": "whitelisted"}})
        loaded.eir("reload")
        assert "override" in loaded.eir("status", status=1).stdout
        node.end()
        assert loaded.json("status", status=2)["code"] == 2

    def test_an_expired_list_is_critical_and_stays_in_force(self, loaded):
        issued = datetime.now(UTC).replace(microsecond=0)
        loaded.load([LISTED], serial=2, issued=issued, expires_in=timedelta(seconds=2), now=issued)
        until(lambda: datetime.now(UTC) > issued + timedelta(seconds=2))
        node = loaded.start()
        assert "list stolen is past its expiry" in loaded.eir("status", status=2).stdout
        until(lambda: node.lines("list_expired", list="stolen"))
        assert loaded.json("check", LISTED)["status"] == "blacklisted"

    async def test_peers(self, loaded, connect):
        loaded.configure(
            peers=[*loaded.settings["peers"], {"name": "absent", "host": "mme9.example.org", "realm": "example.org"}]
        )
        node = loaded.start()
        client = await connect(node)
        await ask(client, LISTED)
        there, absent = loaded.json("peers")
        assert {name: there[name] for name in ("label", "host", "realm", "state", "watchdog", "requests", "answers")} == {
            "label": "mme", "host": HOST, "realm": REALM, "state": "open", "watchdog": "okay", "requests": 1, "answers": 1,
        }  # fmt: skip
        assert there["address"] == "{}:{}".format(*client.writer.get_extra_info("sockname"))
        assert (absent["label"], absent["state"], absent["address"]) == ("absent", "down", None)
        assert absent["protocol"] is None
        shown = loaded.eir("peers").stdout
        assert HOST in shown
        assert "mme9.example.org" in shown


SIGNALS_ITSELF = """
import importlib, os, signal, sys

where, _, attribute = "{where}".partition(":")
owner, _, name = attribute.partition(".")

class Hook:
    @staticmethod
    def find_spec(module, *_):
        if "serve" not in sys.argv:
            return
        if module == "{where}":
            os.kill(os.getpid(), signal.{which})
        if module == "eir.node.processes.manager" and attribute:  # by then the other modules are there
            held = getattr(importlib.import_module(where), owner)
            known = getattr(held, name)
            def kill(*arguments, **options):
                os.kill(os.getpid(), signal.{which})
                setattr(held, name, known)
                return known(*arguments, **options)
            setattr(held, name, kill)

sys.meta_path.insert(0, Hook)
"""
"""Body of a sitecustomize.py by which a node signals itself, once."""
MOMENTS = {
    "commands": "eir.cli.app", "configuration": "yaml", "node": "eir.node.processes.manager", "processes": "eir.node.processes.others:OtherProcesses.start",
    "pages": "eir.node.observe.control:ControlServer.listen",
}  # fmt: skip
"""What it is about to read, or to do, when the signal comes."""


@pytest.mark.parametrize("moment", MOMENTS)
class TestSignalsInTheFirstMoments:
    @pytest.fixture
    def signalled(self, altered, moment):
        """Have the next node signal itself at that moment."""

        def by(which):
            altered(SIGNALS_ITSELF.format(which=which, where=MOMENTS[moment]))

        return by

    @pytest.mark.long(short=["SIGTERM-before0-processes"])
    @pytest.mark.parametrize(("which", "before"), [("SIGTERM", ()), ("SIGINT", ("-c", "eir.yaml"))])
    def test_it_ends_as_one_that_has_started(self, loaded, signalled, which, before):
        signalled(which)
        said = loaded.eir(*before, "serve").stderr
        assert [fields(line)["event"] for line in said.splitlines()][-1] == "stopped"
        assert "event=ready" not in said
        assert "error" not in said

    @pytest.mark.long(short=["processes"])
    def test_a_reload_is_none_the_worse(self, loaded, signalled):
        signalled("SIGHUP")
        node = loaded.start()
        until(lambda: node.lines("reloaded"))
        until(lambda: node.lines("ready"))


class TestLargePages:
    """The heap is asked for in large pages, before anything is in it."""

    @pytest.mark.long(short=["None"])
    @pytest.mark.parametrize("set_before", [None, "glibc.malloc.perturb=0"])
    def test_the_environment_of_the_node(self, site, monkeypatch, set_before):
        if set_before is not None:
            monkeypatch.setenv(TUNABLES, set_before)
        node = site.start(prefix=["env", *(["-u", TUNABLES] if set_before is None else [])])
        found = dict(
            entry.split("=", 1) for entry in Path(f"/proc/{node.pid}/environ").read_text().split("\0") if entry
        )
        assert found[TUNABLES] == (set_before or LARGE_PAGES)


class TestLogs:
    @pytest.mark.parametrize("privacy", ["short", "full"])
    async def test_a_normal_check_leaves_no_line_and_blocked_ones_are_folded(self, loaded, connect, privacy):
        loaded.configure(privacy={"identifiers": privacy})
        node = loaded.start()
        client = await connect(node)
        start = Counter(list_in_force=2, listening=2, ready=1, peer_open=1)
        until(
            lambda: start <= Counter(line["event"] for line in node.lines())
        )  # each process writes its own lines, sooner or later
        before = len(node.lines())
        for _ in range(50):
            await ask(client, UNLISTED)
        for _ in range(30):
            await ask(client, LISTED)
        node.end()
        told = node.lines("checks")
        assert len(node.lines()) - before <= len(told) + 4, node.text()  # those of the end
        assert sum(int(line["count"]) for line in told) == 30
        assert len(told) <= 2  # a fold may have come between
        shown = ("35209900…48", "00101…89") if privacy == "short" else (LISTED, IMSI)
        for line in told:
            assert (line["status"], line["list"], line["rule"], line["peer"], line["host"]) == (
                "blacklisted",
                "stolen",
                "1",
                "mme",
                HOST,
            )
            assert (line["imei"], line["imsi"]) == shown
        whole = [text for text in (LISTED, IMSI, UNLISTED) if text in node.text()]
        assert whole == ([] if privacy == "short" else [LISTED, IMSI])

    async def test_a_flood_of_bad_messages_leaves_few_lines_and_a_count(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        bad = ecr(drop=("state",))
        flood = 2000
        await client.send(*[bad] * flood)
        for _ in range(flood):
            assert (await client.read()).result == 5005
        reasons = until(lambda: {line["reason"] for line in node.lines() if line.get("reason")})
        assert len(reasons) == 1
        lines = node.lines(reason=reasons.pop())
        assert 1 <= len(lines) <= 7
        assert (
            sum(value for name, value in node.metrics().items() if name.startswith("eir_diameter_errors_total"))
            == flood
        )

    async def test_a_refused_peer_is_logged_with_the_setting_that_would_accept_it(self, loaded, connect):
        node = loaded.start()
        refused = await connect(node, opened=False)
        foreign = avp(258, (16777251).to_bytes(4))
        assert (await refused.ask(cer(app=foreign))).result == 5010
        await until_async(lambda: any("lenient" in line.get("setting", "") for line in node.lines()))


class TestOverrideAndObserve:
    @pytest.mark.long
    async def test_an_override_answers_all_alike_and_ends_by_itself(self, loaded, connect):
        policy = loaded.settings["policy"]

        def override(**lasts):
            until = datetime.now(UTC) + timedelta(**lasts)
            loaded.configure(policy=policy | {"override": {"answer": "whitelisted", "until": until.isoformat()}})

        override(days=1)
        node = loaded.start()
        client = await connect(node)
        assert [await ask(client, imei) for imei in (LISTED, TRACKED, UNLISTED, None, "x")] == [WHITE] * 5
        assert node.metrics()["eir_override_active"] == 1
        until(lambda: node.lines("override", level="warning"))
        override(seconds=2)
        await loaded.eir_beside("reload")

        async def ended():
            return await ask(client, LISTED) == BLACK

        await until_async(ended)
        until(lambda: node.metrics()["eir_override_active"] == 0)
        until(lambda: node.lines("override_ended"))
        assert loaded.json("status")["state"] == "OK"

    async def test_an_override_is_pulled_and_let_go_by_reload(self, loaded, connect):
        node = loaded.start()
        client = await connect(node)
        policy = loaded.settings["policy"]
        loaded.configure(policy=policy | {"override": {"answer": "greylisted"}})
        await loaded.eir_beside("reload")
        assert [await ask(client, imei) for imei in (LISTED, UNLISTED)] == [GREY, GREY]
        loaded.configure(policy=policy)
        await loaded.eir_beside("reload")
        assert [await ask(client, imei) for imei in (LISTED, UNLISTED)] == [BLACK, WHITE]

    async def test_an_observed_rule_is_counted_and_logged_and_blocks_nobody(self, loaded, connect):
        loaded.configure(policy={"rules": [{"list": "stolen", "answer": "blacklisted", "observe": True}]})
        node = loaded.start()
        client = await connect(node)
        assert [await ask(client, imei) for imei in (LISTED, LISTED, UNLISTED)] == [WHITE] * 3
        found = node.metrics()
        assert found["eir_observed_total{rule=1,status=blacklisted}"] == 2
        assert found["eir_checks_total{list=,protocol=s13,rule=default,status=whitelisted}"] == 3
        assert "no rule uses the list 'tracked'" in until(lambda: node.lines("config_warning"))[0]["detail"]
        node.end()
        assert sum(int(line["count"]) for line in node.lines("observed", rule=1, status="blacklisted")) == 2
