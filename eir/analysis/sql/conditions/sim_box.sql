-- SIM boxes. By the ports: many SIMs that go round through many devices, which hold little else on four days or more. By the SIM: one that
-- uses up devices, which nobody else uses, and so at one peer. A tester's SIM has its devices once, among other people's; a laboratory's phone
-- has its SIMs on a day.
SELECT device, {box} AS says, MAX(evidence) AS evidence
FROM (
  SELECT
    devices.device, CONCAT(CAST(MAX(core.sims) AS VARCHAR), ' SIMs that each go round through ', CAST(MAX(core.least) AS VARCHAR), ' or more such devices') AS evidence
  FROM devices JOIN (
    SELECT box.device, COUNT(DISTINCT box.subscriber) AS sims, MIN(box.subscriber_devices) AS least, SUM(witnessed.checks) AS checks, BIT_OR(witnessed.days) AS days
    FROM box JOIN witnessed ON box.device = witnessed.device AND box.subscriber = witnessed.subscriber
    GROUP BY box.device
  ) AS core ON devices.device = core.device
  WHERE core.checks * 5 >= devices.checks * 4 AND BIT_COUNT(core.days) >= 4
  GROUP BY devices.device
  UNION ALL
  SELECT own.device, CONCAT('one of ', CAST(MAX(own.used) AS VARCHAR), ' devices that one SIM used in turn, and nobody else')
  FROM (
    SELECT
      turns.device, turns.used, devices.checks AS all_checks,
      CASE WHEN COUNT(*) OVER (PARTITION BY witnessed.subscriber, witnessed.peer) >= parameters.box_numbers THEN witnessed.checks ELSE 0 END AS checks
    FROM turns JOIN devices ON turns.device = devices.device
    JOIN witnessed ON turns.device = witnessed.device AND turns.subscriber = witnessed.subscriber
    JOIN parameters ON TRUE
  ) AS own
  GROUP BY own.device
  HAVING SUM(own.checks) * 2 >= MAX(own.all_checks)
) AS boxes
GROUP BY device
