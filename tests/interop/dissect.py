"""Wireshark's opinion of what went over the wire: a capture of one port, and every objection that the dissector has."""

import os
import signal
import socket
import subprocess
from contextlib import contextmanager

import pytest
from simulated.node import until
from simulated.patience import PATIENCE_S
from simulated.servers import free_port

WATCHDOG = 280
"""Command code of DWR and DWA, which may come after the last message."""
ERROR = 0x800000
"""Severity of an expert information: error (note is 0x400000, warning 0x600000)."""


def tshark(*arguments):
    done = subprocess.run(["tshark", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Capture:
    """The packets that crossed loopback on some TCP ports and SCTP ports, all read as Diameter.

    Those of `secure` are Diameter inside TLS, whose secrets are in the file `keys`.
    """

    def __init__(self, path, ports, *, secure=(), keys=None, sctp=()):
        self.path = path
        decode = [f"tcp.port=={port},diameter" for port in ports] + [f"sctp.port=={port},diameter" for port in sctp]
        decode += [rule for port in secure for rule in (f"tcp.port=={port},tls", f"tls.port=={port},diameter")]
        self._options = [text for rule in decode for text in ("-d", rule)]
        if keys is not None:
            # The first message of a TLS connection would be read as RDP.
            self._options += ["-o", f"tls.keylog_file:{keys}", "--disable-protocol", "rdpmt"]

    def read(self, wanted, *fields, passes=1):
        """For each frame that the display filter takes, its fields; what refers to a later frame needs two passes."""
        shown = [text for field in fields for text in ("-e", field)]
        lines = tshark(
            "-n", "-r", self.path, *self._options, *["-2"] * (passes - 1), "-Y", wanted, "-T", "fields", *shown
        ).splitlines()
        return [line.split("\t") for line in lines]

    def commands(self, wanted="diameter"):
        """(command code, is a request) of each message, in their order."""
        found = self.read(wanted, "diameter.cmd.code", "diameter.flags.request")
        return [
            (int(code), request in {"1", "True"})
            for codes, requests in found
            for code, request in zip(codes.split(","), requests.split(","), strict=True)
        ]

    def objections(self):
        """Frames with anything malformed, any expert error, or anything that Wireshark's Diameter dictionary cannot name."""
        experts = [
            fields[2]
            for fields in (line.split("\t") for line in tshark("-G", "fields").splitlines())
            if fields[0] == "F" and fields[2].startswith("diameter.") and fields[3] == "FT_NONE"
        ]
        assert "diameter.avp.code.unknown" in experts
        wanted = " || ".join(["_ws.malformed", f"_ws.expert.severity >= {ERROR}", *experts])
        return self.read(wanted, "frame.number", "tcp.srcport", "diameter.cmd.code", "_ws.expert.message")

    def unanswered(self):
        """Requests that have no answer in the capture."""
        return self.read(
            "diameter.flags.request == 1 && !diameter.answer_in", "frame.number", "diameter.cmd.code", passes=2
        )


@contextmanager
def capturing(path, *ports, last=(282, False), secure=(), keys=None, sctp=()):
    """Capture these ports meanwhile; at the end wait until the `last` message (command, is a request) is written; DWR and DWA do not count."""
    heard = free_port()
    wanted = " or ".join(
        [
            f"udp port {heard}",
            *(f"tcp port {port}" for port in (*ports, *secure)),
            *(f"sctp port {port}" for port in sctp),
        ]
    )
    said = path.with_suffix(".said")
    with said.open("w") as stream:
        process = subprocess.Popen(["tshark", "-q", "-i", "lo", "-f", wanted, "-w", path], stderr=stream, stdout=stream)
    try:
        # It says that it captures before it does: what it has taken down shows that it does.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            until(
                lambda: (
                    process.poll() is not None
                    or (
                        probe.sendto(b"heard", ("127.0.0.1", heard)) and path.exists() and b"heard" in path.read_bytes()
                    )
                )
            )
        if process.poll() is not None:
            if os.getuid() != 0:
                pytest.skip(f"capturing takes root: {said.read_text()}")
            pytest.fail(f"tshark cannot capture: {said.read_text()}")
        capture = Capture(path, ports, secure=secure, keys=keys, sctp=sctp)
        yield capture
        # The kernel hands packets over in blocks, up to a second late.
        until(lambda: path.stat().st_size and _ends_with(capture, last))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)


def _ends_with(capture, last):
    try:
        return last in [each for each in capture.commands() if each[0] != WATCHDOG][-2:]
    except AssertionError:  # read in the middle of being written
        return False
