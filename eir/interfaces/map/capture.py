"""Reader of capture files with MAP over M3UA and SCTP.

tshark finds the DATA messages, and the node's own parser reads them. So vendor extensions of a request, which a dissector
reports as malformed, are parsed as in the node.
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
"""Arguments for point codes and payload of each DATA message; the values of several messages in one packet are separated by commas."""


class _Asked(NamedTuple):
    """checkIMEI request in a capture file that waits for its answer."""

    imei: str
    origin: str
    version: int


def read(capture: Path, variant: str = ITU) -> Captured:
    """Return the checks in a capture file (pcap, pcapng) with M3UA over SCTP.

    Raises:
        SetupFault: if tshark is missing.
        EirError: if tshark cannot read the file.
    """
    return by_tshark(capture, ARGUMENTS, lambda output: _account(_transfers(output), variant))


def _transfers(output: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield (OPC, DPC, payload) of each DATA message in tshark's output."""
    for line in output:
        columns = [column.split(",") for column in line.decode("ascii", "replace").rstrip("\n").split("\t")]
        if len({len(column) for column in columns}) == 1 and len(columns) == 3:  # else other contents too
            for opc, dpc, payload in zip(*columns, strict=True):
                yield int(opc), int(dpc), bytes.fromhex(payload)


def _account(transfers: Iterator[tuple[int, int, bytes]], variant: str) -> Captured:
    """Match each captured answer with the request that has the same transaction id, point codes and global title; return the checks."""
    captured = Captured()
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
                captured.asking.add(origin)
        elif message.dtid and (asked := waiting.pop((ends, message.dtid, unit.called.digits), None)) is not None:
            finding = finding_of(asked.imei, None, unit.data, asked.version, 0.0)
            if finding.error != REFUSED:  # the MSC repeats the request with an earlier version
                captured.checks[asked.imei, asked.origin, finding.result] += 1
    for asked in waiting.values():
        captured.checks[asked.imei, asked.origin, NO_ANSWER] += 1
    return captured


def _asked(octets: bytes, message: tcap.TcapMessage, origin: str) -> _Asked | None:
    """Return the checkIMEI request in a TCAP Begin message, or None if the message has no valid checkIMEI."""
    try:
        version = 1 if message.dialogue is None else codec.version_of(tcap.apdu(octets, message.dialogue).context)
        if version is None or message.components is None:
            return None
        for each in tcap.invocations(octets, message.components):
            if not isinstance(each, bytes) and each.operation == codec.CHECK_IMEI:
                argument = codec.asked(octets, version, each.parameters)
                return (
                    _Asked(argument.imei or "", origin, version)
                    if isinstance(argument, codec.CheckImeiArgument)
                    else None
                )
    except (BerError, TcapFault, codec.DataMissing):
        pass
    return None
