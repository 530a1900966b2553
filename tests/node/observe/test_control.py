"""The control socket: one line asked, one answered; who may open it, and what it does with what is no request."""

import asyncio
import errno
import json
import os
import socket
import stat
import threading

import pytest
from simulated.node import until_async
from simulated.patience import PATIENCE_S

from eir.checks.question import Question
from eir.errors import EirError, silent
from eir.node.observe import control
from eir.node.observe.control import SOCKET_NAME, ControlError, ControlServer, ask, asker
from eir.node.observe.log import call_failed


async def refuse(_):
    await asyncio.sleep(0)
    raise EirError("no such peer")


def cannot(_):
    raise PermissionError(errno.EACCES, "Permission denied", "eir.yaml")


def fail(_):
    return 1 / 0


COMMANDS = {
    "ping": lambda _: "pong", "echo": lambda asked: asked, "refuse": refuse, "nothing": lambda _: None, "cannot": cannot, "fail": fail,
    "who": lambda _: asker(),
}  # fmt: skip
ACCEPTS = {"echo": {"name": str, "number": int | None, "sure": bool | None}}
TOLD = []
"""Events that the server reported, with their reasons."""


@pytest.fixture
async def server(tmp_path):
    made = ControlServer(
        tmp_path, COMMANDS, accepts=ACCEPTS, report=lambda event, **fields: TOLD.append((event, fields["reason"]))
    )
    TOLD.clear()
    await made.listen()
    yield made
    await made.close()


async def raw(folder, octets, *, eof=True):
    reader, writer = await asyncio.open_unix_connection(folder / SOCKET_NAME)
    writer.write(octets)
    if eof:
        writer.write_eof()
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


@pytest.mark.usefixtures("server")
class TestAsking:
    async def test_commands(self, tmp_path):
        assert await asyncio.to_thread(ask, tmp_path, "ping") == "pong"
        assert await asyncio.to_thread(ask, tmp_path, "echo", name="mme", number=3) == {"name": "mme", "number": 3}
        assert await asyncio.to_thread(ask, tmp_path, "echo", name="mme", sure=True) == {"name": "mme", "sure": True}
        assert await asyncio.to_thread(ask, tmp_path, "nothing") is None

    @pytest.mark.parametrize(
        ("command", "says"),
        [
            ("refuse", "no such peer"),
            ("unheard", f"there are: {', '.join(COMMANDS)}"),
            ("cannot", "Permission denied: 'eir.yaml'"),
        ],
    )
    async def test_a_no_comes_as_an_error_with_its_reason(self, tmp_path, command, says):
        with pytest.raises(ControlError, match=says):
            await asyncio.to_thread(ask, tmp_path, command)

    async def test_a_command_that_fails_is_reported_and_costs_nothing_else(self, tmp_path):
        with pytest.raises(ControlError, match=r"fail failed \(ZeroDivisionError\); see event=fault in the log"):
            await asyncio.to_thread(ask, tmp_path, "fail")
        assert TOLD == [("fault", "fail")]
        assert await asyncio.to_thread(ask, tmp_path, "ping") == "pong"

    async def test_a_user_is_looked_up_only_where_the_name_matters_and_never_on_the_loop(self, tmp_path, monkeypatch):
        looked_up = []
        monkeypatch.setattr(control.pwd, "getpwuid", lambda uid: looked_up.append((uid, threading.current_thread())))
        assert await asyncio.to_thread(ask, tmp_path, "ping") == "pong"
        assert looked_up == []
        with pytest.raises(ControlError):
            await asyncio.to_thread(ask, tmp_path, "who")
        ((uid, thread),) = looked_up
        assert uid == os.geteuid()
        assert thread is not threading.current_thread()

    @pytest.mark.parametrize(
        "octets",
        [
            b"{}\n",
            b"[]\n",
            b"7\n",
            b"{\n",
            b"\xff\xfe\n",
            b"\n",
            b'{"command": []}\n',
            b'{"command": {}}\n',
            b"null\n",
            pytest.param(b"[" * 60_000 + b"\n", id="nested"),
        ],
    )
    async def test_a_request_that_is_no_command_gets_an_error(self, tmp_path, octets):
        answer = json.loads(await raw(tmp_path, octets))
        assert answer["ok"] is False
        assert "there are:" in answer["error"]

    @pytest.mark.parametrize(
        ("request_line", "says"),
        [
            (b'{"command": "ping", "name": "mme"}\n', "ping takes no argument; found: name"),
            (b'{"command": "echo"}\n', "echo needs name (str)"),
            (b'{"command": "echo", "name": null}\n', "echo needs name (str)"),
            (b'{"command": "echo", "name": ["mme"]}\n', "echo needs name (str)"),
            (b'{"command": "echo", "name": "mme", "number": "3"}\n', "echo needs number (int | None)"),
            (b'{"command": "echo", "name": "mme", "number": true}\n', "echo needs number (int | None)"),
            (b'{"command": "echo", "name": "mme", "other": 1}\n', "echo takes name, number, sure; found: other"),
            (b'{"command": "echo", "name": "mme", "sure": 1}\n', "echo needs sure (bool | None)"),
            (b'{"command": "echo", "name": "\\ud800"}\n', "no such command; there are:"),
        ],
    )
    async def test_arguments_that_the_command_does_not_accept_are_an_answer_and_no_line_of_the_log(
        self, tmp_path, request_line, says
    ):
        answer = json.loads(await raw(tmp_path, request_line))
        assert (answer["ok"], answer["error"][: len(says)]) == (False, says)
        assert TOLD == []

    async def test_a_line_without_end_is_bounded(self, tmp_path):
        assert await raw(tmp_path, b"x" * 10_000_000) == b""
        assert await asyncio.to_thread(ask, tmp_path, "ping") == "pong"

    async def test_many_at_once(self, tmp_path):
        asked = (asyncio.to_thread(ask, tmp_path, "echo", name="mme", number=n) for n in range(50))
        assert [found["number"] for found in await asyncio.gather(*asked)] == list(range(50))

    async def test_the_group_may_use_it_and_nobody_else(self, tmp_path):
        mode = (tmp_path / SOCKET_NAME).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660


async def test_a_silent_client_is_dropped(tmp_path):
    server = ControlServer(tmp_path, COMMANDS, report=silent, timeout_s=0.05)
    await server.listen()
    assert await raw(tmp_path, b'{"command"', eof=False) == b""
    await server.close()


async def test_no_identifier_that_was_asked_about_comes_into_the_log_with_a_fault(tmp_path):
    told = []
    server = ControlServer(
        tmp_path,
        {"check": lambda asked: {}[asked["imei"]]},
        accepts={"check": {"imei": str}},
        report=lambda _, **fields: told.append(fields["detail"]),
    )
    await server.listen()
    with pytest.raises(ControlError):
        await asyncio.to_thread(ask, tmp_path, "check", imei="00101001000001")
    call_failed(lambda _, **fields: told.append(fields["detail"]))("explain", ValueError("00101001000001"))
    assert "KeyError at " in told[0]
    assert not [detail for detail in told if "00101001000001" in detail]
    await server.close()


async def test_who_holds_connections_open_keeps_nobody_out_and_takes_no_more_files(tmp_path):
    server = ControlServer(tmp_path, COMMANDS, report=silent, timeout_s=3600, links_max=3)
    await server.listen()
    held = await asyncio.gather(*(asyncio.open_unix_connection(tmp_path / SOCKET_NAME) for _ in range(30)))
    assert await asyncio.to_thread(ask, tmp_path, "ping") == "pong"
    await until_async(lambda: sum(reader.at_eof() or reader.exception() is not None for reader, _ in held) >= 27)
    for _, writer in held:
        writer.transport.abort()
    await server.close()


async def test_a_node_that_does_not_answer_is_named(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / SOCKET_NAME))
        silent.listen()
        with pytest.raises(ControlError, match="does not answer"):
            await asyncio.to_thread(ask, tmp_path, "ping", timeout_s=0.05)


async def test_a_socket_that_a_killed_node_left_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET_NAME))
    server = ControlServer(tmp_path, COMMANDS, report=silent)
    await server.listen()
    assert await asyncio.to_thread(ask, tmp_path, "ping") == "pong"
    await server.close()
    assert not (tmp_path / SOCKET_NAME).exists()


def test_no_node(tmp_path):
    with pytest.raises(ControlError, match=r"no node runs .* \(start one: eir serve\)"):
        ask(tmp_path, "ping")
    with pytest.raises(ControlError, match="no node runs"):
        ask(tmp_path / "nowhere", "ping")


async def test_a_folder_with_a_very_long_name(tmp_path):
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    server = ControlServer(folder, COMMANDS, report=silent)
    await server.listen()
    assert await asyncio.to_thread(ask, folder, "ping") == "pong"
    await server.close()


@pytest.mark.skipif(os.getuid() == 0, reason="root may open any socket")
def test_a_socket_that_one_may_not_open(tmp_path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / SOCKET_NAME))
        other.listen()
        (tmp_path / SOCKET_NAME).chmod(0)
        with pytest.raises(ControlError, match="does not answer"):
            ask(tmp_path, "ping")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder to any group")
async def test_a_socket_of_another_name_is_of_its_folders_group(tmp_path):
    os.chown(tmp_path, -1, 65533)
    server = ControlServer(tmp_path, {}, name="look", report=silent)
    await server.listen()
    assert os.stat(tmp_path / "look").st_gid == 65533  # noqa: PTH116 - as it stands there
    await server.close()


ODD = (None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", "x", "\0", "\ud800", "9" * 300, "é\n", "2026-99-99", [], [None], ["\0"], ["check", "\0"], {}, {"a": []})  # fmt: skip


async def test_no_malformed_request_is_an_error_in_the_log_of_a_node(site):
    """Every command, with every argument set to every odd value; and with arguments that it does not have."""
    site.configure(control_read="read/look.sock")
    (site.folder / "read").mkdir()
    site.load(["35209900176148"])
    site.load(["35332811002233"], list_name="tracked")
    node = await asyncio.to_thread(site.start)
    front = {
        "ping": (), "status": (), "lists": (), "peers": (), "record": (), "history": ("list", "limit", "since"), "forget": ("subscribers",),
        "check": Question._fields, "trace": ("imei", "imsi", "lasts_s", "reason"), "trace_read": ("number",), "trace_end": ("number",),
        "peer_disable": ("name",), "peer_enable": ("name",),
    }  # fmt: skip
    good = {
        "check": {"imei": "35209900176148"}, "trace": {"imei": "35209900176148", "lasts_s": 1, "reason": "test"}, "forget": {"subscribers": []},
        "peer_disable": {"name": "mme"}, "peer_enable": {"name": "mme"},
    }  # fmt: skip
    requests = [
        (site.state, SOCKET_NAME, {"command": command, **good.get(command, {}), name: value})
        for command, names in front.items()
        for name in (*names, "surplus")
        for value in ODD
    ]
    requests += [(site.state, SOCKET_NAME, {"command": command}) for command in front]
    requests += [(site.folder / "read", "look.sock", {"command": "run", "arguments": value}) for value in ODD]
    for folder, socket_name, asked in requests:
        reader, writer = await asyncio.open_unix_connection(folder / socket_name)
        writer.write(json.dumps(asked).encode() + b"\n")
        assert "ok" in json.loads(await reader.read()), asked
        writer.close()
    await asyncio.to_thread(node.end)
    assert [line for line in node.lines() if line["level"] == "error"] == []
