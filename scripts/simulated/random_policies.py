"""Random policies on a running node, compared with a model: a plain reading of the policy and of the lists' rows.

Between the policies the lists change by releases, deltas, commands and rollbacks, rows end, the node restarts, and Redis loses all
that it has; questions come at once after each of these. A row has ended from the second that it names on, and whatever answers by it
later is wrong. Used by a test for seconds, and by scripts/soak for as long as wanted.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from eir.config import load_config
from eir.lists.changes.local_entries import parse_entries
from eir.lists.changes.local_rows import RowsEdit, rows_of_entries, rows_update, write_edit
from eir.lists.changes.undo import plan_rollback
from eir.lists.log.writer import ListWriter
from eir.lists.stores.open import open_store
from eir.node.observe.control import ask as control

from .luhn import check_digit
from .node import until_async
from .releases import load_release
from .wire import HOST, REALM, TGPP, Connection, avp, cer, ecr, terminal

KINDS = {
    "stolen": "devices",
    "models": "devices",
    "bound": "pairs",
    "sims": "subscribers",
    "own": "devices",
    "never": "devices",
}
"""`own` is changed by commands, `never` is never loaded, the others by releases."""
SIGNED = ("stolen", "models", "bound", "sims")
TACS = ("35000001", "35000002", "35100001", "01000003", "86000004")
ODD = ["0" * 14, "1" * 14, "12345678901234", "98765432109876", "00101700000001", "00101800000001", "00440100000001"]
"""Identifiers that are suspect by themselves, and one that is nearly so."""
DEVICES = ODD + [f"{tac}{number:06d}" for tac in TACS for number in (0, 1, 2, 65_536, 999_999)]
MEIDS = ["A000001234567F", "FFFFFFFFFFFFFF"]
IMSIS = [f"{network}{number:010d}" for network in ("00101", "00102", "26201") for number in range(3)]
HOSTS = (HOST, "mme2.localdomain", "sgsn.other.example")
REALMS = (REALM, "other.example")
VERSIONS = ("00", "34", "99")
STATUSES = {"whitelisted": 0, "blacklisted": 1, "greylisted": 2, "unknown": f"{TGPP}:5422"}
BATCH = 100
"""Questions that are under way together; a row that ends meanwhile may count or not."""
PATIENCE_S = 180


@dataclass
class Figures:
    """The results of a run."""

    policies: int = 0
    questions: int = 0
    changes: dict = field(default_factory=dict)
    """Changes by their kind."""
    ended: int = 0
    """Questions that rows decided which had ended: another answer than if they had not."""
    wrong: list = field(default_factory=list)

    def lines(self):
        """For people."""
        yield f"{self.questions:,} questions under {self.policies} policies, {len(self.wrong)} wrong answers"
        yield "between them: " + ", ".join(f"{count} {what}" for what, count in sorted(self.changes.items()))
        yield f"{self.ended:,} answers would have been others if rows did not end"


# ---- the model ----


def in_force(rows, key, now):
    """True if a row for the key is there and has not ended."""
    end = rows.get(key)
    return end is not None and (not end or end > now)


def latest_end(*ends):
    """Return the latest end; 0 stands for no end."""
    return 0 if 0 in ends else max(ends)


SUSPECT = {
    "malformed": lambda device: device == "none at all",
    "zero": lambda device: device == "0" * 14,
    "repeated": lambda device: device.isdigit() and len(set(device)) == 1 and device[0] != "0",
    "sequence": lambda device: device in "01234567890123456789012345" or device in "98765432109876543210987654",
    "test": lambda device: device[:4] in {"0044", "0086", "0091"} or (device[:4] == "0010" and device[4:6] in {f"{number:02d}" for number in range(1, 18)}),
}  # fmt: skip
"""Faults of identifiers, by the words of the page."""


class Model:
    """The lists as their files and commands say, and what a policy makes of them. Nothing of the product is used here."""

    def __init__(self):
        self.rows = {}
        """List → row → end (0: none). A row is a device, a TAC, (device, IMSI), or an IMSI; lists that were loaded only."""

    def has_device(self, name, device, now):
        rows = self.rows.get(name, {})
        if KINDS[name] == "pairs":
            return any(in_force(rows, row, now) for row in rows if row[0] == device)
        return in_force(rows, device, now) or in_force(rows, device[:8], now)

    def listed(self, name, device, imsi, now):
        if KINDS[name] == "devices":
            return self.has_device(name, device, now)
        return in_force(self.rows.get(name, {}), imsi if KINDS[name] == "subscribers" else (device, imsi), now)

    def holds(self, condition, value, question, now):
        """One condition of a rule."""
        device, imsi = question["device"], question["imsi"]
        if condition in {"list", "not_list"}:
            found = self.listed(value, device, imsi, now)
            if condition == "list":
                return found
            return value in self.rows and bool(imsi or KINDS[value] == "devices") and not found
        if condition.endswith("_bound_elsewhere"):
            rows = self.rows.get(value, {})
            there = [
                row
                for row in rows
                if in_force(rows, row, now)
                and row["subscriber" in condition] == (device, imsi)["subscriber" in condition]
            ]
            return bool(imsi) and bool(there) and (device, imsi) not in there
        if condition in {"imei", "identifier"}:
            return (
                device in {each[:14].upper() for each in value}
                if condition == "imei"
                else any(SUSPECT[name](device) for name in value)
            )
        if condition in {"tac", "imsi"}:
            asked = imsi if condition == "imsi" else device[:8] if device.isdigit() else ""
            return any(asked.startswith(prefix.rstrip("*")) for prefix in value)
        return question[condition].lower() in {each.lower() for each in value}

    def rule_for(self, rules, question, now):
        """The first that answers."""
        for rule in rules:
            conditions = {name: value for name, value in rule.items() if name not in {"answer", "observe", "name"}}
            if not rule.get("observe") and all(self.holds(*each, question, now) for each in conditions.items()):
                return rule
        return None

    def answer(self, policy, question, now):
        """The answer that the node has to give."""
        override = policy.get("override")
        if override is not None and (
            "until" not in override or datetime.fromisoformat(override["until"]).timestamp() > now
        ):
            return STATUSES[override["answer"]]
        if question["device"] is None:
            if question["anonymous"]:
                kind, code = "no_identity", 5005
            else:
                kind, code = "bad_identity", 5004
                asking = [rule for rule in policy["rules"] if "malformed" in rule.get("identifier", ())]
                if (rule := self.rule_for(asking, question | {"device": "none at all"}, now)) is not None:
                    return STATUSES[rule["answer"]]
            status = policy.get(kind, "whitelisted")
            return code if status == "error" else STATUSES[status]
        rule = self.rule_for(policy["rules"], question, now)
        return STATUSES[policy["default"] if rule is None else rule["answer"]]


# ---- what is drawn by chance ----


class Chance(random.Random):
    """Policies, rows and questions."""

    def some(self, values, most):
        return self.sample(values, self.randint(1, min(most, len(values))))

    def end(self):
        """When a row ends: never, long ago, just now, in a moment, some day."""
        return self.choice(
            [0, 0, time.time() - 10**6, time.time() - 1, time.time() + 1, time.time() + 2, time.time() + 3, 4 * 10**9]
        )

    def rows_of(self, name):
        """Rows that a list of this kind may have."""
        if KINDS[name] == "pairs":
            return [(device, imsi) for device in self.some(DEVICES, 8) for imsi in self.some(IMSIS, 3)]
        if KINDS[name] == "subscribers":
            return self.some(IMSIS, len(IMSIS))
        return [
            *self.some(DEVICES, len(DEVICES)),
            *self.some(MEIDS, 2),
            *(self.some(TACS, 2) if self.random() < 0.5 else ()),
        ]

    def rule(self):
        rule = {"answer": self.choice(list(STATUSES))}
        for condition in self.some(CONDITIONS, self.choice([1, 1, 2, 3])):
            rule[condition] = (
                self.choice(CONDITION_LISTS[condition])
                if condition in CONDITION_LISTS
                else self.some(VALUES[condition], 2)
            )
        return rule | ({"observe": True} if self.random() < 0.1 else {})

    def policy(self):
        """A policy as it stands in the configuration. Some look into lists of devices only: many checks are answered at once then."""
        plain = self.random() < 0.3
        rules = [
            {"list": self.choice(["stolen", "models", "own"]), "answer": self.choice(list(STATUSES))}
            if plain
            else self.rule()
            for _ in range(self.randint(0, 3 if plain else 6))
        ]
        policy = {"rules": rules, "default": "whitelisted" if plain else self.choice(list(STATUSES))}
        for kind in ("no_identity", "bad_identity"):
            if self.random() < 0.7:
                policy[kind] = self.choice([*STATUSES, "error"])
        if self.random() < 0.05:
            ends = datetime.now(UTC).replace(microsecond=0) + self.choice([-1, 1]) * timedelta(hours=1)
            policy["override"] = {
                "answer": self.choice(list(STATUSES)),
                **({} if self.random() < 0.5 else {"until": ends.isoformat()}),
            }
        return policy

    def question(self, form):
        """A question: its parts on the wire, and what they mean. `form`: what it has in common with its neighbours, which may be all but IMEI and IMSI."""
        length, version, host, realm, has_imsi = form or self.form()
        device = self.choice(
            [*DEVICES, *DEVICES, f"{self.choice(TACS)}{self.randrange(10**6):06d}", f"{self.randrange(10**14):014d}"]
        )
        imsi = self.choice(IMSIS) if has_imsi else ""
        imei, meid, anonymous, means = (
            device
            + {14: "", 15: self.choice(["0", "0", "7", str(check_digit(device))]), 16: self.choice(VERSIONS)}[length],
            None,
            False,
            device,
        )
        if form is None:
            kind = self.random()
            if kind < 0.1:
                meid = means = self.choice(MEIDS)
                imei = self.choice([None, "35000001"])
            elif kind < 0.15:
                imei, means, anonymous = None, None, True
            elif kind < 0.2:
                imei, means = self.choice(["", "35A00001000000", device[:13], f"{device}000"]), None
        shown = version or (imei[14:] if imei and len(imei) == 16 and imei.isdigit() else "")
        return {
            "imei": imei, "meid": meid, "sent_version": version, "device": means, "anonymous": anonymous, "imsi": imsi, "software_version": shown,
            "origin_host": host, "origin_realm": realm,
        }  # fmt: skip

    def form(self):
        return (
            self.choice([14, 15, 16]),
            self.choice(["", *VERSIONS]),
            self.choice(HOSTS),
            self.choice(REALMS),
            self.random() < 0.8,
        )


CONDITION_LISTS = {
    "list": list(KINDS), "not_list": list(KINDS), "device_bound_elsewhere": ["bound"], "subscriber_bound_elsewhere": ["bound"],
}  # fmt: skip
VALUES = {
    "identifier": ["malformed", "zero", "repeated", "sequence", "test"],
    "imei": [*DEVICES[::3], *(f"{device}{end}" for device in DEVICES[1::3] for end in ("5", "34")), MEIDS[0]],
    "tac": [*TACS, "35*", "3500*", "8600000*", "0*"], "software_version": VERSIONS, "imsi": ["00101", "0010", "262010000000001"],
    "origin_host": [HOST.upper(), *HOSTS[1:]], "origin_realm": REALMS,
}  # fmt: skip
CONDITIONS = ["list", "list", "not_list", *list(CONDITION_LISTS)[2:], *VALUES]


def on_the_wire(question, number):
    """The ECR."""
    meid = b"" if question["meid"] is None else avp(1471, question["meid"], TGPP)
    parts = {
        "terminal": terminal(question["imei"], question["sent_version"] or None, meid),
        "user": avp(1, question["imsi"]),
    }
    parts |= {"host": avp(264, question["origin_host"]), "realm": avp(296, question["origin_realm"])}
    return ecr(
        ids=(number, number),
        drop=() if question["imsi"] else ("user",),
        session=avp(263, f"{HOST};policies;{number:09d}"),
        **parts,
    )


# ---- the run ----


class Run:
    """A host whose node is asked, and whoever changes its lists. `redis`: the server of its store (tests.servers), or None for SQLite."""

    def __init__(self, site, seed, redis=None):
        self.site, self.redis, self.chance, self.model = site, redis, Chance(seed), Model()
        self.before = {}
        """The rows that a rollback of a list brings back."""
        self.serials, self.bases = dict.fromkeys(SIGNED, 0), {}
        """The highest serial of each list, and the one in force."""
        self.figures = Figures()
        lists = {name: {"kind": kind, "signers": "signers"} for name, kind in KINDS.items()}
        lists["own"] = {"kind": "devices", "local": True}
        site.configure(lists=lists, policy={"rules": []}, store="sqlite" if redis is None else redis.url)

    async def run(self, policies, questions):
        """Try so many policies with so many questions each; returns the figures."""
        self.store = open_store(self.site.settings["store"], self.site.state)
        try:
            for name in SIGNED:
                await self.release(name, full=True)
            await self.start()
            for _ in range(policies):
                await self.change()
                policy = self.chance.policy()
                self.site.configure(policy=policy)
                await asyncio.to_thread(control, self.site.state, "reload")
                self.figures.policies += 1
                for at in range(0, questions, BATCH):
                    await self.ask(policy, at)
                    if self.chance.random() < 0.1:
                        await self.change()
            await self.client.close()
            return self.figures
        finally:
            await self.store.close()

    async def start(self):
        node = await asyncio.to_thread(self.site.start)
        self.client = Connection(*await asyncio.open_connection(*node.address))
        await self.client.open(cer())

    async def ask(self, policy, at):
        """A batch of questions, each of which has to be answered as the model says: as before the batch, or as after it."""
        form = self.chance.form() if self.chance.random() < 0.5 else None
        questions = [self.chance.question(form) for _ in range(BATCH)]
        began = time.time()
        await self.client.send(*(on_the_wire(question, at + number) for number, question in enumerate(questions)))
        answers = [await self.client.read() for _ in questions]
        over = time.time()
        for question, answer in zip(questions, sorted(answers, key=lambda each: each.end_to_end), strict=True):
            found = answer.number(1445, TGPP) if answer.result == 2001 else answer.result
            wanted = {self.model.answer(policy, question, now) for now in (began, over)}
            if found not in wanted:
                self.figures.wrong.append(f"{found} instead of {wanted}, at {over}: {question}, {policy}")
            self.figures.ended += "override" not in policy and self.model.answer(policy, question, 0) not in wanted
        self.figures.questions += len(questions)

    # ---- what happens to the lists ----

    async def change(self):
        """Something that happens to a list or to the host; returns once the node holds what came of it."""
        ways = {self.full: 2, self.delta: 5, self.add: 5, self.remove: 2, self.undo: 2, self.restart: 0.4}
        if self.redis is not None:
            ways |= {self.lose: 0.6, self.start_without: 0.4}
        (what,) = self.chance.choices(list(ways), ways.values())
        while await what() is False:  # there was nothing to take away
            (what,) = self.chance.choices(list(ways), ways.values())
        self.figures.changes[what.__name__] = self.figures.changes.get(what.__name__, 0) + 1
        await until_async(self.is_level, patience_s=PATIENCE_S)

    async def full(self):
        await self.release(self.chance.choice(SIGNED), full=True)

    async def delta(self):
        await self.release(self.chance.choice(SIGNED), full=False)

    async def release(self, name, *, full):
        """Load the next release of a list: wholly other rows, or some more and some less."""
        rows, before = self.ends(self.chance.rows_of(name)), self.model.rows.get(name)
        others = sorted((before or {}).keys() - rows.keys(), key=repr)
        gone = [] if full or not others else self.chance.some(others, 3)
        base = None if full else self.bases[name]
        self.serials[name] += 1
        files = [*self.files(name, rows, "added"), *self.files(name, dict.fromkeys(gone), "removed")]
        manifest = await asyncio.to_thread(
            self.site.publisher.publish,
            self.site.folder / "releases",
            files,
            list_name=name,
            serial=self.serials[name],
            base=base,
        )
        lists = load_config(self.site.path).lists
        await load_release(manifest, lists, self.store, who="policies", now=datetime.now(UTC), force=True)
        self.bases[name] = self.serials[name]
        kept = {} if full else {row: end for row, end in before.items() if row not in gone}
        self.becomes(name, kept | {row: latest_end(end, kept.get(row, end)) for row, end in rows.items()})

    def ends(self, rows):
        return {row: int(self.chance.end()) for row in rows}

    def files(self, name, rows, role):
        """Data files: devices and TACs stand in one each."""
        columns = {"pairs": "imei,imsi", "subscribers": "imsi"}.get(KINDS[name], "imei")
        folder = self.site.folder / "releases"
        folder.mkdir(exist_ok=True)
        parts = {columns: [row for row in rows if row not in TACS], "tac": [row for row in rows if row in TACS]}
        for kind, some in parts.items():
            if not some and (kind == "tac" or role == "removed"):
                continue
            path = folder / f"{name}-{self.serials[name]}-{kind[:3]}-{role}.csv"
            lines = [kind if role == "removed" else f"{kind},until"]
            for row in some:
                end = "" if not rows[row] else datetime.fromtimestamp(rows[row], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                lines.append(
                    ",".join([*([row] if isinstance(row, str) else row), *([] if role == "removed" else [end])])
                )
            path.write_text("".join(f"{line}\n" for line in lines))
            yield path

    def becomes(self, name, rows):
        self.before[name], self.model.rows[name] = self.model.rows.get(name), rows

    async def edit(self, what, rows, end=0):
        listed, names = rows_of_entries(parse_entries("devices", rows, tacs=rows[0] in TACS))
        edit = RowsEdit(
            what=what, rows=listed, names=names, reason="by chance", until=end, replace=what == "add", force=True
        )
        settings = load_config(self.site.path).lists["own"]
        await write_edit(edit, settings, self.writer("own"), rows_update(edit, settings, now=datetime.now(UTC)))
        held = self.model.rows.get("own", {})
        self.becomes(
            "own",
            held | dict.fromkeys(rows, end)
            if what == "add"
            else {row: end for row, end in held.items() if row not in rows},
        )

    def writer(self, name):
        return ListWriter(self.store, name, KINDS[name], "policies")

    async def add(self):
        end = int(time.time()) + self.chance.choice([2, 3, 10**6]) if self.chance.random() < 0.7 else 0
        await self.edit("add", self.chance.some(self.chance.choice([DEVICES, DEVICES, TACS]), 5), end)

    async def remove(self):
        held = self.model.rows.get("own", {})
        lasting = [row for row in held if in_force(held, row, time.time() + 1)]
        if not lasting:
            return False
        return await self.edit("remove", [self.chance.choice(sorted(lasting))])

    async def undo(self):
        """Roll a list back."""
        names = [name for name, rows in self.before.items() if rows is not None]
        if not names:
            return False
        name = self.chance.choice(sorted(names))
        planned, writer = await plan_rollback(self.store, name), self.writer(name)
        await writer.write(planned.make)
        self.bases[name] = writer.content.head.serial
        self.model.rows[name], self.before[name] = self.before[name], None
        return None

    async def restart(self):
        await self.client.close()
        await asyncio.to_thread(self.site.node.end)
        await self.start()

    async def lose(self):
        """Redis loses all that it has; the node writes its copy back."""
        await until_async(self.is_copied, patience_s=PATIENCE_S)
        await asyncio.to_thread(self.redis.flush)
        self.before = {}

    async def start_without(self):
        """The node starts from its copy, and is asked, while there is no Redis; then there is an empty one."""
        await until_async(self.is_copied, patience_s=PATIENCE_S)
        await asyncio.to_thread(self.redis.kill)
        await self.restart()
        await self.ask(self.site.settings["policy"], 0)
        await asyncio.to_thread(self.redis.start)
        self.before = {}

    # ---- what is held ----

    async def is_level(self):
        """True if the node holds what the store holds, which is all lists that ever came."""
        stored, told = dict(await self.store.heads()), await asyncio.to_thread(self.site.node.status)
        return stored.keys() == self.model.rows.keys() and all(
            (held := told["lists"].get(name)) is not None and held["generation"] == state.generation for name, state in stored.items()
        )  # fmt: skip

    async def is_copied(self):
        stored = {name: head.generation for name, head in (await self.store.heads()).items()}
        return await asyncio.to_thread(self.site.is_copied, stored)
