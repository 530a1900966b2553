"""The configuration as it is printed, and as table, sample and page say it: all the same."""

import dataclasses
import json
import pickle
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from configuration import GOOD, IDENTITY, ONE_PEER, SIGNER, files_of_tokens, problems_of
from simulated.certificates import Authority

from eir.checks.settings import Status
from eir.config import Config, config_after_reload, load_config, needs_restart, render
from eir.config.keys import FIXED_LIMITS, TABLE, reference_page
from eir.config.load import TAKES_RESTART
from eir.schema import REQUIRED, mask_password, mask_secrets
from eir.wire.peers.settings import Limits
from eir.wire.web.passwords import user_line

SAMPLE = Path(__file__).parents[2] / "config" / "eir.yaml"
EVERY_KEY = Path(__file__).with_name("every_key.yaml")
PAGE = SAMPLE.parent / "REFERENCE.md"


# What is in force


def same(one: Config, other: Config) -> bool:
    return dataclasses.replace(one, path=Path(), warnings=()) == dataclasses.replace(other, path=Path(), warnings=())


def test_what_is_printed_is_the_configuration_again(write, tmp_path):
    (tmp_path / "revoked").mkdir()
    (tmp_path / "revoked" / "stolen-national").write_text("ssh-ed25519 AAAA\n")
    (tmp_path / "signers").unlink()
    shutil.copytree(SAMPLE.parent / "signers", tmp_path / "signers")
    files_of_sample(tmp_path)
    for written in (SAMPLE.read_text(), EVERY_KEY.read_text()):
        config = load_config(write(written))
        again = load_config(write(render(config), "again.yaml"))
        assert same(config, again)
        assert render(again) == render(config)
        assert yaml.safe_load(render(config)) == config.shown == json.loads(json.dumps(config.shown))


def test_what_is_printed_has_units_and_zeros_as_they_are_written(write):
    shown = render(load_config(write(GOOD + "http: off\n" + "sightings: {window_s: 1m}\n")))
    for line in ("http: null", "  window_s: 60", "    shrink_max: 20%"):
        assert line in shown.splitlines()
    rules = "policy: {rules: [{tac: [00101001, 0010*], imsi: 00101, answer: unknown}], override: {answer: whitelisted, until: 2099-01-01T01:00:00+01:00}, no_identity: error}\n"
    policy = load_config(write(IDENTITY + rules)).shown["policy"]
    assert policy["rules"] == [{"answer": "unknown", "observe": False, "tac": ["00101001", "0010*"], "imsi": ["00101"]}]
    assert policy["override"] == {"answer": "whitelisted", "until": "2099-01-01T00:00:00Z"}
    assert (policy["no_identity"], policy["bad_identity"]) == ("error", "whitelisted")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:pa@ss@host", "redis://user:***@host"),
        ("rediss://:secret@host/0", "rediss://:***@host/0"),
        ("redis://user@host", "redis://user@host"),
        ("sqlite", "sqlite"),
    ],
)
def test_passwords_are_not_shown(url, shown):
    assert mask_password(url) == mask_secrets(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss://host/0?password_file=a b", "rediss://host/0?***"),
        ("https://hooks.example/a?token=se/cret@x", "https://hooks.example/a?***"),
        ("https://hooks.example:8443/a?token=x@y", "https://hooks.example:***"),
        ("https://hooks.example?secret\nmore", "https://hooks.example?***"),
        ("https://user:pw@hooks.example/a b?token=secret", "https://user:***@hooks.example/a b?***"),
        ("https://hooks.example/a#secret", "https://hooks.example/a#***"),
        ("which?", "which?"),
    ],
)
def test_an_error_shows_no_query(url, shown):
    assert mask_secrets(url) == shown


def test_an_error_about_the_webhook_shows_neither_its_password_nor_its_query(write):
    url = "https://user:pass@hooks.example/a?token=secret"
    ((_, text),) = problems_of(
        write(f"{IDENTITY}{ONE_PEER}sightings: {{webhook: {{url: '{url}', key_file: eir.yaml}}}}\n")
    )
    assert text.startswith(
        "found 'https://user:***@hooks.example/a?***' for 'url' in sightings.webhook; expected http://"
    )


# The reference: table, sample and page say the same


def live(text: str) -> str:
    """Return the sample with each key set: remove a # that a key follows at once. A comment has a blank after its #."""
    return re.sub(r"^( *)#(?! \S)", r"\1", text, flags=re.MULTILINE)


def files_of_feed(folder):
    """Write the files that `feed`, `desk` and `numbers` of every_key.yaml name."""
    (folder / "desk.users").write_text(user_line("anna", "correct horse battery", "view"))
    (folder / "desk.users").chmod(0o640)
    (folder / "feed.users").write_text(user_line("register", "correct horse battery"))
    (folder / "numbers.csv").write_text("msisdn,imsi\n")


def files_of_sample(folder):
    """Write the files that every_key.yaml names, except those about signers."""
    authority = Authority(folder / "tls")
    authority.write("eir.epc.mnc001.mcc001.3gppnetwork.org")
    authority.revoke()
    files_of_tokens(folder / "tokens")
    files_of_feed(folder)
    (folder / "webhook.key").write_text("secret")


def paths_in(value, path="") -> set[str]:
    if isinstance(value, dict):
        named = "*" if path in {"lists", "layouts"} else None
        return set().union(*(paths_in(inner, f"{path}.{named or name}".lstrip(".")) for name, inner in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(paths_in(inner, f"{path}[]") for inner in value))
    return {path}


def test_every_key_file_has_each_key_of_the_table_and_no_other():
    assert paths_in(yaml.safe_load(EVERY_KEY.read_text())) == {key.path for key in TABLE}


def test_every_key_file_has_each_default_of_the_table(tmp_path):
    for folder in ("signers", "revoked"):
        shutil.copytree(SAMPLE.parent / "signers", tmp_path / folder)
        (tmp_path / folder / "stolen-national").write_text(SIGNER)
    files_of_sample(tmp_path)
    (tmp_path / "eir.yaml").write_text(EVERY_KEY.read_text())
    shown = load_config(tmp_path / "eir.yaml").shown
    examples = {"policy.rules[].observe"}
    for key in TABLE:
        if key.default in {REQUIRED, None} or key.path in examples or (key.default == () and not key.kind.may_be_empty):
            continue
        here = shown
        for part in key.path.split("."):
            here = next(iter(here.values())) if part == "*" else here[part.removesuffix("[]")]
            here = here[-1] if part.endswith("[]") else here
        default = key.kind.place(key.default, tmp_path)
        assert here == ([key.kind.show(each) for each in default] if key.kind.many else key.kind.show(default)), (
            key.path
        )


def test_sample_is_usable_as_it_is():
    config = load_config(SAMPLE)
    assert config.listen == ("tcp://127.0.0.1:3868",)
    assert [(rule.list, rule.answer) for rule in config.policy.rules] == [
        ("stolen-national", Status.BLACKLISTED),
        ("tracked", Status.GREYLISTED),
    ]
    assert all("holds 0 keys" in warning.text for warning in config.warnings)


def test_each_key_of_the_sample_is_valid(write, tmp_path):
    (tmp_path / "signers").unlink()
    shutil.copytree(SAMPLE.parent / "signers", tmp_path / "signers")
    files_of_sample(tmp_path)
    (tmp_path / "redis.password").write_text("secret")
    text = live(SAMPLE.read_text())
    config = load_config(write(text))
    assert {name for name, interface in config.interfaces.items() if interface.listen} == {"n5g", "feed", "gsup"}
    assert len(text.splitlines()) <= 90


def test_restart_marks_of_the_sample_are_those_of_the_table():
    marked = set(re.findall(r"^# .*\brestart\n(\w+):", live(SAMPLE.read_text()), flags=re.MULTILINE))
    assert marked == {
        path for path in TAKES_RESTART if re.search(rf"^{path}:", live(SAMPLE.read_text()), flags=re.MULTILINE)
    }


OTHERS = {
    "state": "state: elsewhere\n", "control_read": "control_read: elsewhere\n", "store": "store: redis://host\n", "heal": "heal: no\n",
    "boot_without_lists": "boot_without_lists: refuse\n", "inbox": "inbox: drop\n", "inbox_patience_s": "inbox_patience_s: 1d\n",
    "http": "http: off\n",
    "sightings": "sightings: {keep: 1d}\n", "first_seen": "first_seen: {remember: 1y}\n",
    "last_device": "last_device: {remember: 1y}\n",
}  # fmt: skip
"""Another value for each key and section that takes a restart."""


@pytest.mark.parametrize("path", TAKES_RESTART)
def test_a_reload_keeps_what_takes_a_restart_and_names_it(write, path):
    good = GOOD + "sightings: {}\n" * (path == "last_device")
    old, new = load_config(write(good)), load_config(write(good + OTHERS[path] + "log: {level: debug}\n", "new.yaml"))
    assert needs_restart(old, new) == [path]
    assert config_after_reload(old, new) == dataclasses.replace(
        old, path=new.path, log_level="debug", warnings=new.warnings
    )
    assert needs_restart(old, config_after_reload(old, new)) == []


def test_no_key_of_an_interface_takes_a_restart():
    assert [path for path in TAKES_RESTART if "." in path] == []


def test_a_restart_key_is_called_in_what_is_built_as_in_the_file():
    assert [key.path for key in TABLE if not key.live and (key.field or re.search(r"[^\w.]", key.path))] == []


def test_a_configuration_is_handed_on_as_it_was_read(write, tmp_path):
    authority = Authority(tmp_path / "tls")
    files_of_tokens(tmp_path / "tokens")
    authority.write("eir.epc.mnc001.mcc001.3gppnetwork.org")
    authority.revoke()
    for folder in ("signers", "revoked"):
        shutil.copytree(SAMPLE.parent / "signers", tmp_path / "more" / folder)
        (tmp_path / "more" / folder / "stolen-national").write_text(SIGNER)
    for folder in ("tls", "tokens"):
        shutil.move(tmp_path / folder, tmp_path / "more")
    (tmp_path / "more" / "webhook.key").write_text("secret")
    files_of_feed(tmp_path / "more")
    config = load_config(write(EVERY_KEY.read_text(), "more/eir.yaml"))
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert render(again) == render(config)


def test_limits_are_those_of_the_node():
    names = {key.path.removeprefix("limits.") for key in TABLE if key.path.startswith("limits.")}
    assert names | set(FIXED_LIMITS) == {field.name for field in dataclasses.fields(Limits)} | {"load_memory"}


def test_every_key_has_a_meaning():
    for key in TABLE:
        assert key.says
        assert key.kind.expected
        assert len([other for other in TABLE if other.path == key.path]) == 1
        shown = key.default if key.default in {REQUIRED, None} or key.kind.many else key.kind.show(key.default)
        assert key.kind.many or shown in {REQUIRED, None} or key.kind.read(str(shown)) == key.default, key.path


def test_the_page_has_every_key_of_the_table():
    rows = []
    for key in TABLE:
        default = "required" if key.default is REQUIRED else "-" if key.default in {None, ()} else None
        if default is None:
            default = (
                f"`{', '.join(map(str, key.default)) if key.kind.many else str(key.kind.show(key.default))}`".replace(
                    "False", "false"
                ).replace("True", "true")
            )
        restart = not key.live or key.path.partition(".")[0] in TAKES_RESTART
        rows.append(f"| `{key.path}` | {key.kind.form} | {default} | {key.says}{' (restart)' if restart else ''} |")
    page = PAGE.read_text()
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows
    assert page == reference_page(), "config/REFERENCE.md is what `eir config --reference` prints"


@pytest.fixture
def key(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", tmp_path / "key"], check=True)
    return tmp_path / "key"


async def test_sample_lists_are_published_and_loaded(tmp_path, key):
    from simulated.releases import load_release

    from eir.lists.releases.publish import ReleaseSpec, publish
    from eir.lists.stores.open import open_store

    shutil.copytree(SAMPLE.parent, tmp_path / "config", ignore=shutil.ignore_patterns("var"))
    lists, now = tmp_path / "config" / "lists", datetime.now(UTC)
    signer = f'publisher namespaces="eir-release" {(tmp_path / "key.pub").read_text()}'
    for name in ("stolen-national", "tracked"):
        (tmp_path / "config" / "signers" / name).write_text(signer)
    config = load_config(tmp_path / "config" / "eir.yaml")
    assert config.warnings == ()
    store = open_store(config.store, config.state)
    stolen = [
        lists / name for name in ("stolen-national.csv", "stolen-national-tacs.csv", "stolen-national-ranges.csv")
    ]
    dirbs = sorted((lists / "dirbs").iterdir())
    loaded = {}
    for name, serial, files in (
        ("stolen-national", 1, stolen),
        ("tracked", 1, [lists / "tracked.csv"]),
        ("stolen-national", 2, dirbs),
    ):
        spec = ReleaseSpec(
            list=name, serial=serial, issued=now, expires=now + timedelta(days=14), keys=(key,), files=files
        )
        made = publish(spec)
        report = await load_release(made.manifest, config.lists, store, who="test", now=now, force=serial == 2)
        loaded[name, serial] = (report.entries, report.devices, made.bad_rows, made.skipped)
    await store.close()
    assert loaded["stolen-national", 1] == (6 + 1 + 100, 6 + 1_000_000 + 100, 0, 0)
    assert loaded["tracked", 1] == (2, 2, 0, 0)
    assert loaded["stolen-national", 2] == (6, 6, 0, 4)  # junk is normal in a DIRBS file: skipped, not bad
