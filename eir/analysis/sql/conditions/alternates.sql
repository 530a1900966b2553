-- Subscribers of one device that alternate within hours, day after day: A, B and A again, where a sale or a repair has A and then B.
-- Two that so often appear at once and never apart in place are the two SIMs of one phone.
SELECT
  encounters.device,
  (1 - POWER(0.8, encounters.return_days))
    * CASE WHEN encounters.conflict_days = 0 AND encounters.together >= parameters.together_share * encounters.switches THEN 0.1 ELSE 1 END AS strength,
  CONCAT('days on which its subscribers alternate within hours: ', CAST(encounters.return_days AS VARCHAR), ' (times: ', CAST(encounters.returns AS VARCHAR), ')') AS evidence
FROM encounters JOIN parameters ON TRUE
WHERE encounters.return_days >= parameters.return_days
