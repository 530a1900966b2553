"""Processor time of each test, with that of its commands and nodes: pytest prints the dearest, and begins with the dearest files.

A process counts for the test that waits for its end. The times of files come from earlier runs, by pytest's cache.
"""

import os
import resource
from collections import Counter
from pathlib import Path

import pytest
from simulated import commands

FILES = "eir/processor_time"
"""Key of the cache: seconds of each file."""
PRINTED = 10
TICKS = os.sysconf("SC_CLK_TCK")


class ProcessorTime:
    """Plugin that measures the tests of this process, and in the controller of several workers collects theirs."""

    def __init__(self, config):
        self._config = config
        self._by_test = Counter()

    def place(self, item):
        """Return the sort key of a test: dear files come first, the tests of one file keep their order."""
        return -self._known().get(_file(item.nodeid), 0)

    def _known(self):
        return self._config.cache.get(FILES, {}) if hasattr(self._config, "cache") else {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        before = _spent_s()
        try:
            return (yield)
        finally:
            self._by_test[item.nodeid] += _spent_s() - before

    def pytest_sessionfinish(self):
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput[FILES] = dict(self._by_test)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self._by_test.update(getattr(node, "workeroutput", {}).get(FILES, {}))

    def pytest_terminal_summary(self, terminalreporter):
        files = Counter()
        for name, seconds in self._by_test.items():
            files[_file(name)] += seconds
        if hasattr(self._config, "cache"):
            self._config.cache.set(FILES, self._known() | files)
        if not self._by_test:
            return
        terminalreporter.section(f"{self._by_test.total():.0f} s of processor time, the dearest tests")
        for name, seconds in self._by_test.most_common(PRINTED):
            terminalreporter.line(f"{seconds:6.1f} s  {name}")


def _file(name):
    return name.partition("::")[0]


def _spent_s():
    """Return the processor time of this process, of its processes that have ended, and of the commands that it forked."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) + _forked_s()


def _forked_s():
    if not commands.commands.cache_info().currsize:
        return 0
    stat = Path(f"/proc/{commands.commands().pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[13]) + int(stat[14])) / TICKS
