-- uses: Each device with each subscriber. Rows of the record count, not their `checks`, so one row with a million checks has no weight of its own.
SELECT device, subscriber, COUNT(*) AS n, MIN(time) AS first_seen, MAX(last) AS last_seen FROM sightings WHERE NOT device IS NULL AND {believed} GROUP BY device, subscriber
-- members: Subscribers of shared devices, each seen on two days, numbered from the busiest, at most 100. In a shared device the periods of two such subscribers overlap.
SELECT device, subscriber, CAST(place AS INTEGER) AS sim, first_seen, last_seen FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY device ORDER BY n DESC, subscriber) AS place, MAX(is_beside) OVER (PARTITION BY device) AS is_shared FROM (
    SELECT *, CASE WHEN first_seen < MAX(last_seen) OVER (PARTITION BY device ORDER BY first_seen, subscriber ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) THEN 1 ELSE 0 END AS is_beside
    FROM uses WHERE NOT subscriber IS NULL AND CAST(first_seen AS DATE) < CAST(last_seen AS DATE)) AS regular) AS ranked
WHERE is_shared = 1 AND place <= 100
-- sources: Pairs of an origin and a peer that sends its checks, each with a number, and the number of the origin. A peer that sends less than a tenth of an origin's rows is no evidence (`counts` 0).
SELECT *, CASE WHEN n * 10 >= SUM(n) OVER (PARTITION BY origin) AND {believed_source} THEN 1 ELSE 0 END AS counts, CAST(ROW_NUMBER() OVER (ORDER BY origin, peer) AS INTEGER) AS source, CAST(DENSE_RANK() OVER (ORDER BY origin) AS INTEGER) AS o
FROM (SELECT origin_host AS origin, COALESCE(peer, origin_host) AS peer, MIN(COALESCE(origin_realm, '')) AS realm, COUNT(*) AS n FROM sightings WHERE NOT origin_host IS NULL GROUP BY 1, 2) AS counted
-- origins: Operator of each origin, by the peer that sends most of its rows.
SELECT origin, realm, o FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY origin ORDER BY n DESC, peer) AS place FROM sources) AS ranked WHERE place = 1
-- phones: Sample of about 20,000 phones with one SIM. The number of rows selects them, so that no peer can know them. One of `share` phones is in the sample.
SELECT device, share FROM uses CROSS JOIN (SELECT CAST(GREATEST(FLOOR(COUNT(*) / 20000), 1) AS BIGINT) AS share, CAST(SUM(n) AS BIGINT) AS drawn FROM uses) AS size
WHERE device % share = drawn % share GROUP BY device, share HAVING COUNT(*) = 1
-- checks: Rows of the shared devices and of the sample, with the number of the SIM in a shared device. Version 00 is no version.
SELECT s.device, m.sim, INSTANT_S(s.time) AS t, s.day, sources.source, sources.counts, sources.o, NULLIF(s.software_version, '00') AS v
FROM (SELECT * FROM sightings WHERE device IN (SELECT members.device FROM members UNION ALL SELECT phones.device FROM phones)) AS s LEFT JOIN members AS m ON s.device = m.device AND s.subscriber = m.subscriber
LEFT JOIN sources ON s.origin_host = sources.origin AND COALESCE(s.peer, s.origin_host) = sources.peer
-- steps: Checks of shared devices in order: the previous SIM, origin and version of the device (`dev_`), and the previous origin and version of this SIM (`own_`).
SELECT *, LAG(sim) OVER dev AS dev_sim, LAG(o) OVER dev AS dev_o, t - LAG(t) OVER dev AS gap, LAG(o) OVER own AS own_o, t - LAG(t) OVER own AS own_gap,
  LAST_VALUE(v IGNORE NULLS) OVER (PARTITION BY device ORDER BY t, sim, o ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS dev_v,
  LAST_VALUE(v IGNORE NULLS) OVER (PARTITION BY device, sim ORDER BY t, o ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS own_v
FROM checks WHERE counts = 1 AND NOT sim IS NULL
WINDOW dev AS (PARTITION BY device ORDER BY t, sim, o), own AS (PARTITION BY device, sim ORDER BY t, o)
-- meets: Pairs of origins, in both directions, with the number of devices of two or three SIMs that changed the SIM from one origin to the other within 3 hours.
SELECT CASE WHEN is_back = 1 THEN dev_o ELSE o END AS a, CASE WHEN is_back = 1 THEN o ELSE dev_o END AS b, COUNT(DISTINCT steps.device) AS n
FROM steps JOIN (SELECT device FROM members GROUP BY device HAVING COUNT(*) <= 3) AS few ON steps.device = few.device CROSS JOIN (SELECT 0 AS is_back UNION ALL SELECT 1 AS is_back) AS directions
WHERE sim <> dev_sim AND gap < 10800 GROUP BY 1, 2
-- best: Commonest partner of each origin at each operator, if 3 devices or more changed the SIM between the two.
SELECT meets.a, origins.realm, MAX(meets.n) AS n FROM meets JOIN origins ON meets.b = origins.o GROUP BY 1, 2 HAVING MAX(meets.n) >= 3
-- ways: Pairs of origins that are one place (`is_apart` 0: 3 devices or more) or two (1): fewer than a quarter of the changes with the commonest partner of either. All other pairs are unknown.
SELECT x.o AS a, y.o AS b, CASE WHEN COALESCE(m.n, 0) * 4 < LEAST(p.n, q.n) THEN 1 ELSE 0 END AS is_apart
FROM best AS p JOIN origins AS x ON p.a = x.o JOIN origins AS y ON p.realm = y.realm JOIN best AS q ON q.a = y.o AND q.realm = x.realm LEFT JOIN meets AS m ON m.a = x.o AND m.b = y.o
WHERE x.o <> y.o AND (COALESCE(m.n, 0) * 4 < LEAST(p.n, q.n) OR m.n >= 3)
-- changes: Changes of SIM. Does the SIM go on where it was, or with its version (`two` devices)? Or where the device was, or with the device's version (`one`)?
SELECT device, day, t, o, dev_o, sim, dev_sim, gap,
  CASE WHEN d.is_apart = 1 AND (o = own_o OR w.is_apart = 0) THEN day END AS two, CASE WHEN (o = dev_o OR d.is_apart = 0) AND w.is_apart = 1 THEN day END AS one,
  CASE WHEN v = own_v AND v <> dev_v THEN day END AS two_v, CASE WHEN v <> own_v AND v = dev_v THEN day END AS one_v
FROM steps LEFT JOIN ways AS d ON d.a = o AND d.b = dev_o LEFT JOIN ways AS w ON w.a = o AND w.b = own_o WHERE sim <> dev_sim
-- orders: Deviation of the number of changes from that of a random order, while the two busiest SIMs are both in use. Of a SIM's checks within half an hour the first counts.
SELECT device, (MAX(k) - SUM(c) * (1 - q)) / SQRT(GREATEST(SUM(c) * q * (1 - q), 25e-2)) AS z FROM (
  SELECT device, c, k, SUM(c * c) OVER (PARTITION BY device) / POWER(SUM(c) OVER (PARTITION BY device), 2) AS q FROM (
    SELECT device, sim, CAST(COUNT(*) AS DOUBLE) AS c, SUM(SUM(CASE WHEN sim <> before THEN 1 ELSE 0 END)) OVER (PARTITION BY device) AS k FROM (
      SELECT steps.device, sim, LAG(sim) OVER (PARTITION BY steps.device ORDER BY t, sim) AS before
      FROM steps JOIN (SELECT device, INSTANT_S(MAX(first_seen)) AS since, INSTANT_S(MIN(last_seen)) AS until FROM members WHERE sim <= 2 GROUP BY device) AS common ON steps.device = common.device
      WHERE COALESCE(own_gap, 1800) >= 1800 AND t BETWEEN since AND until) AS trail GROUP BY device, sim) AS sims) AS parts GROUP BY device, q
-- usual: Rows a day of an ordinary phone: the median of the sample, so that no loud device moves it.
SELECT MEDIAN(n) AS n FROM (SELECT device, CAST(COUNT(*) AS DOUBLE) / COUNT(DISTINCT day) AS n FROM checks WHERE device IN (SELECT phones.device FROM phones) GROUP BY device HAVING COUNT(DISTINCT day) >= 5) AS phone
-- evidence: Numbers about each shared device, and the columns of the model (`places` to `busy`).
SELECT c.*, m.members, s.days,
  (two - one) / SQRT(GREATEST(two + one, 1)) AS places, LN(1 + LEAST(two_v, 10)) AS versions_two, LN(1 + LEAST(one_v, 10)) AS versions_one,
  LEAST(GREATEST(COALESCE(-z - 5e-1, 0), 0), 6) AS blocks, LEAST(GREATEST(COALESCE(z - 5e-1, 0), 0), 6) AS lockstep,
  LN(1 + CAST(changes AS DOUBLE) / days) AS switches, LN(LEAST(members, 8) / 2e0) AS several,
  LEAST(GREATEST(COALESCE(ABS(LN(GREATEST(up_s, 1) / GREATEST(down_s, 1))) * SQRT(changes / 4e0) - 1, 0), 0), 6) AS uneven,
  LEAST(GREATEST(COALESCE(LN(s.n / usual.n), 0), -2), 3) AS busy
FROM (SELECT device, COUNT(*) AS changes, COUNT(DISTINCT two) AS two, COUNT(DISTINCT one) AS one, COUNT(DISTINCT two_v) AS two_v, COUNT(DISTINCT one_v) AS one_v,
    AVG(CASE WHEN sim > dev_sim THEN gap END) AS up_s, AVG(CASE WHEN sim < dev_sim THEN gap END) AS down_s FROM changes GROUP BY device) AS c
JOIN (SELECT device, COUNT(*) AS members FROM members GROUP BY device) AS m ON c.device = m.device JOIN (SELECT device, COUNT(DISTINCT day) AS days, CAST(COUNT(*) AS DOUBLE) / COUNT(DISTINCT day) AS n FROM steps GROUP BY device) AS s ON c.device = s.device
LEFT JOIN orders ON c.device = orders.device CROSS JOIN usual
-- many: SIMs that were in four devices or more.
SELECT subscriber, COUNT(*) AS devices FROM uses WHERE NOT subscriber IS NULL GROUP BY subscriber HAVING COUNT(*) >= 4
-- boxes: Devices of SIM boxes. Ports: two thirds of their checks are by at least four such SIMs, one of which was in seven devices, in a period of a third of all days. Turns: devices that one SIM, and no other, used in turn, at least five and nine tenths of its devices.
SELECT uses.device FROM uses LEFT JOIN many ON uses.subscriber = many.subscriber JOIN (SELECT DISTINCT uses.device FROM uses JOIN many ON uses.subscriber = many.subscriber) AS d ON uses.device = d.device
CROSS JOIN (SELECT DATE_DIFF('day', CAST(MIN(first_seen) AS DATE), CAST(MAX(last_seen) AS DATE)) + 1 AS days FROM uses) AS record
GROUP BY uses.device, record.days HAVING SUM(CASE WHEN many.devices >= 4 THEN n ELSE 0 END) * 3 >= SUM(n) * 2 AND COUNT(many.devices) >= 4 AND MAX(many.devices) >= 7
  AND (DATE_DIFF('day', CAST(MIN(CASE WHEN many.devices >= 4 THEN first_seen END) AS DATE), CAST(MAX(CASE WHEN many.devices >= 4 THEN last_seen END) AS DATE)) + 1) * 3 >= record.days
UNION SELECT device FROM (
  SELECT device, devices, COUNT(*) OVER (PARTITION BY subscriber, is_alone) AS k, is_alone FROM (
    SELECT uses.device, uses.subscriber, many.devices, CASE WHEN sims.sims = 1 AND INSTANT_S(first_seen) > COALESCE(INSTANT_S(MAX(last_seen) OVER (
      PARTITION BY uses.subscriber ORDER BY first_seen, uses.device ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)), 0) - 300 THEN 1 ELSE 0 END AS is_alone
    FROM uses JOIN many ON uses.subscriber = many.subscriber JOIN (
      SELECT other.device, COUNT(*) AS sims FROM uses AS other JOIN (SELECT DISTINCT u.device FROM uses AS u JOIN many AS w ON u.subscriber = w.subscriber) AS d ON other.device = d.device GROUP BY other.device
    ) AS sims ON uses.device = sims.device) AS used) AS turns
WHERE is_alone = 1 AND k >= 5 AND k * 10 >= devices * 9
-- unlisted: Devices whose TAC is not in the list of TACs, if there is a list. `has_body`: the list has a TAC with the same first two digits.
SELECT u.device, u.tac, CASE WHEN bodies.body IS NULL THEN 0 ELSE 1 END AS has_body
FROM (SELECT DISTINCT device, CAST(FLOOR(device / 1000000) AS BIGINT) AS tac FROM uses WHERE device < 100000000000000 AND (SELECT COUNT(*) AS n FROM allocations) > 0) AS u
LEFT JOIN (SELECT DISTINCT tac FROM allocations) AS listed ON u.tac = listed.tac LEFT JOIN (SELECT DISTINCT CAST(FLOOR(tac / 1000000) AS BIGINT) AS body FROM allocations) AS bodies ON CAST(FLOOR(u.tac / 1000000) AS BIGINT) = bodies.body
WHERE listed.tac IS NULL AND device % 11111111111111 <> 0
-- tacs: Devices with a TAC that was never allocated: no body has it; or the list is not older than 60 days, and not two devices have the TAC at peers that send a tenth of the average (a new model).
SELECT unlisted.device FROM unlisted CROSS JOIN (SELECT MAX(allocated) AS newest, MIN(allocated) AS oldest FROM allocations) AS l CROSS JOIN (SELECT MAX(last_seen) AS until FROM uses) AS r
LEFT JOIN (
  SELECT unlisted.tac FROM unlisted JOIN (SELECT * FROM sightings WHERE device IN (SELECT unlisted.device FROM unlisted)) AS s ON unlisted.device = s.device JOIN (SELECT peer, SUM(n) AS n FROM sources WHERE counts = 1 GROUP BY peer) AS p ON COALESCE(s.peer, s.origin_host) = p.peer
  CROSS JOIN (SELECT SUM(n) AS n, COUNT(DISTINCT peer) AS peers FROM sources) AS total WHERE p.n * 10 * total.peers >= total.n
  GROUP BY unlisted.tac HAVING COUNT(DISTINCT unlisted.device) >= 2) AS models ON unlisted.tac = models.tac
WHERE has_body = 0 OR (models.tac IS NULL AND (COALESCE(newest = oldest, TRUE) OR DATE_DIFF('day', newest, CAST(until AS DATE)) <= 60))
-- placeholders: Only zeros, one repeated digit, or digits that count up or down.
SELECT DISTINCT device FROM uses WHERE (device < 100000000000000 AND device % 11111111111111 = 0) OR device IN (1234567890123, 12345678901234, 98765432109876, 87654321098765)
-- batches: IMEIs of modules with ten regular SIMs or more. A maker may have given one number to many modules, so they are listed apart from the findings.
SELECT uses.device, COUNT(*) AS subscribers FROM uses JOIN (SELECT DISTINCT tac FROM allocations WHERE is_module = 1) AS modules ON CAST(FLOOR(uses.device / 1000000) AS BIGINT) = modules.tac
WHERE NOT subscriber IS NULL AND CAST(first_seen AS DATE) < CAST(last_seen AS DATE) GROUP BY uses.device HAVING COUNT(*) >= 10
-- fixed: Devices of the conditions with fixed log odds.
SELECT device, 'sim_box' AS name, {certain} AS odds FROM boxes UNION ALL SELECT device, 'placeholder' AS name, {certain} AS odds FROM placeholders
UNION ALL SELECT device, 'tac' AS name, CASE WHEN has_body = 0 THEN {no_body} ELSE {likely} END AS odds FROM unlisted WHERE device IN (SELECT tacs.device FROM tacs)
-- scores: Log odds of each device by the strongest of its conditions.
SELECT device, MAX(odds) AS odds FROM (SELECT device, {model} AS odds FROM evidence UNION ALL SELECT device, odds FROM fixed) AS conditions WHERE NOT device IN (SELECT batches.device FROM batches) GROUP BY device
-- large: Origins and peers of the larger half, by rows, of an operator that sends 5 % of all rows. An invented name would need as many rows.
SELECT DISTINCT kind, name FROM (
  SELECT kind, name, SUM(n) OVER (PARTITION BY kind, realm ORDER BY n DESC, name ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) - n AS larger, SUM(n) OVER (PARTITION BY kind, realm) AS of_realm, SUM(n) OVER (PARTITION BY kind) AS total
  FROM (SELECT 'origin' AS kind, origin AS name, realm, SUM(n) AS n FROM sources GROUP BY origin, realm UNION ALL SELECT 'peer' AS kind, peer AS name, realm, SUM(n) AS n FROM sources GROUP BY peer, realm) AS counted) AS ranked
WHERE larger * 2 < of_realm AND of_realm * 20 >= total
-- reporters: Pairs of origin and peer, with 1 if both are large, and the operator if it sends less than 5 % of all rows.
SELECT CASE WHEN SUM(n) OVER (PARTITION BY realm) * 20 < SUM(n) OVER () THEN realm END AS small_realm, sources.source, sources.origin, sources.peer, CASE WHEN o.name IS NULL OR p.name IS NULL THEN 0 ELSE 1 END AS is_large
FROM sources LEFT JOIN large AS o ON sources.origin = o.name AND o.kind = 'origin' LEFT JOIN large AS p ON sources.peer = p.name AND p.kind = 'peer'
-- claims: For each SIM of a suspicious shared device the origins and peers that reported it. A large one reported it by a large one if it `is_seen`. SIM boxes are left out: one box has many devices at one MME.
SELECT *, MAX(is_large) OVER (PARTITION BY device, sim) AS is_seen FROM (
  SELECT DISTINCT s.device, s.sim, r.origin, r.peer, r.small_realm, r.is_large
  FROM steps AS s JOIN (SELECT device FROM evidence WHERE {model} > {suspicious}) AS d ON s.device = d.device JOIN reporters AS r ON s.source = r.source) AS reported
-- ordinary: Origins and peers that reported the phones of the sample.
SELECT DISTINCT checks.device, r.origin, r.peer, r.is_large FROM checks JOIN phones ON checks.device = phones.device JOIN reporters AS r ON checks.source = r.source
-- carried: Number of ordinary phones that both an origin or peer and a large one reported.
SELECT name, COUNT(DISTINCT o.device) * (SELECT MAX(share) AS share FROM phones) AS phones
FROM (SELECT device, origin AS name FROM ordinary UNION ALL SELECT device, peer AS name FROM ordinary) AS o
WHERE o.device IN (SELECT ordinary.device FROM ordinary WHERE ordinary.is_large = 1) GROUP BY name
-- liar: The worst origin or peer. Its doubtful reports make five devices or more suspicious that another reporter has too, and these are more than half of its ordinary phones. Reports of one small operator do not discredit each other.
SELECT d.name FROM (
  SELECT c.name, COUNT(DISTINCT c.device) AS devices FROM (
    SELECT device, small_realm, origin AS name FROM claims WHERE is_seen = 0 AND {believed_source} UNION SELECT device, small_realm, peer AS name FROM claims WHERE is_seen = 0 AND {believed_source}) AS c
  JOIN (SELECT DISTINCT device, small_realm, origin, peer FROM claims WHERE {believed_source}) AS o ON c.device = o.device AND c.name <> o.origin AND c.name <> o.peer AND COALESCE(c.small_realm <> o.small_realm, TRUE)
  WHERE NOT c.name IN (SELECT large.name FROM large) GROUP BY c.name HAVING COUNT(DISTINCT c.device) >= 5) AS d
LEFT JOIN carried ON d.name = carried.name WHERE devices * 2 > COALESCE(phones, 0) ORDER BY CAST(devices AS DOUBLE) / (COALESCE(phones, 0) + 1) DESC, d.name LIMIT 1
