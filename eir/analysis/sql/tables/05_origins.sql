-- Origins by number, in the order of their names: what looks at sightings one by one carries numbers, which take a tenth of the room.
SELECT origin_host AS origin, CAST(ROW_NUMBER() OVER (ORDER BY origin_host) AS INTEGER) AS number
FROM (SELECT DISTINCT origin_host FROM sightings WHERE NOT origin_host IS NULL) AS named
