"""Tests over SCTP on hosts whose kernel has none: those of a file run together in a kernel of scripts/sctp, and their reports come here.

A test that is marked `sctp` is one of those. Where the kernel has SCTP it runs as any other test does.
"""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REPORTS = "EIR_TEST_REPORTS"
"""Inside: the file that reports go to."""
BOOT_AND_RUN_S = 3600


@cache
def has_sctp():
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as e:
        if e.errno in {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}:
            return False
        raise
    return True


def write_report(config, report):
    """Inside: keep a report for the one who started the kernel."""
    with suppress(KeyError), Path(os.environ[REPORTS]).open("a") as reports:
        reports.write(json.dumps(config.hook.pytest_report_to_serializable(config=config, report=report)) + "\n")


class Elsewhere:
    """The reports of tests that ran in a kernel, by their ids."""

    def __init__(self):
        self._by_id = {}

    def run(self, item, following):
        """Report a test as it went there; with it run all others of its file that are wanted. False: it can run here."""
        if item.get_closest_marker("sctp") is None or has_sctp():
            return False
        if item.nodeid not in self._by_id:
            self._run_file(
                [each for each in item.session.items if each.path == item.path and each.get_closest_marker("sctp")]
            )
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._by_id[item.nodeid]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        item.session._setupstate.teardown_exact(following)  # what the test before left standing for one of its own file
        return True

    def _run_file(self, items):
        if shutil.which("linux.uml") is None:
            text = "no SCTP in this kernel, and no user-mode-linux to run it in"
            self._by_id |= {item.nodeid: [self._report(item, "skipped", (str(item.path), 0, text))] for item in items}
            return
        with tempfile.TemporaryDirectory() as folder:
            reports = Path(folder) / "reports"
            reports.touch()
            asked = [
                ROOT / "scripts/sctp",
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                *(item.nodeid for item in items),
            ]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {
                REPORTS: str(reports)
            }
            done = subprocess.run(
                asked,
                capture_output=True,
                text=True,
                cwd=items[0].config.rootpath,
                env=environment,
                timeout=BOOT_AND_RUN_S,
                check=False,
            )
            for line in reports.read_text().splitlines():
                report = items[0].config.hook.pytest_report_from_serializable(
                    config=items[0].config, data=json.loads(line)
                )
                self._by_id.setdefault(report.nodeid, []).append(report)
        for item in items:
            self._by_id.setdefault(
                item.nodeid, [self._report(item, "failed", f"it did not run there:\n{done.stdout}\n{done.stderr}")]
            )

    @staticmethod
    def _report(item, outcome, why):
        return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), outcome, why, "call")
