"""`eir init`: what it writes from options and from answers, and what it refuses."""

import os
import pty
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from simulated.node import COMMAND, run_eir
from simulated.patience import PATIENCE_S

from eir.config import load_config

ROOT = Path(__file__).parents[2]
REALM = "core.operator.example"


@pytest.fixture
def key(tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "register@agency.example", "-f", tmp_path / "key"],
        check=True,
    )
    return tmp_path / "key.pub"


def init(*arguments, status=0, **options):
    return run_eir("init", *arguments, status=status, **{"env": dict(os.environ), "cwd": "."} | options)


def test_it_writes_a_configuration_with_comments_the_key_and_a_unit(tmp_path, key):
    folder = tmp_path / "eir"
    peers = ("--peer", f"mme1.{REALM}@10.20.0.1,10.20.0.2", "--peer", "10.30.0.0/24", "--peer", "mme2@10.20.0.3")
    done = init(
        folder, "--realm", REALM, *peers, "--key", key, "--list", "stolen-national", "--state", tmp_path / "state"
    )
    assert f"{folder}/eir.yaml is written" in done.stdout
    config = load_config(folder / "eir.yaml")
    assert (config.identity.host, config.identity.realm) == (f"eir1.{REALM}", REALM)
    assert [(peer.host, peer.realm, [str(each) for each in peer.sources]) for peer in config.peers] == [
        (f"mme1.{REALM}", None, ["10.20.0.1/32", "10.20.0.2/32"]), (None, REALM, ["10.30.0.0/24"]), (f"mme2.{REALM}", None, ["10.20.0.3/32"]),
    ]  # fmt: skip
    assert not config.warnings
    assert config.state == tmp_path / "state"
    assert list(config.lists) == ["stolen-national", "blocked-here"]
    words = key.read_text().split()
    assert (
        folder / "signers" / "stolen-national"
    ).read_text() == f'register@agency.example namespaces="eir-release" {words[0]} {words[1]}\n'
    text = (folder / "eir.yaml").read_text()
    assert text.count("# ") > 10
    unit = (folder / "eir.service").read_text()
    assert f"EIR_CONFIG={folder}/eir.yaml" in unit.replace('"', "")
    assert f"ReadWritePaths={tmp_path}/state" in unit.replace('"', "")
    assert all(path.stat().st_mode & 0o007 == 0 for path in folder.rglob("*"))


def test_without_a_key_there_is_a_list_that_is_changed_by_hand(tmp_path):
    init(tmp_path / "x", "--realm", REALM, "--peer", "127.0.0.1")
    config = load_config(tmp_path / "x" / "eir.yaml")
    assert [(name, settings.local) for name, settings in config.lists.items()] == [("blocked-here", True)]
    assert config.state == tmp_path / "x" / "var"


def test_a_folder_with_a_blank_in_its_name(tmp_path, key):
    folder = tmp_path / "a node"
    done = init(folder, "--realm", REALM, "--peer", "127.0.0.1", "--key", key)
    assert f"eir serve -c '{folder}/eir.yaml'" in done.stdout
    unit = (folder / "eir.service").read_text()
    assert f'\nEnvironment="EIR_CONFIG={folder}/eir.yaml"\n' in unit
    assert f'\nReadWritePaths="{folder}/var"\n' in unit


def test_it_writes_over_nothing(tmp_path, key):
    (tmp_path / "signers").mkdir()
    (tmp_path / "signers" / "stolen").write_text("mine\n")
    done = init(tmp_path, "--realm", REALM, "--peer", "127.0.0.1", "--key", key, status=1)
    assert "nothing is written" in done.stderr
    assert (tmp_path / "signers" / "stolen").read_text() == "mine\n"
    assert not (tmp_path / "eir.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peer", "127.0.0.1"], "--realm"),
        (["--realm", REALM], "--peer"),
        (["--realm", REALM, "--peer", "mme1"], "expected HOST@ADDRESS"),
        (["--realm", REALM, "--peer", "@127.0.0.1"], "before the @"),
        (["--realm", "no realm", "--peer", "127.0.0.1"], "realm"),
        (["--realm", REALM, "--peer", "127.0.0.1", "--listen", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
        (["--realm", REALM, "--peer", "127.0.0.1", "--key", "key"], "not an OpenSSH public key"),
        (["--realm", REALM, "--peer", "127.0.0.1", "--key", "key.pub", "--signer", "two names"], "expected one name"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, key, arguments, said):
    done = init("there", *arguments, status=2, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert said in done.stderr
    assert key.exists()
    assert not (tmp_path / "there").exists()


def test_without_a_terminal_the_message_names_each_question_with_its_option(tmp_path):
    stderr = init(tmp_path / "there", status=2).stderr
    for part in (
        "realm of the node: --realm",
        "host name: --host",
        "connect to: --listen",
        "checks: --peer",
        "key: --key",
    ):
        assert part in stderr


def test_on_a_terminal_it_asks(tmp_path, key):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "init", str(tmp_path / "asked")],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=os.environ | {"TERM": "dumb"},
        start_new_session=True,
    )
    os.close(follower)
    os.write(leader, f"{REALM}\n\ntcp://127.0.0.1:3868\n127.0.0.1\n\n{key}\n".encode())
    said = b""
    with suppress(OSError):  # it has ended
        while piece := os.read(leader, 4096):
            said += piece
    os.close(leader)
    assert process.wait(PATIENCE_S) == 0, said
    config = load_config(tmp_path / "asked" / "eir.yaml")
    assert config.identity.host == f"eir1.{REALM}"
    assert list(config.listen) == ["tcp://127.0.0.1:3868"]
    assert "stolen" in config.lists


def test_a_wrong_answer_is_asked_again_at_once(tmp_path, key):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "init", str(tmp_path / "asked")],
        stdin=follower, stdout=follower, stderr=follower, env=os.environ | {"TERM": "dumb", "COLUMNS": "300"}, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    answers = [
        "no realm", REALM, "a host", "eir7", "http://127.0.0.1:1", "tcp://127.0.0.1:3868", "mme1", "@127.0.0.1", "mme1@127.0.0.1",
        "10.0.0.1/8", "", str(tmp_path / "none"), str(tmp_path / "key"), str(key),
    ]  # fmt: skip
    os.write(leader, "".join(f"{answer}\n" for answer in answers).encode())
    said = b""
    with suppress(OSError):  # it has ended
        while piece := os.read(leader, 4096):
            said += piece
    os.close(leader)
    assert process.wait(PATIENCE_S) == 0, said
    assert [error.split(":")[0] for error in re.findall(r"Error: (.*)\r", said.decode())] == [
        "no realm", "a host", "http", "mme1", "@127.0.0.1", "10.0.0.1/8", str(tmp_path / "none"), f"{tmp_path / 'key'} is not an OpenSSH public key; expected the .pub file that ssh-keygen writes",
    ]  # fmt: skip
    config = load_config(tmp_path / "asked" / "eir.yaml")
    assert (config.identity.host, [*config.lists]) == (f"eir7.{REALM}", ["stolen", "blocked-here"])
