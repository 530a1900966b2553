-- The nine columns of the model for each shared device, and numbers for its sheet. `places`: days with two phones by the place minus days with one, in deviations. `blocks`,
-- `lockstep`: runs fewer or more than two phones give, in deviations, beyond the usual excess of 0.5. `uneven`: slant beyond chance. `busy`: checks in relation to those of one phone. A
-- phone that is checked at each change of SIM sends more checks for that reason, which is subtracted. More than twice as many checks count as twice.
SELECT
  changed.device,
  (changed.two_days - changed.one_days) / SQRT(GREATEST(changed.two_days + changed.one_days, 1)) AS places,
  LN(1 + LEAST(changed.two_version_days, 10)) AS versions_two, LN(1 + LEAST(changed.one_version_days, 10)) AS versions_one,
  LEAST(GREATEST(-COALESCE((orders.runs - orders.expected) / orders.deviation - 0.5, -0.5), 0), 6) AS blocks,
  LEAST(GREATEST(COALESCE((orders.runs - orders.expected) / orders.deviation - 0.5, -0.5), 0), 6) AS lockstep,
  LEAST(GREATEST(COALESCE(orders.slant, 0) - 1, 0), 6) AS uneven,
  LN(1 + CAST(changed.changes AS DOUBLE) / who.days) AS switches,
  LN(LEAST(who.members, 8) / 2.0) AS members,
  LEAST(COALESCE(LN(who.checks / (who.days * network.usual + changed.changes)), 0), 0.8) AS busy,
  CAST(changed.together AS DOUBLE) / changed.changes AS together,
  changed.two_days, changed.one_days, changed.two_version_days, changed.one_version_days, changed.changes, changed.lowest, changed.highest,
  orders.runs, orders.expected, orders.deviation, who.members AS member_count, who.homes AS home_count
FROM (
  SELECT
    device, COUNT(*) AS changes,
    CAST(COUNT(DISTINCT CASE WHEN is_two = 1 THEN day END) AS BIGINT) AS two_days, CAST(COUNT(DISTINCT CASE WHEN is_one = 1 THEN day END) AS BIGINT) AS one_days,
    CAST(COUNT(DISTINCT CASE WHEN is_two_versions = 1 THEN day END) AS BIGINT) AS two_version_days, CAST(COUNT(DISTINCT CASE WHEN is_one_version = 1 THEN day END) AS BIGINT) AS one_version_days,
    SUM(CASE WHEN gap_s <= 120 AND is_two = 0 THEN 1 ELSE 0 END) AS together, MIN(version) AS lowest, MAX(version) AS highest
  FROM returns
  GROUP BY device
) AS changed
JOIN (
  SELECT
    usage.device, COUNT(*) AS members, CAST(SUM(usage.checks) AS DOUBLE) AS checks, COUNT(DISTINCT usage.home) AS homes, CAST(BIT_COUNT(BIT_OR(usage.days)) AS DOUBLE) AS days
  FROM usage JOIN members ON usage.device = members.device AND usage.subscriber = members.subscriber
  GROUP BY usage.device
) AS who ON changed.device = who.device
JOIN (SELECT AVG(CAST(checks AS DOUBLE) / BIT_COUNT(days)) AS usual FROM devices WHERE subscribers = 1) AS network ON TRUE
LEFT JOIN orders ON changed.device = orders.device
