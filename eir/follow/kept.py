"""The last good images: each list's in a file, so that a start maps a file instead of reading a store. Imports eir.lists.

A file is used only for the very content that is to be taken over, by its digest: it spares the reading, and decides nothing. What
stands in it is proved, and copied into memory that nobody can change, before anything answers by it.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from eir.follow.heavy import Heavy
from eir.follow.proof import PROOF_MASK, Proof
from eir.lists.image import Image, ImageError

FOLDER = "images"
FOLDER_MODE, FILE_MODE = 0o750, 0o640
SMALL_BYTES = 1 << 20
"""A list whose image is smaller is read from the store in no time, and may change often."""
SAVE_AFTER_S = 10.0
"""How long a list has to stay as it is until its image is written: of many changes in a row the last."""
RETRY_S = 60.0
"""Pause after the disk took none."""
DIGEST_BYTES, COUNT_BYTES, MARK_BYTES = 32, 8, 8
"""A file is the digest of the content, the number of pages, a mark of each (eir.follow.proof), and the image."""
LOOK_S = 1.0


def digest_in(file: Path) -> str:
    """The digest of the content whose image a file has; empty if there is no such file. Raises OSError."""
    with suppress(FileNotFoundError), file.open("rb") as opened:
        return opened.read(DIGEST_BYTES).hex()
    return ""


class ImageFiles:
    """Writes images aside some time after they came into force, in `run`, and reads them. `failed` is told of faults, by list."""

    def __init__(self, state: Path, failed: Callable[[str, Exception], None]) -> None:
        self._folder, self._failed = state / FOLDER, failed
        self._due: dict[str, tuple[float, str, Image, Proof]] = {}

    def keep(self, name: str, digest: str, image: Image, proof: Proof) -> None:
        """Have the image of a list with this content digest written, unless another one comes soon, or the file has that content then."""
        if len(image.buffer) >= SMALL_BYTES:
            self._due[name] = time.monotonic() + SAVE_AFTER_S, digest, image, proof

    async def run(self, heavy: Heavy) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for name, (due, digest, image, proof) in tuple(self._due.items()):
                if due <= time.monotonic():
                    del self._due[name]
                    try:
                        if await asyncio.to_thread(digest_in, self._folder / name) == digest:
                            continue
                        with heavy():
                            await asyncio.to_thread(self._write, name, digest, image, proof)
                    except OSError as error:
                        self._failed(name, error)
                        self._due.setdefault(name, (time.monotonic() + RETRY_S, digest, image, proof))

    def read(self, name: str, digest: str) -> tuple[Image, Proof] | None:
        """The image of a list with this content; None if there is none. Raises ImageError for one that is damaged, which is removed, and OSError."""
        try:
            return self._read(name, digest)
        except ImageError:
            (self._folder / name).unlink(missing_ok=True)
            raise

    def _read(self, name: str, digest: str) -> tuple[Image, Proof] | None:
        with suppress(FileNotFoundError), (self._folder / name).open("rb") as file:
            if file.read(DIGEST_BYTES).hex() != digest:
                return None
            count = int.from_bytes(file.read(COUNT_BYTES), "little")
            if not DIGEST_BYTES + COUNT_BYTES + MARK_BYTES * count <= os.fstat(file.fileno()).st_size:
                raise ImageError("the file of an image is cut short")
            marks = np.frombuffer(file.read(MARK_BYTES * count), "<u8")
            image = Image.read(file.fileno(), file.tell())
            if len(marks) != len(image.numbers) or (int(marks.sum(dtype=np.uint64)) ^ int(digest, 16)) & PROOF_MASK:
                raise ImageError("the file of an image has not the content that it says")
            return image, Proof.of(image.numbers, marks)
        return None

    def forget_all_but(self, names: Iterable[str]) -> None:
        """Remove the files of lists that there are no longer, and what a write that was cut short left. Raises OSError."""
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if path.name not in names:
                    path.unlink()

    def _write(self, name: str, digest: str, image: Image, proof: Proof) -> None:
        self._folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        fresh, marks = self._folder / f".{name}", proof.marks(image.numbers)
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor, for its mode
                file.write(bytes.fromhex(digest) + len(marks).to_bytes(COUNT_BYTES, "little") + marks.tobytes())
                file.flush()
                image.save(descriptor, file.tell())
            fresh.replace(self._folder / name)
        except BaseException:
            fresh.unlink()
            raise
