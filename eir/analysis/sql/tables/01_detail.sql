-- Each device with each subscriber and software version: the one pass over all sightings. Bit n of days: seen on day n of the window.
SELECT
  device, subscriber, software_version AS version,
  CAST(SUM(checks) AS BIGINT) AS checks, MIN(time) AS first_seen, MAX(last) AS last_seen,
  BIT_OR(CAST(1 AS BIGINT) << day) AS days,
  MIN(imei) AS imei_low, MAX(imei) AS imei_high,
  MAX(CASE WHEN status = 'blacklisted' THEN 1 ELSE 0 END) AS blocked,
  MAX(CASE WHEN protocol = 'n5g' THEN 1 ELSE 0 END) AS by_n5g,
  MIN(home) AS home
FROM sightings
WHERE device IS NOT NULL
GROUP BY device, subscriber, software_version
