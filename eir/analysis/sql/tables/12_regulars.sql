-- Each shared device: subscribers who come back day after day, and how many of them there are on a day with any.
SELECT
  usage.device, COUNT(*) AS regulars, CAST(SUM(usage.day_count) AS DOUBLE) / BIT_COUNT(BIT_OR(usage.days)) AS a_day
FROM usage JOIN shared ON usage.device = shared.device JOIN parameters ON TRUE
WHERE usage.day_count >= parameters.regular_days
GROUP BY usage.device
