-- Each origin with its configured place, its operator, and its MME group if the name has one (TS 23.003 19.4.2.4).
SELECT
  named.number, named.origin, named.realm, MIN(places.latitude) AS latitude, MIN(places.longitude) AS longitude,
  CASE WHEN named.origin LIKE 'mmec%.mmegi%' THEN SUBSTRING(named.origin, STRPOS(named.origin, '.mmegi')) END AS pool
FROM (SELECT number, origin, MIN(realm) AS realm FROM claims GROUP BY number, origin) AS named
LEFT JOIN places ON named.origin = places.origin
GROUP BY named.number, named.origin, named.realm
