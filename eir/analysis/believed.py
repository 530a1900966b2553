"""Peers whose word is not believed, since what they say of others' devices is not what comes of serving phones.

A peer that serves phones sends checks of all kinds; one that is after somebody's device sends little but what makes it look like several phones.
Reads the tables of a judgement.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from eir.analysis.engine import Engine

LIES_MIN, LIES_TIMES = 20, 10
"""A peer is not believed that alone speaks for a subscriber of so many likely devices, for its checks so many times as often as others."""
SMALL, LIES_SHARE, SECONDS_SHARE = 0.01, 0.2, 0.33
"""A peer that sends less than this share of all checks is not believed either if this share of its own speaks so for likely devices, or this one for
subscribers that are not the busiest of their device, likely or not."""


def not_believed(engine: Engine) -> list[str]:
    """The peers that an engine's record gives reason not to believe, in order; their checks are to be left out of the next look."""
    # A box is at one place, with dozens of devices: of those only the checks count. Log odds of -2 are a chance of one in eight: what a liar says
    # makes some of its victims likely and the others nearly so, and all of them tell of it.
    alone = engine.rows("""
        SELECT device, peer, SUM(checks) AS checks, MAX(is_copied) AS is_copied
        FROM (
          SELECT steps.device, MIN(claims.peer) AS peer, COUNT(*) AS checks, CASE WHEN steps.device IN (SELECT sim_box.device FROM sim_box) THEN 0 ELSE 1 END AS is_copied
          FROM steps JOIN summed ON steps.device = summed.device JOIN claims ON steps.claim = claims.claim
          WHERE summed.odds > -2
          GROUP BY steps.device, steps.subscriber
          HAVING MIN(claims.peer) = MAX(claims.peer)
          UNION ALL
          SELECT witnessed.device, MIN(witnessed.peer) AS peer, SUM(witnessed.checks) AS checks, 0 AS is_copied
          FROM witnessed JOIN sim_box ON witnessed.device = sim_box.device
          WHERE NOT witnessed.device IN (SELECT members.device FROM members)
          GROUP BY witnessed.device, witnessed.subscriber
          HAVING MIN(witnessed.peer) = MAX(witnessed.peer)
        ) AS spoken
        GROUP BY device, peer
    """)
    seconds = engine.rows("""
        SELECT peer, SUM(checks)
        FROM (
          SELECT steps.device, steps.subscriber, MIN(claims.peer) AS peer, COUNT(*) AS checks
          FROM steps JOIN claims ON steps.claim = claims.claim
          WHERE steps.subscriber > 1
          GROUP BY steps.device, steps.subscriber
          HAVING MIN(claims.peer) = MAX(claims.peer)
        ) AS spoken
        GROUP BY peer
    """)
    sent = {peer: int(checks) for peer, checks in engine.rows("SELECT peer, SUM(checks) FROM claims GROUP BY peer")}
    of_seconds = {peer for peer, checks in seconds if _is_small(peer, sent) and checks >= sent[peer] * SECONDS_SHARE}
    return sorted({*liars(alone, sent), *of_seconds})


def liars(alone: Iterable[tuple[int, str, int, int]], sent: Mapping[str, int]) -> list[str]:
    """Peers that are not to be believed for what they alone say: of a likely device, peer, checks, and whether it would be a copy (1) or a box (0).

    `sent`: peer → all its checks. Where two peers speak for the same devices, the one is judged first that says more for its checks, and then
    these devices tell nothing against the other. Where there is one peer, its word is all there is.
    """
    told = list(alone)
    copied = {device for device, _, _, is_copied in told if is_copied}
    everything, found = sum(sent.values()), list[str]()
    while True:
        said: defaultdict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
        for device, peer, checks, is_copied in told:
            said[peer][device] = checks, is_copied
        for peer in sorted(said, key=lambda peer: (-len(said[peer]) / sent[peer], peer)):
            mine = {device for device, (_, is_copied) in said[peer].items() if is_copied}
            others = max(len(copied - mine), LIES_MIN / 2)
            is_often = (
                len(mine) >= LIES_MIN and len(mine) * (everything - sent[peer]) > LIES_TIMES * sent[peer] * others
            )
            is_most = (
                _is_small(peer, sent) and sum(checks for checks, _ in said[peer].values()) >= sent[peer] * LIES_SHARE
            )
            if everything > sent[peer] and (is_often or is_most):
                found.append(peer)
                told = [each for each in told if each[0] not in said[peer]]
                break
        else:
            return sorted(found)


def _is_small(peer: str, sent: Mapping[str, int]) -> bool:
    return sent[peer] < SMALL * (sum(sent.values()) - sent[peer])
