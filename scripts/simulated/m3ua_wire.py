"""M3UA, SCCP, TCAP and MAP: vectors, messages of an MSC, tshark's reading of messages."""

import subprocess

from eir.wire.ss7 import m3ua, sccp

V3 = "62404804000000016b1e281c060700118605010101a011600f80020780a109060704000001000d036c18a11602010102012b300e040853081910863555f003020680"
V2 = "623a4804000000016b1e281c060700118605010101a011600f80020780a109060704000001000d026c12a11002010102012b040853081910863555f0"
V1 = "621a4804000000016c12a11002010102012b040853081910863555f0"
HUAWEI = "62444804000000016b1e281c060700118605010101a011600f80020780a109060704000001000d026c1ca11a02010102012b040853467640949819f0000827340403305867f3"
VECTORS = {"v3": V3, "v2": V2, "v1": V1, "huawei": HUAWEI}
VECTOR_IMEI, HUAWEI_IMEI, HUAWEI_IMSI = "358091016853550", "356467044989910", "724340300385763"
MSC, EIR = 2057, 2058
"""Point codes 1-1-1 and 1-1-2."""
TITLE = "491700000001"


def address(*, ssn, pc=None, title=None, variant="itu", by_ssn=None):
    kind, octets = sccp.e164(title, variant) if title else (0, b"")
    return sccp.encoded_address(
        variant, pc=pc, ssn=ssn, kind=kind, title=octets, by_ssn=title is None if by_ssn is None else by_ssn
    )


def udt(data, *, called=None, calling=None, kind=sccp.UDT, protocol_class=0):
    return sccp.encoded(
        kind, protocol_class, called or address(ssn=9, pc=EIR), calling or address(ssn=8, title=TITLE), data
    )


def data(payload, *, opc=MSC, dpc=EIR, sls=0, context=None, **more):
    return m3ua.data(
        m3ua.Transfer(opc, dpc, sls, payload, context=None if context is None else context.to_bytes(4, "big"), **more)
    )


def opinion(tmp_path, messages, *fields, options=()):
    """Tshark's reading of M3UA messages, each as a packet: all of it, or these fields of each packet."""
    lines = []
    for octets in messages:
        lines += [f"{at:06x} {octets[at : at + 16].hex(' ')}" for at in range(0, len(octets), 16)]
        lines.append(f"{len(octets):06x}")
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    subprocess.run(
        ["text2pcap", "-q", "-S", "2905,2905,3", tmp_path / "in.txt", tmp_path / "in.pcap"],
        check=True,
        capture_output=True,
    )
    wanted = ["-T", "fields", *(part for each in fields for part in ("-e", each))] if fields else ["-V"]
    done = subprocess.run(
        ["tshark", "-r", tmp_path / "in.pcap", *options, *wanted], check=True, capture_output=True, text=True
    )
    return done.stdout
