-- DIRBS, by subscriber where it looks at numbers: so many subscribers that were each seen on one day alone, over days enough.
SELECT
  usage.device, 1.0 AS strength, CONCAT(CAST(COUNT(*) AS VARCHAR), ' subscribers, each on one day alone') AS evidence
FROM usage JOIN parameters ON TRUE
GROUP BY usage.device, parameters.transient_days, parameters.transient_subscribers
HAVING MAX(usage.day_count) = 1 AND COUNT(*) >= parameters.transient_subscribers AND BIT_COUNT(BIT_OR(usage.days)) >= parameters.transient_days
