"""The command `eir`, also as `python -m eir`.

`eir serve` holds its signals before anything else: to read its modules takes a while, and numpy makes threads.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from eir.node.processes import block

TUNABLES, LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
"""Environment variable of the GNU C library (2.35 and later; others do not know it), and the setting."""
OTHERS_WRITE = 0o002


def main() -> None:
    """Run the command line; see eir.cli.app. No file that it makes can be written by everyone, whatever the umask is."""
    os.umask(os.umask(OTHERS_WRITE) | OTHERS_WRITE)
    word = _first_word(sys.argv[1:])
    if word == "serve":
        block()
        _use_large_pages()
    from eir.cli import app  # noqa: PLC0415 - takes a while, in which signals are blocked already

    app.main(word)


def _use_large_pages() -> None:
    """Begin again, as the same process, with the C library's heap in large pages of memory, where the kernel grants them.

    A look-up in a list of a hundred million entries is a walk through cold memory, and with small pages the processor has to
    find out where each piece of it is. The library reads this when a process begins; what an operator has set there stays.
    """
    if TUNABLES not in os.environ:
        os.environ[TUNABLES] = LARGE_PAGES
        with suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this very program


def _first_word(arguments: Sequence[str]) -> str | None:
    """The first argument that is neither an option nor the file behind -c."""
    left = iter(arguments)
    for argument in left:
        if argument in {"-c", "--config"}:
            next(left, None)
        elif not argument.startswith("-"):
            return argument
    return None


if __name__ == "__main__":
    main()
