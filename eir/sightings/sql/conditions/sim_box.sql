-- SIM boxes. By the ports: many SIMs that go round through many devices, which hold little else on four days or more. By the SIM: one that
-- uses up devices, which nobody else uses, and so at one peer. Five of them are enough by themselves. Three may be those of somebody whose new
-- phone was exchanged, unless they show one of the modems of a box: several models with one software version, since a modem keeps its own
-- whatever number it takes (then two are enough beside three of another SIM); or, where no versions come, three such SIMs at one peer. Of all SIMs there
-- that so change they are a tenth at least, as nothing honest is.
WITH own AS (
  SELECT
    turns.device, turns.subscriber, turns.used, witnessed.peer, witnessed.checks, devices.tac, devices.checks AS all_checks,
    witnessed.lowest, witnessed.highest
  FROM turns JOIN devices ON turns.device = devices.device
  JOIN witnessed ON turns.device = witnessed.device AND turns.subscriber = witnessed.subscriber
),
bodies AS (
  SELECT
    subscriber, peer, COUNT(*) AS numbers, CASE WHEN COUNT(*) >= 3 THEN 1 ELSE 0 END AS is_sure,
    CASE
      WHEN COALESCE(MAX(highest), '00') = '00' THEN ''
      WHEN MIN(lowest) = MAX(highest) AND COUNT(DISTINCT tac) >= 2 THEN MIN(lowest)
    END AS version
  FROM own
  GROUP BY subscriber, peer
  HAVING COUNT(*) >= 2
),
modems AS (
  SELECT peer, version
  FROM bodies
  WHERE NOT version IS NULL
  GROUP BY peer, version
  HAVING SUM(is_sure) >= CASE WHEN version = '' THEN 3 ELSE 1 END AND SUM(is_sure) * 10 >= COUNT(*)
)
SELECT device, MAX(says) AS says, MAX(evidence) AS evidence
FROM (
  SELECT
    core.device, {certain} AS says, CONCAT(CAST(core.sims AS VARCHAR), ' SIMs that go round through such devices') AS evidence
  FROM devices JOIN (
    SELECT box.device, COUNT(DISTINCT box.subscriber) AS sims, SUM(witnessed.checks) AS checks, BIT_OR(witnessed.days) AS days
    FROM box JOIN witnessed ON box.device = witnessed.device AND box.subscriber = witnessed.subscriber
    GROUP BY box.device
  ) AS core ON devices.device = core.device
  WHERE core.checks * 3 >= devices.checks * 2 AND BIT_COUNT(core.days) >= 4
  UNION ALL
  SELECT
    own.device, MAX(CASE WHEN bodies.numbers >= 5 THEN {certain} ELSE {likely} END) AS says,
    CONCAT(
      'one of ', CAST(MAX(own.used) AS VARCHAR), ' devices that one SIM used in turn, and nobody else',
      MAX(CASE WHEN modems.version > '' THEN CONCAT(', of several models with one software version, ', modems.version) ELSE '' END)
    ) AS evidence
  FROM own JOIN bodies ON own.subscriber = bodies.subscriber AND own.peer = bodies.peer
  LEFT JOIN modems ON bodies.peer = modems.peer AND bodies.version = modems.version AND (bodies.is_sure = 1 OR modems.version > '')
  WHERE bodies.numbers >= 5 OR NOT modems.version IS NULL
  GROUP BY own.device
  HAVING SUM(own.checks) * 2 >= MAX(own.all_checks)
) AS boxes
GROUP BY device
