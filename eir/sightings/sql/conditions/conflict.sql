-- Changes of SIM after which the check is where this SIM was last, and not where the device was last: two phones at two places. Changes with the opposite result, as at a border, count against
-- two phones. The example is the change with the shortest time.
SELECT
  evidence.device, {places} * evidence.places AS says,
  CASE WHEN evidence.two_days > 0 THEN CONCAT(
    'days on which a SIM goes on where it was, and not where the device was: ', CAST(evidence.two_days AS VARCHAR), ' (days that show one body: ', CAST(evidence.one_days AS VARCHAR), '), such as on ',
    CAST(CAST(example.time AS DATE) AS VARCHAR), ' at ', here.origin, ', ', CAST(CAST(FLOOR(GREATEST(example.gap_s, 0) / 60) AS BIGINT) AS VARCHAR), ' min after another SIM at ', there.origin
  ) ELSE CONCAT('days on which a SIM goes on where the device was, and not where the SIM was: ', CAST(evidence.one_days AS VARCHAR)) END AS evidence
FROM evidence
LEFT JOIN (
  SELECT device, time, gap_s, origin, before_origin, ROW_NUMBER() OVER (PARTITION BY device ORDER BY gap_s, time, subscriber) AS place
  FROM returns
  WHERE is_two = 1
) AS example ON evidence.device = example.device AND example.place = 1
LEFT JOIN located AS here ON example.origin = here.number
LEFT JOIN located AS there ON example.before_origin = there.number
WHERE evidence.two_days + evidence.one_days > 0
