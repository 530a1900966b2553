-- TACs that the list does not have. A list lacks models that are newer than the list. If its newest row is more than two months old, only a body without any TAC in the list is
-- certain. A TAC of two devices is rather a new model, because an invented number is alone. For this rule devices do not count if their peer sends less than a tenth of the average
-- number of checks: a peer can invent its own devices. A list with one date for all rows has no usable date.
SELECT
  devices.device, CASE WHEN bodies.body IS NULL THEN {no_body} ELSE {likely} END AS says,
  CONCAT('its TAC is not in the list, whose newest is of ', COALESCE(CAST(listed.newest AS VARCHAR), 'no day')) AS evidence
FROM devices
JOIN (SELECT MAX(allocated) AS newest, MIN(allocated) AS oldest, COUNT(*) AS rows FROM tac_db) AS listed ON listed.rows > 0
JOIN (SELECT MAX(last_seen) AS last_seen FROM devices) AS record ON TRUE
LEFT JOIN tac_db ON devices.tac = tac_db.tac
LEFT JOIN (SELECT DISTINCT CAST(FLOOR(tac / 1000000) AS BIGINT) AS body FROM tac_db) AS bodies ON CAST(FLOOR(devices.tac / 1000000) AS BIGINT) = bodies.body
LEFT JOIN (
  SELECT devices.tac
  FROM witnessed JOIN devices ON witnessed.device = devices.device
  JOIN (
    SELECT peer
    FROM (SELECT peer, SUM(checks) AS checks FROM claims GROUP BY peer) AS by_peer
    JOIN (SELECT SUM(checks) AS checks, COUNT(DISTINCT peer) AS peers FROM claims) AS all_of_them ON TRUE
    WHERE by_peer.checks * 10 * all_of_them.peers >= all_of_them.checks
  ) AS senders ON witnessed.peer = senders.peer
  GROUP BY devices.tac
  HAVING COUNT(DISTINCT devices.device) >= 2
) AS new_models ON devices.tac = new_models.tac
WHERE tac_db.tac IS NULL AND NOT devices.tac IS NULL AND devices.device % 11111111111111 <> 0 AND (
  bodies.body IS NULL
  OR (new_models.tac IS NULL AND (COALESCE(listed.newest = listed.oldest, TRUE) OR DATE_DIFF('day', listed.newest, CAST(record.last_seen AS DATE)) <= 60))
)
