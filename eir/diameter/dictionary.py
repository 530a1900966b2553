"""The dictionary: AVPs of the base protocol, of S13, and of all else that a peer may rightly put into an ECR.

Data only, for a reader to check against RFC 6733 4.5, TS 29.272 7.3.1 and TS 29.230. Imports avp for the key alone.
An AVP that stands here is known: it is never the reason for a 5001, whatever its M bit.
"""

from enum import Enum
from typing import NamedTuple

from eir.diameter.avp import M_FLAG, key_of


class Type(Enum):
    """Base and derived AVP formats (RFC 6733 4.2, 4.3): the only length where there is one, and the least that an example needs."""

    OCTETS = ("octets", None, 0)
    UTF8 = ("utf8", None, 0)
    IDENTITY = ("identity", None, 1)
    URI = ("uri", None, 1)
    U32 = ("u32", 4, 4)
    U64 = ("u64", 8, 8)
    ENUM = ("enum", 4, 4)
    ADDRESS = ("address", None, 6)
    TIME = ("time", 4, 4)
    GROUP = ("group", None, 0)

    def __init__(self, letter: str, only_bytes: int | None, least_bytes: int) -> None:
        self.letter = letter
        self.only_bytes = only_bytes
        """Length of the data, where the format has but one."""
        self.least_bytes = least_bytes
        """Length of the zeros in an example of a missing AVP."""


class Definition(NamedTuple):
    """One AVP: its name, its format, and the flags that we set when we send it (V not among them)."""

    name: str
    type: Type
    flags: int


IETF, TGPP = 0, 10415
BASE, S13, RELAY = 0, 16777252, 0xFFFFFFFF
"""Application ids."""

CAPABILITIES_EXCHANGE, DEVICE_WATCHDOG, DISCONNECT_PEER, ME_IDENTITY_CHECK = 257, 280, 282, 324

USER_NAME = 1
HOST_IP_ADDRESS = 257
AUTH_APPLICATION_ID = 258
ACCT_APPLICATION_ID = 259
VENDOR_SPECIFIC_APPLICATION_ID = 260
SESSION_ID = 263
ORIGIN_HOST = 264
SUPPORTED_VENDOR_ID = 265
VENDOR_ID = 266
FIRMWARE_REVISION = 267
RESULT_CODE = 268
PRODUCT_NAME = 269
DISCONNECT_CAUSE = 273
AUTH_SESSION_STATE = 277
ORIGIN_STATE_ID = 278
FAILED_AVP = 279
DESTINATION_REALM = 283
PROXY_INFO = 284
DESTINATION_HOST = 293
ORIGIN_REALM = 296
EXPERIMENTAL_RESULT = 297
EXPERIMENTAL_RESULT_CODE = 298
INBAND_SECURITY_ID = 299
DRMP = 301

TERMINAL_INFORMATION = key_of(1401, TGPP)
IMEI = key_of(1402, TGPP)
SOFTWARE_VERSION = key_of(1403, TGPP)
EQUIPMENT_STATUS = key_of(1445, TGPP)
MEID = key_of(1471, TGPP)

IETF_AVPS = """
1 User-Name utf8
25 Class octets
27 Session-Timeout u32
30 Called-Station-Id utf8
33 Proxy-State octets
44 Accounting-Session-Id octets
50 Acct-Multi-Session-Id utf8
55 Event-Timestamp time
85 Acct-Interim-Interval u32
125 MIP6-Home-Link-Prefix octets
257 Host-IP-Address address
258 Auth-Application-Id u32
259 Acct-Application-Id u32
260 Vendor-Specific-Application-Id group
261 Redirect-Host-Usage enum
262 Redirect-Max-Cache-Time u32
263 Session-Id utf8
264 Origin-Host identity
265 Supported-Vendor-Id u32
266 Vendor-Id u32
267 Firmware-Revision u32 optional
268 Result-Code u32
269 Product-Name utf8 optional
270 Session-Binding u32
271 Session-Server-Failover enum
272 Multi-Round-Time-Out u32
273 Disconnect-Cause enum
274 Auth-Request-Type enum
276 Auth-Grace-Period u32
277 Auth-Session-State enum
278 Origin-State-Id u32
279 Failed-AVP group
280 Proxy-Host identity
281 Error-Message utf8 optional
282 Route-Record identity
283 Destination-Realm identity
284 Proxy-Info group
285 Re-Auth-Request-Type enum
287 Accounting-Sub-Session-Id u64
291 Authorization-Lifetime u32
292 Redirect-Host uri
293 Destination-Host identity
294 Error-Reporting-Host identity optional
295 Termination-Cause enum
296 Origin-Realm identity
297 Experimental-Result group
298 Experimental-Result-Code u32
299 Inband-Security-Id u32
301 DRMP enum optional
334 MIP-Home-Agent-Address address
348 MIP-Home-Agent-Host group
480 Accounting-Record-Type enum
483 Accounting-Realtime-Required enum
485 Accounting-Record-Number u32
486 MIP6-Agent-Info group
493 Service-Selection utf8
621 OC-Supported-Features group optional
622 OC-Feature-Vector u64 optional
623 OC-OLR group optional
624 OC-Sequence-Number u64 optional
625 OC-Validity-Duration u32 optional
626 OC-Report-Type enum optional
627 OC-Reduction-Percentage u32 optional
648 OC-Peer-Algo u64 optional
649 SourceID identity optional
650 Load group optional
651 Load-Type enum optional
652 Load-Value u64 optional
"""
"""RFC 6733 4.5, RFC 7683 (OC-*), RFC 7944 (DRMP), RFC 8581, RFC 8583 (Load), and what TS 29.272 uses of other RFCs."""

T_AVPS = """
1400 Subscription-Data group
1401 Terminal-Information group
1402 IMEI utf8
1403 Software-Version utf8
1404 QoS-Subscribed octets
1405 ULR-Flags u32
1406 ULA-Flags u32
1407 Visited-PLMN-Id octets
1408 Requested-EUTRAN-Authentication-Info group
1409 Requested-UTRAN-GERAN-Authentication-Info group
1410 Number-Of-Requested-Vectors u32
1411 Re-Synchronization-Info octets
1412 Immediate-Response-Preferred u32
1413 Authentication-Info group
1414 E-UTRAN-Vector group
1415 UTRAN-Vector group
1416 GERAN-Vector group
1417 Network-Access-Mode enum
1418 HPLMN-ODB u32
1419 Item-Number u32
1420 Cancellation-Type enum
1421 DSR-Flags u32
1422 DSA-Flags u32
1423 Context-Identifier u32
1424 Subscriber-Status enum
1425 Operator-Determined-Barring u32
1426 Access-Restriction-Data u32
1427 APN-OI-Replacement utf8
1428 All-APN-Configurations-Included-Indicator enum
1429 APN-Configuration-Profile group
1430 APN-Configuration group
1431 EPS-Subscribed-QoS-Profile group
1432 VPLMN-Dynamic-Address-Allowed enum
1433 STN-SR octets
1434 Alert-Reason enum
1435 AMBR group
1436 CSG-Subscription-Data group
1437 CSG-Id u32
1438 PDN-GW-Allocation-Type enum
1439 Expiration-Date time
1440 RAT-Frequency-Selection-Priority-ID u32
1441 IDA-Flags u32
1442 PUA-Flags u32
1443 NOR-Flags u32
1444 User-Id utf8
1445 Equipment-Status enum
1446 Regional-Subscription-Zone-Code octets
1447 RAND octets
1448 XRES octets
1449 AUTN octets
1450 KASME octets
1452 Trace-Collection-Entity address
1453 Kc octets
1454 SRES octets
1455 Requesting-Node-Type enum
1456 PDN-Type enum
1457 Roaming-Restricted-Due-To-Unsupported-Feature enum
1458 Trace-Data group
1459 Trace-Reference octets
1462 Trace-Depth enum
1463 Trace-NE-Type-List octets
1464 Trace-Interface-List octets
1465 Trace-Event-List octets
1466 OMC-Id octets
1467 GPRS-Subscription-Data group
1468 Complete-Data-List-Included-Indicator enum
1469 PDP-Context group
1470 PDP-Type octets
1471 3GPP2-MEID octets
1472 Specific-APN-Info group
1473 LCS-Info group
1474 GMLC-Number octets
1475 LCS-PrivacyException group
1476 SS-Code octets
1477 SS-Status octets
1478 Notification-To-UE-User enum
1479 External-Client group
1480 Client-Identity octets
1481 GMLC-Restriction enum
1482 PLMN-Client enum
1483 3GPP-Service-Type group
1484 ServiceTypeIdentity u32
1485 MO-LR group
1486 Teleservice-List group
1487 TS-Code octets
1488 Call-Barring-Info group
1489 SGSN-Number octets
1490 IDR-Flags u32
1491 ICS-Indicator enum
1492 IMS-Voice-Over-PS-Sessions-Supported enum
1493 Homogeneous-Support-of-IMS-Voice-Over-PS-Sessions enum
1494 Last-UE-Activity-Time time
1495 EPS-User-State group
1496 EPS-Location-Information group
1497 MME-User-State group
1498 SGSN-User-State group
1499 User-State enum
1600 MME-Location-Information group
1601 SGSN-Location-Information group
1602 E-UTRAN-Cell-Global-Identity octets
1603 Tracking-Area-Identity octets
1604 Cell-Global-Identity octets
1605 Routing-Area-Identity octets
1606 Location-Area-Identity octets
1607 Service-Area-Identity octets
1608 Geographical-Information octets
1609 Geodetic-Information octets
1610 Current-Location-Retrieved enum
1611 Age-Of-Location-Information u32
1612 Active-APN group
1613 SIPTO-Permission enum
1614 Error-Diagnostic enum
1615 UE-SRVCC-Capability enum
1616 MPS-Priority u32
1617 VPLMN-LIPA-Allowed enum
1618 LIPA-Permission enum
1619 Subscribed-Periodic-RAU-TAU-Timer u32
1620 Ext-PDP-Type octets
1621 Ext-PDP-Address address
1622 MDT-Configuration group
1623 Job-Type enum
1624 Area-Scope group
1625 List-Of-Measurements u32
1626 Reporting-Trigger u32
1627 Report-Interval enum
1628 Report-Amount enum
1629 Event-Threshold-RSRP u32
1630 Event-Threshold-RSRQ u32
1631 Logging-Interval enum
1632 Logging-Duration enum
1633 Relay-Node-Indicator enum
1634 MDT-User-Consent enum
1635 PUR-Flags u32
1636 Subscribed-VSRVCC enum
1637 Equivalent-PLMN-List group
1638 CLR-Flags u32
1639 UVR-Flags u32
1640 UVA-Flags u32
1641 VPLMN-CSG-Subscription-Data group
1642 Time-Zone utf8
1643 A-MSISDN octets
1645 MME-Number-for-MT-SMS octets
1648 SMS-Register-Request enum
1649 Local-Time-Zone group
1650 Daylight-Saving-Time enum
1654 Subscription-Data-Flags u32
1655 Measurement-Period-LTE enum
1656 Measurement-Period-UMTS enum
1657 Collection-Period-RRM-LTE enum
1658 Collection-Period-RRM-UMTS enum
1659 Positioning-Method octets
1660 Measurement-Quantity octets
1661 Event-Threshold-Event-1F enum
1662 Event-Threshold-Event-1I enum
1663 Restoration-Priority u32
1664 SGs-MME-Identity utf8
1665 SIPTO-Local-Network-Permission enum
1666 Coupled-Node-Diameter-ID octets
1667 WLAN-offloadability group
1668 WLAN-offloadability-EUTRAN u32
1669 WLAN-offloadability-UTRAN u32
1670 Reset-ID octets
1671 MDT-Allowed-PLMN-Id octets
1672 Adjacent-PLMNs group
1673 Adjacent-Access-Restriction-Data group
1674 DL-Buffering-Suggested-Packet-Count enum
1675 IMSI-Group-Id group
1676 Group-Service-Id u32
1677 Group-PLMN-Id octets
1678 Local-Group-Id octets
1679 AIR-Flags u32
1680 UE-Usage-Type u32
1681 Non-IP-PDN-Type-Indicator enum
1682 Non-IP-Data-Delivery-Mechanism enum
1683 Additional-Context-Identifier u32
1684 SCEF-Realm octets
1685 Subscription-Data-Deletion group
1686 Preferred-Data-Mode u32
1687 Emergency-Info group
1688 V2X-Subscription-Data group
1689 V2X-Permission u32
1690 PDN-Connection-Continuity enum
1691 eDRX-Cycle-Length group
1692 eDRX-Cycle-Length-Value octets
1693 UE-PC5-AMBR u32
1694 MBSFN-Area group
1695 MBSFN-Area-ID u32
1696 Carrier-Frequency u32
1697 RDS-Indicator enum
1698 Service-Gap-Time u32
1699 Aerial-UE-Subscription-Information u32
1701 Paging-Time-Window group
1702 Paging-Time-Window-Length octets
1703 Operation-Mode u32
1704 Core-Network-Restrictions u32
1705 eDRX-Related-RAT group
1706 Interworking-5GS-Indicator enum
1707 Ethernet-PDN-Type-Indicator enum
1708 Subscribed-ARPI u32
1709 IAB-Operation-Permission enum
1710 V2X-Subscription-Data-Nr group
1711 UE-PC5-QoS group
1712 PC5-QoS-Flow group
1713 5QI enum
1714 PC5-Flow-Bitrates group
1715 Guaranteed-Flow-Bitrates enum
1716 Maximum-Flow-Bitrates enum
1717 PC5-Range enum
1718 PC5-Link-AMBR enum
1719 Third-Context-Identifier u32
"""
"""TS 29.272 7.3.1 table 1."""

T_CODES = (range(1400, 1500), range(1600, 1730))
"""What TS 29.230 sets aside for TS 29.272; a code without a row above is of a later release, and known all the same."""

TGPP_AVPS = """
13 3GPP-Charging-Characteristics utf8
515 Max-Requested-Bandwidth-DL u32
516 Max-Requested-Bandwidth-UL u32
625 Confidentiality-Key octets
626 Integrity-Key octets
628 Supported-Features group
629 Feature-List-ID u32
630 Feature-List u32
701 MSISDN octets
848 Served-Party-IP-Address address
857 Charged-Party utf8
1028 QoS-Class-Identifier enum
1032 RAT-Type enum
1034 Allocation-Retention-Priority group
1046 Priority-Level u32
1047 Pre-emption-Capability enum
1048 Pre-emption-Vulnerability enum
1227 PDP-Address address
2319 User-CSG-Information group
3102 User-Identifier group
3111 External-Identifier utf8
3113 AESE-Communication-Pattern group
3114 Communication-Pattern-Set group
3118 Scheduled-Communication-Time group
3122 Monitoring-Event-Configuration group
3123 Monitoring-Event-Report group
3124 SCEF-Reference-ID u32
3125 SCEF-ID identity
3143 Supported-Services group
3144 Supported-Monitoring-Events u64
3300 SC-Address octets
4008 eNodeB-ID octets
"""
"""Those of other 3GPP specifications that TS 29.272 7.3.1 table 2 takes over."""


def _read(table: str, vendor: int) -> dict[int, Definition]:
    types = {kind.letter: kind for kind in Type}
    read = {}
    for row in table.split("\n"):
        match row.split():
            case [code, name, letter, *rest]:
                read[key_of(int(code), vendor)] = Definition(name, types[letter], 0 if rest else M_FLAG)
    return read


AVPS: dict[int, Definition] = {
    **{key_of(code, TGPP): Definition(f"3GPP-{code}", Type.OCTETS, 0) for codes in T_CODES for code in codes},
    **_read(IETF_AVPS, IETF),
    **_read(T_AVPS, TGPP),
    **_read(TGPP_AVPS, TGPP),
}
"""Key → definition of every known AVP."""

KEYS: dict[str, int] = {definition.name: key for key, definition in AVPS.items()}
"""Name → key."""

GROUPS: frozenset[int] = frozenset(key for key, definition in AVPS.items() if definition.type is Type.GROUP)
"""Keys of the known groups."""

VALUES: dict[int, frozenset[int]] = {
    AUTH_SESSION_STATE: frozenset({0, 1}),  # RFC 6733 8.11
    EQUIPMENT_STATUS: frozenset({0, 1, 2}),  # TS 29.272 7.3.51
}
"""The values of an Enumerated AVP, where any other is an error to answer (RFC 6733 7.1.5, 5004)."""
