"""Entry point of the command `eir` and of `python -m eir`.

`eir serve` blocks its signals first, because importing its modules takes a while and numpy starts threads.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from eir.node.processes import block

TUNABLES, LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
"""Environment variable of the GNU C library (2.35 and later; others ignore it), and its value."""
OTHERS_WRITE = 0o002


def main() -> None:
    """Run the command line with a umask that prevents other users from writing the created files."""
    present = os.umask(OTHERS_WRITE)
    os.umask(present | OTHERS_WRITE)
    word = _first_word(sys.argv[1:])
    if word == "serve":
        block()
        _use_large_pages()
    from eir.cli import app  # noqa: PLC0415 - takes a while, so signals are blocked before it

    app.main(word)


def _use_large_pages() -> None:
    """Restart this process with the glibc setting that allocates the heap in huge pages.

    A lookup in a list of 100 million entries reads memory that is not in the cache, and small pages need more address
    translations. The library reads the variable only at the start of a process, and ignores it if the kernel has no
    huge pages. A value that the operator has set is kept.
    """
    if TUNABLES in os.environ:
        return
    os.environ[TUNABLES] = LARGE_PAGES
    with suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this program itself


def _first_word(arguments: Sequence[str]) -> str | None:
    """Return the name of the command in the arguments: the first argument that is neither an option nor the value of -c."""
    rest = iter(arguments)
    for argument in rest:
        if argument in {"-c", "--config"}:
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return None


if __name__ == "__main__":
    main()
