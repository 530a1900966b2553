"""What each input over GSUP must give: a table, one row for each, over a connection of its own to a node without an HLR.

There is no standard behind it: rows marked O are what Debian's osmo-msc and osmo-hlr do, P is this project's policy. None of them is an
error for a CHECK-IMEI, and none is silence to one that has an IMSI.
"""

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, Site
from simulated.osmo_wire import (
    CHECK,
    ID_ACK,
    ID_GET,
    ID_RESP,
    IMSI,
    PING,
    PONG,
    End,
    check,
    frames,
    gsup,
    ipa,
    tbcd,
    update_location,
)

ME = (1, tbcd(IMSI))
NO_CARE = (0x0A, b"\1")


def imei(digits):
    return 0x50, bytes([len(tbcd(digits))]) + tbcd(digits)


def said(permitted, imsi=ME):
    return gsup(0x32, imsi, (0x51, b"\0" if permitted else b"\1"))


def failed(kind, *elements):
    return gsup(kind + 1, *elements, (2, b"\x11"))


OTHER = (1, tbcd("26201123456789"))
ROWS = {
    # CHECK-IMEI
    "1 O: 14 digits, listed": (check(LISTED), said(permitted=False)),
    "2 O: 14 digits, not listed": (check(UNLISTED), said(permitted=True)),
    "3 P: 15 digits, whatever the last": (check(f"{LISTED}9"), said(permitted=False)),
    "4 P: 16 digits, whatever the software version": (check(f"{LISTED}77"), said(permitted=False)),
    "5 P: greylisted is ACK": (check(TRACKED), said(permitted=True)),
    "6 P: the digits without an octet that counts them": (gsup(0x30, ME, (0x50, tbcd(LISTED))), said(permitted=False)),
    "7 O: the order of elements, and unknown ones, say nothing": (gsup(0x30, NO_CARE, (0xEE, b"x"), imei(LISTED), ME), said(permitted=False)),
    "8 P: the first of two IMEIs counts": (gsup(0x30, ME, imei(LISTED), imei(UNLISTED)), said(permitted=False)),
    "9 P: an IMSI of 14 digits comes back as it was": (gsup(0x30, OTHER, imei(LISTED)), said(permitted=False, imsi=OTHER)),
    "10 P: an IMSI that is none comes back too": (gsup(0x30, (1, b"\xba"), imei(LISTED)), said(permitted=False, imsi=(1, b"\xba"))),
    "11 P: no IMEI: no_identity": (gsup(0x30, ME), said(permitted=False)),
    "12 P: an empty IMEI: bad_identity": (gsup(0x30, ME, (0x50, b"")), said(permitted=True)),
    "13 P: 12 digits: bad_identity": (check("350000000000"), said(permitted=True)),
    "14 P: a letter: bad_identity": (check("3512345678901*"), said(permitted=True)),
    "15 P: cut off in the IMEI: bad_identity": (ipa(0xEE, CHECK[3:20]), said(permitted=True)),
    "16 P: no IMSI: nobody could tell whose an answer is": (gsup(0x30, imei(LISTED)), b""),
    "17 O: two in reverse, each to its own": (gsup(0x30, OTHER, imei(LISTED)) + check(UNLISTED), said(permitted=False, imsi=OTHER) + said(permitted=True)),
    # IPA
    "18 O: PING": (PING, PONG),
    "19 O: ID_ACK": (ID_ACK, ID_ACK),
    "20 O: ID_RESP": (ID_RESP, b""),
    "21 P: an ID_RESP that is cut off": (ipa(0xFE, b"\5\0\7"), b""),
    "22 P: an empty frame, an empty CCM, an unknown one": (ipa(0xEE, b"") + ipa(0xFE, b"") + ipa(0xFE, b"\x42"), b""),
    # everything else, without an HLR
    "23 P: UPDATE LOCATION": (update_location(), failed(0x04, ME)),
    "24 P: SEND AUTH INFO": (gsup(0x08, ME, (0x28, b"\2")), failed(0x08, ME)),
    "25 P: PURGE MS": (gsup(0x0C, ME), failed(0x0C, ME)),
    "26 P: a request of a session ends it": (gsup(0x20, ME, (0x30, b"\0\0\0\1"), (0x31, b"\1")), gsup(0x21, ME, (0x30, b"\0\0\0\1"), (2, b"\x11"), (0x31, b"\3"))),
    "27 P: a result or an error gets none": (gsup(0x12, ME) + gsup(0x11, ME, (2, b"\x11")), b""),
    "28 P: a request without an IMSI": (gsup(0x04, NO_CARE), b""),
    "29 P: another stream, another protocol on the stream": (ipa(0xFD, b"x") + ipa(0xEE, b"\0x") + ipa(0xEE, b"\5"), b""),
    "30 P: another protocol on the stream whose octets look like GSUP": (ipa(0xEE, b"\0\x30") + ipa(0xEE, b"\0" + CHECK[4:]) + ipa(0xEE, b"\0" + update_location()[4:]), b""),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory, publisher):
    with Site(tmp_path_factory.mktemp("rows") / "site", publisher) as site:
        policy = site.settings["policy"] | {"no_identity": "blacklisted"}
        site.configure(
            peers=[{"name": "msc", "from": ["127.0.0.0/8"]}], gsup={"listen": "tcp://127.0.0.1:0"}, policy=policy
        )
        site.load([LISTED])
        site.load([TRACKED], list_name="tracked")
        site.start()
        yield site


@pytest.mark.parametrize("row", ROWS)
async def test_row(shared, row):
    """The answer comes, and nothing else beside that of a check behind it; and the connection goes on."""
    sent, wanted = ROWS[row]
    port = int(shared.node.status()["listening"][-1].rpartition(":")[2])
    client = await End.to(port)
    last = said(permitted=True, imsi=(1, tbcd("999990000000000")))
    try:
        client.send(sent, check(UNLISTED, "999990000000000"))
        expected, _ = frames(wanted)
        assert await client.until(lambda found: last in found and len(found) > len(expected) + 1)
        assert sorted(client.found) == sorted([ID_GET, *expected, last])
        assert await client.send(PING).until(lambda found: len(found) > len(expected) + 2)
    finally:
        client.close()
        await client.reader.read()
