"""Coverage-guided fuzzing of session.py with atheris: `python tests/fuzz/fuzz_session.py [CORPUS...] [-max_total_time=60]` (extra `fuzz`)."""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

with atheris.instrument_imports(include=["eir.wire.diameter", "eir.interfaces.s13", "eir.device"]):
    from fuzz import session

if __name__ == "__main__":
    atheris.Setup(sys.argv, session.run)
    atheris.Fuzz()
