"""Checker: answers questions by the policy in force, counts the answers and reports them.

An interface converts a request to a Question, and the verdict to an answer. The fast path of an interface evaluates `policy`
itself and passes its answers to the checker in batches (`count`, `report_checks`). The module does no I/O: the time is an
argument, and log events go to callbacks.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from eir.checks.new_devices import NewDevices
from eir.checks.policy import TEXTS, Decision, Policy, SightingKind, Sightings, Verdict, compile_policy
from eir.checks.question import NO_KEY, Question
from eir.checks.settings import NoDevice, PolicySettings, Status
from eir.device import key_text
from eir.errors import IdentifierError, Report, silent
from eir.lists.images.index import Index

Labels = tuple[str, ...]
"""Label values of `eir_checks_total`: status, list that decided (or empty), rule, protocol, and PROBE for a probing peer.

The rule is its name or number, `default`, `override`, `no_identity`, `bad_identity` or `no_imei`.
"""

PROBE = "yes"
"""Value of the label `probe` for checks of probing peers."""

Kind = tuple[str, str, str, str]
"""Status, list and rule as in Labels, and the label of the peer."""

NoteCheck = Callable[[Kind, str, str, str, int], None]
"""Callback for one or more checks of the same kind whose status is not `whitelisted`.

Arguments: kind; Origin-Host, identifier and IMSI of the last check (empty if absent); number of checks. Behind an agent, the
Origin-Host is that of the MME, not that of the peer.
"""

NoteObserved = Callable[[int, str, str | None], None]
"""Callback for each check that matches an observed rule: number of the rule, its status, its name."""

ERRORS = {reason: Decision("error", reason.value, None, is_plain=False) for reason in NoDevice}
"""Decision in the record of sightings for each error answer of the protocol."""

IDENTIFIER_MAX = 32
"""Maximum length of an identifier in sightings; longer texts from the wire are cut."""
NAME_MAX = 255
"""Maximum length of an Origin-Host or Origin-Realm in sightings."""
TEXT_MAX = (NAME_MAX, NAME_MAX, *(TEXTS - 2) * (IDENTIFIER_MAX,))
"""Maximum length of each text of a sighting (eir.checks.policy.TEXTS)."""

KINDS = {NoDevice.MISSING: "none", NoDevice.MALFORMED: "bad"}
"""Value of the label `kind` of `eir_identity_errors_total` for each kind of request without a valid identifier."""


class Checker:
    """Checker that answers questions by the policy in force and counts its answers.

    Args:
        settings: settings of the policy.
        index: lists of the policy's rules.
        new_devices: queue for devices that the record of first sightings lacks.

    Raises:
        KeyError: as in compile_policy.
    """

    def __init__(
        self, settings: PolicySettings, index: Index, *, now: datetime, report: Report = silent,
        note_check: NoteCheck = lambda *_: None, note_observed: NoteObserved = lambda *_: None, sightings: Sightings | None = None,
        probes: frozenset[tuple[str, str]] = frozenset(), accesses: Mapping[str, str] | None = None, new_devices: NewDevices | None = None,
    ) -> None:  # fmt: skip
        self.sightings = sightings
        """Record of sightings; None if sightings are off. A fast path adds its checks itself."""
        self.probes = probes
        """Pairs of protocol and label of the probing peers, whose checks are answered and counted, but not recorded."""
        self.accesses = accesses or {}
        """Peer label → access network of the peer's phones, if the configuration names it."""
        self.traced: Callable[[Question, Verdict | NoDevice], None] | None = None
        """Callback for each check that the general path decides; None: no trace is active."""
        self._index = index
        self._report = report
        self._new_devices = new_devices
        self._note_check = note_check
        self._note_observed = note_observed
        self._matched: list[Verdict] = []
        """Verdicts of observed rules that matched in the current check; always empty if sightings are off."""
        self._answered: defaultdict[Labels, Counter[Verdict]] = defaultdict(Counter)
        """Last labels (protocol, PROBE) → number of checks by verdict of the policy in force."""
        self._answered_before: Counter[Labels] = Counter()
        """Number of checks under earlier policies by all labels."""
        self.observed: Counter[tuple[str, str]] = Counter()
        """(rule, status) → number of checks that matched an observed rule."""
        self.identity_errors: Counter[tuple[str, str]] = Counter()
        """(`none` or `bad`, peer label) → number of requests with a missing (`none`) or malformed (`bad`) identifier."""
        self._policy = self._compile(settings, now)

    @property
    def policy(self) -> Policy:
        """Policy in force. Each change of the policy replaces this object."""
        return self._policy

    def apply(self, settings: PolicySettings, now: datetime) -> None:
        """Compile `settings` to a new policy that looks devices up in the lists in memory, and put this policy in force.

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
            end = policy.override_until
            end_text = None if end is None else end.isoformat()
            self._report("override", level="warning", detail="every check is answered alike", until=end_text)
        return policy

    def tick(self, now: datetime) -> bool:
        """Compile the policy again when its override or the day ends; return True if the override has just ended.

        Called each second.
        """
        end = self._policy.override_until
        has_ended = end is not None and now >= end
        is_new_day = self._day() != self._policy.day
        if has_ended or is_new_day:
            self.apply(self._policy.settings, now)
        return has_ended

    def _day(self) -> int | None:
        """Return the number of days from 1970-01-01 to today; None if there is no record of first sightings."""
        record = self._index.first_seen
        return None if record is None else record.today

    def check(self, question: Question) -> Verdict | NoDevice:
        """Return the verdict, or NoDevice if the interface must answer with the protocol's own error.

        The result is NoDevice if the request has no valid identifier and the policy has no status for such requests.
        """
        verdict = self._check(question)
        if self.traced is not None:
            self.traced(question, verdict)
        return verdict

    def _check(self, question: Question) -> Verdict | NoDevice:
        policy = self._policy
        if question.unproven and policy.unproven is not None:
            policy = policy.unproven
        imsi = question.subscriber()
        key: int | None
        verdict: Verdict | NoDevice
        try:
            key = question.device()
        except IdentifierError:
            key, verdict = self._decide_without_device(policy, question, imsi)
            if isinstance(verdict, NoDevice):
                self._add_sighting_of(question, ERRORS[verdict], imsi)
                return verdict
        else:
            verdict = policy.decide(key, imsi, question.version(), question.origin_host, question.origin_realm)
            self.queue_new_device(question.protocol, question.peer, imsi)
        requester = self._requester_labels(question.protocol, question.peer)
        self._answered[requester][verdict] += 1
        self._add_sighting_of(question, verdict.decision, imsi)
        if verdict.status is not Status.WHITELISTED:
            self.report_checks(verdict, question.peer, question.origin_host, key, imsi)
        return verdict

    def _decide_without_device(
        self, policy: Policy, question: Question, imsi: str
    ) -> tuple[int | None, Verdict | NoDevice]:
        """Decide a question without a valid IMEI or MEID. Return the key of the malformed identifier and the answer to the question.

        The key is None if no rule may match a malformed identifier, or if the identifier has no key.
        """
        if question.other is not None:
            reason = NoDevice.NO_IMEI
        elif question.is_anonymous:
            reason = NoDevice.MISSING
        else:
            reason = NoDevice.MALFORMED
        if reason in KINDS:
            self.identity_errors[KINDS[reason], question.peer] += 1
        answer = policy.unidentified[reason]
        if reason is not NoDevice.MALFORMED or policy.malformed is None:
            return None, answer
        key = question.any_device()
        rule_key = NO_KEY if key is None else key
        verdict = policy.malformed(rule_key, imsi, question.version(), question.origin_host, question.origin_realm)
        self.queue_new_device(question.protocol, question.peer, imsi)
        if verdict is None:
            return key, answer
        return key, verdict

    def queue_new_device(self, protocol: str, peer: str, imsi: str) -> None:
        """Queue the last checked device for the record of first sightings, if a rule has searched this record for the device.

        Devices of probing peers are excluded.
        """
        record = self._index.first_seen
        if record is None or record.asked is None:
            return
        key = record.asked
        record.asked = None
        if self._new_devices is not None and (protocol, peer) not in self.probes:
            self._new_devices.add(key, peer, imsi)

    def _add_sighting_of(self, question: Question, decision: Decision, imsi: str) -> None:
        if self.sightings is None:
            return
        host, realm, version = question.origin_host, question.origin_realm, question.version()
        texts = (host, realm, question.identifier(), imsi, version, question.msisdn)
        self.add_sighting(decision, question.protocol, question.peer, texts, early=question.unproven)

    def add_sighting(
        self, decision: Decision, protocol: str, peer: str, texts: Iterable[str], *, early: bool = False
    ) -> None:
        """Add a check to the record of checks directly after its decision, unless its peer is a probing peer.

        `texts` are the texts that eir.checks.policy.TEXTS lists.
        """
        observed = self._pop_observed()
        if self.sightings is None or (protocol, peer) in self.probes:
            return
        lines = []
        for text, length_max in zip(texts, TEXT_MAX, strict=True):
            line = text[:length_max].replace("\n", " ")
            lines.append(line + "\n")
        kind = SightingKind(decision, protocol, peer, observed, early, self.accesses.get(peer))
        self.sightings.add((kind,), bytes(2), "".join(lines).encode())

    def _pop_observed(self) -> str:
        """Return and clear the names of the rules with `observe: true` that matched the current check."""
        if not self._matched:
            return ""
        rules = []
        for verdict in self._matched:
            rule = f"{verdict.rule}={verdict.status}"
            rules.append(f"{rule}@{verdict.list}" if verdict.list else rule)
        self._matched.clear()
        return " ".join(rules)

    def count(self, protocol: str, verdicts: Mapping[Verdict, int], peer: str = "") -> None:
        """Count the checks that a compiled fast path has answered for one peer. `verdicts`: number of checks for each verdict."""
        requester = self._requester_labels(protocol, peer)
        self._answered[requester].update(verdicts)

    def _requester_labels(self, protocol: str, peer: str) -> Labels:
        return (protocol, PROBE) if (protocol, peer) in self.probes else (protocol,)

    def report_checks(
        self, verdict: Verdict, peer: str, origin_host: str, key: int | None, imsi: str, *, count: int = 1
    ) -> None:
        """Log that checks received this verdict. Its status must not be `whitelisted`. `count`: number of the checks.

        `peer` is the label of the peer. `origin_host`, `key` and `imsi` are those of the last check; they are empty or
        None if absent.
        """
        kind = (verdict.status, verdict.list or "", verdict.label, peer)
        device = "" if key is None else key_text(key)
        self._note_check(kind, origin_host, device, imsi, count)

    def checks(self) -> Counter[Labels]:
        """Return the number of answered checks since the start of the process, by the label values of the metric `eir_checks_total`."""
        answered = self._answered_before.copy()
        for requester, verdicts in self._answered.items():
            for verdict, count in verdicts.items():
                answered[verdict.status, verdict.list or "", verdict.label, *requester] += count
        return answered

    def _observe(self, verdict: Verdict) -> None:
        self.observed[verdict.label, verdict.status] += 1
        if self.sightings is not None:
            self._matched.append(verdict)
        self._note_observed(int(verdict.rule), verdict.status, verdict.name)
