"""What a certificate says of itself: names and validity, read from its DER encoding (RFC 5280 4.1).

Python's ssl module tells this of a peer's certificate, not of one's own. Nothing is verified here: that is TLS's matter.
Imports nothing of ours.
"""

import ssl
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

SEQUENCE, UTC_TIME, OBJECT_IDENTIFIER, OCTET_STRING = 0x30, 0x17, 0x06, 0x04
VERSION, EXTENSIONS, DNS_NAME = 0xA0, 0xA3, 0x82
"""Context tags: version and extensions of TBSCertificate, dNSName of a GeneralName."""
COMMON_NAME, SUBJECT_ALT_NAME = b"\x55\x04\x03", b"\x55\x1d\x11"
LONG_FORM = 0x80
TWENTIETH_CENTURY_FROM = 50
"""RFC 5280 4.1.2.5.1: a two-digit year from here on is 19YY."""
END = "-----END CERTIFICATE-----"


class Certificate(NamedTuple):
    """One certificate."""

    names: tuple[str, ...]
    """Its DNS names; where it has none, its common name (RFC 6125 6.4.4: a last resort)."""
    not_before: datetime
    not_after: datetime


class Element(NamedTuple):
    """One element of a DER encoding."""

    tag: int
    content: bytes


def first_certificate(pem: str) -> Certificate:
    """The first certificate of a PEM file. Raises ValueError if there is none, or nothing that could be one."""
    head, end, _ = pem.partition(END)
    at = head.find("-----BEGIN CERTIFICATE-----")
    if at < 0 or not end:
        raise ValueError("no certificate in it")
    return read_certificate(ssl.PEM_cert_to_DER_cert(head[at:] + end))


def read_certificate(der: bytes) -> Certificate:
    """A certificate from its DER encoding. Raises ValueError if it is none."""
    try:
        (whole,) = elements(der)
        (tbs, *_) = elements(whole.content)
        fields = list(elements(tbs.content))
        if fields[0].tag == VERSION:
            del fields[0]
        _, _, _, validity, subject, _, *rest = fields
        not_before, not_after = map(_time, elements(validity.content))
        names = [name for element in rest if element.tag == EXTENSIONS for name in _dns_names(element)]
        return Certificate(tuple(names or _common_names(subject)), not_before, not_after)
    except (IndexError, ValueError) as e:
        raise ValueError("it is no X.509 certificate") from e


def names_of_peer(certificate: Mapping[str, Any]) -> Sequence[str]:
    """The same names, from what `SSLSocket.getpeercert` returns of a certificate that was verified."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return names or [
        value for attributes in certificate.get("subject", ()) for kind, value in attributes if kind == "commonName"
    ]


def elements(der: bytes) -> Iterator[Element]:
    """The elements that stand one after the other in an encoding (X.690 8.1). Raises ValueError, IndexError."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & LONG_FORM:
            octets = length & ~LONG_FORM
            length = int.from_bytes(der[at : at + octets])
            at += octets
        if at + length > len(der):
            raise ValueError("an element runs past its end")
        yield Element(tag, der[at : at + length])
        at += length


def _time(element: Element) -> datetime:
    text = element.content.decode("ascii")
    if element.tag == UTC_TIME:
        text = f"{'19' if int(text[:2]) >= TWENTIETH_CENTURY_FROM else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _dns_names(extensions: Element) -> Iterator[str]:
    (listed,) = elements(extensions.content)
    for extension in elements(listed.content):
        identifier, *_, value = elements(extension.content)
        if identifier.content == SUBJECT_ALT_NAME and value.tag == OCTET_STRING:
            (names,) = elements(value.content)
            yield from (name.content.decode("ascii") for name in elements(names.content) if name.tag == DNS_NAME)


def _common_names(subject: Element) -> Iterator[str]:
    for attributes in elements(subject.content):
        for attribute in elements(attributes.content):
            identifier, value = elements(attribute.content)
            if identifier.content == COMMON_NAME:
                yield value.content.decode("utf-8", "replace")
