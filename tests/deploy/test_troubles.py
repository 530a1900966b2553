"""Five troubles made on purpose, and an operator's way from what is seen to the cure by deploy/TROUBLES.md, in three steps at most.

First something shows it, then a row of the page names the cause, then its cure is done and helps.
"""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import full_disk
import pytest
from simulated.certificates import Authority
from simulated.node import LISTED, TRACKED, UNLISTED, Publisher, Site, until
from simulated.wire import HOST, REALM

PAGE = (Path(__file__).parents[2] / "deploy" / "TROUBLES.md").read_text()
MEMBER = f"origin_host={HOST}&origin_realm={REALM}"


def row(seen, cure):
    """The page has a row for what is seen, whose cure is this one."""
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| {seen}")]
    assert rows, f"no row begins with: {seen}"
    assert any(cure in each.rpartition(" | ")[2] for each in rows), rows


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("troubles")
    (folder / "agency").mkdir()
    with Site(folder / "site", Publisher(folder / "agency")) as site:
        site.authority = Authority(folder / "tls")
        site.configure(listen=["tcp://127.0.0.1:0", "tls://127.0.0.1:0"], tls=site.authority.write("eir.localdomain"))
        site.load([LISTED])
        site.load([TRACKED], list_name="tracked")
        site.start()
        yield site


@contextmanager
def changed(site, **sections):
    """A configuration that the node takes over meanwhile."""
    before = dict(site.settings)
    site.configure(**sections)
    site.eir("reload")
    yield
    site.configure(**before)
    site.eir("reload")


def at(site, scheme):
    return next(url.partition("://")[2] for url in site.node.status()["listening"] if url.startswith(scheme))


def test_an_mme_of_another_realm(site):
    def probe(status):
        url = f"s13://{at(site, 'tcp')}?origin_host=mme.other.example&origin_realm=other.example"
        return site.eir("probe", url, LISTED, status=status)

    assert "3010" in probe(1).stderr
    row("CEA with 3010", "correct `host` or `realm` of the entry")
    (line,) = site.node.lines("peer_refused", host="mme.other.example")
    assert "realm" in line["detail"] + line.get("setting", "")
    with changed(site, peers=[{"name": "mme", "realm": "other.example", "from": ["127.0.0.0/8"]}]):
        assert "blacklisted" in probe(0).stdout


def test_a_list_that_has_expired(site):
    issued = datetime.now(UTC).replace(microsecond=0) - timedelta(days=20)
    site.load([LISTED], serial=2, issued=issued, expires_in=timedelta(days=14), now=issued + timedelta(days=1))
    until(lambda: site.node.status()["lists"]["stolen"]["serial"] == 2)
    said = until(lambda: found if "past its expiry" in (found := site.node.status())["summary"] else None)
    assert (said["state"], said["troubles"]) == ("CRITICAL", ["list stolen is past its expiry"])
    assert ">EirListExpired</a>" in site.node.get("/")[1]
    row("the list in force is past its `expires`", "ask for the next release")
    site.load([LISTED], serial=3)
    until(lambda: site.node.status()["state"] == "OK")


def test_a_certificate_with_another_name(site):
    theirs = site.authority.write("gateway.partner.example", stem="theirs")
    tls = f"ca={site.authority.pem}&cert={theirs['certificate']}&key={theirs['key']}"

    def probe(status):
        return site.eir("probe", f"s13://{at(site, 'tls')}?{MEMBER}&{tls}", LISTED, status=status)

    probe(1)
    line = until(lambda: next(iter(site.node.lines("peer_refused", host=HOST)), None))
    assert "tls_names" in line["setting"]
    row("the handshake fails, `detail` names a certificate", "`tls_names` in the peer's entry")
    with changed(
        site, peers=[{"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"], "tls_names": ["gateway.partner.example"]}]
    ):
        assert "blacklisted" in probe(0).stdout


def test_rules_in_the_wrong_order(site):
    wrong = [{"tac": [LISTED[:8]], "answer": "whitelisted"}, {"list": "stolen", "answer": "blacklisted"}]
    with changed(site, policy={"rules": wrong}):
        said = site.json("check", LISTED)
        assert (said["status"], said["rule"]) == ("whitelisted", 1)
        row("the phone is listed, and attaches", "put the list's rule above it")
        site.configure(policy={"rules": wrong[::-1]})
        site.eir("reload")
        assert site.json("check", LISTED)["status"] == "blacklisted"


@pytest.mark.long
def test_a_full_disk(tmp_path, publisher):
    (tmp_path / "disk").mkdir()
    if not full_disk.is_possible(tmp_path / "disk"):
        pytest.skip("no small disk may be made here")
    with full_disk.small_disk(tmp_path / "disk", 36) as disk, Site(tmp_path / "site", publisher) as site:
        site.configure(state=str(disk.folder))
        site.eir("load", site.release([LISTED]), prefix=disk.prefix)
        disk.fill(leave=1 << 16)
        many = site.release([f"00101{number:09d}" for number in range(0, 300_000, 3)], serial=2)
        said = site.eir("load", "--force", many, status=None, prefix=disk.prefix)
        assert said.returncode == 1
        assert "room" in said.stderr or "full" in said.stderr
        row("no room on the disk", "checks go on. Make room")
        assert "blacklisted" in site.eir("check", LISTED, prefix=disk.prefix).stdout
        disk.free()
        site.eir("load", "--force", many, prefix=disk.prefix)
        assert "whitelisted" in site.eir("check", UNLISTED, prefix=disk.prefix).stdout
