-- Reasons for an honest explanation of each shared device, as text; empty if there is none.
SELECT
  device,
  TRIM(CONCAT(
    CASE WHEN home_count > 1 THEN 'subscribers of several networks, as a SIM with several IMSIs has; ' ELSE '' END,
    CASE WHEN lowest = highest AND changes >= 6 THEN 'the same software version with all subscribers; ' ELSE '' END,
    CASE WHEN one_days > 0 AND one_days * 2 >= two_days THEN 'SIMs that go on where the device was, as those of one phone; ' ELSE '' END,
    CASE WHEN together >= 0.1 THEN 'changes that come together, as with two SIMs of one phone; ' ELSE '' END,
    CASE WHEN uneven >= 2 THEN 'one SIM follows the other sooner than the other way round, as one that stands in; ' ELSE '' END
  ), '; ') AS words
FROM evidence
