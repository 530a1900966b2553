-- Origins that are near to most others, as SIMs change between them or phones move: so is one that claims to see everybody's phones. Where nothing
-- else is known, it is no evidence of another place.
SELECT near.origin
FROM (
  SELECT a AS origin, b AS other FROM pools
  UNION
  SELECT a AS origin, b AS other FROM pace WHERE fastest_s < 300
  UNION
  SELECT b AS origin, a AS other FROM pace WHERE fastest_s < 300
) AS near
JOIN (SELECT COUNT(*) AS origins FROM located) AS network ON TRUE
GROUP BY near.origin, network.origins
HAVING COUNT(*) * 2 > network.origins
