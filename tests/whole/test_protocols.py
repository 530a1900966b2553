"""One policy, four protocols: the short form of `scripts/soak protocols`, which asks about a million."""

import soak_protocols


def test_each_protocol_gives_the_same_verdict(capsys):
    assert soak_protocols.main(["--questions", "1500"]) == 0
    assert "0 promises not kept" in capsys.readouterr().out.splitlines()[-1]
