"""The command `eir`, also as `python -m eir`.

`eir serve` holds its signals before anything else: to read the commands takes a third of a second, and numpy makes threads.
"""

import sys
from collections.abc import Sequence

from eir.signals import hold


def main() -> None:
    """Run the command line; see eir.cli."""
    if _command(sys.argv[1:]) == "serve":
        hold()
    from eir import cli  # noqa: PLC0415 - see above

    cli.main()


def _command(arguments: Sequence[str]) -> str | None:
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
