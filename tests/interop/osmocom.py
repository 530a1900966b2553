"""Debian's osmo-stp, osmo-hlr and osmo-msc on loopback, and a BSC with a phone that is played by hand: M3UA over TCP or SCTP, SCCP, A, Layer 3.

They take fixed ports, so that they run in a network of their own (agent.in_a_network_of_its_own).
"""

import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from simulated import sctp_wire
from simulated.node import until
from simulated.patience import PATIENCE_S

PROGRAMS = ("osmo-stp", "osmo-hlr", "osmo-hlr-db-tool", "osmo-msc")
HLR, STP = "127.0.0.2", ("127.0.0.1", 2905)
TCP, SCTP = "tcp", "sctp"
PROTOCOLS = {TCP: socket.IPPROTO_TCP, SCTP: socket.IPPROTO_SCTP}
M3UA_PPID = 3
MSC_PC, BSC_PC = 0 << 11 | 23 << 3 | 1, 0 << 11 | 23 << 3 | 3
BSSAP = 254
ME_ILLEGAL, CONGESTION = 6, 22
STP_CFG = """
cs7 instance 0
 xua rkm routing-key-allocation dynamic-permitted
 listen m3ua 2905 {transport}
  accept-asp-connections dynamic-permitted
"""
HLR_CFG = f"""
hlr
 gsup
  bind ip {HLR}
"""
MSC_CFG = """
cs7 instance 0
 point-code 0.23.1
 asp asp-stp 2905 0 m3ua {transport}
  remote-ip 127.0.0.1
  role asp
  transport-role client
 as as-stp m3ua
  asp asp-stp
  routing-key 185 0.23.1
network
 network country code 001
 mobile network code 01
 encryption a5 0
 authentication optional
msc
 assign-tmsi
 check-imei-rqd {mode}
hlr
 remote-ip 127.0.0.1
 ipa-name MSC-1
"""


def missing():
    """The programs of it that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Core:
    """The programs, as they run."""

    def __init__(self, folder, transport):
        self.folder = folder
        self.running = {}
        self._environment = {}
        if transport == TCP:
            wrapper = folder / "nosctp.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-o", wrapper, Path(__file__).parent / "nosctp.c"], check=True)
            self._environment = {"LD_PRELOAD": str(wrapper)}

    def start(self, program, configuration, *more):
        """Start a program; it may have run before."""
        path = self.folder / f"{program}.cfg"
        path.write_text(configuration)
        with (self.folder / f"{program}.log").open("ab") as log:
            self.running[program] = subprocess.Popen(
                [program, "-c", path, *more], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder,
                env=os.environ | self._environment,
            )  # fmt: skip

    def end(self, program):
        """Kill it."""
        process = self.running.pop(program)
        process.kill()
        process.wait()

    def log(self, program):
        return (self.folder / f"{program}.log").read_text(errors="replace")

    def subscriber(self, imsi, number):
        """Make a subscriber, before the HLR starts."""
        database = self.folder / "hlr.db"
        if not database.exists():
            subprocess.run(["osmo-hlr-db-tool", "-l", database, "create"], check=True, capture_output=True)
        with sqlite3.connect(database) as there:
            there.execute("insert into subscriber(imsi,msisdn,nam_cs,nam_ps) values(?,?,1,1)", (imsi, number))
        there.close()

    def start_hlr(self):
        self.start("osmo-hlr", HLR_CFG, "-l", self.folder / "hlr.db")
        until(lambda: is_open(HLR, 4222))


@contextmanager
def core(folder, imsi, mode, transport):
    """All of it, with one subscriber; the MSC's HLR is at 127.0.0.1:4222."""
    made = Core(folder, transport)
    try:
        made.subscriber(imsi, "491700000001")
        made.start("osmo-stp", STP_CFG.format(transport=transport))
        until(lambda: is_open(*STP, transport))
        made.start_hlr()
        made.start("osmo-msc", MSC_CFG.format(mode=mode, transport=transport))
        yield made
    finally:
        for program in list(made.running):
            made.end(program)


def is_open(host, port, transport=TCP):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOLS[transport]) as tried:
        return tried.connect_ex((host, port)) == 0


# M3UA (RFC 4666), SCCP (Q.713) and what is in them, as far as a BSC needs it


def _parameter(tag, value):
    return struct.pack(">HH", tag, 4 + len(value)) + value + bytes(-len(value) % 4)


def _parameters(octets):
    found = {}
    while len(octets) >= 4:
        tag, length = struct.unpack_from(">HH", octets)
        found[tag] = octets[4:length]
        octets = octets[length + -length % 4 :]
    return found


def _m3ua(kind, *parameters):
    body = b"".join(parameters)
    return struct.pack(">BBBBI", 1, 0, *kind, 8 + len(body)) + body


def _led(octets):
    return bytes([len(octets)]) + octets


def _address(point_code):
    return b"\x43" + struct.pack("<HB", point_code, BSSAP)


DATA, ASPUP, ASPUP_ACK, ASPAC, ASPAC_ACK, BEAT, BEAT_ACK, REG_REQ, REG_RSP = (
    (1, 1), (3, 1), (3, 4), (4, 1), (4, 3), (3, 3), (3, 6), (9, 1), (9, 2),
)  # fmt: skip


class Bsc:
    """An ASP of osmo-stp that is a BSC for the MSC; one phone at a time."""

    def __init__(self, transport):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOLS[transport])
        self._socket.connect(STP)
        if transport == SCTP:
            sctp_wire.send_over(self._socket, stream=0, ppid=M3UA_PPID)
        self._buffer, self._waiting, self._reference = b"", [], 0
        self._send(_m3ua(ASPUP))
        self._await(ASPUP_ACK)
        self._send(
            _m3ua(
                REG_REQ,
                _parameter(
                    0x207, _parameter(0x20A, struct.pack(">I", 1)) + _parameter(0x20B, struct.pack(">I", BSC_PC))
                ),
            )
        )
        result = _parameters(_parameters(self._await(REG_RSP)[8:])[0x208])
        self._context = _parameter(6, result[6])
        self._send(_m3ua(ASPAC, self._context))
        self._await(ASPAC_ACK)
        if transport == SCTP:  # RFC 4666 1.4.7: DATA not over stream 0
            sctp_wire.send_over(self._socket, stream=1, ppid=M3UA_PPID)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def reset(self):
        """BSSMAP RESET, until the MSC acknowledges it."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self._udt(bytes.fromhex("000430040120"))
            while (sccp := self._sccp(1)) is not None:
                if sccp[0] == 9 and (said := _udt_data(sccp))[2] == 0x31:
                    return
                if sccp[0] == 9 and said[2] == 0x30:
                    self._udt(bytes.fromhex("000131"))
        raise AssertionError("the MSC acknowledges no reset")

    def location_update(self, imsi, imei, *, patience_s=PATIENCE_S):
        """A phone's location update: what it is answered last, the accept (5, 2) or the reject and its cause (5, 4, cause)."""
        self._reference += 1
        mine = self._reference.to_bytes(3)
        update = b"\x05\x08\x72" + bytes.fromhex("00f110fffe33") + _identity(imsi, 1)
        complete = b"\x57\x05\x08\x00" + bytes.fromhex("00f11000010002") + b"\x17" + _led(update)
        self._data(
            b"\x01"
            + mine
            + b"\x02\x02\x06"
            + _led(_address(MSC_PC))
            + b"\x04"
            + _led(_address(BSC_PC))
            + b"\x0f"
            + _led(b"\0" + _led(complete))
            + b"\0"
        )
        theirs, sent, answer, end = b"", 0, None, time.monotonic() + patience_s
        while time.monotonic() < end and (sccp := self._sccp(max(0.1, end - time.monotonic()))) is not None:
            if sccp[0] == 2:
                theirs = sccp[4:7]
            elif sccp[0] == 4:
                self._data(b"\x05" + sccp[4:7] + sccp[1:4])
                break
            elif sccp[0] == 6:
                said = sccp[7 : 7 + sccp[6]]
                if said[0] == 0 and said[2] == 0x20:
                    self._data(b"\x06" + theirs + b"\x00\x01" + _led(b"\x00\x01\x21"))
                elif said[0] == 1:
                    heard = said[3:]
                    answer = tuple(heard[:3]) if heard[1] == 4 else tuple(heard[:2]) if heard[1] == 2 else answer
                    for word in _words(heard, imsi, imei):
                        sent += 1  # N(SD) alternates (TS 24.007 11.2.3.2.3)
                        self._data(
                            b"\x06"
                            + theirs
                            + b"\x00\x01"
                            + _led(b"\x01\x00" + _led(word[:1] + bytes([word[1] | sent % 2 << 6]) + word[2:]))
                        )
        return answer

    def _send(self, octets):
        self._socket.sendall(octets)

    def _data(self, sccp):
        self._send(
            _m3ua(DATA, self._context, _parameter(0x210, struct.pack(">IIBBBB", BSC_PC, MSC_PC, 3, 0, 0, 0) + sccp))
        )

    def _udt(self, bssap):
        called, calling = _led(_address(MSC_PC)), _led(_address(BSC_PC))
        self._data(bytes([9, 0, 3, 2 + len(called), 1 + len(called) + len(calling)]) + called + calling + _led(bssap))

    def _message(self, patience_s):
        end = time.monotonic() + patience_s
        while len(self._buffer) < 8 or len(self._buffer) < int.from_bytes(self._buffer[4:8]):
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                octets = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            assert octets, "osmo-stp closed the connection"
            self._buffer += octets
        size = int.from_bytes(self._buffer[4:8])
        message, self._buffer = self._buffer[:size], self._buffer[size:]
        if tuple(message[2:4]) == BEAT:
            self._send(_m3ua(BEAT_ACK, message[8:]))
            return self._message(end - time.monotonic())
        return message

    def _await(self, kind):
        while (message := self._message(30)) is not None:
            if tuple(message[2:4]) == kind:
                return message
            if tuple(message[2:4]) == DATA:
                self._waiting.append(message)
        raise AssertionError(f"osmo-stp sent no {kind}")

    def _sccp(self, patience_s):
        while True:
            message = self._waiting.pop(0) if self._waiting else self._message(patience_s)
            if message is None:
                return None
            if tuple(message[2:4]) == DATA:
                return _parameters(message[8:])[0x210][12:]


def _udt_data(sccp):
    at = 4 + sccp[4]
    return sccp[at + 1 : at + 1 + sccp[at]]


def _identity(digits, kind):
    """A mobile identity (TS 24.008 10.5.1.4) in its length."""
    odd = len(digits) % 2
    padded = digits if odd else digits + "f"
    octets = [int(padded[0], 16) << 4 | odd << 3 | kind]
    octets += [int(padded[at + 1], 16) << 4 | int(padded[at], 16) for at in range(1, len(padded), 2)]
    return _led(bytes(octets))


def _words(heard, imsi, imei):
    """The phone's replies to that."""
    if heard[:2] == b"\x05\x18":
        asked = {1: (imsi, 1), 2: (f"{imei}0", 2), 3: (f"{imei}01", 3)}[heard[2] & 7]
        return [b"\x05\x19" + _identity(*asked)]
    return [b"\x05\x1b"] if heard[:2] == b"\x05\x02" else []
