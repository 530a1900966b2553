-- Each origin: where it is, if the configuration says so, and whose pool it is of: that of its group, where it is called as TS 23.003 has it.
SELECT
  named.number, named.origin, MIN(places.latitude) AS latitude, MIN(places.longitude) AS longitude,
  CASE WHEN named.origin LIKE 'mmec%.mmegi%' THEN SUBSTRING(named.origin, STRPOS(named.origin, '.mmegi')) ELSE named.origin END AS pool
FROM (SELECT DISTINCT number, origin FROM claims) AS named
LEFT JOIN places ON named.origin = places.origin
GROUP BY named.number, named.origin
