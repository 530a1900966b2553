-- Software versions of each TAC among the scored devices, with the number of ordinary phones that have the version: phones with one subscriber.
-- A number that one SIM had in turn with others is no ordinary phone: SIM boxes have one version for numbers of many models.
SELECT devices.tac, seen.version, COUNT(DISTINCT seen.device) AS phones
FROM seen JOIN devices ON seen.device = devices.device
JOIN (SELECT DISTINCT devices.tac FROM devices JOIN scores ON devices.device = scores.device) AS scored ON devices.tac = scored.tac
JOIN claims ON seen.origin = claims.origin AND seen.peer = claims.peer
WHERE claims.is_believed = 1 AND devices.subscribers = 1 AND seen.version > '00'
  AND NOT devices.device IN (SELECT turns.device FROM turns)
GROUP BY devices.tac, seen.version
