"""Build of `scripts/release`: from a commit, in a temporary folder; uncommitted changes of this working copy are left out.

The wheel is built twice, in two folders, and both must have the same bytes. The package contains a Python environment in /opt/eir with
the versions of deploy/requirements.lock. `--check` installs, upgrades, removes and purges the package in a copy of this system.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path

from versions import Broken, prepare, stamp, version_of

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path("opt/eir")
NAMESPACE = "eir-build"
"""Namespace of signatures of checksums; signatures of lists have another one."""
PERMITTED = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "PSF-2.0", "Zlib"}
)
"""SPDX identifiers of licences that a packaged dependency may have."""
CLASSIFIERS = {"Apache Software License": "Apache-2.0", "ISC License (ISCL)": "ISC", "MIT License": "MIT"}
"""Licence classifiers of the Python index that name one licence → its SPDX identifier."""
BY_FILE = {"Jinja2": "BSD-3-Clause"}
"""Packages whose metadata only have an ambiguous classifier → SPDX identifier of the text in their licence file."""
HOST, REALM = "eir1.epc.mnc001.mcc001.3gppnetwork.org", "epc.mnc001.mcc001.3gppnetwork.org"
CONTROL = """\
Package: eir
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {after}), openssh-client, curl (>= 7.76), adduser, libc6
Section: net
Priority: optional
Description: Equipment Identity Register
 Answers ME-Identity-Checks of MMEs and SGSNs over Diameter S13, and of AMFs
 over HTTP/2, from blocklists that agencies deliver as signed files.
"""
POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
	adduser --quiet --system --group --home /var/lib/eir --no-create-home eir
	install -d -o eir -g eir -m 750 /var/lib/eir
	chgrp -R eir /etc/eir
	chmod 750 /etc/eir
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		deb-systemd-invoke try-restart eir.service || true
	fi
	[ -n "$2" ] || echo "eir: put your names and peers into /etc/eir/eir.yaml, then: systemctl enable --now eir"
fi
"""
PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now eir.service eir-publish.path || true
fi
if [ "$1" = remove ]; then
	find /opt/eir -name __pycache__ -type d -prune -exec rm -rf {} +
fi
"""
POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
	rm -rf /var/lib/eir /etc/eir
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
"""
COPYRIGHT = """\
Copyright: {year} the authors of eir
License: Apache-2.0
 The text is in /usr/share/common-licenses/Apache-2.0.

Packages in /opt/eir have their own licences, in their *.dist-info folders.
"""
CHANGES = """\
eir ({version}) stable; urgency=medium

  * CHANGELOG.md.gz beside this file says what changed for those who run it.

 -- {maintainer}  {date}
"""
MAINTAINER = "The operators of this register <root@localhost>"
OVERRIDES = """\
# It has an environment of its own, so that it never shares a library with another program: packages of the index as they are
# published there, signed off by their digests in deploy/requirements.lock, and compiled by the interpreter that runs them.
eir: dir-or-file-in-opt
eir: embedded-library *
eir: executable-not-elf-or-script [opt/eir/lib/*]
eir: library-not-linked-against-libc [opt/eir/lib/*]
eir: package-installs-python-pycache-dir [opt/eir/lib/*]
eir: script-not-executable [opt/eir/lib/*]
eir: shared-library-is-executable * [opt/eir/lib/*]
eir: shared-library-lacks-prerequisites [opt/eir/lib/*]
eir: unstripped-binary-or-object [opt/eir/lib/*]
eir: unusual-interpreter * [opt/eir/*]
# The package is for whoever operates the register: scripts/release --maintainer says who that is.
eir: bogus-mail-host Maintainer root@localhost
eir: bogus-mail-host-in-debian-changelog root@localhost *
eir: root-in-contact Maintainer *
# Whoever enabled the unit did so by systemctl; deb-systemd-helper knows nothing of it.
eir: maintainer-script-calls-systemctl [prerm:*]
# The page says how the package itself is upgraded, and what other pages name there.
eir: package-contains-upstream-installation-documentation [usr/share/doc/eir/INSTALL.md]
"""


def main(arguments: Sequence[str]) -> int:
    """Make a release; return the exit status."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument(
        "tag", nargs="?", help="tag, vVERSION (default: the current commit, as a version before the next release)"
    )
    parser.add_argument("--key", type=Path, help="OpenSSH key that signs the checksums (default: no signature)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument(
        "--wheel-only", action="store_true", help="only the wheel and the chart, without a Debian package"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="also install, upgrade, remove and purge the package, in a copy of this system (as root)",
    )
    parser.add_argument(
        "--maintainer", default=MAINTAINER, metavar="NAME <MAIL>", help="maintainer of the Debian package"
    )
    parser.add_argument(
        "--prepare",
        metavar="VERSION",
        help="prepare this working copy for the tag of that version, and print the remaining commands; builds nothing",
    )
    options = parser.parse_args(arguments)
    try:
        if options.prepare is not None:
            print("\n".join(prepare(ROOT, options.prepare, datetime.now(UTC).date())))
            return 0
        set_up()
        with tempfile.TemporaryDirectory(prefix="eir-release-") as folder:
            made = release(Path(folder), options.tag, None if options.wheel_only else options.maintainer)
            if options.check:
                lint(next(file for file in made if file.suffix == ".deb"))
                check(next(file for file in made if file.suffix == ".deb"), Path(folder))
            options.out.mkdir(parents=True, exist_ok=True)
            files = [Path(shutil.copy(file, options.out)) for file in made]
            sums = options.out / "SHA256SUMS"
            sums.write_text("".join(f"{digest(file)}  {file.name}\n" for file in sorted(files)))
            if options.key is not None:
                sums.with_name("SHA256SUMS.sig").unlink(missing_ok=True)  # ssh-keygen would leave it as it is
                run("ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", options.key, sums)
    except Broken as e:
        print(f"release: {e}", file=sys.stderr)
        return 1
    print("\n".join(str(file) for file in [*files, sums]))
    return 0


def set_up() -> None:
    """Install missing programs and packages of a release. Raises Broken."""
    if subprocess.run([ROOT / "scripts" / "setup", "--release"], stdout=sys.stderr, check=False).returncode:
        raise Broken("scripts/setup --release failed; its messages are above")


def release(folder: Path, tag: str | None, maintainer: str | None) -> list[Path]:
    """Make all files in a folder, the Debian package only if it has a maintainer; return the files."""
    commit = tag or "HEAD"
    epoch = run("git", "-C", ROOT, "log", "-1", "--format=%ct", commit).strip()
    os.environ["SOURCE_DATE_EPOCH"] = epoch
    os.umask(0o022)
    sources = [exported(commit, folder / name) for name in ("first", "a-second-place")]
    version = version_of(sources[0], tag, epoch)
    for source in sources:
        stamp(source, version)
    wheels = [wheel(source) for source in sources]
    if digest(wheels[0]) != digest(wheels[1]):
        raise Broken(f"two builds of the wheel differ: {' and '.join(digest(each)[:12] for each in wheels)}")
    made = [wheels[0], chart(sources[0], version.chart, folder, int(epoch))]
    if maintainer is not None:
        tree = environment(folder / "tree", sources[0], wheels[0])
        bill = folder / f"eir-{version.debian}.cdx.json"
        bill.write_text(json.dumps(materials(version.debian, tree, epoch), indent=2) + "\n")
        made += [package(tree, sources[0], version.debian, folder, maintainer=maintainer, epoch=int(epoch)), bill]
    return made


def exported(commit: str, to: Path) -> Path:
    """Return a folder with the files of a commit."""
    to.mkdir(parents=True)
    archive = to.with_suffix(".tar")
    run("git", "-C", ROOT, "archive", "--output", archive, commit)
    run("tar", "-x", "-C", to, "-f", archive)
    return to


def wheel(source: Path) -> Path:
    """Build the wheel in the folder of its sources."""
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    flags = f"-g0 -ffile-prefix-map={source}=. -Wdate-time"
    run(
        ROOT / ".venv/bin/python",
        "-c",
        build,
        cwd=source,
        env={**os.environ, "CFLAGS": flags, "LDSHARED": "gcc -shared -s"},
    )
    (made,) = (source / "dist").glob("*.whl")
    return made


def chart(source: Path, version: str, folder: Path, epoch: int) -> Path:
    """Return the Helm chart as one file; the same commit gives the same bytes."""
    root, made = source / "deploy" / "chart", folder / f"eir-{version}.tgz"
    with (
        gzip.GzipFile(made, "wb", mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", dereference=True) as tar,
    ):
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            member = tar.gettarinfo(path, str("eir" / path.relative_to(root)))
            member.mtime, member.mode, member.uid, member.gid, member.uname, member.gname = epoch, 0o644, 0, 0, "", ""
            with path.open("rb") as content:
                tar.addfile(member, content)
    return made


def environment(tree: Path, source: Path, made: Path) -> Path:
    """Return the package's files in /opt/eir: an environment of the system's Python with the locked versions and this wheel."""
    home, builder = tree / PREFIX, tree.parent / "builder"
    python = shutil.which("python3", path="/usr/bin:/bin") or "python3"
    run(python, "-m", "venv", builder)
    run(python, "-m", "venv", "--without-pip", home)
    pip = (
        builder / "bin" / "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--python",
        home / "bin" / "python",
        "install",
        "--no-compile",
    )
    run(*pip, "--require-hashes", "-r", source / "deploy" / "requirements.lock")
    run(*pip, "--no-deps", made)
    run(*pip[:-2], "uninstall", "--yes", "setuptools")  # builds, and nothing else
    return settled(tree)


def settled(tree: Path) -> Path:
    """Set the paths of an environment to /opt/eir, and remove content that differs between builds."""
    home = tree / PREFIX
    was, will = str(home).encode(), f"/{PREFIX}".encode()
    for file in [*(home / "bin").iterdir(), home / "pyvenv.cfg"]:
        if file.is_file() and not file.is_symlink():
            file.write_bytes(
                b"".join(
                    line
                    for line in file.read_bytes().replace(was, will).splitlines(keepends=True)
                    if not line.startswith(b"command =")
                )
            )
    for cache in home.rglob("__pycache__"):
        shutil.rmtree(cache)
    (home / ".gitignore").unlink(missing_ok=True)
    for record in (*home.rglob("direct_url.json"), *home.rglob("*.dist-info/RECORD")):
        record.unlink()
    run(
        home / "bin" / "python",
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        tree,
        "-p",
        "/",
        home / "lib",
        check=False,
    )
    return tree


def materials(version: str, tree: Path, epoch: str) -> dict[str, object]:
    """Return the bill of materials (CycloneDX 1.6): the content of the package's environment."""
    there = sorted(
        distributions(path=[str(path) for path in (tree / PREFIX).glob("lib/python*/site-packages")]),
        key=lambda each: each.name.lower(),
    )
    own = "eir-register"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{own} {version}')}",
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(epoch), UTC).isoformat().replace("+00:00", "Z"),
            "component": {"type": "application", "name": "eir", "version": version, "bom-ref": "eir"},
        },
        "components": [component(each) for each in there if each.name != own],
        "dependencies": [{"ref": "eir", "dependsOn": [purl(each) for each in there if each.name != own]}],
    }  # fmt: skip


def purl(of: Distribution) -> str:
    """Return the package URL of a package of the Python index."""
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', of.name).lower()}@{of.version}"


def component(of: Distribution) -> dict[str, object]:
    """Return one component of the bill. Raises Broken if its licence is not permitted."""
    return {
        "type": "library",
        "name": of.name,
        "version": of.version,
        "purl": purl(of),
        "bom-ref": purl(of),
        "licenses": [{"expression": licence(of)}],
    }


def licence(of: Distribution) -> str:
    """Return the SPDX expression of a package's licence, from its metadata; older metadata have a word or classifiers instead.

    Every identifier of the expression must be permitted. Raises Broken.
    """
    word, prefix = of.metadata.get("License", ""), "License :: OSI Approved :: "
    named = [line.removeprefix(prefix) for line in of.metadata.get_all("Classifier", []) if line.startswith(prefix)]
    expression = (
        of.metadata.get("License-Expression")
        or BY_FILE.get(of.name)
        or (word if word in PERMITTED else " AND ".join(CLASSIFIERS.get(name, name) for name in named))
    )
    if not set(re.split(r"(?: (?:AND|OR) |[()])+", expression)) - {""} <= PERMITTED or not expression:
        raise Broken(
            f"{of.name} {of.version}: the licence is {expression or 'not in its metadata'}; permitted are {', '.join(sorted(PERMITTED))}: "
            "replace the dependency, or add its licence to PERMITTED in scripts/releasing.py if the licence permits distribution"
        )
    return expression


def package(
    tree: Path, source: Path, version: str, folder: Path, *, maintainer: str = MAINTAINER, epoch: int = 0
) -> Path:
    """Build the Debian package of a tree with the environment; other files are written beside it."""
    eir = (tree / PREFIX / "bin" / "python", "-m", "eir")
    docs = (eir[0], Path(__file__).with_name("command_docs.py"))
    python = run(eir[0], "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    architecture = run("dpkg", "--print-architecture").strip()
    units = source / "deploy/systemd"
    for unit in (source / "eir/cli/eir.service", units / "eir-publish.path", units / "eir-publish.service"):
        put(tree / "usr/lib/systemd/system" / unit.name, unit.read_text())
    put(tree / "usr/share/man/man1/eir.1.gz", gzip.compress(run(*docs, "man").encode(), mtime=0))
    put(tree / "usr/share/bash-completion/completions/eir", run(*docs, "bash"))
    doc, made_at = tree / "usr/share/doc/eir", datetime.fromtimestamp(epoch, UTC)
    changes = CHANGES.format(version=version, maintainer=maintainer, date=f"{made_at:%a, %d %b %Y %H:%M:%S} +0000")
    put(doc / "copyright", COPYRIGHT.format(year=made_at.year))
    put(doc / "changelog.gz", gzip.compress(changes.encode(), mtime=0))
    put(doc / "CHANGELOG.md.gz", gzip.compress((source / "CHANGELOG.md").read_bytes(), mtime=0))
    put(tree / "usr/share/lintian/overrides/eir", OVERRIDES)
    for page in sorted((source / "deploy").glob("*.md")):
        put(doc / page.name, page.read_text())
    (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
    (tree / "usr/bin/eir").symlink_to(f"/{PREFIX}/bin/eir")
    first = folder / "configuration"
    run(
        *eir,
        "init",
        first,
        "--realm",
        REALM,
        "--host",
        HOST,
        "--peer",
        "127.0.0.0/8",
        "--listen",
        "tcp://127.0.0.1:3868",
        "--state",
        "/var/lib/eir",
    )
    put(tree / "etc/eir/eir.yaml", (first / "eir.yaml").read_text())
    shutil.rmtree(first)
    for cache in tree.rglob("eir/**/__pycache__/*.pyc.*"):
        cache.unlink()
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files) // 1024
    major, _, minor = python.partition(".")
    control = {
        "control": CONTROL.format(version=version, maintainer=maintainer, architecture=architecture, size=size, python=python, after=f"{major}.{int(minor) + 1}~"),
        "conffiles": "/etc/eir/eir.yaml\n", "postinst": POSTINST, "prerm": PRERM, "postrm": POSTRM, "md5sums": md5sums(tree, files),
    }  # fmt: skip
    for name, text in control.items():
        put(tree / "DEBIAN" / name, text, mode=0o755 if text.startswith("#!") else 0o644)
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    made = folder / f"eir_{version}_{architecture}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", tree, made)
    return made


def lint(made: Path) -> None:
    """Run lintian on a package. Raises Broken with its errors and warnings."""
    found = run("lintian", "--allow-root", "--fail-on", "none", made)
    if found:
        raise Broken(f"lintian says of {made.name}:\n{found}")


def md5sums(tree: Path, files: Iterable[Path]) -> str:
    """Return the checksums that dpkg --verify compares with."""
    lines = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"
        for path in sorted(files)
    ]
    return "".join(line for line in lines if "  etc/" not in line)


def put(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file of the package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


INSTALLED = """
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --bind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mount -t tmpfs tmpfs "$1/root/run"
cp "$2" "$1/root/eir.deb"
exec chroot "$1/root" sh -euxc "$3"
"""
GONE = """\
dpkg -r eir
test ! -e /opt/eir
test -e /etc/eir/eir.yaml
test -e /var/lib/eir/lists.sqlite
dpkg -P eir
test ! -e /etc/eir
test ! -e /var/lib/eir
"""
"""Commands that remove the package, which keeps configuration and lists, and then purge it, which keeps nothing."""
LIFE = (
    """
dpkg -i /eir.deb
dpkg --verify eir
test "$(stat -c %U:%a /var/lib/eir)" = eir:750
test "$(stat -c %G:%a /etc/eir)" = eir:750
cd /
eir --version
su -s /bin/sh eir -c 'eir config' >/dev/null
su -s /bin/sh eir -c 'eir add blocked-here 00101001000001 --reason lost'
(su -s /bin/sh eir -c 'eir serve' & ) 2>/serve.log
for try in $(seq 100); do ! eir status >/dev/null 2>&1 || break; sleep 0.2; done
eir probe 's13://127.0.0.1?origin_realm=epc.mnc001.mcc001.3gppnetwork.org' 00101001000001 | grep blacklisted
su -s /bin/sh eir -c 'eir drain'
echo '# mine' >>/etc/eir/eir.yaml
dpkg -i /eir.deb
grep '# mine' /etc/eir/eir.yaml
su -s /bin/sh eir -c 'eir lists' | grep blocked-here
"""
    + GONE
)
"""Commands that install the package, use the service, upgrade it with a changed configuration, remove and purge it."""


def check(made: Path, folder: Path, life: str = LIFE) -> str:
    """Install, upgrade, remove and purge the package in a copy of this system, which is deleted afterwards. Raises Broken."""
    there = folder / "life"
    there.mkdir()
    inside = ["mount -t tmpfs tmpfs", str(there)]
    script = f"{' '.join(inside)}; mkdir {there}/upper {there}/work {there}/root; {INSTALLED}"
    command = [
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
        "sh",
        "-euc",
        f"ip link set lo up; {script}",
        "sh",
        str(there),
        str(made),
        life,
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise Broken(f"the package's life ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def digest(file: Path) -> str:
    """Return the SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def run(*command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, check: bool = True) -> str:
    """Run a program; return its output. Raises Broken if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        raise Broken(
            f"{' '.join(str(word) for word in command[:4])} … ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout
