"""polars, imported with the settings that it reads from the environment at its import. The import needs 30 MB and 0.2 s."""

import os

os.environ.setdefault("POLARS_MAX_THREADS", "1")
# By default polars returns freed memory to the system after some 0.5 s. A search that reads file after file then has a page fault
# for each page of each file, and page faults delay the checks on the same processor. The last value of an option applies.
os.environ["_RJEM_MALLOC_CONF"] = (os.environ.get("_RJEM_MALLOC_CONF", "") + ",dirty_decay_ms:10000").lstrip(",")

import polars as pl

__all__ = ["pl"]
