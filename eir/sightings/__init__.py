"""Sightings: what checks have shown over time, on the way from workers to files, and what is found in these.

`buffer` is the worker's side and costs a check next to nothing; `batches`, `subscribers` and `files` make Parquet files
of what it hands over, by `schema`; `events` and `deliver` send events out at once; `seen` and `intake` read and import
for people. May import eir.device and eir.errors; knows neither policy nor protocol nor configuration file.
"""
