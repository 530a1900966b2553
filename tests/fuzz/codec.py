"""The codec and the grammars under fire: whatever the bytes, a message is read in bounded work, and what is said of it is well formed."""

from simulated.wire import walk

from eir.errors import DiameterError
from eir.interfaces.s13.application import S13
from eir.wire.diameter.application import BASE_COMMANDS
from eir.wire.diameter.avp import encode, encode_text
from eir.wire.diameter.capabilities import read_capabilities
from eir.wire.diameter.grammar import check
from eir.wire.diameter.message import Answer, Request, encode_answer, error_answer, result_avp

AVPS_MAX, DEPTH_MAX = 64, 8
ORIGIN = encode_text(264, "eir.localdomain") + encode_text(296, "localdomain")
PROXY_INFO = 284


def run(octets):
    """Read `octets` as a message, hold it to each grammar, and look at what would be answered."""
    octets = octets.ljust(20, b"\0")
    request = Request(octets, AVPS_MAX, "peer")
    _hold_avps(request, octets)
    read_capabilities(request)
    answer = Answer(octets, AVPS_MAX)
    if all(len(avp.data) == 4 for avp in answer.every(268)):
        assert len(answer.result_codes) == len(answer.every(268))
    _hold_answer(encode_answer(request, result_avp(2001), ORIGIN, avps=b""), request)
    for command in (*BASE_COMMANDS.values(), *S13.commands.values()):
        request = Request(octets, AVPS_MAX, "peer")
        fault = _fault_in(request, command.request)
        if fault is not None:
            assert fault.result_code in {5001, 5004, 5005, 5009, 5012, 5014}
            walk(fault.failed_avp)
            for begins in (True, False):
                _hold_answer(error_answer(request, fault, ORIGIN, command.error_avps, session=begins), request)


def _fault_in(request, grammar):
    try:
        check(request, grammar, S13.dictionary, unknown_m=False, depth_max=DEPTH_MAX)
    except DiameterError as e:
        return e
    return None


def _hold_avps(request, octets):
    """Offsets and data are those of the message; together, no more than the limit."""
    at, read = 20, list(request.avps)
    for avp in request.avps:
        assert avp.start == at
        assert avp.data == octets[avp.end - len(avp.data) : avp.end]
        if avp.flags & 0x1F == 0 and bool(avp.key >> 32) == bool(avp.flags & 0x80):
            assert (
                encode(avp.key, avp.data, flags=avp.flags & 0x7F)[: avp.end - avp.start] == octets[avp.start : avp.end]
            )
        at = avp.start + (avp.end - avp.start + 3 & ~3)
    assert request.fault is not None or at >= len(octets)
    for avp in read:
        if avp.key in S13.dictionary.groups:
            read += request.members(avp)
    assert len(read) <= AVPS_MAX


def _hold_answer(octets, request):
    assert octets[0] == 1
    assert int.from_bytes(octets[1:4]) == len(octets)
    assert octets[5:20] == request.buffer[5:20]
    # A Proxy-Info goes back as it came; anything else is ours.
    assert len([avp for avp in walk(octets[20:]) if avp.code == PROXY_INFO and not avp.vendor]) == len(
        request.every(PROXY_INFO)
    )
