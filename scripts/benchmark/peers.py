"""Other Diameter stacks as S13 servers, the smallest that each allows, for `bench peers`."""

import shutil
from collections.abc import Callable
from pathlib import Path

from .build import BUILT, HERE, STDIO, is_older, python, run, tools
from .servers import REALM, Server, Start

SOURCES = HERE / "peers"
PYTHON_DIAMETER = "python-diameter==0.9.0"

FREEDIAMETER_CONF = """\
Identity = "fd.{realm}";
Realm = "{realm}";
Port = {port};
SecPort = 0;
No_SCTP;
No_IPv6;
ListenOn = "127.0.0.1";
NoRelay;
AppServThreads = 4;
TLS_Cred = "{certificate}", "{key}";
TLS_CA = "{certificate}";
LoadExtension = "dict_nasreq.fdx";
LoadExtension = "dict_dcca.fdx";
LoadExtension = "dict_dcca_3gpp.fdx";
LoadExtension = "acl_wl.fdx" : "{allowed}";
LoadExtension = "{extension}";
"""


def python_diameter() -> Start:
    """Run python-diameter, in an environment of its own."""
    interpreter = python(PYTHON_DIAMETER)

    def start(port: int, *, log: Path, cores: set[int]) -> Server:
        command = [interpreter, SOURCES / "pd_server.py", str(port), REALM]
        return Server("python-diameter", command, port, log=log, cores=cores)

    return start


def otp() -> Start:
    """Run Erlang/OTP's diameter."""
    tools("erl", "erlc", "diameterc", part="--otp")
    code, source, dictionary = BUILT / "otp", SOURCES / "otp_server.erl", SOURCES / "s13.dia"
    if is_older(code / "otp_server.beam", source, dictionary):
        shutil.rmtree(code, ignore_errors=True)
        code.mkdir(parents=True)
        run(["diameterc", "-o", code, "-i", code, dictionary])
        run(["erlc", "-o", code, code / "s13.erl"])
        run(["erlc", "-o", code, source])

    def start(port: int, *, log: Path, cores: set[int]) -> Server:
        # One scheduler for each core that it may use, and no spinning of idle ones.
        run_it = ["-run", "otp_server", "main", str(port), REALM]
        command = ["erl", "+S", f"{len(cores)}", "-noshell", "-noinput", "-pa", code, *run_it]
        return Server("otp", command, port, log=log, cores=cores)

    return start


def freediameter() -> Start:
    """Run freeDiameter, in C."""
    tools(
        "freeDiameterd", "gcc", "openssl", files=[STDIO, "/usr/include/freeDiameter/extension.h"], part="--freediameter"
    )
    folder, source = BUILT / "freediameter", SOURCES / "fd_server.c"
    extension, key, certificate = (folder / name for name in ("fd_server.fdx", "key.pem", "certificate.pem"))
    folder.mkdir(parents=True, exist_ok=True)
    if is_older(extension, source):
        run(["gcc", "-O2", "-shared", "-fPIC", "-o", extension, source])
    if not certificate.exists():  # it does not start without one, although nobody here speaks TLS
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
        run(["openssl", "req", "-x509", *kind, "-subj", f"/CN=fd.{REALM}", "-keyout", key, "-out", certificate])

    def start(port: int, *, log: Path, cores: set[int]) -> Server:
        conf, allowed = log.with_suffix(".conf"), log.with_suffix(".allowed")
        allowed.write_text(f"ALLOW_IPSEC *.{REALM}\n")
        named = {
            "certificate": certificate,
            "key": key,
            "extension": extension,
            "allowed": allowed,
        }
        conf.write_text(FREEDIAMETER_CONF.format(port=port, realm=REALM, **named))
        return Server("freediameter", ["freeDiameterd", "-c", conf], port, log=log, cores=cores)

    return start


PEERS: dict[str, Callable[[], Start]] = {"otp": otp, "freediameter": freediameter, "python-diameter": python_diameter}
"""Other servers, in the order of measurement; each builds its requirements, or raises Missing."""
