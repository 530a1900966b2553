"""The short form of `scripts/soak upgrade`: two nodes behind freeDiameter get another program and go back, while requests flow."""

import re
import subprocess
from pathlib import Path

import pytest
from simulated.patience import PROGRAM_S

ROOT = Path(__file__).parents[2]


def git(*arguments):
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.mark.long
def test_no_request_is_lost_there_and_back():
    """From the newest release, or from the commit at hand where there is none yet."""
    if git("rev-parse", "HEAD") is None:
        pytest.skip("takes a clone with its history")
    earlier = git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^") or "HEAD"
    command = [ROOT / "scripts" / "soak", "upgrade", "--turns", "1", "--rate", "50", "--from", earlier]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stdout + done.stderr
    asked, right = re.search(r"^asked ([\d,]+); right: ([\d,]+)$", done.stdout, re.MULTILINE).groups()
    assert asked == right
    assert int(right.replace(",", "")) > 50
