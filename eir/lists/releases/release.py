"""Verification of a release: first its signatures, then its manifest, then the signers of its list.

The manifest and its signatures are read once and copied to a private folder. There OpenSSH verifies the signatures with
allowed_signers files. The manifest is parsed as JSON only if a signature is valid for a configured list. Data files are read only
if the signers of the manifest's list have signed. This module reads no rows.
"""

import difflib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from eir.errors import ReleaseRefused
from eir.lists.log.change import utc_text
from eir.lists.record.settings import ListSettings
from eir.lists.releases.document import (
    DIGEST,
    LIST_NAME,
    SERIAL,
    TEXT,
    TIME,
    array,
    integer,
    members,
    parse_document,
    word,
)
from eir.lists.releases.openssh import SIGNATURE_BYTES_MAX, Signature, Verifier, distinct_signers, most_specific
from eir.lists.rows.delivered import open_folder, read_small

Trust: TypeAlias = tuple[Path, Path | None]
"""Trust files of a list: an allowed_signers file, and a file of revoked keys."""

FORMAT = "eir-release/1"
MANIFEST_ENDS = ".manifest.json"
"""End of a manifest's file name."""
MANIFEST_BYTES_MAX = 1 << 20
SIGNATURES_MAX, FILES_MAX = 16, 1000
FIRST_SERIAL_MAX = 10**16
"""Highest serial of a list's first release: high enough for date, time and a number, such as 2026112612000001, and low enough for all later releases."""

FULL, DELTA = "full", "delta"
ENTRIES, ADDED, REMOVED = "entries", "added", "removed"
ROLES = {FULL: (ENTRIES,), DELTA: (ADDED, REMOVED)}
"""Roles of data files by the kind of release."""

_MANIFEST = {
    "list": LIST_NAME, "kind": word(FULL, DELTA), "serial": SERIAL, "issued": TIME, "expires": TIME, "files": array(FILES_MAX),
}  # fmt: skip
_FILE = {"name": TEXT, "layout": TEXT, "bytes": integer(0), "rows": integer(0), "sha256": DIGEST}
_NOT_DATA = re.compile(r"\.(?:manifest\.json|sig(?:\.[0-9]+)?)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Data file in a manifest."""

    name: str
    role: str
    layout: str
    bytes: int
    """Size of the delivered file, before decompression."""
    rows: int
    """Number of rows without the header."""
    sha256: str
    """SHA-256 of the delivered file, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Manifest of a release: list, kind, serial, validity and data files."""

    list: str
    kind: str
    serial: int
    base: int | None
    """Serial on which a delta builds."""
    issued: datetime
    expires: datetime
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRelease:
    """Verified release: its manifest, with enough valid signatures by signers of its list."""

    manifest: Manifest
    digest: str
    """SHA-256 of the manifest's bytes, hexadecimal."""
    signers: tuple[str, ...]
    """Principal and fingerprint of each counted signature, as `principal SHA256:…`."""


def verify_release(manifest: Path, lists: Mapping[str, ListSettings], *, now: datetime) -> VerifiedRelease:
    """Verify the signatures beside a manifest, and return the verified release.

    `now`: time at which keys must be valid and the release must not have expired.

    Raises:
        ReleaseRefused: with list and serial of the manifest if a signature is valid for the list, otherwise with list and
            serial as unverified claims.
    """
    content = b""
    try:
        with open_folder(manifest.parent) as folder_fd:
            content = read_small(manifest.name, folder_fd, MANIFEST_BYTES_MAX)
            signatures = _read_signatures(manifest.name, folder_fd)
        with tempfile.TemporaryDirectory(prefix="eir-release-") as private:
            openssh = Verifier(Path(private), content, now)
            copies = {name: openssh.copy(name, signature) for name, signature in signatures.items()}
            return _verify(content, copies, lists, openssh, now)
    except ReleaseRefused as refused:
        claims = _claimed_release(content) if refused.list_name is None else None
        if claims is not None:
            claimed_list, _ = claims
            advice = _list_advice(claimed_list, lists) if refused.reason == "unknown_list" else ""
            refused.name_claims(claims, advice)
        raise


def check_times(manifest: Manifest, now: datetime) -> None:
    """Reject a release whose issue time is in the future or whose expiry has passed.

    Raises:
        ReleaseRefused: `issued_in_future`, `expired`.
    """
    if manifest.issued > now:
        raise ReleaseRefused("issued_in_future", f"issued {utc_text(manifest.issued)}; it is now {utc_text(now)}")
    if manifest.expires <= now:
        raise ReleaseRefused("expired", f"expired {utc_text(manifest.expires)}; it is now {utc_text(now)}")


def check_serial(manifest: Manifest, *, current: int | None, highest: int, step_max: int) -> None:
    """Reject a release if its serial is at most `highest` or too far above it. Reject a delta if its base is not in force.

    Args:
        manifest: manifest of the release.
        current: serial in force; None if there is no list yet.
        highest: highest accepted serial; 0 for none.
        step_max: maximum difference between the serial and `highest`. All serials in between become unusable.

    Raises:
        ReleaseRefused: `serial`, `serial_step`, `base`.
    """
    if manifest.serial <= highest:
        detail = f"serial {manifest.serial} is not above {highest}, the highest ever accepted for {manifest.list}"
        raise ReleaseRefused("serial", detail)
    if highest:
        most = highest + step_max
        limit = f"{highest} is the highest ever accepted for {manifest.list}, and serial_step_max is {step_max}"
    else:
        most = FIRST_SERIAL_MAX
        limit = f"this would be the first release of {manifest.list}"
    if manifest.serial > most:
        fault = f"serial {manifest.serial} is too high: all lower serials would become unusable"
        advice = f"publish it with a serial from {highest + 1} to {most}"
        raise ReleaseRefused("serial_step", f"{fault}. {limit}: {advice}")
    if manifest.kind == DELTA and manifest.base != current:
        if current is None:
            needed = "there is no list yet: a full release is needed first"
        else:
            needed = f"serial {current} is in force: a delta with base {current}, or a full release, is needed"
        raise ReleaseRefused("base", f"the delta builds on serial {manifest.base}, but {needed}")


@contextmanager
def naming_release(manifest: Manifest, digest: str | None = None) -> Iterator[None]:
    """Catch a ReleaseRefused in the `with` block, add list, serial and digest of the verified manifest to it, and raise it again."""
    try:
        yield
    except ReleaseRefused as refused:
        refused.name_release(manifest.list, manifest.serial, digest)
        raise


def is_plain_name(name: str) -> bool:
    """Return True if a file name is safe: without a path, not hidden, and not like an option of a command.

    Such a name has 1 to 255 bytes, no separator, no control character, and no `.` or `-` at the start.
    """
    size = len(name.encode("utf-8", "replace"))
    if not 0 < size <= 255 or not name.isprintable() or name.startswith((".", "-")):
        return False
    return not any(separator in name for separator in "/\\:")


def check_plain_name(name: str) -> None:
    """Reject a file name that is not safe (`is_plain_name`).

    Raises:
        ReleaseRefused: `file_name`.
    """
    if not is_plain_name(name):
        raise ReleaseRefused("file_name", f"{name!r} is not a plain file name in UTF-8")


def signature_names(manifest_name: str) -> list[str]:
    """Return the possible names of signatures beside a manifest: `.sig`, then `.sig.2`, `.sig.3` and so on."""
    first = f"{manifest_name}.sig"
    return [first, *(f"{first}.{number}" for number in range(2, SIGNATURES_MAX + 1))]


def _read_signatures(manifest_name: str, folder_fd: int) -> dict[str, bytes]:
    """Read the signature files beside a manifest in the order of their names, until a name has no file."""
    signatures: dict[str, bytes] = {}
    for name in signature_names(manifest_name):
        try:
            signatures[name] = read_small(name, folder_fd, SIGNATURE_BYTES_MAX)
        except ReleaseRefused as refused:
            if refused.reason != "file_missing":
                raise
            if not signatures:
                raise ReleaseRefused("signature_missing", f"{name} is missing") from None
            break
    return signatures


def _verify(
    content: bytes, copies: Mapping[str, Path], lists: Mapping[str, ListSettings], openssh: Verifier, now: datetime
) -> VerifiedRelease:
    trusts: dict[str, Trust] = {}
    for name, settings in lists.items():
        if settings.signers is not None and not settings.local:
            trusts[name] = (settings.signers, settings.revoked)
    _require_any(copies, list(dict.fromkeys(trusts.values())), openssh)
    manifest = parse_manifest(content)
    name = manifest.list
    if name not in trusts:
        raise ReleaseRefused("unknown_list", f"no list {name} with signers is configured", serial=manifest.serial)
    with naming_release(manifest):
        signers = _signers(copies, lists[name], trusts[name], openssh)
        check_times(manifest, now)
    digest = hashlib.sha256(content).hexdigest()
    return VerifiedRelease(manifest=manifest, digest=digest, signers=signers)


def _require_any(copies: Mapping[str, Path], trusts: Sequence[Trust], openssh: Verifier) -> None:
    """Reject a release, before its manifest is parsed, unless it has a valid signature by a signer of at least one configured list."""
    if not trusts:
        raise ReleaseRefused("unknown_list", "no list with signers is configured")
    reasons: list[str] = []
    unreadable: ReleaseRefused | None = None
    for copy in copies.values():
        for trust in trusts:
            try:
                outcome = openssh.check(copy, *trust)
            except ReleaseRefused as refused:
                if refused.reason not in {"signers_file", "revoked_file"}:
                    raise
                unreadable = refused  # raised only if no file of another list has a valid signer
                continue
            if isinstance(outcome, Signature):
                return
            reasons.append(outcome)
    if unreadable is not None:
        raise unreadable
    reason = most_specific(reasons)
    name, copy = next(iter(copies.items()))
    explanation = openssh.explain(reason, copy, [signers for signers, _ in trusts])
    raise ReleaseRefused(reason, f"{name}: {explanation}")


def _signers(copies: Mapping[str, Path], settings: ListSettings, trust: Trust, openssh: Verifier) -> tuple[str, ...]:
    """Return the signers of a release; reject the release if they are fewer than the list requires."""
    signatures: list[Signature] = []
    reasons: dict[str, str] = {}
    for name, copy in copies.items():
        outcome = openssh.check(copy, *trust)
        if isinstance(outcome, Signature):
            signatures.append(outcome)
        else:
            reasons[name] = outcome
    counted = distinct_signers({signature.fingerprint: signature.principals for signature in signatures})
    if len(counted) < settings.threshold:
        signers_file, _ = trust
        explained = {name: openssh.explain(reason, copies[name], [signers_file]) for name, reason in reasons.items()}
        faults = "; ".join(f"{name}: {explanation} of {settings.name}" for name, explanation in explained.items())
        if not counted:
            raise ReleaseRefused(most_specific(reasons.values()), faults)
        needed = f"{len(counted)} of the {settings.threshold} signers that {settings.name} requires have signed"
        if len(signatures) > len(counted):
            needed += f", with {len(signatures)} signatures: one key, and names of one person, count once"
        raise ReleaseRefused("threshold", f"{needed} ({faults})" if faults else needed)
    return tuple(f"{principal} {fingerprint}" for fingerprint, principal in counted.items())


def _claimed_release(content: bytes) -> tuple[str, int] | None:
    """Return list and serial in an unverified manifest, for messages only; None if one of them is missing."""
    with suppress(ReleaseRefused, ValueError, RecursionError):
        return tuple(
            members(json.loads(content.decode("utf-8")), {"list": LIST_NAME, "serial": SERIAL}, "manifest").values()
        )
    return None


def _list_advice(name: str, lists: Mapping[str, ListSettings]) -> str:
    """Return advice for a release of a list that accepts no releases, or is not configured."""
    if name in lists:
        return f"; {name} is local: it changes by eir add"
    similar = difflib.get_close_matches(name, lists, n=1)
    if similar:
        return f"; did you mean '{similar[0]}'?"
    names = ", ".join(lists) or "none"
    return f"; there are: {names}"


def parse_manifest(content: bytes) -> Manifest:
    """Parse the JSON of a manifest, and validate all its members.

    Raises:
        ReleaseRefused: `manifest` or `file_name`, with the wrong member.
    """
    document = parse_document(content, FORMAT, "the manifest", "manifest")
    values = members(document, _MANIFEST, "manifest")
    if values["kind"] == DELTA:
        values |= members(document, {"base": integer(0, values["serial"] - 1)}, "manifest")
    elif document.get("base") is not None:
        raise ReleaseRefused("manifest", 'a full release has no "base"')
    values["issued"], values["expires"] = map(datetime.fromisoformat, (values["issued"], values["expires"]))
    if values["expires"] <= values["issued"]:
        raise ReleaseRefused("manifest", '"expires" is not after "issued"')
    role = {"role": word(*ROLES[values["kind"]])}
    values["files"] = [
        FileEntry(**members(file, _FILE | role, "manifest", 'a member of "files"')) for file in values["files"]
    ]
    for file in values["files"]:
        check_plain_name(file.name)
        if _NOT_DATA.search(file.name) is not None:
            detail = (
                f"{file.name} is the name of a manifest or a signature; data needs another, such as LIST-SERIAL.csv"
            )
            raise ReleaseRefused("file_name", detail)
    if len({file.name for file in values["files"]}) < len(values["files"]):
        raise ReleaseRefused("manifest", '"files" names a file twice')
    return Manifest(**{"base": None, **values, "files": tuple(values["files"])})
