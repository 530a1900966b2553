"""Coverage-guided fuzzing of codec.py with atheris: `python tests/fuzz/fuzz_codec.py [CORPUS...] [-max_total_time=60]` (extra `fuzz`)."""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

with atheris.instrument_imports(include=["eir.wire.diameter", "eir.interfaces.s13", "eir.device"]):
    from fuzz import codec

if __name__ == "__main__":
    atheris.Setup(sys.argv, codec.run)
    atheris.Fuzz()
