-- How far the configured places of origins are apart (haversine), in seconds at the speed that no phone exceeds.
SELECT
  a.number AS a, b.number AS b,
  2 * 6371 * ASIN(SQRT(
    POWER(SIN(RADIANS(b.latitude - a.latitude) / 2), 2)
    + COS(RADIANS(a.latitude)) * COS(RADIANS(b.latitude)) * POWER(SIN(RADIANS(b.longitude - a.longitude) / 2), 2)
  )) / parameters.speed_max * 3600 AS fastest_s
FROM (SELECT places.latitude, places.longitude, origins.number FROM places JOIN origins ON places.origin = origins.origin) AS a
JOIN (SELECT places.latitude, places.longitude, origins.number FROM places JOIN origins ON places.origin = origins.origin) AS b ON a.number < b.number
JOIN parameters ON TRUE
