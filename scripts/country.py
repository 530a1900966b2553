"""Parts of `demo --country` in Python: free ports, the register's web server, and a month of checks."""

import csv
import itertools
import random
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from eir.frames import pl
from eir.sightings.batches import ROWS, CheckRows
from eir.sightings.buffer import CheckKind
from eir.sightings.files import write
from eir.sightings.settings import FULL
from eir.sightings.subscribers import Subscribers

ACKNOWLEDGEMENT_BYTES_MAX = 1 << 16
COPIED_DAYS, COPIED_FROM_DAY = 18, 10
HONEST, COPIES, RETURNED = 400, 12, 15
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


class Record:
    """Rows of a record of checks, as a node groups and stores them."""

    def __init__(self, begin: datetime) -> None:
        self._begin = begin
        self._rows: list[tuple[int, str, str, str, str, int]] = []
        self._kinds: dict[CheckKind, int] = {}

    def add(self, day: float, imei: str, imsi: str, office: str, version: str, *, list_name: str | None = None) -> None:
        """Add a check. `day`: days since the begin of the record. `list_name`: list that blocks the phone; None: the phone is accepted."""
        status, rule = ("whitelisted", "default") if list_name is None else ("blacklisted", "2")
        kind = CheckKind(office, "epc.mnc001.mcc001.3gppnetwork.org", "core", "s13", status, rule, list_name)
        number = self._kinds.setdefault(kind, len(self._kinds))
        moment = self._begin + timedelta(days=day)
        self._rows.append((int(moment.timestamp() * 1e6), imei, version, imsi, "", number))

    def write(self, state: Path) -> None:
        """Write the rows to the record in a state folder."""
        frame = pl.DataFrame(self._rows, schema=ROWS, orient="row")
        write(state, CheckRows(frame, list(self._kinds)).grouped(Subscribers(FULL)))


def checks(state: str, stolen: str, copied: str, owner: str, holder: str) -> None:
    """Write an operator's record of checks since the begin of last month, without sending each check.

    The owner's phone attaches every day. In the last COPIED_DAYS days so does a copy with another software version at another place. COPIES further
    phones have a copy from day COPIED_FROM_DAY on, so that the figures of last month count them on each day of this month. The honest phones are of the owner's model. The phones of the list `stolen` are refused. RETURNED phones were on a
    list, and are accepted since then.

    Args:
        state: state folder of the operator's node.
        stolen: data file of the list.
        copied: IMEI of the phone that has a copy.
        owner: IMSI of its owner.
        holder: IMSI of the copy.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    begin = (now.replace(day=1) - timedelta(days=1)).replace(day=1, hour=0, minute=0, second=0)
    days = (now - begin).days
    at = random.Random(state)  # the same record each time
    record = Record(begin)
    model = copied[:8]
    others = [
        (f"{model}66{number:04d}", f"0010103{number:08d}", f"0010104{number:08d}", COPIED_FROM_DAY)
        for number in range(COPIES)
    ]
    for imei, first, second, since in ((copied, owner, holder, days - COPIED_DAYS), *others):
        for check in range(4 * days):
            record.add(check // 4 + at.uniform(0.3, 0.95), imei, first, OFFICES[0], "05")
        for check in range(4 * since, 4 * days):
            record.add(check // 4 + at.uniform(0.3, 0.95), imei, second, OFFICES[1], "71")
    for number, day in itertools.product(range(HONEST), range(0, days, 3)):
        office = OFFICES[(number + (day > days // 2)) % len(OFFICES)]
        record.add(day + 0.5, f"{model}5{number:05d}", f"0010102{number:08d}", office, "05")
    with Path(stolen).open(encoding="ascii", newline="") as file:
        listed = [row["imei"] for row in csv.DictReader(file)]
    for number, imei in enumerate(listed):
        for _ in range(at.randrange(6)):
            record.add(at.uniform(0, days), imei, f"0010105{number:08d}", at.choice(OFFICES), "05", list_name="stolen")
    for number in range(RETURNED):
        imei, imsi = f"35209911{number:06d}", f"0010106{number:08d}"
        record.add(3.0, imei, imsi, OFFICES[0], "05", list_name="stolen")
        record.add(12.0, imei, imsi, OFFICES[number % 2], "05")
    record.write(Path(state))


PARTS: dict[str, Callable[..., None]] = {"ports": ports, "serve": serve, "checks": checks}

if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
