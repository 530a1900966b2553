"""A document and the OpenSSH signature over it in one file, so that no reader finds one without the other.

The document comes first; behind it stands the signature as `ssh-keygen -Y sign` writes it. `cat FILE FILE.sig` makes one.
"""

import tempfile
from datetime import datetime
from pathlib import Path

from eir.errors import ReleaseRefused
from eir.releases.openssh import NAMESPACE, SIGNATURE_BYTES_MAX, Signature, Verifier, sign

BEGINS = b"-----BEGIN SSH SIGNATURE-----"


def signed(document: bytes, key: Path, namespace: str = NAMESPACE) -> bytes:
    """The document, signed. It ends with a newline. Raises ReleaseRefused as openssh.sign."""
    return document + sign(document, key, namespace)


def document_in(
    content: bytes, name: str, signers: Path, now: datetime, *, revoked: Path | None = None, namespace: str = NAMESPACE
) -> tuple[bytes, Signature]:
    """The document in a file's content, and who signed it, if that is to be believed at `now`. `name`: of the file, for messages.

    Raises ReleaseRefused: `signature_missing`, `too_large`, and as openssh.Verifier.
    """
    at = content.rfind(b"\n" + BEGINS) + 1
    if not at:
        raise ReleaseRefused("signature_missing", f"{name} has no signature at its end")
    document, signature = content[:at], content[at:]
    if len(signature) > SIGNATURE_BYTES_MAX:
        raise ReleaseRefused("too_large", f"the signature of {name} is larger than {SIGNATURE_BYTES_MAX} bytes")
    with tempfile.TemporaryDirectory(prefix="eir-signed-") as private:
        openssh = Verifier(Path(private), document, now, namespace, name)
        copy = openssh.copy("signature", signature)
        outcome = openssh.check(copy, signers, revoked)
        if isinstance(outcome, Signature):
            return document, outcome
        raise ReleaseRefused(outcome, f"{name}: {openssh.explain(outcome, copy, [signers])}")
