"""Follower: it keeps the lists in memory and this node's last good copy equal to the store.

It works with any store.
"""
