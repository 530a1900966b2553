"""Decisions about findings on disk: each whole, or not there."""

import pytest
from full_disk import no_file_above

from eir.sightings.cases import CLEARED, CONFIRMED, FILE, add_decision, load_cases, load_decisions

IMEI, OTHER = "00101001000001", "00101001000002"


def decision(imei, verdict):
    return {"time": "2026-11-20T10:00:00Z", "who": "x@y", "imei": imei, "verdict": verdict, "reason": "seen on a desk"}


def test_a_decision_that_found_no_room_damages_none_before_it_and_none_after(tmp_path):
    add_decision(tmp_path, decision(IMEI, CONFIRMED))
    with no_file_above((tmp_path / FILE).stat().st_size + 20), pytest.raises(OSError, match=FILE):
        add_decision(tmp_path, decision(OTHER, CONFIRMED))
    assert load_decisions(tmp_path) == [decision(IMEI, CONFIRMED)]
    add_decision(tmp_path, decision(IMEI, CLEARED))
    assert list(load_cases(tmp_path).values()) == [decision(IMEI, CLEARED)]
