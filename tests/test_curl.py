"""curl as HTTP client: no secret in the list of processes, no other protocol, no other authority, an end with its reader."""

import asyncio
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from simulated.certificates import Authority
from simulated.node import children, is_gone, until_async
from simulated.web_folder import Web, tls

from eir import curl
from eir.curl import Trust, Unreached
from eir.errors import SetupFault

SECRET = "secret-4711"
WITHIN_S = 20.0


@pytest.fixture
def web(tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(b"x" * 100_000)
    with Web(tmp_path / "www") as made:
        yield made


def shown(pid):
    """Arguments and environment of a process, as others see them."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


def authorities(folder, *files):
    """A folder of authorities, as a host has it."""
    folder.mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    subprocess.run(["openssl", "rehash", folder], check=True)
    return str(folder)


async def fetched(url, **how):
    async with curl.request(url, **{"within_s": WITHIN_S} | how) as response:
        return response.status, b"".join([piece async for piece in response.body])


def program(folder, line, monkeypatch):
    """Put a program named curl before all others."""
    folder.mkdir()
    file = folder / "curl"
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_a_body_comes_as_it_is_and_no_secret_is_in_the_list_of_processes(web, tmp_path):
    (tmp_path / "token").write_text(f"{SECRET}\n")
    web.fault = "stall"
    web.folder.joinpath(f"{SECRET}.csv.zst").write_bytes(b"y" * 10)
    lines = []

    async def look():
        pid = await until_async(lambda: web.asked and children(os.getpid()).get("curl"))
        lines.append(shown(pid))
        web.over.set()

    looking = asyncio.create_task(look())
    body = f'{{"event": "{SECRET} \\\\ \\" \\t"}}\n'.encode()
    with pytest.raises(Unreached):
        await fetched(f"{web.url}{SECRET}.csv.zst", trust=Trust(token=tmp_path / "token"), headers={"X": SECRET})
    await looking
    assert SECRET.encode() not in lines[0]
    web.fault, web.methods = None, ("POST",)
    assert await fetched(f"{web.url}a?b", method="POST", body=body) == (201, b"")
    assert web.given == {"a?b": body}
    assert await fetched(f"{web.url}file") == (200, b"x" * 100_000)


@pytest.mark.parametrize("token", ["two\nlines", "\x00", "ä"])
async def test_a_token_that_would_add_a_header_is_not_sent(web, tmp_path, token):
    (tmp_path / "token").write_text(token)
    with pytest.raises(Unreached) as caught:
        await fetched(f"{web.url}file", trust=Trust(token=tmp_path / "token"))
    assert (caught.value.reason, web.asked) == ("setup", [])


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1:9/x", "gopher://127.0.0.1:9/x"])
async def test_only_http_and_https_are_spoken(url):
    with pytest.raises(Unreached, match=r"[Pp]rotocol .* disabled"):
        await fetched(url)


async def test_the_files_of_the_user_have_no_effect(web, tmp_path, monkeypatch):
    (tmp_path / ".curlrc").write_text('url = "http://127.0.0.1:9/"\nfail\nuser = "a:b"\n')
    (tmp_path / ".netrc").write_text("machine localhost login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    assert await fetched(f"{web.url}file") == (200, b"x" * 100_000)


async def test_with_an_authority_of_its_own_a_source_has_no_other(tmp_path, monkeypatch):
    ours, hosts = Authority(tmp_path / "ours"), Authority(tmp_path / "hosts")
    monkeypatch.setenv("SSL_CERT_FILE", str(hosts.pem))
    monkeypatch.setenv("SSL_CERT_DIR", authorities(tmp_path / "authorities", hosts.pem))
    (tmp_path / "www").mkdir()
    with Web(tmp_path / "www", context=tls(hosts, "localhost")) as web:
        assert (await fetched(web.url))[0] == 404
        with pytest.raises(Unreached) as caught:
            await fetched(web.url, trust=Trust(ca=ours.pem))
    assert caught.value.reason == "certificate"


async def test_a_proxy_is_asked_for_https_and_never_for_http(web, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    assert (await fetched(f"{web.url}file"))[0] == 200
    monkeypatch.setenv("https_proxy", web.url)
    with pytest.raises(Unreached) as caught:
        await fetched("https://register.example/x")
    assert caught.value.reason == "connection"
    assert "proxy" in caught.value.fault or "CONNECT" in caught.value.fault


ASKS = """
import asyncio, sys
from eir import curl
async def ask():
    async with curl.request(sys.argv[1], within_s=600) as response:
        print(response.status, flush=True)
        async for _ in response.body:
            pass
asyncio.run(ask())
"""


async def test_curl_ends_with_its_reader(web):
    """Also with one that was killed: nothing goes on to write to a file that the next process writes."""
    web.fault = "endless"
    asking = await asyncio.create_subprocess_exec(sys.executable, "-c", ASKS, f"{web.url}file", stdout=subprocess.PIPE)
    assert await asking.stdout.readline() == b"200\n"
    pid = children(asking.pid)["curl"]
    asking.kill()
    await asking.communicate()
    await until_async(lambda: is_gone(pid))


async def test_an_answer_has_its_time(web, monkeypatch):
    web.fault = "drip"
    with pytest.raises(Unreached, match=r"no answer within 0\.3 s|timed out"):
        await fetched(web.url, within_s=0.3)
    monkeypatch.setattr(curl, "ANSWER_S", 0.3)
    began = time.monotonic()
    with pytest.raises(Unreached, match=r"no answer within 0\.3 s") as caught:
        await fetched(web.url)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - began < WITHIN_S


async def test_a_head_that_is_cut_off_is_no_answer(tmp_path, monkeypatch):
    """curl prints the status line, then the connection is lost. The receiver of a webhook has not answered."""
    program(
        tmp_path / "bin",
        r"printf 'HTTP/1.1 200 OK\r\nServer: x\r\n'; echo 'curl: (56) reset' >&2; exit 56",
        monkeypatch,
    )
    with pytest.raises(Unreached, match="reset"):
        async with curl.request("http://127.0.0.1:9/x", within_s=WITHIN_S):
            pass


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("echo 'curl 7.61.1 (x86_64) libcurl/7.61.1'; echo 'Release-Date: 2018-09-05'; echo 'Protocols: http https'", "curl 7.61.1"),
        ("echo 'curl 8.14.1 (x86_64)'; echo 'Protocols: file http'", "curl 8.14.1"), ("exit 2", "another program"), (None, "cannot be run"),
    ],
)  # fmt: skip
def test_a_curl_of_no_use_is_named_with_its_package(tmp_path, monkeypatch, line, says):
    if line is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        program(tmp_path / "bin", line, monkeypatch)
    with pytest.raises(SetupFault, match=says) as caught:
        curl.check_version()
    assert "install a current package `curl`" in str(caught.value)


def test_the_curl_of_this_host_will_do():
    curl.check_version()
