-- Numbers that one SIM had in turn, and nobody else: none of them while it had another. The one that it had longest may go on beside them: then
-- that one is not meant, as it is the SIM's own. Five minutes are left for clocks that differ.
SELECT device, subscriber, used
FROM (
  SELECT device, subscriber, of_all, is_in_turn, SUM(is_in_turn) OVER (PARTITION BY subscriber) AS used
  FROM (
    SELECT
      device, subscriber, of_all,
      CASE
        WHEN subscribers > 1 THEN 0
        WHEN INSTANT_S(COALESCE(until_all, first_seen)) <= INSTANT_S(first_seen) + 300 AND INSTANT_S(COALESCE(next_all, last_seen)) >= INSTANT_S(last_seen) - 300 THEN 1
        WHEN longest = 1 THEN 0
        WHEN INSTANT_S(COALESCE(until_other, first_seen)) <= INSTANT_S(first_seen) + 300 AND INSTANT_S(COALESCE(next_other, last_seen)) >= INSTANT_S(last_seen) - 300 THEN 1
        ELSE 0
      END AS is_in_turn
    FROM (
      SELECT
        device, subscriber, first_seen, last_seen, subscribers, longest, of_all,
        MAX(last_seen) OVER before AS until_all, MAX(CASE WHEN longest > 1 THEN last_seen END) OVER before AS until_other,
        MIN(first_seen) OVER after AS next_all, MIN(CASE WHEN longest > 1 THEN first_seen END) OVER after AS next_other
      FROM (
        SELECT
          usage.device, usage.subscriber, usage.first_seen, usage.last_seen, devices.subscribers, many.of_all,
          ROW_NUMBER() OVER (PARTITION BY usage.subscriber ORDER BY INSTANT_S(usage.last_seen) - INSTANT_S(usage.first_seen) DESC, usage.device) AS longest
        FROM usage JOIN devices ON usage.device = devices.device
        JOIN (
          SELECT subscriber, COUNT(*) AS of_all FROM usage WHERE NOT subscriber IS NULL GROUP BY subscriber
        ) AS many ON usage.subscriber = many.subscriber
        JOIN parameters ON many.of_all >= parameters.box_numbers
      ) AS used_by_sim
      WINDOW
        before AS (PARTITION BY subscriber ORDER BY first_seen, device ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
        after AS (PARTITION BY subscriber ORDER BY first_seen, device ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING)
    ) AS beside
  ) AS told
) AS counted
JOIN parameters ON TRUE
WHERE is_in_turn = 1 AND used >= parameters.box_numbers AND used * 10 >= of_all * 9
