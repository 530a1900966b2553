-- More subscribers that come back day after day than a phone has SIMs. Those who come once do not count: a loan phone, a shop's test phone.
SELECT
  regulars.device, (regulars.a_day - 2) / (regulars.a_day - 1) AS strength,
  CONCAT(CAST(regulars.regulars AS VARCHAR), ' regular subscribers, ', CAST(ROUND(regulars.a_day, 1) AS VARCHAR), ' of them on an average day') AS evidence
FROM regulars JOIN encounters ON regulars.device = encounters.device JOIN parameters ON TRUE
WHERE regulars.a_day >= parameters.crowded_a_day AND encounters.return_days >= parameters.return_days
