"""What makes one device tampered with, and what does not: each condition at its threshold and one below."""

from datetime import date

import polars as pl
import pytest
from tampered import DAY, EACH_DAY, FAR, IMEI, NEAR, OTHERS, START, TAMPERED, UNTIL, files, people, phones, write

from eir.sightings.conditions import Place, Tac, TamperSettings
from eir.sightings.engine import duck
from eir.sightings.judge import judge

OLD = Tac(35209900, date(2020, 1, 1), "Phone")
SALE = [(at, IMEI, "a" if at < 10 * DAY else "b", "mme1", "05") for at in range(0, 20 * DAY, 5)]


LENT = [
    *((at, IMEI, "a", "mme1", "05") for at in range(0, 20 * DAY, 5)),
    (100.2, IMEI, "b", "mme1", "05"),
    (220.2, IMEI, "b", "mme1", "05"),
]


UPDATED = [(at, IMEI, "a", "mme1", "05" if at < 200 else "06") for at in range(0, 400, 5)]


PUT_BACK = [(at, IMEI, "a", "mme1", "06" if 200 <= at < 300 else "05") for at in range(0, 400, 5)]


HONEST = {
    "a phone that is sold": SALE,
    "one that is lent twice": LENT,
    "new firmware": UPDATED,
    "firmware that was put back once": PUT_BACK,
    "a repair: another SIM in it for an hour": [*SALE[:40], (201.1, IMEI, "shop", "mme2", "05"), *SALE[41:]],
    "two SIMs that come together": [
        (at + late, IMEI, who, "mme1", "05") for at in range(0, 600, 3) for who, late in (("a", 0), ("b", 0.01))
    ],
    "a loan phone": [(at * DAY + hour, IMEI, f"guest{at}", "mme1", "05") for at in range(30) for hour in (9, 12, 15)],
    "a shop's phone": [(at * 0.5, IMEI, f"guest{at}", "mme1", "05") for at in range(300)],
    "a carton of phones": [(number, f"352099{number + 100:08d}", f"s{number}", "mme1", "05") for number in range(20)],
    "one identity never seen elsewhere": [(1, IMEI, "a", "mme1", None)],
    "nobody said who": [(at, IMEI, None, "mme1", "05") for at in range(0, 400, 5)],
}


@pytest.mark.parametrize("what", HONEST)
def test_an_honest_device_is_not_reported(judge_rows, what):
    assert [(finding.imei, finding.evidence) for finding in judge_rows(HONEST[what]).findings] == []


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_device_is_reported_with_its_evidence(judge_rows, what):
    found = judge_rows([*TAMPERED[what], *OTHERS]).findings
    assert {finding.device for finding in found} == {int(imei[:14]) for _, imei, *_ in TAMPERED[what]}
    assert all(what.split()[0] in finding.conditions for finding in found)
    assert all(0.95 <= finding.score < 1 and finding.evidence for finding in found)


def two(first, second, a_day=5):
    """Two phones with one number, each at a place of its own."""
    return phones("ab", places={"a": first, "b": second}, a_day=a_day)


def says(judged, name="conflict", imei=IMEI):
    """The evidence of a condition about one device, or an empty string."""
    return "; ".join(each.evidence for each in judged.findings if each.imei == imei and name in each.conditions)


def test_places_show_whether_two_origins_are_far_apart(judge_rows):
    near = {"mme1": Place(50.45, 30.52), "mme2": Place(50.40, 30.60)}
    far = {"mme1": Place(50.45, 30.52), "mme2": Place(49.84, 24.03)}
    rows = [*two("mme1", "mme2"), *people("mme1", "mme2")]
    assert not says(judge_rows(rows, report_min=0, origins=near))
    assert says(judge_rows(rows, report_min=0, origins=far)).startswith("days on which a SIM goes on where it was")


def lent(number, *mmes, first=0):
    """A phone whose SIMs change once a day, the second one two hours after the first one, by two MMEs."""
    return [
        (day * DAY + 8 + 2 * turn, f"3520994{first + number:07d}", f"{'ab'[turn]}{first + number}", mmes[turn], "05")
        for day in range(0, 20, 2) for turn in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(("honest", "between", "apart"), [(5, 0, True), (4, 0, False), (13, 2, True), (12, 2, False)])
def test_places_are_known_by_continuity(judge_rows, honest, between, apart):
    """Two origins are two places if few devices change SIMs between them, and four times as many at each; the copied number itself is between them."""
    rows = [
        row
        for number in range(honest)
        for row in (*lent(number, "mme1", "mme1"), *lent(number, "mme2", "mme2", first=100))
    ]
    rows += [row for number in range(between) for row in lent(number, "mme1", "mme2", first=200)]
    judged = judge_rows([*two("mme1", "mme2"), *rows, *people("mme1", "mme2")], report_min=0)
    assert bool(says(judged)) is apart


def test_tacs(judge_rows):
    listed = [OLD, Tac(35209901, date(2026, 11, 25), "Phone")]
    rows = [(1, IMEI, "a", "mme1", None), (1, "35209977000000", "c", "mme1", None)]
    (found,) = judge_rows(rows, tacs=listed).findings
    assert (found.imei, found.conditions) == ("35209977000000", ("tac",))
    assert found.evidence == "its TAC is not in the list, whose newest is of 2026-11-25"
    assert judge_rows(rows).findings == ()


@pytest.mark.parametrize(("newest", "sure"), [(date(2026, 8, 28), True), (date(2026, 8, 27), False)])
def test_a_list_of_tacs_knows_no_models_newer_than_itself(judge_rows, newest, sure):
    found = judge_rows(
        [(1, "35209977000000", "c", "mme1", None), (1, "12209977000000", "d", "mme1", None)],
        tacs=[OLD, Tac(35209902, newest, "Phone")],
    )
    assert {finding.imei for finding in found.findings} == {"12209977000000", *(["35209977000000"] if sure else [])}


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


def test_modules_with_one_number_are_counted_and_no_findings(judge_rows):
    listed = [OLD._replace(device_type="IoT Module"), Tac(35209950, date(2021, 1, 1), "Smartphone")]
    rows = [*phones("abcdefgh"), *OTHERS]
    found = judge_rows(rows, tacs=listed)
    assert (found.findings, found.batches) == ((), ((IMEI, 8),))
    assert judge_rows(rows).findings[0].imei == IMEI  # without a list that has types nobody can tell


@pytest.mark.parametrize(
    ("phones_with", "words"), [(100, "; they change"), (101, ", of whom the busiest 100 are looked at; they change")]
)
def test_of_a_number_in_many_phones_the_busiest_are_judged(judge_rows, phones_with, words):
    rows = [
        (day * DAY + number / 10, IMEI, f"s{number}", f"mme{number % 3}", None)
        for number in range(phones_with)
        for day in (0, 3)
    ]
    judged = judge_rows([*rows, *people("mme0", "mme1", "mme2")], report_min=0)
    (finding,) = (each for each in judged.findings if each.imei == IMEI)
    assert (finding.subscribers, finding.copies) == (phones_with, phones_with)
    assert f"subscribers who came back: {phones_with}{words}" in finding.evidence


def test_pools_are_known_by_their_names(judge_rows):
    domain = ".mme.epc.mnc001.mcc001.3gppnetwork.org"
    pool = f"mmec01.mmegi8001{domain}", f"mmec02.mmegi8001{domain}"
    other = f"mmec01.mmegi8001{domain}", f"mmec01.mmegi8002{domain}"
    assert not says(judge_rows([*two(*pool), *OTHERS], report_min=0))
    assert says(judge_rows([*two(*other), *OTHERS], report_min=0))


def test_mmes_of_two_operators_are_not_compared(tmp_path):
    """Each SIM of a phone with two has its own operator's MMEs, wherever the phone is."""
    write(tmp_path, [*two(NEAR, FAR), *OTHERS])
    for path in (tmp_path / "sightings").glob("*/*.parquet"):
        realm = pl.when(pl.col("origin_host") == FAR).then(pl.lit("other")).otherwise(pl.col("origin_realm"))
        pl.read_parquet(path, glob=False).with_columns(origin_realm=realm).write_parquet(path)
    with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
        assert not says(judge(engine, TamperSettings(report_min=0), since=START, until=UNTIL))


def test_where_sims_go_on_where_the_device_was_speaks_for_one_body(judge_rows):
    """A phone with two SIMs that travels: the SIM that comes next is where the other one was last."""
    one = [
        (day * DAY + 7 + 3 * turn, IMEI, "ab"[(day + turn) % 2], (NEAR, FAR)[(day * 4 + turn) // 6 % 2], None)
        for day in range(28) for turn in range(4)
    ]  # fmt: skip
    (finding,) = (each for each in judge_rows([*one, *OTHERS], report_min=0).findings if each.imei == IMEI)
    assert "SIMs that go on where the device was" in finding.honest
    assert finding.score < 0.01


def test_reports_of_one_peer_alone_about_many_devices_are_not_believed(tmp_path):
    victims = [
        row
        for number in range(60)
        for row in phones(
            [f"v{number}"], a_day=4, imei=f"3520993{number:07d}", places={f"v{number}": NEAR}, seed=number
        )
    ]
    lies = [
        (3 * DAY + at * 26 + number / 60, f"3520993{number:07d}", f"x{number}", "liar", "00")
        for number in range(60)
        for at in range(24)
    ]
    real = [*TAMPERED["conflict"], *OTHERS]
    said = []

    def judged(rows):
        write(tmp_path, rows)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            return judge(engine, TamperSettings(), since=START, until=UNTIL, warn=said.append)

    found = judged([*victims, *lies, *real])
    assert [finding.imei for finding in found.findings] == [IMEI]
    assert found.left_out == ("liar",)
    assert "liar" in said[0]
    assert judged([*victims, *real]).left_out == ()


def test_who_claims_another_s_origin_is_not_believed(tmp_path):
    victims = [
        row for number in range(30) for row in phones([f"v{number}"], a_day=4, imei=f"3520993{number:07d}", seed=number)
    ]
    far = [(at, f"3520992{at:07d}", f"f{at}", "mme2", None) for at in range(600)]
    lies = [
        (DAY + at * 26 + number / 60, f"3520993{number:07d}", f"x{number}", "mme2", "00")
        for number in range(2)
        for at in range(24)
    ]
    write(tmp_path, [*victims, *far, *lies], peers={"mme2": "dra"} | {f"x{number}": "liar" for number in range(2)})
    with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
        assert judge(engine, TamperSettings(), since=START, until=UNTIL).findings == ()


def test_checks_before_the_sim_was_authenticated_are_left_out(tmp_path):
    """Anybody may have named the SIM: nobody is judged by that. Files from before there was the mark have no such column."""
    rows = [*TAMPERED["conflict"], *OTHERS]
    found = []
    for early in (None, True, False):
        write(tmp_path, rows)
        for path in (tmp_path / "sightings").glob("*/*.parquet"):
            frame = pl.read_parquet(path, glob=False).drop("early", strict=False)
            (frame if early is None else frame.with_columns(early=pl.lit(early))).write_parquet(path)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            found.append([each.imei for each in judge(engine, TamperSettings(), since=START, until=UNTIL).findings])
    assert found == [[IMEI], [], [IMEI]]


def test_checks_of_probes_and_auditors_are_left_out(tmp_path):
    write(tmp_path, [*TAMPERED["conflict"], *OTHERS, (5, "000000000000000", "z", "audit", None)], peers={FAR: "it's"})
    found = {}
    for without in ((), ("audit",), ("audit", "it's")):
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28, without=without) as engine:
            found[without] = [
                finding.imei for finding in judge(engine, TamperSettings(), since=START, until=UNTIL).findings
            ]
    assert list(found.values()) == [["00000000000000", IMEI], [IMEI], []]


def test_subscribers_seen_on_one_day_are_no_evidence(judge_rows):
    crowd = [(at * 0.4, IMEI, f"s{at % 20}", f"mme{at % 2}", "05" if at % 2 else "33") for at in range(55)]
    assert judge_rows([*crowd, *phones("a")]).findings == ()


@pytest.mark.parametrize(
    ("days", "all_days", "found"), [(4, 4, True), (3, 3, False), (6, 18, True), (6, 19, False), (50, 60, True)]
)
def test_ports_are_a_box_from_four_days_and_a_third_of_all_days_on(judge_rows, days, all_days, found):
    rows = [
        (turn * 4, f"3520990000{port:04d}", f"card{(turn * 5 + port) % 12}", "mme1", "01")
        for turn in range(days * 6)
        for port in range(8)
    ]
    others = [(day * DAY, "35209977000000", "o", "mme1", None) for day in range(all_days)]
    assert any("sim_box" in each.conditions for each in judge_rows([*rows, *others], report_min=0).findings) is found


@pytest.mark.parametrize(("ports", "found"), [(7, True), (6, False)])
def test_a_box_has_seven_ports(judge_rows, ports, found):
    """A measuring van and a laboratory have fewer devices."""
    rows = [
        (turn * 4, f"3520990000{port:04d}", f"card{(turn * 5 + port) % 12}", "mme1", "01")
        for turn in range(60)
        for port in range(ports)
    ]
    assert any("sim_box" in each.conditions for each in judge_rows(rows, report_min=0).findings) is found


@pytest.mark.parametrize(("numbers", "found"), [(5, True), (4, False)])
def test_a_sim_of_a_box_uses_up_five_devices(judge_rows, numbers, found):
    rows = [
        (number * 50 + late, f"3520991234{number:04d}", "a", "mme1", "01")
        for number in range(numbers)
        for late in (0, 5)
    ]
    assert bool(judge_rows(rows).findings) is found


def test_a_sim_of_a_box_may_come_by_any_mme_of_a_pool(judge_rows):
    rows = [
        (number * 50 + turn * 5, f"3520991234{number:04d}", "a", f"mme{turn}", "01")
        for number in range(5)
        for turn in range(4)
    ]
    assert len(judge_rows(rows).findings) == 5


def numbers_of_one_sim(origin, *, first=0, count=6):
    """Numbers that a SIM uses up, two checks each, a day for each."""
    return [
        ((first + number) * DAY + late, f"3520991234{number:04d}", "a", origin, "01")
        for number in range(count)
        for late in (0, 5)
    ]


@pytest.mark.parametrize(
    ("numbers", "own", "found"),
    [
        (numbers_of_one_sim("mme1"), range(7, 20), True),  # the last of its numbers, by the same peer
        (
            numbers_of_one_sim("liar"),
            range(7, 20),
            False,
        ),  # its own phone, at another peer than what is said of its SIM
        (
            numbers_of_one_sim("mme1", first=8, count=9),
            range(20),
            False,
        ),  # its own phone, which it goes on using beside them
    ],
)
def test_a_sim_s_own_phone_is_no_number_of_a_box(judge_rows, numbers, own, found):
    rows = [(day * DAY + hour, IMEI, "a", "mme1", "01") for day in own for hour in (8, 12, 20)]
    devices = {finding.imei for finding in judge_rows([*numbers, *rows]).findings}
    beside = len(own) == 20  # then nothing is in turn
    assert devices == ({IMEI} if found else set()) | (set() if beside else {imei for _, imei, *_ in numbers})


def ports(of_others):
    """Eight SIMs that go round through eight devices for eight days, three times a day; another SIM's checks in the first one, and one in another device."""
    box = [
        (turn * 8 + 1, f"3520990000{port:04d}", f"card{(turn + port) % 8}", "mme1", None)
        for turn in range(24)
        for port in range(8)
    ]
    device, sim = of_others
    mine = [(100 + at / 10, "35209900000000", f"guest{at}", "mme1", None) for at in range(device)]
    return [*box, *mine, *[(100 + at / 10, IMEI, "card0", "mme1", None) for at in range(sim)]]


@pytest.mark.parametrize(("of_others", "found", "sims"), [((12, 24), 8, 8), ((13, 0), 7, 8), ((0, 25), 8, 7)])
def test_ports_and_their_sims_hold_little_else(judge_rows, of_others, found, sims):
    boxes = [each.evidence for each in judge_rows(ports(of_others)).findings if "sim_box" in each.conditions]
    assert len(boxes) == found
    assert all(f"{sims} SIMs that go round" in evidence for evidence in boxes)


@pytest.mark.parametrize(("sims", "found"), [(4, True), (3, False)])
def test_a_port_has_four_sims(judge_rows, sims, found):
    rows = [
        (turn * 8 + 1, f"3520990000{port:04d}", f"card{(turn + port) % sims}", "mme1", None)
        for turn in range(24)
        for port in range(8)
    ]
    assert any("sim_box" in each.conditions for each in judge_rows(rows, report_min=0).findings) is found


@pytest.mark.parametrize(("minutes", "said"), [(9, True), (200, False)])
def test_a_sim_that_soon_follows_the_other_speaks_for_one_phone(judge_rows, minutes, said):
    """A router whose second SIM stands in for minutes, seven times a day; and two phones of which each comes as soon after the other."""
    rows = [
        (turn * 6.7 + late, IMEI, who, "mme1", None)
        for turn in range(90)
        for who, late in (("a", 0), ("b", 6.7 - minutes / 60))
    ]
    (finding,) = (each for each in judge_rows([*rows, *OTHERS], report_min=0).findings if each.imei == IMEI)
    assert ("sooner than the other way round" in finding.honest) is said


@pytest.mark.parametrize(("others", "found"), [("00", False), ("07", True)])
def test_version_00_from_an_origin_for_all_phones_is_no_evidence(judge_rows, others, found):
    rows = [
        (day * DAY + late, IMEI, who, mme, version)
        for day in range(20)
        for who, mme, version, late in (("a", "mme1", "05", 8), ("b", "mme2", "00", 18))
    ]
    family = [
        (day * DAY + late, "35209950000019", who, mme, others if mme == "mme2" else "09")
        for day in range(0, 20, 4)
        for who, mme, late in (("c", "mme1", 7), ("d", "mme2", 21))
    ]
    findings = judge_rows([*rows, *family, *people("mme1", "mme2")], report_min=0).findings
    assert any(each.imei == IMEI and "version_alternates" in each.conditions for each in findings) is found


def test_a_courier_with_two_sims_in_one_slot_is_not_reported(judge_rows):
    """Thirty checks a day and two or three changes of SIM: a phone that is checked more often than others is not two phones for that."""
    rows = [
        (day * DAY + 6 + turn * 5.5 + check / 2, IMEI, "ab"[(turn + day) % 2], "mme1", None)
        for day in range(30)
        for turn in range(3)
        for check in range(10)
    ]
    assert judge_rows([*rows, *OTHERS]).findings == ()


def test_a_laboratory_and_a_refurbisher_are_no_box(judge_rows):
    laboratory = [
        (at * 30 + number / 2, f"3520991111{at:04d}", f"card{number}", "mme1", "01")
        for at in range(10)
        for number in range(4)
    ]
    refurbished = [
        (at * 7 + number / 3, f"3520992222{at:04d}", f"try{(at + number) % 6}", "mme1", "01")
        for at in range(60)
        for number in range(5)
    ]
    sold = [
        (at * 7 + later, f"3520992222{at:04d}", f"buyer{at}", "mme1", "01")
        for at in range(0, 60, 2)
        for later in (60, 90, 110, 130)
    ]
    assert judge_rows([*laboratory, *refurbished, *sold]).findings == ()


def test_versions_that_go_back_on_a_second_day_weigh_more(judge_rows):
    def score(days):
        rows = [
            (at + late, IMEI, who, "mme1", "33" if who == "a" or at >= days * DAY else "05")
            for at in EACH_DAY
            for who, late in (("a", 0), ("b", 3), ("a", 7), ("b", 11))
        ]
        (finding,) = (each for each in judge_rows([*rows, *OTHERS], report_min=0).findings if each.imei == IMEI)
        assert (
            f"as the subscriber changes: {days + 1} (days that show one body: 1), between 33 and 05" in finding.evidence
        )
        return finding.score

    assert score(1) <= score(2) < score(18)
