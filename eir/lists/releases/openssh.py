"""OpenSSH itself (`ssh-keygen -Y`, SSHSIG) makes and checks signatures; this is where it is run, and where signers are counted.

Whether a signature counts is told by exit status 0 of `verify` alone; what OpenSSH says besides only names a refusal.

Signers are counted by person: k of n signatures are of k persons, however a signers file writes their names. A principal of an
allowed_signers file may be a name or a pattern (`*@agency.example`), and OpenSSH tells upper from lower case. Two that may be the same
person count once: names that differ in case, and a pattern with whatever it fits.

A document and the signature over it may be one file, so that no reader finds one without the other: the document comes first, behind
it stands the signature as `ssh-keygen -Y sign` writes it. `cat FILE FILE.sig` makes one.
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
"""ssh-keygen takes time that grows with the square of a signature's size."""
SIGNERS_BYTES_MAX = 64 << 20
PRINCIPALS_MAX = 32
"""Principals tried for one signature: a signer's line may name many."""
OPENSSH_TIMEOUT_S = 10.0
"""Seconds for all calls over one release together."""
_KEY_AT = len(b"SSHSIG") + 4 + 4
"""Position of the public key: behind the magic, the version, and its own length."""
FILES_NAMED_MAX = 3  # signers files that a refusal names

_GOOD = re.compile(rb'^Good "[a-z-]+" signature (?:for .* )?with \S+ key (SHA256:[A-Za-z0-9+/]{43})$', re.MULTILINE)

_SAID = {
    "namespace": (b"namespace does not match", b"not permitted for use in signature namespace"),
    "signer_expired": (b"key has expired", b"not yet valid", b"Certificate invalid", b"no valid principals found"),
    "bad_signature": (b"sshsig_armor", b"sshsig_get_pubkey"),
}
_DETAILS = {
    "signer_revoked": "the signer's key is revoked",
    "signer_expired": "the signer's key or certificate is outside its validity window, or the certificate names none that is trusted",
    "namespace": "the signature was made for another purpose; sign with ssh-keygen -Y sign -n {namespace}",
    "bad_signature": "the signature is damaged, or {what} is not the one that was signed",
}
_NEAREST = (*_DETAILS, "untrusted_signer")
UNSIGNED = frozenset(_NEAREST)
"""Reasons why a signature does not count."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that holds: the key that made it, and the owner of that key in one signers file."""

    fingerprint: str
    principals: tuple[str, ...]


class Verifier:
    """Checks signatures over one message in a private folder, with private copies of all files; one deadline, one time T."""

    def __init__(
        self, folder: Path, message: bytes, now: datetime, namespace: str = NAMESPACE, what: str = "the manifest"
    ) -> None:
        """`what`: how refusals call the message."""
        self._folder = folder
        self._message = message
        self._namespace, self._what = namespace, what
        self._time = f"-Overify-time={now.astimezone(UTC):%Y%m%d%H%M%SZ}"
        self._deadline = time.monotonic() + OPENSSH_TIMEOUT_S
        self._snapshots: dict[Path, Path] = {}
        self._checked: dict[tuple[Path, Path, Path | None], Signature | str] = {}

    def copy(self, name: str, content: bytes) -> Path:
        """A private file with this content, such as a signature to check."""
        path = self._folder / name
        path.write_bytes(content)
        return path

    def check(self, signature: Path, signers_file: Path, revoked_file: Path | None) -> Signature | str:
        """The signature as these files see it, or the reason why it does not count; the same is checked once.

        Raises ReleaseRefused: `signers_file` or `revoked_file` that cannot be used, `timeout`, `openssh`.
        """
        if (found := self._checked.get((signature, signers_file, revoked_file))) is None:
            found = self._checked[signature, signers_file, revoked_file] = self._check(
                signature, signers_file, revoked_file
            )
        return found

    def _check(self, signature: Path, signers_file: Path, revoked_file: Path | None) -> Signature | str:
        signers = self._snapshot(signers_file, "signers")
        revoked = () if revoked_file is None else ("-r", self._snapshot(revoked_file, "revoked"))
        found = self._run("find-principals", "-f", signers, "-s", signature, self._time)
        if found.returncode:
            return _reason(found.stderr, "untrusted_signer")
        principals: list[str] = []
        fingerprint, reason = "", "bad_signature"
        listed = found.stdout.decode("utf-8", "surrogateescape").splitlines()
        # A name behind a `!` is one that the line's patterns are not for; OpenSSH would verify it as a name of its own.
        for principal in [each for each in listed if not each.startswith("!")][:PRINCIPALS_MAX]:
            verify = ("verify", "-f", signers, "-I", principal, "-n", self._namespace, "-s", signature, self._time)
            done = self._run(*verify, *revoked)
            if done.returncode == 0 and (good := _GOOD.search(done.stdout)):
                fingerprint = good[1].decode()
                principals.append(principal)
            elif revoked and self._run(*verify).returncode == 0:  # names the reason, decides nothing
                reason = "signer_revoked"
            else:
                reason = _reason(done.stderr, reason)
        return Signature(fingerprint, tuple(principals)) if principals else reason

    def explain(self, reason: str, signature: Path, looked_at: Iterable[Path]) -> str:
        """The reason why a signature does not count, for a person. `looked_at`: the signers files."""
        if reason in _DETAILS:
            return _DETAILS[reason].format(namespace=self._namespace, what=self._what)
        made = _GOOD.search(self._run("check-novalidate", "-n", self._namespace, "-s", signature).stdout)
        key = f"the key {made[1].decode()} that signed" if made else "the key that signed"
        files = list(dict.fromkeys(map(str, looked_at)))
        if len(files) == 1:
            return f"{key} is not in the signers file {files[0]}"
        more = f" and {len(files) - FILES_NAMED_MAX} more" if len(files) > FILES_NAMED_MAX else ""
        return f"{key} is not in any signers file ({', '.join(files[:FILES_NAMED_MAX])}{more})"

    def _snapshot(self, path: Path, what: str) -> Path:
        """A private copy, the same for all calls. OpenSSH would let an empty or missing revocation file pass."""
        if path not in self._snapshots:
            try:
                with path.open("rb") as file:
                    content = file.read(SIGNERS_BYTES_MAX + 1)
            except OSError as error:
                raise ReleaseRefused(
                    f"{what}_file", f"the {what} file {path} cannot be read: {error.strerror}"
                ) from None
            if not content.strip() or len(content) > SIGNERS_BYTES_MAX:
                raise ReleaseRefused(
                    f"{what}_file", f"the {what} file {path} is empty or larger than {SIGNERS_BYTES_MAX} bytes"
                )
            self._snapshots[path] = self.copy(f"trust.{len(self._snapshots)}", content)
        return self._snapshots[path]

    def _run(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        # Under this environment ssh-keygen reads times as UTC and speaks English; nothing else of ours goes in.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC", "LC_ALL": "C"}
        left_s = max(self._deadline - time.monotonic(), 0.01)
        return _ssh_keygen(*arguments, input=self._message, stderr=subprocess.PIPE, env=environment, timeout=left_s)


def keys_of(signers: bytes) -> set[bytes]:
    """The public keys in an allowed_signers file, as SSH encodes them: whatever looks like one."""
    found = set()
    for word in signers.split():
        if word.startswith(b"AAAA"):
            with suppress(binascii.Error):
                found.add(base64.b64decode(word))
    return found


def key_in(signature: bytes) -> bytes:
    """Return the public key or certificate that a signature names, as SSH encodes it; empty if the signature is damaged. PROTOCOL.sshsig, 3."""
    try:
        blob = base64.b64decode(b"".join(line for line in signature.splitlines() if not line.startswith(b"-----")))
    except binascii.Error:
        return b""
    length = int.from_bytes(blob[_KEY_AT - 4 : _KEY_AT])
    return blob[_KEY_AT : _KEY_AT + length]


def names_one_of(keys: Collection[bytes], signature: bytes) -> bool:
    """True if a signature says that it is by one of these keys, or under a certificate that one of them signed.

    It costs next to nothing and proves nothing: it tells which deliveries to look at first.
    """
    key = key_in(signature)
    return key in keys or (b"-cert-v01@openssh.com" in key[:64] and any(authority in key for authority in keys))


def sign(message: bytes, key: Path, namespace: str = NAMESPACE) -> bytes:
    """The signature over a message by this key, or by the one of this `.pub` that an agent holds; it was checked.

    Passphrases, agents and security keys are left to ssh-keygen, which inherits terminal and environment. Raises
    ReleaseRefused: `signing`, `openssh`.
    """
    # Reading from standard input it writes to standard output: a file in the way can neither stay nor be asked about.
    signed = _ssh_keygen("sign", "-q", "-n", namespace, "-f", key, input=message)
    if signed.returncode or not 0 < len(signed.stdout) <= SIGNATURE_BYTES_MAX:
        raise ReleaseRefused("signing", f"ssh-keygen did not sign with {key}; see what it said above")
    with tempfile.NamedTemporaryFile(prefix="eir-sign-") as signature:
        Path(signature.name).write_bytes(signed.stdout)
        check = ("check-novalidate", "-n", namespace, "-s", signature.name)
        if _ssh_keygen(*check, input=message, stderr=subprocess.DEVNULL).returncode:
            raise ReleaseRefused("signing", f"the signature that ssh-keygen made with {key} does not hold")
    return signed.stdout


def _ssh_keygen(what: str | Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = ["ssh-keygen", "-Y", what, *arguments]  # OpenSSH stands where the host's PATH has it
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, check=False, **options)
    except subprocess.TimeoutExpired:
        raise ReleaseRefused("timeout", f"ssh-keygen took more than {OPENSSH_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise ReleaseRefused("openssh", f"ssh-keygen cannot be run: {error}; install OpenSSH's client") from None


def _reason(stderr: bytes, otherwise: str) -> str:
    return next((reason for reason, texts in _SAID.items() if any(text in stderr for text in texts)), otherwise)


def nearest(reasons: Iterable[str]) -> str:
    """The most telling of several reasons: a signers file that knows the key knows why it does not count."""
    return min(reasons, key=_NEAREST.index)


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


ANY, ONE = "*", "?"
"""Wildcards of a pattern, for any characters and for one (ssh-keygen(1), ALLOWED SIGNERS; ssh_config(5), PATTERNS)."""


def distinct_signers(keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A choice of keys (fingerprint → principals) such that each has a principal of its own, no two of which may be one person.

    One person with two keys counts once, and so does one key that two persons share. Of keys with names it is the largest
    choice; a key that has none left counts by a pattern, if that fits nobody who counts already.
    """
    owner: dict[str, tuple[str, str]] = {}  # name in lower case → key, and the name as the key has it

    def place(fingerprint: str, tried: set[str]) -> bool:
        for principal in keys[fingerprint]:
            name = principal.casefold()
            if name not in tried and not _is_pattern(name):
                tried.add(name)
                if name not in owner or place(owner[name][0], tried):
                    owner[name] = fingerprint, principal
                    return True
        return False

    for fingerprint in keys:
        place(fingerprint, set())
    chosen = dict(owner.values())
    for fingerprint in [key for key in keys if key not in chosen]:
        alone = (one for one in keys[fingerprint] if not any(may_be_one(one, other) for other in chosen.values()))
        if (principal := next(alone, None)) is not None:
            chosen[fingerprint] = principal
    return chosen


def may_be_one(first: str, second: str) -> bool:
    """True if some name fits both principals, in whatever case."""
    first, second = first.casefold(), second.casefold()
    seen, to_see = set(), [(0, 0)]
    while to_see:
        here = at, other = to_see.pop()
        if here in seen:
            continue
        seen.add(here)
        one, two = first[at : at + 1], second[other : other + 1]
        if not one and not two:
            return True
        if one == ANY:
            to_see += [(at + 1, other)] + ([(at, other + 1)] if two else [])
        if two == ANY:
            to_see += [(at, other + 1)] + ([(at + 1, other)] if one else [])
        if one and two and (one == two or ONE in {one, two}):
            to_see.append((at + 1, other + 1))
    return False


def _is_pattern(principal: str) -> bool:
    return ANY in principal or ONE in principal
