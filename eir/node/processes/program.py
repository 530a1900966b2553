"""Processes of a node as programs: `spawn` starts one, and `main` is its first function.

A process inherits only the descriptors that it is given, and its nice value is set once.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import NoReturn

from eir.errors import ConfigError, EirError, SetupFault
from eir.node.observe.log import with_priority
from eir.node.processes import deliver
from eir.node.processes.state_folder import as_owner_of

SETUP_STATUS = 2
"""Exit status of a process that has ended for a SetupFault, which a restart cannot remove."""


async def spawn(
    name: str, work: str, *arguments: str, owned: Path, nice: int = 0, descriptors: Sequence[int] = (), pipe: int | None = None
) -> asyncio.subprocess.Process:  # fmt: skip
    """Start a process that runs the function `work`; its exit status is the result of the function.

    Args:
        name: name of the process in `ps` and `top`, after `eir-`.
        work: module and name of the function, as MODULE:FUNCTION.
        arguments: arguments of the function.
        owned: folder for as_owner_of.
        nice: nice value, unless that of this process is higher.
        descriptors: descriptors that the process inherits, with the same numbers.
        pipe: asyncio.subprocess.PIPE for pipes to standard input and from standard output; None: no input, and the output of this process.

    Raises:
        OSError: if the host has no descriptor, memory or process left.
    """
    command = (sys.executable, "-P", "-m", __name__, name, str(nice), str(owned), work, *arguments)
    given = asyncio.subprocess.DEVNULL if pipe is None else pipe
    return await asyncio.create_subprocess_exec(
        *command, stdin=given, stdout=pipe, pass_fds=descriptors, limit=LINE_BYTES_MAX
    )


LINE_BYTES_MAX = 1 << 26
"""Maximum bytes of a line on the standard output of a process."""


def main() -> NoReturn:
    """Run the function that the command line names, and exit with its result.

    Signals of a terminal are ignored, because the manager handles them.
    """
    status = 1
    name, nice, owned, work, *arguments = sys.argv[1:]
    try:
        set_process_name(name)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        deliver()
        with suppress(OSError):  # a filter of system calls may forbid it
            os.setpriority(os.PRIO_PROCESS, 0, max(int(nice), os.getpriority(os.PRIO_PROCESS, 0)))
        function = resolve_name(work)
        with as_owner_of(Path(owned)):
            status = function(*arguments)
    except (SetupFault, ConfigError) as e:
        status = SETUP_STATUS
        print(with_priority("error", f"eir: {e}"), file=sys.stderr)
    except EirError as e:
        print(with_priority("error", f"eir: {e}"), file=sys.stderr)
    except BaseException as e:  # noqa: BLE001 - outermost frame of the process: log the exception and exit
        print(with_priority("error", f"eir: the process {name} ends: {type(e).__name__}: {e}"), file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def set_process_name(name: str) -> None:
    """Set this process's name in `ps` and `top` to eir-NAME."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"eir-{name}")


if __name__ == "__main__":
    main()
