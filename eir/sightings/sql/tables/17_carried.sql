-- Ordinary traffic of each origin and peer: a sample of about 60,000 phones with one subscriber, and the pairs of origin and peer that reported the phone on two days or more.
-- `share`: one of `share` devices is in the sample.
SELECT seen.device, claims.claim, MIN(sampled.share) AS share
FROM seen JOIN (
  SELECT devices.device, size.share
  FROM devices JOIN (SELECT CAST(GREATEST(FLOOR(COUNT(*) / 60000), 1) AS BIGINT) AS share FROM devices) AS size ON TRUE
  WHERE devices.subscribers = 1 AND devices.device % size.share = 0
) AS sampled ON seen.device = sampled.device
JOIN claims ON seen.origin = claims.origin AND seen.peer = claims.peer
WHERE claims.is_believed = 1
GROUP BY seen.device, claims.claim
HAVING BIT_COUNT(BIT_OR(seen.days)) >= 2
