-- Devices in which two subscribers, or two software versions, overlap in time: one that comes after the other has gone is a sale,
-- a repair or an update, and needs no closer look.
SELECT device
FROM (
  SELECT
    usage.device, usage.first_seen,
    MAX(usage.last_seen) OVER (
      PARTITION BY usage.device ORDER BY usage.first_seen, usage.subscriber ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS others_last
  FROM usage JOIN devices ON usage.device = devices.device
  WHERE devices.subscribers > 1
) AS by_subscriber
WHERE first_seen < others_last
UNION
SELECT device
FROM (
  SELECT
    device, first_seen,
    MAX(last_seen) OVER (PARTITION BY device ORDER BY first_seen, version ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS others_last
  FROM (SELECT device, version, MIN(first_seen) AS first_seen, MAX(last_seen) AS last_seen FROM detail WHERE NOT version IS NULL GROUP BY device, version) AS versions
) AS by_version
WHERE first_seen < others_last
