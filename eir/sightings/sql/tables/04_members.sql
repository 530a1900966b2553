-- Subscribers of shared devices, numbered from the busiest. A device is shared if the periods of two subscribers overlap: subscribers without overlap are a sale or a
-- repair. A subscriber who was seen on one day only is no evidence. Of each device the 100 busiest subscribers are evaluated.
SELECT device, subscriber, home, CAST(rank AS INTEGER) AS number
FROM (
  SELECT
    device, subscriber, home, ROW_NUMBER() OVER (PARTITION BY device ORDER BY checks DESC, subscriber) AS rank,
    MAX(is_beside) OVER (PARTITION BY device) AS is_shared
  FROM (
    SELECT
      usage.device, usage.subscriber, usage.checks, usage.home,
      CASE WHEN usage.first_seen < MAX(usage.last_seen) OVER (
        PARTITION BY usage.device ORDER BY usage.first_seen, usage.subscriber ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
      ) THEN 1 ELSE 0 END AS is_beside
    FROM usage JOIN devices ON usage.device = devices.device
    WHERE usage.day_count >= 2 AND devices.regulars > 1 AND usage.subscriber IS NOT NULL
  ) AS followed
) AS ranked
WHERE is_shared = 1 AND rank <= 100
