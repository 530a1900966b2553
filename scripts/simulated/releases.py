"""Releases with real keys and signatures."""

import hashlib
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

from eir.lists.changes.load import Loader, load_release
from eir.lists.record.settings import ListSettings

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAME = "stolen-national"


def text(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def make_key(folder, name):
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
    return path


def public(key):
    return key.with_name(key.name + ".pub").read_text()


def sign(manifest, key, target=None, namespace="eir-release"):
    """As an agency does it: plain ssh-keygen."""
    signature = manifest.with_name(manifest.name + ".sig")
    signature.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key, manifest]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    if target is not None:
        shutil.move(signature, target)
        return target
    return signature


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

    async def load(self, manifest, store, *, kept_max=None, **arguments):
        if kept_max is not None:
            loader = Loader(self.lists, store, "tester@host", NOW, kept_max=kept_max, **arguments)
            return await loader.verify_and_load(manifest)
        return await load_release(manifest, self.lists, store, who="tester@host", **{"now": NOW, **arguments})
