"""Certificates of an own authority: files of a node, TLS contexts of its peers."""

import ssl
import subprocess
from datetime import UTC, datetime, timedelta

import trustme

VERSIONS = ssl.TLSVersion


def days(number):
    """A time so many days from now."""
    return (datetime.now(UTC) + timedelta(days=number)).replace(tzinfo=None, microsecond=0)


class Authority:
    """An authority that issues certificates.

    `write` gives the files of one, `peer` a context of someone who connects.
    """

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.pem = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.pem)

    def issue(self, *names, **options):
        return self.ca.issue_cert(*names, **{"not_before": days(-10), "not_after": days(100), **options})

    def write(self, *names, folder=None, stem="eir", **options):
        """Files of a certificate for these names; returns the section `tls` of a configuration that uses them."""
        folder = folder or self.folder
        folder.mkdir(exist_ok=True)
        issued = self.issue(*names, **options)
        certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return {"certificate": str(certificate), "key": str(key), "ca": str(self.pem)}

    def peer(self, *names, trusts=None, lowest=VERSIONS.TLSv1_2, highest=VERSIONS.MAXIMUM_SUPPORTED, **options):
        """A client's context with a certificate for these names (none: without one) that trusts this authority, or another."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        (trusts or self).ca.configure_trust(context)
        context.minimum_version, context.maximum_version = lowest, highest
        if names:
            self.issue(*names, **options).configure_cert(context)
        return context

    def server(self, *names):
        """A context of someone who is connected to, with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        self.ca.configure_trust(context)
        self.issue(*names).configure_cert(context)
        return context

    def revoke(self, *certificates):
        """A revocation list with these certificates (files), valid for a day, by OpenSSL; returns its file."""
        key, index, crl = self.folder / "ca.key", self.folder / "index.txt", self.folder / "crl.pem"
        self.ca.private_key_pem.write_to_path(key)
        index.write_text("")
        config = self.folder / "crl.cnf"
        config.write_text(f"[ca]\ndefault_ca = c\n[c]\ndatabase = {index}\ndefault_md = sha256\ndefault_crl_days = 1\n")
        ours = ["openssl", "ca", "-config", config, "-cert", self.pem, "-keyfile", key]
        for certificate in certificates:
            subprocess.run([*ours, "-revoke", certificate], check=True, capture_output=True)
        subprocess.run([*ours, "-gencrl", "-out", crl], check=True, capture_output=True)
        return crl
