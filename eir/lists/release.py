"""Trust: what of a release is believed, in which order, and who signed it.

The manifest and its signatures are copied to a private folder; OpenSSH itself (`ssh-keygen -Y`, SSHSIG) checks the
signatures against allowed_signers files; only then is the manifest read as JSON, and only what it says of a list that is
known here, signed by that list's own signers, goes on to the data files. Nothing here reads rows.

May import eir.errors and lists.delivered; knows no store: the serial in force is an argument.
"""

import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from eir.errors import ReleaseRefused
from eir.lists.delivered import open_folder, read_small

Value = TypeVar("Value")

FORMAT = "eir-release/1"
NAMESPACE = "eir-release"
MANIFEST_BYTES_MAX = 1 << 20
SIGNATURE_BYTES_MAX = 16 << 10
"""ssh-keygen takes time that grows with the square of a signature's size."""
SIGNERS_BYTES_MAX = 64 << 20
SIGNATURES_MAX = 16
PRINCIPALS_MAX = 32
"""Principals tried for one signature: a signer's line may name many."""
OPENSSH_TIMEOUT_S = 10.0
"""For all calls over one release together."""
SERIAL_MAX = (1 << 63) - 1
FILES_MAX = 1000
FILES_NAMED_MAX = 3
"""Signers files that a refusal names."""

FULL, DELTA = "full", "delta"
ENTRIES, ADDED, REMOVED = "entries", "added", "removed"
ROLES = {FULL: (ENTRIES,), DELTA: (ADDED, REMOVED)}

_UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GOOD = re.compile(rb'^Good "eir-release" signature for .* with \S+ key (SHA256:[A-Za-z0-9+/]{43})$', re.MULTILINE)

_MADE = re.compile(rb'^Good "eir-release" signature with \S+ key (SHA256:[A-Za-z0-9+/]{43})$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Who may change one list."""

    signers: Path
    """An OpenSSH allowed_signers file."""
    revoked: Path | None = None
    """A key revocation list, or public keys one a line."""
    threshold: int = 1
    """So many distinct keys of so many distinct principals must have signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One data file as the manifest promises it."""

    name: str
    role: str
    layout: str
    bytes: int
    """As delivered."""
    rows: int
    """Data rows, the header not counted."""
    sha256: str
    """Of the bytes as delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a release says of itself."""

    list: str
    kind: str
    """full or delta."""
    serial: int
    base: int | None
    """The serial that a delta builds on."""
    issued: datetime
    expires: datetime
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A manifest whose signatures hold for the list that it names."""

    manifest: Manifest
    digest: str
    """SHA-256 of the manifest's bytes, hexadecimal."""
    signers: tuple[str, ...]
    """`principal SHA256:…` of each signature that counts."""


def verify_release(manifest: Path, trusts: Mapping[str, Trust], *, now: datetime) -> Release:
    """The release that a manifest and the signatures beside it make, if they are to be believed at `now`.

    `trusts`: for each list that releases may change, by whom. Raises ReleaseRefused; from the moment that a signature
    holds for the list named, the refusal names list and serial.
    """
    folder_fd = open_folder(manifest.parent)
    try:
        content = read_small(manifest.name, folder_fd, MANIFEST_BYTES_MAX)
        signatures = _read_signatures(manifest.name, folder_fd)
    finally:
        os.close(folder_fd)
    with tempfile.TemporaryDirectory(prefix="eir-release-") as private:
        return _verify(content, signatures, trusts, _OpenSSH(Path(private), content, now), now)


def check_serial(manifest: Manifest, *, current: int | None, highest: int) -> None:
    """Refuse a release that is not the next one.

    `current`: the serial in force (None: no list yet); `highest`: the highest ever accepted. Raises ReleaseRefused
    (`serial`, `base`).
    """
    if manifest.serial <= highest:
        raise _refused(
            manifest,
            "serial",
            f"serial {manifest.serial} is not above {highest}, the highest ever accepted for {manifest.list}",
        )
    if manifest.kind == DELTA and manifest.base != current:
        needed = "there is no list yet: a full release is needed first"
        if current is not None:
            needed = f"serial {current} is in force: a delta with base {current}, or a full release, is needed"
        raise _refused(manifest, "base", f"the delta builds on serial {manifest.base}, but {needed}")


def parse_manifest(content: bytes) -> Manifest:
    """The manifest in these bytes. Raises ReleaseRefused (`manifest`, `file_name`) and says which member is wrong.

    Members that are not known are ignored; a change of meaning would change `format`.
    """
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ReleaseRefused("manifest", f"the manifest is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ReleaseRefused("manifest", f'the manifest\'s "format" is not "{FORMAT}"')
    serial = _number(document, "serial", least=1)
    kind, base = _kind_and_base(document, serial)
    issued, expires = _time(document, "issued"), _time(document, "expires")
    if expires <= issued:
        raise ReleaseRefused("manifest", '"expires" is not after "issued"')
    name = _member(document, "list", str)
    if not is_list_name(name):
        raise ReleaseRefused("manifest", '"list" is no list\'s name')
    files = _member(document, "files", list)
    if not 1 <= len(files) <= FILES_MAX:
        raise ReleaseRefused("manifest", f'"files" has {len(files)} members; expected 1 to {FILES_MAX}')
    entries = tuple(_file_entry(file, ROLES[kind]) for file in files)
    if len({entry.name for entry in entries}) < len(entries):
        raise ReleaseRefused("manifest", '"files" names a file twice')
    return Manifest(list=name, kind=kind, serial=serial, base=base, issued=issued, expires=expires, files=entries)


def claimed(manifest: Path) -> tuple[str, int] | None:
    """List and serial that a refused manifest names, which nothing vouches for: for the history's readers, and for no decision.

    None where it cannot be read or names none.
    """
    try:
        folder_fd = open_folder(manifest.parent)
        try:
            content = read_small(manifest.name, folder_fd, MANIFEST_BYTES_MAX)
        finally:
            os.close(folder_fd)
        document = json.loads(content.decode("utf-8"))
    except (ReleaseRefused, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    name, serial = document.get("list"), document.get("serial")
    if not isinstance(name, str) or not is_list_name(name) or type(serial) is not int or not 0 < serial <= SERIAL_MAX:
        return None
    return name, serial


def is_plain_name(name: str) -> bool:
    """True for a name that stays in its folder: no separator, no `..`, no control character, not hidden, not an option."""
    return (
        0 < len(name.encode("utf-8", "replace")) <= 255
        and name.isprintable()
        and not name.startswith((".", "-"))
        and not any(separator in name for separator in "/\\:")
    )


def is_list_name(name: str) -> bool:
    """True for a name that a list may have: letters, digits, `.`, `_` and `-`, 64 at most."""
    return _LIST_NAME.fullmatch(name) is not None


def utc_text(moment: datetime) -> str:
    """A moment as manifests and states have it: UTC, whole seconds, with a Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def openssh_environment() -> dict[str, str]:
    """Environment under which ssh-keygen reads times as UTC and speaks English; nothing else of ours goes in."""
    return {"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC", "LC_ALL": "C"}


def _read_signatures(manifest_name: str, folder_fd: int) -> list[tuple[str, bytes]]:
    """`.sig`, then `.sig.2`, `.sig.3`, … without a gap."""
    name = f"{manifest_name}.sig"
    try:
        found = [(name, read_small(name, folder_fd, SIGNATURE_BYTES_MAX))]
    except ReleaseRefused as refused:
        if refused.reason == "file_missing":
            raise ReleaseRefused("signature_missing", f"{name} is not there") from None
        raise
    for number in range(2, SIGNATURES_MAX + 1):
        further = f"{name}.{number}"
        try:
            found.append((further, read_small(further, folder_fd, SIGNATURE_BYTES_MAX)))
        except ReleaseRefused as refused:
            if refused.reason == "file_missing":
                break
            raise
    return found


@dataclass(frozen=True, slots=True)
class _Signature:
    """A signature that holds: the key that made it, and whom that key belongs to in one signers file."""

    fingerprint: str
    principals: tuple[str, ...]


class _OpenSSH:
    """ssh-keygen over private copies of the manifest, its signatures and the signers files; one deadline, one time T."""

    def __init__(self, folder: Path, manifest: bytes, now: datetime) -> None:
        self._folder = folder
        self._manifest = self._copy("manifest", manifest)
        self._time = f"-Overify-time={now.astimezone(UTC):%Y%m%d%H%M%SZ}"
        self._deadline = time.monotonic() + OPENSSH_TIMEOUT_S
        self._copies: dict[Path, Path] = {}

    def signature(self, number: int, content: bytes) -> Path:
        return self._copy(f"sig.{number}", content)

    def check(self, signature: Path, trust: Trust) -> _Signature | str:
        """The signature as this trust sees it, or the reason why it does not count."""
        signers = self._snapshot(trust.signers, "signers_file", "signers")
        revoked = () if trust.revoked is None else ("-r", self._snapshot(trust.revoked, "revoked_file", "revoked"))
        found = self._run("-Y", "find-principals", "-f", signers, "-s", signature, self._time)
        if found.returncode:
            return _first_reason(found.stderr, _NOT_FOUND, "untrusted_signer")
        fingerprint = ""
        principals: list[str] = []
        reason = "bad_signature"
        for principal in found.stdout.decode("utf-8", "surrogateescape").splitlines()[:PRINCIPALS_MAX]:
            verify = ("-Y", "verify", "-f", signers, "-I", principal, "-n", NAMESPACE, "-s", signature, self._time)
            done = self._run(*verify, *revoked)
            if done.returncode == 0 and (good := _GOOD.search(done.stdout)):
                fingerprint = good[1].decode()
                principals.append(principal)
            elif revoked and self._run(*verify).returncode == 0:  # names the reason, decides nothing
                reason = "signer_revoked"
            else:
                reason = _first_reason(done.stderr, _NOT_VERIFIED, reason)
        return _Signature(fingerprint, tuple(principals)) if principals else reason

    def maker(self, signature: Path) -> str:
        """`the key SHA256:… that signed`; without the fingerprint where the signature does not tell."""
        done = self._run("-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature)
        found = _MADE.search(done.stdout)
        return f"the key {found[1].decode()} that signed" if found else "the key that signed"

    def _run(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        left_s = self._deadline - time.monotonic()
        try:
            with self._manifest.open("rb") as manifest:
                return subprocess.run(
                    ["ssh-keygen", *arguments],  # noqa: S607  # OpenSSH stands where the host's PATH has it
                    stdin=manifest,
                    capture_output=True,
                    check=False,
                    cwd=self._folder,
                    env=openssh_environment(),
                    timeout=max(left_s, 0.01),
                )
        except subprocess.TimeoutExpired:
            raise ReleaseRefused("timeout", f"ssh-keygen took more than {OPENSSH_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise ReleaseRefused("openssh", f"ssh-keygen cannot be run: {error}; install OpenSSH's client") from None

    def _snapshot(self, path: Path, reason: str, what: str) -> Path:
        """A private copy, the same for all calls. OpenSSH would let an empty or missing revocation file pass."""
        if path not in self._copies:
            try:
                with path.open("rb") as file:
                    content = file.read(SIGNERS_BYTES_MAX + 1)
            except OSError as error:
                raise ReleaseRefused(reason, f"the {what} file {path} cannot be read: {error.strerror}") from None
            if not content.strip() or len(content) > SIGNERS_BYTES_MAX:
                raise ReleaseRefused(reason, f"the {what} file {path} is empty or larger than {SIGNERS_BYTES_MAX} bytes")
            self._copies[path] = self._copy(f"trust.{len(self._copies)}", content)
        return self._copies[path]

    def _copy(self, name: str, content: bytes) -> Path:
        copy = self._folder / name
        copy.write_bytes(content)
        return copy


# What OpenSSH says, to name a refusal by; whether a signature counts is told by its exit status alone.
_NOT_FOUND = (
    (b"key has expired", "signer_expired"),
    (b"not yet valid", "signer_expired"),
    (b"Certificate invalid", "signer_expired"),
    (b"no valid principals found", "signer_expired"),
    (b"sshsig_armor", "bad_signature"),
    (b"sshsig_get_pubkey", "bad_signature"),
)
_NOT_VERIFIED = (
    (b"namespace does not match", "namespace"),
    (b"not permitted for use in signature namespace", "namespace"),
    (b"key has expired", "signer_expired"),
    (b"not yet valid", "signer_expired"),
    (b"Certificate invalid", "signer_expired"),
)

_DETAILS = {
    "bad_signature": "the signature is damaged, or the manifest is not the one that was signed",
    "namespace": f"the signature was made for another purpose; sign with ssh-keygen -Y sign -n {NAMESPACE}",
    "signer_expired": "the signer's key or certificate is outside its validity window, or the certificate names none that is trusted",
    "signer_revoked": "the signer's key is revoked",
}
_NEAREST = ("signer_revoked", "signer_expired", "namespace", "bad_signature", "untrusted_signer")
"""Of several reasons the one that says most: a signers file that knows the key knows why it does not count."""


def _verify(
    content: bytes, signatures: Sequence[tuple[str, bytes]], trusts: Mapping[str, Trust], openssh: _OpenSSH, now: datetime
) -> Release:
    copies = [(name, openssh.signature(number, signature)) for number, (name, signature) in enumerate(signatures, 1)]
    _require_any(copies, trusts.values(), openssh)
    manifest = parse_manifest(content)
    trust = trusts.get(manifest.list)
    if trust is None:
        raise ReleaseRefused(
            "unknown_list",
            f"no list {manifest.list} that releases may change is configured",
            serial=manifest.serial,
        )
    try:
        outcomes = {name: openssh.check(copy, trust) for name, copy in copies}
    except ReleaseRefused as refused:
        raise _refused(manifest, refused.reason, refused.detail) from None
    counted = distinct_signers({o.fingerprint: o.principals for o in outcomes.values() if isinstance(o, _Signature)})
    if len(counted) < trust.threshold:
        reasons = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
        said = "; ".join(
            f"{name}: {_detail(reason, copy, openssh, [trust.signers])} of {manifest.list}"
            for name, copy in copies
            if (reason := reasons.get(name)) is not None
        )
        if not counted:
            raise _refused(manifest, _nearest(reasons.values()), said)
        raise _refused(
            manifest,
            "threshold",
            f"{len(counted)} of the {trust.threshold} distinct keys and principals that {manifest.list} needs have signed"
            + (f" ({said})" if said else ""),
        )
    if manifest.issued > now:
        raise _refused(manifest, "issued_in_future", f"issued {utc_text(manifest.issued)}, and it is {utc_text(now)}")
    if manifest.expires <= now:
        raise _refused(manifest, "expired", f"expired {utc_text(manifest.expires)}, and it is {utc_text(now)}")
    signers = tuple(f"{principal} {fingerprint}" for fingerprint, principal in counted.items())
    return Release(manifest=manifest, digest=hashlib.sha256(content).hexdigest(), signers=signers)


def _require_any(copies: Sequence[tuple[str, Path]], trusts: Iterable[Trust], openssh: _OpenSSH) -> None:
    """Some signature holds for some configured signers file; before that the manifest is not even read as JSON."""
    distinct = dict.fromkeys(replace(trust, threshold=1) for trust in trusts)
    if not distinct:
        raise ReleaseRefused("unknown_list", "no list with signers is configured")
    reasons: list[str] = []
    unreadable: ReleaseRefused | None = None
    for _name, copy in copies:
        for trust in distinct:
            try:
                outcome = openssh.check(copy, trust)
            except ReleaseRefused as refused:
                if refused.reason not in {"signers_file", "revoked_file"}:
                    raise
                unreadable = refused  # another list's file may be in order; it is named if none is
                continue
            if isinstance(outcome, _Signature):
                return
            reasons.append(outcome)
    if unreadable is not None:
        raise unreadable
    reason = _nearest(reasons)
    name, copy = copies[0]
    raise ReleaseRefused(reason, f"{name}: {_detail(reason, copy, openssh, [trust.signers for trust in distinct])}")


def _detail(reason: str, signature: Path, openssh: _OpenSSH, looked_at: Iterable[Path]) -> str:
    if reason != "untrusted_signer":
        return _DETAILS[reason]
    files = list(dict.fromkeys(map(str, looked_at)))
    more = f" and {len(files) - FILES_NAMED_MAX} more" if len(files) > FILES_NAMED_MAX else ""
    where = f"the signers file {files[0]}" if len(files) == 1 else f"any signers file ({', '.join(files[:FILES_NAMED_MAX])}{more})"
    return f"{openssh.maker(signature)} is not in {where}"


def distinct_signers(keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The largest choice of keys (fingerprint → principals) such that each has a principal of its own.

    One person with two keys counts once, and so does one key that two persons share.
    """
    owner: dict[str, str] = {}

    def place(fingerprint: str, tried: set[str]) -> bool:
        for principal in keys[fingerprint]:
            if principal not in tried:
                tried.add(principal)
                if principal not in owner or place(owner[principal], tried):
                    owner[principal] = fingerprint
                    return True
        return False

    for fingerprint in keys:
        place(fingerprint, set())
    return {fingerprint: principal for principal, fingerprint in owner.items()}


def _first_reason(stderr: bytes, table: Sequence[tuple[bytes, str]], otherwise: str) -> str:
    return next((reason for text, reason in table if text in stderr), otherwise)


def _nearest(reasons: Iterable[str]) -> str:
    return min(reasons, key=_NEAREST.index)


def _refused(manifest: Manifest, reason: str, detail: str) -> ReleaseRefused:
    return ReleaseRefused(reason, detail, list_name=manifest.list, serial=manifest.serial)


def _without_repeats(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are unique: two readers must not see two different manifests."""
    document = dict(members)
    if len(document) < len(members):
        raise ValueError("a name stands twice in one object")
    return document


def _member(document: Mapping[str, Any], name: str, kind: type[Value]) -> Value:
    value = document.get(name)
    if not isinstance(value, kind):
        raise ReleaseRefused("manifest", f'"{name}" is missing or no {kind.__name__}')
    return value


def _number(document: Mapping[str, Any], name: str, *, least: int) -> int:
    value = document.get(name)
    if type(value) is not int or not least <= value <= SERIAL_MAX:
        raise ReleaseRefused("manifest", f'"{name}" is missing or no whole number from {least} to {SERIAL_MAX}')
    return value


def _time(document: Mapping[str, Any], name: str) -> datetime:
    text = _member(document, name, str)
    try:
        if _UTC_TIME.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise ReleaseRefused("manifest", f'"{name}" is no time like 2026-11-24T00:00:00Z')


def _kind_and_base(document: Mapping[str, Any], serial: int) -> tuple[str, int | None]:
    match kind := _member(document, "kind", str):
        case "full":
            if document.get("base") is not None:
                raise ReleaseRefused("manifest", 'a full release has no "base"')
            return kind, None
        case "delta":
            base = _number(document, "base", least=0)
            if base >= serial:
                raise ReleaseRefused("manifest", f'"base" {base} is not below "serial" {serial}')
            return kind, base
    raise ReleaseRefused("manifest", f'"kind" is {kind!r}; expected full or delta')


def _file_entry(file: Any, roles: Sequence[str]) -> FileEntry:
    if not isinstance(file, dict):
        raise ReleaseRefused("manifest", 'a member of "files" is no object')
    name = _member(file, "name", str)
    if not is_plain_name(name):
        raise ReleaseRefused("file_name", f"{name!r} is no plain file name")
    role, layout, sha256 = (_member(file, member, str) for member in ("role", "layout", "sha256"))
    if role not in roles:
        raise ReleaseRefused("manifest", f'{name}: "role" is {role!r}; expected {" or ".join(roles)}')
    if not _SHA256.fullmatch(sha256):
        raise ReleaseRefused("manifest", f'{name}: "sha256" is not 64 hexadecimal digits in lower case')
    return FileEntry(
        name=name,
        role=role,
        layout=layout,
        bytes=_number(file, "bytes", least=0),
        rows=_number(file, "rows", least=0),
        sha256=sha256,
    )
