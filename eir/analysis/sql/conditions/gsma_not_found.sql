-- DIRBS: a TAC that the list lacks, once its reporting body has had the days that it takes to tell.
SELECT devices.device, 1.0 AS strength, 'its TAC is not in the list of TACs' AS evidence
FROM devices JOIN parameters ON TRUE
LEFT JOIN tac_db ON devices.tac = tac_db.tac
LEFT JOIN delays ON CAST(FLOOR(devices.tac / 1000000) AS BIGINT) = delays.body
WHERE tac_db.tac IS NULL AND parameters.has_tac_db = 1
  AND INSTANT_S(parameters.until) - INSTANT_S(devices.first_seen) >= COALESCE(delays.days, 0) * 86400
