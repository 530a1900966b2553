"""Files that are there wholly or not at all, and names that outlive a power failure. Imports nothing of ours."""

import os
from pathlib import Path


def put(path: Path, content: bytes, *, mode: int | None = None, durable: bool = False) -> None:
    """Put a file in its place, over one that may be there.

    `mode`: its permissions, if the umask's are not wanted; `durable`: it is on the disk before it has its name. Raises OSError, and leaves
    no part of it then: of a disk that is full the rest stays free.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if mode is not None:
            fresh.chmod(mode)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
