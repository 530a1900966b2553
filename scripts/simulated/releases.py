"""Releases with real keys and signatures."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from eir.lists.changes.release_load import ReleaseLoader
from eir.lists.record.settings import ListSettings
from eir.lists.releases.foreign import add_latest, find_layout, read_file
from eir.lists.releases.publish import ReleaseSpec, publish
from eir.lists.rows.listed_rows import ListedRows

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAME = "stolen-national"
STARTED = datetime.now(UTC).replace(microsecond=0)
"""Time of the releases that are valid now: the same in all tests of a process, so that each release is signed once."""


def text(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def _keys():
    return tempfile.TemporaryDirectory(prefix="eir-keys-")


@cache
def _key(name):
    path = Path(_keys().name) / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
    return path


def make_key(folder, name):
    """A key pair in this folder; the same for each name in all tests of a process."""
    for suffix in ("", ".pub"):
        shutil.copy(f"{_key(name)}{suffix}", folder / f"{name}{suffix}")
    return folder / name


def public(key):
    return key.with_name(key.name + ".pub").read_text()


_signatures = {}
"""Signature by message, key, its certificate, and namespace; an Ed25519 key always gives the same."""


def sign(manifest, key, target=None, namespace="eir-release"):
    """As an agency does it: plain ssh-keygen."""
    signature, certificate = target or manifest.with_name(f"{manifest.name}.sig"), key.with_name(f"{key.name}-cert.pub")
    parts = tuple(path.read_bytes() for path in (manifest, key, certificate) if path.exists()), namespace
    if parts not in _signatures:
        command = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key]
        _signatures[parts] = subprocess.run(command, input=parts[0][0], check=True, capture_output=True).stdout
    signature.write_bytes(_signatures[parts])
    return signature


_published = {}
"""Manifest and signature of each release that was published."""


def publish_once(files, *, issued=STARTED, valid=timedelta(days=14), **members):
    """Publish a release into the folder of its files, or write again the same one; return its manifest."""
    digests = [(file.name, hashlib.sha256(file.read_bytes()).digest()) for file in files]
    identity = (*digests, issued, valid, *members.items())
    if identity not in _published:
        made = publish_files(files, issued=issued, expires=issued + valid, **members).manifest
        names = (made.name, f"{made.name}.sig", *(file["name"] for file in json.loads(made.read_bytes())["files"]))
        _published[identity] = {name: (made.parent / name).read_bytes() for name in names}
    for name, content in _published[identity].items():
        (files[0].parent / name).write_bytes(content)
    return files[0].parent / next(iter(_published[identity]))


def release_by_hand(files, *, list_name, serial, key, base=None, issued=STARTED, valid=timedelta(days=14)):
    """Write manifest and signature for CSV files in one folder, as an agency without this program does; return the manifest.

    The rows of a delta are added ones.
    """
    document = {
        "format": "eir-release/1", "list": list_name, "kind": "full" if base is None else "delta", "serial": serial, "issued": text(issued),
        "expires": text(issued + valid), "files": [entry_of(file, "entries" if base is None else "added") for file in files],
    } | ({} if base is None else {"base": base})  # fmt: skip
    manifest = files[0].parent / f"{list_name}-{serial}.manifest.json"
    manifest.write_text(json.dumps(document))
    sign(manifest, key)
    return manifest


def entry_of(file, role="entries"):
    """Entry of a CSV file in a manifest."""
    content = file.read_bytes()
    return {
        "name": file.name, "role": role, "layout": "eir", "bytes": len(content), "rows": max(len([*filter(None, content.splitlines())]) - 1, 0),
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip


def publish_files(files, *, key, more_keys=(), out=None, list_name=NAME, **members):
    """Publish a release as `eir publish` does. `members`: of ReleaseSpec, and the options of `publish`."""
    options = {name: members.pop(name) for name in ("replace", "progress", "warn", "each_bad") if name in members}
    return publish(ReleaseSpec(list=list_name, files=files, keys=(key, *more_keys), **members), out, **options)


def read_into(rows, chunks, *, name="f.csv", layout="eir", declared=None, removed=None, **options):
    """Read a data file into collections of rows, as a publisher does; return the number of its rows. `options` as for `read_file`."""
    count, coded = 0, []
    file_layout = find_layout(name, b"", layout, declared or {})
    for part in read_file(chunks, name=name, layout=file_layout, **options):
        count += part.row_count
        if part.removes is not None:
            coded.append(part)
        elif rows is not None:
            rows.add(part.rows, part.lasts)
    if coded:
        add_latest(coded, {"added": rows or ListedRows(), "removed": removed or ListedRows()})
    return count


def loader(lists, store, *, now, who="tester@host", **options):
    """Return the loader of releases into a store, as `eir load` makes it. `options` as for ReleaseLoader."""
    return ReleaseLoader(lists, store, who, now, **options)


async def load_release(manifest, lists, store, **options):
    """Verify and load a release; return the report. `options` as for `loader`."""
    return await loader(lists, store, **options).verify_and_load(manifest)


def precede_openssh(monkeypatch, folder, line):
    """Have each `ssh-keygen` from now on run this line of shell first."""
    folder.mkdir()
    program = folder / "ssh-keygen"
    program.write_text(f'#!/bin/sh\n{line}\nexec {shutil.which("ssh-keygen")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


class Agency:
    """A publisher with a key, and an EIR's settings that trust it."""

    def __init__(self, folder):
        self.folder = folder
        self.drop = folder / "drop"
        self.drop.mkdir()
        self.key = make_key(folder, "agency")
        self.signers = self.trust("signers", f"agency {public(self.key)}")
        self.lists = {NAME: ListSettings(name=NAME, signers=self.signers)}
        self.serial = 0

    def trust(self, name, *lines):
        path = self.folder / name
        path.write_text("".join(lines))
        return path

    def settings(self, **changes):
        name = changes.pop("name", NAME)
        self.lists[name] = ListSettings(**{"name": name, "signers": self.signers, **changes})
        return self.lists[name]

    def release(self, files, *, key=None, sign_it=True, **members):
        """Write data files ({name: (role, layout, bytes)} or rows of the one file), manifest and signature."""
        if not isinstance(files, dict):
            content = "".join(f"{row}\n" for row in ("imei", *files)).encode()
            files = {f"data-{members.get('serial', self.serial + 1)}.csv": ("entries", "eir", content)}
        self.serial = members.get("serial", self.serial + 1)
        entries = []
        for name, (role, layout, content) in files.items():
            (self.drop / name).write_bytes(content)
            rows = max(len([line for line in content.splitlines() if line]) - (layout != "imei"), 0)
            digest = hashlib.sha256(content).hexdigest()
            entries.append(
                {"name": name, "role": role, "layout": layout, "bytes": len(content), "rows": rows, "sha256": digest}
            )
        document = {
            "format": "eir-release/1",
            "list": NAME,
            "kind": "full",
            "serial": self.serial,
            "issued": text(NOW - timedelta(days=1)),
            "expires": text(NOW + timedelta(days=14)),
            "files": entries,
            **members,
        }
        manifest = self.drop / f"{document['list']}-{self.serial}.manifest.json"
        self.rewrite(manifest, document, key=key if sign_it else None, sign_it=sign_it)
        return manifest

    def rewrite(self, manifest, document, *, key=None, sign_it=True):
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        manifest.write_bytes(content)
        if sign_it:
            sign(manifest, key or self.key)

    async def load(self, manifest, store, **arguments):
        return await load_release(manifest, self.lists, store, **{"now": NOW, **arguments})
