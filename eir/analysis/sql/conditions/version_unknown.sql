-- A software version that hardly any other device of the TAC has, and that is older than what most of them have: another model's firmware.
SELECT
  detail.device, 0.6 AS strength,
  CONCAT('software version ', MIN(models.version), ' in ', CAST(MIN(models.devices) AS VARCHAR), ' of ', CAST(MIN(models.of_devices) AS VARCHAR), ' devices of its model') AS evidence
FROM detail JOIN models ON CAST(FLOOR(detail.device / 1000000) AS BIGINT) = models.tac AND detail.version = models.version JOIN parameters ON TRUE
WHERE models.of_devices >= parameters.model_devices_min AND (models.devices <= 2 OR models.devices * 500 <= models.of_devices) AND models.version < models.newest
GROUP BY detail.device
