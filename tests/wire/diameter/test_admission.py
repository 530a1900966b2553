"""Which connections of a peer may be open: duplicates and elections (RFC 6733 2.1, 5.6.4, 8.16), without any connection."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eir.wire.diameter.admission import Admission, Admit, Claim, Drop, ProbeOldest, Refuse, Yield

PEER = "Mme.example"


def claim(connection, *, host=PEER, most=1, state=0):
    return Claim(connection, host, most, state)


def test_as_many_as_are_allowed():
    admission = Admission()
    assert admission.arrived(claim(1, most=2)) == [Admit(1, failed_before=False)]
    assert admission.arrived(claim(2, host="mme.EXAMPLE", most=2)) == [Admit(2, failed_before=False)]
    assert admission.arrived(claim(3, host="other", most=2)) == [Admit(3, failed_before=False)]
    assert admission.arrived(claim(4, most=2)) == [ProbeOldest(1)]
    assert admission.is_open("MME.example")
    for connection in (1, 2, 4):
        admission.closed(connection)
    assert not admission.is_open("mme.example")


def test_the_oldest_lives():
    admission = Admission()
    admission.arrived(claim(1))
    admission.arrived(claim(2))
    (refused,) = admission.alive(1)
    assert (refused.connection, refused.result_code) == (2, 5012)
    assert admission.alive(1) == []


def test_the_oldest_is_silent():
    admission = Admission()
    admission.arrived(claim(1))
    admission.arrived(claim(2))
    assert admission.closed(1, "duplicate_silent") == [Admit(2, failed_before=False)]
    assert admission.closed(2) == []


def test_a_second_claim_while_the_oldest_is_asked():
    admission = Admission()
    admission.arrived(claim(1))
    admission.arrived(claim(2))
    assert isinstance(admission.arrived(claim(3))[0], Refuse)
    admission.closed(2)
    assert admission.alive(1) == [], "who waited has gone"
    assert admission.arrived(claim(4)) == [ProbeOldest(1)]


def test_a_peer_that_has_restarted():
    admission = Admission()
    admission.arrived(claim(1, state=5))
    assert admission.arrived(claim(2, state=5)) == [ProbeOldest(1)]
    assert admission.alive(1)
    assert admission.arrived(claim(3, state=6)) == [Drop(1, "restarted"), Admit(3, failed_before=False)]


def test_a_peer_whose_first_connection_named_no_state_may_not_have_restarted():
    admission = Admission()
    admission.arrived(claim(1, state=0))
    assert admission.arrived(claim(2, state=5)) == [ProbeOldest(1)]


def test_a_peer_that_has_restarted_while_another_of_its_connections_waits():
    admission = Admission()
    admission.arrived(claim(1, state=1))
    admission.arrived(claim(2, state=1))
    refused, *rest = admission.arrived(claim(3, state=2))
    assert (refused.connection, refused.result_code) == (2, 5012)
    assert rest == [Drop(1, "restarted"), Admit(3, failed_before=False)]


def test_the_watchdogs_verdict_is_remembered_once():
    admission = Admission()
    admission.arrived(claim(1))
    admission.closed(1, "watchdog")
    assert admission.arrived(claim(2)) == [Admit(2, failed_before=True)]
    admission.closed(2, "peer_closed")
    assert admission.arrived(claim(3)) == [Admit(3, failed_before=False)]


def test_an_election_that_we_win():
    admission = Admission()
    admission.dialing(1, PEER, "zzz.example")
    assert admission.arrived(claim(2)) == [Drop(1, "election"), Admit(2, failed_before=False)]
    assert admission.closed(1) == []


def test_an_election_that_we_lose():
    admission = Admission()
    admission.dialing(1, PEER, "eir.example")
    assert admission.arrived(claim(2)) == []
    (refused,) = admission.opened(1, PEER, 0)
    assert (refused.connection, refused.result_code) == (2, 4003)


def test_an_election_whose_winner_fails():
    admission = Admission()
    admission.dialing(1, PEER, "eir.example")
    admission.arrived(claim(2))
    assert admission.closed(1, "cea_timeout") == [Admit(2, failed_before=False)]


def test_ours_yields_to_the_peers_own():
    admission = Admission()
    admission.dialing(1, PEER, "eir.example")
    admission.opened(1, PEER, 0)
    assert admission.arrived(claim(2)) == [Admit(2, failed_before=False), Yield(1)]
    assert admission.closed(1, "yielded") == []
    assert admission.arrived(claim(3)) == [ProbeOldest(2)]
    assert admission.arrived(claim(4, host="other", most=2)) == [Admit(4, failed_before=False)]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: nobody waits for ever, and no more are open than are allowed."""

    @initialize(most=st.integers(1, 3))
    def begin(self, most):
        self.admission, self.most, self.next = Admission(), most, 0
        self.open, self.waiting, self.probed, self.dialing = [], set(), set(), set()

    def obey(self, orders):
        for order in orders:
            connection = order.connection
            match order:
                case Admit():
                    self.waiting.discard(connection)
                    self.open.append(connection)
                case Refuse():
                    self.waiting.discard(connection)
                    self.obey(self.admission.closed(connection, "refused"))
                case ProbeOldest():
                    self.probed.add(connection)
                case Drop() | Yield():
                    self.gone(connection)

    def gone(self, connection, reason="x"):
        if connection in self.open:
            self.open.remove(connection)
        for group in (self.waiting, self.probed, self.dialing):
            group.discard(connection)
        self.obey(self.admission.closed(connection, reason))

    @rule(state=st.integers(0, 2))
    def arrive(self, state):
        self.next += 1
        self.waiting.add(self.next)
        self.obey(self.admission.arrived(claim(self.next, most=self.most, state=state)))

    @rule(ours=st.sampled_from(["aaa", "zzz"]))
    def dial(self, ours):
        if not self.dialing and not self.admission.is_open(PEER):
            self.next += 1
            self.dialing.add(self.next)
            self.obey(self.admission.dialing(self.next, PEER, ours))

    @rule(succeeds=st.booleans())
    def dialed(self, succeeds):
        for connection in list(self.dialing):
            self.dialing.discard(connection)
            if succeeds:
                self.open.append(connection)
                self.obey(self.admission.opened(connection, PEER, 0))
            else:
                self.gone(connection)

    @rule(lives=st.booleans())
    def probe_ends(self, lives):
        for connection in list(self.probed):
            self.probed.discard(connection)
            if lives:
                self.obey(self.admission.alive(connection))
            else:
                self.gone(connection, "duplicate_silent")

    @rule(index=st.integers(0, 5), reason=st.sampled_from(["watchdog", "peer_closed"]))
    def close(self, index, reason):
        everyone = sorted({*self.open, *self.waiting, *self.dialing})
        if everyone:
            self.gone(everyone[index % len(everyone)], reason)

    @invariant()
    def holds(self):
        assert self.admission.is_open(PEER) == bool(self.open)
        assert len(self.open) <= self.most + 1, "an attempt of ours and the peer's own may cross"
        assert not self.waiting or self.probed or self.dialing, "somebody waits for nothing"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40)


def test_without_a_host_every_connection_of_the_entry_counts():
    admission = Admission()
    assert admission.may_dial(None, "pool", 0.0)
    admission.arrived(Claim(1, PEER, 1, 0, "pool"))
    assert not admission.may_dial(None, "pool", 0.0)
    assert admission.may_dial(None, "other", 0.0)
    assert not admission.may_dial(PEER, "pool", 0.0)
    admission.closed(1)
    assert admission.may_dial(None, "pool", 0.0)


def test_a_peer_that_shows_none_of_our_applications_is_left_alone_for_a_time():
    admission = Admission()
    admission.stay_away("mme", until=120.0)
    for host in (PEER, None):
        assert not admission.may_dial(host, "mme", 119.9)
        assert admission.may_dial(host, "mme", 120.0)
        assert admission.may_dial(host, "other", 0.0)
