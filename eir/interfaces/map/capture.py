"""MAP as it went over a wire: capture files of M3UA over SCTP, in which tshark finds DATA messages, and these are read as the node reads them.

So what a vendor adds to a request, which a dissector calls malformed, is no hindrance here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from eir.interfaces.map import checkimei as codec
from eir.interfaces.map.probe import REFUSED, finding_of
from eir.interfaces.probing import NO_ANSWER, Captured, by_tshark
from eir.wire.ss7 import sccp, tcap
from eir.wire.ss7.ber import BerError
from eir.wire.ss7.sccp import ITU, SccpFault, point_code_text
from eir.wire.ss7.tcap import TcapFault

ARGUMENTS = (
    "--disable-protocol", "sccp", "-Y", "m3ua.protocol_data_si == 3",
    "-T", "fields", "-e", "m3ua.protocol_data_opc", "-e", "m3ua.protocol_data_dpc", "-e", "data.data",
)  # fmt: skip
"""Point codes and payload of each DATA message; of several in one packet, with commas between them."""


class _Asked(NamedTuple):
    """A question that waits for its answer."""

    imei: str
    origin: str
    version: int


def read(capture: Path, variant: str = ITU) -> Captured:
    """Read a capture file (pcap, pcapng) with M3UA over SCTP. Raises SetupFault without tshark, EirError if it cannot read the file."""
    return by_tshark(capture, ARGUMENTS, lambda output: _account(_transfers(output), variant))


def _transfers(output: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """(OPC, DPC, payload) of each DATA message."""
    for line in output:
        columns = [column.split(",") for column in line.decode("ascii", "replace").rstrip("\n").split("\t")]
        if len({len(column) for column in columns}) == 1 and len(columns) == 3:  # else not all of it is M3UA
            for opc, dpc, payload in zip(*columns, strict=True):
                yield int(opc), int(dpc), bytes.fromhex(payload)


def _account(transfers: Iterator[tuple[int, int, bytes]], variant: str) -> Captured:
    """Put answers to their requests, by transaction, point codes and the title that is called back."""
    found = Captured()
    waiting: dict[tuple[frozenset[int], bytes, str], _Asked] = {}
    for opc, dpc, payload in transfers:
        try:
            unit = sccp.unitdata(payload, variant)
            message = tcap.read(unit.data)
        except (SccpFault, TcapFault):
            continue
        ends = frozenset((opc, dpc))
        if message.kind == tcap.BEGIN:
            origin = unit.calling.digits or point_code_text(
                opc if unit.calling.pc is None else unit.calling.pc, variant
            )
            if (asked := _asked(unit.data, message, origin)) is not None:
                waiting[ends, message.otid, unit.calling.digits] = asked
                found.asking.add(origin)
        elif message.dtid and (asked := waiting.pop((ends, message.dtid, unit.called.digits), None)) is not None:
            said = finding_of(asked.imei, None, unit.data, asked.version, 0.0)
            if said.error != REFUSED:  # it asks again, by an earlier version
                found.checks[asked.imei, asked.origin, said.result] += 1
    for asked in waiting.values():
        found.checks[asked.imei, asked.origin, NO_ANSWER] += 1
    return found


def _asked(octets: bytes, message: tcap.Message, origin: str) -> _Asked | None:
    """Return the question in a Begin, if it invokes checkIMEI."""
    try:
        version = 1 if message.dialogue is None else codec.version_of(tcap.apdu(octets, message.dialogue).context)
        if version is None or message.components is None:
            return None
        for each in tcap.invocations(octets, message.components):
            if not isinstance(each, bytes) and each.operation == codec.CHECK_IMEI:
                said = codec.asked(octets, version, each.parameters)
                return _Asked(said.imei or "", origin, version) if isinstance(said, codec.Asked) else None
    except (BerError, TcapFault, codec.DataMissing):
        pass
    return None
