"""What checks have shown over time: sightings, from the worker that answered to files, and what is found in them.

`buffer` is the worker's side and costs a check next to nothing; `batches`, `subscribers` and `files` make Parquet files of what it
hands over, by `schema`; `events` and `deliver` are what goes out at once; `seen` and `intake` read and take in for people. May
import eir.device and eir.errors; knows neither policy nor protocol nor configuration file.
"""
