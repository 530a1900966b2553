-- DIRBS: so many subscribers, or more, on an average day with any, over days enough.
SELECT
  device, 1.0 AS strength, CONCAT(CAST(ROUND(a_day, 1) AS VARCHAR), ' subscribers on an average day') AS evidence
FROM (
  SELECT device, CAST(SUM(day_count) AS DOUBLE) / BIT_COUNT(BIT_OR(days)) AS a_day, BIT_COUNT(BIT_OR(days)) AS seen
  FROM usage
  GROUP BY device
) AS averages JOIN parameters ON TRUE
WHERE a_day >= parameters.duplicate_daily_avg AND seen >= parameters.duplicate_days_min
