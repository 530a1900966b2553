"""The main claim: every answer is the one that a plain reading of the list's file gives. Millions of times, and on the wire."""

import csv
import random
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest
from simulated.luhn import check_digit
from simulated.node import Site
from simulated.store_content import content_of
from simulated.wire import HOST, TGPP, avp, ecr

from eir.checks.policy import compile_policy
from eir.checks.settings import Status
from eir.config import load_config
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.stores.open import open_store

ENTRIES = 1_000_000
ASKED_ON_THE_WIRE = 20_000
SEED = 20261125
WINDOW = 500
"""Requests that are under way at a time."""

FORMS = (
    lambda imei: imei,
    lambda imei: f"{imei}{check_digit(imei)}",
    lambda imei: f"{imei}0",
    lambda imei: f"{imei}27",
)
"""What clients send for one device: 14 digits, 15 with the Luhn digit, 15 with a spare 0, 16 with a software version."""


async def statuses(client, imeis):
    """Equipment-Status for each IMEI, asked with many under way; each answer is matched by its ids and Session-Id."""
    found = []
    for at in range(0, len(imeis), WINDOW):
        part = imeis[at : at + WINDOW]
        requests = [ecr(imei, ids=(at + n, n), session=avp(263, f"{HOST};{at};{n}")) for n, imei in enumerate(part)]
        await client.send(*requests)
        answers = {}
        for _ in part:
            answer = await client.read()
            assert answer.result == 2001
            assert answer.data(263) == f"{HOST};{at};{answer.end_to_end}".encode()
            assert answer.hop_by_hop == at + answer.end_to_end
            answers[answer.end_to_end] = answer.number(1445, TGPP)
        found += [answers[n] for n in range(len(part))]
    return found


@pytest.fixture(scope="module")
def million(tmp_path_factory, publisher):
    """A host with a list of a million random IMEIs loaded, the file's rows as a plain set, and a million IMEIs to ask about."""
    folder = tmp_path_factory.mktemp("million")
    numbers = np.random.default_rng(SEED)
    # 40,000 TACs of all reporting bodies, leading zeros included, with as many devices each as chance gives.
    tacs = numbers.integers(0, 10**8, 40_000)
    keys = np.unique(numbers.choice(tacs, ENTRIES + 50_000) * 10**6 + numbers.integers(0, 10**6, ENTRIES + 50_000))
    keys = numbers.permutation(keys)[:ENTRIES]
    assert len(keys) == ENTRIES
    path = folder / "list.csv"
    with path.open("w") as file:
        file.write("imei,reason\n")
        for n, key in enumerate(keys.tolist()):
            imei = f"{key:014d}"
            file.write(f"{imei}{('', '5', '0', '99')[n % 4]},{('stolen', 'lost', '')[n % 3]}\n")
    with path.open(newline="") as file:
        truth = {row["imei"][:14] for row in csv.DictReader(file)}
    assert len(truth) == ENTRIES
    chance = random.Random(SEED)
    listed = [f"{key:014d}" for key in keys[: ENTRIES // 4].tolist()]
    # Neighbours of listed ones, others of their TACs, and any at all.
    near = [
        f"{(key + chance.choice((-1, 1, 10, 10**6))) % 10**14:014d}"
        for key in keys[ENTRIES // 4 : ENTRIES // 2].tolist()
    ]
    same_tac = [f"{tac:08d}{chance.randrange(10**6):06d}" for tac in numbers.choice(tacs, ENTRIES // 4).tolist()]
    anything = [f"{chance.randrange(10**14):014d}" for _ in range(ENTRIES // 4)]
    asked = [*listed, *near, *same_tac, *anything]
    chance.shuffle(asked)
    with Site(folder / "site", publisher) as site:
        site.configure(
            lists={"stolen": {"signers": "signers"}}, policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]}
        )
        site.load(path)
        yield site, truth, asked


@pytest.mark.long
async def test_a_million_answers_equal_those_of_a_plain_set(million):
    site, truth, asked = million
    config = load_config(site.path)
    store = open_store(config.store, config.state)
    index = Index({"stolen": "devices"})
    content = await content_of(store, "stolen")
    index.switch("stolen", content.head, image_of(content.table))
    await store.close()
    assert index.lists["stolen"].state.entries == ENTRIES
    decide = compile_policy(config.policy, index, observed=lambda *_: None, now=datetime.now(UTC)).decide
    expected = {True: Status.BLACKLISTED, False: Status.WHITELISTED}
    wrong = [imei for imei in asked if decide(int(imei), "", "", "", "").status is not expected[imei in truth]]
    assert wrong == []
    hits = sum(imei in truth for imei in asked)
    assert ENTRIES // 4 <= hits <= ENTRIES // 3
    # And every entry of the file itself.
    assert all(decide(int(imei), "", "", "", "").status is Status.BLACKLISTED for imei in truth)


@pytest.mark.long
async def test_the_same_on_the_wire_in_every_form_that_clients_send(million, connect):
    site, truth, asked = million
    sample = asked[:ASKED_ON_THE_WIRE]
    client = await connect(site.start())
    found = await statuses(client, [FORMS[n % len(FORMS)](imei) for n, imei in enumerate(sample)])
    assert [imei for imei, status in zip(sample, found, strict=True) if status != int(imei in truth)] == []
    assert site.node.status()["checks"] == ASKED_ON_THE_WIRE


JUNK = (
    "0",
    "*#06#",
    "A000000DEAD",
    "35A209900",
    "123456789012",
    "FFFFFFFFFFFFFFFF",
    "3520990017614",
    "ABCDEF",
    "1",
    "000",
)
"""What DIRBS lets through as an IMEI: 1 to 16 of 0-9A-F*#."""


def dirbs_blacklist(path, digits, count):
    """A blacklist in its real shape: zip stored and unsigned, CRLF, unordered, reasons joined by a bar, junk among the rows."""
    chance = random.Random(SEED)
    imeis = sorted({f"{chance.randrange(10**8):08d}{chance.randrange(10**6):06d}" for _ in range(count)})
    shown = [
        f"{imei}{check_digit(imei)}" if digits == 15 or (digits == 0 and n % 2) else imei
        for n, imei in enumerate(imeis)
    ]
    reasons = (
        "Violated stolen_list condition",
        "Violated stolen_list condition|Violated duplicate_threshold condition",
    )
    rows = [f"{imei},2026{1 + n % 12:02d}{1 + n % 28:02d},{reasons[n % 2]}" for n, imei in enumerate(shown)]
    rows += [f"{chance.choice(JUNK)},20261030,Violated malformed_imei condition" for _ in range(count // 10)]
    chance.shuffle(rows)
    name = "20261120_020000_blacklist.csv"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr(name, "imei,block_date,reasons\r\n" + "".join(f"{row}\r\n" for row in rows))
    return imeis


@pytest.mark.long(short=["both"])
@pytest.mark.parametrize("digits", [14, 15, 0], ids=["14 digits", "15 digits", "both"])
async def test_every_well_formed_imei_of_a_dirbs_blacklist_is_blocked_in_every_form(site, connect, digits):
    path = site.folder / "20261120_020000_blacklist.zip"
    imeis = dirbs_blacklist(path, digits, 2000)
    site.load(path)
    client = await connect(site.start())
    for form in FORMS:
        found = await statuses(client, [form(imei) for imei in imeis])
        assert set(found) == {1}
    listed = set(imeis)
    others = [f"{(int(imei) + 1) % 10**14:014d}" for imei in imeis]
    assert await statuses(client, others) == [int(imei in listed) for imei in others]
    assert site.json("lists")[0]["entries"] >= len(imeis)
