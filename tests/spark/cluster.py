"""A Spark cluster on this machine: a master and two workers, each a process of its own, that listen on 127.0.0.1 alone."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyspark
from simulated.node import until
from simulated.patience import PATIENCE_S
from simulated.servers import free_port

HOME = Path(pyspark.__file__).parent
WORKERS = 2
DEFAULTS = {
    "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.memory": "1g", "spark.executor.memory": "512m",
    "spark.executor.cores": 1, "spark.cores.max": WORKERS, "spark.sql.shuffle.partitions": WORKERS, "spark.sql.files.maxPartitionBytes": "1m",
}  # fmt: skip
"""An operator's settings in spark-defaults.conf."""


def family(pid):
    """A process, and all that it and its children have started."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended just now
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    master: str
    folder: Path

    def apps(self):
        """Each application's folders, one of each worker that had an executor of it."""
        found = {}
        for executor in self.folder.glob("worker*/app-*/*/"):
            found.setdefault(executor.parent.name, set()).add(executor.parent.parent.name)
        return found

    def listening(self):
        """The addresses at which this process, the cluster, and all that they have started listen."""
        inodes = set()
        for pid in family(os.getpid()):
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    target = link.readlink().name
                except OSError:
                    continue  # it was closed just now
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        lines = [
            line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
        return {fields[1].partition(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes}


@contextmanager
def cluster(folder):
    """Start one; the environment is such that what runs here uses it as its operator would."""
    (folder / "conf").mkdir()
    (folder / "conf" / "spark-defaults.conf").write_text(
        "".join(f"{name} {value}\n" for name, value in DEFAULTS.items())
    )
    environment = os.environ | {
        "SPARK_HOME": str(HOME), "SPARK_CONF_DIR": str(folder / "conf"), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1", "PYSPARK_PYTHON": sys.executable,
    }  # fmt: skip
    port = free_port()
    master = f"spark://127.0.0.1:{port}"
    started = []

    def start(name, *arguments):
        log = folder / f"{name}.log"
        with log.open("wb") as out:
            started.append(
                subprocess.Popen(
                    [HOME / "bin" / "spark-class", *map(str, arguments)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            )
        return log

    try:
        log = start(
            "master",
            "org.apache.spark.deploy.master.Master",
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "--webui-port",
            free_port(),
        )
        until(lambda: "I have been elected leader" in log.read_text(), patience_s=PATIENCE_S)
        for number in range(WORKERS):
            name = f"worker{number}"
            (folder / name).mkdir()
            start(
                name, "org.apache.spark.deploy.worker.Worker", master, "--host", "127.0.0.1", "--port", free_port(), "--webui-port", free_port(),
                "--cores", 1, "--memory", "1g", "--work-dir", folder / name,
            )  # fmt: skip
        until(lambda: log.read_text().count("Registering worker") == WORKERS, patience_s=PATIENCE_S)
        yield Cluster(master, folder), environment
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
