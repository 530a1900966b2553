"""polars, imported with the settings that it reads from the environment at its import. The import needs 30 MB and 0.2 s."""

import os

os.environ.setdefault("POLARS_MAX_THREADS", "1")
# By default polars returns freed memory to the system after some 0.5 s. A search that reads file after file then has a page fault
# for each page of each file, and page faults delay the checks on the same processor. The last value of an option applies.
_MALLOC = "_RJEM_MALLOC_CONF"
_before = os.environ.get(_MALLOC)
os.environ[_MALLOC] = "dirty_decay_ms:10000" if not _before else f"{_before},dirty_decay_ms:10000"

import polars as pl  # noqa: E402 - after its settings

if _before is None:  # a program that this one starts must not inherit the option
    del os.environ[_MALLOC]
else:
    os.environ[_MALLOC] = _before

__all__ = ["pl"]
