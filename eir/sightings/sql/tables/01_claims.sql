-- Pairs of an origin and a peer that sends checks of this origin, with the number of the origin (`number`), the number of the pair (`claim`) and the operator (`realm`).
-- A check is evidence only if its peer sends at least a tenth of the checks of the origin, and if neither origin nor peer is distrusted (`is_believed`).
SELECT
  origin, peer, realm, checks, CAST(DENSE_RANK() OVER (ORDER BY origin) AS INTEGER) AS number, CAST(ROW_NUMBER() OVER (ORDER BY origin, peer) AS INTEGER) AS claim,
  CASE
    WHEN checks * 10 >= of_all AND NOT peer IN (SELECT distrusted.reporter FROM distrusted) AND NOT origin IN (SELECT distrusted.reporter FROM distrusted) THEN 1
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
