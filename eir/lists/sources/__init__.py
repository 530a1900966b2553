"""Sources of lists besides a drop folder: pulled from a publisher's folder, acknowledged, fed row by row.

On the path of no check.
"""
