"""What phones send that is neither IMEI nor MEID: it has a key, and is listed, answered, shown and exported as any device is."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.node import LISTED, UNLISTED, until
from test_serve import BLACK, GREY, WHITE, ask

from eir.device import MEID_BASE, ODD_BASE, SNR_KEYS, any_key, device_key, key_text, odd_key
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.table.columns import WHOLE

TWELVE, NOBODY, WORD, LONG = "440015202000", "0", "nonsense", "x" * 20
RULES = [{"list": "own", "answer": "greylisted"}, {"list": "stolen", "answer": "blacklisted"}]


@given(st.text(min_size=1, max_size=20).filter(lambda text: len(text.encode()) <= 20))
def test_any_text_has_a_key_that_leads_back_to_itself(text):
    key = any_key(text)
    assert any_key(key_text(key)) == key
    assert key < WHOLE
    assert (key >= ODD_BASE) == (key != _device(text))


def _device(text):
    try:
        return device_key(text)
    except IdentifierError:
        return None


def test_digits_are_kept_as_they_are_and_never_meet():
    texts = [f"{number:0{size}d}" for size in range(1, 14) for number in (0, 1, 10**size - 1)]
    assert [key_text(odd_key(text)) for text in texts] == texts
    assert len({odd_key(text) for text in (*texts, WORD, LONG, "9" * 17)}) == len({*texts}) + 3


@pytest.mark.parametrize("text", ["", "x" * 21, "é" * 11])
def test_what_has_no_key(text):
    with pytest.raises(IdentifierError, match="1 to 20 octets"):
        odd_key(text)


def test_the_ranges_of_keys_do_not_meet():
    assert MEID_BASE + (1 << 56) <= ODD_BASE < odd_key("0")
    assert MEID_BASE % SNR_KEYS == ODD_BASE % SNR_KEYS == 0


async def test_they_are_listed_and_answered(site, connect):
    site.configure(
        lists={"stolen": site.settings["lists"]["stolen"], "own": {"local": True, "change_min": 1000}},
        policy={"rules": RULES, "bad_identity": "whitelisted"},
        sightings={"keep": "90d"},
    )
    site.load(["identifier,reason", f"{TWELVE},used by millions", f"{WORD},", f"{LISTED},"])
    site.eir("add", "own", NOBODY, "--verbatim", "--reason", "what a factory left")
    node = site.start()
    client = await connect(node)
    assert [await ask(client, each) for each in (TWELVE, WORD, LISTED, NOBODY)] == [BLACK, BLACK, BLACK, GREY]
    assert [await ask(client, each) for each in (TWELVE[:-1], WORD + "s", UNLISTED, NOBODY * 2, "y" * 40)] == [
        WHITE
    ] * 5
    assert [await ask(client, each) for each in (LISTED, TWELVE)] * 2 == [BLACK] * 4
    found = (await site.eir_beside("check", TWELVE)).stdout
    assert "blacklisted" in found
    assert "used by millions" in found
    assert (await site.eir_beside("check", TWELVE[:-1], status=2)).stdout.startswith(f"{TWELVE[:-1]}: whitelisted")
    assert TWELVE in (await site.eir_beside("show", "stolen", TWELVE)).stdout
    await site.eir_beside("add", "own", WORD, "--verbatim", "--reason", "seen often")
    client = await connect(node)
    until(lambda: "greylisted" in site.eir("check", WORD).stdout)
    assert await ask(client, WORD) == GREY
    put = {row["reason"]: row["time"] for row in site.json("show", "own")["entries"]}
    assert put == {event["detail"].partition(":")[0]: event["time"] for event in site.json("history", "own")}
    assert {row["who"] for row in site.json("show", "own")["entries"]} == {site.json("history", "own")[0]["who"]}
    await site.eir_beside("remove", "own", WORD, "--verbatim", "--reason", "tried")
    assert [row["imei"] for row in site.json("seen", TWELVE)["sightings"]] == [TWELVE]
    refused = await site.eir_beside("add", "own", TWELVE, "--reason", "a slip of the pen", status=2)
    assert "no IMEI" in refused.stderr


def test_an_export_is_a_release_of_the_same_content(site):
    site.load(["identifier,reason", f"{TWELVE},one", f"{WORD},two", f"{LONG},two", f"{LISTED},one", "A1000009296DF0,"])
    digest = site.json("lists")[0]["digest"]
    out = site.folder / "out.csv"
    site.eir("export", "stolen", "--out", out)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["identifier"] for row in rows} >= {TWELVE, LISTED, "A1000009296DF0"}
    assert (
        "no place for identifiers that are no IMEI" in site.eir("export", "stolen", "--layout", "imei", status=1).stderr
    )
    site.load(out, serial=2)
    assert site.json("lists")[0]["digest"] == digest


def test_a_row_that_is_too_long_is_bad(site):
    with pytest.raises(ReleaseRefused, match=r"0\.csv:3: an identifier has 1 to 20 octets; got 21"):
        site.release(["identifier", TWELVE, "z" * 21])
