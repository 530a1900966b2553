-- Who says what: each origin with each peer that sends its checks, by the number of the origin and by one of both. An agent sends those of many, and an origin may come by several; but a
-- peer that sends less than a tenth of an origin's checks is not how they come: what it says there is no evidence, nor is what a peer says
-- that was left out.
SELECT
  origin, peer, checks, CAST(DENSE_RANK() OVER (ORDER BY origin) AS INTEGER) AS number, CAST(ROW_NUMBER() OVER (ORDER BY origin, peer) AS INTEGER) AS claim,
  CASE WHEN checks * 10 >= of_all AND NOT peer IN (SELECT liars.peer FROM liars) THEN 1 ELSE 0 END AS is_believed
FROM (
  SELECT origin, peer, checks, SUM(checks) OVER (PARTITION BY origin) AS of_all
  FROM (
    SELECT origin_host AS origin, COALESCE(peer, origin_host) AS peer, COUNT(*) AS checks
    FROM sightings
    WHERE NOT origin_host IS NULL
    GROUP BY 1, 2
  ) AS counted
) AS shares
