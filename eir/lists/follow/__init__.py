"""Follower: updates the lists in memory and this node's copies and journal, so that they equal the lists in the store.

It works with any store.
"""
