"""What judges a few sightings."""

import pytest
from tampered import START, UNTIL, files, write

from eir.sightings.conditions import TamperSettings
from eir.sightings.engine import duck
from eir.sightings.judge import judge


@pytest.fixture
def judge_rows(tmp_path):
    """Judges a few sightings: (hours from the start, IMEI, subscriber, origin, software version)."""

    def judged(rows, warn=lambda _: None, status="whitelisted", tacs=(), **settings):
        write(tmp_path, rows, status=status)
        with duck(files(tmp_path), since=START, until=UNTIL, memory=1 << 28) as engine:
            return judge(engine, TamperSettings(**settings), since=START, until=UNTIL, tacs=tacs, warn=warn)

    return judged
