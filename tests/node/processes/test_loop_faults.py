"""Faults on the event loop that nobody waits for: a line of the log each, without what the fault says."""

import asyncio

import pytest
import uvloop

from eir.node.observe.log import report_faults


def fail():
    raise ValueError("001010123456789")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_call_that_fails_is_a_line_with_its_place(run):
    said = []

    async def main():
        report_faults(lambda event, **fields: said.append((event, fields)))
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())
    ((event, fields),) = said
    assert (event, fields["reason"], fields["level"]) == ("fault", "loop", "error")
    assert f"ValueError at {__file__}:{fail.__code__.co_firstlineno + 1}" in fields["detail"]
    assert "001010123456789" not in fields["detail"]


@pytest.mark.parametrize(
    ("fault", "level"), [(RuntimeError("closed"), "debug"), (OSError(9, "bad"), "debug"), (KeyError("a bug"), "error")]
)
def test_a_transport_on_its_way_out_is_no_fault(fault, level):
    said = []

    async def main():
        report_faults(lambda _, **fields: said.append(fields["level"]))
        asyncio.get_running_loop().call_exception_handler(
            {"message": "Fatal error", "exception": fault, "transport": None}
        )

    asyncio.run(main())
    assert said == [level]
