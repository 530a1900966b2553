"""What only the store in Redis owes: its keys, its faults by cause, TLS, Sentinel, a cluster. Users: faults/test_acl.py."""

import asyncio
import contextlib
import re
import socket

import groups
import pytest
import trustme
from commits import commit, commit_base, everything, parts_of
from simulated import servers
from simulated.patience import FACTOR, PATIENCE_S
from simulated.store_content import cause_of, until
from simulated.tcp_server import accepting

from eir.errors import StoreError
from eir.lists.log.change import decode
from eir.lists.record.clock import STORE_TIMEOUT_S
from eir.lists.stores import redis as redis_store
from eir.lists.stores import redis_link, redis_url
from eir.lists.stores.open import open_store
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.redis_url import parse_url

pytestmark = pytest.mark.skipif("redis" not in servers.programs(), reason="redis-server is not installed")


@pytest.fixture(scope="module")
def shared():
    with servers.Server(servers.programs()["redis"]) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.command("FLUSHALL")
    return shared


@pytest.fixture
def own():
    """Servers of one test, with options of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **how: stack.enter_context(servers.Server(servers.programs()["redis"], *options, **how))


@contextlib.asynccontextmanager
async def opened(url, **how):
    store = RedisStore(url, **how)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(server):
    async with opened(server.url) as one:
        yield one


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("eir.lists.stores.redis_url.ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr("eir.lists.stores.redis_url.RETRIES", 0)


def keys_of(server):
    return set(re.findall(rb"eir:\S+", server.command("KEYS", "*")))


class TestKeys:
    async def test_they_are_as_in_the_design(self, server, store):
        head, _ = await commit_base(store)
        await commit(store, head)
        assert keys_of(server) == {
            b"eir:lists", b"eir:{stolen}:head", b"eir:{stolen}:log", b"eir:{stolen}:rows", b"eir:{stolen}:parts", b"eir:{stolen}:bases",
            b"eir:{stolen}:base:stolen-0",
        }  # fmt: skip

    async def test_a_head_is_json_for_other_readers(self, server, store):
        head, _ = await commit(store, serial=42)
        text = server.command("HGET", "eir:{stolen}:head", "head").split(b"\r\n")[1]
        assert (decode(type(head), text), head.serial) == (head, 42)

    async def test_parts_expire_unless_a_change_names_them(self, server, store):
        await store.stage("stolen", "lost", [b"x"])
        await commit_base(store)
        assert 0 < ttl(server, "eir:{stolen}:base:lost") <= redis_store.STAGED_S
        assert ttl(server, "eir:{stolen}:base:stolen-0") == -1

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("HSET", "eir:{stolen}:state", "form", "3"), "format 3"),
            (("HSET", "eir:{own}:head", "form", "99"), "format 99"),
        ],
    )
    async def test_a_store_of_another_format_is_refused(self, server, store, change, says):
        await commit(store, name="own")
        server.command("SADD", "eir:lists", "stolen")
        server.command(*change)
        says = rf"Redis \(.*\) has {says}, and this program has format 4: .* `eir export` .* `eir load` or `eir add --file`"
        with pytest.raises(StoreError, match=says) as caught:
            await store.heads()
        assert caught.value.cause == "schema"

    @pytest.mark.parametrize("what", ["head", "log", "rows", "parts", "bases"])
    async def test_a_key_of_another_program_stops_the_commit_before_its_first_write(self, store, server, what):
        server.command("SET", redis_store.list_key("stolen", what), "mine")
        assert await cause_of(commit(store)) == "corrupt"
        assert keys_of(server) == {b"eir:lists", redis_store.list_key("stolen", what).encode()}

    async def test_a_head_of_another_type_affects_no_other(self, store, server):
        await commit(store, name="own")
        server.command("SADD", "eir:lists", "stolen")
        server.command("SET", redis_store.list_key("stolen", "head"), "mine")
        heads = await store.heads()
        assert heads["own"].generation == 1
        with pytest.raises(StoreError, match="another type"):
            heads.get("stolen")
        await store.wait(heads.digests, 0.05)

    async def test_a_value_that_is_too_long_is_corrupt(self, server, store):
        await commit(store)
        server.command("SETRANGE", "long", 65 << 20, "x")
        assert await cause_of(store.link.execute("GET", "long")) == "corrupt"
        assert [*await store.heads()] == ["stolen"]


def ttl(server, key):
    return int(server.command("TTL", key)[1:])


@pytest.mark.usefixtures("impatient")
class TestFaults:
    async def test_nobody_listens(self):
        async with opened(f"redis://127.0.0.1:{servers.free_port()}") as store:
            assert await cause_of(store.heads()) == "refused"

    async def test_hanging(self, own):
        server = own()
        async with opened(server.url) as store:
            head, _ = await commit(store)
            server.pause()
            try:
                assert await cause_of(store.heads()) == "timeout"
                assert await cause_of(store.wait({}, PATIENCE_S)) == "timeout"
                assert await cause_of(commit(store, head)) == "timeout"
            finally:
                server.resume()
            await until(lambda: answers_with(store, "stolen"))

    async def test_a_password_is_wanted(self, own):
        server = own("--requirepass", "right")
        for url in (server.url, server.url.replace("//", "//:wrong@")):
            async with opened(url) as store:
                with pytest.raises(StoreError) as caught:
                    await store.heads()
                assert caught.value.cause == "noauth"
                assert str(caught.value).endswith("; correct the user and the password that `store` names")
                assert "wrong" not in f"{caught.value}{store.link.where}{parse_url(url)!r}"
        async with opened(server.url.replace("//", "//:right@")) as store:
            assert await store.heads() == {}

    async def test_a_password_file_is_read_for_each_connection(self, own, tmp_path):
        """So a password may change while a node runs; a file that is away meanwhile is a fault that passes."""
        server, file = own("--requirepass", "right"), tmp_path / "password"

        def cut():
            assert server.command("AUTH", password, then=["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])

        file.write_text("right\n")
        password = "right"
        async with opened(f"{server.url}?password_file={file}") as store:
            head, _ = await commit(store)
            file.unlink()
            cut()
            await cause_of(store.heads())  # the connection that was cut
            with pytest.raises(StoreError, match=f"password file {file} cannot be read: No such file") as caught:
                await store.heads()
            assert caught.value.cause == "noauth"
            assert server.command("AUTH", password, then=["CONFIG", "SET", "requirepass", "other"])
            password = "other"
            file.write_text("other\n")
            cut()
            await until(lambda: answers_with(store, "stolen"))
            await commit(store, head)

    async def test_a_password_file_that_is_not_there_is_named_at_the_start(self, own, tmp_path):
        url = f"{own('--requirepass', 'right').url}?password_file={tmp_path}/password"
        with pytest.raises(StoreError, match=f"password_file {tmp_path}/password") as caught:
            open_store(url, tmp_path)
        assert caught.value.cause == "url"
        # A process of a node that has started takes it as a fault of each call.
        store = open_store(url, tmp_path, check=False)
        assert await cause_of(store.heads()) == "noauth"
        (tmp_path / "password").write_text("right")
        assert await store.heads() == {}
        await store.close()

    async def test_loading(self, own):
        server = own("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
        for at in range(0, 20_000, 500):
            server.command("MSET", *[text for n in range(at, at + 500) for text in (f"k{n}", "x" * 100)])
        server.command("SAVE")
        server.kill()
        server.launch()
        await until(lambda: answers(server))
        async with opened(server.url) as store:
            cause = "timeout"
            while cause == "timeout":  # of a busy machine: the server loads for 40 s and answers now and then
                cause = await cause_of(store.heads())
            assert cause == "loading"
            with pytest.raises(StoreError, match="; wait until Redis has loaded its data"):
                await store.heads()

    async def test_a_replica_is_not_for_writing(self, own):
        master = own()
        replica = own("--replicaof", "127.0.0.1", str(master.port))
        async with opened(replica.url) as store:
            with pytest.raises(StoreError, match="; name the primary in `store`, or its Sentinels") as caught:
                await commit(store)
            assert caught.value.cause == "readonly"

    async def test_a_user_without_a_permission(self, own):
        server = own()
        server.command("ACL", "SETUSER", "reader", "on", ">right", "%R~*", "+@read", "+info", "+acl|dryrun")
        async with opened(server.url.replace("//", "//reader:right@")) as store:
            with pytest.raises(StoreError, match=r"; give this user the rights in deploy/REDIS.md") as caught:
                await commit(store)
            assert caught.value.cause == "noperm"

    async def test_a_change_whose_old_rows_cannot_be_deleted_is_stored(self, own):
        server, said = own(), []
        async with opened(server.url, report=lambda what, **more: said.append((what, more))) as store:
            head, _ = await commit(store)
            server.command("ACL", "SETUSER", "default", "-xdel")
            head, _ = await commit(store, head, oldest=2)
            assert dict(await store.heads()) == {"stolen": head}
            event, more = said[-1]
            assert (event, more["list"], "xdel" in more["detail"]) == ("store_not_trimmed", "stolen", True)
            server.command("ACL", "SETUSER", "default", "+xdel")
            await commit(store, head, oldest=3)
            assert [entry.rows for entry in await store.log("stolen", 0)] == [None, None, b"rows"]

    async def test_memory_is_full(self, own):
        server = own("--maxmemory", "3mb")
        async with opened(server.url) as store:
            head, _ = await commit(store)
            before = await everything(store)
            assert await cause_of(store.stage("stolen", "a", [bytes(1 << 20)] * 4)) == "oom"
            assert await cause_of(commit(store, head, bytes(3 << 20))) == "oom"
            assert await everything(store) == before
            assert await parts_of(store, "a") == []

    async def test_a_policy_that_drops_lists_is_reported(self, own):
        said = []
        async with opened(
            own("--maxmemory-policy", "allkeys-lru").url, report=lambda *what, **more: said.append((what, more))
        ) as store:
            await store.heads()
        reported = {what: more for (what,), more in said}
        assert reported.keys() == {"store_may_evict", "store_unprotected"}
        assert reported["store_may_evict"]["reason"] == "allkeys-lru"

    async def test_it_is_reported_when_redis_comes_later_too(self, own):
        said = []
        server = own("--maxmemory-policy", "allkeys-lru")
        server.kill()
        async with opened(server.url, report=lambda what, **_: said.append(what)) as store:
            assert await cause_of(store.heads()) == "refused"
            server.start()
            assert await store.heads() == {}
            assert await store.heads() == {}
        assert said == ["store_may_evict", "store_unprotected"]

    async def test_a_change_that_no_replica_has_is_reported(self, own):
        master, said = own(), []
        replica = own("--replicaof", "127.0.0.1", str(master.port))

        def heard(what, **_):
            said.append(what)

        await until(
            lambda: (
                b"connected_slaves:1" in master.command("INFO", "replication")
                and b"state=online" in master.command("INFO", "replication")
            )
        )
        async with opened(master.url, report=heard, replica_wait_ms=60_000) as store:
            head, _ = await commit(store)
        assert said == ["store_unprotected"]
        replica.pause()
        try:
            async with opened(master.url, report=heard, replica_wait_ms=100) as store:
                await commit(store, head)
        finally:
            replica.resume()
        assert said == ["store_unprotected", "store_unprotected", "store_not_replicated"]


def answers(server):
    try:
        return server.command("PING")
    except OSError:
        return False


async def answers_with(store, *names):
    """True if the store answers, and has these lists."""
    with contextlib.suppress(StoreError):
        return [*await store.heads()] == [*names]
    return False


async def test_a_reader_that_is_cancelled_ends(store):
    """At any moment: redis before Python 3.12 loses a cancellation that comes while it sends."""
    head, _ = await commit(store)

    async def read_for_ever():
        while True:
            await store.log("stolen", 0)
            with contextlib.suppress(StoreError):
                await store.wait({"stolen": head.digest}, 0.001)

    for moment in range(100):
        reading = asyncio.create_task(read_for_ever())
        for _ in range(moment):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading], timeout=PATIENCE_S)
        assert reading.cancelled()


@pytest.mark.parametrize(
    ("meanwhile", "cause"),
    [
        ("done", None),
        ("done, and another write", None),
        ("nothing", "refused"),
        ("another write", "refused"),
        ("a flush", "refused"),
    ],
)
async def test_a_commit_whose_answer_is_lost(server, store, monkeypatch, meanwhile, cause):
    head, _ = await commit(store)
    client = await store.link._client("eir:{stolen}:head")
    execute = client.execute_command

    async def lost(*command, **options):
        if command[0] != "EVAL":
            return await execute(*command, **options)
        if meanwhile.startswith("done"):
            await execute(*command, **options)
            if "another" in meanwhile:
                async with opened(server.url) as other:
                    await commit(other, (await other.heads())["stolen"], detail="other")
        elif meanwhile == "a flush":
            server.command("FLUSHALL")
        elif meanwhile == "another write":
            async with opened(server.url) as other:
                await commit(other, head, detail="other")
        raise ConnectionResetError("the answer is lost")

    monkeypatch.setattr(client, "execute_command", lost)
    write = commit(store, head, detail="mine")
    if cause is not None:
        with pytest.raises(StoreError, match="nothing was written") as caught:
            await write
        assert caught.value.cause == cause
    else:
        assert (await write)[0].generation == 2
    details = {
        "done": ["", "mine"], "done, and another write": ["", "mine", "other"], "nothing": [""], "another write": ["", "other"], "a flush": [],
    }[meanwhile]  # fmt: skip
    assert [entry.change.detail for entry in await store.log("stolen", 0)] == details


@pytest.mark.parametrize("another", [False, True], ids=["alone", "after the commit of another writer"])
async def test_a_commit_that_is_sent_again_because_its_answer_was_lost(server, store, another):
    head, _ = await commit(store)
    commits = []

    async def serve(reader, writer):
        far, there = await asyncio.open_connection("127.0.0.1", server.port)

        async def send():
            while data := await reader.read(1 << 16):
                if b"XADD" in data:
                    commits.append(data)
                there.write(data)

        sending = asyncio.create_task(send())
        try:
            while data := await far.read(1 << 16):
                if len(commits) == 1:
                    commits.append(b"the answer to the first one is dropped")
                    if another:
                        async with opened(server.url) as other:
                            await commit(other, (await other.heads())["stolen"], detail="other")
                    return
                writer.write(data)
        finally:
            sending.cancel()
            for each in (writer, there):
                each.transport.abort()
            await asyncio.gather(sending, there.wait_closed(), return_exceptions=True)

    async with accepting(serve) as (_, port), opened(f"redis://127.0.0.1:{port}") as through:
        assert (await commit(through, head, detail="mine"))[0].generation == 2
    assert commits[2:], "the commit was not sent again"
    assert [entry.change.detail for entry in await store.log("stolen", 0)] == ["", "mine", *["other"] * another]


@pytest.mark.parametrize("then", [("DEL", "eir:{stolen}:base:a"), ("RPOP", "eir:{stolen}:base:a"), ("FLUSHALL",)])
async def test_staged_parts_that_vanish(server, store, then):
    head, _ = await commit(store)
    await store.stage("stolen", "a", [b"x", b"y"])
    server.command(*then)
    change = commit(store, None if then == ("FLUSHALL",) else head, base_id="a", base_parts=2)
    with pytest.raises(StoreError, match="nothing was written: try again") as caught:
        await change
    assert caught.value.cause == "staging_lost"
    assert dict(await store.heads()) == ({} if then == ("FLUSHALL",) else {"stolen": head})


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://host", ("single", (("host", 6379),), "", 0, "redis://host:6379")),
            ("redis://u:p@[::1]:7000/3", ("single", (("::1", 7000),), "", 3, "redis://[::1]:7000")),
            (
                "redis+sentinel://a,b:26380/lists",
                ("sentinel", (("a", 26379), ("b", 26380)), "lists", 0, "redis://a:26379"),
            ),
            ("rediss+sentinel://a/lists/2", ("sentinel", (("a", 26379),), "lists", 2, "rediss://a:26379")),
            ("redis+cluster://a:1,b:2", ("cluster", (("a", 1), ("b", 2)), "", 0, "redis://a:1")),
        ],
    )
    def test_forms(self, url, expected):
        found = parse_url(url, {})
        assert (found.form, found.hosts, found.service, found.database, found.first_server) == expected

    def test_secrets_come_from_the_files_that_the_url_names(self, tmp_path):
        file = tmp_path / "password"
        file.write_text("from file\n")
        assert parse_url("redis://u@h", {"EIR_REDIS_PASSWORD": "from default"}).options["password"] == "from default"
        assert parse_url("redis://u@h?password_env=MINE", {"MINE": "mine"}).options["password"] == "mine"
        found = parse_url(f"redis://u@h?password_file={file}", {"EIR_REDIS_PASSWORD": "x"})
        assert found.options["credential_provider"].get_credentials() == ("u", "from file")
        assert "password" not in found.options
        assert parse_url("redis://u:p%40%3A@h", {}).options["password"] == "p@:"
        assert "from file" not in repr(found)

    async def test_a_connection_that_is_refused_or_cut_is_tried_again_after_pauses_that_grow_and_differ(
        self, monkeypatch
    ):
        """By the library: with so many workers on one Redis, none is to come back at the same moment as the others."""
        came, pauses = [], []

        async def hang_up(_, writer):
            came.append(None)
            writer.close()

        pause = asyncio.sleep

        async def sleep(seconds, *result):
            pauses.append(seconds)
            return await pause(0, *result)

        async with accepting(hang_up) as (_, port):
            url = f"redis://127.0.0.1:{port}"
            monkeypatch.setattr("redis.asyncio.retry.sleep", sleep)
            for _ in range(20):
                async with opened(url) as store:
                    assert await cause_of(store.heads()) == "refused"
        tries = 1 + redis_url.RETRIES
        assert len(came) == 20 * tries
        assert len(set(pauses)) > 20
        first, second = pauses[::2], pauses[1::2]
        assert max(first) < max(second) <= redis_url.BACKOFF_CAP_S

    def test_tls_is_verified(self):
        options = parse_url("rediss://h?ca_file=/ca&cert_file=/c&key_file=/k", {}, check=False).options
        assert {name: options[name] for name in options if name.startswith("ssl")} == {
            "ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": "/ca",
            "ssl_certfile": "/c", "ssl_keyfile": "/k",
        }  # fmt: skip
        assert parse_url("rediss+cluster://h", {}).options["ssl"]
        assert "ssl" not in parse_url("redis://h", {}).options

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("http://h", "scheme 'http'"),
            ("redis://", "names no host"),
            ("redis://h/x", "database number"),
            ("redis://h/1/2", "database number"),
            ("redis+cluster://h/1", "database number"),
            ("redis+sentinel://h", "/SERVICE"),
            ("redis://h:99999", "bad port"),
            ("redis://:se/cret@h", "database number after the host in the store's URL (in a password / is written %2F"),
            ("redis+sentinel://u:x/sec/ret@h/s", "database number"),
            ("redis://u:se#cret@h:6379", "bad port"),
            ("redis://u:se?cret@h", "expected options after the ? in the store's URL (in a password"),
            (
                "redis://u:6?s=cret@h",
                "expected options after the ? in the store's URL (in a password / is written %2F, ? %3F",
            ),
            ("redis://h?pasword_file=x", "unknown option 'pasword_file'"),
            (
                "redis://h?password_file=/nowhere/at/all",
                "password_file /nowhere/at/all of the store cannot be read: No such file",
            ),
            ("redis+sentinel://h/s?sentinel_password_file=/nowhere", "sentinel_password_file /nowhere"),
            ("redis://h?password_file=/", "password_file / of the store cannot be read: Is a directory"),
            ("rediss://h?ca_file=/nowhere/ca.pem", "ca_file /nowhere/ca.pem"),
            ("redis://h?password_env=NOT_THERE", "NOT_THERE"),
        ],
    )
    def test_an_error_names_the_invalid_part_of_the_url(self, url, says):
        with pytest.raises(StoreError, match=re.escape(says)) as caught:
            parse_url(url, {})
        assert caught.value.cause == "url"
        assert "cret" not in str(caught.value)


class TestTls:
    """Certificates on both sides, whatever form the store has."""

    @pytest.fixture
    def tls(self, tmp_path):
        """Settings of a server that wants them, but for its port."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        for name in ("server", "client"):
            issued = authority.issue_cert("127.0.0.1" if name == "server" else "node@host")
            issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
            for at, part in enumerate(issued.cert_chain_pems):
                part.write_to_path(tmp_path / f"{name}.pem", append=at > 0)
        return {
            "tls-cert-file": tmp_path / "server.pem", "tls-key-file": tmp_path / "server.key", "tls-ca-cert-file": tmp_path / "ca.pem",
            "tls-auth-clients": "yes", "tls-cluster": "yes", "tls-replication": "yes",
        }  # fmt: skip

    @pytest.fixture
    def guarded(self, own, tls):
        """Starts a server that has a port for TLS too, and gives both."""

        def start(*options):
            port = servers.free_port()
            return own(
                *(text for name, value in {"tls-port": port, **tls}.items() for text in (f"--{name}", str(value))),
                *options,
            ), port

        return start

    @pytest.fixture
    def single(self, guarded):
        return f"rediss://127.0.0.1:{guarded()[1]}"

    @pytest.fixture
    def sentinel(self, own, guarded, tls, tmp_path):
        _, port = guarded()
        watcher_port = servers.free_port()
        settings = {"sentinel monitor": f"lists 127.0.0.1 {port} 1", "tls-port": watcher_port, **tls}
        lines = [f'{name} "{value}"' if "/" in str(value) else f"{name} {value}" for name, value in settings.items()]
        (tmp_path / "sentinel.conf").write_text("\n".join([*lines, ""]))
        own(folder=tmp_path, sentinel=tmp_path / "sentinel.conf")
        return f"rediss+sentinel://127.0.0.1:{watcher_port}/lists"

    @pytest.fixture
    def cluster(self, guarded):
        made = [guarded("--cluster-enabled", "yes") for _ in range(3)]
        for at, (node, _) in enumerate(made):
            node.command("CLUSTER", "ADDSLOTSRANGE", at * 5461 + (at > 0), 16383 if at == 2 else (at + 1) * 5461)
        for _, port in made[1:]:
            made[0][0].command("CLUSTER", "MEET", "127.0.0.1", port)
        groups.until(lambda: all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node, _ in made))
        return "rediss+cluster://" + ",".join(f"127.0.0.1:{port}" for _, port in made)

    @pytest.mark.parametrize("form", ["single", "sentinel", "cluster"])
    async def test_with_certificates_on_both_sides(self, form, request, tmp_path):
        base = f"{request.getfixturevalue(form)}?ca_file={tmp_path / 'ca.pem'}"
        ours = f"{base}&cert_file={tmp_path / 'client.pem'}&key_file={tmp_path / 'client.key'}"
        async with opened(ours) as store:
            for name in "abc":
                await commit_base(store, name=name)
            assert [*await store.heads()] == ["a", "b", "c"]
        async with opened(base) as without:
            assert await cause_of(without.heads()) in {"refused", "timeout", "clusterdown"}
        other = trustme.CA()
        other.cert_pem.write_to_path(tmp_path / "ca.pem")
        async with opened(ours) as deceived:
            assert await cause_of(deceived.heads()) in {"refused", "clusterdown"}


@pytest.mark.usefixtures("impatient")
async def test_a_master_that_sentinel_names_and_a_failover(own, tmp_path):
    master = own()
    replica = own("--replicaof", "127.0.0.1", str(master.port))
    await until(lambda: b"state=online" in master.command("INFO", "replication"))
    watchers = []
    for number in range(3):
        folder = tmp_path / f"sentinel-{number}"
        folder.mkdir()
        (folder / "sentinel.conf").write_text(
            f"sentinel monitor lists 127.0.0.1 {master.port} 2\nsentinel down-after-milliseconds lists 500\n"
            "sentinel failover-timeout lists 3000\n"
        )
        watchers.append(own(folder=folder, sentinel=folder / "sentinel.conf"))
    hosts = ",".join(f"127.0.0.1:{watcher.port}" for watcher in watchers)
    known = b"num-other-sentinels\r\n$1\r\n2"
    await until(lambda: all(known in watcher.command("SENTINEL", "MASTER", "lists") for watcher in watchers), 30)
    async with opened(f"redis+sentinel://{hosts}/lists") as store:
        head, _ = await commit(store)
        master.kill()
        assert await cause_of(store.heads()) in {"refused", "timeout"}

        async def promoted():
            try:
                await commit(store, head)
            except StoreError:
                return False
            return True

        await until(promoted, 40)
        assert b"role:master" in replica.command("INFO", "replication")
        assert (await store.heads())["stolen"].generation == 2


async def test_sentinels_that_are_asked_at_the_same_time_all_stay_known(own, tmp_path):
    master, away = own(), servers.free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor lists 127.0.0.1 {master.port} 1\n")
    watcher = own(folder=tmp_path, sentinel=config)
    async with opened(f"redis+sentinel://127.0.0.1:{away},127.0.0.1:{watcher.port}/lists") as store:
        await asyncio.gather(*(commit(store, name=name) for name in "abcdef"))
        known = [client.connection_pool.connection_kwargs["port"] for client in store.link._sentinel.sentinels]
        assert sorted(known) == sorted([away, watcher.port])


async def test_a_cluster_of_three(own):
    nodes = [own("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") for _ in range(3)]
    for at, node in enumerate(nodes):
        first, last = at * 5461 + (at > 0), 16383 if at == 2 else (at + 1) * 5461
        assert node.command("CLUSTER", "ADDSLOTSRANGE", first, last) == b"+OK\r\n"
    for node in nodes[1:]:
        node.command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    await until(
        lambda: all(
            b"cluster_state:ok" in n.command("CLUSTER", "INFO")
            and b"cluster_known_nodes:3" in n.command("CLUSTER", "INFO")
            for n in nodes
        ),
        30,
    )
    names = ["a", "b", "c", "history", "stolen-national"]
    url = f"redis+cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}"
    async with opened(url) as store, opened(url) as reader:
        heads = {name: (await commit_base(store, name=name))[0] for name in names}
        assert all(b"eir:" in node.command("KEYS", "eir:{*}:head") for node in nodes)
        assert await reader.heads() == heads
        assert await store.claim("inbox", "me", 5)
        # A slot that moves to another node, with nothing in the way of the next read or write.
        slot = int(nodes[0].command("CLUSTER", "KEYSLOT", "eir:{moved}:head")[1:])
        owner = next(n for n in nodes if b"MOVED" not in n.command("HLEN", "eir:{moved}:head"))
        target = next(n for n in nodes if n is not owner)
        identity = target.command("CLUSTER", "MYID").split(b"\r\n")[1]
        for n in nodes:
            assert n.command("CLUSTER", "SETSLOT", slot, "NODE", identity) == b"+OK\r\n"
        head, _ = await commit_base(store, name="moved")
        assert await reader.heads() == {**heads, "moved": head}
        assert b"eir:{moved}:head" in target.command("KEYS", "eir:{moved}:head")


class TestOneOfSeveralHangs:
    """A host that was switched off answers nothing at all; who asks it where to go gives up early enough to ask the next."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        assert 2 * redis_url.GUIDE_TIMEOUT_S < STORE_TIMEOUT_S, "two may hang"
        monkeypatch.setattr(redis_url, "GUIDE_TIMEOUT_S", min(redis_url.GUIDE_TIMEOUT_S, 0.5 * FACTOR))

    async def in_time(self, url):
        async with opened(url) as store, asyncio.timeout(STORE_TIMEOUT_S):
            assert "stolen" in await store.heads()

    async def test_a_sentinel(self, redis_of):
        with groups.Watched(redis_of, sentinels=1) as watched, contextlib.ExitStack() as stack:
            async with opened(watched.url) as store:
                await commit(store)
            holes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
            await self.in_time(watched.url.replace("//", "//" + "".join(f"127.0.0.1:{port}," for port in holes)))

    async def test_a_node_of_a_cluster(self, redis_of):
        with groups.Cluster(redis_of, "--cluster-require-full-coverage", "no") as cluster:
            async with opened(cluster.url) as store:
                await commit(store)
            needed = {cluster.owner(key) for key in ("eir:{stolen}:head", "eir:lists")}
            (other, *_) = set(cluster.nodes) - needed
            other.pause()
            try:
                for _ in range(4):  # the order in which they are asked is random
                    await self.in_time(cluster.url)
            finally:
                other.resume()


@pytest.fixture
def redis_of():
    return servers.programs()["redis"]


@pytest.fixture
def resolver(monkeypatch):
    """A resolver that reports a name under `invalid` (RFC 6761) as unknown at once; that of a host may exceed the store's time limit."""
    lookup = socket.getaddrinfo

    def addresses(host, *arguments, **options):
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return lookup(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", addresses)


@pytest.mark.usefixtures("resolver")
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://127.0.0.1:1", "Redis (single 127.0.0.1:1): cannot connect to 127.0.0.1:1: Connection refused"),
        ("redis://nosuch.invalid:6379", "cannot connect to nosuch.invalid:6379: "),
        ("redis+sentinel://127.0.0.1:1/eir", "no sentinel that can be reached names a master for eir"),
        ("redis+cluster://127.0.0.1:1", "cannot connect to 127.0.0.1:1: Connection refused"),
    ],
)
async def test_a_fault_is_reported_without_details_of_python(url, says):
    async with opened(url) as store:
        with pytest.raises(StoreError) as caught:
            await store.heads()
    text, _, advice = str(caught.value).partition("; ")
    assert says in text
    server = url.removesuffix("/eir").replace("+sentinel", "").replace("+cluster", "")
    assert advice == f"start Redis, or correct `store`; test it with: redis-cli -u {server} ping"
    assert not re.search(r"[<>]|\('|Error|object|\[Errno", str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("kind"), "kind is missing"),
        (TimeoutError(), "no answer in time"),
        (OSError(), "the connection was lost"),
    ],
)
def test_faults_without_a_text(error, says):
    assert redis_link.error_text(error) == says


@pytest.mark.parametrize(
    ("users", "warned"),
    [
        ("", True),
        ("user default on nopass ~* +@all\n", True),
        ("user default off\n", False),
        ("user default on nopass ~* +@read\n", False),
        ("user default on nopass ~other:* +@all\n", False),
        ("user default on >secret ~* +@all\n", False),
    ],
)
async def test_a_redis_that_strangers_can_write_to_is_reported(own, tmp_path, users, warned):
    (tmp_path / "users").write_text(f"{users}user loader on >loading ~* &* +@all\n")
    server, said = own("--aclfile", str(tmp_path / "users")), []
    async with opened(
        f"redis://loader:loading@127.0.0.1:{server.port}", report=lambda what, **_: said.append(what)
    ) as store:
        await commit(store)
    assert said == ["store_unprotected"] * warned
