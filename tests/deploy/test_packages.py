"""`scripts/release`: a wheel that is the same when it is built twice, the Debian package and its life, the bill of materials, checksums.

The environment of the package is this one's Python and nothing fetched; `scripts/release --check` is the long form.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
import releasing
from simulated.patience import PROGRAM_S

ROOT = Path(__file__).parents[2]

SHORT = (
    """
dpkg --force-depends -i /eir.deb
test -z "$(dpkg --verify eir)"
test "$(stat -c %U:%a /var/lib/eir)" = eir:750
test "$(stat -c %G:%a /etc/eir)" = eir:750
test -x "$(readlink -f /usr/bin/eir)"
echo '# mine' >>/etc/eir/eir.yaml
touch /var/lib/eir/lists.sqlite
dpkg --force-depends -i /eir.deb
grep '# mine' /etc/eir/eir.yaml
"""
    + releasing.GONE
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """This working copy's files."""
    folder = tmp_path_factory.mktemp("source") / "first"
    for name in ("eir", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def package(source, tmp_path_factory):
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not installed")
    folder = tmp_path_factory.mktemp("package")
    home = folder / "tree" / releasing.PREFIX
    (home / "bin").mkdir(parents=True)
    for name, does in (
        ("python", f'PYTHONPATH={ROOT} exec {sys.executable} "$@"'),
        ("eir", f'PYTHONPATH={ROOT} exec {sys.executable} -m eir "$@"'),
    ):
        (home / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (home / "bin" / name).chmod(0o755)
    return releasing.package(folder / "tree", source, "0.1.0~20261128", folder)


@pytest.mark.long
def test_a_wheel_that_is_built_twice_is_the_same(source, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    second = source.with_name("a-second-place")
    shutil.copytree(source, second)
    made = [releasing.wheel(folder) for folder in (source, second)]
    assert releasing.digest(made[0]) == releasing.digest(made[1])
    with zipfile.ZipFile(made[0]) as archive:
        assert "eir/cli/eir.service" in archive.namelist()
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: Apache-2.0\n" in archive.read(about).decode()
        assert archive.read(about.replace("METADATA", "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()
        lane = archive.read("eir/interfaces/s13/_lane.abi3.so") if shutil.which("gcc") else b""
    assert sysconfig.get_config_var("LIBDIR").encode() not in lane, "it would look for libraries where it was built"


@pytest.mark.long
def test_what_is_in_the_package(package):
    control = subprocess.run(["dpkg-deb", "--info", package], capture_output=True, text=True, check=True).stdout
    assert re.search(r"Depends: python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+~\), openssh-client", control)
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    for name in (
        "./opt/eir/bin/eir",
        "./usr/lib/systemd/system/eir.service",
        "./usr/lib/systemd/system/eir-publish.path",
        "./usr/lib/systemd/system/eir-publish.service",
        "./etc/eir/eir.yaml",
        "./usr/share/man/man1/eir.1.gz",
        "./usr/share/bash-completion/completions/eir",
    ):
        assert f" {name}\n" in listed, name
    assert "./usr/bin/eir -> /opt/eir/bin/eir" in listed
    shown = ["dpkg-deb", "--fsys-tarfile", package], ["tar", "-xO", "./usr/share/doc/eir/copyright"]
    packed = subprocess.run(shown[0], capture_output=True, check=True).stdout
    copyright_file = subprocess.run(shown[1], input=packed, capture_output=True, check=True).stdout.decode()
    assert "License: Apache-2.0\n The text is in /usr/share/common-licenses/Apache-2.0." in copyright_file
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert not [
        line for line in listed.splitlines() if re.match(r".....w|........w", line) and not line.startswith("l")
    ], "nobody else may write to it"


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("adduser"),
    reason="a system to install it in takes root, unshare and adduser",
)
def test_its_life(package, tmp_path):
    try:
        releasing.check(package, tmp_path, "true")
    except releasing.Broken as e:
        pytest.skip(f"no copy of this system can be made here: {e}")
    (tmp_path / "again").mkdir()
    releasing.check(package, tmp_path / "again", SHORT)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("lintian"), reason="lintian is not installed")
def test_lintian_finds_nothing(package):
    releasing.lint(package)


@pytest.mark.long
def test_a_fresh_clone_sets_up_what_a_release_needs(tmp_path):
    """From the package index, as a clone on another host does; whatever of the system's packages is missing is installed as well."""
    if not (ROOT / ".git").exists():
        pytest.skip("takes a clone with its history")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-local", "--depth", "1", ROOT.as_uri(), clone], check=True)
    for name in ("pyproject.toml", "scripts/setup", "scripts/release", "scripts/releasing.py"):
        shutil.copy2(ROOT / name, clone / name)
    bare = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    done = subprocess.run(
        ["/usr/bin/python3", "scripts/release", "--wheel-only"], cwd=clone, env=bare | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True, text=True, check=False, timeout=PROGRAM_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (clone / "dist").iterdir()} == {".whl", ".tgz", ""}


def test_a_bill_of_materials_names_what_is_there(tmp_path):
    site = tmp_path / releasing.PREFIX / "lib" / "python3.13" / "site-packages"
    for name, version in (("h11", "0.16.0"), ("Some.Thing", "1.0"), ("eir-register", "0.1.0")):
        (site / f"{name}-{version}.dist-info").mkdir(parents=True)
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
        )
    bill = releasing.materials("0.1.0", tmp_path, "1700000000")
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["timestamp"]) == (
        "CycloneDX",
        "1.6",
        "2023-11-14T22:13:20Z",
    )
    assert [(each["purl"], each["licenses"]) for each in bill["components"]] == [
        ("pkg:pypi/h11@0.16.0", [{"expression": "MIT"}]), ("pkg:pypi/some-thing@1.0", [{"expression": "MIT"}]),
    ]  # fmt: skip
    assert bill["dependencies"][0]["dependsOn"] == ["pkg:pypi/h11@0.16.0", "pkg:pypi/some-thing@1.0"]
    assert bill == releasing.materials("0.1.0", tmp_path, "1700000000")


def test_the_licence_is_the_text_as_published():
    assert releasing.digest(ROOT / "LICENSE") == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


@pytest.mark.parametrize(
    ("metadata", "expression"),
    [
        ("License-Expression: Apache-2.0 OR BSD-3-Clause", "Apache-2.0 OR BSD-3-Clause"),
        ("License-Expression: (MIT AND Zlib) OR 0BSD", "(MIT AND Zlib) OR 0BSD"),
        ("License: BSD-3-Clause\nClassifier: License :: OSI Approved :: BSD License", "BSD-3-Clause"),
        ("License: as is\nClassifier: License :: OSI Approved :: MIT License", "MIT"),
        (
            "Classifier: License :: OSI Approved :: Apache Software License\nClassifier: License :: OSI Approved :: MIT License",
            "Apache-2.0 AND MIT",
        ),
    ],
)
def test_the_licence_of_a_dependency_is_in_the_bill(tmp_path, metadata, expression):
    assert releasing.component(distribution(tmp_path, metadata))["licenses"] == [{"expression": expression}]


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ("License-Expression: GPL-3.0-only", "the licence is GPL-3.0-only; permitted are 0BSD, Apache-2.0"),
        ("License-Expression: MIT AND GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH"),
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", "the licence is BSD License;"),
        ("License: MIT style", "the licence is not in its metadata;"),
    ],
)
def test_a_dependency_without_a_permitted_licence_stops_the_release(tmp_path, metadata, why):
    with pytest.raises(releasing.Broken, match=rf"^thing 1\.0: .*{re.escape(why)}"):
        releasing.component(distribution(tmp_path, metadata))


def distribution(folder, metadata):
    """An installed package with these lines in its metadata."""
    folder = folder / "thing-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: thing\nVersion: 1.0\n{metadata}\n")
    return Distribution.at(folder)


def test_every_locked_package_has_a_permitted_licence():
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "deploy" / "requirements.lock").read_text(), re.MULTILINE))
    installed = {re.sub(r"[-_.]+", "-", each.name).lower(): each for each in distributions()}
    checked = [releasing.licence(installed[name]) for name in locked & set(installed)]
    assert len(checked) > 20
