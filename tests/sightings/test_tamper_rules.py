"""Evidence that makes a device tampered with, and evidence that does not: all situations in one record, which is judged once."""

from datetime import date
from functools import partial

import polars as pl
import pytest
from tampered import DAY, FAR, IMEI, NEAR, OTHERS, START, TAMPERED, UNTIL, files, lent, people, phones, write

from eir.sightings.conditions import Tac, TamperSettings
from eir.sightings.engine import duck
from eir.sightings.judge import judge

SALE = [(at, IMEI, "a" if at < 10 * DAY else "b", "mme1", "05") for at in range(0, 20 * DAY, 5)]
LENT = [(100.2, IMEI, "b", "mme1", "05"), (220.2, IMEI, "b", "mme1", "05")]


def box(ports, days, *, sims=12):
    """SIMs that go round through some devices, six times a day."""
    return [
        (turn * 4, f"3520990000{port:04d}", f"card{(turn * 5 + port) % sims}", "mme1", "01")
        for turn in range(days * 6) for port in range(ports)
    ]  # fmt: skip


def numbers(count, origin="mme1"):
    """Identifiers that a SIM uses up, two checks each."""
    return [(at * 50 + late, f"3520991234{at:04d}", "a", origin, "01") for at in range(count) for late in (0, 5)]


HONEST = {
    "a phone that is sold": SALE,
    "a phone that is lent twice": [*((at, IMEI, "a", "mme1", "05") for at in range(0, 20 * DAY, 5)), *LENT],
    "new firmware": [(at, IMEI, "a", "mme1", "05" if at < 200 else "06") for at in range(0, 400, 5)],
    "firmware that was put back once": [(at, IMEI, "a", "mme1", "06" if 200 <= at < 300 else "05") for at in range(0, 400, 5)],
    "a repair: another SIM in it for an hour": [*SALE[:40], (201.1, IMEI, "shop", "mme2", "05"), *SALE[41:]],
    "two SIMs that come together": [(at + late, IMEI, who, "mme1", "05") for at in range(0, 600, 3) for who, late in (("a", 0), ("b", 0.01))],
    "a courier with two SIMs in one slot": [
        (day * DAY + 6 + turn * 5.5 + check / 2, IMEI, "ab"[(turn + day) % 2], "mme1", None) for day in range(30) for turn in range(3) for check in range(10)
    ],
    "a phone with two SIMs that travels": [(day * DAY + 7 + 3 * turn, IMEI, "ab"[(day + turn) % 2], (NEAR, FAR)[(day * 4 + turn) // 6 % 2], None) for day in range(28) for turn in range(4)],
    "a router whose second SIM stands in for minutes": [(turn * 6.7 + late, IMEI, who, "mme1", None) for turn in range(90) for who, late in (("a", 0), ("b", 6.6))],
    "a loan phone": [(at * DAY + hour, IMEI, f"guest{at}", "mme1", "05") for at in range(30) for hour in (9, 12, 15)],
    "a shop's phone": [(at * 0.5, IMEI, f"guest{at}", "mme1", "05") for at in range(300)],
    "a carton of phones": [(at, f"352099{at + 100:08d}", f"s{at}", "mme1", "05") for at in range(20)],
    "one identity never seen elsewhere": [(1, IMEI, "a", "mme1", None)],
    "no SIM is named": [(at, IMEI, None, "mme1", "05") for at in range(0, 400, 5)],
    "SIMs that were seen on one day": [*((at * 0.4, IMEI, f"s{at % 20}", f"mme{at % 2}", "05" if at % 2 else "33") for at in range(55)), *phones("a")],
    "a SIM in four devices": numbers(4),
    "a SIM's own phone beside other devices": [*numbers(9), *((day * DAY + hour, IMEI, "a", "mme1", "01") for day in range(20) for hour in (8, 12, 20))],
    "a laboratory": [(at * 30 + sim / 2, f"3520991111{at:04d}", f"card{sim}", "mme1", "01") for at in range(10) for sim in range(4)],
}  # fmt: skip
FOUND = TAMPERED | {
    "sim_box, a third of all days": box(8, 10),
    "sim_box, a SIM in five devices": numbers(5),
    "sim_box, whose SIM comes by all MMEs of a pool": [(at * 50 + turn * 5, f"3520991234{at:04d}", "a", f"mme{turn}", "01") for at in range(5) for turn in range(4)],
    "alternates, in a hundred and one phones": [(day * DAY + number / 10, IMEI, f"s{number}", f"mme{number % 3}", None) for number in range(101) for day in (0, 3, 5)],
}  # fmt: skip

NO_BOX = {
    "six ports": box(6, 20),
    "ports on less than a third of all days": box(8, 9),
    "ports with three SIMs each": box(8, 20, sims=3),
}


WAYS = {(5, 0): True, (4, 0): None, (2, 0): None, (13, 2): True, (12, 2): False}
"""Number of devices that change the SIM at each of two origins, and between them → the two are two places; None: it is not known. The copied number itself is a device between them."""


def ways(case):
    """Devices that change the SIM at two origins, and two phones with one number, one at each."""
    honest, between = case
    number = 1000 * [*WAYS].index(case)
    one, other = f"way{number}a", f"way{number}b"
    rows = [
        row
        for at in range(honest)
        for place in (0, 1)
        for row in lent(number + at + 100 * place, *[(one, other)[place]] * 2)
    ]
    rows += [row for at in range(between) for row in lent(number + 200 + at, one, other)]
    return [*rows, *phones("ab", places={"a": one, "b": other})]


def apart(rows, at):
    """The rows of a situation with identifiers and SIMs of its own; placeholders stay."""
    made = []
    for hours, imei, sim, origin, version in rows:
        own = imei if int(imei) == 0 or imei.startswith("3520994") else f"35{at:02d}{imei[4:]}"
        made.append((hours, own, sim if sim is None or imei.startswith("3520994") else f"{at}-{sim}", origin, version))
    return made


SITUATIONS = {name: apart(rows, at) for at, (name, rows) in enumerate({**HONEST, **FOUND, **NO_BOX, **{case: ways(case) for case in WAYS}}.items(), 21)}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Findings in a record of all situations by device, at any score."""
    folder = tmp_path_factory.mktemp("situations")
    write(
        folder,
        [*(row for rows in SITUATIONS.values() for row in rows), *OTHERS, *people("mme0", "mme1", "mme2", first=40)],
    )
    with duck(files(folder), since=START, until=UNTIL, memory=1 << 28) as engine:
        made = judge(engine, TamperSettings(report_min=0), since=START, until=UNTIL)
        places = {frozenset(pair) for pair in engine.rows("SELECT x.origin, y.origin FROM ways JOIN origins AS x ON a = x.o JOIN origins AS y ON b = y.o WHERE is_apart = 1")}  # fmt: skip
        known = {frozenset(pair) for pair in engine.rows("SELECT x.origin, y.origin FROM ways JOIN origins AS x ON a = x.o JOIN origins AS y ON b = y.o")}  # fmt: skip
    assert made.left_out == ()
    return {finding.imei: finding for finding in made.findings}, places, known


def of(found, name):
    """Findings about a situation that would be reported."""
    imeis = {imei[:14] for _, imei, *_ in SITUATIONS[name]}
    return [found[0][imei] for imei in sorted(imeis) if imei in found[0] and found[0][imei].score >= 0.85]


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_device_is_not_reported(found, name):
    assert [(each.imei, each.evidence) for each in of(found, name)] == []


@pytest.mark.parametrize("name", FOUND)
def test_a_tampered_device_is_reported_with_its_evidence(found, name):
    findings = of(found, name)
    assert {each.imei for each in findings} == {imei[:14] for _, imei, *_ in SITUATIONS[name]}
    assert all(name.split(",")[0].split()[0] in each.conditions for each in findings)
    assert all(0.95 <= each.score < 1 and each.evidence for each in findings)


@pytest.mark.parametrize("name", NO_BOX)
def test_devices_through_which_few_sims_go_round_are_no_box(found, name):
    assert all("sim_box" not in each.conditions for each in of(found, name))


def test_of_a_number_in_many_phones_all_are_counted_and_a_hundred_judged(found):
    (each,) = of(found, "alternates, in a hundred and one phones")
    assert (each.subscribers, each.copies) == (101, 101)
    assert "SIMs that came back: 100; " in each.evidence


@pytest.mark.parametrize("case", WAYS)
def test_two_origins_are_compared_with_the_best_partner_of_either(found, case):
    """Two places: fewer than a quarter of the changes with the commonest partner, which has three or more."""
    pair = frozenset({f"way{1000 * [*WAYS].index(case)}{which}" for which in "ab"})
    assert (pair in found[1] if pair in found[2] else None) is WAYS[case]


def test_the_sum_of_the_conditions_is_the_score(found):
    (each,) = of(found, "conflict")
    assert each.says[0][0] == each.conditions[0] == "conflict"
    assert "days on which a SIM goes on where it was" in each.evidence
    assert sum(odds for _, odds, _ in each.says) > 3


OLD = Tac(35209900, date(2020, 1, 1), "Phone")


def test_tacs(judge_rows):
    listed = [OLD, Tac(35209901, date(2026, 11, 25), "Phone")]
    rows = [(1, IMEI, "a", "mme1", None), (1, "35209977000000", "c", "mme1", None)]
    (finding,) = judge_rows(rows, tacs=listed).findings
    assert (finding.imei, finding.conditions) == ("35209977000000", ("tac",))
    assert finding.evidence == "its TAC is not in the list, whose newest is of 2026-11-25"
    assert judge_rows(rows).findings == ()


@pytest.mark.parametrize(("newest", "sure"), [(date(2026, 8, 28), True), (date(2026, 8, 27), False)])
def test_a_list_of_tacs_knows_no_models_newer_than_itself(judge_rows, newest, sure):
    rows = [(1, "35209977000000", "c", "mme1", None), (1, "12209977000000", "d", "mme1", None)]
    found = judge_rows(rows, tacs=[OLD, Tac(35209902, newest, "Phone")])
    assert {each.imei for each in found.findings} == {"12209977000000", *(["35209977000000"] if sure else [])}


@pytest.mark.parametrize(("devices", "known"), [(1, False), (2, True)])
def test_two_devices_of_an_unknown_tac_are_rather_a_new_model(judge_rows, devices, known):
    rows = [(1, f"352099770000{number:02d}", f"c{number}", "mme1", None) for number in range(devices)]
    assert bool(judge_rows(rows, tacs=[OLD]).findings) is not known


@pytest.mark.parametrize(("others", "known"), [(19, True), (20, False)])
def test_a_peer_that_sends_next_to_nothing_shows_no_new_model(judge_rows, others, known):
    """A tenth of what each of the two sends on average is one check of 20."""
    rows = [(at, IMEI, "a", "mme1", None) for at in range(others - 1)]
    rows += [(1, "35209977000000", "b", "mme1", None), (1, "35209977000001", "c", "mme2", None)]
    assert bool(judge_rows(rows, tacs=[OLD]).findings) is not known


@pytest.mark.parametrize(("modules", "apart_from_findings"), [(10, True), (9, False)])
def test_modules_with_one_number_are_a_list_of_their_own_from_ten_sims_on(judge_rows, modules, apart_from_findings):
    listed = [OLD._replace(device_type="IoT Module"), Tac(35209950, date(2021, 1, 1), "Smartphone")]
    found = judge_rows([*phones("abcdefghij"[:modules]), *OTHERS], tacs=listed)
    assert found.batches == (((IMEI, modules),) if apart_from_findings else ())
    assert [each.imei for each in found.findings] == ([] if apart_from_findings else [IMEI])


def test_a_record_of_ninety_days_has_days_beyond_a_number_of_64_bits(tmp_path):
    """The box's ports are in use on 30 of 90 days, the last of which are beyond bit 63."""
    late = [(hours + 60 * DAY, *rest) for hours, *rest in box(8, 30)]
    write(tmp_path, [*late, *((day * DAY, "35209977000000", "o", "mme1", None) for day in range(90))])
    until = START.replace(year=2027)
    for since, found in ((START, 8), (START.replace(month=9), 8)):
        with duck(files(tmp_path), since=since, until=until, memory=1 << 28) as engine:
            assert len(judge(engine, TamperSettings(), since=since, until=until).findings) == found


def changed(folder, **columns):
    """Replace columns of the record."""
    for path in (folder / "sightings").glob("*/*.parquet"):
        pl.read_parquet(path, glob=False).with_columns(**columns).write_parquet(path)


def test_mmes_of_two_operators_are_not_compared(tmp_path):
    """Each SIM of a phone with two has its own operator's MMEs, wherever the phone is."""
    judged = partial(judge, settings=TamperSettings(report_min=0), since=START, until=UNTIL)
    write(tmp_path, [*phones("ab", places={"a": NEAR, "b": FAR}), *OTHERS])
    for realm in ("epc", "other"):
        changed(tmp_path, origin_realm=pl.when(pl.col("origin_host") == FAR).then(pl.lit(realm)).otherwise(pl.col("origin_realm")))  # fmt: skip
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            (finding,) = (each for each in judged(engine).findings if each.imei == IMEI)
        assert ("conflict" in finding.conditions) is (realm == "epc")


def test_checks_before_the_sim_was_authenticated_are_left_out(tmp_path):
    """Any phone may have claimed the SIM. Files of earlier versions have no such column, nor peers."""
    rows = [*TAMPERED["conflict"], *OTHERS]
    found = []
    for early in (None, True, False):
        write(tmp_path, rows)
        for path in (tmp_path / "sightings").glob("*/*.parquet"):
            frame = pl.read_parquet(path, glob=False).drop("early", "peer", strict=False)
            (frame if early is None else frame.with_columns(early=pl.lit(early))).write_parquet(path)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            found.append([each.imei for each in judge(engine, TamperSettings(), since=START, until=UNTIL).findings])
    assert found == [[IMEI], [], [IMEI]]


def test_checks_of_probes_and_auditors_are_left_out(tmp_path):
    write(tmp_path, [*TAMPERED["conflict"], *OTHERS, (5, "000000000000000", "z", "audit", None)], peers={FAR: "it's"})
    found = []
    for without in ((), ("audit",), ("audit", "it's")):
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28, without=without) as engine:
            found.append([each.imei for each in judge(engine, TamperSettings(), since=START, until=UNTIL).findings])
    assert found == [["00000000000000", IMEI], [IMEI], []]


@pytest.mark.parametrize(("others", "found"), [("00", False), ("07", True)])
def test_version_00_is_no_evidence(judge_rows, others, found):
    rows = [(day * DAY + late, IMEI, who, "mme1", version) for day in range(20) for who, version, late in (("a", "05", 8), ("b", others, 18))]  # fmt: skip
    findings = judge_rows([*rows, *OTHERS], report_min=0).findings
    assert any(each.imei == IMEI and "version_alternates" in each.conditions for each in findings) is found
