"""AVPs that an ECR may contain: the AVPs of S13, and all other AVPs of TS 29.272.

Data only, to be checked against TS 29.272 7.3.1, tables 1 and 2, and TS 29.230.
"""

from eir.wire.diameter.avp import encode_u32
from eir.wire.diameter.dictionary import AUTH_SESSION_STATE, BASE_DICTIONARY, read_avps

S13_APPLICATION = 16777252
"""Application-Id of S13 (MME and EIR) and S13' (SGSN and EIR): TS 29.272 7.1.8."""
VENDOR_3GPP = 10415
ME_IDENTITY_CHECK, ME_IDENTITY_CHECK_NAME = 324, "ME-Identity-Check"
"""Command of ECR and ECA."""
ERROR_EQUIPMENT_UNKNOWN = 5422
"""Experimental-Result-Code: TS 29.272 7.4.3.4."""

_TS_29_272 = """
1400-1499,1600-1729 3GPP octets
515-516,1028,1032,1046-1048,1405-1406,1410,1412,1417-1426,1428,1432,1434,1437-1443,1455-1457,1462 3GPP u32
1468,1478,1481-1482,1484,1490-1494,1499,1610-1611,1613-1619,1623,1625-1628,1631-1636,1638-1640,1648 3GPP u32
1650,1654-1658,1661-1663,1665,1668-1669,1674,1676,1679-1683,1686,1689-1690,1693,1695-1699,1703-1704 3GPP u32
1706-1709,1713,1715-1719,3124 3GPP u32
3144 Supported-Monitoring-Events u64
848,1227,1452,1621 3GPP address
3125 SCEF-ID identity
13,625-626,857,3111,3300,4008 3GPP octets
1034,1400,1408-1409,1413-1416,1429-1431,1435-1436,1458,1467,1469,1472-1473,1475,1479,1483,1485-1486 3GPP group
1488,1495-1498,1600-1601,1612,1622,1624,1637,1641,1649,1667,1672-1673,1675,1685,1687-1688,1691,1694 3GPP group
1701,1705,1710-1712,1714,2319,3102,3113-3114,3118,3122-3123,3143 3GPP group

628 Supported-Features group
629 Feature-List-ID u32
630 Feature-List u32
701 MSISDN octets
1401 Terminal-Information group
1402 IMEI utf8
1403 Software-Version utf8
1445 Equipment-Status enum 0-2
1471 3GPP2-MEID octets
"""
"""AVPs by code and type. S13 does not use those of the first part: the node only needs to know them, their groups, and the length of an
example (u32 stands for every type of 4 bytes). The first line is the range that TS 29.230 reserves for TS 29.272, so that AVPs of later releases
are known as well."""

_OTHERS = """
30 Called-Station-Id utf8
125 MIP6-Home-Link-Prefix octets
334 MIP-Home-Agent-Address address
348 MIP-Home-Agent-Host group
486 MIP6-Agent-Info group
493 Service-Selection utf8
"""
"""AVPs that TS 29.272 reuses from RFCs other than the base protocol."""

DICTIONARY = BASE_DICTIONARY.plus(read_avps(_TS_29_272, VENDOR_3GPP), read_avps(_OTHERS))

TERMINAL_INFORMATION = DICTIONARY.keys["Terminal-Information"]
IMEI = DICTIONARY.keys["IMEI"]
SOFTWARE_VERSION = DICTIONARY.keys["Software-Version"]
MEID = DICTIONARY.keys["3GPP2-MEID"]
MSISDN = DICTIONARY.keys["MSISDN"]
EQUIPMENT_STATUS = DICTIONARY.keys["Equipment-Status"]

NO_STATE = encode_u32(AUTH_SESSION_STATE, 1)
"""Encoded Auth-Session-State with NO_STATE_MAINTAINED, for every ECR and ECA (TS 29.272 7.1.4)."""
