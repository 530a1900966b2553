"""Messages to the service manager that started a node (sd_notify(3)), and whether its journal takes the log.

Knows no part.
"""

import os
import socket
import sys
from contextlib import suppress

NOTIFY_SOCKET, JOURNAL_STREAM = "NOTIFY_SOCKET", "JOURNAL_STREAM"
READY, ENDING = "READY=1", "STOPPING=1"


def tell_service(*lines: str) -> None:
    """Send lines such as `READY=1` to the service manager, if there is one that waits for them."""
    address = os.environ.get(NOTIFY_SOCKET)
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.connect(
                f"\0{address[1:]}" if address.startswith("@") else address
            )  # @: in the abstract namespace, unix(7)
            link.send("\n".join(lines).encode())


def is_journal() -> bool:
    """True if standard error is the journal's, which gives each line a time (systemd.exec(5), JOURNAL_STREAM)."""
    with suppress(OSError, ValueError):
        found = os.fstat(sys.stderr.fileno())
        return os.environ.get(JOURNAL_STREAM) == f"{found.st_dev}:{found.st_ino}"
    return False
