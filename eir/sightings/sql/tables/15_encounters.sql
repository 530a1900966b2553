-- Each shared device: how its subscribers follow one another.
SELECT
  device, COUNT(*) AS switches, SUM(is_conflict) AS conflicts,
  CAST(COUNT(DISTINCT CASE WHEN is_conflict = 1 THEN day END) AS BIGINT) AS conflict_days,
  SUM(CASE WHEN is_conflict = 0 AND gap_s <= 120 THEN 1 ELSE 0 END) AS together
FROM switches
GROUP BY device
