"""eir audit: a planted gap is found, by asking an EIR of ours and one of another make, and in the record; and how sure that is."""

import asyncio
import json
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import python_diameter
from diameter.message import constants
from diameter.node.application import Application
from simulated.luhn import check_digit
from simulated.node import LISTED, UNLISTED
from simulated.servers import free_port
from simulated.store_content import as_table, page
from simulated.wire import EIR, HOST, REALM

from eir.device import MEID_BASE, device_key
from eir.lists.changes.audit import (
    CONFIDENCE,
    UNDER_WAY_MAX,
    AuditReport,
    ReleaseEntries,
    audit,
    forms,
    interim_sizes,
    interval,
    sample_size,
)
from eir.lists.table.columns import rows_of
from eir.sightings.schema import FOLDER

NOW = datetime(2026, 11, 26, tzinfo=UTC)
IMEIS = [f"{35209900 + n // 40}{n * 7919 % 1000000:06d}" for n in range(1000)]
MEID = "A0000000000001"
MISSED = sorted(IMEIS[5::100])
"""1 % of the list."""
NAMES = f"origin_host={HOST}&origin_realm={REALM}"
ASKED = ("--rate", "10000")

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # python-diameter's threads, at their end


# How many, how sure


@pytest.mark.parametrize(
    ("right", "asked", "entries", "wanted"),
    [
        (0, 0, 100, (0, 1)), (990, 1000, 1000, (0.99, 0.99)), (844, 844, 1000, (0.999, 1)), (0, 1, 1, (0, 0)),
        # Without a bound the ends are the roots of p^right (1-p)^wrong = 0.05 B(1+right, 0.1+wrong)/B(1, 0.1).
        (10, 10, None, (0.720272, 1)), (0, 10, None, (0, 0.532841)), (96, 100, None, (0.861726, 0.995688)), (3.5, 4, None, (0.198142, 0.99999)),
    ],
)  # fmt: skip
def test_the_interval_is_that_of_a_confidence_sequence(right, asked, entries, wanted):
    bounds = interval(right, asked) if entries is None else interval(right, asked, of=entries)
    assert bounds == pytest.approx(wanted, abs=0.000001)


@pytest.mark.parametrize("right", [0, 1, 30, 57, 59, 60])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_whoever_looks_after_each_answer_is_wrong_no_more_often_than_stated(right, confidence):
    """The probability that any of the intervals of an audit of 60 entries leaves out the true share, by all its paths."""
    entries, missed, paths = 60, 0.0, {0: 1.0}
    for asked in range(1, entries + 1):
        after = {}
        for count, probability in paths.items():
            chance = (right - count) / (entries - asked + 1)
            for more, weight in ((1, chance), (0, 1 - chance)):
                if weight > 0:
                    after[count + more] = after.get(count + more, 0.0) + probability * weight
        paths = {}
        for count, probability in after.items():
            low, high = interval(count, asked, confidence, of=entries)
            if low <= right / entries <= high:
                paths[count] = probability
            else:
                missed += probability
    assert missed <= 1 - confidence + 1e-9
    assert sum(paths.values()) == pytest.approx(1 - missed)


AUDITS = 1000


@pytest.mark.long(short=["9699-0.97-5000-False", "9700-0.97-5000-True"])
@pytest.mark.parametrize(
    ("right", "at_least", "most", "verdict"),
    [
        (9_600, 0.97, 10_000, False), (9_699, 0.97, 5_000, False), (9_700, 0.97, 5_000, True), (9_850, 0.97, 10_000, True),
        (9_989, 0.999, 9_000, False), (9_990, 0.999, 9_000, True),
    ],
)  # fmt: skip
def test_sequential_audits_are_wrong_no_more_often_than_stated(right, at_least, most, verdict):
    """A thousand audits of 10,000 entries, of which `right` are answered as listed; the seed is fixed."""

    @cache
    def judged(as_listed, asked):
        return AuditReport(list="stolen", serial=1, entries=10_000, asked=asked, as_listed=as_listed).verdict(at_least)

    answers, verdicts = np.arange(10_000) < right, Counter()
    for seed in range(AUDITS):
        counts = np.random.default_rng(seed).permutation(answers).cumsum()
        sizes = interim_sizes(sample_size(at_least, of=10_000), most)
        verdicts[
            next((found for size in sizes if (found := judged(int(counts[size - 1]), size)) is not None), None)
        ] += 1
    assert verdicts[not verdict] <= AUDITS * (1 - CONFIDENCE)
    if most == 10_000:
        assert verdicts[verdict] > AUDITS * CONFIDENCE, "it decides, too"


@pytest.mark.parametrize("at_least", [0.0, 0.5, 0.99, 0.999, 0.99999])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize("entries", [1, 1000, 10**8])
def test_a_sample_is_as_large_as_it_has_to_be(at_least, confidence, entries):
    size = sample_size(at_least, confidence, of=entries)
    assert interval(size, size, confidence, of=entries)[0] >= at_least
    assert size == 1 or interval(size - 1, size - 1, confidence, of=entries)[0] < at_least
    assert sample_size(1, confidence, of=entries) == entries


def test_evaluations_come_after_each_tenth_more():
    assert list(interim_sizes(10, 300)) == [10, 110, 210, 300]
    assert list(interim_sizes(2000, 2450)) == [2000, 2200, 2420, 2450]
    assert list(interim_sizes(500, 300)) == [300]


def test_forms_are_those_of_mmes():
    key = device_key(LISTED)
    assert forms(key, 0) == [LISTED, f"{LISTED}0", f"{LISTED}01"]
    assert forms(key, 1) == [LISTED, f"{LISTED}{check_digit(LISTED)}", f"{LISTED}01"]
    assert forms(MEID_BASE + 0xA0000012345678, 0) == ["A0000012345678"]


def listed(*pages):
    return ReleaseEntries(SimpleNamespace(list="stolen", serial=1), as_table(pages), NOW)


def test_what_is_listed_and_what_has_ended():
    past, coming = int(NOW.timestamp()) - 1, int(NOW.timestamp()) + 1
    of = listed(
        page(35209900, [1, 2, 3], until=[past, coming, 0]),
        page(35209901, [7], tac=(0, 0)),
        page(35209902, [], tac=(0, past)),
        rows_of([35209903_000001], begins=coming),
    )
    keys = np.array(
        [35209900_000002, 35209902_000001, 35209901_999999, 35209900_000001, 35209903_000001, 35209900_000003],
        np.uint64,
    )
    assert of.holds(keys).tolist() == [True, False, True, False, False, True]
    assert of.holds(keys[:0]).tolist() == []
    assert len(of) == 4
    drawn = sorted(of.sample(100))
    assert [key // 10**6 for key in drawn] == [35209900, 35209900, 35209901, 35209901]
    assert set(drawn) >= {35209900_000002, 35209900_000003, 35209901_000007}
    assert of.holds(np.array(drawn, np.uint64)).all()


def test_a_sample_is_by_chance_and_without_repeats():
    of = listed(page(35209900, range(1000)), page(35209901, range(1000)))
    one, other = of.sample(500), of.sample(500)
    assert len(set(one)) == len(set(other)) == 500
    assert set(one) != set(other)
    assert one != sorted(one)
    assert 150 < sum(key < 35209901_000000 for key in one) < 350


# Asking


async def test_no_more_questions_are_under_way_than_the_bound():
    """An EIR that answers nothing for a while gets no flood, whatever the rate."""
    waits, under_way, most, asked = asyncio.Event(), 0, 0, 0

    async def ask(_):
        nonlocal under_way, most, asked
        under_way, asked = under_way + 1, asked + 1
        most = max(most, under_way)
        if under_way == UNDER_WAY_MAX:
            asyncio.get_running_loop().call_later(0.2, waits.set)  # in which more would go out, if there were no bound
        await waits.wait()
        under_way -= 1
        return "blacklisted"

    of = listed(page(35209900, range(1000)))
    report = await audit(of, of.sample(1000), ask, wanted="blacklisted", rate=1e6)
    assert (most, asked, report.asked, report.share) == (UNDER_WAY_MAX, 3000, 1000, 1)


@pytest.mark.parametrize(
    ("every", "most", "asked", "verdict"), [(25, 9000, range(500, 8000), False), (25, 1000, [1000], None), (10**6, 9000, [116], True)]
)  # fmt: skip
async def test_more_devices_are_drawn_until_the_share_is_decided(every, most, asked, verdict):
    """Of the devices, one in `every` is not answered as listed."""
    of = listed(page(35209900, range(50_000)))
    keys = [35209900_000000 + number for number in range(1, most + 1)]

    async def ask(text):
        return "blacklisted" if int(text[8:14]) % every else "whitelisted"

    first = sample_size(0.97, of=len(of))
    report = await audit(of, keys, ask, wanted="blacklisted", rate=1e6, first=first, at_least=0.97)
    assert report.asked in asked
    assert report.verdict(0.97) is verdict
    assert len(report.exceptions) == 3 * (report.asked // every)


def found(site, manifest, *more, status=0):
    done = site.eir("audit", manifest, *more, "--json", status=status)
    return json.loads(done.stdout), done.stderr


def gap(document, missed=MISSED):
    assert sorted({mistake["imei"][:14] for mistake in document["exceptions"]}) == missed
    assert {(len(mistake["imei"]), mistake["wanted"], mistake["got"]) for mistake in document["exceptions"]} == {
        (digits, "blacklisted", "whitelisted") for digits in (14, 15, 16)
    }


@pytest.mark.long
def test_an_eir_that_misses_one_in_a_hundred_is_found_and_one_that_misses_none_passes(site):
    site.load([imei for imei in IMEIS if imei not in MISSED])
    wanted = site.release(IMEIS, serial=2)
    where = "s13://{}:{}?{}".format(*site.start().address, NAMES)
    document, said = found(site, wanted, where, *ASKED, "--all", "--at-least", "99.9%", status=1)
    assert list(document) == ["list", "serial", "asked", "as_listed", "share", "interval", "exceptions"]
    assert (document["list"], document["serial"], document["asked"], document["as_listed"]) == ("stolen", 2, 1000, 990)
    assert (document["share"], document["interval"]) == (0.99, [0.99, 0.99])
    gap(document)
    assert said == "eir: at most 99.0000% are answered as listed, less than 99.9000%\n"
    # A sample of nine in ten misses all ten of them once in 10^10.
    document, _ = found(site, wanted, where, *ASKED, "--sample", "900", "--at-least", "0.999", status=1)
    assert document["asked"] == 900
    assert document["interval"][0] < document["share"] < document["interval"][1] < 0.9999
    site.eir("load", wanted)
    document, said = found(site, wanted, where, *ASKED, "--at-least", "0.999")
    assert (document["asked"], document["share"], document["interval"], said) == (844, 1, [0.999, 1], "")
    document, said = found(site, wanted, where, *ASKED, "--sample", "20", "--at-least", "0.999", status=3)
    assert document["asked"] == 20
    assert (
        said
        == "eir: undecided: between 84.8000% and 100.0000% are answered as listed, 99.9000% is wanted; a larger --sample-max decides\n"
    )
    document, _ = found(site, wanted, where, *ASKED, "--sample", "20", "--sample-max", "1000", "--at-least", "0.999")
    assert 844 <= document["asked"] <= 920


class Eir(Application):
    """Knows a list, and is of another make."""

    def handle_request(self, request):
        answer = self.generate_answer(request, result_code=constants.E_RESULT_CODE_DIAMETER_SUCCESS)
        answer.auth_session_state = constants.E_AUTH_SESSION_STATE_NO_STATE_MAINTAINED
        answer.equipment_status = int(request.terminal_information.imei[:14] in self.blocked)
        self.send_answer(answer)


@contextmanager
def other_eir(blocked):
    port = free_port()
    with python_diameter.running(
        EIR, REALM, force=True, ip_addresses=["127.0.0.1"], tcp_port=port, vendor_ids=[constants.VENDOR_TGPP]
    ) as node:
        application = Eir(constants.APP_3GPP_S13_S13, is_auth_application=True)
        application.blocked = set(blocked)
        node.add_application(application, [node.add_peer(f"aaa://{HOST}", REALM)])
        node.start()
        yield f"s13://127.0.0.1:{port}?{NAMES}"


def test_an_eir_of_another_make(site):
    wanted, short = site.release(IMEIS[:60]), MISSED[:0]
    with other_eir(IMEIS[:60]) as where:
        document, _ = found(site, wanted, where, *ASKED, "--at-least", "1")
        assert (document["asked"], document["share"], document["exceptions"]) == (60, 1, short)
        document, said = found(site, wanted, where, *ASKED, "--sample", "20", "--at-least", "0.99", status=3)
        assert (document["asked"], document["share"]) == (20, 1)
        assert said.startswith("eir: undecided: between ")
    with other_eir(imei for imei in IMEIS[:60] if imei not in MISSED) as where:
        document, _ = found(site, wanted, where, *ASKED, "--at-least", "1", status=1)
        assert document["as_listed"] == 59
        gap(document, [imei for imei in MISSED if imei in IMEIS[:60]])


def test_what_is_refused_and_what_is_wrong_usage(site):
    manifest = site.release([LISTED])
    for arguments in (
        ("s13://127.0.0.1:1", "--sightings"), ("s13://127.0.0.1:1", "--at-least", "2"), ("s13://127.0.0.1:1", "--sample-max", "9"), ("--sightings", "--at-least", "1", "--sample-max", "9"),
        ("s13://127.0.0.1:1", "--at-least", "1", "--all", "--sample-max", "9"), ("s13://127.0.0.1:1", "--at-least", "1", "--sample", "10", "--sample-max", "9"),
    ):  # fmt: skip
        assert site.eir("audit", manifest, *arguments, status=2).stderr
    assert "cannot connect" in site.eir("audit", manifest, f"s13://127.0.0.1:{free_port()}", status=1).stderr
    (site.folder / "releases" / "stolen-1.csv.zst").write_bytes(b"")
    assert "refused (file_size)" in site.eir("audit", manifest, "s13://127.0.0.1:1", status=1).stderr


# Only looking


def test_the_record_shows_blocked_devices_and_the_mme_that_never_asks(site):
    now = datetime.now(UTC).replace(tzinfo=None)

    def row(imei, origin, status, checks=1, ago=timedelta()):
        device = device_key(imei) if imei.isdigit() else None
        return {
            "time": now - ago,
            "last": now - ago,
            "checks": checks,
            "imei": imei,
            "device": device,
            "origin_host": origin,
            "status": status,
        }

    path = site.state / FOLDER / f"{now:%Y-%m-%d}" / f"{now:%H}-1-1.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame([
        row(LISTED, "mme1", "blacklisted", 3), row(LISTED, "mme1", "whitelisted", 1), row(LISTED, "mme1", "whitelisted", 90, timedelta(days=2)),
        row(UNLISTED, "mme2", "whitelisted", 5), row("nonsense", "mme1", "error"),
        *(row(imei, "mme1", "whitelisted", 1, timedelta(days=5)) for imei in IMEIS[:12]),
    ]).write_parquet(path)  # fmt: skip
    site.configure(peers=[{"host": "mme1"}, {"host": "MME2"}, {"host": "mme4"}])
    manifest = site.release([LISTED], issued=datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1))
    document, _ = found(site, manifest, "--sightings", "--at-least", "0.8", status=3)
    assert (document["asked"], document["as_listed"], document["share"], document["devices"]) == (4, 3, 0.75, 1)
    assert document["origins"] == [
        {"origin_host": "mme1", "asked": 4, "as_listed": 3, "share": 0.75}, {"origin_host": "mme2", "asked": 0, "as_listed": 0, "share": None},
    ]  # fmt: skip
    assert document["never_asked"] == ["mme4"]
    assert found(site, manifest, "--sightings", "--since", "3d")[0]["asked"] == 94
    text = site.eir("audit", manifest, "--sightings").stdout.splitlines()
    assert text[1:] == [
        f"  {LISTED}: whitelisted instead of blacklisted",
        "mme1: 3 of 4",
        "mme2: asked about no listed device",
        "mme4: never asked",
    ]
    many = site.release(IMEIS[:12], serial=2)
    for wanted, at_least, status in (
        ("blacklisted", 0.5, 1),
        ("blacklisted", 0.4, 3),
        ("whitelisted", 0.7, 0),
        ("whitelisted", 0.8, 3),
    ):
        more = ("--wanted", wanted, "--at-least", str(at_least))
        _, said = found(site, many, "--sightings", "--since", "6d", *more, status=status)
        assert ("less than 50.0000%" in said) == (status == 1)
    unseen = site.release([IMEIS[20]], serial=3)
    assert "nothing was asked" in found(site, unseen, "--sightings", "--since", "6d", status=1)[1]
    assert "undecided" in found(site, unseen, "--sightings", "--since", "6d", "--at-least", "0.5", status=3)[1]
    text = site.eir("audit", many, "--sightings", "--since", "6d").stdout.splitlines()
    assert [line.partition(": whitelisted")[0].strip() for line in text[1:11]] == IMEIS[:10]
    assert text[11] == "  2 more; --json has all"
