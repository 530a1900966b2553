-- SIM boxes. By the ports: many SIMs that go round through many devices, which hold little else on four days or more. By the SIM: one that
-- uses up devices, which nobody else uses. A tester's SIM has its devices once, among other people's; a laboratory's phone has its SIMs on a day.
SELECT device, {box} AS says, MAX(evidence) AS evidence
FROM (
  SELECT
    devices.device, CONCAT(CAST(MAX(core.sims) AS VARCHAR), ' SIMs that each go round through ', CAST(MAX(core.least) AS VARCHAR), ' or more such devices') AS evidence
  FROM devices JOIN (
    SELECT box.device, COUNT(*) AS sims, MIN(box.subscriber_devices) AS least, SUM(usage.checks) AS checks, BIT_OR(usage.days) AS days
    FROM box JOIN usage ON box.device = usage.device AND box.subscriber = usage.subscriber
    GROUP BY box.device
  ) AS core ON devices.device = core.device
  WHERE core.checks * 5 >= devices.checks * 4 AND BIT_COUNT(core.days) >= 4
  GROUP BY devices.device
  UNION ALL
  SELECT own.device, CONCAT('one of ', CAST(own.used AS VARCHAR), ' devices that one SIM used in turn, and nobody else')
  FROM (
    SELECT usage.device, devices.subscribers, SUM(CASE WHEN devices.subscribers = 1 THEN 1 ELSE 0 END) OVER by_sim AS used, COUNT(*) OVER by_sim AS of_all
    FROM usage JOIN devices ON usage.device = devices.device
    WHERE usage.subscriber IS NOT NULL
    WINDOW by_sim AS (PARTITION BY usage.subscriber)
  ) AS own JOIN parameters ON TRUE
  WHERE own.subscribers = 1 AND own.used >= parameters.box_numbers AND own.used * 10 >= own.of_all * 9
) AS boxes
GROUP BY device
