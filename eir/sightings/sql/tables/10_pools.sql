-- Origins of one pool, each SIM of which keeps its MME (TS 23.236), so that no phone with one SIM ever shows that they meet: either way. Two
-- SIMs in one slot, a family, a router are far more than copies, and each of them is at one place: two origins that have about as many
-- devices between them as each has by itself are of one pool.
SELECT between_them.a, between_them.b
FROM (
  SELECT a, b, devices FROM changes WHERE a <> b
  UNION ALL
  SELECT b AS a, a AS b, devices FROM changes WHERE a <> b
) AS between_them
LEFT JOIN changes AS here ON between_them.a = here.a AND between_them.a = here.b
LEFT JOIN changes AS there ON between_them.b = there.a AND between_them.b = there.b
WHERE between_them.devices >= 3
  AND between_them.devices * 4 >= LEAST(COALESCE(here.devices, 0), COALESCE(there.devices, 0))
  AND (COALESCE(here.devices, 0) + COALESCE(there.devices, 0)) * 8 >= between_them.devices
