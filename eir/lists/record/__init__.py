"""Interface of a store of lists; hash chains of the history; reasons and dates of entries; settings of lists."""
