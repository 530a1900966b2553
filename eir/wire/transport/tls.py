"""TLS contexts of the node from its certificate files (RFC 6733 13.1, RFC 8996).

`read_tls` reads the files once, so that each process creates the same contexts from the same content even if the files change.

Peers always need a certificate of a configured authority. The names in their certificate are compared with the CER
(eir.wire.diameter.capabilities.certificate_fits), not with the dialled address. `cryptography` parses the node's own certificate
(RFC 5280), which Python's ssl module cannot.
"""

import os
import ssl
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from eir.errors import FileError
from eir.wire.transport.settings import TlsSettings


class Certificate(NamedTuple):
    """Names and validity of an X.509 certificate."""

    names: tuple[str, ...]
    """DNS names, or the common name of a certificate without DNS names (RFC 6125 6.4.4: a last resort)."""
    not_before: datetime
    not_after: datetime


def first_certificate(pem: bytes) -> Certificate:
    """Parse the first certificate of a PEM file. Raises ValueError if the file has no readable certificate."""
    from cryptography import x509  # noqa: PLC0415 - 30 ms and 10 MB that a node without TLS does not need

    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ValueError("no certificate in it")
    names: list[str] = []
    try:
        with warnings.catch_warnings(action="ignore"):  # OpenSSL decides about odd but readable certificates
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
    """Return the host names in a verified certificate. `certificate`: result of `SSLSocket.getpeercert`."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return names or [
        value for attributes in certificate.get("subject", ()) for kind, value in attributes if kind == "commonName"
    ]


VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
MISMATCHES = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""OpenSSL's reasons for a key of another certificate."""
FILE_BYTES_MAX = 1 << 20
HTTP2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Ciphers of TLS 1.2 that RFC 9113 9.2.2 allows."""


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS contexts of the node: one for each kind of listener, and one for outgoing connections.

    New certificates replace the whole object, so that each handshake has consistent files.
    """

    accepting: ssl.SSLContext
    """Context of `tls://` listeners."""
    connecting: ssl.SSLContext
    """Context of `connect: tls://…`."""
    http2: ssl.SSLContext
    """Context of HTTP/2 listeners (RFC 9113 9.2)."""
    passwords: ssl.SSLContext
    """Context of HTTP/1.1 listeners, whose clients authenticate with a password or a token instead of a certificate."""
    certificate: Certificate
    """Certificate of the node."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Contents of the configured TLS files, read once, so that the manager can send them to other processes."""

    settings: TlsSettings
    contents: Mapping[str, bytes]
    """Content of each file, by the setting that names the file."""


def read_tls(settings: TlsSettings) -> TlsFiles:
    """Read all TLS files. Raises FileError if a file is unreadable."""
    files = {key: file for key in ("certificate", "key", "ca", "crl") if (file := getattr(settings, key)) is not None}
    return TlsFiles(settings, {key: read_named(key, file) for key, file in files.items()})


def load_tls(files: TlsFiles) -> Tls:
    """Create the TLS contexts. Raises FileError with a text that names the file and the fault."""
    settings, contents = files.settings, files.contents
    try:
        certificate = first_certificate(contents["certificate"])
    except ValueError as e:
        raise FileError("certificate", f"{settings.certificate}: {e}; expected the node's certificate in PEM") from None
    if b"PRIVATE KEY-----" not in contents["key"]:
        raise FileError("key", f"{settings.key} contains no private key; expected the certificate's key, in PEM")
    with ExitStack() as stack:
        paths = {key: stack.enter_context(_in_memory(content)) for key, content in contents.items()}
        accepting, connecting, http2, passwords = (
            _context(settings, paths, protocol)
            for protocol in (
                ssl.PROTOCOL_TLS_SERVER,
                ssl.PROTOCOL_TLS_CLIENT,
                ssl.PROTOCOL_TLS_SERVER,
                ssl.PROTOCOL_TLS_SERVER,
            )
        )
    # A resumed session would skip the check of its certificate. Connections are few and long, so resumption is disabled.
    accepting.num_tickets = http2.num_tickets = 0
    http2.set_alpn_protocols(["h2"])
    http2.set_ciphers(HTTP2_CIPHERS)
    passwords.verify_mode = ssl.CERT_NONE
    passwords.set_alpn_protocols(["http/1.1"])
    return Tls(accepting, connecting, http2, passwords, certificate)


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Store content in a memory file and yield its path, because OpenSSL reads keys and revocation lists only from files."""
    with os.fdopen(os.memfd_create("tls"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _context(settings: TlsSettings, paths: Mapping[str, str], protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # the certificate is compared with the CER or CEA instead
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = VERSIONS[settings.min_version]
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(paths["certificate"], paths["key"], password=_no_passphrase)
    except (ssl.SSLError, OSError) as e:
        if isinstance(e, ssl.SSLError) and e.reason in MISMATCHES:
            raise FileError("key", f"{settings.key} is not the private key of {settings.certificate}") from None
        raise FileError("certificate", f"{settings.certificate} and {settings.key}: {_why(e)}") from None
    except _PassphraseWantedError:
        raise FileError("key", f"{settings.key} requires a passphrase; expected a key without one") from None
    for key in ("ca", "crl"):
        if key in paths:
            try:
                context.load_verify_locations(paths[key])
            except (ssl.SSLError, OSError) as e:
                raise FileError(key, f"{getattr(settings, key)}: {_why(e)}") from None
    stored = context.cert_store_stats()
    if not stored["x509"]:
        raise FileError(
            "ca", f"{settings.ca} contains no certificate; expected the authorities that issue peers' certificates"
        )
    # Trust each certificate in the file, even if it is not the root of its chain.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.crl is not None:
        if not stored["crl"]:
            raise FileError("crl", f"{settings.crl} contains no revocation list")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


class _PassphraseWantedError(Exception):
    pass


def _no_passphrase() -> str:
    raise _PassphraseWantedError


def read_named(key: str, file: Path) -> bytes:
    """Read the file that the setting `key` names. Raises FileError if it is unreadable or too large."""
    try:
        with file.open("rb") as stream:
            octets = stream.read(FILE_BYTES_MAX + 1)
    except OSError as e:
        raise FileError(key, f"{file} cannot be read: {e.strerror}") from None
    if len(octets) > FILE_BYTES_MAX:
        raise FileError(key, f"{file} is larger than {FILE_BYTES_MAX} bytes")
    return octets


def _why(fault: OSError) -> str:
    return str(getattr(fault, "reason", None) or fault.strerror or fault).replace("_", " ").lower()
