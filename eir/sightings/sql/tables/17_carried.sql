-- Ordinary traffic of each origin and peer: a sample of about 60,000 phones with one subscriber, and the pairs of origin and peer that reported the phone on two days or more.
-- `share`: one of `share` devices is in the sample.
SELECT sightings.device, claims.claim, MIN(sampled.share) AS share
FROM sightings JOIN (
  SELECT devices.device, size.share
  FROM devices JOIN (SELECT CAST(GREATEST(FLOOR(COUNT(*) / 60000), 1) AS BIGINT) AS share FROM devices) AS size ON TRUE
  WHERE devices.subscribers = 1 AND devices.device % size.share = 0
) AS sampled ON sightings.device = sampled.device
JOIN claims ON sightings.origin_host = claims.origin AND COALESCE(sightings.peer, sightings.origin_host) = claims.peer
WHERE claims.is_believed = 1
GROUP BY sightings.device, claims.claim
HAVING COUNT(DISTINCT sightings.day) >= 2
