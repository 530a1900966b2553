-- Allocated TACs, one row each. A TAC may be in two lists, or have two types.
SELECT tac, MIN(allocated) AS allocated, MAX(is_module) AS is_module FROM allocations GROUP BY tac
