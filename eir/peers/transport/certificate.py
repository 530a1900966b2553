"""Names and validity of a certificate (RFC 5280).

Python's ssl module tells this of a peer's certificate, not of one's own, which `cryptography` reads. Nothing is verified here: that is
TLS's matter. Imports nothing of ours.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple


class Certificate(NamedTuple):
    """One certificate."""

    names: tuple[str, ...]
    """Its DNS names; without any, its common name (RFC 6125 6.4.4: a last resort)."""
    not_before: datetime
    not_after: datetime


def first_certificate(pem: bytes) -> Certificate:
    """The first certificate of a PEM file. Raises ValueError if the file has no readable certificate."""
    from cryptography import x509  # noqa: PLC0415 - 30 ms and 10 MB that a node without TLS does not need

    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ValueError("no certificate in it")
    names: list[str] = []
    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd and yet read is for TLS to judge
            read = x509.load_pem_x509_certificate(pem)
            with suppress(x509.ExtensionNotFound):
                names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
                    x509.DNSName
                )
            common = [str(name.value) for name in read.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
            return Certificate(tuple(names or common), read.not_valid_before_utc, read.not_valid_after_utc)
    except (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as e:
        raise ValueError(f"not an X.509 certificate ({e})") from e


def names_of_peer(certificate: Mapping[str, Any]) -> Sequence[str]:
    """The same names, from what `SSLSocket.getpeercert` returns of a certificate that was verified."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return names or [
        value for attributes in certificate.get("subject", ()) for kind, value in attributes if kind == "commonName"
    ]
