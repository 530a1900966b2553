-- Order and number of checks: random as from several phones, or in blocks or together as from one phone. For two subscribers this evidence alone is limited below the export, because two SIMs
-- of one phone may be checked independently. Such phones are in the record if it has the subscribers of several networks: the more shared devices have those (`mixed.share`), the weaker is order
-- alone. Evidence of place or version shows several phones, so it reverses the reduction.
SELECT
  evidence.device,
  LEAST(
    {intercept} + {blocks} * blocks + {lockstep} * lockstep + {uneven} * uneven + {switches} * switches + {members} * members + {busy} * busy
      + LEAST(GREATEST({places} * places, 0) + GREATEST({versions_two} * versions_two + {versions_one} * versions_one, 0), {both} + {alone} * mixed.share) - {alone} * mixed.share,
    CASE WHEN member_count = 2 THEN {likely} ELSE 30.0 END
  ) AS says,
  CONCAT(
    'subscribers who came back: ', CAST(devices.regulars AS VARCHAR),
    CASE WHEN devices.regulars > member_count THEN CONCAT(', of whom the busiest ', CAST(member_count AS VARCHAR), ' are looked at') ELSE '' END,
    '; they change ', CAST(changes AS VARCHAR), ' times; the busiest two in ', CAST(CAST(COALESCE(runs, 0) AS BIGINT) AS VARCHAR),
    ' runs, where two phones give ', CAST(CAST(ROUND(COALESCE(expected, 0)) AS BIGINT) AS VARCHAR), ' by chance, give or take ', CAST(CAST(ROUND(2 * COALESCE(deviation, 0)) AS BIGINT) AS VARCHAR)
  ) AS evidence
FROM evidence JOIN devices ON evidence.device = devices.device
JOIN (SELECT AVG(CASE WHEN home_count > 1 THEN 1.0 ELSE 0.0 END) AS share FROM evidence) AS mixed ON TRUE
