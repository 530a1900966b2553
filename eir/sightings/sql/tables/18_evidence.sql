-- What is known of each shared device, as numbers that the model weighs. apart: the runs' distance from what two phones give, in deviations;
-- half a one more is usual. uneven: their slant beyond what chance gives. busy: two phones send twice what one does, and one that is checked
-- at each change of its SIM so much more; beyond twice it is no more evidence, since a courier's phone sends ten times as much. beside: and so at
-- the same moment, as two SIMs of one phone are. placeless, versionless: there was nothing to see of that.
SELECT
  encounters.device,
  LN(1 + LEAST(encounters.conflict_days, 10)) AS conflicts,
  CASE WHEN encounters.conflict_days >= 2 THEN 1.0 ELSE 0.0 END AS conflicts_again,
  LN(1 + LEAST(COALESCE(firmware.back_days, 0), 10)) AS backs,
  CASE WHEN COALESCE(firmware.back_days, 0) >= 2 THEN 1.0 ELSE 0.0 END AS backs_again,
  CASE WHEN COALESCE(firmware.compared, 0) >= 6 AND firmware.differing = 0 THEN 1.0 ELSE 0.0 END AS same_version,
  CASE WHEN COALESCE(firmware.compared, 0) < 3 THEN 1.0 ELSE 0.0 END AS versionless,
  CASE WHEN network.far_pairs = 0 THEN 1.0 ELSE 0.0 END AS placeless,
  LEAST(GREATEST(-COALESCE((orders.runs - orders.expected) / orders.deviation - 0.5, -0.5), 0), 6) AS blocks,
  CASE WHEN encounters.conflict_days < 3 THEN LEAST(GREATEST(COALESCE((orders.runs - orders.expected) / orders.deviation - 0.5, -0.5), 0), 6) ELSE 0.0 END AS lockstep,
  LEAST(GREATEST(COALESCE((orders.runs - orders.expected) / orders.deviation - 0.5, -0.5), 0), 6) * LEAST(3.0 * encounters.together / encounters.switches, 1) AS beside,
  CASE WHEN encounters.conflict_days < 3 THEN LEAST(GREATEST(COALESCE(orders.slant, 0) - 1, 0), 6) ELSE 0.0 END AS uneven,
  LEAST(who.a_day, 3) AS a_day,
  LEAST(who.members, 6) - 2.0 AS members,
  CASE WHEN who.homes > 1 THEN 1.0 ELSE 0.0 END AS homes,
  LN(1 + CAST(encounters.switches AS DOUBLE) / who.days) AS switches,
  CAST(encounters.together AS DOUBLE) / encounters.switches AS together,
  LEAST(COALESCE(LN(who.checks / (who.days * network.usual + encounters.switches)), 0), 0.8) AS busy,
  encounters.conflict_days, encounters.conflicts AS conflict_times, encounters.switches AS switch_count,
  firmware.back_days, firmware.lowest, firmware.highest, firmware.compared, firmware.differing,
  orders.runs, orders.expected, orders.deviation, who.members AS member_count, who.homes AS home_count
FROM encounters
JOIN (
  SELECT usage.device, COUNT(*) AS members, CAST(SUM(usage.checks) AS DOUBLE) AS checks, COUNT(DISTINCT usage.home) AS homes, CAST(BIT_COUNT(BIT_OR(usage.days)) AS DOUBLE) AS days, CAST(SUM(usage.day_count) AS DOUBLE) / BIT_COUNT(BIT_OR(usage.days)) AS a_day
  FROM usage JOIN members ON usage.device = members.device AND usage.subscriber = members.subscriber
  GROUP BY usage.device
) AS who ON encounters.device = who.device
JOIN (
  SELECT MAX(usual) AS usual, MAX(far_pairs) AS far_pairs
  FROM (
    SELECT AVG(CAST(checks AS DOUBLE) / BIT_COUNT(days)) AS usual, NULL AS far_pairs FROM devices WHERE subscribers = 1
    UNION ALL
    SELECT NULL AS usual, COUNT(*) AS far_pairs FROM travel WHERE fastest_s > 300
  ) AS measured
) AS network ON TRUE
LEFT JOIN orders ON encounters.device = orders.device
LEFT JOIN firmware ON encounters.device = firmware.device
