"""Lists: signed releases, the rows in them, what a store must keep, and the index that answers from memory.

May import eir.device and eir.errors; knows neither Diameter nor configuration nor any particular store.
"""
