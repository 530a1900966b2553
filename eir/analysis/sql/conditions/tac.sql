-- What its TAC says: barred, for tests, allocated after it was seen, or never by the list. A list knows no models that are newer than itself:
-- once its newest row is older than two months, only a body that it has no TAC of at all is sure; and where three devices or more show one
-- unknown TAC, two of them not by the one peer alone that has most so, it is rather a new model: a peer can invent its own. Peers that send less
-- than a tenth of what each does on average show none. A list with one date for all has none.
WITH senders AS (
  SELECT peer
  FROM (SELECT peer, SUM(checks) AS checks FROM claims GROUP BY peer) AS by_peer
  JOIN (SELECT SUM(checks) AS checks, COUNT(DISTINCT peer) AS peers FROM claims) AS all_of_them ON TRUE
  WHERE by_peer.checks * 10 * all_of_them.peers >= all_of_them.checks
)
SELECT
  devices.device,
  CASE
    WHEN NOT barred.tac IS NULL THEN {barred}
    WHEN NOT tac_db.tac IS NULL AND tac_db.allocated > CAST(devices.first_seen AS DATE) THEN {allocated_later}
    WHEN NOT tac_db.tac IS NULL OR listed.rows = 0 THEN {test_tac}
    WHEN bodies.body IS NULL THEN {no_body}
    WHEN (shown.devices >= parameters.new_model_devices AND (shown.devices >= shown.by_one + 2 OR of_size.peers = 1)) OR (listed.newest > listed.oldest AND DATE_DIFF('day', listed.newest, CAST(parameters.until AS DATE)) > 60) THEN {newer_model}
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
JOIN (SELECT COUNT(*) AS peers FROM senders) AS of_size ON TRUE
LEFT JOIN (
  SELECT tac, SUM(devices) AS devices, MAX(CASE WHEN only_by IS NULL THEN 0 ELSE devices END) AS by_one
  FROM (
    SELECT tac, only_by, COUNT(*) AS devices
    FROM (
      SELECT devices.tac, devices.device, CASE WHEN MIN(witnessed.peer) = MAX(witnessed.peer) THEN MIN(witnessed.peer) END AS only_by
      FROM witnessed JOIN senders ON witnessed.peer = senders.peer
      JOIN devices ON witnessed.device = devices.device
      GROUP BY devices.tac, devices.device
    ) AS each_device
    GROUP BY tac, only_by
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
