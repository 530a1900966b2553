"""Follows a store's changes with the lists in memory, and with this node's last good copy.

Knows no particular store.
"""
