-- Origins whose 15-digit IMEIs carry the right check digit nearly always, by a sample of their devices.
SELECT origin
FROM (
  SELECT
    sightings.origin_host AS origin, COUNT(*) AS seen,
    SUM(CASE WHEN LUHN(sightings.device) = CAST(SUBSTRING(sightings.imei, 15, 1) AS INTEGER) THEN 1 ELSE 0 END) AS right_ones
  FROM sightings JOIN parameters ON TRUE
  WHERE LENGTH(sightings.imei) = 15 AND sightings.device < 100000000000000 AND sightings.device % (parameters.sample_one_of * 8) = 0
  GROUP BY sightings.origin_host
) AS counted
WHERE seen >= 50 AND right_ones * 100 >= 98 * seen
