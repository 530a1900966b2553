-- Two subscribers at two places, sooner than a phone gets from one to the other (ITU-T Q.5052: conflict of time and distance). The strongest
-- example is the one that was most too soon.
SELECT
  evidence.device,
  {conflicts} * evidence.conflicts + {conflicts_again} * evidence.conflicts_again AS says,
  CONCAT(
    'days at two places at once: ', CAST(evidence.conflict_days AS VARCHAR), ' (times: ', CAST(evidence.conflict_times AS VARCHAR), '), such as on ',
    CAST(CAST(strongest.time AS DATE) AS VARCHAR), ' ', LEAST(here.origin, there.origin), ' and ', GREATEST(here.origin, there.origin), ' within ',
    CAST(CAST(FLOOR(strongest.gap_s / 60) AS BIGINT) AS VARCHAR), ' min, where a phone takes ', CAST(CAST(FLOOR(strongest.fastest_s / 60) AS BIGINT) AS VARCHAR), ' (', strongest.known, ')'
  ) AS evidence
FROM evidence
JOIN (
  SELECT switches.*, ROW_NUMBER() OVER (PARTITION BY device ORDER BY fastest_s - gap_s DESC, time) AS place
  FROM switches
  WHERE is_conflict = 1
) AS strongest ON evidence.device = strongest.device
JOIN located AS here ON strongest.before_origin = here.number
JOIN located AS there ON strongest.origin = there.number
WHERE strongest.place = 1
