"""polars, imported with the settings that it reads from the environment at its import. The import needs 30 MB and 0.2 s."""

import os

os.environ.setdefault("POLARS_MAX_THREADS", "1")
# polars returns freed memory to the system after 0.5 s by default. A search that reads file after file then has a page fault
# for each page of each file, and page faults delay the checks on the same processor.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:5000")

import polars as pl

__all__ = ["pl"]
