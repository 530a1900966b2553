"""Record of checks (sightings): collection from the answering process, files, events, and analysis.

`buffer` runs in the answering process and adds very little time to a check. `batches`, `subscribers` and `files` write its messages to
Parquet files according to `schema`. `events` and `deliver` send events at once. `seen` and `intake` search and import records.
`refusals` and `figures` count them for the public.
Independent of policy, protocols and the configuration file.
"""
