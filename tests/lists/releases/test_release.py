"""Trust in a release: each way in which it can be wrong has its own word, and costs no time."""

import base64
import json
import os
import shutil
import subprocess
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.releases import NAME, NOW, make_key, public, sign, text

from eir.errors import ReleaseRefused
from eir.lists.releases import openssh
from eir.lists.releases.document import SERIAL_MAX
from eir.lists.releases.openssh import claims_one_of, distinct_signers, keys_of
from eir.lists.releases.release import (
    check_serial,
    is_plain_name,
    naming_release,
    parse_manifest,
    verify_release,
)

IMEIS = ["35123456789012"]


def verify(agency, manifest, now=NOW):
    return verify_release(manifest, agency.lists, now=now)


def refusal(agency, manifest, **arguments):
    began = time.process_time()
    with pytest.raises(ReleaseRefused) as caught:
        verify(agency, manifest, **arguments)
    assert time.process_time() - began < 1
    assert caught.value.detail
    return caught.value


def signature_of(manifest):
    return manifest.with_name(manifest.name + ".sig")


def test_a_plain_ssh_keygen_signature_is_believed(agency):
    manifest = agency.release(IMEIS)
    release = verify(agency, manifest)
    assert release.manifest.list == NAME
    assert release.manifest.serial == 1
    assert release.manifest.files[0].rows == 1
    listed = subprocess.run(["ssh-keygen", "-lf", agency.key], check=True, capture_output=True, text=True).stdout
    assert release.signers == (f"agency {listed.split()[1]}",)


@pytest.mark.parametrize("at", [0, 10, 100, -3])
def test_a_flipped_bit_in_the_manifest(agency, at):
    manifest = agency.release(IMEIS)
    content = bytearray(manifest.read_bytes())
    content[at] ^= 1
    manifest.write_bytes(content)
    assert refusal(agency, manifest).reason == "bad_signature"


def test_flipped_bits_in_the_signature(agency):
    manifest = agency.release(IMEIS)
    signature = signature_of(manifest)
    good = signature.read_text()
    body = base64.b64decode("".join(good.splitlines()[1:-1]))
    for at in range(0, len(body), 7):
        damaged = bytearray(body)
        damaged[at] ^= 0x10
        armored = base64.encodebytes(bytes(damaged)).decode()
        signature.write_text(f"-----BEGIN SSH SIGNATURE-----\n{armored}-----END SSH SIGNATURE-----\n")
        # Within the public key the damage makes another signer of it, in the name of the purpose another purpose.
        assert refusal(agency, manifest).reason in {"bad_signature", "untrusted_signer", "namespace"}


def _zeros(path):
    path.write_bytes(bytes(16384))


def _oversized_zeros(path):
    path.write_bytes(bytes(5 << 20))


def _oversized(path):
    path.write_text(path.read_text() + "\n" * 17000)


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _folder(path):
    path.unlink()
    path.mkdir()


def _device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def _missing(path):
    path.unlink()


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (_zeros, "bad_signature"),
        (_empty, "bad_signature"),
        (_oversized_zeros, "too_large"),
        (_oversized, "too_large"),
        (_pipe, "not_a_file"),
        (_link, "not_a_file"),
        (_device, "not_a_file"),
        (_folder, "not_a_file"),
        (_missing, "signature_missing"),
    ],
)
@pytest.mark.parametrize("second", [False, True])
def test_what_may_lie_in_the_signatures_place(agency, put, reason, second):
    manifest = agency.release(IMEIS)
    signature = signature_of(manifest)
    if second:
        agency.settings(threshold=2)
        further = signature.with_name(signature.name + ".2")
        shutil.copy(signature, further)
        put(further)
        reason = "threshold" if reason in {"bad_signature", "signature_missing"} else reason
    else:
        put(signature)
    assert refusal(agency, manifest).reason == reason


@pytest.mark.parametrize(
    ("put", "reason"),
    [(_pipe, "not_a_file"), (_link, "not_a_file"), (_folder, "not_a_file"), (_missing, "file_missing")],
)
def test_what_may_lie_in_the_manifests_place(agency, put, reason):
    manifest = agency.release(IMEIS)
    put(manifest)
    assert refusal(agency, manifest).reason == reason


def test_a_manifest_of_over_a_mebibyte(agency):
    manifest = agency.release(IMEIS, note="x" * (1 << 20))
    assert refusal(agency, manifest).reason == "too_large"
    assert refusal(agency, manifest.with_name("nothing") / manifest.name).reason == "file_missing"
    assert refusal(agency, manifest.with_name("x" * 300)).reason == "file_missing"


def test_another_namespace(agency):
    manifest = agency.release(IMEIS, sign_it=False)
    sign(manifest, agency.key, namespace="file")
    refused = refusal(agency, manifest)
    assert refused.reason == "namespace"
    assert "-n eir-release" in refused.detail


def test_a_key_that_signers_allow_for_another_namespace(agency):
    agency.trust("signers", f'agency namespaces="git" {public(agency.key)}')
    assert refusal(agency, agency.release(IMEIS)).reason in {"namespace", "untrusted_signer"}


def test_a_signer_nobody_trusts_and_one_trusted_for_another_list(agency):
    stranger = make_key(agency.folder, "stranger")
    manifest = agency.release(IMEIS, key=stranger)
    refused = refusal(agency, manifest)
    assert (refused.reason, refused.list_name) == ("untrusted_signer", None)
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", stranger], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert (
        refused.detail
        == f"{manifest.name}.sig: the key {shown} that signed is not in the signers file {agency.signers}"
    )
    agency.settings(name="other", signers=agency.trust("others", f"stranger {public(stranger)}"))
    refused = refusal(agency, manifest)
    assert (refused.reason, refused.list_name, refused.serial) == ("untrusted_signer", NAME, 1)


def test_nothing_is_parsed_before_a_signature_holds(agency):
    """A fault of the manifest is found only if a trusted key signed it."""
    stranger = make_key(agency.folder, "stranger")
    for key, reason in ((stranger, "untrusted_signer"), (None, "manifest")):
        assert refusal(agency, agency.release(IMEIS, key=key, kind="nonsense")).reason == reason


@pytest.mark.parametrize("window", ['valid-before="20260101Z"', 'valid-after="20270101Z"'])
def test_outside_the_keys_window(agency, window):
    agency.trust("signers", f"agency {window} {public(agency.key)}")
    manifest = agency.release(IMEIS)
    assert refusal(agency, manifest).reason == "signer_expired"


def test_the_window_is_judged_at_the_time_given_in_utc(agency, monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    agency.trust("signers", f'agency valid-before="20261125120001Z" {public(agency.key)}')
    manifest = agency.release(IMEIS)
    assert verify(agency, manifest).manifest.serial == 1
    assert refusal(agency, manifest, now=NOW + timedelta(seconds=5)).reason == "signer_expired"


def test_a_certificate_authority(agency):
    authority = make_key(agency.folder, "authority")
    window = ["-V", "20260101Z:20270101Z", f"{agency.key}.pub"]
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "x", "-n", "agency", *window], check=True)
    agency.trust("signers", f"agency cert-authority {public(authority)}")
    manifest = agency.release(IMEIS, key=agency.folder / "agency-cert.pub")
    assert verify(agency, manifest).signers[0].startswith("agency SHA256:")
    assert refusal(agency, manifest, now=NOW + timedelta(days=60)).reason == "signer_expired"


def test_a_revoked_key(agency):
    manifest = agency.release(IMEIS)
    agency.settings(revoked=agency.trust("revoked", public(agency.key)))
    assert refusal(agency, manifest).reason == "signer_revoked"
    agency.settings(revoked=agency.trust("revoked", public(make_key(agency.folder, "other"))))
    assert verify(agency, manifest).manifest.serial == 1
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert refusal(agency, manifest).reason == "bad_signature"


@pytest.mark.parametrize("content", [None, "", " \n"])
@pytest.mark.parametrize("what", ["revoked", "signers"])
def test_a_trust_file_that_is_missing_or_empty_is_named(agency, what, content):
    manifest = agency.release(IMEIS)
    path = agency.folder / "lost"
    if content is not None:
        path.write_text(content)
    agency.settings(**{what: path})
    refused = refusal(agency, manifest)
    assert refused.reason == f"{what}_file"
    assert str(path) in refused.detail
    agency.settings(name="intact")  # another list's file is in order, and this list's is named all the same
    refused = refusal(agency, manifest)
    assert (refused.reason, refused.list_name) == (f"{what}_file", NAME)


def test_thresholds(agency):
    second, third = make_key(agency.folder, "second"), make_key(agency.folder, "third")
    manifest = agency.release(IMEIS)
    also = signature_of(manifest).with_name(signature_of(manifest).name + ".2")

    def outcome(*lines):
        agency.settings(threshold=2, signers=agency.trust("signers", *lines))
        try:
            return len(verify(agency, manifest).signers)
        except ReleaseRefused as refused:
            return refused.reason

    a, b, c = (f"{name} {public(key)}" for name, key in (("a", agency.key), ("b", second), ("c", third)))
    assert outcome(a, b) == "threshold"
    shutil.copy(signature_of(manifest), also)
    assert outcome(a, b) == "threshold"  # one key twice
    assert outcome(a, a.replace("a ", "b ", 1)) == "threshold"  # one key that two principals share
    first = signature_of(manifest).read_bytes()
    sign(manifest, second, target=also)
    signature_of(manifest).write_bytes(first)
    assert outcome(a, b) == 2
    for same in ("a", "A", "*", "a*", "?", "*,!a", "A,a"):  # two keys of one person, as far as the signers file tells
        assert outcome(a, b.replace("b ", f"{same} ", 1)) == "threshold"
    assert outcome(a, b.replace("b ", "b*,!a ", 1)) == 2
    assert outcome(a, c) == "threshold"  # the second is not trusted
    assert outcome(a, b.replace("b ", 'b valid-before="20260101Z" ', 1)) == "threshold"
    agency.settings(threshold=3, signers=agency.trust("signers", a, b, c))
    third_signature = also.with_name(also.name.replace(".2", ".3"))
    sign(manifest, third, target=third_signature)
    signature_of(manifest).write_bytes(first)
    assert len(verify(agency, manifest).signers) == 3


@given(st.dictionaries(st.sampled_from("KLMN"), st.lists(st.sampled_from("abcd"), max_size=4, unique=True), max_size=4))
def test_signers_are_matched_as_well_as_can_be(keys):
    def best(rest, used):
        if not rest:
            return 0
        key, *others = rest
        return max([best(others, used), *(1 + best(others, used | {p}) for p in keys[key] if p not in used)])

    chosen = distinct_signers(keys)
    assert len(chosen) == best(list(keys), frozenset())
    assert len(set(chosen.values())) == len(chosen)
    assert all(principal in keys[key] for key, principal in chosen.items())


@pytest.mark.parametrize(
    ("members", "now", "reason"),
    [
        ({}, NOW + timedelta(days=14), "expired"),
        ({}, NOW - timedelta(days=1, seconds=1), "issued_in_future"),
        ({"expires": text(NOW)}, NOW, "expired"),
        ({"list": "unknown"}, NOW, "unknown_list"),
    ],
)
def test_times_and_lists(agency, members, now, reason):
    refused = refusal(agency, agency.release(IMEIS, **members), now=now)
    assert refused.reason == reason
    assert refused.serial == 1


def test_no_list_has_signers(agency):
    agency.lists = {}
    assert refusal(agency, agency.release(IMEIS)).reason == "unknown_list"


def test_ssh_keygen_that_hangs_or_is_not_there(agency, monkeypatch):
    manifest = agency.release(IMEIS)
    monkeypatch.setattr(openssh, "OPENSSH_TIMEOUT_S", 0.2)
    slow = agency.folder / "bin"
    slow.mkdir()
    (slow / "ssh-keygen").write_text("#!/bin/sh\nexec sleep 60\n")
    (slow / "ssh-keygen").chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{slow}:{path}")
    assert refusal(agency, manifest).reason == "timeout"
    monkeypatch.setenv("PATH", str(agency.folder / "nowhere"))
    assert refusal(agency, manifest).reason == "openssh"


FILE = {"name": "a.csv", "role": "entries", "layout": "eir", "bytes": 1, "rows": 0, "sha256": "0" * 64}
MANIFEST = {
    "format": "eir-release/1",
    "list": "l",
    "kind": "full",
    "serial": 2,
    "issued": "2026-11-24T00:00:00Z",
    "expires": "2026-12-08T00:00:00Z",
    "files": [FILE],
}


def test_the_manifest_of_the_design():
    parsed = parse_manifest(json.dumps({**MANIFEST, "note": "ignored"}).encode())
    assert (parsed.list, parsed.kind, parsed.serial, parsed.base) == ("l", "full", 2, None)
    assert parsed.files[0].name == "a.csv"
    delta = {**MANIFEST, "kind": "delta", "base": 0, "files": [{**FILE, "role": "added"}]}
    assert parse_manifest(json.dumps(delta).encode()).base == 0


@pytest.mark.parametrize(
    "change",
    [
        {"format": "eir-release/2"},
        {"list": None},
        {"list": "../etc"},
        {"list": ""},
        {"kind": "partial"},
        {"kind": "delta"},
        {"kind": "delta", "base": 2},
        {"kind": "delta", "base": -1},
        {"kind": "delta", "base": 1},
        {"base": 1},
        {"serial": 0},
        {"serial": "2"},
        {"serial": True},
        {"serial": 2.0},
        {"serial": 1 << 63},
        {"issued": "2026-11-24T00:00:00"},
        {"issued": "2026-11-24T00:00:00+00:00"},
        {"issued": "2026-13-24T00:00:00Z"},
        {"expires": "2026-11-24T00:00:00Z"},
        {"expires": 7},
        {"files": []},
        {"files": {}},
        {"files": ["a.csv"]},
        {"files": [FILE, FILE]},
        {"files": [{**FILE, "role": "added"}]},
        {"files": [{**FILE, "sha256": "0" * 63}]},
        {"files": [{**FILE, "sha256": "0" * 63 + "A"}]},
        {"files": [{**FILE, "bytes": -1}]},
        {"files": [{**FILE, "rows": None}]},
        {"files": [{**FILE, "layout": 1}]},
        {"files": [{**FILE, "name": f"{n}.csv"} for n in range(1001)]},
    ],
)
def test_manifests_that_are_none(change):
    with pytest.raises(ReleaseRefused) as caught:
        parse_manifest(json.dumps({**MANIFEST, **change}).encode())
    assert caught.value.reason == "manifest"


@pytest.mark.parametrize("given", ["eir-release/2", None, 7, ["x"] * 1000])
def test_a_manifest_of_another_version_names_both_formats(given):
    with pytest.raises(ReleaseRefused) as caught:
        parse_manifest(json.dumps(MANIFEST | {"format": given}).encode())
    assert caught.value.detail == (
        f"the manifest has the format {str(given)[:40]!r}, and this version reads 'eir-release/1': publisher and node need versions of this program with the same format"
    )


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"format": "eir-release/1", "format": "eir-release/1"}', b"[" * 100_000]
)
def test_bytes_that_are_no_manifest(content):
    with pytest.raises(ReleaseRefused) as caught:
        parse_manifest(content)
    assert caught.value.reason == "manifest"


@pytest.mark.parametrize(
    "name",
    [
        "a/b.csv",
        "../b.csv",
        "..",
        ".",
        "",
        "/etc/passwd",
        ".hidden",
        "-rf",
        "a\\b",
        "C:b.csv",
        "a\0",
        "a\nb",
        "x" * 256,
    ],
)
def test_names_that_leave_the_folder(name):
    assert not is_plain_name(name)
    _file_name_is_refused(name)


@pytest.mark.parametrize(
    "name",
    ["a.manifest.json", ".manifest.json.manifest.json", "a.sig", "a.csv.sig.2", "a.sig.16", "A.Manifest.JSON", "a.SIG"],
)
def test_names_of_manifests_and_signatures_are_no_data(name):
    _file_name_is_refused(name)


@pytest.mark.parametrize("name", ["a.manifest.json.csv", "sig", "a.sig.csv", "manifest.json", "a.sig.x"])
def test_file_names_that_only_resemble_forbidden_names_are_accepted(name):
    assert parse_manifest(json.dumps({**MANIFEST, "files": [{**FILE, "name": name}]}).encode()).files[0].name == name


def _file_name_is_refused(name):
    with pytest.raises(ReleaseRefused) as caught:
        parse_manifest(json.dumps({**MANIFEST, "files": [{**FILE, "name": name}]}).encode())
    assert caught.value.reason == "file_name"


@pytest.mark.parametrize(
    ("kind", "serial", "base", "current", "highest", "reason"),
    [
        ("full", 1, None, None, 0, None),
        ("full", 9, None, 5, 5, None),
        ("full", 5, None, 5, 5, "serial"),
        ("full", 6, None, 5, 6, "serial"),
        ("delta", 6, 5, 5, 5, None),
        ("delta", 6, 5, 4, 5, "base"),
        ("delta", 6, 5, None, 0, "base"),
        ("delta", 6, 5, 5, 7, "serial"),
        # A step of 100 at most, above the highest; a first release has room for dates.
        ("full", 105, None, 5, 5, None),
        ("full", 106, None, 5, 5, "serial_step"),
        ("full", 106, None, 5, 6, None),
        ("delta", 106, 5, 5, 5, "serial_step"),
        ("full", SERIAL_MAX, None, 5, 5, "serial_step"),
        ("full", 2026112601, None, None, 0, None),
        ("full", 2026112612000001, None, None, 0, None),
        ("full", 10**16, None, None, 0, None),
        ("full", 10**16 + 1, None, None, 0, "serial_step"),
        ("full", SERIAL_MAX, None, None, 0, "serial_step"),
    ],
)
def test_serials(kind, serial, base, current, highest, reason):
    role = "entries" if kind == "full" else "added"
    document = {**MANIFEST, "kind": kind, "serial": serial, "base": base, "files": [{**FILE, "role": role}]}
    manifest = parse_manifest(json.dumps(document).encode())
    if reason is None:
        check_serial(manifest, current=current, highest=highest, step_max=100)
        return
    with pytest.raises(ReleaseRefused) as caught, naming_release(manifest):
        check_serial(manifest, current=current, highest=highest, step_max=100)
    assert caught.value.reason == reason
    assert (caught.value.list_name, caught.value.serial) == ("l", serial)
    if reason == "base" and current is not None:
        assert f"base {current}" in caught.value.detail


def test_a_signature_names_its_key_or_the_authority_behind_it(tmp_path):
    """A hint that costs nothing, for the order in which deliveries are looked at."""
    keys = {name: make_key(tmp_path, name) for name in ("authority", "agency", "member")}
    subprocess.run(
        [
            "ssh-keygen",
            "-q",
            "-s",
            keys["authority"],
            "-I",
            "member",
            "-n",
            "member",
            keys["member"].with_name("member.pub"),
        ],
        check=True,
    )
    manifest = tmp_path / "m"
    manifest.write_text("{}")
    plain = sign(manifest, keys["agency"]).read_bytes()
    under = sign(manifest, keys["member"].with_name("member-cert.pub")).read_bytes()
    trusted = keys_of(f'agency namespaces="a b" {public(keys["agency"])}'.encode())
    authority = keys_of(f"# AAAA\n* cert-authority {public(keys['authority'])}".encode())
    assert (claims_one_of(trusted, plain), claims_one_of(trusted, under)) == (True, False)
    assert (claims_one_of(authority, plain), claims_one_of(authority, under)) == (False, True)
    assert not any(
        claims_one_of(trusted | authority, junk)
        for junk in (b"", b"x", b"AAAA", b"-----BEGIN", b"\xff" * 99, plain[:60])
    )
