"""The bytes of a real MME (scripts/simulated/vectors), in the order in which it sends them, to `eir serve`.

What it needs: a CEA 2001 that lists S13, with the Origin-Host and the Origin-Realm that it has configured, although its CER
offers S6a only; answers with its ids, Session-Id first, Auth-Session-State and one Equipment-Status. It has no timeout: an
answer that it cannot use leaves the phone hanging.
"""

import pytest
from simulated.node import until_async
from simulated.wire import APP, EIR, REALM, TGPP, VSAI, Message, vector, walk

PEER = {"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"]}
IMEIS = [
    next(found.data for found in walk(Message(vector(name)).data(1401, TGPP)) if found.code == 1402).decode()
    for name in ("ecr", "ecr-tbit")
]


def lists_s13(cea):
    return any(avp.raw == VSAI for avp in cea.every(260)) or any(avp.data == APP.to_bytes(4) for avp in cea.every(258))


@pytest.mark.long(short=["cer-lenient0-True", "cer-relay-lenient1-False"])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("cer", "lenient"), [("cer", ["applications"]), ("cer-relay", [])])
async def test_each_message_is_answered_so_that_the_phone_attaches_or_is_rejected_as_meant(
    site, connect, cer, lenient, listed
):
    site.configure(peers=[PEER | {"lenient": lenient}])
    site.load(IMEIS if listed else ["35209900176148"])
    client = await connect(site.start(), opened=False)

    cea = await client.ask(vector(cer))
    assert cea.result == 2001
    assert [cea.data(code) for code in (264, 296)] == [EIR.encode(), REALM.encode()]
    assert lists_s13(cea)

    for name, status in (("ecr", int(listed)), ("ecr-tbit", int(listed)), ("ecr-noimei", 0)):
        request = Message(vector(name))
        eca = await client.ask(vector(name))
        assert (eca.command, eca.app, eca.flags) == (324, APP, 0x40)  # P copied; neither R nor E nor T
        assert (eca.hop_by_hop, eca.end_to_end) == (request.hop_by_hop, request.end_to_end)
        assert eca.avps[0].raw == request.avps[0].raw
        assert (eca.result, eca.number(1445, TGPP), eca.number(277)) == (2001, status, 1)
        assert [eca.data(code) for code in (264, 296)] == [EIR.encode(), REALM.encode()]

    for name, command in (("dwr", 280), ("dpr", 282)):
        request = Message(vector(name))
        answer = await client.ask(vector(name))
        assert (answer.command, answer.is_request, answer.result) == (command, False, 2001)
        assert (answer.hop_by_hop, answer.end_to_end) == (request.hop_by_hop, request.end_to_end)
        assert answer.data(264) == EIR.encode()
    assert await client.end() == []


async def test_without_the_leniency_it_is_refused_and_the_log_names_the_setting(site, connect):
    site.configure(peers=[PEER])
    node = site.start()
    client = await connect(node, opened=False)
    cea = await client.ask(vector("cer"))
    assert cea.result == 5010
    assert await client.end() == []
    await until_async(lambda: any("lenient" in line.get("setting", "") for line in node.lines()))
