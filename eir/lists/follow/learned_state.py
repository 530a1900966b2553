"""File with the part of a node's record of first sightings that the store lacks."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from eir.disk import write_file
from eir.errors import StoreError
from eir.lists.log.reader import join_parts, split_parts
from eir.lists.table.codec import decode_change, encode_change
from eir.lists.table.columns import NO_ROWS, Numbers, TableRows, rows_of

FORM = 1
"""Version of the format of the file."""
REMEDY = "delete the file, then its sightings are lost"


@dataclass(slots=True)
class LearnedState:
    """Rows that are not in the store yet, rows of the store that are not accepted, devices that left a list, and numbers of new devices by peer."""

    pending: TableRows = NO_ROWS
    """Rows that the store lacks: of sightings, and of devices that left a registering list."""
    disputed: Numbers = field(default_factory=lambda: np.empty(0, "<u8"))
    """Devices (ascending) whose stored row is not accepted, or whose accepted row the store lacks."""
    kept: TableRows = NO_ROWS
    """Accepted rows of disputed devices."""
    day: int = 0
    taken: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Number of new devices of `day` by peer and `Sighted.confirmed`."""
    newest: float = 0.0
    """Newest accepted time of a change of the record, in Unix seconds."""
    retry_at: float = float("inf")
    """Time in Unix seconds from which a change from the future is judged again."""
    left: TableRows = NO_ROWS
    """Devices that left a registering list in the last days, with the day of the departure as the last day."""
    since: dict[str, int] = field(default_factory=dict)
    """Generation of each registering list since which this node has noted the devices that left the list."""

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            OSError: if it cannot be written.
        """
        rows = b"".join(
            join_parts([join_parts([*encode_change(*pair)])])
            for pair in ((self.pending, NO_ROWS), (self.kept, rows_of(self.disputed)), (self.left, NO_ROWS))
        )
        taken = [[peer, confirmed, count] for (peer, confirmed), count in self.taken.items()]
        head = {
            "form": FORM,
            "sha256": sha256(rows).hexdigest(),
            "day": self.day,
            "newest": self.newest,
            "taken": taken,
            "retry_at": self.retry_at,
            "since": self.since,
        }
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        write_file(path, json.dumps(head).encode() + b"\n" + rows, mode=0o600, durable=True)


def read_state(path: Path) -> LearnedState:
    """Read the file; return an empty state if it is missing.

    Raises:
        StoreError: if it is damaged (`corrupt`) or cannot be read (`io`).
    """
    try:
        text, _, rows = path.read_bytes().partition(b"\n")
        head: dict[str, Any] = json.loads(text)
        if head["form"] != FORM or head["sha256"] != sha256(rows).hexdigest():
            raise StoreError("corrupt", f"{path} is damaged; {REMEDY}")
        (pending, _), (kept, disputed), (left, _) = (decode_change(split_parts(each)) for each in split_parts(rows))
        taken = {(peer, confirmed): count for peer, confirmed, count in head["taken"]}
        return LearnedState(
            pending, disputed.keys, kept, head["day"], taken, head["newest"], head["retry_at"], left, head["since"]
        )
    except FileNotFoundError:
        return LearnedState()
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError("corrupt", f"{path} is damaged: {error}; {REMEDY}") from error
    except OSError as error:
        raise StoreError("io", f"{path}: {error.strerror}") from error
