-- Devices, and origins, with IMEIs of 15 digits whose last is neither the check digit (TS 23.003 6.2.1) nor a spare 0. Counted after the
-- join: as a filter before it, the test would be made on all sightings.
SELECT
  sightings.device, sightings.origin_host AS origin,
  SUM(CASE WHEN LENGTH(sightings.imei) = 15 AND NOT SUBSTRING(sightings.imei, 15, 1) IN ('0', CAST(LUHN(sightings.device) AS VARCHAR)) THEN 1 ELSE 0 END) AS wrong_ones
FROM sightings
JOIN (
  SELECT DISTINCT device
  FROM detail
  WHERE device < 100000000000000 AND (
    (LENGTH(imei_low) = 15 AND NOT SUBSTRING(imei_low, 15, 1) IN ('0', CAST(LUHN(device) AS VARCHAR)))
    OR (LENGTH(imei_high) = 15 AND NOT SUBSTRING(imei_high, 15, 1) IN ('0', CAST(LUHN(device) AS VARCHAR)))
  )
) AS candidates ON sightings.device = candidates.device
GROUP BY sightings.device, sightings.origin_host
