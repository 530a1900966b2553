"""The drop folder: its content, the releases in it that are loaded, and their order.

May import changes and what it may.
"""
