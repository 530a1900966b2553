"""Checks that wait for the HLR's answer (eir/interfaces/gsup/stored.py): in time, late, or never."""

from types import SimpleNamespace

import pytest
from simulated.osmo_wire import ACK, IMSI, NACK, gsup, tbcd

from eir.interfaces.gsup.stored import LATE_MAX, STORE_S, StoredChecks

OURS, OTHER = tbcd(IMSI), tbcd("001010000000002")


class Case:
    """Stored checks on a clock of the test's own."""

    def __init__(self):
        self.timers, self.answers, self.dropped = [], [], 0
        self.checks = StoredChecks(SimpleNamespace(call_later=self._call_later), self._answer, self._drop)

    def _call_later(self, seconds, call, *arguments):
        assert seconds == STORE_S
        timer = SimpleNamespace(is_cancelled=False)
        timer.cancel = lambda: setattr(timer, "is_cancelled", True)
        timer.ring = lambda: None if timer.is_cancelled else call(*arguments)
        self.timers.append(timer)
        return timer

    def _answer(self, imsi, *, permitted, by_hlr=False):
        self.answers.append((imsi, permitted, by_hlr))

    def _drop(self):
        self.dropped += 1


@pytest.fixture
def case():
    return Case()


@pytest.mark.parametrize(("answer", "permitted"), [(ACK, True), (NACK, False)])
def test_the_answer_of_the_hlr_is_that_of_the_check(case, answer, permitted):
    other = gsup(0x06, (1, OURS))
    case.checks.add(OURS)
    assert case.checks.handle([other, answer, answer]) == [other, answer], "the second answers no check"
    assert case.answers == [(OURS, permitted, True)]
    case.timers[0].ring()
    assert len(case.answers) == 1


def test_a_late_answer_of_the_hlr_is_neither_an_answer_nor_a_message(case):
    """The check that waits behind the late one gets the HLR's second answer, which is its own."""
    for _ in range(2):
        case.checks.add(OURS)
    case.timers[0].ring()
    assert case.answers == [(OURS, True, False)]
    assert case.checks.handle([NACK]) == []
    assert len(case.answers) == 1
    assert case.checks.handle([NACK]) == []
    assert case.answers == [(OURS, True, False), (OURS, False, True)]


def test_a_check_that_could_not_be_sent_is_answered_once(case):
    case.checks.add(OURS)
    case.checks.settle(OTHER, permitted=True)
    assert case.answers == []
    case.checks.settle(OURS, permitted=True)
    case.checks.answer_all()
    assert case.answers == [(OURS, True, False)]


def test_all_waiting_checks_are_answered_but_the_late_ones(case):
    for imsi in (OURS, OURS, OTHER):
        case.checks.add(imsi)
    case.timers[0].ring()
    case.checks.answer_all()
    for timer in case.timers[1:]:
        timer.ring()
    assert case.answers == [(OURS, True, False)] * 2 + [(OTHER, True, False)]


def test_an_hlr_that_owes_too_many_answers_at_once_is_dropped(case):
    for _ in range(LATE_MAX + 1):  # each late answer arrives
        case.checks.add(OURS)
        case.timers[-1].ring()
        assert case.checks.handle([ACK]) == []
    for count in (*(0,) * LATE_MAX, 1):
        case.checks.add(OURS)
        case.timers[-1].ring()
        assert case.dropped == count
