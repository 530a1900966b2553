"""Capture files of S13: reader of checks and answers, and writer of single messages.

The reader uses Wireshark's dissector (tshark), in clear text only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from struct import pack
from typing import IO, TypeAlias
from xml.etree import ElementTree as ET

from eir.interfaces.probing import NO_ANSWER, Captured, by_tshark
from eir.interfaces.s13.dictionary import ERROR_EQUIPMENT_UNKNOWN, ME_IDENTITY_CHECK
from eir.interfaces.s13.probe import STATUS_OF
from eir.interfaces.s13.service import meid_text
from eir.wire.diameter.dictionary import CAPABILITIES_EXCHANGE, DEVICE_WATCHDOG
from eir.wire.diameter.result import SUCCESS

PORT = 3868
Message: TypeAlias = Mapping[str, str]
"""Wireshark's fields of a message by name; the first value of each."""
_ENDS = ("tcp.stream", "sctp.assoc_index"), ("tcp.srcport", "sctp.srcport")


UPPER_PDU, SNAP_BYTES = 252, 262_144
"""LINKTYPE_WIRESHARK_UPPER_PDU: tags that name a protocol, followed by a message of that protocol."""
_TAGS = b"".join(pack("!HH", tag, len(value)) + value for tag, value in ((12, b"diameter"), (0, b"")))


def begin_capture() -> bytes:
    """Return the header of a new capture file (pcap) for Diameter messages."""
    return pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_BYTES, UPPER_PDU)


def captured(time: float, message: bytes) -> bytes:
    """Encode a Diameter message as a packet for a capture file.

    `time`: Unix time at which the message was sent or received.
    """
    whole = _TAGS + message
    return pack("=IIII", int(time), int(time % 1 * 1e6), len(whole), len(whole)) + whole


def read(capture: Path, ports: Sequence[int] = (PORT,)) -> Captured:
    """Return the checks in a capture file (pcap, pcapng) with Diameter on these TCP and SCTP ports.

    Raises SetupFault without tshark, EirError if tshark cannot read the file.
    """
    decode = [text for port in ports for layer in ("tcp", "sctp") for text in ("-d", f"{layer}.port=={port},diameter")]
    wanted = " || ".join(
        f"diameter.cmd.code == {code}" for code in (ME_IDENTITY_CHECK, CAPABILITIES_EXCHANGE, DEVICE_WATCHDOG)
    )
    arguments = [*decode, "-Y", wanted, "-T", "pdml", "-J", "tcp sctp diameter"]
    return by_tshark(capture, arguments, _document)


def _document(output: IO[bytes]) -> Captured | None:
    try:
        return _account(_messages(output))
    except ET.ParseError:
        return None


def _messages(document: IO[bytes]) -> Iterator[tuple[tuple[str, str], Message]]:
    """Yield connection, sender's port and fields of each Diameter message in tshark's output."""
    for _, packet in ET.iterparse(document):  # noqa: S314  # it is tshark's own
        if packet.tag != "packet":
            continue
        ends = ["", ""]
        for part in packet.iter("proto"):
            if part.get("name") == "diameter":
                fields: dict[str, str] = {}
                for each in part.iter("field"):
                    fields.setdefault(each.get("name", ""), each.get("show", ""))
                yield (ends[0], ends[1]), fields
            else:
                for each in part.iter("field"):
                    for at, names in enumerate(_ENDS):
                        if each.get("name") in names:
                            ends[at] = f"{names[0]} {each.get('show')}"
        packet.clear()


def _account(messages: Iterator[tuple[tuple[str, str], Message]]) -> Captured:
    """Match each captured answer with its request, by connection, hop-by-hop and end-to-end identifier; return the checks."""
    account = Captured()
    waiting: dict[tuple[str, str, str], tuple[str, str]] = {}
    hosts: dict[tuple[str, str], set[str]] = {}
    carrying: set[tuple[str, str]] = set()
    eirs: set[str] = set()
    for ends, fields in messages:
        origin, is_request = (
            fields.get("diameter.Origin-Host", ""),
            fields.get("diameter.flags.request") in {"1", "True"},
        )
        ids = (ends[0], fields.get("diameter.hopbyhopid", ""), fields.get("diameter.endtoendid", ""))
        if int(fields.get("diameter.cmd.code", "0")) != ME_IDENTITY_CHECK:
            if is_request:
                hosts.setdefault(ends, set()).add(origin)
        elif is_request:
            carrying.add(ends)
            account.asking.add(origin)
            waiting[ids] = (fields.get("diameter.IMEI") or _meid(fields), origin)
        else:
            eirs.add(origin)
            if (asked := waiting.pop(ids, None)) is not None:
                account.checks[*asked, _result(fields)] += 1
    for asked in waiting.values():
        account.checks[*asked, NO_ANSWER] += 1
    account.asking |= {host for ends in carrying for host in hosts.get(ends, ())}
    account.known = {host for names in hosts.values() for host in names} - eirs
    return account


def _meid(fields: Message) -> str:
    """Return the MEID of an ECR, or an empty text. tshark shows the MEID as octets."""
    octets = fields.get("diameter.3GPP2-MEID", "")
    with suppress(ValueError):
        return meid_text(bytes.fromhex(octets.replace(":", "")))
    return octets


def _result(fields: Message) -> str:
    """Return the equipment status in an ECA; without a status, its result code or `none`."""
    code = fields.get("diameter.Result-Code")
    if code == str(SUCCESS):
        status = fields.get("diameter.Equipment-Status", "")
        return STATUS_OF.get(int(status).to_bytes(4), status) if status.isdigit() else NO_ANSWER
    if (experimental := fields.get("diameter.Experimental-Result-Code")) is not None:
        return "unknown" if experimental == str(ERROR_EQUIPMENT_UNKNOWN) else experimental
    return code or NO_ANSWER
