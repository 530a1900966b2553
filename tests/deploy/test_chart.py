"""The Helm chart, as Helm renders it and as Kubernetes' own schemas, Prometheus and the node itself read it. No cluster is needed."""

import copy
import functools
import ipaddress
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from simulated.certificates import Authority
from simulated.node import LISTED, Site, until
from simulated.patience import PATIENCE_S, PROGRAM_S
from simulated.wire import EIR

from eir import __version__
from eir.config import load_config
from eir.node.processes.answering import DRAIN_S
from eir.wire.peers.settings import PeerSettings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"
HELM = shutil.which("helm", path=f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}")
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
REALM = "epc.mnc001.mcc001.3gppnetwork.org"

pytestmark = pytest.mark.skipif(HELM is None, reason="Helm comes with scripts/setup --test, on x86-64")

PEERS = [{"name": "core", "realm": REALM, "from": ["10.0.0.0/8"], "watchdog_s": 30}]
REDIS = {"url": "redis://loader@redis.example:6379/0", "passwordSecret": {"name": "eir-redis"}}
MATRIX = {
    "as little as can be": {},
    "two on a Redis": {
        "replicas": 2,
        "redis": REDIS,
        "config": {
            "peers": PEERS,
            "lists": {"stolen-national": {"signers": "stolen-national.signers"}},
            "policy": {"rules": [{"list": "stolen-national", "answer": "blacklisted"}]},
            "identity": {"aliases": ["eir.example"]},
        },
        "files": {"stolen-national.signers": "# nobody yet\n"},
    },
    "every transport": {
        "tls": {"secretName": "eir-tls"},
        "listen": {"tls": 5868, "n5g": 7777},
        "secrets": [{"name": "feed", "items": [{"key": "users", "path": "feed.users"}]}],
    },
    "SCTP alone, IPv6": {"listen": {"address": "[::]", "tcp": None}},
    "beyond the cluster": {
        "replicas": 3,
        "redis": {
            "url": "rediss+sentinel://a@s:26379/eir?ca_file=redis-ca.pem",
            "ports": [26379, 6379],
            "passwordSecret": {"name": "eir-redis"},
        },
        "secrets": [{"name": "redis-ca", "items": [{"key": "ca.crt", "path": "redis-ca.pem"}]}],
        "podServices": {"enabled": True, "annotations": {"pool": "sig"}},
        "multus": {"enabled": True, "networks": ["sig-a", "sig-b"]},
        "networkPolicy": {
            "diameterFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "httpFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "egress": [{"to": [{"ipBlock": {"cidr": "198.51.100.7/32"}}]}],
        },
        "podAnnotations": {"team": "core"},
    },
    "watched": {
        "monitoring": {
            "serviceMonitor": True,
            "prometheusRule": True,
            "labels": {"release": "prometheus"},
            "pages": "https://pages.test",
        }
    },
    "placed": {
        "networkPolicy": {"enabled": False},
        "persistence": {"enabled": False},
        "redis": REDIS,
        "nodeSelector": {"role": "core"},
        "tolerations": [{"key": "core", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"digest": f"sha256:{'0' * 64}"},
    },
}
every_way = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)


def helm(command, values, *arguments):
    """Run a command of Helm on the chart with these values, and a realm."""
    full = {"identity": {"realm": REALM}} | values
    return subprocess.run(
        [HELM, command, *arguments, "-f", "-"],
        input=json.dumps(full), capture_output=True, text=True, check=False, timeout=PROGRAM_S,
    )  # fmt: skip


@functools.cache
def _rendered(values):
    done = helm("template", json.loads(values), "eir", str(CHART), "--namespace", "core")
    assert done.returncode == 0, done.stderr
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout) if each}


def rendered(values):
    """All objects by kind and name."""
    return copy.deepcopy(_rendered(json.dumps(values)))


def pod(values):
    return rendered(values)["StatefulSet", "eir"]["spec"]["template"]


def container(values):
    (only,) = pod(values)["spec"]["containers"]
    return only


NEWEST = kubernetes_validate.latest_version()
OLDEST = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"].removeprefix(">=").removesuffix("-0")


def schema_problem(document, version=NEWEST):
    """The fault that Kubernetes' schemas find, unknown fields included; None without one."""
    return _schema_problem(json.dumps(document), version)


@functools.cache
def _schema_problem(text, version):
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.ValidationError as e:
        return e.message
    return None


class TestRendering:
    @pytest.mark.long(short=["two on a Redis"])
    @every_way
    def test_helm_finds_no_fault(self, values):
        done = helm("lint", values, "--strict", CHART)
        assert done.returncode == 0, done.stdout
        assert "[WARNING]" not in done.stdout

    @every_way
    def test_kubernetes_takes_each_object(self, values):
        own = {"ServiceMonitor", "PrometheusRule"}  # of the Prometheus operator: tests below
        found = {key: schema_problem(each) for key, each in rendered(values).items() if key[0] not in own}
        assert len(found) >= 4
        assert not any(found.values()), found

    @pytest.mark.parametrize("name", ["beyond the cluster", "placed"])
    def test_the_oldest_kubernetes_that_it_names_takes_them_too(self, name):
        found = {key: schema_problem(each, OLDEST) for key, each in rendered(MATRIX[name]).items()}
        assert not any(found.values()), found

    def test_lint_passes_without_values(self):
        done = subprocess.run([HELM, "lint", CHART], capture_output=True, text=True, check=False, timeout=PROGRAM_S)
        assert done.returncode == 0, done.stdout

    def test_the_schemas_name_each_fault(self):
        found = rendered({})["StatefulSet", "eir"]
        found["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
        assert "readOnlyRoot" in schema_problem(found)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"identity": {"realm": ""}}, "identity.realm has to be given"),
            ({"identity": {"realm": "epc"}}, "/identity/realm"),
            ({"replicas": 2}, "replicas: 2 needs redis.url"),
            ({"persistence": {"enabled": False}}, "persistence.enabled: false needs redis.url"),
            ({"listen": {"tls": 5868}}, "listen.tls needs tls.secretName"),
            ({"multus": {"enabled": True}}, "multus.enabled needs multus.networks"),
            ({"terminationGracePeriodSeconds": 30}, "/terminationGracePeriodSeconds"),
            ({"config": {"peers": [{"realm": REALM, "watchdog_s": 60}]}}, "longer than watchdog_s of every peer: 60"),
            ({"config": {"state": "/srv"}}, "config.state is set by the chart: remove it"),
            ({"config": {"listen": [], "store": "sqlite"}}, "config.listen is set by the chart: remove it"),
            ({"config": {"store": "sqlite"}}, "config.store is set by the chart: remove it"),
            ({"config": {"identity": {"realm": "a.example"}}}, "config.identity.realm is set by the chart: remove it"),
            ({"config": {"n5g": {"listen": None}}}, "config.n5g.listen is set by the chart: remove it"),
            ({"image": {"tag": "latest"}}, "/image/tag"),
            ({"resources": {"limits": {"memory": None}}}, "/resources/limits"),
            ({"replica": 2}, "replica"),
        ],
    )
    def test_values_that_would_not_run_are_refused(self, values, said):
        done = helm("template", values, "eir", str(CHART))
        assert done.returncode != 0
        assert said in done.stderr

    def test_the_schema_knows_every_value(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        known = yaml.safe_load((CHART / "values.yaml").read_text())

        def same(there, properties, where):
            assert set(there) <= set(properties), where
            for name, value in there.items():
                if isinstance(value, dict) and "properties" in properties[name] and name != "config":
                    same(value, properties[name]["properties"], f"{where}.{name}")

        same(known, schema["properties"], "")
        assert set(schema["properties"]) - set(known) == {"global"}

    def test_its_version_is_the_programs(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
        assert container({})["image"] == f"eir:{__version__}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """The files of a certificate, by what they are."""
    return Authority(tmp_path_factory.mktemp("tls")).write(EIR)


class TestConfiguration:
    @every_way
    def test_the_node_takes_each_pods_file(self, values, authority, tmp_path):
        """By the program's own reader, with the folder as the pod has it."""
        files = rendered(values)["ConfigMap", "eir"]["data"]
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        secrets = [source["secret"] for source in self.sources(values) if "secret" in source]
        for item in (item for secret in secrets for item in secret["items"]):
            path = tmp_path / item["path"]
            path.parent.mkdir(exist_ok=True)
            shutil.copy(authority[{".crt": "certificate", ".key": "key"}.get(path.suffix, "ca")], path)
        replicas = values.get("replicas", 1)
        configs = [load_config(tmp_path / f"eir-{ordinal}.yaml") for ordinal in range(replicas)]
        assert [config.identity.host for config in configs] == [f"eir-{n}.{REALM}" for n in range(replicas)]
        ports = {(each["protocol"], each["containerPort"]) for each in container(values)["ports"]}
        said = {
            ("SCTP" if url.startswith("sctp") else "TCP", int(url.rpartition(":")[2])) for url in self.urls(configs)
        }
        assert ports == said
        assert {str(config.state) for config in configs} == {self.mounted("state", values)}

    @staticmethod
    def urls(configs):
        return {
            url
            for config in configs
            for url in (*config.listen, *config.interfaces["n5g"].listen, f"http://{config.http}")
        }

    @staticmethod
    def sources(values):
        (volume,) = (each for each in pod(values)["spec"]["volumes"] if each["name"] == "configuration")
        return volume["projected"]["sources"]

    @staticmethod
    def mounted(name, values):
        (mount,) = (each for each in container(values)["volumeMounts"] if each["name"] == name)
        return mount["mountPath"]

    def test_the_pages_values_are_such(self, authority, tmp_path):
        blocks = re.findall(r"^```yaml\n(.*?)^```", (CHART / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        one, two = map(yaml.safe_load, blocks)
        for values in (one, one | two):
            self.test_the_node_takes_each_pods_file(values, authority, tmp_path)

    @pytest.mark.parametrize(
        ("memory", "config", "load_memory"),
        [
            ("1Gi", {}, 512 << 20),
            ("2.5G", {}, 1_250_000_000),
            (8 << 30, {}, 4 << 30),
            ("2147483648000m", {}, 1 << 30),
            ("100Mi", {}, 128 << 20),  # the least that the key may have
            ("1Gi", {"limits": {"load_memory": "700MiB"}}, 700 << 20),
            ("1Gi", {"limits": {"rate_max": 5}}, 512 << 20),
        ],
    )
    def test_a_load_gets_half_of_the_containers_memory(self, tmp_path, memory, config, load_memory):
        resources = {"limits": {"cpu": "2", "memory": memory}}
        file = tmp_path / "eir.yaml"
        file.write_text(rendered({"resources": resources, "config": config})["ConfigMap", "eir"]["data"]["eir-0.yaml"])
        assert load_config(file).load_memory == load_memory

    def test_each_pod_has_its_own(self):
        names = {each["name"]: each for each in container({})["env"]}
        assert names["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
        folder = self.mounted("configuration", {})
        assert names["EIR_CONFIG"]["value"] == f"{folder}/$(POD_NAME).yaml"

    def test_a_change_reaches_the_file_and_restarts_nothing(self):
        before = MATRIX["two on a Redis"]
        after = copy.deepcopy(before)
        after["config"]["peers"][0]["from"] = ["10.1.0.0/16"]
        after["config"]["lists"]["tracked"] = {"local": True}
        after["files"]["tracked.signers"] = "# nobody\n"
        one, other = rendered(before), rendered(after)
        assert one.pop(("ConfigMap", "eir")) != other.pop(("ConfigMap", "eir"))
        assert one == other
        assert "--reload-on-change" in container(before)["args"]

    @pytest.mark.parametrize(
        "text", ["  indented\n", "a: {b: '{{ nothing }}'}\n", 'quote "x" \\n\n\n', "no end of line"]
    )
    def test_files_arrive_as_they_are(self, text):
        assert rendered({"files": {"x.txt": text}})["ConfigMap", "eir"]["data"]["x.txt"] == text

    def test_passwords_stand_in_no_configmap(self):
        text = str(rendered(MATRIX["two on a Redis"])["ConfigMap", "eir"]["data"])
        assert "redis://loader@redis.example:6379/0?password_file=redis-password" in text
        assert "ca_file=redis-ca.pem&password_file=redis-password" in str(
            rendered(MATRIX["beyond the cluster"])["ConfigMap", "eir"]["data"]
        )


class TestLife:
    def test_a_pod_that_ends_has_time_to_send_its_peers_away(self):
        grace = pod({})["spec"]["terminationGracePeriodSeconds"]
        assert container({})["lifecycle"]["preStop"]["exec"]["command"] == ["eir", "drain"]
        assert grace > PeerSettings.__dataclass_fields__["watchdog_s"].default
        assert grace > 2 * DRAIN_S

    def test_one_after_the_other_and_on_hosts_of_their_own(self):
        found = rendered(MATRIX["two on a Redis"])
        budget = found["PodDisruptionBudget", "eir"]["spec"]
        assert budget["maxUnavailable"] == 1
        labels = pod({})["metadata"]["labels"]
        constraints = pod({})["spec"]["topologySpreadConstraints"]
        by_key = {each["topologyKey"]: each for each in constraints}
        assert by_key["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
        for selector in (budget["selector"], *(each["labelSelector"] for each in constraints)):
            assert selector["matchLabels"].items() <= labels.items()
        assert found["StatefulSet", "eir"]["spec"]["minReadySeconds"] > 30  # Tc, after which peers are back

    def test_without_a_disruption_budget_there_is_none(self):
        assert ("PodDisruptionBudget", "eir") in rendered({})
        assert ("PodDisruptionBudget", "eir") not in rendered({"podDisruptionBudget": None})

    def test_the_readiness_probe_is_a_choice_so_that_installers_need_not_wait_for_the_first_load(self):
        def probed(**values):
            return container(values)["readinessProbe"]["httpGet"]["path"]

        assert (probed(), probed(readiness="/live")) == ("/ready", "/live")
        assert helm("lint", {"readiness": "/"}, CHART).returncode != 0

    def test_lists_outlive_the_pod(self):
        (claim,) = rendered({})["StatefulSet", "eir"]["spec"]["volumeClaimTemplates"]
        assert claim["metadata"]["name"] == "state"
        assert "volumeClaimTemplates" not in rendered(MATRIX["placed"])["StatefulSet", "eir"]["spec"]


class TestNetwork:
    @every_way
    def test_no_service_stands_before_several_pods(self, values):
        services = {name: each["spec"] for (kind, name), each in rendered(values).items() if kind == "Service"}
        assert services.pop("eir")["clusterIP"] == "None"
        pods = {name: each["selector"]["statefulset.kubernetes.io/pod-name"] for name, each in services.items()}
        expected = (
            [f"eir-{ordinal}" for ordinal in range(values.get("replicas", 1))] if values.get("podServices") else []
        )
        assert pods == {f"{name}-{protocol}": name for name in expected for protocol in ("tcp", "sctp")}
        for name, each in services.items():
            protocols = {port["protocol"].lower() for port in each["ports"]}
            assert protocols == {name.rpartition("-")[2]}, "many clouds refuse TCP and SCTP in one load balancer"
        assert {each["externalTrafficPolicy"] for each in services.values()} <= {"Local"}

    @every_way
    def test_names_of_ports_are_the_pods(self, values):
        there = {(each["name"], each["protocol"]) for each in container(values)["ports"]}
        found = rendered(values)
        for (kind, _), each in found.items():
            if kind == "Service":
                assert {(port["targetPort"], port["protocol"]) for port in each["spec"]["ports"]} <= there
        if ("NetworkPolicy", "eir") in found:
            rules = found["NetworkPolicy", "eir"]["spec"]["ingress"]
            assert {(port["port"], port["protocol"]) for rule in rules for port in rule["ports"]} == there

    def test_nobody_else_is_let_in_or_reached(self):
        spec = rendered(MATRIX["beyond the cluster"])["NetworkPolicy", "eir"]["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["podSelector"]["matchLabels"].items() <= pod({})["metadata"]["labels"].items()
        diameter, pages = spec["ingress"]
        assert diameter["from"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
        assert pages["from"] == [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
        assert rendered({})["NetworkPolicy", "eir"]["spec"]["ingress"][1]["from"] == [{"podSelector": {}}]
        names, redis, publisher = spec["egress"]
        assert {each["port"] for each in names["ports"]} == {53}
        assert [each["port"] for each in redis["ports"]] == [26379, 6379]
        assert publisher == {"to": [{"ipBlock": {"cidr": "198.51.100.7/32"}}]}

    def test_multus_is_left_to_who_has_it(self):
        annotation = "k8s.v1.cni.cncf.io/networks"
        assert "annotations" not in pod({})["metadata"]
        assert pod(MATRIX["beyond the cluster"])["metadata"]["annotations"] == {
            annotation: "sig-a,sig-b",
            "team": "core",
        }


class TestMonitoring:
    def test_the_alerts_are_those_of_the_page(self, tmp_path):
        spec = rendered(MATRIX["watched"])["PrometheusRule", "eir"]["spec"]
        assert spec == yaml.safe_load(ALERTS.read_text().replace("https://pages.example", "https://pages.test"))
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec))
        done = subprocess.run(
            ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout

    def test_prometheus_finds_the_pods_and_calls_them_as_the_alerts_do(self):
        found = rendered(MATRIX["watched"])
        monitor, service = found["ServiceMonitor", "eir"], found["Service", "eir"]
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        assert {"targetLabel": "job", "replacement": "eir"} in endpoint["relabelings"]
        assert 'up{job="eir"}' in ALERTS.read_text()


def containers(found):
    return [
        each
        for (kind, _), one in found.items()
        if kind == "StatefulSet"
        for each in one["spec"]["template"]["spec"]["containers"]
    ]


def volumes(found):
    return [
        each
        for (kind, _), one in found.items()
        if kind == "StatefulSet"
        for each in one["spec"]["template"]["spec"]["volumes"]
    ]


def addresses(found):
    """All but those of no host in particular, and networks of a policy, which are the user's."""
    text = str({key: each for key, each in found.items() if key[0] != "NetworkPolicy"})
    return {
        each
        for each in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b(?!/)", text)
        if each != "0.0.0.0" and ipaddress.ip_address(each)
    }


ESSENTIAL = {
    "liveness": lambda found: all("httpGet" in each["livenessProbe"] for each in containers(found)),
    "readiness": lambda found: all("httpGet" in each["readinessProbe"] for each in containers(found)),
    "hostport_not_used": lambda found: not any("hostPort" in port for each in containers(found) for port in each["ports"]),
    "hardcoded_ip_addresses_in_k8s_runtime_configuration": lambda found: not addresses(found),
    "privileged_containers": lambda found: not any(each["securityContext"]["privileged"] for each in containers(found)),
    "non_root_containers": lambda found: all(each["securityContext"]["runAsNonRoot"] and not each["securityContext"]["allowPrivilegeEscalation"] for each in containers(found)),
    "cpu_limits": lambda found: all(each["resources"]["limits"]["cpu"] for each in containers(found)),
    "memory_limits": lambda found: all(each["resources"]["limits"]["memory"] for each in containers(found)),
    "hostpath_mounts": lambda found: not any("hostPath" in each for each in volumes(found)),
    "container_sock_mounts": lambda found: not re.search(r"(docker|containerd|crio)\.sock", str(found)),
    "selinux_options": lambda found: "seLinuxOptions" not in str(found),
    "latest_tag": lambda found: all(re.search(r":(?!latest$)[^:/]+$", each["image"]) for each in containers(found)),
    # Those beyond the essential ones that cost nothing to hold.
    "immutable_file_systems": lambda found: all(each["securityContext"]["readOnlyRootFilesystem"] for each in containers(found)),
    "linux_hardening": lambda found: "RuntimeDefault" in str(found) and all(each["securityContext"]["capabilities"]["drop"] == ["ALL"] for each in containers(found)),
    "service_account_mapping": lambda found: all(one["spec"]["template"]["spec"]["automountServiceAccountToken"] is False for (kind, _), one in found.items() if kind == "StatefulSet"),
    "host_network": lambda found: not re.search(r"'host(Network|PID|IPC)'", str(found)),
}  # fmt: skip
"""The tests of the CNTi suite that rendering decides, by its names: whether what was rendered passes."""


@pytest.mark.parametrize("name", ESSENTIAL)
def test_what_the_cnti_suite_asks_of_what_is_rendered(name):
    assert [way for way, values in MATRIX.items() if not ESSENTIAL[name](rendered(values))] == []


def test_what_the_cnti_suite_asks_can_be_failed():
    found = rendered({})
    (only,) = containers(found)
    only |= {"image": "eir:latest", "env": [{"name": "PEER", "value": "192.0.2.1"}, {"value": "/run/docker.sock"}]}
    only["livenessProbe"] = only["readinessProbe"] = {}
    only["ports"][0]["hostPort"] = 3868
    only["securityContext"] = {
        "privileged": True,
        "runAsNonRoot": False,
        "readOnlyRootFilesystem": False,
        "capabilities": {"drop": []},
    }
    only["resources"]["limits"] = {"cpu": None, "memory": None}
    spec = found["StatefulSet", "eir"]["spec"]["template"]["spec"]
    spec |= {"hostNetwork": True, "automountServiceAccountToken": True, "seLinuxOptions": {}}
    spec["volumes"].append({"hostPath": {"path": "/"}})
    assert [name for name, holds in ESSENTIAL.items() if holds(found)] == []


GROUP = 986
"""The user and group of a pod: its `fsGroup`."""


def mounted(folder, site, version):
    """Put a configuration where a pod has it, as the kubelet does: a folder for each version, and one link that is replaced."""
    made = folder / f"..{version}"
    made.mkdir(parents=True)
    (made / "eir-0.yaml").write_text(yaml.safe_dump(site.settings))
    shutil.copy(site.folder / "signers", made)
    for file in made.iterdir():
        file.chmod(0o440)
        if os.geteuid() == 0:
            os.chown(file, 0, GROUP)
    (folder / "..data_tmp").symlink_to(made.name)
    (folder / "..data_tmp").rename(folder / "..data")
    for name in ("eir-0.yaml", "signers"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for other in set(folder.glob("..v*")) - {made}:
        shutil.rmtree(other)


def as_in_a_pod(site):
    """The volume of the state folder as the kubelet makes it, root's and of the pod's group; returns what becomes the pod's user.

    That user reads every file, since the tests' own Python may be root's alone, and writes what its group may.
    """
    if os.geteuid() != 0:
        return ()
    for file in site.state.iterdir():
        os.chown(file, GROUP, GROUP)
    os.chown(site.state, 0, GROUP)
    site.state.chmod(0o2775)
    reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search")
    return ("setpriv", f"--reuid={GROUP}", f"--regid={GROUP}", "--clear-groups", *reads)


@pytest.fixture
def site(publisher):
    """A host in a folder that other users may enter."""
    mask = os.umask(0o022)
    folder = Path(tempfile.mkdtemp(prefix="eir-pod-"))
    folder.chmod(0o755)
    try:
        with Site(folder / "site", publisher) as made:
            yield made
    finally:
        os.umask(mask)
        shutil.rmtree(folder)


@pytest.mark.long
def test_a_node_takes_over_what_the_kubelet_puts_there(site):
    """With the chart's own command, and its drain at the end, as the pod's user on the pod's volumes."""
    settings = pod({})["spec"]["securityContext"]
    assert (settings["runAsUser"], settings["fsGroup"]) == (GROUP, GROUP)
    folder = site.folder / "pod"
    site.configure(state=str(site.state))
    site.load([LISTED])
    user = as_in_a_pod(site)
    mounted(folder, site, "v1")
    command, *options = container({})["args"]
    assert command == "serve"
    site.path = folder / "eir-0.yaml"
    node = site.start(arguments=options, prefix=user)
    site.settings["policy"]["rules"] = []
    mounted(folder, site, "v2")
    until(lambda: "event=reloaded" in node.text())
    assert "whitelisted" in site.eir("check", LISTED, prefix=user).stdout
    site.settings["nonsense"] = 1
    mounted(folder, site, "v3")
    until(lambda: "event=reload_refused" in node.text())
    site.eir(*container({})["lifecycle"]["preStop"]["exec"]["command"][1:], prefix=user)
    assert node.process.wait(PATIENCE_S) == 0
    assert {line.split()[2] for line in node.text().splitlines() if "who=file" in line} == {
        "event=reloaded",
        "event=reload_refused",
    }
