-- DIRBS: all its subscribers are of other networks, by the first digits of their IMSIs.
SELECT usage.device, 1.0 AS strength, 'all its subscribers are of other networks' AS evidence
FROM usage LEFT JOIN home ON SUBSTRING(usage.home, 1, LENGTH(home.prefix)) = home.prefix JOIN parameters ON TRUE
WHERE parameters.has_home = 1
GROUP BY usage.device
HAVING COUNT(home.prefix) = 0
