"""A clone goes from one operator's record to another operator's answer by way of a register, and is proved there: three parties, each with its own key.

The parties know one another by public keys and by files that they hand over, and by nothing else.
"""

import csv
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import copytree

import pytest
from simulated.luhn import check_digit
from simulated.node import LISTED, UNLISTED, Publisher, Site
from simulated.wire import HOST, REALM, TGPP, ecr

CLONE = "35209900881234"
HONEST = [f"3532811{number:07d}" for number in range(200)]
IMSI = "001010123456789"  # wire.ecr() names this one
BLACKLISTED = 1
OF_A, OF_REGISTER = "fraud@operator-a.example", "lists@register.example"


def named(publisher, principal):
    """The line by which others trust a party's key."""
    return f"{principal} {publisher.signers.partition(' ')[2]}"


@pytest.fixture
def parties(tmp_path):
    """Operator A, the register, operator B: each takes what the one before it signs, and no one else's."""
    keys = []
    for name in ("a", "register", "b"):
        (tmp_path / "keys" / name).mkdir(parents=True)
        keys.append(Publisher(tmp_path / "keys" / name))
    with (
        Site(tmp_path / "a", keys[0]) as a,
        Site(tmp_path / "register", keys[1]) as register,
        Site(tmp_path / "b", keys[2]) as b,
    ):
        a.configure(sightings={"subscribers": "hashed"})
        a.state.mkdir()
        (register.folder / "of-a").write_text(named(keys[0], OF_A))
        register.configure(
            lists={"tampered-a": {"signers": "of-a"}},
            policy={"rules": [{"list": "tampered-a", "answer": "blacklisted"}]},
        )
        (b.folder / "of-register").write_text(named(keys[1], OF_REGISTER))
        b.configure(
            lists={"stolen-national": {"signers": "of-register"}}, policy={"rules": [{"list": "stolen-national", "answer": "blacklisted"}]},
            peers=[{"host": HOST, "realm": REALM, "from": ["127.0.0.0/8"]}], sightings={"subscribers": "full"},
        )  # fmt: skip
        yield a, register, b


def log(path):
    """A month of another EIR's checks, as A keeps them: one identity in two phones, each at a place of its own, among honest ones.

    Six phones change the SIM at each place.
    """
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(days=28)
    near, far = (f"mmec01.mmegi800{group}.mme.epc.mnc001.mcc001.3gppnetwork.org" for group in (1, 2))
    at = random.Random(1)
    rows = [
        (begin + timedelta(days=day, hours=at.uniform(6, 23)), CLONE, imsi, mme)
        for day in range(20) for imsi, mme in (("001010000000001", near), ("001010000000002", far)) for _ in range(4)
    ]  # fmt: skip
    rows += [
        (begin + timedelta(days=day), imei, f"0010102{number:08d}", (near, far)[(number + (day > 9)) % 2])
        for number, imei in enumerate(HONEST)
        for day in range(0, 20, 3)
    ]
    rows += [
        (begin + timedelta(days=day, hours=8 + 2 * turn), f"352099500000{number:02d}", f"001010300000{number:02d}{turn}", (near, far)[number % 2])
        for number in range(12) for day in range(0, 20, 2) for turn in range(2)
    ]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    with path.open("w") as out:
        writer = csv.writer(out)
        writer.writerow(("time", "imei", "imsi", "origin_host"))
        writer.writerows((f"{at:%Y-%m-%dT%H:%M:%SZ}", imei, imsi, mme) for at, imei, imsi, mme in rows)


def handed(release, site, to):
    """What a party is sent: the folder of a release, copied into its own; returns the manifest there."""
    copytree(release, site.folder / to)
    (manifest,) = (site.folder / to).glob("*.manifest.json")
    return manifest


def signed(site, data, *, list_name):
    """The folder of a release that a party signs by its own key."""
    folder = site.folder / f"out-{list_name}"
    folder.mkdir()
    made = site.json(
        "publish",
        *data,
        "--list",
        list_name,
        "--serial",
        "1",
        "--expires",
        "30d",
        "--key",
        site.publisher.key,
        "--out",
        folder,
    )
    assert Path(made["manifest"]).parent == folder
    return folder


@pytest.mark.long
async def test_a_clone_goes_from_one_operator_s_record_to_another_s_answer(parties, connect):
    a, register, b = parties
    # Operator A sees a clone, and only that; somebody has both phones in hand, and A signs it.
    log(a.folder / "checks.csv")
    a.eir("sightings", "import", "checks.csv")
    (finding,) = a.json("tamper", "report")
    assert (finding["imei"], finding["conditions"][0], finding["subscribers"]) == (CLONE, "conflict", 2)
    found = a.folder / "tampered.csv"
    a.eir("tamper", "confirm", CLONE, "--reason", "both phones were seen at the counter")
    a.eir("tamper", "export", "--rows", "devices", "--out", found)
    assert not set(HONEST) & set(found.read_text().replace("\n", ",").split(","))
    of_a = signed(a, [found], list_name="tampered-a")

    # The register takes it from A and from nobody else, and signs the national list of it and of its own.
    manifest = handed(of_a, register, "from-a")
    data = manifest.parent / "tampered-a-1.csv.zst"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "refused (digest)" in register.eir("load", manifest, status=1).stderr
    data.write_bytes(whole)
    register.eir("load", manifest)
    register.eir("export", "tampered-a", "--out", "from-a.csv")
    (register.folder / "own.csv").write_text(f"imei,reason,date\n{LISTED},theft,20261101\n")
    national = signed(
        register, [register.folder / "from-a.csv", register.folder / "own.csv"], list_name="stolen-national"
    )

    # Operator B takes the register's word, and not A's: not even for the same rows under the national name.
    of_a_alone = signed(a, [found], list_name="stolen-national")
    assert "refused (untrusted_signer)" in b.eir("load", handed(of_a_alone, b, "from-a"), status=1).stderr
    manifest = handed(national, b, "from-register")
    b.eir("load", manifest)
    node = b.start()
    mme = await connect(node)
    for number, (imei, status) in enumerate(
        {
            CLONE: BLACKLISTED,
            f"{CLONE}{check_digit(CLONE)}": BLACKLISTED,
            LISTED: BLACKLISTED,
            UNLISTED: 0,
            HONEST[0]: 0,
        }.items()
    ):
        answer = await mme.ask(ecr(imei, ids=(number, number)))
        assert (answer.result, answer.number(1445, TGPP)) == (2001, status), imei
    said = b.json("check", CLONE)
    assert (said["status"], said["list"], said["reason"]) == ("blacklisted", "stolen-national", "tampered: conflict")

    # B's record shows the phone, and who had it.
    shown = b.json("seen", CLONE)
    assert (shown["checks"], shown["subscribers"], shown["origin_hosts"]) == (2, [IMSI], [HOST])
    assert {(row["status"], row["list"]) for row in shown["sightings"]} == {("blacklisted", "stolen-national")}

    # Whoever has the register's release can hold B to it, by asking and by B's record.
    await mme.close()
    asked = b.json(
        "audit",
        manifest,
        "s13://{}:{}?origin_host={}&origin_realm={}".format(*node.address, HOST, REALM),
        "--all",
        "--at-least",
        "100%",
    )
    assert (asked["list"], asked["asked"], asked["as_listed"], asked["exceptions"]) == ("stolen-national", 2, 2, [])
    recorded = b.json("audit", manifest, "--sightings", "--since", "1h")
    assert (recorded["share"], recorded["never_asked"]) == (1, [])
    assert {each["origin_host"] for each in recorded["origins"]} == {HOST}

    # Each step stands in a history with whose key it was.
    for site, name, signer in ((register, "tampered-a", OF_A), (b, "stolen-national", OF_REGISTER)):
        (load,) = (event for event in site.json("history", name) if event["what"] == "load")
        assert f"signed by {signer}" in load["detail"]
