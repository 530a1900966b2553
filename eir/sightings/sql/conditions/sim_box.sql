-- SIM boxes, by two rules. Ports: SIMs rotate through seven or more devices, with little other traffic, on at least four days and on a third of all days. A refurbisher keeps a phone for
-- days only; a measuring van and a laboratory have fewer devices. SIM: one SIM uses five devices, which no other SIM uses, at one peer.
SELECT device, MAX(says) AS says, MAX(evidence) AS evidence
FROM (
  SELECT
    core.device, {certain} AS says, CONCAT(CAST(core.sims AS VARCHAR), ' SIMs that go round through such devices') AS evidence
  FROM devices JOIN (
    SELECT box.device, COUNT(DISTINCT box.subscriber) AS sims, MAX(rounds.devices) AS devices, SUM(witnessed.checks) AS checks, BIT_OR(witnessed.days) AS days
    FROM box JOIN witnessed ON box.device = witnessed.device AND box.subscriber = witnessed.subscriber
    JOIN (SELECT subscriber, COUNT(*) AS devices FROM box GROUP BY subscriber) AS rounds ON box.subscriber = rounds.subscriber
    GROUP BY box.device
  ) AS core ON devices.device = core.device
  JOIN (SELECT BIT_COUNT(BIT_OR(days)) AS days FROM devices) AS record ON TRUE
  WHERE core.checks * 3 >= devices.checks * 2 AND BIT_COUNT(core.days) >= 4 AND CAST(BIT_COUNT(core.days) AS BIGINT) * 3 >= record.days AND core.devices >= 7
  UNION ALL
  SELECT
    own.device, {certain} AS says, CONCAT('one of ', CAST(MAX(own.used) AS VARCHAR), ' devices that one SIM used in turn, and nobody else') AS evidence
  FROM (
    SELECT
      turns.device, turns.subscriber, turns.used, witnessed.checks, devices.checks AS all_checks,
      COUNT(*) OVER (PARTITION BY turns.subscriber, witnessed.peer) AS numbers
    FROM turns JOIN devices ON turns.device = devices.device
    JOIN witnessed ON turns.device = witnessed.device AND turns.subscriber = witnessed.subscriber
  ) AS own
  WHERE own.numbers >= 5
  GROUP BY own.device
  HAVING SUM(own.checks) * 2 >= MAX(own.all_checks)
) AS boxes
GROUP BY device
