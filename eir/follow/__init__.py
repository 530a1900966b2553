"""From a store's changes to the lists in memory, and this node's last good copy. Knows no particular store."""
