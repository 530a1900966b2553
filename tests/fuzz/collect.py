"""Makes the kept corpus: good messages, sessions by hand, and of a stream of mutations the first of each outcome.

`python tests/fuzz/collect.py [SEED]`. An outcome is the set of results and faults that a script brings about, so that the corpus has
an example of each, and stays small.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from fuzz import session
from simulated.mutations import Mutator, good_messages
from simulated.wire import avp, cer, dpr, dwr, ecr, u32

CORPUS = Path(__file__).parent / "corpus"
TRIES = 6000


def by_hand():
    """Name → script."""
    plain, listed = ecr(), ecr("35209900176148")
    pieces = cer() + plain + listed
    cut = b"".join(bytes([session.PIECE, 30]) + pieces[at : at + 31] for at in range(0, len(pieces) - 31, 31))
    alike = plain + ecr(extra=avp(284, b"\xff" * 13)) + plain
    return {
        "plain": session.script(cer(), plain, listed, plain + listed + dwr(), dpr(), plain, session.END),
        "limited": b"\1" + session.script(cer(), plain * 3, session.SECOND, plain * 5 + ecr(extra=u32(301, 0)))[1:],
        "watchdog": session.script(cer(), session.MINUTE, session.MINUTE, session.MINUTE),
        "pieces": b"\0" + cut,
        "frames": session.script(cer(), plain, b"\2" + plain[1:], plain),
        "numbers": session.script(cer(app=avp(260, u32(266, 10415) + avp(258, b"\xff" * 3000))), plain),
        "strangers": session.script(plain, cer()),
        "alike": session.script(cer(), plain, ecr("12"), ecr("x" * 14), alike, ecr(extra=avp(9999)) + plain),
    }


def outcome(script):
    """The outcome of a script, by the counters of the connection that followed it."""
    side = session.run(script)[0]
    counts = side.counts
    return frozenset((*counts.errors, *counts.dropped, *(result for _, result in counts.answers)))


def main(seed):
    for path in CORPUS.iterdir():
        path.unlink()
    for number, octets in enumerate(good_messages()):
        (CORPUS / f"message-{number:02d}").write_bytes(octets)
    for name, octets in by_hand().items():
        (CORPUS / f"session-{name}").write_bytes(octets)
    mutator, seen = Mutator(seed), set()
    for _ in range(TRIES):
        octets = session.script(cer(), mutator.message())
        found = outcome(octets)
        if not found <= seen and len(octets) < 4096:
            seen |= found
            (CORPUS / f"mutated-{len(seen):03d}").write_bytes(octets)
    print(f"seed {seed}: {len(list(CORPUS.iterdir()))} files, {len(seen)} outcomes")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
