-- Devices that one SIM used in turn, and no other SIM used. The SIM used no other device during the period of such a device. Clocks may differ by five minutes.
SELECT device, subscriber, used
FROM (
  SELECT device, subscriber, of_all, is_in_turn, SUM(is_in_turn) OVER (PARTITION BY subscriber) AS used
  FROM (
    SELECT
      device, subscriber, of_all,
      CASE
        WHEN subscribers = 1 AND INSTANT_S(COALESCE(until_then, first_seen)) <= INSTANT_S(first_seen) + 300
          AND INSTANT_S(COALESCE(next_from, last_seen)) >= INSTANT_S(last_seen) - 300 THEN 1
        ELSE 0
      END AS is_in_turn
    FROM (
      SELECT
        usage.device, usage.subscriber, usage.first_seen, usage.last_seen, devices.subscribers, many.of_all,
        MAX(usage.last_seen) OVER before AS until_then, MIN(usage.first_seen) OVER after AS next_from
      FROM usage JOIN devices ON usage.device = devices.device
      JOIN (
        SELECT subscriber, COUNT(*) AS of_all FROM usage WHERE NOT subscriber IS NULL GROUP BY subscriber HAVING COUNT(*) >= 2
      ) AS many ON usage.subscriber = many.subscriber
      WINDOW
        before AS (PARTITION BY usage.subscriber ORDER BY usage.first_seen, usage.device ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
        after AS (PARTITION BY usage.subscriber ORDER BY usage.first_seen, usage.device ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING)
    ) AS used_by_sim
  ) AS candidates
) AS counted
WHERE is_in_turn = 1 AND used >= 2 AND used * 10 >= of_all * 9
