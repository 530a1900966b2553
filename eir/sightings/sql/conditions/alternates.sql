-- Order and number of checks: random as from several phones, or in blocks or together as from one phone. For two subscribers this evidence alone is limited below the export, because two SIMs
-- of one phone may be checked independently.
SELECT
  evidence.device,
  LEAST(
    {intercept} + {blocks} * blocks + {lockstep} * lockstep + {uneven} * uneven + {switches} * switches + {members} * members + {busy} * busy,
    CASE WHEN member_count = 2 THEN {likely} ELSE 30.0 END
  ) AS says,
  CONCAT(
    'subscribers who came back: ', CAST(devices.regulars AS VARCHAR),
    CASE WHEN devices.regulars > member_count THEN CONCAT(', of whom the busiest ', CAST(member_count AS VARCHAR), ' are looked at') ELSE '' END,
    '; they change ', CAST(changes AS VARCHAR), ' times; the busiest two in ', CAST(CAST(COALESCE(runs, 0) AS BIGINT) AS VARCHAR),
    ' runs, where two phones give ', CAST(CAST(ROUND(COALESCE(expected, 0)) AS BIGINT) AS VARCHAR), ' by chance, give or take ', CAST(CAST(ROUND(2 * COALESCE(deviation, 0)) AS BIGINT) AS VARCHAR)
  ) AS evidence
FROM evidence JOIN devices ON evidence.device = devices.device
