"""Sightings, which are what checks have shown over time: from the worker that answered to files, and findings in them.

`buffer` is the worker's side and costs a check next to nothing; `batches`, `subscribers` and `files` make Parquet files
of what it hands over, by `schema`; `events` and `deliver` send events out at once; `seen` and `intake` read and import
for people. May import eir.device and eir.errors; knows neither policy nor protocol nor configuration file.
"""
