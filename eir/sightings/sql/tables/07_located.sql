-- Each origin with its configured place, its operator, and its MME group if the name has one (TS 23.003 19.4.2.4).
SELECT
  origins.number, origins.origin, origins.realm, MIN(places.latitude) AS latitude, MIN(places.longitude) AS longitude,
  CASE WHEN origins.origin LIKE 'mmec%.mmegi%' THEN SUBSTRING(origins.origin, STRPOS(origins.origin, '.mmegi')) END AS pool
FROM (SELECT number, origin, MIN(realm) AS realm FROM claims GROUP BY number, origin) AS origins
LEFT JOIN places ON origins.origin = places.origin
GROUP BY origins.number, origins.origin, origins.realm
