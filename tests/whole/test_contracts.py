"""Contracts that others depend on, compared with a snapshot: keys, commands, metrics, log events, documents, stored forms, wire bytes.

The snapshot is `contracts.json` beside this file. Moves and renames inside the program must not change it. After a deliberate change
write it again, and review its difference: `EIR_WRITE_CONTRACTS=1 .venv/bin/python -m pytest tests/whole/test_contracts.py`.
"""

import asyncio
import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import redis
import typer
import yaml
from amf import Amf
from pages import ROOT, section
from simulated import m3ua_wire, osmo_wire
from simulated.luhn import check_digit
from simulated.msc import Msc
from simulated.node import LISTED, TRACKED, UNLISTED, run_eir, until
from simulated.register import Client, basic, device
from simulated.servers import Server, free_port, programs
from simulated.wire import Connection, Message, ecr, vector

from eir.cli.app import command_line
from eir.disk import UNFINISHED
from eir.node.observe.metrics import FAMILIES
from eir.wire.web.passwords import user_line

SNAPSHOT = Path(__file__).with_name("contracts.json")
IMSI = "001010123456789"
PASSWORD = "correct horse battery"


def hold(name, found):
    """Compare one section with the snapshot, or write it if `EIR_WRITE_CONTRACTS` is set."""
    found = json.loads(json.dumps(found))
    snapshot = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    if os.environ.get("EIR_WRITE_CONTRACTS"):
        SNAPSHOT.write_text(json.dumps(snapshot | {name: found}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return
    assert found == snapshot[name]


def shape(value):
    """The fields of a document and their types; of a list, those of all its members together."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        found = [shape(inner) for inner in value]
        if found and all(isinstance(each, dict) for each in found):
            names = {name for each in found for name in each}
            return [
                {
                    name: sorted({json.dumps(each[name], sort_keys=True) for each in found if name in each})
                    for name in sorted(names)
                }
            ]
        return sorted({json.dumps(each) for each in found})
    return "number" if type(value) in {int, float} else type(value).__name__


def test_keys_of_the_configuration():
    printed = run_eir("config", "--reference", "--json", env=dict(os.environ), cwd=ROOT)
    keys = json.loads(printed.stdout)
    hold("configuration", {key["key"]: [key["required"], key["default"], key["restart"]] for key in keys})


def parameters(command):
    """Options and arguments: name, number of values, default if it is plain."""
    return {
        "/".join([*parameter.opts, *parameter.secondary_opts]): [
            parameter.param_type_name,
            parameter.required,
            parameter.default if isinstance(parameter.default, str | int | float) else None,
        ]
        for parameter in command.params
    }


def test_commands():
    def walk(command):
        words = {name: walk(inner) for name, inner in getattr(command, "commands", {}).items()}
        return {"parameters": parameters(command), "commands": words}

    hold("commands", walk(typer.main.get_command(command_line())))


def test_metrics():
    hold("metrics", {family.name: [family.kind, list(family.labels), family.merge] for family in FAMILIES})


def test_alerts():
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    hold("alerts", {rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]})


def test_log_events():
    """The table of the runbook, which another test holds against the code."""
    rows = section((ROOT / "deploy" / "RUNBOOK.md").read_text(), "## By log event").splitlines()
    cells = [line.split("|")[1] for line in rows if line.startswith(("| `", '| <a id="'))]
    hold("log events", sorted({name for cell in cells for name in re.findall(r"`(\w+)`", cell)}))


@pytest.fixture(scope="module")
def host(shared):
    """A node with every interface that a check or a row comes by, two lists and a record of checks."""
    shared.sigtran_port, shared.gsup_port = free_port(), free_port()
    (shared.folder / "users").write_text(user_line("register", PASSWORD) + "\n")
    shared.configure(
        lists={"stolen": {"signers": "signers"}, "tracked": {"signers": "signers"}, "own": {"local": True}},
        policy={
            "rules": [
                {"list": "stolen", "answer": "blacklisted"},
                {"list": "own", "answer": "blacklisted"},
                {"list": "tracked", "answer": "greylisted"},
            ],
            "bad_identity": "error",
        },
        peers=[{"name": "mme", "from": ["127.0.0.0/8"], "lenient": ["applications"]}],
        n5g={"listen": ["http://127.0.0.1:0"]},
        gsup={"listen": [f"tcp://127.0.0.1:{shared.gsup_port}"]},
        ss7={"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{shared.sigtran_port}"]},
        feed={"listen": ["http://127.0.0.1:0"], "users": "users", "lists": {"block": "own"}},
        sightings={"window_s": 1, "subscribers": "full"},
    )
    shared.load(["imei,reason", f"{LISTED},stolen in transit"])
    shared.load([TRACKED], list_name="tracked")
    shared.eir("load", shared.release([UNLISTED], list_name="tracked"), status=1)
    shared.start()
    return shared


def listener(host, scheme):
    (url,) = [url for url in host.node.status()["listening"] if url.startswith(scheme)][:1]
    return url


def masked(answer):
    """An answer of Diameter, its Session-Id and Origin-State-Id apart: header and AVPs as hexadecimal text."""
    message = Message(answer.octets)
    head = [message.flags, message.command, message.app]
    return [head, [avp.raw.hex() if avp.code not in {263, 278} else avp.code for avp in message.avps]]


@pytest.fixture(scope="module")
def answers(host):
    """Answers over each protocol, by the names that the snapshot gives them; the checks are on record."""
    answers = asyncio.run(ask_over_each(host))
    until(lambda: len(host.json("seen", LISTED, status=None)["sightings"]) >= 3)  # over S13, GSUP and N5g
    return answers


async def ask_over_each(host):
    client = Connection(*await asyncio.open_connection(*host.node.address))
    diameter = {"cer": masked(await client.ask(vector("cer")))}
    for name in ("ecr", "ecr-tbit", "ecr-noimei", "dwr"):
        diameter[name] = masked(await client.ask(vector(name)))
    devices = {"blocked": LISTED, "tracked": TRACKED, "not listed": UNLISTED, "letters": "letters"}
    for name, imei in devices.items():
        diameter[name] = masked(await client.ask(ecr(imei=imei)))
    await client.close()

    msc = await Msc.to("127.0.0.1", host.sigtran_port)
    dialogues = {}
    for name, begin in m3ua_wire.VECTORS.items():
        answer = await msc.begin(bytes.fromhex(begin), otid=b"\0\0\0\1")
        dialogues[name] = answer.data.hex()
    await msc.close()

    osmo = await osmo_wire.Msc.to(host.gsup_port)
    gsup = {
        name: (await osmo.send(osmo_wire.check(imei)).next()).hex()
        for name, imei in devices.items()
        if imei.isdecimal()
    }
    osmo.close()

    amf = await Amf.to(listener(host, "http"))
    sbi = {}
    for name, imei in devices.items():
        status, headers, document = await amf.ask(f"{imei}{check_digit(imei)}" if imei.isdecimal() else imei)
        sbi[name] = [status, sorted(headers), document]
    await amf.close()

    register = await Client.to(host.node.status()["interfaces"]["feed"][0])
    feed = {}
    for name, method, target, authorization in (
        ("added", "POST", device("00101001000001"), None),
        ("there already", "POST", device("00101001000001"), None),
        ("removed", "DELETE", device("00101001000001"), None),
        ("wrong password", "POST", device("00101001000001"), basic(password="other")),
        ("no such path", "POST", "/nowhere", None),
        ("no IMEI", "POST", device("letters"), None),
    ):
        register.authorization = authorization or basic()
        answer = await register.ask(method, target)
        feed[name] = [answer.status, sorted(answer.headers), answer.body.decode()]
    await register.close()
    return {"diameter": diameter, "map": dialogues, "gsup": gsup, "n5g": sbi, "feed": feed}


def test_bytes_of_answers(answers):
    hold("answers", answers)


@pytest.mark.usefixtures("answers")
def test_documents_and_exit_statuses(host):
    commands = {
        "status": ["status"],
        "peers": ["peers"],
        "lists": ["lists"],
        "lists --store": ["lists", "--store"],
        "check": ["check", LISTED, "--imsi", IMSI],
        "check, not listed": ["check", UNLISTED],
        "check over S13": ["check", LISTED, "--protocol", "s13"],
        "show": ["show", "stolen"],
        "show one": ["show", "stolen", LISTED],
        "show one that is not listed": ["show", "stolen", UNLISTED],
        "history": ["history"],
        "history --verify": ["history", "--verify"],
        "why": ["why", LISTED],
        "seen": ["seen", LISTED],
        "sightings": ["sightings"],
        "tamper report": ["tamper", "report"],
        "add": ["add", "own", "00101001000002", "--reason", "stolen"],
        "remove": ["remove", "own", "00101001000002", "--reason", "found"],
        "rollback --dry-run": ["rollback", "own", "--dry-run"],
        "rollback of nothing": ["rollback", "nowhere"],
        "probe": ["probe", f"s13{listener(host, 'tcp')[3:]}?origin_host=mme.localdomain", LISTED],
        "probe over HTTP/2": ["probe", f"n5g{listener(host, 'http')[4:]}", LISTED],
        "probe over GSUP": ["probe", f"gsup://127.0.0.1:{host.gsup_port}", LISTED],
        "probe over MAP": ["probe", f"map://127.0.0.1:{host.sigtran_port}?gt=491700000001", LISTED],
        "config": ["config"],
        "reload": ["reload"],
        "unknown option": ["check", "--nonsense"],
    }
    found = {}
    for name, words in commands.items():
        done = host.eir(*words, "--json", status=None)
        document = json.loads(done.stdout) if done.stdout else None
        # What stood behind the last answer depends on which of several in the same second that was.
        found[name] = [done.returncode, sorted(document) if name == "why" else shape(document)]
    hold("documents", found)


@pytest.mark.usefixtures("answers")
def test_stored_forms(host):
    """The node runs on for the other tests: files that it is writing, and SQLite's own of an open database, are left out."""
    files = [str(path.relative_to(host.state)) for path in host.state.rglob("*") if path.is_file()]
    kept = [name for name in files if not name.endswith((UNFINISHED, "-wal", "-shm"))]
    kept = [re.sub(r"[\d-]+/\d+-\d+\S*", "DAY/CHECKS", name) for name in kept]
    hold("state folder", sorted({re.sub(r"-\d{12}-[0-9a-f]{16}", "-CHANGE", name) for name in kept}))
    with closing(sqlite3.connect(f"file:{host.state / 'lists.sqlite'}?mode=ro", uri=True)) as db:
        tables = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        version = db.execute("PRAGMA user_version").fetchone()[0]
    hold("tables of SQLite", [version, *(" ".join(sql.split()) for (sql,) in tables)])


def test_keys_of_redis(site):
    with Server(programs()["redis"]) as server, closing(redis.Redis(port=server.port, decode_responses=True)) as db:
        site.configure(store=server.url, lists={"stolen": {"signers": "signers"}, "own": {"local": True}})
        site.configure(policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]})
        site.load(["imei,reason", f"{LISTED},lost"])
        site.eir("add", "own", UNLISTED, "--reason", "stolen", "--first")
        keys = {}
        for key in sorted(db.scan_iter()):
            kind = db.type(key)
            keys[re.sub(r":base:\w+", ":base:ID", key)] = [kind, sorted(db.hkeys(key)) if kind == "hash" else None]
        hold("keys of redis", keys)
