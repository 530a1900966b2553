"""The check: from a question to a verdict, whichever protocol asks; and what is counted and told of it.

A protocol's translator makes a Question of a request and an answer of what `check` returns. A fast path of a protocol asks the
policy in force itself (`policy`), and hands in what it answered by the batch (`count`, `note`). Synchronous, without I/O: the time
is an argument, and events go to callables. May import eir.checks, eir.lists.images.index, eir.device and errors.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from eir.checks.policy import Decision, Policy, SightingKind, Sightings, Verdict, compile_policy
from eir.checks.question import NO_KEY, Question, is_wrong_digit
from eir.checks.settings import NoDevice, PolicySettings, Status
from eir.device import key_text
from eir.errors import IdentifierError, Report, silent
from eir.lists.images.index import Index

Labels = tuple[str, ...]
"""Status, list that decided (or empty), rule (by name, number, or `default`, `override`, `no_identity`, `bad_identity`, `no_imei`), protocol,
and PROBE behind it where a probe asked."""

PROBE = "yes"

Kind = tuple[str, str, str, str]
"""Status, list and rule as in Labels, and the label of the peer."""

NoteCheck = Callable[[Kind, str, str, str, int], None]
"""Called with checks that did not end in `whitelisted`: their kind, the Origin-Host of the request (behind an agent not
the peer's own), identifier and IMSI, which are those of the last one and empty where absent, and the number of
checks."""

NoteObserved = Callable[[int, str, str | None], None]
"""Called for each check that an observed rule would have answered: the rule's number, the status, the rule's name."""

ERRORS = {why: Decision("error", why.value, None, is_plain=False) for why in NoDevice}
"""Decisions recorded for requests that got the protocol's own error."""

IDENTIFIER_MAX, NAME_MAX = 32, 255
"""Characters of an identifier and of a name that sightings keep: a text from the wire may be as long as a message."""
TEXT_MAX = (NAME_MAX, NAME_MAX, IDENTIFIER_MAX, IDENTIFIER_MAX, IDENTIFIER_MAX)

KINDS = {NoDevice.MISSING: "none", NoDevice.MALFORMED: "bad"}
"""Names in metrics of requests that name no device."""


class Checker:
    """Answers questions by the policy in force, and counts what it answered.

    Made from the policy's settings and the lists that its rules look into; raises as compile_policy.
    """

    def __init__(
        self, settings: PolicySettings, index: Index, *, now: datetime, report: Report = silent,
        note_check: NoteCheck = lambda *_: None, note_observed: NoteObserved = lambda *_: None, sightings: Sightings | None = None,
        probes: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:  # fmt: skip
        self.sightings = sightings
        """Takes every check; a fast path hands in its own. None: nothing is kept."""
        self.probes = probes
        """Protocol and label of peers whose checks are nobody's phones: they are answered and counted, but no sightings."""
        self.traced: Callable[[Question, Verdict | NoDevice], None] | None = None
        """Called for each check that is decided here, but not for those that a fast path decides."""
        self.held: list[Verdict] = []
        """Rules under observation that held in the check that is being decided, where there are sightings."""
        self._index, self._report = index, report
        self._note_check, self._note_observed = note_check, note_observed
        self._answered: defaultdict[Labels, Counter[Verdict]] = defaultdict(Counter)
        """The last of Labels → checks by verdict of the policy in force. The first are made of them when someone wants to see them."""
        self._answered_before: Counter[Labels] = Counter()
        """Checks by verdict of earlier policies."""
        self.observed: Counter[tuple[str, str]] = Counter()
        """(rule, status) → checks that a rule under observation would have answered."""
        self.identity_errors: Counter[tuple[str, str]] = Counter()
        """(`none` or `bad`, peer label) → requests without an identifier, or with a malformed one."""
        self._overridden = False
        self.reconfigure(settings, now)

    @property
    def policy(self) -> Policy:
        """The policy in force; another object as soon as another one is."""
        return self._policy

    def reconfigure(self, settings: PolicySettings, now: datetime) -> None:
        """Put another policy in force, over the lists that the index has now. If it cannot be compiled, the one in force stays."""
        policy = compile_policy(settings, self._index, observed=self._observe, now=now)
        self._answered_before = self.checks()
        self._answered.clear()
        self._settings, self._policy = settings, policy
        if policy.overridden:
            until = policy.override_until
            self._report(
                "override", level="warning", detail="every check is answered alike", until=until and until.isoformat()
            )
        elif self._overridden:
            self._report("override_ended", level="warning")
        self._overridden = policy.overridden

    def tick(self, now: datetime) -> bool:
        """Return True if an override has ended, so that the rules answer again. To be called each second."""
        ends = self._policy.override_until
        if ends is None or now < ends:
            return False
        self.reconfigure(self._settings, now)
        return True

    def check(self, question: Question) -> Verdict | NoDevice:
        """The answer. NoDevice if the request names no device and the policy wants the protocol's own error for that."""
        verdict = self._check(question)
        if self.traced is not None:
            self.traced(question, verdict)
        return verdict

    def _check(self, question: Question) -> Verdict | NoDevice:
        policy, imsi, key = self._policy, question.subscriber(), None
        verdict: Verdict | NoDevice
        if question.unproven and policy.unproven is not None:
            policy = policy.unproven
        try:
            key = question.device()
        except IdentifierError:
            why = (
                NoDevice.NO_IMEI
                if question.other is not None
                else NoDevice.MISSING
                if question.is_anonymous
                else NoDevice.MALFORMED
            )
            if why in KINDS:
                self.identity_errors[KINDS[why], question.peer] += 1
            verdict = policy.unidentified[why]
            if why is NoDevice.MALFORMED and policy.malformed is not None:
                key = question.any_device()
                about = (
                    NO_KEY if key is None else key,
                    imsi,
                    question.version(),
                    question.origin_host,
                    question.origin_realm,
                )
                verdict = policy.malformed(*about) or verdict
            if isinstance(verdict, NoDevice):
                self._sight(ERRORS[verdict], question, imsi)
                return verdict
        else:
            decide = (
                policy.decide
                if policy.by_digit is None or not is_wrong_digit(question.identifier())
                else policy.by_digit
            )
            verdict = decide(key, imsi, question.version(), question.origin_host, question.origin_realm)
        self._answered[self._asked_by(question.protocol, question.peer)][verdict] += 1
        self._sight(verdict.decision, question, imsi)
        if verdict.status is not Status.WHITELISTED:
            self.note(verdict, question.peer, question.origin_host, key, imsi)
        return verdict

    def _sight(self, decision: Decision, question: Question, imsi: str) -> None:
        if self.sightings is None:
            return
        told = (question.origin_host, question.origin_realm, question.identifier(), imsi, question.version())
        self.sight(decision, question.protocol, question.peer, told, early=question.unproven)

    def sight(self, decision: Decision, protocol: str, peer: str, texts: Iterable[str], *, early: bool = False) -> None:
        """Tell the record of a check that was just decided; `texts`: see eir.checks.sighting.TEXTS."""
        observed = self.observed_now()
        if self.sightings is not None and (protocol, peer) not in self.probes:
            lines = "".join(
                [text[:longest].replace("\n", " ") + "\n" for text, longest in zip(texts, TEXT_MAX, strict=True)]
            )
            self.sightings.add((SightingKind(decision, protocol, peer, observed, early),), bytes(2), lines.encode())

    def observed_now(self) -> str:
        """The rules under observation that held in the check that was just decided, as the record of sightings shows them."""
        if not self.held:
            return ""
        said = " ".join(
            f"{verdict.rule}={verdict.status}{f'@{verdict.list}' if verdict.list else ''}" for verdict in self.held
        )
        self.held.clear()
        return said

    def count(self, protocol: str, verdicts: Mapping[Verdict, int], peer: str = "") -> None:
        """Count checks that `policy` decided elsewhere, and who asked: verdict → how many there were."""
        self._answered[self._asked_by(protocol, peer)].update(verdicts)

    def _asked_by(self, protocol: str, peer: str) -> Labels:
        return (protocol, PROBE) if (protocol, peer) in self.probes else (protocol,)

    def note(
        self, verdict: Verdict, peer: str, origin_host: str, key: int | None, imsi: str, *, count: int = 1
    ) -> None:
        """Tell of checks that did not end in `whitelisted`: peer label; of the last one Origin-Host, device (key of eir.device), IMSI (empty: none)."""
        device = "" if key is None else key_text(key)
        self._note_check((verdict.status, verdict.list or "", verdict.label, peer), origin_host, device, imsi, count)

    def checks(self) -> Counter[Labels]:
        """Checks answered since the start, under all policies."""
        answered = self._answered_before.copy()
        for asked_by, verdicts in self._answered.items():
            for verdict, count in verdicts.items():
                answered[verdict.status, verdict.list or "", verdict.label, *asked_by] += count
        return answered

    def _observe(self, verdict: Verdict) -> None:
        self.observed[verdict.label, verdict.status] += 1
        if self.sightings is not None:
            self.held.append(verdict)
        self._note_observed(int(verdict.rule), verdict.status, verdict.name)
