-- What its TAC says: barred, for tests, allocated after it was seen, or never by the list. A list knows no models that are newer than itself:
-- once its newest row is older than two months, only a body that it has no TAC of at all is sure; and where five devices or more show one
-- unknown TAC, two of them by other peers than the one that has most, it is rather a new model. A list with one date for all has none.
SELECT
  devices.device,
  CASE
    WHEN NOT barred.tac IS NULL THEN {barred}
    WHEN NOT tac_db.tac IS NULL AND tac_db.allocated > CAST(devices.first_seen AS DATE) THEN {allocated_later}
    WHEN NOT tac_db.tac IS NULL OR listed.rows = 0 THEN {test_tac}
    WHEN bodies.body IS NULL THEN {no_body}
    WHEN (tacs.devices >= parameters.new_model_devices AND (tacs.devices >= shown.by_one + 2 OR senders.peers = 1)) OR (listed.newest > listed.oldest AND DATE_DIFF('day', listed.newest, CAST(parameters.until AS DATE)) > 60) THEN {newer_model}
    ELSE {not_allocated}
  END AS says,
  CASE
    WHEN NOT barred.tac IS NULL THEN 'a TAC that is barred'
    WHEN NOT tac_db.tac IS NULL AND tac_db.allocated > CAST(devices.first_seen AS DATE) THEN CONCAT('its TAC was allocated on ', CAST(tac_db.allocated AS VARCHAR), ', after it was first seen')
    WHEN NOT tac_db.tac IS NULL OR listed.rows = 0 THEN 'a TAC for tests'
    ELSE CONCAT('its TAC is not in the list, whose newest is of ', COALESCE(CAST(listed.newest AS VARCHAR), 'no day'), '; devices that show it: ', CAST(tacs.devices AS VARCHAR))
  END AS evidence
FROM devices
JOIN (SELECT tac, COUNT(*) AS devices FROM devices GROUP BY tac) AS tacs ON devices.tac = tacs.tac
JOIN parameters ON TRUE
JOIN (SELECT MAX(allocated) AS newest, MIN(allocated) AS oldest, COUNT(*) AS rows FROM tac_db) AS listed ON TRUE
JOIN (SELECT COUNT(DISTINCT peer) AS peers FROM claims) AS senders ON TRUE
LEFT JOIN (
  SELECT tac, MAX(devices) AS by_one
  FROM (
    SELECT devices.tac, witnessed.peer, COUNT(DISTINCT witnessed.device) AS devices
    FROM witnessed JOIN devices ON witnessed.device = devices.device
    GROUP BY devices.tac, witnessed.peer
  ) AS by_peer
  GROUP BY tac
) AS shown ON devices.tac = shown.tac
LEFT JOIN tac_db ON devices.tac = tac_db.tac
LEFT JOIN barred ON devices.tac = barred.tac
LEFT JOIN (SELECT DISTINCT CAST(FLOOR(tac / 1000000) AS BIGINT) AS body FROM tac_db) AS bodies ON CAST(FLOOR(devices.tac / 1000000) AS BIGINT) = bodies.body
WHERE devices.device % 11111111111111 <> 0 AND (
  NOT barred.tac IS NULL OR (listed.rows > 0 AND tac_db.tac IS NULL) OR tac_db.allocated > CAST(devices.first_seen AS DATE)
  OR FLOOR(devices.tac / 100) BETWEEN 1001 AND 1017 OR FLOOR(devices.tac / 10000) IN (44, 86, 91)
)
