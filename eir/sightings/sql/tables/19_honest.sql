-- What speaks for an honest explanation of each shared device, in words; empty where nothing does.
SELECT
  device,
  TRIM(CONCAT(
    CASE WHEN homes > 0 THEN 'subscribers of several networks, as a SIM with several IMSIs has; ' ELSE '' END,
    CASE WHEN same_version > 0 THEN 'the same software version with all subscribers; ' ELSE '' END,
    CASE WHEN together >= 0.1 THEN 'changes that come together, as with two SIMs of one phone; ' ELSE '' END,
    CASE WHEN uneven >= 2 THEN 'one SIM follows the other sooner than the other way round, as one that stands in; ' ELSE '' END
  ), '; ') AS words
FROM evidence
