"""The commands: exit status, what goes to which stream, documents for scripts, tables for people, and how they end early."""

import csv
import errno
import json
import os
import pty
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from full_disk import no_file_above
from simulated import servers
from simulated.certificates import Authority
from simulated.luhn import check_digit
from simulated.node import LISTED, TRACKED, UNLISTED, Publisher, Site, run_eir, until
from simulated.patience import PATIENCE_S, PROGRAM_S
from simulated.servers import Server, programs
from simulated.store_content import Lists
from simulated.wire import EIR, HOST, REALM
from typer.main import get_command

from eir.cli.app import command_line
from eir.cli.output import written_to
from eir.disk import open_replacement
from eir.errors import silent
from eir.lists.log.journal import MAIN, Journal, JournalEvent
from eir.lists.record.in_force import load_in_force
from eir.lists.stores.open import open_store

COMMANDS = get_command(command_line()).commands
IMSI = "001010123456789"
FROM_STORE = "from the store, no node answers here\n"
"""Commands about what is in force say this first, where no node runs."""
MEID = "A0000012345678"
PUBLISH = ["publish", "--list", "stolen", "--serial", "9", "--expires", "36h"]
POLICY = {
    "rules": [
        {"list": "stolen", "answer": "blacklisted"},
        {"tac": ["35332812"], "imsi": ["26201"], "answer": "greylisted"},
        {"software_version": ["77"], "answer": "greylisted"},
        {"origin_host": ["roaming.example.org"], "answer": "unknown"},
        {"list": "tracked", "answer": "greylisted", "observe": True},
    ],
    "no_identity": "greylisted", "bad_identity": "error",
}  # fmt: skip


@pytest.fixture(scope="module")
def host(shared):
    """Two lists of one release each, and a refused one in the history; nothing here changes it."""
    shared.configure(policy=POLICY)
    shared.load(["imei,reason", f"{LISTED},stolen in transit", f"{MEID},lost", f"{LISTED[:-1]}9,"], list_name="stolen")
    shared.load([TRACKED], list_name="tracked")
    shared.eir("load", shared.release([UNLISTED], list_name="tracked"), status=1)
    return shared


@pytest.fixture
def eir(host, eir, monkeypatch):
    """Run a command of the host in this process."""
    monkeypatch.setenv("EIR_CONFIG", str(host.path))
    monkeypatch.chdir(host.folder)
    return eir


def document(ran):
    status, out, _ = ran
    assert status == 0, ran
    return json.loads(out)


class TestUsage:
    @pytest.mark.parametrize(
        "command",
        [
            "",
            *COMMANDS,
            "peer disable",
            "peer enable",
            "lists reset-serial",
            "tamper report",
            "tamper show",
            "tamper confirm",
            "tamper clear",
            "tamper forget-decision",
            "tamper export",
        ],
    )
    def test_help(self, eir, command, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        status, out, err = eir(*command.split(), "--help")
        assert (status, err) == (0, "")
        assert f"Usage: eir {command}".strip() in out
        assert not re.search(r"…|\w\.\.\.$", out, re.MULTILINE)  # nothing is cut
        assert max(map(len, out.splitlines())) <= 80

    def test_no_command_shows_the_help(self, eir):
        _, out, err = eir()
        assert "Usage: eir" in out + err

    def test_version(self, eir):
        status, out, _ = eir("--version")
        assert status == 0
        assert re.fullmatch(r"eir \d+\.\d+\.\d+\n", out)

    @pytest.mark.parametrize(
        "arguments",
        [
            "nonsense", "check", "check 1 --nonsense", "load", "rollback", "rollback nowhere", "publish x.csv", "lists --json=maybe",
            "probe 127.0.0.1", "probe 127.0.0.1:0 1", "probe 127.0.0.1:99999 1", "probe [::1]:x 1", "history -n 0", "show \udcff",
            "probe 127.0.0.1:1 1 --timeout 0", "probe 127.0.0.1:1 1 --timeout 5x", "peer", "peer enable", "add stolen", "lists surplus",
            "publish x.csv --list stolen --serial 0 --expires 14d --key k", "publish x.csv --list stolen --serial 1 --expires 14 --key k",
            "publish x.csv --list stolen --serial 1 --expires soon --key k",
            "publish x.csv --list stolen --serial 1 --expires 9999999d --key k", "add stolen 35209900176148 --reason x --until 9999999d",
        ],
    )  # fmt: skip
    def test_wrong_usage_exits_with_2_and_names_the_fault_on_standard_error(self, eir, arguments):
        status, out, err = eir(*arguments.split())
        assert status == 2
        assert not out or arguments == "peer"
        assert err or arguments == "peer"


class TestConfiguration:
    def test_errors_name_file_line_and_what_was_expected(self, eir, tmp_path):
        path = tmp_path / "wrong.yaml"
        path.write_text(
            "identity: {host: a.example.org, realm: example.org}\nlisten: [tcp://127.0.0.1:0]\nheal: many\npolcy: {}\n"
        )
        status, out, err = eir("config", "-c", path)
        assert (status, out) == (2, "")
        assert re.search(rf"^{path}:3: .*heal", err, re.MULTILINE)
        assert re.search(rf"^{path}:4: .*polcy.*policy", err, re.MULTILINE)

    @pytest.mark.parametrize(
        "command", ["config", "lists", "history", "peers", "reload", "drain", "serve", "check 1", "inbox"]
    )
    def test_each_command_reports_a_missing_file(self, eir, command, tmp_path):
        status, out, err = eir(*command.split(), "-c", tmp_path / "none.yaml")
        assert (status, out) == (2, "")
        assert f"{tmp_path}/none.yaml" in err

    FAULTS = ("policy: {defalt: greylisted}\n", "policy: [a, {\n", "lists: {stolen: {signers: nowhere}}\n")

    @pytest.mark.parametrize("fault", FAULTS, ids=["unknown key", "no YAML", "no signers"])
    def test_a_fault_locks_nobody_out_of_node_and_lists(self, eir, host, tmp_path, fault):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED])
            site.load([UNLISTED], serial=2)
            site.start()
            text = site.path.read_text()
            site.path.write_text(
                f"state: {site.state} # where it is\n"
                + (re.sub(r"^lists:\n( .*\n)+", "", text, flags=re.MULTILINE) if "lists" in fault else text)
                + fault
            )
            at = ("-c", site.path)
            for command in ("peers", "history", "lists", "peer disable mme", "rollback stolen"):
                status, out, err = eir(*command.split(), *at)
                assert (status, bool(out)) == (0, True), err
                assert re.search(rf"^warning: {site.path}:\d+: ", err, re.MULTILINE)
            assert "serial 1 is in force again" in out
            assert [row["serial"] for row in json.loads(eir("lists", "--json", *at)[1]) if row["list"] == "stolen"] == [
                1
            ]
            assert json.loads(eir("status", "--json", *at)[1])["pid"] == site.node.pid
            assert eir("load", "x.manifest.json", *at)[0] == 2  # what puts something in force wants all of it right
            assert eir("drain", *at)[0] == 0
            assert site.node.wait() == 0

    @pytest.mark.parametrize(
        "text", [None, "state: [a, b]\n", "x: [\nstate: {\n"], ids=["no file", "no folder", "no YAML"]
    )
    def test_status_reports_in_one_line_that_the_state_is_unknown(self, eir, tmp_path, text):
        path = tmp_path / "wrong.yaml"
        if text:
            path.write_text(text)
        status, out, _ = eir("status", "-c", path)
        assert status == 3
        assert re.fullmatch(rf"EIR UNKNOWN - .*{path}:\d+: .*\n", out)
        status, out, _ = eir("status", "--json", "-c", path)
        assert (status, json.loads(out)["state"]) == (3, "UNKNOWN")

    def test_what_is_in_force_is_a_configuration_again(self, eir, host, tmp_path):
        status, out, _ = eir("config")
        assert status == 0
        again = tmp_path / "again.yaml"
        again.write_text(out)
        assert document(eir("config", "--json", "-c", again)) == document(eir("config", "--json"))
        assert document(eir("config", "--json"))["state"] == str(host.state)

    @pytest.mark.skipif("redis" not in servers.programs(), reason="redis-server is not installed")
    def test_connect_reports_a_redis_that_endangers_lists_or_is_away(self, eir, host):
        path = host.folder / "redis.yaml"
        with servers.Server(servers.programs()["redis"], "--maxmemory-policy", "allkeys-lru") as server:
            path.write_text(f"{host.path.read_text()}\nstore: {server.url}\n")
            assert eir("config", "-c", path)[2] == ""
            status, out, err = eir("config", "--connect", "-c", path)
            assert (status, out) == eir("config", "-c", path)[:2]
            assert "set maxmemory-policy noeviction" in err
            assert "every client of Redis can change lists without a password" in err
        status, _, err = eir("config", "--connect", "-c", path)
        assert status == 1
        assert "start Redis, or correct `store`" in err

    def test_every_key_is_printed_without_a_file(self, eir):
        status, out, err = eir("config", "--reference", "-c", "nowhere.yaml")
        assert (status, err) == (0, "")
        assert out == (Path(__file__).parents[2] / "config" / "REFERENCE.md").read_text()
        rows = document(eir("config", "--reference", "--json"))
        assert [row["key"] for row in rows] == re.findall(r"^\| `(.*?)` \|", out, re.MULTILINE)
        assert next(row for row in rows if row["key"] == "http") == {
            "key": "http", "value": "ADDRESS:PORT such as 127.0.0.1:9868, or off", "required": False, "default": "127.0.0.1:9868",
            "says": "address of the status page (/), /metrics, /live and /ready", "restart": True,
        }  # fmt: skip

    def test_the_file_is_that_of_c_else_of_the_environment_else_config_eir_yaml(self, host, tmp_path):
        for name, folder in (
            ("given", tmp_path / "given"),
            ("environment", tmp_path / "environment"),
            ("default", tmp_path / "config"),
        ):
            folder.mkdir()
            text = host.path.read_text().replace("realm: localdomain", f"realm: {name}.example", 1)
            (folder / "eir.yaml").write_text(text)
            shutil.copy(host.folder / "signers", folder)

        def realm(*arguments, before=(), **environment):
            base = {name: value for name, value in os.environ.items() if name != "EIR_CONFIG"}
            words = [*before, "config", "--json", *arguments]
            return json.loads(run_eir(*words, cwd=tmp_path, env=base | environment).stdout)["identity"]["realm"]

        assert realm() == "default.example"
        assert realm(EIR_CONFIG="environment/eir.yaml") == "environment.example"
        assert realm("-c", "given/eir.yaml", EIR_CONFIG="environment/eir.yaml") == "given.example"
        assert (
            realm("-c", "given/eir.yaml", EIR_CONFIG="environment/eir.yaml", before=("-c", "none.yaml"))
            == "given.example"
        )
        assert realm(EIR_CONFIG="environment/eir.yaml", before=("-c", "given/eir.yaml")) == "given.example"

    def test_a_warning_goes_to_standard_error(self, eir, host, tmp_path):
        path = tmp_path / "eir.yaml"
        path.write_text(host.path.read_text().replace("list: tracked", "list: stolen"))
        shutil.copy(host.folder / "signers", tmp_path)
        status, out, err = eir("config", "-c", path)
        assert status == 0
        assert re.search(rf"^warning: {path}:\d+: .*tracked", err, re.MULTILINE)
        assert "warning:" not in out
        assert "tracked" not in eir("check", UNLISTED, "-c", path)[2]  # it is for the one who writes the configuration

    def test_an_inbox_that_is_not_there_is_warned_of(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.configure(inbox="drop")
            assert f"warning: the inbox {site.folder}/drop does not exist" in site.eir("config").stderr
            (site.folder / "drop").mkdir()
            assert site.eir("config").stderr == ""


CHECKS = [
    # identifier, options, status, rule, list, reason
    (LISTED, "", "blacklisted", 1, "stolen", "stolen in transit"),
    (f"{LISTED}{check_digit(LISTED)}", "", "blacklisted", 1, "stolen", "stolen in transit"),
    (f"{LISTED}0", f"--imsi {IMSI}", "blacklisted", 1, "stolen", "stolen in transit"),
    (f"{LISTED}77", "", "blacklisted", 1, "stolen", "stolen in transit"),
    (f"{LISTED[:-1]}9", "", "blacklisted", 1, "stolen", None),
    (MEID, "", "blacklisted", 1, "stolen", "lost"),
    (MEID.lower(), "", "blacklisted", 1, "stolen", "lost"),
    ("35332812000001", "--imsi 262011234567890", "greylisted", 2, None, None),
    ("35332812000001", "--imsi 262021234567890", "whitelisted", "default", None, None),
    ("35332812000001", "", "whitelisted", "default", None, None),
    (UNLISTED, "--software-version 77", "greylisted", 3, None, None),
    (UNLISTED, "--origin-host ROAMING.example.org", "unknown", 4, None, None),
    (UNLISTED, "", "whitelisted", "default", None, None),
    (TRACKED, "", "whitelisted", "default", None, None),
]  # fmt: skip


class TestCheck:
    @pytest.mark.parametrize(("imei", "options", "status", "rule", "list_name", "reason"), CHECKS)
    def test_the_document(self, eir, imei, options, status, rule, list_name, reason):
        found = document(eir("check", imei, *options.split(), "--json"))
        imsi = options.split()[1] if "--imsi" in options else None
        serial = 1 if list_name else None
        expected = {
            "imei": imei,
            "imsi": imsi,
            "status": status,
            "rule": rule,
            "list": list_name,
            "serial": serial,
            "reason": reason,
        }
        assert {name: found[name] for name in expected} == expected
        assert list(found)[: len(expected)] == list(expected)

    def test_for_a_person(self, eir):
        assert eir("check", LISTED) == (
            0, f"{LISTED}: blacklisted\n  by rule 1, list stolen (serial 1)\n  reason: stolen in transit\n", FROM_STORE,
        )  # fmt: skip
        assert eir("check", TRACKED)[1] == (
            f"{TRACKED}: whitelisted\n  because of the policy's default\n  observed only: rule 5 would answer greylisted\n"
        )
        assert (
            "  by rule 2: tac 35332812; imsi 26201*\n" in eir("check", "35332812000001", "--imsi", "262011234567890")[1]
        )
        assert "  by rule 3: software_version 77\n" in eir("check", UNLISTED, "--software-version", "77")[1]

    def test_rules_that_have_a_name_are_named(self, host, tmp_path):
        with Site(tmp_path / "named", host.publisher) as site:
            rules = [
                {"name": "trial", "tac": [LISTED[:8]], "answer": "greylisted", "observe": True},
                {"name": "roamers", "imsi": ["00101"], "answer": "blacklisted"},
            ]
            site.configure(policy={"rules": rules})
            site.state.mkdir()
            found = site.json("check", LISTED, "--imsi", IMSI)
            assert (found["rule"], found["rule_name"]) == (2, "roamers")
            assert found["observed"] == [{"rule": 1, "rule_name": "trial", "status": "greylisted"}]
            assert site.eir("check", LISTED, "--imsi", IMSI).stdout == (
                f"{LISTED}: blacklisted\n  by rule 2 (roamers): imsi 00101*\n  observed only: rule 1 (trial) would answer greylisted\n"
            )
            found = site.json("check", UNLISTED)
            assert (found["rule"], found["rule_name"]) == ("default", None)

    def test_the_document_has_observed_rules_and_lists_that_are_not_loaded(self, eir, tmp_path, host):
        assert document(eir("check", TRACKED, "--json"))["observed"] == [
            {"rule": 5, "rule_name": None, "status": "greylisted"}
        ]
        with Site(tmp_path / "empty", host.publisher) as empty:
            empty.state.mkdir()
            found = document(eir("check", LISTED, "--json", "-c", empty.path))
            assert (found["observed"], found["not_loaded"]) == ([], ["stolen", "tracked"])

    @pytest.mark.parametrize(
        "options",
        ["--imsi 26201x", "--imsi 12345", "--imsi 1234567890123456", "--software-version 7", "--software-version 7a"],
    )
    def test_what_no_request_carries_is_wrong_usage(self, eir, options):
        status, out, err = eir("check", LISTED, *options.split())
        assert (status, out) == (2, "")
        assert f"eir: {options}: " in err

    @pytest.mark.parametrize(
        "imei", ["3520990017614", "35209900176148111", "x", "3520990017614\N{FULLWIDTH DIGIT EIGHT}"]
    )
    def test_a_malformed_identifier_gets_the_answer_of_the_policy(self, eir, imei):
        status, out, err = eir("check", imei, "--json")
        assert status == 2
        found = json.loads(out)
        assert (found["imei"], found["status"], found["list"]) == (imei, None, None)
        assert found["reason"]
        assert "error answer" in err
        assert f"{imei}: error\n  because of the policy's bad_identity\n  reason: " in eir("check", imei)[1]

    @pytest.mark.parametrize(
        "typed",
        [
            "35-209900-176148-1",
            "35 209900 176148 1",
            " 35209900\N{NO-BREAK SPACE}176148 ",
            "35\N{EN DASH}209900\N{EN DASH}176148",
        ],
    )
    def test_an_identifier_is_read_as_it_stands_on_the_box(self, eir, typed):
        found = document(eir("check", typed, "--json", "--imsi", "001 01-0123456789"))
        assert (found["imei"].isdigit(), found["imei"][:14], found["status"], found["imsi"]) == (
            True,
            LISTED,
            "blacklisted",
            "001010123456789",
        )
        assert eir("show", "stolen", typed)[0] == 0

    @pytest.mark.parametrize("imei", ["35-209900-17614", "-", "35/209900/176148"])
    def test_what_is_no_identifier_ends_with_2(self, eir, imei):
        """A help desk that mistyped a number is not told that the phone is fine."""
        status, _, err = eir("check", "--json", "--", imei)
        assert status == 2
        assert f"eir: {imei.replace('-', '') or imei}: an IMEI has 14 or 15 digits" in err

    def test_a_probe_of_a_number_with_blanks_reports_that_it_is_sent_as_typed(self, eir):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            done = eir("probe", f"s13://127.0.0.1:{closed.getsockname()[1]}", "35 209900 176148 1", LISTED)
        assert (
            done[2].splitlines()[0]
            == "note: '35 209900 176148 1' is sent as typed; without blanks and dashes it would be 352099001761481"
        )
        assert done[2].count("note: ") == 1

    def test_a_missing_identifier_gets_the_answer_of_the_policy(self, eir):
        found = document(eir("check", "", "--json"))
        assert [found[key] for key in ("imei", "status", "rule", "list")] == ["", "greylisted", "no_identity", None]
        assert eir("check", "") == (
            0, "no identifier: greylisted\n  because of the policy's no_identity\n  reason: there is neither an IMEI nor a MEID\n", FROM_STORE,
        )  # fmt: skip

    def test_a_list_that_was_never_loaded_is_named(self, eir, tmp_path, host):
        with Site(tmp_path / "empty", host.publisher) as empty:
            empty.state.mkdir()
            assert "the list stolen has never been loaded" in eir("check", LISTED, "-c", empty.path)[1]


class TestLists:
    def test_the_document(self, eir):
        found = document(eir("lists", "--json"))
        keys = ["list", "kind", "serial", "entries", "issued", "expires", "signers", "loaded", "digest", "state"]
        assert [list(row) for row in found] == [keys, keys]
        stolen = found[0]
        assert [stolen[key] for key in ("list", "kind", "serial", "entries", "state")] == [
            "stolen",
            "devices",
            1,
            3,
            "in force",
        ]
        assert re.fullmatch(r"agency@publisher\.example SHA256:\S+", *stolen["signers"])
        assert re.fullmatch(r"[0-9a-f]{64}", stolen["digest"])
        times = [datetime.fromisoformat(stolen[key]) for key in ("issued", "loaded", "expires")]
        assert times == sorted(times)

    def test_a_damaged_list_hides_no_other(self, eir, tmp_path, host):
        with Site(tmp_path / "damaged", host.publisher) as site:
            for name in ("stolen", "tracked"):
                site.load([LISTED], list_name=name)
            with closing(sqlite3.connect(site.state / "lists.sqlite")) as db, db:
                db.execute("UPDATE heads SET head = '{' WHERE list = 'stolen'")
            rows = document(eir("lists", "--json", "-c", site.path))
            assert [(row["list"], row["state"], row["serial"]) for row in rows] == [
                ("stolen", "damaged", None),
                ("tracked", "in force", 1),
            ]
            assert "damaged" in eir("lists", "-c", site.path)[1]
            assert len(document(eir("history", "tracked", "--json", "-c", site.path))) == 1

    def test_never_loaded(self, eir, tmp_path, host):
        with Site(tmp_path / "empty", host.publisher) as empty:
            empty.state.mkdir()
            row = document(eir("lists", "--json", "-c", empty.path))[0]
        assert (row["state"], row["serial"], row["signers"]) == ("never loaded", None, [])

    def test_history(self, eir):
        found = document(eir("history", "--json"))
        assert {tuple(row) for row in found} == {
            (
                "time",
                "who",
                "what",
                "list",
                "serial",
                "digest",
                "detail",
                "generation",
                "outcome",
                "rows",
                "count",
                "first",
            )
        }
        assert [(row["what"], row["list"], row["serial"]) for row in found] == [
            ("load", "stolen", 1), ("load", "tracked", 1), ("refuse", "tracked", 1),
        ]  # fmt: skip
        assert all("@" in row["who"] for row in found)
        assert [row["what"] for row in document(eir("history", "tracked", "--json", "-n", "1"))] == ["refuse"]

    def test_history_of_a_list_has_who_signed_and_what_claims_to_be_of_it(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED])
            (tmp_path / "other").mkdir()
            manifest = Publisher(tmp_path / "other").publish(
                tmp_path, [*(site.folder / "releases").glob("*.csv")], list_name="stolen", serial=5
            )
            site.eir("load", manifest, status=1)
            loaded, refused = site.json("history", "stolen")
            assert re.search(r"; signed by agency@publisher\.example SHA256:\S+$", loaded["detail"])
            assert (refused["list"], refused["serial"]) == (None, None)
            assert refused["detail"].endswith("(claims stolen 5, unverified)")
            assert [row["what"] for row in site.json("history", "tracked")] == []
            assert re.search(r"\d:\d\d:\d\dZ ", site.eir("history").stdout)
            done = site.eir("history", "stollen", status=2)
            assert "there are: stolen, tracked; did you mean 'stolen'?" in done.stderr

    def test_a_dry_run_on_a_fresh_host_leaves_no_state_folder(self, host, tmp_path):
        with Site(tmp_path / "fresh", host.publisher) as site:
            site.configure(lists={"stolen": {"signers": "signers"}, "own": {"local": True}}, policy={"rules": []})
            assert "would load" in site.eir("load", "--dry-run", site.release([LISTED])).stderr
            assert "nothing was changed" in site.eir("add", "own", LISTED, "--reason", "x", "--dry-run").stdout
            assert not site.state.exists()

    def test_dry_run_counts_added_devices_and_changes_nothing(self, eir, host):
        before = document(eir("lists", "--json"))
        manifest = host.release([LISTED, f"{UNLISTED}7", f"{UNLISTED[:-1]}0"], serial=2)
        (report,) = host.json("load", "--dry-run", manifest)
        assert (report["outcome"], report["entries"]) == ("would load", 3)
        assert document(eir("lists", "--json")) == before

    def test_a_refused_one_does_not_keep_the_next_from_being_tried(self, host):
        missing = host.folder / "none.manifest.json"
        good = host.release([TRACKED], list_name="tracked", serial=3)
        done = host.eir("load", "--json", "--dry-run", missing, good, status=1)
        assert [report["outcome"] for report in json.loads(done.stdout)] == ["refused", "would load"]
        assert f"{missing}: refused" in done.stderr

    def test_a_load_reports_whether_a_node_has_it_in_force(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            assert (
                "no node runs on the state folder" in site.eir("load", site.release([LISTED])).stderr.splitlines()[-1]
            )
            node = site.start()
            said = site.eir("load", site.release([UNLISTED], serial=2)).stderr.splitlines()[-1]
            assert said == f"the node on this host (process {node.pid}) has taken over stolen"
            assert node.status()["lists"]["stolen"]["serial"] == 2
            assert site.eir("rollback", "stolen", "--dry-run").stderr == ""
            assert site.eir("rollback", "stolen").stderr == f"{said}\n"
            assert node.status()["lists"]["stolen"]["serial"] == 1

    def test_taken_over_means_that_the_disk_has_it(self, host, tmp_path, constants):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED])
            node = site.start()
            for serial in (2, 3):
                assert "has taken over stolen" in site.eir("load", site.release([LISTED], serial=serial)).stderr
                entry = load_in_force(site.state)["stolen"]
                assert (entry.serial, entry.mark) == (serial, (0, serial))
            node.end()
            assert load_in_force(site.state)["stolen"] == entry
            node = site.start()
            file = site.state / "in-force.json"
            file.unlink()
            file.mkdir()  # as a full disk, which lets nobody write the file
            constants({"eir.cli.in_force.TAKEN_OVER_S": 0.05})
            said = site.eir("load", site.release([LISTED], serial=4)).stderr.splitlines()[-1]
            assert said == f"the node on this host (process {node.pid}) has not taken over stolen yet; see eir status"
            file.rmdir()
            until(lambda: load_in_force(site.state).get("stolen", entry).mark == (0, 4))

    def test_a_local_list_has_changes_instead_of_serials(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.configure(lists={"own": {"local": True}}, policy={"rules": [{"list": "own", "answer": "blacklisted"}]})
            added = site.json("add", "own", LISTED, UNLISTED, "--reason", "a case")
            assert added == {
                "list": "own", "holds": "devices", "what": "add", "entries": 2, "entries_change": 2, "come": 2, "gone": 0, "generation": 1,
                "lifted": [], "dry_run": False,
            }  # fmt: skip
            removed = site.json("remove", "own", UNLISTED, "--reason", "another case")
            assert (removed["entries"], removed["gone"], removed["generation"]) == (1, 1, 2)
            assert re.search(r"^own +devices +change 2 +1 ", site.eir("lists").stdout, re.MULTILINE)
            assert "by rule 1, list own (change 2)" in site.eir("check", LISTED).stdout
            assert [row["serial"] for row in site.json("lists")] == [0]
            assert site.json("check", LISTED)["serial"] == 0

    def test_an_empty_local_list_is_empty(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            rules = [{"list": "own", "answer": "blacklisted"}]
            site.configure(lists={"own": {"local": True}, "allowed": {"local": True}}, policy={"rules": rules})
            site.start()
            site.eir("add", "allowed", LISTED, "--reason", "x")
            site.eir("remove", "allowed", LISTED, "--reason", "x")  # "allowed" has no entry again, "own" never had one
            for options in ((), ("--store",)):
                assert "note" not in site.eir("check", LISTED, *options).stdout
                rows = site.json("lists", *options)
                assert [(row["list"], row["entries"], row["state"]) for row in rows] == [
                    ("own", 0, "empty"), ("allowed", 0, "empty"),
                ]  # fmt: skip
            for name in ("own", "allowed"):
                assert site.eir("show", name, status=1).stderr.splitlines()[-1] == f"eir: {name} is empty"
                assert site.eir("export", name).stdout in {"imei\n", "imei,reason\n"}
            undone = site.eir("rollback", "own", status=1).stderr
            assert (
                undone
                == "eir: no release of list own before the one in force is kept; it has never been loaded or changed\n"
            )
            site.configure(
                lists={"own": {"local": True}, "new": {"local": True}},
                policy={"rules": [{"not_list": "new", "answer": "blacklisted"}]},
            )
            note = "note: the list new has never been loaded or changed, so no rule that needs it can hold"
            for _ in range(2):
                assert note in site.eir("check", LISTED, "--store").stdout
                assert site.eir("reload").stdout.startswith("reloaded")
                assert note in site.eir("check", LISTED).stdout

    def test_a_local_list_that_its_store_lost_does_not_begin_again_unnoticed(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.configure(lists={"own": {"local": True}}, policy={"rules": [{"list": "own", "answer": "blacklisted"}]})
            mistyped = site.eir("add", "own", f"{LISTED}9", "--reason", "a case").stderr
            assert f"warning: {LISTED}9: its check digit would be 1; check the number\n" in mistyped
            assert "check digit" not in site.eir("add", "own", UNLISTED, "--reason", "a case").stderr
            node = site.start()
            until((site.state / "in-force.json").exists)
            site.configure(lists={"other": {"local": True}}, policy={"rules": []})
            assert "list own is no longer configured: it has no effect" in site.eir("reload").stdout
            site.configure(lists={"own": {"local": True}}, policy={"rules": [{"list": "own", "answer": "blacklisted"}]})
            assert site.eir("reload").stdout == "reloaded\n"
            node.end()
            for file in site.state.glob("lists.sqlite*"):
                file.unlink()
            refused = site.eir("add", "own", TRACKED, "--reason", "a case", status=1).stderr
            assert "list own: the store has lost generation 2, which this node holds; wait until a node" in refused
            assert "never been loaded" in site.eir("rollback", "own", status=1).stderr
            site.configure(heal=False)
            node = site.start()
            until(lambda: "own" in str(node.status()["troubles"]))
            assert node.metrics()["eir_store_lost_data{list=own}"] == 1
            assert site.json("check", UNLISTED)["status"] == "blacklisted", "the list stays in force"
            assert "eir lists abandon own" in site.eir("add", "own", TRACKED, "--reason", "a case", status=1).stderr
            abandoned = site.eir("lists", "abandon", "own", "--reason", "begun again").stdout
            assert abandoned == "own: generation 2 is given up; 0 entries of the store are in force\n"
            until(lambda: site.json("check", UNLISTED)["status"] == "whitelisted")
            site.eir("add", "own", TRACKED, "--reason", "a case")
            until(lambda: not node.status()["troubles"])
            assert [event["what"] for event in site.json("history", "own")][-2:] == ["abandon", "add"]
            again = site.eir("lists", "abandon", "own", "--reason", "again", status=1).stderr
            assert again == "eir: nothing was changed: the store has not lost own\n"

    def test_the_highest_serial_outlives_a_stop_at_once_and_an_older_backup(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED], serial=6)
            node = site.start()
            until((site.state / "in-force.json").exists)
            node.end()
            backup = (site.state / "lists.sqlite").read_bytes()
            site.eir("load", site.release([LISTED, UNLISTED], serial=7))
            assert load_in_force(site.state)["stolen"].mark == (0, 7)
            for file in site.state.glob("lists.sqlite*"):
                file.unlink()
            (site.state / "lists.sqlite").write_bytes(backup)
            node = site.start()
            lost = "its highest serial is 6, but this node accepted 7"
            until(lambda: any(lost in said for said in node.status()["troubles"]))

    def test_a_serial_that_is_set_back_is_stored_at_once(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED], serial=6)
            site.eir("lists", "reset-serial", "stolen", "--to", "2", "--reason", "a mistake")
            assert load_in_force(site.state)["stolen"].mark == (1, 2)

    def test_an_entry_that_begins_later_is_shown_with_its_begin_by_node_and_store(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            lists = {"own": {"local": True}, "again": {"local": True}}
            site.configure(lists=lists, policy={"rules": [{"list": "own", "answer": "blacklisted"}]})
            refused = site.eir("add", "own", LISTED, "--reason", "x", "--from", "soon", status=2).stderr
            assert "--from soon: expected 2026-12-31, 2026-12-31T12:00:00Z, or a duration" in refused
            backwards = ("--from", "2100-01-02", "--until", "2100-01-01")
            assert (
                "expected --from before --until"
                in site.eir("add", "own", LISTED, "--reason", "x", *backwards, status=1).stderr
            )
            times = ("--from", "2100-01-01", "--until", "2100-01-31")
            added = site.json("add", "own", LISTED, "--reason", "notice", *times)
            assert (added["come"], added["entries"]) == (1, 1)
            site.eir("add", "own", UNLISTED, "--reason", "stolen")
            begin, end = "2100-01-01T00:00:00Z", "2100-02-01T00:00:00Z"

            def shown(*options):
                found = site.json("check", LISTED, *options)
                assert (found["status"], found["pending"]) == ("whitelisted", [{"list": "own", "begin": begin}])
                assert f"  from {begin}: list own\n" in site.eir("check", LISTED, *options).stdout
                assert site.json("check", UNLISTED, *options)["pending"] == []
                rows = site.json("show", "own", *options)["entries"]
                assert [(row["begin"], row["until"], row["reason"]) for row in rows] == [
                    (None, None, "stolen"), (begin, end, "notice"),
                ]  # fmt: skip
                assert re.search(
                    rf"^{LISTED} +{begin} +notice +{end} ", site.eir("show", "own", *options).stdout, re.MULTILINE
                )

            shown()
            node = site.start()
            shown()
            shown("--store")
            assert node.metrics()["eir_list_pending{list=own}"] == 1
            site.eir("add", "own", LISTED, "--reason", "stolen", "--replace")
            until(lambda: site.json("check", LISTED)["status"] == "blacklisted")
            site.eir("rollback", "own")
            until(lambda: node.metrics()["eir_list_pending{list=own}"] == 1)
            exported = site.folder / "own.csv"
            site.eir("export", "own", "--out", exported)
            assert exported.read_text() == (
                f"imei,reason,begin,until\n{UNLISTED},stolen,,\n{LISTED},notice,{begin},{end}\n"
            )
            site.eir("add", "again", "--file", exported, "--reason", "as own")
            digests = {row["list"]: row["digest"] for row in site.json("lists", "--store")}
            assert digests["own"] == digests["again"]

    async def test_the_author_of_an_entry_is_in_the_log_or_the_journal_or_unknown(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.configure(lists={"own": {"local": True}}, policy={"rules": []})
            site.state.mkdir(mode=0o750)
            store = open_store("sqlite", site.state)
            lists = Lists(store, "old@host")
            await lists.load(map(int, (LISTED, UNLISTED)))  # as a base, which names no rows
            await lists.change([int(TRACKED)])
            await store.close()

            async def authors():
                found = json.loads((await site.eir_beside("show", "own", "--json")).stdout)
                return {row["entry"]: (row["who"], row["time"]) for row in found["entries"]}

            found = await authors()
            assert found[LISTED] == found[UNLISTED] == ("before this journal", None)
            assert found[TRACKED][0] == "old@host"
            journal = Journal(
                site.state / "journal", keep=timedelta(days=1), max_bytes=1 << 20, feed_max_bytes=1 << 20, report=silent
            )
            journal.open()
            rows = ({"effect": "added", "imei": LISTED}, {"effect": "removed", "imei": UNLISTED})
            moment = "2026-11-24T00:00:00Z"
            journal.append(
                MAIN, JournalEvent(time=moment, who="an operator", what="add", list="own", change="x", rows=rows)
            )
            journal.close()
            assert await authors() == found | {LISTED: ("an operator", moment)}

    @pytest.mark.skipif("redis" not in programs(), reason="redis-server is not installed")
    def test_a_host_without_a_node_begins_a_list_of_a_shared_store_only_with_first(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site, Server(programs()["redis"]) as redis:
            rules = [{"list": "own", "answer": "blacklisted"}]
            lists = {"own": {"local": True}, "other": {"local": True}}
            site.configure(store=redis.url, lists=lists, policy={"rules": rules})
            add = ("add", "own", LISTED, "--reason", "x")
            assert "if the list is new, repeat the command with --first" in site.eir(*add, status=1).stderr
            assert "nothing was changed" in site.eir(*add, "--dry-run").stdout
            site.eir(*add, "--first")
            site.eir("add", "own", UNLISTED, "--reason", "x")
            node = site.start()
            until(site.is_copied)
            site.eir("add", "other", LISTED, "--reason", "x")  # the node knows the lists
            node.end()
            redis.flush()
            assert "eir lists abandon own" in site.eir(*add, "--first", status=1).stderr

    def test_a_whole_tac_takes_force_and_a_dry_run_prints_its_size(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.configure(lists={"own": {"local": True}}, policy={"rules": [{"list": "own", "answer": "blacklisted"}]})
            command = ("own", LISTED[:8], "--tac", "--reason", "recalled")
            for options in ((), ("--dry-run",)):
                done = site.eir("add", *command, *options, status=1)
                assert "1,000,000 devices come, 0 go, and 0 are in force" in done.stderr
                assert "--force" in done.stderr
            assert site.json("lists")[0]["state"] == "empty"
            assert site.eir("add", *command, "--dry-run", "--force").stdout.endswith("; nothing was changed\n")
            assert site.json("add", *command, "--force")["lifted"] == ["growth"]
            assert "1,000,000 go" in site.eir("remove", *command, status=1).stderr
            removed = site.json("remove", *command, "--dry-run", "--force")
            assert (removed["gone"], removed["dry_run"], site.json("lists")[0]["entries"]) == (1_000_000, True, 1)

    def test_a_load_always_prints_the_added_and_removed_devices(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED])
            manifest = site.release([UNLISTED, TRACKED], serial=2)
            for options in (("--dry-run",), ()):
                assert "; 2 devices come, 1 go; " in site.eir("load", *options, manifest).stderr
            (report,) = site.json("load", "--dry-run", site.release([LISTED], serial=3))
            assert (report["come"], report["gone"], report["lifted"]) == (1, 2, [])
            assert "; 2 devices come, 1 go; signed by " in site.json("history", "stolen")[-1]["detail"]

    def test_a_serial_far_too_high_is_refused_and_the_highest_one_can_be_set_back(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED], serial=2000001)
            too_high = site.eir("load", "--force", site.release([LISTED], serial=3000002), status=1).stderr
            assert "refused (serial_step): serial 3000002 is too high" in too_high
            assert "publish it with a serial from 2000002 to 3000001" in too_high
            reset = ("lists", "reset-serial", "stolen", "--to")
            assert "Missing option '--reason'" in site.eir(*reset, "1", status=2).stderr
            assert (
                "is 2000001; expected a lower serial for --to"
                in site.eir(*reset, "2000001", "--reason", "typing error", status=1).stderr
            )
            said = site.eir(*reset, "1", "--reason", "typing error").stdout
            assert (
                said
                == "stolen: the highest serial is 1 again; serial 2000001 stays in force until a full release with a higher serial\n"
            )
            site.load([UNLISTED], serial=2)
            assert [row["serial"] for row in site.json("lists") if row["list"] == "stolen"] == [2]
            assert [row["what"] for row in site.json("history", "stolen")] == ["load", "refuse", "reset-serial", "load"]
            assert site.json(*reset, "0", "--reason", "again") == {"list": "stolen", "serial": 2, "highest_serial": 0}
            assert (
                "never been loaded"
                in site.eir("lists", "reset-serial", "tracked", "--to", "1", "--reason", "x", status=1).stderr
            )

    def test_a_file_that_is_no_manifest_is_reported_and_not_recorded(self, eir, host):
        manifest = host.release([LISTED], list_name="stolen", serial=1)
        events = document(eir("history", "--json"))
        for mistaken in (manifest.parent, manifest.parent / "stolen-1.csv.zst", f"{manifest}.sig"):
            said = host.eir("load", mistaken, status=1).stderr
            assert f"this is not a manifest; did you mean {manifest.parent}/" in said
        assert document(eir("history", "--json")) == events

    def test_the_refusal_of_a_release_for_no_list_names_the_lists(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.configure(lists={**site.settings["lists"], "own": {"local": True}})
            assert (
                "own is local: it changes by eir add"
                in site.eir("load", site.release([LISTED], list_name="own"), status=1).stderr
            )
            assert (
                "did you mean 'stolen'?"
                in site.eir("load", site.release([LISTED], list_name="stollen"), status=1).stderr
            )

    def test_publish_replaces_no_other_release_unasked(self, eir, host, tmp_path):
        data = tmp_path / "new.csv"
        command = [*PUBLISH, data, "--key", host.publisher.key]
        data.write_text(f"imei\n{LISTED}\n")
        assert eir(*command)[0] == 0
        assert eir(*command)[0] == 0  # the same, signed again
        data.write_text("imei\n")
        status, _, err = eir(*command)
        assert status == 1
        assert "publish with a higher serial, or with --force" in err
        status, _, err = eir(*command, "--force")
        assert (status, err) == (0, "warning: new.csv holds no row\n")
        data.write_text(f"imei;reason\n{LISTED};lost\n")
        status, _, err = eir(*command)
        assert status == 1
        assert "its columns are separated by semicolons; save it with commas" in err
        data.write_text(f"serial number,reason\n{LISTED},lost\n")
        assert "(no column is named imei, or as in another layout)" in eir(*command)[2]
        data.write_text(f"imei,reason\n{LISTED},lost\n", encoding="utf-16")
        assert "(it is in UTF-16; save it as CSV in UTF-8)" in eir(*command)[2]

    def test_publish_names_a_bad_row_and_writes_nothing(self, eir, host, tmp_path):
        data = tmp_path / "new.csv"
        data.write_text(f"imei\n{LISTED}\n{LISTED[:-1]}O\n")
        command = [*PUBLISH, data, "--key", host.publisher.key]
        status, _, err = eir(*command)
        assert status == 1
        assert (
            "refused (bad_rows): 1 bad rows; 0 are allowed (--bad-rows-max)\nnew.csv:3: no IMEI (14 to 16 digits)"
            in err
        )
        assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]
        every = tmp_path / "every.csv"
        status, _, _ = eir(*command, "--bad-rows", every)
        header, row = csv.reader(every.read_text().splitlines())
        assert (status, header, row[:2], row[3]) == (
            1,
            ["file", "line", "problem", "row"],
            ["new.csv", "3"],
            f"{LISTED[:-1]}O",
        )
        assert every.stat().st_mode & 0o777 == 0o600
        every.unlink()
        assert eir(*command, "--bad-rows", data)[0] == 2
        assert data.read_text() == f"imei\n{LISTED}\n{LISTED[:-1]}O\n"
        status, _, _ = eir(*command, "--bad-rows-max", "1", "--strict", "--to", tmp_path / "www", "--bad-rows", every)
        assert (status, len(every.read_text().splitlines())) == (1, 2)
        every.unlink()
        shutil.rmtree(tmp_path / "www")
        status, _, err = eir(*command, "--bad-rows-max", "1")
        assert (status, err.startswith("warning: a bad row, left out of the release: new.csv:3: ")) == (0, True)

    def test_publish_writes_manifest_and_signature_and_prints_their_paths(self, eir, host, tmp_path):
        data = tmp_path / "new.csv"
        data.write_text(f"imei\n{LISTED}\n")
        options = ["--list", "stolen", "--serial", "9", "--expires", "36h", "--key", host.publisher.key]
        said = document(eir("publish", data, *options, "--json"))
        assert said == {
            "manifest": str(tmp_path / "stolen-9.manifest.json"), "signature": str(tmp_path / "stolen-9.manifest.json.sig"),
            "rows": 1, "entries": 1, "duplicates": 0, "conflicting": 0, "other_reasons": 0, "bad_rows": 0, "skipped": 0, "wrong_check_digits": 0,
            "wrong_dates": 0, "ended": 0, "zeros": 0, "future_dates": 0, "long_rows": 0,
        }  # fmt: skip
        assert eir("publish", data, *options)[1].startswith("1 rows; 1 entries\n")
        assert "x-added.csv" in eir("publish", "--help")[1]
        manifest = json.loads(Path(said["manifest"]).read_text())
        length = datetime.fromisoformat(manifest["expires"]) - datetime.fromisoformat(manifest["issued"])
        assert (manifest["serial"], length.total_seconds()) == (9, 36 * 3600)
        status, _, err = eir("publish", tmp_path / "none.csv", *options)
        assert status == 1
        assert "none.csv" in err


def on_terminal(host, *arguments, columns=80):
    """What a command shows on a terminal of that width."""
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = host.popen(*arguments, env=host.environment(TERM="xterm"), **terminal)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # EIO: the other side is closed
        pass
    os.close(ours)
    assert process.wait(PATIENCE_S) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


class TestTables:
    @pytest.mark.long(short=["80"])
    @pytest.mark.parametrize("columns", [80, 200])
    def test_on_a_terminal_all_is_there_and_nothing_is_cut(self, host, columns):
        shown = on_terminal(host, "lists", columns=columns)
        loaded_on = host.json("history")[0]["time"][:10]
        for text in ("stolen", "tracked", "devices", "agency@publisher.example", "in force", loaded_on):
            assert text in shown
        assert "SHA256" not in shown
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= columns
        history = on_terminal(host, "history", columns=columns)
        assert "…" not in history
        detail = host.json("history")[2]["detail"]
        assert "".join(detail.split()) in "".join(history.split())

    def test_in_a_pipe_a_row_is_a_line_however_long(self, eir):
        head, stolen, tracked = eir("lists")[1].splitlines()
        assert head.split() == ["list", "kind", "serial", "entries", "issued", "expires", "signers", "loaded", "state"]
        minute = r"\d{4}-\d\d-\d\d \d\d:\d\dZ"
        row = rf"stolen +devices +1 +3 +{minute} +{minute} +agency@publisher\.example +{minute} +in force"
        assert re.fullmatch(row, stolen)
        assert tracked.startswith("tracked")
        assert len(eir("history")[1].splitlines()) == 4

    def test_any_number_of_rows_may_be_wanted(self, eir):
        for command in (f"history -n {10**30}", f"show stolen -n {10**30}", f"show stolen --skip {10**30}"):
            status, _, err = eir(*command.split())
            assert status == int("skip" in command), err

    def test_text_that_the_terminal_cannot_show_is_reported_in_a_line(self, host):
        with Site(host.folder / "latin", host.publisher) as site:
            site.configure(lists={"own": {"local": True}}, policy={"rules": [{"list": "own", "answer": "blacklisted"}]})
            site.eir("add", "own", LISTED, "--reason", "Ŝtelita")
            done = site.eir("check", LISTED, status=1, prefix=["env", "PYTHONIOENCODING=latin-1"])
            assert done.stderr.splitlines()[-1].startswith("eir: the output is in latin-1")

    @pytest.mark.long
    def test_progress_is_for_terminals_only(self, host):
        manifest = host.release([LISTED, UNLISTED, TRACKED], serial=4)
        assert host.eir("load", "--dry-run", manifest).stderr.count("\n") == 1
        assert "would load" in on_terminal(host, "load", "--dry-run", manifest)


class TestWithoutANode:
    @pytest.mark.parametrize("command", ["peers", "reload", "drain", "peer disable mme", "peer enable mme"])
    def test_the_commands_for_a_running_node_report_that_none_runs(self, eir, host, command):
        status, out, err = eir(*command.split())
        assert (status, out) == (1, "")
        assert f"no node runs on the state folder {host.state}" in err
        assert "eir serve" in err

    def test_status_is_critical(self, eir):
        status, out, _ = eir("status")
        assert status == 2
        assert out.startswith("EIR CRITICAL - no node runs on")

    @pytest.mark.parametrize(
        "command", ["lists", "history", "check 35209900176148", "rollback stolen", "peers", "reload"]
    )
    def test_a_state_folder_that_is_not_there_is_named_and_not_made(self, eir, host, tmp_path, command):
        with Site(tmp_path / "fresh", host.publisher) as fresh:
            status, out, err = eir(*command.split(), "-c", fresh.path)
            assert (status, out) == (1, "")
            assert f"the state folder {fresh.state}" in err
            assert not fresh.state.exists()

    def test_a_state_folder_that_cannot_be_used_is_named(self, eir, host, tmp_path):
        with Site(tmp_path / "fresh", host.publisher) as fresh:
            (tmp_path / "file").write_text("")
            fresh.configure(state=str(tmp_path / "file" / "var"))
            for command, expected in (
                ("lists", 1),
                ("serve", 2),
                (f"check {LISTED}", 1),
            ):  # 2: systemd does not try again
                status, out, err = eir(*command.split(), "-c", fresh.path)
                assert (status, out) == (expected, "")
                assert str(tmp_path / "file") in err

    def test_a_store_file_that_is_none(self, eir, host, tmp_path):
        with Site(tmp_path / "fresh", host.publisher) as fresh:
            fresh.load([LISTED])
            (file,) = fresh.state.glob("*.sqlite*")
            file.write_bytes(b"no database" * 1000)
            status, _, err = eir("lists", "-c", fresh.path)
            assert status == 1
            assert str(file) in err


def test_the_first_default_file_that_can_be_read_is_the_configuration(host, tmp_path, constants):
    """A folder stands where a file should: even root cannot read it."""
    constants({"eir.cli.access.SYSTEM_CONFIG": str(host.path)})

    def config():
        environment = {name: value for name, value in os.environ.items() if name != "EIR_CONFIG"}
        return run_eir("config", env=environment, cwd=tmp_path, status=None)

    assert config().returncode == 0, "the first is missing"
    (tmp_path / "config" / "eir.yaml").mkdir(parents=True)
    done = config()
    assert (done.returncode, EIR in done.stdout) == (0, True)
    constants({"eir.cli.access.SYSTEM_CONFIG": str(tmp_path)})
    done = config()
    assert (done.returncode, done.stderr.partition(":")[0]) == (2, "config/eir.yaml")


def test_where_no_node_runs_both_default_files_are_named(host, tmp_path, constants):
    """A node may run with the other file."""
    constants({"eir.cli.access.SYSTEM_CONFIG": str(host.path)})
    environment = {name: value for name, value in os.environ.items() if name != "EIR_CONFIG"}
    both = f"; config/eir.yaml was read, but {host.path} exists too: -c FILE selects one"

    def said(*arguments):
        done = run_eir(*arguments, env=environment, cwd=tmp_path, status=None)
        return done.stdout + done.stderr

    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "eir.yaml").write_text(
        host.path.read_text().replace("signers: signers", f"signers: {host.folder}/signers")
    )
    trace = ("trace", "--imei", LISTED, "--reason", "a case")
    for command in (("status",), ("peers",), ("reload",), ("drain",), ("peer", "disable", "mme"), trace):
        assert f"no node runs on the state folder {tmp_path}/config/var (start one: eir serve){both}\n" in said(
            *command
        )
    assert both not in said("drain", "-c", "config/eir.yaml")
    manifest = host.release([LISTED], serial=7)
    loaded = said("load", str(manifest))
    assert f"{both}; nodes that start later" in loaded
    assert f"from the store, no node answers here{both}\n" in said("check", LISTED)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives the state folder to somebody else")
class TestAsSomebodyElse:
    """As a user whom the file modes hold back, though this one is root: without the capabilities that lift them."""

    HELD_BACK = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")

    def eir(self, site, *arguments):
        return site.eir(*arguments, status=None, prefix=self.HELD_BACK)

    @pytest.fixture
    def elsewhere(self, host, tmp_path):
        """Run a command in a folder whose config/ only another user can read, as on a node's host; no file is named."""
        (tmp_path / "config").mkdir(mode=0o700)
        (tmp_path / "config" / "eir.yaml").write_text("identity: {host: eir.example, realm: example}\n")
        os.chown(tmp_path / "config", 65534, -1)
        without = {name: value for name, value in host.environment().items() if name != "EIR_CONFIG"}

        def run(*arguments, **changes):
            return run_eir(*arguments, env=without | changes, cwd=tmp_path, status=None, prefix=self.HELD_BACK)

        return run

    def test_a_default_file_that_they_may_not_read_is_passed_over(self, host, elsewhere, tmp_path):
        (tmp_path / "rows.csv").write_text(f"imei\n{LISTED}\n")
        release = ("--list", "stolen", "--expires", "14d", "--key", host.publisher.key, tmp_path / "rows.csv")
        assert elsewhere("publish", "--serial", "1", *release).returncode == 0
        assert elsewhere("publish", "--serial", "2", "--to", tmp_path / "www", *release).returncode == 0
        key = host.publisher.key
        done = elsewhere("offer", tmp_path / "stolen-1.manifest.json", "--to", tmp_path / "other", "--key", key)
        assert done.returncode == 0, done.stderr
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            port = nobody.getsockname()[1]
        done = elsewhere("probe", f"s13://127.0.0.1:{port}", LISTED)
        assert (done.returncode, "config/eir.yaml" in done.stderr) == (1, False), "no EIR answers there"
        host.start()
        done = elsewhere("probe", "s13://{}:{}?origin_realm={}".format(*host.node.address, REALM), LISTED)
        host.node.end()
        assert (done.returncode, "blacklisted" in done.stdout) == (0, True), done.stderr

    @pytest.mark.long(short=["lists--c", "lists-EIR_CONFIG"])
    @pytest.mark.parametrize(
        ("command", "named"),
        [*((command, "-c") for command in ("publish", "offer", "probe", "audit", "lists")), ("lists", "EIR_CONFIG")],
    )
    def test_a_named_file_that_they_may_not_read_is_an_error(self, host, elsewhere, tmp_path, command, named):
        (tmp_path / "rows.csv").write_text(f"imei\n{LISTED}\n")
        key = host.publisher.key
        arguments = {
            "publish": ("--list", "stolen", "--serial", "1", "--expires", "14d", "--key", key, tmp_path / "rows.csv"),
            "offer": (tmp_path / "x.manifest.json", "--to", tmp_path / "www", "--key", key),
            "probe": (f"s13://127.0.0.1:1?origin_realm={REALM}", LISTED), "audit": (tmp_path / "x.manifest.json", "s13://127.0.0.1:1"),
            "lists": (),
        }[command]  # fmt: skip
        how = {} if named == "-c" else {named: "config/eir.yaml"}
        done = elsewhere(command, *arguments, *(["-c", "config/eir.yaml"] if named == "-c" else []), **how)
        assert done.returncode == 2
        assert "config/eir.yaml:1: cannot be read: Permission denied" in done.stderr

    def test_status_without_a_readable_configuration_is_unknown(self, elsewhere):
        for done in (elsewhere("status"), elsewhere("status", EIR_CONFIG="config/eir.yaml")):
            assert done.returncode == 3
            assert re.fullmatch(
                r"EIR UNKNOWN - .*config/eir\.yaml:1: cannot be read: Permission denied.*\n", done.stdout
            )

    @pytest.mark.long
    def test_they_get_the_name_of_the_user_who_may_run_it(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.load([LISTED])
            manifest = site.release([UNLISTED], serial=2)
            site.start()
            os.chown(site.state, 65534, -1)
            site.state.chmod(0o700)
            for command in (
                ["load", manifest],
                ["lists"],
                ["history"],
                ["check", LISTED],
                ["rollback", "stolen"],
                ["peers"],
            ):
                done = self.eir(site, *command)
                assert (done.returncode, done.stdout) == (1, "")
                assert "sudo -u nobody eir" in done.stderr, done.stderr
            done = self.eir(site, "status")
            assert done.returncode == 3
            assert re.fullmatch(r"EIR UNKNOWN - may not open the control socket .* sudo -u nobody eir …\n", done.stdout)
            os.chown(site.state, 0, -1)

    def test_root_gets_a_note_on_the_owner_of_the_folder_that_a_load_created(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            manifest = site.release([LISTED])
            assert f"chown -R USER {site.state}" in site.eir("load", manifest).stderr
            assert "chown" not in site.eir("load", site.release([UNLISTED], serial=2)).stderr

    def test_what_root_makes_in_anothers_folder_is_that_owners(self, host, tmp_path):
        with Site(tmp_path / "site", host.publisher) as site:
            site.state.mkdir(mode=0o750)
            (site.state / "kept").write_text("")
            os.chown(site.state, 65534, 65534)
            said = site.eir("load", site.release([LISTED])).stderr
            owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in site.state.iterdir()}
            assert owners.pop("kept") == (0, 0), "what was there stays as it was"
            assert "lists.sqlite" in owners
            assert set(owners.values()) == {(65534, 65534)}
            assert "chown" not in said


class TestEndings:
    @pytest.mark.long(short=["lists", "config"])
    @pytest.mark.parametrize(
        "command", ["lists", "lists --json", "history", "config", "--version", "check 35209900176148"]
    )
    def test_a_full_disk_is_an_error_to_print(self, host, command):
        with Path("/dev/full").open("w") as full:
            done = host.eir(*command.split(), stdout=full, status=1)
        assert done.stderr.removeprefix(FROM_STORE) == "eir: the output: No space left on device\n"

    def test_a_device_and_a_link_are_written_to_and_not_replaced(self, tmp_path):
        """`--out /dev/stdout` by root takes nothing away."""
        device, link, data = (tmp_path / name for name in ("device", "link", "data"))
        device.symlink_to(os.devnull)
        data.write_text("old")
        link.symlink_to(data)
        for each in (device, link):
            with written_to(each) as out:
                out.write("new")
            assert each.is_symlink()
        assert data.read_text() == "new"

    @pytest.mark.parametrize("opened", [written_to, open_replacement])
    def test_an_error_of_a_write_names_the_file_and_not_its_temporary_file(self, tmp_path, opened):
        for path in (tmp_path / "nothing" / "x", tmp_path / "too-large"):
            with no_file_above(1 << 12), pytest.raises(OSError) as caught, opened(path) as out:  # noqa: PT011 - any of the system
                out.write("0" * (1 << 14) if opened is written_to else bytes(1 << 14))
            assert caught.value.filename == str(path)
        assert not [*tmp_path.iterdir()]
        with pytest.raises(IsADirectoryError) as caught, opened(tmp_path / "x"):
            (tmp_path / "x").mkdir()
        assert str(caught.value.filename) == str(tmp_path / "x")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError) as caught, opened(tmp_path / "file" / "x"):
            raise AssertionError("not reached")
        assert str(caught.value.filename) == str(tmp_path / "file" / "x")

    @pytest.mark.parametrize("opened", [written_to, open_replacement])
    @pytest.mark.parametrize(
        "fault", [ConnectionResetError(errno.ECONNRESET, "reset"), FileNotFoundError(errno.ENOENT, "none", "None")]
    )
    def test_an_error_of_something_else_does_not_name_the_file(self, tmp_path, opened, fault):
        for path in (tmp_path / "x", Path(os.devnull)) if opened is written_to else (tmp_path / "x",):
            with pytest.raises(type(fault)) as caught, opened(path):
                raise type(fault)(fault.errno, fault.strerror, fault.filename)
            assert caught.value.filename == fault.filename

    def test_ctrl_c_is_130(self, host):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            target = f"s13://127.0.0.1:{silent.getsockname()[1]}"
            process = host.popen(
                "probe", target, LISTED, "--timeout", "60", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                prefix=["env", "--default-signal=INT"],  # the shell that ran the tests may have had them ignore SIGINT
            )  # fmt: skip
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=PROGRAM_S)
        assert process.returncode == 130
        assert out == ""
        assert "Traceback" not in err

    @pytest.mark.long(short=["lists", "lists --json"])
    @pytest.mark.parametrize(
        "command", ["lists", "lists --json", "history --json", "config", "--help", "check 35209900176148"]
    )
    def test_a_reader_that_went_away_is_no_error_to_print(self, host, command):
        ours, theirs = os.pipe()
        os.close(ours)
        done = host.eir(*command.split(), stdout=theirs, status=None)
        os.close(theirs)
        assert done.stderr.removeprefix(FROM_STORE) == ""
        assert done.returncode in {0, 1, 128 + signal.SIGPIPE}

    def test_a_node_goes_on_when_nobody_reads_its_log(self, host):
        ours, theirs = os.pipe()
        process = host.popen("serve", stderr=theirs, stdout=theirs)
        os.close(theirs)
        os.close(ours)
        try:
            until(lambda: host.eir("status", status=None).returncode < 2)  # it is CRITICAL until it is ready
            listening = host.json("status", status=None)["listening"][0].partition("://")[2]
            found = host.json("probe", f"s13://{listening}?origin_realm={REALM}&origin_host={HOST}", LISTED)
            assert found[0]["status"] == "blacklisted"
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


class TestProbe:
    def test_the_realm_of_the_configuration_is_its_own_and_nothing_else_of_it_is_needed(self, host):
        with Site(host.folder.parent / "realm", host.publisher) as site:
            site.configure(policy=POLICY)
            site.load([LISTED])
            target = "s13://{}:{}".format(*site.start().address)
            bare = site.folder / "bare.yaml"
            bare.write_text(f"identity: {{realm: {REALM}}}\nlists: {{stolen: {{signers: nowhere}}}}\n")
            assert [found["status"] for found in site.json("probe", target, LISTED, "-c", bare)] == ["blacklisted"]
            bare.write_text("{}\n")
            refused = site.eir("probe", target, LISTED, "-c", bare, status=1).stderr
            assert "probe.epc.mnc001.mcc001.3gppnetwork.org of realm epc.mnc001.mcc001.3gppnetwork.org" in refused
            far = f"{target}?destination_host=elsewhere&destination_realm={REALM}"
            found = site.json("probe", far, LISTED)
            assert [each["result_code"] for each in found] == [3002]
            bare.write_text(f"lists: {{stolen: {{signers: {site.folder}/signers}}}}\n")
            manifest = site.release([LISTED], serial=2)
            done = site.eir("audit", manifest, f"{target}?origin_realm={REALM}", "--all", "-c", bare)
            assert "1 of 1 devices answered as listed" in done.stdout

    def test_the_document_and_the_table(self, host):
        with Site(host.folder.parent / "probed", host.publisher) as site:
            site.configure(policy=POLICY)
            site.load([LISTED])
            node = site.start()
            bare = "s13://{}:{}".format(*node.address)
            target, options = f"{bare}?origin_realm={REALM}", ["--imsi", IMSI]
            found = site.json("probe", target, LISTED, UNLISTED, "nonsense", *options)
            keys = ["imei", "imsi", "status", "result_code", "experimental_result_code", "round_trip_ms"]
            assert [list(row) for row in found] == [keys] * 3
            assert [[row[key] for key in keys[:5]] for row in found] == [
                [LISTED, IMSI, "blacklisted", 2001, None],
                [UNLISTED, IMSI, "whitelisted", 2001, None],
                ["nonsense", IMSI, None, 5004, None],
            ]
            assert all(0 < row["round_trip_ms"] < 5000 for row in found)
            shown = on_terminal(site, "probe", target, LISTED, "nonsense", *options)
            for text in (LISTED, "nonsense", IMSI, "blacklisted", "2001", "5004"):
                assert text in shown
            refused = site.eir("probe", f"{bare}?origin_realm=stranger.example", LISTED, status=1)
            assert "3010" in refused.stderr
            said = site.json("check", LISTED, "--protocol", target)
            assert (said["protocol"], said["answer"]) == ("s13", "2001, Equipment-Status BLACKLISTED")
            said = site.eir("check", LISTED, "--protocol", bare.removeprefix("s13://"), status=2).stderr
            assert "expected one of s13://HOST, n5g://HOST" in said
            far = site.json(
                "check", LISTED, "--protocol", f"{target}&destination_host=elsewhere&destination_realm={REALM}"
            )
            assert (far["status"], far["answer"].partition(":")[0]) == (
                "blacklisted",
                "3002 DIAMETER_UNABLE_TO_DELIVER",
            )

    def test_over_tls_and_many_times(self, host, tmp_path):
        authority = Authority(tmp_path / "tls")
        ours, theirs = authority.write(EIR), authority.write(f"probe.{REALM}", stem="probe")
        entry = {
            "name": "probe",
            "host": f"probe.{REALM}",
            "from": ["127.0.0.0/8"],
            "expected": False,
            "answers": {"blacklisted": "greylisted"},
        }
        with Site(tmp_path / "site", host.publisher) as site:
            site.configure(listen=["tls://127.0.0.1:0"], tls=ours, peers=[entry])
            site.load([LISTED])
            node = site.start()
            assert node.status()["peers"] == {}
            bare = "s13://{}:{}".format(*node.address)
            files = f"cert={theirs['certificate']}&key={theirs['key']}&origin_realm={REALM}"
            target = f"{bare}?ca={theirs['ca']}&{files}"
            (found,) = site.json("probe", target, LISTED)
            assert (found["status"], found["result_code"]) == ("greylisted", 2001)
            many = site.json("probe", target, LISTED, UNLISTED, "--count", "11", "--rate", "1000")
            assert (many["asked"], many["answered"], many["answers"], many["fault"]) == (
                11,
                11,
                {"greylisted": 6, "whitelisted": 5},
                None,
            )
            assert "11 asked in" in site.eir("probe", target, LISTED, "--count", "11").stdout
            del entry["answers"]
            site.configure(peers=[entry])
            site.eir("reload")
            assert site.json("probe", target, LISTED)[0]["status"] == "blacklisted"
            stranger = Authority(tmp_path / "other").write(f"probe.{REALM}")
            wrong = f"{bare}?ca={stranger['ca']}&{files}"
            assert "cannot connect" in site.eir("probe", wrong, LISTED, status=1).stderr
            site.configure(tls=authority.write("another.example", stem="another"))
            site.eir("reload")
            assert (
                "its certificate is for another.example, and it calls itself "
                in site.eir("probe", target, LISTED, status=1).stderr
            )
            assert "all three" in site.eir("probe", f"{bare}?ca={theirs['ca']}", LISTED, status=2).stderr
            assert "--rate needs --count" in site.eir("probe", target, LISTED, "--rate", "5", status=2).stderr

    def test_nobody_there(self, eir):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            target = f"127.0.0.1:{free.getsockname()[1]}"
            status, out, err = eir("probe", f"s13://{target}", LISTED)
        assert (status, out) == (1, "")
        assert f"cannot connect to {target}" in err


def test_inbox_lists_the_waiting_files(host, tmp_path):
    site = Site(tmp_path / "site", host.publisher)
    site.configure(inbox="inbox")
    inbox = site.folder / "inbox"
    inbox.mkdir()
    assert site.eir("inbox").stderr == f"nothing waits in {inbox}\n"
    manifest = site.release([LISTED])
    for file in manifest.parent.iterdir():
        if ".json" in file.name:
            (inbox / file.name).write_bytes(file.read_bytes())
    (inbox / "readme.txt").write_text("x")
    (inbox / "stolen-2.manifest.json").write_text("{}")
    until(lambda: "stolen-1.csv.zst is missing" in site.eir("inbox").stderr)
    assert (
        "stolen-1.manifest.json: waiting: incomplete: stolen-1.csv.zst is missing\nreadme.txt: waiting: no delivered release names it\n"
        in (said := site.eir("inbox").stderr)
    )
    assert "stolen-2.manifest.json: waiting: its signature stolen-2.manifest.json.sig is missing\n" in said


def test_no_file_can_be_written_by_everyone(tmp_path, publisher):
    data = tmp_path / "new.csv"
    data.write_text(f"imei\n{LISTED}\n")
    run_eir(*PUBLISH, data, "--key", publisher.key, env=os.environ, cwd=tmp_path, umask=0)
    made = [path for path in tmp_path.iterdir() if path.name.startswith(("stolen", "x"))]
    assert made
    assert not [path for path in made if path.stat().st_mode & 0o002]
