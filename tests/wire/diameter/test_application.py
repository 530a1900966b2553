"""A node with an application that is not S13 and shares nothing with it: what the application says is all that the node knows of it."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from simulated.wire import EIR, HOST, REALM, VSAI, Connection, avp, cer, message, u32, walk

from eir.errors import DiameterError
from eir.wire.diameter.application import Application, Command
from eir.wire.diameter.avp import encode_u32, u32_or
from eir.wire.diameter.client import connect
from eir.wire.diameter.dictionary import BASE_DICTIONARY, read_avps
from eir.wire.diameter.grammar import read_grammar
from eir.wire.diameter.message import Reply
from eir.wire.diameter.node import Node
from eir.wire.peers.counts import Counts
from eir.wire.peers.settings import Identity, Limits, PeerSettings

VENDOR, ID, ADD = 64999, 16779999, 8388733
DICTIONARY = BASE_DICTIONARY.plus(read_avps("1 Summand u32\n2 Sum u32\n3 Note group optional\n4 Sign enum 0-1", VENDOR))
SUMMAND, SUM, NOTE, SIGN = (DICTIONARY.keys[name] for name in ("Summand", "Sum", "Note", "Sign"))
NOTED = read_grammar("{ Sign }\n* [ AVP ]", DICTIONARY)
REQUEST = read_grammar(
    """
      < Session-Id >
      { Origin-Host }
      { Origin-Realm }
      { Destination-Realm }
  1*2 { Summand }
      [ Note ]
    * [ AVP ]
    """,
    DICTIONARY,
    {NOTE: NOTED},
)


def add(request):
    total = sum(u32_or(each, 0) for each in request.every(SUMMAND))
    if total > 100:
        return Reply(experimental=(VENDOR, 5001))
    if total == 13:
        raise DiameterError(4999, "unlucky")
    return Reply(2001, avps=encode_u32(SUM, total))


ADDING = Application(
    id=ID, vendor=VENDOR, commands={ADD: Command("Add", REQUEST, session=True)}, dictionary=DICTIONARY, answer=add
)


@asynccontextmanager
async def node(application=ADDING, **settings):
    counts = Counts()
    made = Node(
        Identity(host=EIR, realm=REALM, product_name="adder", origin_state_id=1), [PeerSettings(label="asker", realm=REALM, **settings)],
        Limits(), application, counts=counts, report=lambda *_, **__: None,
    )  # fmt: skip
    made.counts, made.address = counts, await made.listen("tcp://127.0.0.1:0")
    try:
        yield made
    finally:
        await made.drain(1)


@asynccontextmanager
async def asker(made, ours):
    connection = Connection(*await asyncio.open_connection(*made.address))
    connection.cea = await connection.ask(cer(app=ours))
    try:
        yield connection
    finally:
        await connection.close()


OURS = avp(260, u32(266, VENDOR) + u32(258, ID))
HEAD = avp(263, "s;1") + avp(264, HOST) + avp(296, REALM)
TO = avp(283, REALM)


def summands(*values):
    return b"".join(u32(1, value, VENDOR) for value in values)


async def test_the_cea_offers_what_the_application_is():
    async with node() as made, asker(made, OURS) as connection:
        cea = connection.cea
        assert (cea.result, cea.data(260), cea.number(265), cea.data(269)) == (2001, OURS[8:], VENDOR, b"adder")


async def test_an_application_without_a_vendor():
    ours = Application(id=4, commands=ADDING.commands, dictionary=DICTIONARY, answer=add)
    async with node(ours) as made, asker(made, u32(258, 4)) as connection:
        assert (connection.cea.number(258), connection.cea.every(260), connection.cea.every(265)) == (4, [], [])
        answer = await connection.ask(message(ADD, HEAD + TO + summands(1, 2), app=4))
        assert answer.number(2, VENDOR) == 3


@pytest.mark.parametrize(
    ("what", "octets", "result", "failed", "error"),
    [
        ("a sum", message(ADD, HEAD + TO + summands(2, 3), app=ID), 2001, None, False),
        ("its own result", message(ADD, HEAD + TO + summands(99, 3), app=ID), f"{VENDOR}:5001", None, False),
        ("its own fault", message(ADD, HEAD + TO + summands(13), app=ID), 4999, None, False),
        ("another command", message(324, HEAD + TO, app=ID), 3001, None, True),
        ("its command elsewhere", message(ADD, HEAD + TO + summands(1), app=0), 3001, None, True),
        ("another application", message(324, HEAD + TO, app=16777252), 3007, None, True),
        ("another realm", message(ADD, HEAD + avp(283, "x") + summands(1), app=ID), 3003, None, True),
        ("an unknown AVP", message(ADD, HEAD + TO + summands(1) + avp(1402, b"x", 10415), app=ID), 5001, avp(1402, b"x", 10415), False),
        ("an unknown AVP without M", message(ADD, HEAD + TO + summands(1) + avp(1402, b"x", 10415, 0), app=ID), 2001, None, False),
        ("nothing to add", message(ADD, HEAD + TO, app=ID), 5005, u32(1, 0, VENDOR), False),
        ("no Session-Id", message(ADD, HEAD[12:] + TO + summands(1), app=ID), 5005, avp(263, b"\0"), True),
        ("a group without its member", message(ADD, HEAD + TO + summands(1) + avp(3, b"", VENDOR), app=ID), 5005, avp(3, u32(4, 0, VENDOR), VENDOR), False),
        ("a value", message(ADD, HEAD + TO + summands(1) + avp(3, u32(4, 7, VENDOR), VENDOR), app=ID), 5004, avp(3, u32(4, 7, VENDOR), VENDOR), False),
        ("a length", message(ADD, HEAD + TO + avp(1, b"xx", VENDOR), app=ID), 5014, avp(1, b"xx", VENDOR), False),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)  # fmt: skip
async def test_what_is_asked(what, octets, result, failed, error):
    async with node() as made, asker(made, OURS) as connection:
        answer = await connection.ask(octets)
        assert (answer.result, answer.data(279), answer.error) == (result, failed, error), what
        walk(answer.octets[20:])
        if what == "a sum":
            assert answer.number(2, VENDOR) == 5
            assert made.counts.messages["asker", "Add", "answer", "out"] == 1


async def test_a_client_of_the_application():
    async with node() as made:
        client = await connect(*made.address, ADDING, origin_host=HOST, origin_realm=REALM)
        answer = await client.request(ADD, TO + summands(20, 22))
        assert u32_or(answer.first.get(SUM), 0) == 42
        await client.close()


async def test_a_peer_of_another_application_is_refused():
    async with node() as made, asker(made, VSAI) as connection:
        assert connection.cea.result == 5010
