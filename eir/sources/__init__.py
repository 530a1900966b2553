"""Where lists come from besides a drop folder: pulled from a publisher's folder, acknowledged. On the path of no check.

May import stores and lists, and what stands below them; the daemon has all of it done in processes that answer nobody.
"""
