-- The two busiest subscribers of each shared device, during their common period, with the number of runs of their checks (Wald and Wolfowitz). Two phones give a random
-- order, with the expected number of runs within about two deviations. The SIMs of one phone come in blocks (fewer runs) or together (more runs). Of the checks of a SIM within half an
-- hour only the first counts, because checks come in groups. `slant`: ratio of the mean delays in the two directions, in deviations. For two phones both delays are equal.
SELECT
  device, a, b, runs, expected, SQRT(GREATEST((expected - 1) * (expected - 2) / GREATEST(a + b - 1, 1), 0.25)) AS deviation,
  ABS(LN(GREATEST(there_s, 1) / GREATEST(back_s, 1))) * SQRT((runs - 1) / 4) AS slant
FROM (
  SELECT device, a, b, runs, there_s, back_s, 1 + 2 * a * b / (a + b) AS expected
  FROM (
    SELECT
      device, CAST(SUM(CASE WHEN subscriber = 1 THEN 1 ELSE 0 END) AS DOUBLE) AS a, CAST(SUM(CASE WHEN subscriber = 2 THEN 1 ELSE 0 END) AS DOUBLE) AS b,
      CAST(SUM(CASE WHEN subscriber = before_subscriber THEN 0 ELSE 1 END) AS DOUBLE) AS runs,
      AVG(CASE WHEN subscriber > before_subscriber THEN gap_s END) AS there_s, AVG(CASE WHEN subscriber < before_subscriber THEN gap_s END) AS back_s
    FROM (
      SELECT
        device, subscriber, COALESCE(LAG(subscriber) OVER trail, 0) AS before_subscriber, instant_s - LAG(instant_s) OVER trail AS gap_s
      FROM (
        SELECT
          device, subscriber, time, instant_s, instant_s - COALESCE(LAG(instant_s) OVER (PARTITION BY device, subscriber ORDER BY instant_s), 0) AS since_s,
          MIN(CASE WHEN subscriber = 1 THEN time END) OVER everything AS one_from, MIN(CASE WHEN subscriber = 2 THEN time END) OVER everything AS other_from,
          MAX(CASE WHEN subscriber = 1 THEN time END) OVER everything AS one_until, MAX(CASE WHEN subscriber = 2 THEN time END) OVER everything AS other_until
        FROM steps
        WHERE subscriber <= 2
        WINDOW everything AS (PARTITION BY device)
      ) AS two
      WHERE since_s >= 1800 AND time >= GREATEST(one_from, other_from) AND time <= LEAST(one_until, other_until)
      WINDOW trail AS (PARTITION BY device ORDER BY time, subscriber)
    ) AS of_two
    GROUP BY device
  ) AS counted
  WHERE a > 0 AND b > 0
) AS compared
