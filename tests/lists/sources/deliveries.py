"""Deliveries of forty kinds, good, damaged and hostile, by three publishers, and a model of their results.

The model knows the drop folder by what a publisher and an operator see: files that come and go, the texts in `refused`, and the
store. Every file has a content of its own, so that it is known again wherever it lies.
"""

import gzip
import hashlib
import json
import os
import random
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import zstandard
from simulated.releases import make_key, public

LISTS = ("stolen", "tracked", "exempt")
STRAY = "stray"
LATE = 5
"""A serial by which the first ones are in force."""
NUMBER_BITS = 24
"""Bits of a delivery's number."""


def settings(folder):
    """The lists as a configuration has them; each publisher is trusted for its own only."""
    return {
        name: {"signers": f"{folder}/signers-{name}", "growth_max": "100000%", "shrink_max": "100%"} for name in LISTS
    }


@dataclass(slots=True)
class Expected:
    """One delivery, and what has to become of it."""

    kind: str
    manifest: str | None
    list: str
    serial: int
    reasons: tuple[str, ...] = ()
    """Empty: it is good, and will be in force."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 → name, of all files that came with it."""
    whole: float = 0.0
    """When its last file arrived (time.monotonic)."""


class Deliveries:
    """Publishers who deliver into `drop`, and the model. `folder` holds their keys and the signers files."""

    def __init__(self, folder, drop, seed):
        self.drop, self.folder, self.chance = drop, folder, random.Random(seed)
        self.keys = {name: make_key(folder, name) for name in (*LISTS, "stranger")}
        for name in LISTS:
            (folder / f"signers-{name}").write_text(f"{name} {public(self.keys[name])}")
        self.serials = dict.fromkeys(LISTS, 0)
        self.good = dict.fromkeys(LISTS, 0)
        self.size = dict.fromkeys(LISTS, "none")
        """Sizes of the lists: TACs are too much growth for a `small` one."""
        self.made: list[Expected] = []
        self.later = []
        """Files that come a moment later: (delivery, name, content)."""
        self._number = 0

    # What a publisher does

    def deliver(self, kind=None):
        """One delivery of a kind (by chance if not given); returns what is expected."""
        kind = kind or self.chance.choice(KINDS)
        name = self.chance.choice([each for each in LISTS if self.is_free(each)] or [None])
        if name is None:
            return None
        self._number += 1
        expected = Expected(kind, None, name, 0)
        self.made.append(expected)
        getattr(self, f"_{kind}")(expected)
        expected.whole = time.monotonic()
        return expected

    def is_free(self, name):
        """True if the list's publisher has delivered all of what it began."""
        return not any(expected.list == name for expected, *_ in self.later)

    def catch_up(self):
        """Deliver what comes a moment later."""
        for expected, name, content in self.later:
            self._put(expected, name, content)
            expected.whole = time.monotonic()
        self.later.clear()

    def _put(self, expected, name, content):
        path = self.drop / os.fsdecode(name)
        path.write_bytes(content)
        expected.files[hashlib.sha256(content).hexdigest()] = os.fsdecode(name)

    def _rows(self, count=20):
        return [f"{35000000 + self.chance.randrange(500)}{self.chance.randrange(10**6):06d}" for _ in range(count)]

    def _data(self, *rows, header="imei,reason"):
        """Rows of the publisher's, the first of them with a reason that nobody else gives."""
        body = rows or [f"{imei}," for imei in self._rows()]
        first = f"{body[0].rstrip(',')},r{self._number}" if header == "imei,reason" else body[0]
        return "".join(f"{line}\n" for line in (header, first, *body[1:])).encode()

    def _release(
        self,
        expected,
        content=None,
        *,
        name=None,
        data="csv",
        files=None,
        late=(),
        key=None,
        namespace="eir-release",
        serial=None,
        **members,
    ):
        """Put a release into the folder: manifest and signature by the list's publisher, and one data file unless `files` says more."""
        content = self._data() if content is None else content
        if serial is None:
            self.serials[expected.list] += 1
            serial = self.serials[expected.list]
        stem = f"{expected.list}-{name or serial}-{self._number if name is None else 'x'}"
        expected.manifest, expected.serial = f"{stem}.manifest.json", serial
        entries = []
        for file, role, octets in files or [(f"{stem}.{data}", "entries", content)]:
            entry = members.pop("entry", {})
            rows = entry["rows"] if "rows" in entry else _expanded(file, octets).count(b"\n") - 1
            digest = hashlib.sha256(octets).hexdigest()
            entries.append(
                {"name": file, "role": role, "layout": "eir", "bytes": len(octets), "rows": rows, "sha256": digest}
                | entry
            )
        now = datetime.now(UTC)
        document = {
            "format": "eir-release/1", "list": expected.list, "kind": "full", "serial": serial, "issued": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "expires": f"{now + timedelta(days=9):%Y-%m-%dT%H:%M:%SZ}", "files": entries, "number": self._number, **members.pop("document", {}),
        }  # fmt: skip
        manifest = members.get("manifest", json.dumps(document).encode())
        signed = subprocess.run(
            ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", self.keys[key or expected.list]], input=members.get("signed", manifest), check=True,
            capture_output=True,
        ).stdout  # fmt: skip
        parts = {"manifest": [(expected.manifest, manifest)], "sig": [(f"{expected.manifest}.sig", signed)]}
        parts["data"] = [
            (file, octets)
            for file, _, octets in files or [(f"{stem}.{data}", "entries", content)]
            if octets is not None
        ]
        for part in ("data", "manifest", "sig"):
            for file, octets in parts[part]:
                if part in late:
                    self.later.append((expected, file, octets))
                else:
                    self._put(expected, file, octets)
        return stem

    def _good(self, expected, *content, size="small", **more):
        self._release(expected, *content, **more)
        self.good[expected.list] = expected.serial
        self.size[expected.list] = size

    def _bad(self, expected, reasons, *content, **more):
        expected.reasons = (reasons,) if isinstance(reasons, str) else reasons
        return self._release(expected, *content, **more)

    # Good ones

    def _full(self, expected):
        self._good(expected)

    def _gz(self, expected):
        self._good(expected, gzip.compress(self._data()), data="csv.gz")

    def _zst(self, expected):
        self._good(expected, zstandard.compress(self._data()), data="csv.zst")

    def _tacs(self, expected):
        if self.size[expected.list] == "small":
            return self._full(expected)
        return self._good(
            expected, self._data("35000001,a", f"35000002,{self._number}", header="tac,reason"), size="large"
        )

    def _ranges(self, expected):
        if self.size[expected.list] == "small":
            return self._full(expected)
        ranges = ("35000001000000,35000001000999,a", f"35000003000000,35000005000000,{self._number}")
        return self._good(expected, self._data(*ranges, header="imei_from,imei_to,reason"), size="large")

    def _ends(self, expected):
        self._good(
            expected,
            self._data(*(f"{imei},2099-12-31,{self._number}" for imei in self._rows()), header="imei,until,reason"),
        )

    def _many(self, expected):
        self._good(expected, self._data(*(f"{imei}," for imei in self._rows(800))))

    def _blank(self, expected):
        """No row at all, and no two deliveries with the same bytes: the ends of the empty lines spell the number."""
        ends = (b"\r\n" if self._number >> bit & 1 else b"\n" for bit in range(NUMBER_BITS))
        self._good(expected, b"imei,reason\n" + b"".join(ends), entry={"rows": 0})

    def _some_bad(self, expected):
        self._good(expected, self._data(f"{self._rows()[0]},", "nonsense,", "12,"))

    def _delta(self, expected):
        if not self.good[expected.list]:
            return self._good(expected)
        base = self.good[expected.list]
        name = f"{expected.list}-{self._number}"
        files = [(f"{name}-added.csv", "added", self._data()), (f"{name}-removed.csv", "removed", self._data())]
        size = "large" if self.size[expected.list] == "large" else "small"
        return self._good(expected, files=files, document={"kind": "delta", "base": base}, size=size)

    def _data_last(self, expected):
        self._good(expected, late=("data",))

    def _signature_last(self, expected):
        self._good(expected, late=("sig",))

    def _manifest_last(self, expected):
        self._good(expected, late=("manifest",))

    def _half_first(self, expected):
        self._good(expected, late=("data",))
        _, name, content = self.later[-1]
        (self.drop / name).write_bytes(content[: len(content) // 2])

    def _unknown_members(self, expected):
        self._good(expected, document={"comment": "x" * 1000})

    # Refused ones

    def _again(self, expected):
        """The names of an earlier one, which lie in `refused`."""
        stem = f"{expected.list}-again-x"
        if any((self.drop / f"{stem}{end}").exists() for end in (".csv", ".manifest.json", ".manifest.json.sig")):
            return self._junk(expected)
        return (
            self._bad(expected, "serial", name="again", serial=1)
            if self.serials[expected.list] > LATE
            else self._full(expected)
        )

    def _stranger(self, expected):
        self._bad(expected, "untrusted_signer", key="stranger")

    def _neighbour(self, expected):
        self._bad(expected, "untrusted_signer", key=next(name for name in LISTS if name != expected.list))

    def _changed_manifest(self, expected):
        self._bad(expected, "bad_signature", signed=b"%d" % self._number)

    def _other_purpose(self, expected):
        self._bad(expected, "namespace", namespace="file")

    def _expired(self, expected):
        self._bad(expected, "expired", document={"issued": "2020-01-01T00:00:00Z", "expires": "2020-02-01T00:00:00Z"})

    def _old(self, expected):
        return self._bad(expected, "serial", serial=1) if self.serials[expected.list] > LATE else self._full(expected)

    def _unknown_list(self, expected):
        self._bad(expected, "unknown_list", document={"list": "nobodys"})

    def _no_json(self, expected):
        self._bad(expected, "manifest", manifest=b"%d}" % self._number)

    def _deep_json(self, expected):
        self._bad(expected, "manifest", manifest=b"[" * 50_000 + b"%d}" % self._number)

    def _two_meanings(self, expected):
        self._bad(expected, "manifest", manifest=b'{"list": "a", "list": "b", "n": %d}' % self._number)

    def _folder_in_name(self, expected):
        self._bad(expected, "file_name", entry={"name": "../x.csv"})

    def _takes_a_manifest(self, expected):
        victim = next((each for each in reversed(self.made) if each.manifest and each.list != expected.list), None)
        self._bad(expected, "file_name", entry={"name": victim.manifest if victim else "x.manifest.json"})

    def _takes_a_signature(self, expected):
        victim = next((each for each in reversed(self.made) if each.manifest and each.list != expected.list), None)
        self._bad(expected, "file_name", entry={"name": f"{victim.manifest if victim else 'x'}.sig"})

    def _digest(self, expected):
        self._bad(expected, "digest", entry={"sha256": "0" * 64})

    def _row_count(self, expected):
        self._bad(expected, "rows", entry={"rows": self.chance.choice([1, 19, 21, 1000])})

    def _bad_rows(self, expected):
        self._bad(expected, "bad_rows", self._data(*(f"x{self._number}," for _ in range(101))))

    def _layout(self, expected):
        self._bad(expected, "layout", self._data(f"{self._number}", header="number"))

    def _growth(self, expected):
        """A list that is not there yet grows without limit."""
        content = self._data(*(f"350000{n},{self._number}" for n in range(10, 30)), header="tac,reason")
        return self._bad(expected, "growth", content) if self.size[expected.list] == "small" else self._full(expected)

    def _bomb(self, expected):
        content = zstandard.compress(b"imei\n%d\n" % self._number) + zstandard.compress(b"35209900176148\n" * 10**6) * 3
        self._bad(expected, "expanded", content, data="csv.zst")

    def _endless(self, expected):
        self._bad(expected, "too_large", entry={"rows": 1 << 40})

    def _long_ranges(self, expected):
        ranges = (
            f"{tac:08d}000001,{tac + 998:08d}999998,{self._number}" for tac in range(10**7, 10**7 + 600 * 999, 999)
        )
        self._bad(expected, "range", self._data(*ranges, header="imei_from,imei_to,reason"))

    def _one_long_range(self, expected):
        self._bad(
            expected,
            "range",
            self._data(f"35000001000000,35002001999999,{self._number}", header="imei_from,imei_to,reason"),
        )

    def _cut_data(self, expected):
        plain = self._data(*(f"{imei}," for imei in self._rows(2000)))
        self._bad(expected, ("data", "rows"), gzip.compress(plain)[:-500], data="csv.gz", entry={"rows": 2001})

    def _past_base(self, expected):
        if self.good[expected.list] < 2:
            return self._full(expected)
        return self._bad(
            expected, ("base", "incomplete"), files=[(f"{expected.list}-{self._number}-added.csv", "added", self._data())],
            document={"kind": "delta", "base": self.good[expected.list] - 1},
        )  # fmt: skip

    def _large_manifest(self, expected):
        self._bad(
            expected, "too_large", manifest=b"%d" % self._number + b" " * (1 << 20) + b"}", signed=b"%d" % self._number
        )

    def _not_utf_8(self, expected):
        expected.reasons, expected.manifest = ("file_name",), os.fsdecode(b"\xff%d.manifest.json" % self._number)
        self._put(expected, expected.manifest, b"%d}" % self._number)
        self._put(expected, f"{expected.manifest}.sig", b"%d-----END SSH SIGNATURE-----" % self._number)

    def _junk(self, expected):
        expected.reasons, expected.manifest = ("bad_signature",), f"junk-{self._number}.manifest.json"
        self._put(expected, expected.manifest, b"%d}" % self._number)
        self._put(expected, f"{expected.manifest}.sig", b"%d-----END SSH SIGNATURE-----" % self._number)

    def _a_link(self, expected):
        expected.reasons, expected.manifest = ("not_a_file",), f"link-{self._number}.manifest.json"
        (self.drop / expected.manifest).symlink_to("/etc/hostname")
        self._put(expected, f"{expected.manifest}.sig", b"%d-----END SSH SIGNATURE-----" % self._number)

    # What belongs to no release

    def _data_alone(self, expected):
        expected.reasons = (STRAY,)
        self._put(expected, f"alone-{self._number}.csv", self._data())

    def _signature_of_data(self, expected):
        """Beside a good release: it takes nothing with it."""
        self._good(expected)
        data = next(name for name in expected.files.values() if name.endswith(".csv"))
        for name in (f"{data}.sig", f"{expected.manifest}.sig.sig"):
            self._put(expected, name, b"%d %s" % (self._number, name.encode()))

    # What an operator sees

    def found(self, rooms):
        """The files in these folders and the texts on refusals.

        SHA-256 → how often, of regular files; and for each manifest its reasons.
        """
        contents, reasons = Counter(), {}
        for path in (path for room in rooms for path in room.iterdir()):
            if path.is_symlink() or not path.is_file():
                continue
            octets = path.read_bytes()
            if b" was refused at " in octets[:400] and ".txt" in path.name:
                text = octets.decode()
                name, _, rest = text.partition(" was refused at ")
                reasons.setdefault(name, []).append(rest.split("Reason: ")[1].split("\n")[0])
            else:
                contents[hashlib.sha256(octets).hexdigest()] += 1
        return contents, reasons

    def broken(self, rooms, loaded):
        """Promises that were not kept once all is done. `loaded`: (list, serial) of each load, in order."""
        contents, reasons = self.found(rooms)
        left = [path.name for path in self.drop.iterdir() if not path.is_dir()]
        promises = [f"left in the folder: {left[:5]}"] * bool(left)
        said = {name: iter(found) for name, found in reasons.items()}
        taken = Counter(loaded)
        for each in self.made:
            what = f"{each.kind} {each.manifest} (serial {each.serial})"
            promises += [
                f"{what}: {name} lies there {contents[digest]} times"
                for digest, name in each.files.items()
                if contents[digest] != 1
            ]
            if not each.reasons and taken[each.list, each.serial] != 1:
                promises.append(
                    f"{what}: loaded {taken[each.list, each.serial]} times; refused for {reasons.get(each.manifest)}"
                )
            elif each.reasons and each.reasons != (STRAY,):
                name = each.manifest.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                if (reason := next(said.get(name, iter(())), None)) not in each.reasons:
                    promises.append(f"{what}: refused for {reason}, expected {each.reasons}")
        good = {(each.list, each.serial) for each in self.made if not each.reasons}
        promises += [f"loaded although it is not good: {load}" for load in taken if load not in good]
        return promises


def _expanded(name, octets):
    if name.endswith(".zst"):
        return zstandard.ZstdDecompressor().stream_reader(octets, read_across_frames=True).read()
    return gzip.decompress(octets) if name.endswith(".gz") else octets


NO_KINDS = {"put", "rows", "data", "release", "good", "bad", "number"}
KINDS = sorted(
    name[1:]
    for name in vars(Deliveries)
    if name.startswith("_") and not name.startswith("__") and name[1:] not in NO_KINDS
)
