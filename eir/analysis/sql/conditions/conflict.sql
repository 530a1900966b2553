-- Two subscribers of one device at two places, sooner than a phone gets from one to the other (ITU-T Q.5052: conflict of time and distance).
SELECT
  encounters.device, 1 - POWER(0.4, encounters.conflict_days) AS strength,
  CONCAT(
    'days at two places at once: ', CAST(encounters.conflict_days AS VARCHAR), ' (times: ', CAST(encounters.conflicts AS VARCHAR), '), such as ', encounters.places
  ) AS evidence
FROM encounters
WHERE encounters.conflict_days >= 1
