"""What deploy/ holds, by the programs that will read it: systemd, promtool, a real Prometheus that scrapes a real node."""

import asyncio
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from simulated.certificates import Authority
from simulated.node import COMMAND, LISTED, TRACKED, UNLISTED, Site, children, until, until_async
from simulated.patience import PATIENCE_S, PROGRAM_S
from simulated.servers import Server, free_port
from simulated.wire import EIR, HOST, REALM, TGPP, avp, cer, ecr, message
from troubles import alerts_of

from eir.config import load_config
from eir.node.observe.conditions import CONDITIONS
from eir.node.observe.metrics import FAMILIES
from eir.node.processes.answering import DRAIN_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
UNIT = DEPLOY / "systemd" / "eir.service"
DASHBOARD = json.loads((DEPLOY / "grafana" / "eir.json").read_text())
ALERTS = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
METRIC = re.compile(r"\beir_[a-z_]+")

SERIES = {family.name for family in FAMILIES} | {
    f"{family.name}_{part}" for family in FAMILIES if family.kind == "histogram" for part in ("bucket", "sum", "count")
}


def run(*command, **options):
    """A command's output; it has to exit with 0."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=PROGRAM_S, **options
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def queries():
    """(where, PromQL) of each query of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def as_grafana_asks(expression, interval="5s"):
    """The expression with the dashboard's variables filled in."""
    filled = expression.replace("$__rate_interval", interval).replace("$instance", ".*")
    assert "$" not in filled, filled
    return filled


class TestAlerts:
    def test_promtool_accepts_configuration_and_rules(self):
        assert "FAILED" not in run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")

    @pytest.mark.long
    def test_promtool_runs_the_examples(self):
        run("promtool", "test", "rules", "alerts_test.yml", cwd=PROMETHEUS)

    def test_each_alert_has_an_example_that_fires(self):
        examples = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
        fired = {case["alertname"] for example in examples for case in example["alert_rule_test"] if case["exp_alerts"]}
        assert fired == {alert["alert"] for alert in ALERTS}

    def test_each_metric_is_one_of_the_nodes(self):
        used = {name for alert in ALERTS for name in METRIC.findall(alert["expr"])}
        assert used <= SERIES, used - SERIES


ALERTMANAGER = shutil.which("prometheus-alertmanager")
TO_NOWHERE = "receivers: [{name: operators}, {name: on-call}]\n"


@pytest.mark.skipif(ALERTMANAGER is None, reason="prometheus-alertmanager is not installed")
def test_alertmanager_inhibits_the_alerts_of_single_peers_where_there_is_none(tmp_path):
    """The example as it is, but for the addresses of mail."""
    example = (PROMETHEUS / "alertmanager.yml").read_text()
    (tmp_path / "alertmanager.yml").write_text(example[: example.index("receivers:\n")] + TO_NOWHERE)
    port = free_port()
    command = [
        ALERTMANAGER,
        "--config.file=alertmanager.yml",
        "--storage.path=data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/api/v2"

        def get(path):
            with suppress(OSError), urllib.request.urlopen(f"{url}/{path}", timeout=PATIENCE_S) as answer:
                return json.load(answer)

        until(lambda: get("status"))
        labels = [
            {"alertname": "EirPeerLost", "instance": "a", "peer": "mme1"}, {"alertname": "EirPeerLost", "instance": "b", "peer": "mme1"},
            {"alertname": "EirNoPeers", "instance": "a", "severity": "critical"}, {"alertname": "EirListExpired", "instance": "a"},
        ]  # fmt: skip
        body = json.dumps([{"labels": each} for each in labels]).encode()
        request = urllib.request.Request(f"{url}/alerts", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()

        def states():
            return {
                (each["labels"]["alertname"], each["labels"]["instance"]): each["status"]["state"]
                for each in get("alerts")
            }

        expected = {
            ("EirPeerLost", "a"): "suppressed", ("EirPeerLost", "b"): "active", ("EirNoPeers", "a"): "active", ("EirListExpired", "a"): "active",
        }  # fmt: skip
        until(lambda: states() == expected)  # an inhibited alert is active until the pipeline has seen both
    finally:
        process.terminate()
        process.wait()


def test_the_example_for_alertmanager_names_alerts_that_there_are():
    text = (PROMETHEUS / "alertmanager.yml").read_text()
    document = yaml.safe_load(text)
    named = set(re.findall(r'alertname = "(\w+)"', text))
    assert named == {"EirNoPeers", "EirPeerLost"}
    assert named <= {alert["alert"] for alert in ALERTS}
    (rule,) = document["inhibit_rules"]
    assert rule["equal"] == ["instance"]
    assert {each["name"] for each in document["receivers"]} == {"operators", "on-call"}


class TestDashboard:
    def test_it_shows_each_metric_of_the_node_and_no_other(self):
        used = {name for _, expression in queries() for name in METRIC.findall(expression)}
        assert used <= SERIES, used - SERIES
        families = {family.name for family in FAMILIES}
        shown = used | {name.rpartition("_")[0] for name in used}
        assert families <= shown, families - shown

    def test_each_panel_has_a_place_of_its_own(self):
        panels = DASHBOARD["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
            apart = (
                one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            )  # fmt: skip
            assert apart, (one, other)


class Prometheus:
    """A real Prometheus with the configuration of deploy/, but for the targets and a faster clock. `at_once`: no alert waits (`for`)."""

    def __init__(self, folder, *targets, at_once=False):
        folder.mkdir()
        settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        settings["global"] = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
        settings["rule_files"] = [str(PROMETHEUS / name) for name in settings["rule_files"]]
        if at_once:
            rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
            for rule in (rule for group in rules["groups"] for rule in group["rules"]):
                rule.pop("for", None)
            settings["rule_files"] = [str(folder / "at_once.yml")]
            (folder / "at_once.yml").write_text(yaml.safe_dump(rules))
        (job,) = settings["scrape_configs"]
        job["static_configs"] = [{"targets": list(targets)}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        self.base = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.base.removeprefix('http://')}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def get(self, path, **parameters):
        """The `data` of an answer of Prometheus' API; None while it does not answer yet."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(
                f"{self.base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=PROGRAM_S
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:  # it starts
                    return None
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        except urllib.error.URLError:
            return None

    def query(self, expression):
        data = self.get("query", query=expression)
        return data and data["result"]


async def keep_asking(node, connect):
    """Traffic of every sort, for ever: each counter of the node moves."""
    mme, busy = await connect(node), await connect(node, "busy.localdomain")
    stranger = cer("stranger.example", "elsewhere.example")
    answer_nobody_asked_for = message(324, avp(263, "x"), flags=0x40)
    while True:
        for imei in (LISTED, TRACKED, UNLISTED, "no identifier", None):
            await mme.ask(ecr(imei))
        await mme.ask(message(325))
        await mme.send(answer_nobody_asked_for)
        for _ in range(5):
            await busy.ask(ecr(host=avp(264, "busy.localdomain")))
        refused = await connect(node, opened=False)
        await refused.ask(stranger)
        await refused.end()
        await asyncio.sleep(0.05)


REALM_OF_SAMPLES = "epc.mnc001.mcc001.3gppnetwork.org"
QUIET = (
    "eir_store_errors_total",
    "eir_sctp_",
    "eir_sbi_",
    "eir_gsup_",
    "eir_map_",
    "eir_sigtran_",
    "eir_nrf_",
    "eir_inbox_",
    "eir_source_",
    "eir_desk_",
    "eir_feed_",
    "eir_device_authenticity_",
    "eir_clients_",
    "eir_config_needs_restart",
    "eir_interface_",
    "eir_list_missing",
    "eir_peer_refused",
    "eir_release_interval_seconds",
    "eir_first_seen_devices_total",
    "eir_first_seen_unrecorded_checks_total",
    "eir_last_device_",
    "eir_sightings_",
    "eir_events_",
)
"""Have no series until the store fails, and somebody connects over SCTP or HTTP/2, and without a drop folder, a source, a feed, a record of checks, of first sightings or of last devices, and before a list's fourth release."""


@pytest.mark.long
async def test_a_real_prometheus_answers_each_query_of_the_dashboard(site, connect, tmp_path):
    site.configure(lists={name: each | {"change_min": 0} for name, each in site.settings["lists"].items()})
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    site.eir("load", site.release([LISTED]), status=1)
    site.eir("load", "--force", site.release([LISTED, "35332811002233"], serial=2))  # twice as many devices
    site.configure(
        peers=[
            {"name": "busy", "host": "busy.localdomain", "rate_max": 1},
            {"name": "mme", "realm": REALM, "host": HOST},
            {"name": "sgsn", "host": "sgsn.localdomain"},
        ],
        tls=Authority(tmp_path / "tls").write(EIR),
        policy={
            "rules": [{"list": "tracked", "answer": "greylisted", "observe": True}, *site.settings["policy"]["rules"]]
        },
    )
    node = site.start()
    with Prometheus(tmp_path / "prometheus", node.http) as prometheus:
        traffic = asyncio.create_task(keep_asking(node, connect))

        def unanswered():
            found = {where: prometheus.query(as_grafana_asks(expression)) for where, expression in queries()}
            return [where for where, result in found.items() if not result]

        quiet = [where for where, expression in queries() if any(name in expression for name in QUIET)]

        async def only_the_quiet_are_empty():
            assert not traffic.done(), traffic.exception()
            return await asyncio.to_thread(unanswered) == quiet

        try:
            await until_async(only_the_quiet_are_empty, patience_s=PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"empty, or not quiet: {set(unanswered()) ^ set(quiet)}") from None

        def rules():
            found = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
            return found if all(rule["lastEvaluation"] > "1" for rule in found) else None

        evaluated = await asyncio.to_thread(until, rules)
        assert [rule for rule in evaluated if rule["health"] != "ok"] == []
        assert {rule["name"] for rule in evaluated} == {alert["alert"] for alert in ALERTS}
        states = {rule["name"]: rule["state"] for rule in evaluated}
        assert (states["EirReleaseRefused"], states["EirForced"]) == ("firing", "firing")
        assert states["EirPeerLost"] in {
            "inactive",
            "pending",
        }  # sgsn; it fires two minutes after the first of the node
        assert {states[name] for name in ("EirDown", "EirNoLists", "EirListMissing", "EirOverrideActive")} == {
            "inactive"
        }
        traffic.cancel()
        with suppress(asyncio.CancelledError):
            await traffic


PROVOKED = {
    "EirReloadFailed", "EirFilesRunOut", "EirListContentDiffers", "EirReleaseOverdue", "EirInboxUnusable", "EirInboxWaiting", "EirForced",
    "EirBlockingJumped",
}  # fmt: skip


SLOW = {each.alert for each in CONDITIONS if each.wait_s} | {
    "EirListContentDiffers",
    "EirListsDiffer",
    "EirListMissing",
}
"""Alerts that `eir status` names after a while, and those that compare nodes."""


@pytest.mark.long
async def test_alerts_fire_for_what_really_happens(site, connect, tmp_path, publisher):
    """Two nodes to which all of it is done, and a Prometheus that waits for nothing."""
    lists = site.settings["lists"] | {"own": {"local": True, "change_min": 0}}
    (site.folder / "drop").mkdir()
    site.configure(lists=lists, inbox="drop")
    now = datetime.now(UTC).replace(microsecond=0)
    for serial, before in enumerate((13, 12, 11, 10), 1):  # a daily list of which the last nine releases did not come
        then = now - timedelta(days=before)
        site.load([TRACKED], list_name="tracked", serial=serial, now=then, issued=then - timedelta(seconds=1))
    site.load([LISTED])
    with Site(tmp_path / "other", publisher) as other:
        other.configure(lists=lists, inbox="nowhere")
        for each, device in ((site, UNLISTED), (other, TRACKED)):
            await asyncio.to_thread(each.eir, "add", "own", device, "--reason", "test", "--force")
        node, there = await asyncio.to_thread(site.start), await asyncio.to_thread(other.start)
        with Prometheus(tmp_path / "prometheus", node.http, there.http, at_once=True) as prometheus:

            def firing():
                found = prometheus.query('ALERTS{alertstate="firing"}') or ()
                return {each["metric"]["alertname"] for each in found}

            def usual():
                found = firing()
                return found if "EirForced" in found and prometheus.query("eir_release_interval_seconds") else None

            before = await asyncio.to_thread(until, usual)
            assert not {"EirReloadFailed", "EirFilesRunOut", "EirInboxWaiting", "EirBlockingJumped"} & before
            manifest = site.release([LISTED], serial=2)
            for file in (manifest, manifest.with_name(f"{manifest.name}.sig")):  # its data are still on their way
                shutil.copy(file, site.folder / "drop")
            text = other.path.read_text()
            other.path.write_text(f"{text}nonsense: 1\n")
            there.signal(signal.SIGHUP)
            worker, used = (
                children(node.pid)["answering"],
                int(node.metrics()["eir_process_open_fds{process=answering}"]),
            )
            limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 1, limits[1]))
            mme = await connect(node)

            async def all_fire():
                for _ in range(20):
                    await mme.ask(ecr(LISTED))
                return await asyncio.to_thread(firing) >= PROVOKED

            try:
                await until_async(all_fire, patience_s=PATIENCE_S)
            except TimeoutError:
                raise AssertionError(f"missing: {PROVOKED - firing()}") from None
            finally:
                resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)

            def unnamed():
                """Severe alerts that fire and that no status names; those for which the status waits are left out, as no alert waits here."""
                firing = [each["metric"] for each in prometheus.query('ALERTS{alertstate="firing",severity!="info"}')]
                named = {
                    instance: alerts_of(each.status()) for instance, each in ((node.http, node), (there.http, there))
                }
                of_all = set.union(*named.values())
                return {
                    each["alertname"]
                    for each in firing
                    if each["alertname"] not in named.get(each.get("instance"), of_all)
                } - SLOW

            await asyncio.to_thread(until, lambda: not unnamed())
            other.path.write_text(text)
            there.signal(signal.SIGHUP)
            await asyncio.to_thread(until, lambda: "EirReloadFailed" not in firing())


def unit():
    """The settings of the [Service] section: name → values in order."""
    found = {}
    section = None
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def system_calls(names):
    """Those of a SystemCallFilter= value, groups resolved."""
    known, open_names, found = syscall_groups(), set(names.split()), set()
    while open_names:
        name = open_names.pop()
        if name.startswith("@"):
            open_names |= known[name]
        else:
            found.add(name)
    return found


def syscall_groups():
    groups, group = {}, ""
    for line in run("systemd-analyze", "syscall-filter", "--no-pager").splitlines():
        word = line.strip()
        if word.startswith("#") or not word:
            continue
        if not line.startswith(" "):
            group = word
            groups[group] = set()
        else:
            groups[group].add(word)
    return groups


def knows_mdwe():
    """Whether the kernel can do what MemoryDenyWriteExecute= asks of it in our way (from 6.3 on); asked of a process of its own."""
    ask = "import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0)"
    return subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0


class TestUnit:
    def test_systemd_understands_it(self, tmp_path):
        copy = tmp_path / UNIT.name
        copy.write_text(UNIT.read_text().replace("/opt/eir/bin/eir", shutil.which("true")))
        said = run("systemd-analyze", "verify", "--recursive-errors=no", copy)
        assert UNIT.name not in said, said

    def test_the_units_of_a_registrys_deliveries_publish_them(self, tmp_path, site):
        """systemd understands both, and the command of the service delivers a release to the drop folder."""
        units = {name: (UNIT.parent / name).read_text() for name in ("eir-publish.path", "eir-publish.service")}
        for name, text in units.items():
            (tmp_path / name).write_text(text)
        said = run("systemd-analyze", "verify", "--recursive-errors=no", tmp_path / "eir-publish.path")
        assert "eir-publish" not in said, said
        command = re.search(r"^ExecStart=(.*)$", units["eir-publish.service"], re.MULTILINE)[1].replace("%%", "%")
        delivered = re.search(r"^PathChanged=(.*)$", units["eir-publish.path"], re.MULTILINE)[1]
        assert command.count(delivered) == 1
        file = tmp_path / "stolen.csv"
        file.write_text(f"imei\n{LISTED}\n")
        for there, here in (
            ("/opt/eir/bin/eir", shlex.join(COMMAND)), ("/etc/eir/registry.key", site.publisher.key), ("/var/lib/eir/inbox", site.folder / "inbox"),
            (delivered, file),
        ):  # fmt: skip
            command = command.replace(there, str(here))
        site.configure(
            inbox="inbox",
            lists={"stolen-national": {"signers": "signers"}},
            policy={"rules": [{"list": "stolen-national", "answer": "blacklisted"}]},
        )
        subprocess.run(shlex.split(command), check=True, env=site.environment())
        until(lambda: "accepted" in site.eir("inbox").stderr)
        assert site.json("check", LISTED)["status"] == "blacklisted"

    def test_systemd_finds_it_confined(self):
        run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", UNIT)

    def test_stopping_has_longer_than_draining(self):
        (seconds,) = unit()["TimeoutStopSec"]
        assert int(seconds) > 2 * DRAIN_S

    @pytest.mark.skipif(not knows_mdwe(), reason="the kernel has no PR_SET_MDWE")
    async def test_a_load_and_a_node_work_within_its_memory_and_system_call_limits(self, site, connect, tmp_path):
        settings = unit()
        assert settings["MemoryDenyWriteExecute"] == ["yes"]
        allowed, denied, again = settings["SystemCallFilter"]
        names = tmp_path / "syscalls"
        names.write_text(
            "\n".join((system_calls(allowed) - system_calls(denied.removeprefix("~"))) | set(again.split()))
        )
        confined = [sys.executable, str(Path(__file__).parents[1] / "confined.py"), str(names)]
        variables = dict(value.split("=", 1) for value in settings["Environment"] if not value.startswith("EIR_CONFIG"))
        prefix = [*confined, "env", *(f"{name}={value}" for name, value in variables.items())]
        manifest = site.release([LISTED, "001010010000014"])
        site.eir("load", manifest, prefix=prefix)
        client = await connect(site.start(prefix=prefix))
        assert (await client.ask(ecr(LISTED))).number(1445, TGPP) == 1
        site.eir("reload")

    @pytest.mark.skipif(not knows_mdwe(), reason="the kernel has no PR_SET_MDWE")
    def test_its_statement_about_polars_is_true(self, tmp_path):
        """Without the variable, a load fails under MemoryDenyWriteExecute; when this no longer holds, the line can go."""
        assert "POLARS_SKIP_CPU_CHECK=1" in unit()["Environment"]
        names = tmp_path / "syscalls"
        names.write_text("\n".join(system_calls("@known")))
        confined = [
            sys.executable,
            str(Path(__file__).parents[1] / "confined.py"),
            str(names),
            sys.executable,
            "-c",
            "import polars",
        ]
        assert "CPUID" in subprocess.run(confined, capture_output=True, text=True, check=False).stderr
        run("env", "POLARS_SKIP_CPU_CHECK=1", *confined)


class TestContainers:
    def containerfile(self):
        text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
        return [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]

    def test_the_image_copies_what_there_is_and_runs_without_root(self):
        instructions = self.containerfile()
        for name, rest in instructions:
            if name == "COPY" and not rest.startswith("--from"):
                assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
        last = len(instructions) - 1 - [name for name, _ in instructions][::-1].index("FROM")
        assert dict(instructions[last:])["USER"] == "986:986"  # Kubernetes cannot see by a name that it is not root
        assert ["LABEL", "org.opencontainers.image.licenses=Apache-2.0"] in instructions[last:]
        assert ["COPY", "LICENSE /usr/share/doc/eir/"] in instructions[last:]
        ignored = (DEPLOY / "Containerfile.dockerignore").read_text().split()
        assert {line[1:] for line in ignored if line.startswith("!")} == {
            source
            for name, rest in instructions
            if name == "COPY" and not rest.startswith("--from")
            for source in rest.split()[:-1]
        }

    def test_the_first_process_is_an_init_that_hands_signals_on_and_takes_orphans(self, site):
        """And the log goes to where a container's log comes from; all other processes are of one program."""
        init, *rest = json.loads(dict(self.containerfile())["ENTRYPOINT"])
        assert (init, rest) == ("tini", ["--", "eir"])
        assert " tini " in next(rest for name, rest in reversed(self.containerfile()) if name == "RUN")
        leaves = '(sh -c "echo \\$\\$ >orphan" &); exec "$@"'
        node = site.start(prefix=[init, "-s", "--", "sh", "-c", leaves, "sh"])
        orphan = int(until((site.folder / "orphan").read_text))
        until(lambda: not Path(f"/proc/{orphan}").exists())  # one that nobody took would be a zombie there
        (front,) = children(node.pid).values()
        programs = {str(Path(f"/proc/{pid}/exe").readlink()) for pid in (front, *children(front).values())}
        assert programs == {os.path.realpath(sys.executable)}
        assert "event=listening" in node.text()
        node.end()  # SIGTERM to the init ends the node with 0

    def test_the_health_check_distinguishes_a_live_node_from_none(self, site):
        check = dict(self.containerfile())["HEALTHCHECK"]
        command = json.loads(check[check.index("[") :])
        node = site.start()

        def ask():
            code = command[2].replace("127.0.0.1:9868", node.http)
            return subprocess.run([sys.executable, *command[1:2], code], capture_output=True, check=False).returncode

        assert ask() == 0
        node.end()
        assert ask() != 0

    def test_what_is_mounted_is_there(self):
        services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
        for name, service in services.items():
            for mount in service["volumes"]:
                source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).split(":")[0]
                if source == "./releases":  # the operator's
                    continue
                if source.startswith("."):
                    assert (DEPLOY / "compose" / source).exists(), f"{name}: {mount}"
        assert {"eir-a", "eir-b", "redis", "prometheus"} == set(services)
        targets = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0][
            "targets"
        ]
        assert targets == ["eir-a:9868", "eir-b:9868"]

    def test_every_service_starts_again_after_a_reboot(self):
        """`on-failure` and `no` leave a container down that ended in order with the host."""
        services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
        assert {name: service.get("restart") for name, service in services.items()} == dict.fromkeys(
            services, "unless-stopped"
        )

    @pytest.mark.parametrize("name", ["eir-a", "eir-b"])
    def test_a_nodes_configuration_is_one(self, name, tmp_path):
        shutil.copytree(ROOT / "config" / "signers", tmp_path / "signers")
        shutil.copy(DEPLOY / "compose" / f"{name}.yaml", tmp_path / "eir.yaml")
        config = load_config(tmp_path / "eir.yaml")
        assert config.identity.host.split(".")[0] == name
        assert config.http == "0.0.0.0:9868"
        assert str(config.state) == "/var/lib/eir"
        assert all("holds 0 keys" in warning.text for warning in config.warnings), (
            config.warnings
        )  # they reach the one who deploys it

    @pytest.mark.long
    async def test_a_load_on_one_of_the_nodes_reaches_both(self, tmp_path, publisher, connect):
        """The two configurations as they are, but for addresses and folders, with a Redis as the compose file starts it."""
        command = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]["redis"]["command"]
        redis = Server(*command).start()
        try:
            with Site(tmp_path / "a", publisher) as one, Site(tmp_path / "b", publisher) as other:
                for site, name in ((one, "eir-a"), (other, "eir-b")):
                    site.settings = yaml.safe_load((DEPLOY / "compose" / f"{name}.yaml").read_text())
                    site.settings["peers"][0]["from"].append("127.0.0.0/8")
                    for settings in site.settings["lists"].values():
                        settings["signers"] = "signers"
                    site.configure(
                        listen=["tcp://127.0.0.1:0"], http="127.0.0.1:0", state="var", store=f"{redis.url}/0"
                    )
                nodes = one.start(), other.start()
                clients = [await connect(node, f"mme.{REALM_OF_SAMPLES}", REALM_OF_SAMPLES) for node in nodes]
                question = ecr(LISTED, host=avp(264, f"mme.{REALM_OF_SAMPLES}"), to_realm=avp(283, REALM_OF_SAMPLES))
                one.load([LISTED], list_name="stolen-national")

                async def blocked_by_both():
                    return [(await client.ask(question)).number(1445, TGPP) for client in clients] == [1, 1]

                await until_async(blocked_by_both)
                for client in clients:  # each node otherwise waits for the DPA
                    await client.close()
        finally:
            redis.stop()

    def test_the_nodes_differ_by_name_alone(self):
        one, other = ((DEPLOY / "compose" / f"eir-{name}.yaml").read_text().splitlines() for name in "ab")
        assert [line for line in one if line not in other][1:] == [f"  host: eir-a.{REALM_OF_SAMPLES}"]
        assert len(one) == len(other)
