"""M3UA, SCCP and TCAP without I/O: each clause, every order in which two ends can act, and octets that are damaged."""

import contextlib
import copy

import pytest
from simulated import m3ua_wire as wire

from eir.wire.ss7 import ber, m3ua, sccp, tcap
from eir.wire.ss7.asp import ACK_S, BEAT_S, LEAVE_S, TRIES_MAX, Association, AssociationState
from eir.wire.ss7.m3ua import Error, MessageKind, ParameterTag, parameter
from eir.wire.ss7.sccp import point_code, point_code_text


def kinds(messages):
    return [MessageKind(int.from_bytes(each[2:4])) for each in messages]


def error_of(message):
    return int.from_bytes(m3ua.parameters(message)[ParameterTag.ERROR_CODE])


def gateway(*, up=True, **settings):
    """Our end of an association with a gateway."""
    end = Association(0.0, dials=True, **settings)
    assert kinds(end.messages_to_send()) == [MessageKind.ASPUP]
    if up:
        end.receive(m3ua.message(MessageKind.ASPUP_ACK), 0.0)
        assert kinds(end.messages_to_send()) == [MessageKind.ASPAC]
        end.receive(m3ua.message(MessageKind.ASPAC_ACK), 0.0)
        assert end.state == AssociationState.ACTIVE
    return end


def listening(*, active=True):
    """Our end of an association that an MSC brings up."""
    end = Association(0.0, dials=False)
    if active:
        end.receive(m3ua.message(MessageKind.ASPUP) + m3ua.message(MessageKind.ASPAC), 0.0)
        assert kinds(end.messages_to_send()) == [MessageKind.ASPUP_ACK, MessageKind.ASPAC_ACK]
    return end


def test_point_codes_as_people_write_them():
    assert point_code("1-1-2") == point_code("1.1.2") == point_code("2058") == 2058
    assert point_code("245-16-8", "ansi") == 245 << 16 | 16 << 8 | 8
    assert point_code_text(2058) == "1-1-2"
    assert point_code_text(0xF51008, "ansi") == "245-16-8"
    for wrong in ("8-0-0", "1-256-0", "1-2", "a-b-c", "16384", "x"):
        with pytest.raises(ValueError, match=wrong):
            point_code(wrong)


# M3UA


def test_up_with_what_is_configured():
    end = Association(0.0, dials=True, routing_context=7, mode=m3ua.OVERRIDE, asp_identifier=3)
    assert m3ua.parameters(end.messages_to_send()[0]) == {ParameterTag.ASP_IDENTIFIER: bytes((0, 0, 0, 3))}
    end.receive(m3ua.message(MessageKind.ASPUP_ACK), 0.0)
    assert m3ua.parameters(end.messages_to_send()[0]) == {
        ParameterTag.TRAFFIC_MODE: bytes((0, 0, 0, 1)),
        ParameterTag.ROUTING_CONTEXT: bytes((0, 0, 0, 7)),
    }


def test_requests_are_repeated_and_then_given_up():
    end, now, sent = gateway(up=False), 0.0, 1
    while not end.over:
        now = end.deadline()
        end.timer(now)
        sent += len(end.messages_to_send())
    assert (end.over, sent, now) == ("no_acknowledgement", TRIES_MAX, TRIES_MAX * ACK_S)


@pytest.mark.parametrize(("kind", "state", "asked"), [
    (MessageKind.ASPUP_ACK, AssociationState.INACTIVE, [MessageKind.ASPAC]),  # 4.3.4.1
    (MessageKind.ASPDN_ACK, AssociationState.DOWN, [MessageKind.ASPUP]),  # 4.3.4.2
    (MessageKind.ASPIA_ACK, AssociationState.INACTIVE, [MessageKind.ASPAC]),  # 4.3.4.4
    (MessageKind.ASPAC_ACK, AssociationState.ACTIVE, []),
])  # fmt: skip
def test_an_unexpected_acknowledgement_is_believed_and_the_way_back_is_taken(kind, state, asked):
    end = gateway()
    end.receive(m3ua.message(kind), 1.0)
    assert end.state == state
    assert kinds(end.messages_to_send()) == asked


@pytest.mark.parametrize(("up", "answers"), [
    ([], {MessageKind.ASPUP: [MessageKind.ASPDN_ACK]}),
    ([MessageKind.ASPUP_ACK], {MessageKind.ASPAC: [MessageKind.ASPIA_ACK], MessageKind.ASPUP: [MessageKind.ASPUP_ACK]}),
    ([MessageKind.ASPUP_ACK], {MessageKind.ASPAC: [MessageKind.ASPDN_ACK], MessageKind.ASPUP: [MessageKind.ASPUP_ACK]}),
    ([MessageKind.ASPUP_ACK, MessageKind.ASPAC_ACK, MessageKind.ASPIA_ACK], {MessageKind.ASPAC: [MessageKind.ASPAC_ACK, MessageKind.ASPIA_ACK]}),
])  # fmt: skip
def test_a_gateway_that_puts_us_back_again_and_again_is_asked_once_in_a_while(up, answers):
    """RFC 3332 4.3.4.1: as one does that an operator has told to keep us out, or that gives our place to another one each time."""
    end, now, sent = gateway(up=False), 0.0, []
    for kind in up:
        end.receive(m3ua.message(kind), now)
    for _ in range(20):
        while came := kinds(end.messages_to_send()):
            sent += came
            assert len(sent) <= 3 * (1 + now / ACK_S) + 2
            for kind in came:
                for answer in answers.get(kind, []):
                    end.receive(m3ua.message(answer), now)
        if end.over:
            break
        now = end.deadline()
        end.timer(now)
    assert now >= TRIES_MAX * ACK_S


def notify(kind, information):
    return m3ua.message(MessageKind.NTFY, parameter(ParameterTag.STATUS, bytes((0, kind, 0, information))))


def test_override_stands_by_until_the_other_is_gone():
    end = gateway(mode=m3ua.OVERRIDE)
    end.receive(notify(2, 2), 1.0)
    assert end.state == AssociationState.STANDBY
    assert end.messages_to_send() == []
    end.receive(notify(1, 3), 1.0)
    assert end.state == AssociationState.STANDBY
    assert end.messages_to_send() == []
    end.receive(notify(1, 4), 1.0)
    assert kinds(end.messages_to_send()) == [MessageKind.ASPAC]
    end.receive(m3ua.message(MessageKind.ASPAC_ACK), 1.0)
    assert end.state == AssociationState.ACTIVE


def test_heartbeat_both_ways():
    end = gateway()
    end.receive(m3ua.message(MessageKind.BEAT, parameter(ParameterTag.HEARTBEAT, b"x" * 5)), 1.0)
    (answer,) = end.messages_to_send()
    assert kinds([answer]) == [MessageKind.BEAT_ACK]
    assert m3ua.parameters(answer) == {ParameterTag.HEARTBEAT: b"x" * 5}
    end.timer(1.0 + BEAT_S)
    assert kinds(end.messages_to_send()) == [MessageKind.BEAT]
    end.receive(m3ua.message(MessageKind.BEAT_ACK), 2.0 + BEAT_S)
    end.timer(2.0 + 2 * BEAT_S)
    assert kinds(end.messages_to_send()) == [MessageKind.BEAT]
    end.timer(2.0 + 3 * BEAT_S)
    assert end.over == "heartbeat"


DATA = wire.data(wire.udt(b"x"))
TABLE = [
    # input, error, clause
    (b"\2" + m3ua.message(MessageKind.BEAT)[1:], Error.INVALID_VERSION, "3.8.1"),
    (m3ua.message(0x0901), Error.UNSUPPORTED_CLASS, "3.8.1: RKM"),
    (m3ua.message(0x7F01), Error.UNSUPPORTED_CLASS, "3.8.1"),
    (m3ua.message(0x0307), Error.UNSUPPORTED_TYPE, "3.8.1"),
    (
        m3ua.message(MessageKind.DAUD, parameter(ParameterTag.AFFECTED, bytes(4))),
        Error.UNEXPECTED_MESSAGE,
        "3.4.3: only a gateway is asked",
    ),
    (m3ua.message(MessageKind.DUNA), Error.MISSING_PARAMETER, "3.4.1"),
    (m3ua.message(MessageKind.NTFY), Error.MISSING_PARAMETER, "3.8.2"),
    (m3ua.message(MessageKind.DATA), Error.MISSING_PARAMETER, "3.3.1"),
    (m3ua.message(MessageKind.DATA, parameter(ParameterTag.PROTOCOL_DATA, bytes(11))), Error.PARAMETER_FIELD, "3.3.1"),
    (m3ua.message(MessageKind.DATA, b"\2\x10\0\3"), Error.PARAMETER_FIELD, "3.2"),
    (m3ua.message(MessageKind.DATA, b"\2\x10\0\x40"), Error.PARAMETER_FIELD, "3.2"),
    (wire.data(wire.udt(b"x"), context=9), Error.INVALID_ROUTING_CONTEXT, "3.8.1"),
]


@pytest.mark.parametrize(("sent", "error", "clause"), TABLE, ids=[f"{row[2]} {row[1].name}" for row in TABLE])
def test_what_gets_an_error(sent, error, clause):
    end = gateway(routing_context=7)
    assert end.receive(sent, 1.0) == []
    (answer,) = end.messages_to_send()
    assert kinds([answer]) == [MessageKind.ERR]
    assert error_of(answer) == error, clause
    assert end.state == AssociationState.ACTIVE
    assert not end.over
    assert len(end.receive(DATA, 1.0)) == 1, "and the next message is taken"


def test_an_error_is_answered_by_none():
    end = gateway()
    for sent in (
        m3ua.error(Error.UNEXPECTED_MESSAGE),
        m3ua.message(MessageKind.ERR),
        m3ua.message(MessageKind.ERR, b"\0\x0c\0\1"),
    ):
        end.receive(sent, 1.0)
    assert end.messages_to_send() == []


@pytest.mark.parametrize("length", [0, 7, 1 << 20])
def test_a_length_that_cannot_be_ends_it(length):
    end = gateway()
    end.receive(b"\1\0\1\1" + length.to_bytes(4), 1.0)
    assert end.over == "framing"
    assert [error_of(each) for each in end.messages_to_send()] == [Error.PROTOCOL_ERROR]


def test_messages_of_a_gateway_about_destinations_are_reported():
    end = gateway()
    end.events.clear()
    for kind in (MessageKind.DUNA, MessageKind.DAVA, MessageKind.SCON, MessageKind.DUPU, MessageKind.DRST):
        end.receive(m3ua.message(kind, parameter(ParameterTag.AFFECTED, bytes((0, 0, 8, 10)))), 1.0)
    assert [(each.reason, each.fields["point_codes"]) for each in end.events] == [
        (name, [(2058, 0)]) for name in ("duna", "dava", "scon", "dupu", "drst")
    ]
    assert end.messages_to_send() == []


def test_data_before_active():
    end = gateway(up=False)
    assert end.receive(DATA, 1.0) == []
    assert end.messages_to_send() == [], "an ASP says nothing (3.8.1)"
    end = listening(active=False)
    assert end.receive(DATA, 1.0) == []
    assert error_of(end.messages_to_send()[0]) == Error.UNEXPECTED_MESSAGE


def test_an_msc_brings_it_up_and_down():
    end = listening(active=False)
    end.receive(m3ua.message(MessageKind.ASPAC), 0.0)
    assert error_of(end.messages_to_send()[0]) == Error.UNEXPECTED_MESSAGE, "4.3.4.3: not before ASPUP"
    end.receive(m3ua.message(MessageKind.ASPUP) * 2, 0.0)
    assert kinds(end.messages_to_send()) == [MessageKind.ASPUP_ACK] * 2
    end.receive(m3ua.message(MessageKind.ASPAC, parameter(ParameterTag.TRAFFIC_MODE, bytes((0, 0, 0, 3)))), 0.0)
    assert error_of(end.messages_to_send()[0]) == Error.UNSUPPORTED_MODE
    assert end.state == AssociationState.INACTIVE
    end.receive(
        m3ua.message(
            MessageKind.ASPAC,
            parameter(ParameterTag.TRAFFIC_MODE, bytes((0, 0, 0, 2))),
            parameter(ParameterTag.ROUTING_CONTEXT, bytes((0, 0, 0, 5))),
        ),
        0.0,
    )
    assert m3ua.parameters(end.messages_to_send()[0]) == {
        ParameterTag.TRAFFIC_MODE: bytes((0, 0, 0, 2)),
        ParameterTag.ROUTING_CONTEXT: bytes((0, 0, 0, 5)),
    }
    end.receive(wire.data(b"x", context=6), 0.0)
    assert error_of(end.messages_to_send()[0]) == Error.INVALID_ROUTING_CONTEXT
    end.receive(m3ua.message(MessageKind.ASPUP), 0.0)
    assert kinds(end.messages_to_send()) == [MessageKind.ASPUP_ACK, MessageKind.ERR]
    assert end.state == AssociationState.INACTIVE, "4.3.4.1"
    end.receive(m3ua.message(MessageKind.ASPDN), 0.0)
    assert kinds(end.messages_to_send()) == [MessageKind.ASPDN_ACK]
    assert end.state == AssociationState.DOWN


def test_a_silent_client_is_disconnected():
    end = listening(active=False)
    end.timer(end.deadline())
    assert end.over == "cer_timeout"


def test_who_is_sent_away_does_not_stay_by_coming_up_again():
    end = listening()
    end.leave(10.0)
    up = m3ua.message(MessageKind.ASPIA_ACK) + m3ua.message(MessageKind.ASPUP) + m3ua.message(MessageKind.ASPAC)
    for now in (10.5, 11.0, 11.5):
        end.receive(up, now)
    assert end.state == AssociationState.ACTIVE
    end.timer(10.0 + LEAVE_S)
    assert end.over == "left"


# every order in which two ends can act: what tests/pairs.py does for Diameter


def looks(end):
    return (
        end.state,
        end.over,
        end.leaving,
        end.tries,
        end.asked_at is not None,
        end.ends_at is not None,
        end.context,
    )


def test_every_order_of_events_between_two_ends():  # noqa: C901
    """From wherever they are, two ends that nobody sends away come to ACTIVE by messages and timers alone; those who leave, leave."""
    ends = (Association(0.0, dials=True, routing_context=7, mode=m3ua.LOADSHARE), Association(0.0, dials=False))
    wires = (tuple(ends[0].messages_to_send()), ())
    seen, waiting = {}, [(ends, wires)]

    def key(ends, wires):
        return (*map(looks, ends), wires)

    seen[key(ends, wires)] = None
    settled = 0
    while waiting:
        ends, wires = waiting.pop()
        if not any(wires) and not any(end.over or end.leaving for end in ends) and ends[0].asked_at is None:
            settled += 1
            assert [end.state for end in ends] == [AssociationState.ACTIVE, AssociationState.ACTIVE]
        inputs = [(side, "message") for side in (0, 1) if wires[1 - side]]
        inputs += [(side, what) for side in (0, 1) for what in ("timer", "leave") if not ends[side].over]
        for side, what in inputs:
            new = [copy.deepcopy(end) for end in ends]
            for end in new:
                end.events = []
            end, there = new[side], [list(each) for each in wires]
            if what == "message":
                end.receive(there[1 - side].pop(0), 0.0)
            elif what == "timer":
                # Time has no measure here: whichever timer there is, but the heartbeat's, may run out at any moment.
                if end.asked_at is None and end.ends_at is None:
                    continue
                end.timer(end.asked_at + ACK_S if end.asked_at is not None else end.ends_at)
            else:
                end.leave(0.0)
            if end.asked_at is not None:
                end.asked_at = 0.0
            if end.ends_at is not None:
                end.ends_at = 1e6 if end.asked_at is not None else 0.0
            there[side] = (there[side] + end.messages_to_send())[-3:]
            after = (tuple(new), tuple(map(tuple, there)))
            if len(there[0]) < 3 and len(there[1]) < 3 and key(*after) not in seen:
                seen[key(*after)] = None
                waiting.append(after)
    assert settled
    assert len(seen) > 100


# SCCP


@pytest.mark.parametrize("variant", ["itu", "ansi"])
@pytest.mark.parametrize("title", [None, wire.TITLE, wire.TITLE[:-1]])
@pytest.mark.parametrize("pc", [None, 2057])
@pytest.mark.parametrize("kind", [sccp.UDT, sccp.XUDT])
def test_addresses_and_unitdata(variant, title, pc, kind):
    calling = wire.address(ssn=8, pc=pc, title=title, variant=variant)
    found = sccp.unitdata(
        wire.udt(b"payload", calling=calling, called=wire.address(ssn=9, variant=variant), kind=kind), variant
    )
    assert (found.kind, found.data, found.returns, found.segmented) == (kind, b"payload", False, False)
    assert (found.calling.pc, found.calling.ssn, found.calling.digits, found.called.ssn) == (pc, 8, title or "", 9)
    assert found.calling.by_ssn is (title is None)


def test_global_titles_of_each_type():
    for kind, title, digits in [
        (1, b"\x04\x94\x71", "4917"), (1, b"\x84\x94\x01", "491"), (2, b"\x00\x94\xf1", "491"), (3, b"\x00\x12\x94\x71", "4917"),
        (3, b"\x00\x11\x94\x01", "491"), (4, b"\x00\x12\x04\x94\x71", "4917"), (4, b"\x00\x11\x04\x94\x01", "491"), (5, b"\x00\x94", ""),
    ]:  # fmt: skip
        assert (
            sccp.address(sccp.encoded_address("itu", ssn=8, kind=kind, title=title, by_ssn=False), "itu").digits
            == digits
        )


def test_segments_are_distinguished_from_whole_messages():
    whole = bytearray(wire.udt(b"data", kind=sccp.XUDT))
    for octet, segmented in ((0x80, False), (0x81, True), (0x01, True), (0x00, True)):
        message = whole + bytes((0x10, 4, octet, 0, 0, 1, 0x00))
        message[6] = len(whole) - 6
        assert sccp.unitdata(bytes(message), "itu").segmented is segmented


def test_a_unitdata_goes_back():
    found = sccp.unitdata(wire.udt(b"data", protocol_class=0x80), "itu")
    assert found.returns
    back = sccp.returned(found, sccp.ReturnCause.UNEQUIPPED_USER)
    assert back[:2] == bytes((0x0A, 4))
    assert back.endswith(b"\4data")
    assert (sccp.UDT, sccp.XUDT, sccp.XUDTS) == (0x09, 0x11, 0x12), "Q.713 table 1"


@pytest.mark.parametrize("kind", [sccp.UDT, sccp.XUDT])
def test_parts_that_do_not_fit_into_a_unitdata(kind):
    """A pointer, or a length, of more than 255; up to that it is written and read."""
    room = sccp.PART_MAX - (4 if kind == sccp.XUDT else 3)
    for called, calling, data, fits in (
        (1, room - 1, 255, True), (1, room, 1, False), (room - 1, 1, 1, True), (255, 1, 1, False), (1, 1, 256, False),
    ):  # fmt: skip
        parts = [bytes(octets) for octets in (called, calling, data)]
        if fits:
            found = sccp.unitdata(sccp.encoded(kind, 0, *parts), "itu")
            assert [found.called.octets, found.calling.octets, found.data] == parts
        else:
            with pytest.raises(sccp.SccpFault, match="too_long"):
                sccp.encoded(kind, 0, *parts)


# TCAP and BER


def test_lengths_of_all_forms():
    assert (
        ber.elements(bytes.fromhex("0401aa 048101bb 04820001cc 3080 0401dd 0000".replace(" ", "")), 0, 19)[-1].tag
        == 0x30
    )
    for wrong in ("04", "0402aa", "0485000000000104", "0480aa0000", "3080", "3080" * 9 + "0000" * 9, "1f8080800000"):
        octets = bytes.fromhex(wrong)
        with pytest.raises(ber.BerError):
            ber.elements(octets, 0, len(octets))
    longest = "3080" * 8 + "1f80800000" + "0000" * 8
    assert ber.elements(bytes.fromhex(longest), 0, len(longest) // 2)[0].tag == 0x30
    assert ber.encoded(4, bytes(200))[:3] == b"\4\x81\xc8"
    for first, last in (("1f01", 0x1F01), ("1f8101", 0x1F8101), ("3f818201", 0x3F818201)):
        octets = bytes.fromhex(f"{first}00")
        assert ber.elements(octets, 0, len(octets)) == [ber.Element(last, len(octets), len(octets), len(octets))]


def test_damaged_octets_raise_what_is_documented():
    whole = wire.data(wire.udt(bytes.fromhex(wire.V3)))
    for at in range(len(whole)):
        for octets in (
            whole[:at],
            *(whole[:at] + bytes((whole[at] ^ 1 << bit,)) + whole[at + 1 :] for bit in range(8)),
        ):
            end = gateway()
            for transfer in end.receive(octets, 1.0):
                with contextlib.suppress(sccp.SccpFault, tcap.TcapFault):
                    tcap.read(sccp.unitdata(transfer.payload, "itu").data)
