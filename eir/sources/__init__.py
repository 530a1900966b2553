"""Where lists come from besides a drop folder: pulled from a publisher's folder, acknowledged, fed row by row. On the path of no check.

May import stores, lists and web, and what stands below them; the daemon has all of it done in processes that answer no check.
"""
