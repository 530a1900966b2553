"""Reports of the event loop about faults that nobody waits for, as lines of our log. May import eir.errors."""

import asyncio
from collections.abc import Callable
from typing import Any

from eir.errors import Report, place_of


def call_failed(report: Report, **who: Any) -> Callable[[str, Exception], None]:
    """Return what reports a fault of ours in a call of another process (Channel.serve). `who`: as the log names it."""
    return lambda what, fault: report("fault", reason=what, level="error", detail=place_of(fault), **who)


def report_faults(report: Report) -> None:
    """Have the running loop report faults by `report`: event `fault`, with the place in the code.

    Errors while a connection is closing are reported at debug level: the stores' TLS connections fail so when a node
    ends.
    """

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        going = "transport" in context and isinstance(fault, OSError | RuntimeError)
        detail = context["message"] if fault is None else f"{context['message']}: {place_of(fault)}"
        report("fault", reason="loop", level="debug" if going else "error", detail=detail)

    asyncio.get_running_loop().set_exception_handler(handle)
