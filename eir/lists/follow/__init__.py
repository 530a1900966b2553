"""Follower: keeps the lists in memory and this node's last good copy equal to the lists in the store.

It works with any store.
"""
