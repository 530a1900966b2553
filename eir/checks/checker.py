"""Checker: answers questions by the policy in force, counts the answers and reports them.

An interface converts a request to a Question, and the verdict to an answer. The fast path of an interface evaluates `policy`
itself and reports its answers in batches (`count`, `note`). Synchronous, without I/O: the time is an argument, and events go to
callbacks.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from eir.checks.new_devices import NewDevices
from eir.checks.policy import TEXTS, Decision, Policy, SightingKind, Sightings, Verdict, compile_policy
from eir.checks.question import NO_KEY, Question, is_wrong_digit
from eir.checks.settings import NoDevice, PolicySettings, Status
from eir.device import key_text
from eir.errors import IdentifierError, Report, silent
from eir.lists.images.index import Index

Labels = tuple[str, ...]
"""Status, list that decided (or empty), rule (name, number, `default`, `override`, `no_identity`, `bad_identity` or `no_imei`), protocol, and PROBE if a probe asked."""

PROBE = "yes"

Kind = tuple[str, str, str, str]
"""Status, list and rule as in Labels, and the label of the peer."""

NoteCheck = Callable[[Kind, str, str, str, int], None]
"""Callback for checks without the status `whitelisted`. It receives their kind, the Origin-Host of the request (behind an agent not that of the peer), identifier and IMSI of the last one (empty if absent), and the number of checks."""

NoteObserved = Callable[[int, str, str | None], None]
"""Callback for each check that matches an observed rule: the rule's number, the status, the rule's name."""

ERRORS = {why: Decision("error", why.value, None, is_plain=False) for why in NoDevice}
"""Decisions recorded for requests that were answered with the protocol's own error."""

IDENTIFIER_MAX, NAME_MAX = 32, 255
"""Maximum lengths of an identifier and of a name in sightings, because a text from the wire may be as long as a message."""
TEXT_MAX = (NAME_MAX, NAME_MAX, *(TEXTS - 2) * (IDENTIFIER_MAX,))

KINDS = {NoDevice.MISSING: "none", NoDevice.MALFORMED: "bad"}
"""Names in metrics for requests without a device."""


class Checker:
    """Checker that answers questions by the policy in force and counts its answers.

    The arguments are the policy's settings and the lists of its rules. Raises as compile_policy.
    """

    def __init__(
        self, settings: PolicySettings, index: Index, *, now: datetime, report: Report = silent,
        note_check: NoteCheck = lambda *_: None, note_observed: NoteObserved = lambda *_: None, sightings: Sightings | None = None,
        probes: frozenset[tuple[str, str]] = frozenset(), accesses: Mapping[str, str] | None = None, new_devices: NewDevices | None = None,
    ) -> None:  # fmt: skip
        self.sightings = sightings
        """Receiver of every check; a fast path sends its checks itself. None if sightings are off."""
        self.probes = probes
        """Protocol and label of probing peers: their checks are answered and counted, but not recorded."""
        self.accesses = accesses or {}
        """Access network of a peer's phones, by the peer's label; peers without one are absent."""
        self.traced: Callable[[Question, Verdict | NoDevice], None] | None = None
        """Callback for each check that is decided here, not by a fast path."""
        self.held: list[Verdict] = []
        """Observed rules that matched in the current check, if sightings are on."""
        self._index, self._report, self._new_devices = index, report, new_devices
        self._note_check, self._note_observed = note_check, note_observed
        self._answered: defaultdict[Labels, Counter[Verdict]] = defaultdict(Counter)
        """End of Labels → checks by verdict of the policy in force. The full labels are built only for metrics."""
        self._answered_before: Counter[Labels] = Counter()
        """Checks under earlier policies."""
        self.observed: Counter[tuple[str, str]] = Counter()
        """(rule, status) → number of checks that an observed rule matched."""
        self.identity_errors: Counter[tuple[str, str]] = Counter()
        """(`none` or `bad`, peer label) → number of requests without an identifier, or with a malformed one."""
        self._policy = self._compile(settings, now)

    @property
    def policy(self) -> Policy:
        """Policy in force. Each change of the policy replaces this object."""
        return self._policy

    def apply(self, settings: PolicySettings, now: datetime) -> None:
        """Replace the policy by one that is compiled from `settings` and the present lists of the index.

        If the new policy cannot be compiled, the present policy stays in force.
        """
        policy = self._compile(settings, now)
        if self._policy.overridden and not policy.overridden:
            self._report("override_ended", level="warning")
        self._answered_before = self.checks()
        self._answered.clear()
        self._policy = policy

    def _compile(self, settings: PolicySettings, now: datetime) -> Policy:
        compiled = compile_policy(settings, self._index, observed=self._observe, now=now)
        policy = replace(compiled, settings=settings, day=self._day())
        if policy.overridden:
            until = policy.override_until
            self._report(
                "override", level="warning", detail="every check is answered alike", until=until and until.isoformat()
            )
        return policy

    def tick(self, now: datetime) -> bool:
        """Compile the policy again if its override has ended or a new day has begun; return True if an override ended.

        Called each second.
        """
        ends = self._policy.override_until
        is_over = ends is not None and now >= ends
        if is_over or self._day() != self._policy.day:
            self.apply(self._policy.settings, now)
        return is_over

    def _day(self) -> int | None:
        """Return the day on which the policy's conditions are based; None without a record of first sightings."""
        record = self._index.first_seen
        return None if record is None else record.today

    def check(self, question: Question) -> Verdict | NoDevice:
        """Return the verdict, or NoDevice if the answer to the request must be the protocol's own error.

        NoDevice is returned if the request has no valid identifier of a device and the policy has no status for such
        requests.
        """
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
                self.note_first_seen(question.protocol, question.peer, imsi)
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
            self.note_first_seen(question.protocol, question.peer, imsi)
        self._answered[self._asked_by(question.protocol, question.peer)][verdict] += 1
        self._sight(verdict.decision, question, imsi)
        if verdict.status is not Status.WHITELISTED:
            self.note(verdict, question.peer, question.origin_host, key, imsi)
        return verdict

    def note_first_seen(self, protocol: str, peer: str, imsi: str) -> None:
        """Pass the device of the last check to `new_devices`, if a rule looked up its first sighting.

        Checks of probing peers are excluded.
        """
        record = self._index.first_seen
        if record is None or record.asked is None:
            return
        key, record.asked = record.asked, None
        if self._new_devices is not None and (protocol, peer) not in self.probes:
            self._new_devices.note(key, peer, imsi)

    def _sight(self, decision: Decision, question: Question, imsi: str) -> None:
        if self.sightings is None:
            return
        texts = (
            question.origin_host,
            question.origin_realm,
            question.identifier(),
            imsi,
            question.version(),
            question.msisdn,
        )
        self.sight(decision, question.protocol, question.peer, texts, early=question.unproven)

    def sight(self, decision: Decision, protocol: str, peer: str, texts: Iterable[str], *, early: bool = False) -> None:
        """Add a check that was just decided to the record of sightings.

        `texts` are the texts of eir.checks.policy.TEXTS. Checks of probing peers are excluded.
        """
        observed = self.observed_now()
        if self.sightings is not None and (protocol, peer) not in self.probes:
            lines = "".join(
                [text[:longest].replace("\n", " ") + "\n" for text, longest in zip(texts, TEXT_MAX, strict=True)]
            )
            kind = SightingKind(decision, protocol, peer, observed, early, self.accesses.get(peer))
            self.sightings.add((kind,), bytes(2), lines.encode())

    def observed_now(self) -> str:
        """Return the observed rules that matched in the last check, as text for the sightings, and clear them."""
        if not self.held:
            return ""
        text = " ".join(
            f"{verdict.rule}={verdict.status}{f'@{verdict.list}' if verdict.list else ''}" for verdict in self.held
        )
        self.held.clear()
        return text

    def count(self, protocol: str, verdicts: Mapping[Verdict, int], peer: str = "") -> None:
        """Count checks of one peer that a fast path decided; `verdicts` maps each verdict to its number of checks."""
        self._answered[self._asked_by(protocol, peer)].update(verdicts)

    def _asked_by(self, protocol: str, peer: str) -> Labels:
        return (protocol, PROBE) if (protocol, peer) in self.probes else (protocol,)

    def note(
        self, verdict: Verdict, peer: str, origin_host: str, key: int | None, imsi: str, *, count: int = 1
    ) -> None:
        """Report one or more checks whose status is not `whitelisted`.

        `peer` is the label of the peer. `origin_host`, `key` and `imsi` are those of the last check; they are empty or
        None if absent. `count` is the number of checks.
        """
        device = "" if key is None else key_text(key)
        self._note_check((verdict.status, verdict.list or "", verdict.label, peer), origin_host, device, imsi, count)

    def checks(self) -> Counter[Labels]:
        """Return the number of checks since the start, by the labels of the metric. Checks under earlier policies are included."""
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
