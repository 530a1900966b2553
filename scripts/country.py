"""Parts of `demo --country` in Python: free ports, the register's web server, and a month of checks."""

import csv
import random
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACKNOWLEDGEMENT_BYTES_MAX = 1 << 16
DAYS, COPIED_FROM_DAY = 28, 10
HONEST = 200
OFFICES = tuple(f"mmec01.mmegi{group}.mme.epc.mnc001.mcc001.3gppnetwork.org" for group in (8001, 8002))
"""MMEs at two places of the operator."""


def ports(count: str) -> None:
    """Print this number of free ports of the loopback address."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(int(count))]
        print(*(each.getsockname()[1] for each in sockets))


class Folder(SimpleHTTPRequestHandler):
    """Folder of the register's lists: nodes read it, and post acknowledgements into `LIST/acknowledgements/`."""

    def do_POST(self) -> None:
        """Store one acknowledgement."""
        path = Path(self.translate_path(self.path))
        length = int(self.headers.get("Content-Length", "0"))
        is_accepted = path.parent.name == "acknowledgements" and path.suffix == ".ack"
        if is_accepted and 0 < length <= ACKNOWLEDGEMENT_BYTES_MAX:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self.rfile.read(length))
        else:
            is_accepted = False
        self.send_response(201 if is_accepted else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()


def serve(register: str) -> None:
    """Serve `register/www` over HTTPS until the process ends; print the URL first."""
    folder = Path(register)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Folder, directory=str(folder / "www")))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"https://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def checks(file: str, copied: str, owner: str, holder: str) -> None:
    """Write a month of an operator's checks: the owner's phone all the time, and from day 10 on a copy at another place.

    All other phones are of the owner's model. The copy has another software version.
    """
    model = copied[:8]
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(days=DAYS)
    at = random.Random(1)  # the same month each time

    def rows() -> Iterator[tuple[datetime, str, str, str, str]]:
        for day in range(DAYS):
            for imsi, office, since, version in (
                (owner, OFFICES[0], 0, "05"),
                (holder, OFFICES[1], COPIED_FROM_DAY, "71"),
            ):
                for _ in range(4 if day >= since else 0):
                    yield begin + timedelta(days=day, hours=at.uniform(6, 23)), copied, imsi, office, version
        for number in range(HONEST):
            for day in range(0, DAYS, 3):
                office = OFFICES[(number + (day > DAYS // 2)) % len(OFFICES)]
                yield begin + timedelta(days=day), f"{model}5{number:05d}", f"0010102{number:08d}", office, "05"

    with Path(file).open("w", encoding="ascii", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("time", "imei", "imsi", "origin_host", "software_version"))
        writer.writerows((f"{time:%Y-%m-%dT%H:%M:%SZ}", *row) for time, *row in sorted(rows()))


PARTS: dict[str, Callable[..., None]] = {"ports": ports, "serve": serve, "checks": checks}

if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
