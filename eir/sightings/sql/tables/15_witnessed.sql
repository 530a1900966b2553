-- Members of SIM boxes, and devices whose TAC is not in the list, with each subscriber, by the peer that sent the checks. Only checks that are evidence count.
SELECT seen.device, seen.subscriber, claims.peer, CAST(SUM(seen.checks) AS BIGINT) AS checks, BIT_OR(seen.days) AS days
FROM seen JOIN (
  SELECT device FROM box
  UNION
  SELECT device FROM turns
  UNION
  SELECT devices.device
  FROM devices LEFT JOIN tac_db ON devices.tac = tac_db.tac
  JOIN (SELECT COUNT(*) AS rows FROM tac_db) AS listed ON TRUE
  WHERE listed.rows > 0 AND tac_db.tac IS NULL AND NOT devices.tac IS NULL
) AS watched ON seen.device = watched.device
JOIN claims ON seen.origin = claims.origin AND seen.peer = claims.peer
WHERE claims.is_believed = 1
GROUP BY seen.device, seen.subscriber, claims.peer
