-- Each origin with each peer that sends its checks, by the number of the origin and by one of both; realm: its operator. A peer that sends less than a
-- tenth of an origin's checks is not the way by which they come: its checks of that origin are no evidence, and neither are those of a distrusted origin or peer.
SELECT
  origin, peer, realm, checks, CAST(DENSE_RANK() OVER (ORDER BY origin) AS INTEGER) AS number, CAST(ROW_NUMBER() OVER (ORDER BY origin, peer) AS INTEGER) AS claim,
  CASE
    WHEN checks * 10 >= of_all AND NOT peer IN (SELECT distrusted.voice FROM distrusted) AND NOT origin IN (SELECT distrusted.voice FROM distrusted) THEN 1
    ELSE 0
  END AS is_believed
FROM (
  SELECT origin, peer, realm, checks, SUM(checks) OVER (PARTITION BY origin) AS of_all
  FROM (
    SELECT origin_host AS origin, COALESCE(peer, origin_host) AS peer, MIN(COALESCE(origin_realm, '')) AS realm, COUNT(*) AS checks
    FROM sightings
    WHERE NOT origin_host IS NULL
    GROUP BY 1, 2
  ) AS counted
) AS shares
