"""Redis (or Valkey) servers that belong together: a cluster of three, a master with its replica under three sentinels."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from simulated.patience import PATIENCE_S
from simulated.servers import Server, free_port, programs

CLUSTER_NODES, SENTINELS = 3, 3
KINDS = ["sqlite", *programs(), *(["cluster", "sentinel"] if "redis" in programs() else [])]
"""Kinds of stores that are tested here."""
SLOTS = 16384


def until(condition):
    """Wait for what servers agree on among themselves."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.02)


class Cluster:
    """Three masters without replicas, or as many as said, each with an equal share of the slots."""

    def __init__(self, program, *options, nodes=CLUSTER_NODES):
        self._count = nodes
        how = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *options)
        self._program, self._how = program, how
        self._stack = contextlib.ExitStack()
        self.nodes = []

    @property
    def url(self):
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.nodes = [stack.enter_context(Server(self._program, *self._how)) for _ in range(self._count)]
            bounds = [SLOTS * at // self._count for at in range(self._count + 1)]
            for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
                assert node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1) == b"+OK\r\n"
            for node in self.nodes[1:]:
                node.command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
            until(self.agrees)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def agrees(self):
        """Each node is there, knows the others, and finds all slots served."""
        told = [node.command("CLUSTER", "INFO") for node in self.nodes]
        return all(
            b"cluster_state:ok" in each and f"cluster_known_nodes:{self._count}".encode() in each for each in told
        )

    def owner(self, key):
        """The node that has the key's slot."""
        return next(node for node in self.nodes if b"MOVED" not in node.command("TYPE", key))

    def flush(self):
        for node in self.nodes:
            node.command("FLUSHALL")


class Watched:
    """A master, its replica, and sentinels that promote the replica when the master is gone.

    `link`: given the master's port, the port by which everyone reaches it. One port for all: sentinels put a replica right that
    follows another one than they watch.
    """

    SERVICE = "lists"

    def __init__(self, program, *options, sentinels=SENTINELS, link=lambda port: port):
        self._program, self._options, self._count, self._link = program, options, sentinels, link
        self._stack = contextlib.ExitStack()

    @property
    def url(self):
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels) + f"/{self.SERVICE}"

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.master = stack.enter_context(Server(self._program, *self._options))
            self.port = self._link(self.master.port)
            self.replica = stack.enter_context(
                Server(self._program, "--replicaof", f"127.0.0.1 {self.port}", *self._options)
            )
            until(lambda: b"state=online" in self.master.command("INFO", "replication"))
            self.sentinels = [stack.enter_context(self._sentinel(stack)) for _ in range(self._count)]
            known = b"num-other-sentinels\r\n$1\r\n%d" % (self._count - 1)
            seen = b"num-slaves\r\n$1\r\n1"
            until(lambda: all(known in (told := self._told(each)) and seen in told for each in self.sentinels))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _sentinel(self, stack):
        folder = Path(tempfile.mkdtemp(prefix="eir-sentinel-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        file, port = folder / "sentinel.conf", free_port()
        file.write_text(
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.port} {self._count // 2 + 1}\n"
            f"sentinel down-after-milliseconds {self.SERVICE} 1000\nsentinel failover-timeout {self.SERVICE} 3000\n"
        )
        return Server(self._program, port=port, folder=folder, sentinel=file)

    def _told(self, sentinel):
        return sentinel.command("SENTINEL", "MASTER", self.SERVICE)

    def promoted(self):
        """True if the replica is a master now; sentinels cut its clients off when they make it one."""
        with contextlib.suppress(ConnectionError):
            return b"role:master" in self.replica.command("INFO", "replication")
        return False

    def flush(self):
        self.master.command("FLUSHALL")


@contextlib.contextmanager
def started(plain):
    """Yield a function that returns the servers of a kind of store, started when they are needed first; `plain` makes a single server."""
    with contextlib.ExitStack() as stack:
        servers = {}

        def server(kind):
            if kind not in servers:
                program = programs()[kind if kind in programs() else "redis"]
                make = {"cluster": Cluster, "sentinel": lambda one: Watched(one, sentinels=1)}.get(kind, plain)
                servers[kind] = stack.enter_context(make(program))
            return servers[kind]

        yield server
