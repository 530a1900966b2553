"""Follower: it follows a store's changes with the lists in memory and with this node's last good copy, for any store."""
