-- Many SIMs that go round through many devices: what is left when whoever has fewer than so many partners is taken away, again and again.
SELECT
  box.device, 1 - POWER(0.5, COUNT(DISTINCT box.subscriber)) AS strength,
  CONCAT(CAST(COUNT(DISTINCT box.subscriber) AS VARCHAR), ' SIMs that each go round through ', CAST(MIN(box.subscriber_devices) AS VARCHAR), ' or more such devices') AS evidence
FROM box
GROUP BY box.device
