"""Hosts, peers, servers, faults and records of simulated networks, for tests, `bench` and `soak`.

The generators of records (`networks`, `networks_shared`, `world`, `world_other`, `world_facts`, `attacks`) write the truth beside each record.
"""
