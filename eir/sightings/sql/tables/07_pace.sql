-- How soon a phone that one person carries was seen at one origin after another, either way: of a hundred such moves, the second shortest. Known
-- of origins between which there were twenty moves or more.
-- Where soon after one another is as usual for such moves as for checks at one place, the two origins meet, and a phone needs no time.
SELECT
  pairs.a, pairs.b, pairs.moves,
  CASE WHEN pairs.soon >= 0.2 * usual.soon THEN 0.0 ELSE pairs.fastest_s / 2 END AS fastest_s
FROM (
  SELECT
    a, b, COUNT(*) AS moves, CAST(MIN(CASE WHEN place * 50 >= of_all THEN gap_s END) AS DOUBLE) AS fastest_s,
    AVG(CASE WHEN gap_s < 900 THEN 1.0 ELSE 0.0 END) AS soon
  FROM (
    SELECT a, b, gap_s, ROW_NUMBER() OVER (PARTITION BY a, b ORDER BY gap_s) AS place, COUNT(*) OVER (PARTITION BY a, b) AS of_all
    FROM moves
    WHERE a <> b
  ) AS ranked
  GROUP BY a, b
  HAVING COUNT(*) >= 20
) AS pairs
JOIN (SELECT AVG(CASE WHEN gap_s < 900 THEN 1.0 ELSE 0.0 END) AS soon FROM moves WHERE a = b) AS usual ON TRUE
