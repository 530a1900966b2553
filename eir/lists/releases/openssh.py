"""Signatures in OpenSSH's format (SSHSIG): `ssh-keygen -Y` creates and verifies them. Signers are counted by person.

A signature counts only if `verify` returns exit status 0. Other output of OpenSSH is used only for messages about rejections.

Signers are counted by person: a threshold of k needs signatures of k persons. A principal in an allowed_signers file is a name or a
pattern (`*@agency.example`), and OpenSSH distinguishes upper and lower case. Two principals that may be the same person count once:
names that differ only in case, and a pattern and a name that the pattern matches.

A document and its signature may be in one file, so that a reader always gets both: first the document, then the signature as
`ssh-keygen -Y sign` writes it. `cat FILE FILE.sig` creates such a file.
"""

import base64
import binascii
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eir.errors import ReleaseRefused

NAMESPACE = "eir-release"
SIGNATURE_BYTES_MAX = 16 << 10
"""Maximum size of a signature in bytes. The time of ssh-keygen grows with the square of the size."""
SIGNERS_BYTES_MAX = 64 << 20
PRINCIPALS_MAX = 32
"""Maximum number of principals with which one signature is verified."""
OPENSSH_TIMEOUT_S = 10.0
"""Maximum total seconds of all calls of ssh-keygen for one release."""
_KEY_AT = len(b"SSHSIG") + 4 + 4
"""Position of the public key in a signature: after the magic, the version and the key's length."""
FILES_NAMED_MAX = 3
"""Maximum number of signers files in the message about a rejection."""

_GOOD = re.compile(rb'^Good "[a-z-]+" signature (?:for .* )?with \S+ key (SHA256:[A-Za-z0-9+/]{43})$', re.MULTILINE)

_OPENSSH_TEXTS = {
    "namespace": (b"namespace does not match", b"not permitted for use in signature namespace"),
    "signer_expired": (b"key has expired", b"not yet valid", b"Certificate invalid", b"no valid principals found"),
    "bad_signature": (b"sshsig_armor", b"sshsig_get_pubkey"),
}
_DETAILS = {
    "signer_revoked": "the signer's key is revoked",
    "signer_expired": "the signer's key or certificate is outside its validity window, or the certificate names no trusted signer",
    "namespace": "the signature was made for another purpose; sign with ssh-keygen -Y sign -n {namespace}",
    "bad_signature": "the signature is damaged, or {what} differs from the signed one",
}
_NEAREST = (*_DETAILS, "untrusted_signer")


@dataclass(frozen=True, slots=True)
class Signature:
    """Valid signature: fingerprint of its key, and names of its signer."""

    fingerprint: str
    """Fingerprint of the key that signed."""
    principals: tuple[str, ...]
    """Principals of the key in the signers file."""


class Verifier:
    """Verifier of signatures over one message. It copies each file before use; all calls of ssh-keygen share one time limit."""

    def __init__(
        self, folder: Path, message: bytes, now: datetime, namespace: str = NAMESPACE, what: str = "the manifest"
    ) -> None:
        """Create a verifier; `what` is the name of the message in error messages."""
        self._folder = folder
        self._message = message
        self._namespace, self._what = namespace, what
        self._time = f"-Overify-time={now.astimezone(UTC):%Y%m%d%H%M%SZ}"
        self._deadline = time.monotonic() + OPENSSH_TIMEOUT_S
        self._snapshots: dict[Path, Path] = {}
        self._checked: dict[tuple[Path, Path, Path | None], Signature | str] = {}

    def copy(self, name: str, content: bytes) -> Path:
        """Write content, such as a signature, to a private temporary file, and return its path."""
        path = self._folder / name
        path.write_bytes(content)
        return path

    def check(self, signature: Path, signers_file: Path, revoked_file: Path | None) -> Signature | str:
        """Verify a signature by a signers file and a revocation file; return the valid signature, or a reason word for an invalid one.

        A repeated call with the same files returns the first result.

        Raises:
            ReleaseRefused: `signers_file` or `revoked_file` for an unusable file, `timeout`, `openssh`.
        """
        files = (signature, signers_file, revoked_file)
        outcome = self._checked.get(files)
        if outcome is None:
            outcome = self._check(*files)
            self._checked[files] = outcome
        return outcome

    def _check(self, signature: Path, signers_file: Path, revoked_file: Path | None) -> Signature | str:
        signers = self._snapshot(signers_file, "signers")
        revoked = () if revoked_file is None else ("-r", self._snapshot(revoked_file, "revoked"))
        candidates = self._run("find-principals", "-f", signers, "-s", signature, self._time)
        if candidates.returncode:
            return _reason(candidates.stderr, "untrusted_signer")
        lines = candidates.stdout.decode("utf-8", "surrogateescape").splitlines()
        # `!name` excludes a name from the line's patterns; `verify` would treat it as a literal name.
        names = [line for line in lines if not line.startswith("!")]
        principals: list[str] = []
        fingerprint = ""
        reason = "bad_signature"
        for principal in names[:PRINCIPALS_MAX]:
            verify = ("verify", "-f", signers, "-I", principal, "-n", self._namespace, "-s", signature, self._time)
            result = self._run(*verify, *revoked)
            good_line = _GOOD.search(result.stdout)
            if result.returncode == 0 and good_line:
                fingerprint = good_line[1].decode()
                principals.append(principal)
            elif revoked and self._run(*verify).returncode == 0:  # only the revocation makes the signature invalid
                reason = "signer_revoked"
            else:
                reason = _reason(result.stderr, reason)
        return Signature(fingerprint, tuple(principals)) if principals else reason

    def explain(self, reason: str, signature: Path, signers_files: Iterable[Path]) -> str:
        """Return a message for a person about an invalid signature.

        Args:
            reason: reason word, as from `check`.
            signature: file of the signature.
            signers_files: signers files with which the signature was verified.
        """
        if reason in _DETAILS:
            return _DETAILS[reason].format(namespace=self._namespace, what=self._what)
        result = self._run("check-novalidate", "-n", self._namespace, "-s", signature)
        good_line = _GOOD.search(result.stdout)
        key = f"the key {good_line[1].decode()} that signed" if good_line else "the key that signed"
        files = list(dict.fromkeys(map(str, signers_files)))
        if len(files) == 1:
            return f"{key} is not in the signers file {files[0]}"
        named = ", ".join(files[:FILES_NAMED_MAX])
        if len(files) > FILES_NAMED_MAX:
            named += f" and {len(files) - FILES_NAMED_MAX} more"
        return f"{key} is not in any signers file ({named})"

    def _snapshot(self, path: Path, label: str) -> Path:
        """Copy a trust file once, and return the copy, so that all calls of ssh-keygen read the same content.

        An empty or missing file is rejected, because OpenSSH would accept an empty file as a revocation list.
        """
        if path not in self._snapshots:
            reason = f"{label}_file"
            subject = f"the {label} file {path}"
            try:
                with path.open("rb") as file:
                    content = file.read(SIGNERS_BYTES_MAX + 1)
            except OSError as error:
                raise ReleaseRefused(reason, f"{subject} cannot be read: {error.strerror}") from None
            if not content.strip() or len(content) > SIGNERS_BYTES_MAX:
                raise ReleaseRefused(reason, f"{subject} is empty or larger than {SIGNERS_BYTES_MAX} bytes")
            self._snapshots[path] = self.copy(f"trust.{len(self._snapshots)}", content)
        return self._snapshots[path]

    def _run(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        # With this environment ssh-keygen parses times as UTC and prints English; no other variable is passed on.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC", "LC_ALL": "C"}
        remaining_s = max(self._deadline - time.monotonic(), 0.01)
        return _ssh_keygen(
            *arguments, input=self._message, stderr=subprocess.PIPE, env=environment, timeout=remaining_s
        )


def keys_of(signers: bytes) -> set[bytes]:
    """Return the public keys (in SSH encoding) in an allowed_signers file, without parsing: all words that begin like an encoded key."""
    keys = set()
    for word in signers.split():
        if word.startswith(b"AAAA"):
            with suppress(binascii.Error):
                keys.add(base64.b64decode(word))
    return keys


def key_in(signature: bytes) -> bytes:
    """Return the public key or certificate in a signature in SSH encoding; empty if the signature is damaged.

    PROTOCOL.sshsig, 3.
    """
    encoded = b"".join(line for line in signature.splitlines() if not line.startswith(b"-----"))
    try:
        blob = base64.b64decode(encoded)
    except binascii.Error:
        return b""
    length = int.from_bytes(blob[_KEY_AT - 4 : _KEY_AT])
    return blob[_KEY_AT : _KEY_AT + length]


def claims_one_of(keys: Collection[bytes], signature: bytes) -> bool:
    """Return True if a signature names one of these keys, or a certificate signed by one of them. The signature is not verified.

    The result may only decide about the order of verifications and about advice.
    """
    key = key_in(signature)
    if key in keys:
        return True
    is_certificate = b"-cert-v01@openssh.com" in key[:64]
    return is_certificate and any(authority in key for authority in keys)


def sign(message: bytes, key: Path, namespace: str = NAMESPACE) -> bytes:
    """Sign a message with an OpenSSH key, verify the signature, and return it.

    For a `.pub` file, the SSH agent signs with the private key. ssh-keygen inherits terminal and environment, and handles
    passphrases, agents and security keys.

    Raises:
        ReleaseRefused: `signing`, `openssh`.
    """
    # ssh-keygen reads the message from standard input and writes the signature to standard output. With files it would
    # keep an existing signature file without an error.
    result = _ssh_keygen("sign", "-q", "-n", namespace, "-f", key, input=message)
    signature = result.stdout
    if result.returncode or not 0 < len(signature) <= SIGNATURE_BYTES_MAX:
        raise ReleaseRefused("signing", f"ssh-keygen did not sign with {key}; see its message above")
    with tempfile.NamedTemporaryFile(prefix="eir-sign-") as file:
        Path(file.name).write_bytes(signature)
        check = ("check-novalidate", "-n", namespace, "-s", file.name)
        if _ssh_keygen(*check, input=message, stderr=subprocess.DEVNULL).returncode:
            raise ReleaseRefused("signing", f"the signature that ssh-keygen created with {key} is not valid")
    return signature


def _ssh_keygen(action: str | Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = ["ssh-keygen", "-Y", action, *arguments]
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, check=False, **options)
    except subprocess.TimeoutExpired:
        raise ReleaseRefused("timeout", f"ssh-keygen took more than {OPENSSH_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise ReleaseRefused("openssh", f"ssh-keygen cannot be run: {error}; install OpenSSH's client") from None


def _reason(stderr: bytes, otherwise: str) -> str:
    for reason, texts in _OPENSSH_TEXTS.items():
        if any(text in stderr for text in texts):
            return reason
    return otherwise


def most_specific(reasons: Iterable[str]) -> str:
    """Return the most specific of several reason words for invalid signatures.

    A reason from a signers file with the key is more specific than `untrusted_signer`, from a file without the key.
    """
    return min(reasons, key=_NEAREST.index)


BEGINS = b"-----BEGIN SSH SIGNATURE-----"


def sign_document(document: bytes, key: Path, namespace: str = NAMESPACE) -> bytes:
    """Sign a document, which must end with a newline; return the document followed by its signature.

    Raises:
        ReleaseRefused: as `sign`.
    """
    return document + sign(document, key, namespace)


def verify_document(
    content: bytes, name: str, signers: Path, now: datetime, *, revoked: Path | None = None, namespace: str = NAMESPACE
) -> tuple[bytes, Signature]:
    """Verify a file that contains a document and its signature; return both, if the signature is valid at `now`.

    `name`: name of the file for messages.

    Raises:
        ReleaseRefused: `signature_missing`, `too_large`, and as Verifier.
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


ANY, ONE = "*", "?"
"""Wildcards of a pattern: any characters, one character (ssh-keygen(1), ALLOWED SIGNERS; ssh_config(5), PATTERNS)."""


def distinct_signers(keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Choose one principal (signer name) for each key, so that no person is chosen twice. Some keys may get no principal.

    Two keys of one person count once, and one key of two persons counts once. The choice gives as many keys as possible
    a name. A key without a free name gets a pattern, if the pattern matches no chosen principal. A key without such a
    principal is not in the result.

    Args:
        keys: principals by the fingerprint of their key.

    Returns:
        The chosen principal by fingerprint.
    """
    assigned: dict[str, tuple[str, str]] = {}  # for each name in lower case: the key, and the name as the key has it

    def assign_name(fingerprint: str, tried: set[str]) -> bool:
        for principal in keys[fingerprint]:
            name = principal.casefold()
            if name not in tried and not _is_pattern(name):
                tried.add(name)
                if name not in assigned or assign_name(assigned[name][0], tried):
                    assigned[name] = fingerprint, principal
                    return True
        return False

    for fingerprint in keys:
        assign_name(fingerprint, set())
    chosen = dict(assigned.values())
    for fingerprint, principals in keys.items():
        if fingerprint not in chosen:
            for principal in principals:
                if not any(may_be_same_person(principal, other) for other in chosen.values()):
                    chosen[fingerprint] = principal
                    break
    return chosen


def may_be_same_person(first: str, second: str) -> bool:
    """Return True if two principals (name patterns) can match the same name, ignoring case."""
    first = first.casefold()
    second = second.casefold()
    seen = set()
    pending = [(0, 0)]
    while pending:
        position = pending.pop()
        if position in seen:
            continue
        seen.add(position)
        first_at, second_at = position
        first_char = first[first_at : first_at + 1]
        second_char = second[second_at : second_at + 1]
        if not first_char and not second_char:
            return True
        if first_char == ANY or (first_char and second_char == ANY):
            pending.append((first_at + 1, second_at))
        if second_char == ANY or (second_char and first_char == ANY):
            pending.append((first_at, second_at + 1))
        if first_char and second_char and (first_char == second_char or ONE in {first_char, second_char}):
            pending.append((first_at + 1, second_at + 1))
    return False


def _is_pattern(principal: str) -> bool:
    return ANY in principal or ONE in principal
