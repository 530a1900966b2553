"""Follower: updates the lists in memory and this node's last good copy, so that both equal the lists in the store.

It works with any store.
"""
