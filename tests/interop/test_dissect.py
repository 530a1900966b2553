"""That Wireshark's opinion is heard at all: what it should object to, it does."""

import pytest
from dissect import capturing
from simulated.wire import avp, cer, dpr, ecr


@pytest.mark.long
async def test_bad_messages_are_objected_to_and_good_ones_are_not(site, connect, tmp_path):
    node = site.start()
    client = await connect(node, opened=False)
    with capturing(tmp_path / "bad.pcapng", node.address[1]) as capture:
        for octets in (cer(), ecr(), ecr(extra=avp(4711, b"x", 9, flags=0)), ecr(extra=avp(277, length=4)), dpr()):
            await client.ask(octets)
    frames = [int(number) for (number,) in capture.read("diameter.flags.request == 1", "frame.number")]
    assert len(frames) == 5
    # And not to our answers, which quote what was wrong in their Failed-AVP.
    assert [int(number) for number, *_ in capture.objections()] == frames[2:4]
    assert capture.unanswered() == []
